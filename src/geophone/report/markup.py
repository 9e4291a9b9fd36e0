"""Pieces of HTML that sections share."""

import html

from geophone.report.figures import charts


def text(value: object) -> str:
    """Anything as text of a page, with nothing in it that HTML could take for markup."""
    return html.escape(str(value), quote=True)


def count(n: int, what: str) -> str:
    """`1 network`, `2 networks`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def legend(series: list[str], bands: bool = True) -> str:
    """Check boxes that show or hide a recipe in every chart."""
    band = '<label class="bands"><input type="checkbox" checked> interval bands</label>' if bands else ""
    if len(series) == 1:
        return f'<fieldset class="legend">{band}</fieldset>'
    boxes = "".join(
        f'<label><input type="checkbox" checked data-series="{text(name)}">{swatch(place)}{text(name)}</label>'
        for place, name in enumerate(series)
    )
    return f'<fieldset class="legend"><legend>Show</legend>{boxes}{band}</fieldset>\n'


SHAPE_PATHS = {
    "circle": "M18 8m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M14.5 4.5h7v7h-7z",
    "triangle-up": "M18 3.5l4.5 8h-9z",
    "diamond": "M18 3l4.5 5l-4.5 5l-4.5 -5z",
    "cross": "M16.5 3.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "triangle-down": "M18 12.5l4.5 -8h-9z",
    "triangle-right": "M14 3.5l8 4.5l-8 4.5z",
}


def swatch(place: int) -> str:
    """A short piece of a series' line, as the charts draw it."""
    look = charts.style(place)
    dash = f' stroke-dasharray="{" ".join(map(str, look["dash"]))}"' if look["dash"][1] else ""
    colour = look["colour"]
    return (
        '<svg width="36" height="16" viewBox="0 0 36 16" aria-hidden="true">'
        f'<path d="M1 8h34" stroke="{colour}" stroke-width="2"{dash}/>'
        f'<path d="{SHAPE_PATHS[look["shape"]]}" fill="{colour}"/></svg>'
    )


def select(name: str, label: str, entries: list[tuple[str, str]], chosen: str) -> str:
    """A labelled choice between entries, each a value and what the reader sees."""
    options = "".join(
        f'<option value="{text(value)}"{" selected" if value == chosen else ""}>{text(seen)}</option>'
        for value, seen in entries
    )
    return f'<label>{label}<select id="{name}">{options}</select></label>'
