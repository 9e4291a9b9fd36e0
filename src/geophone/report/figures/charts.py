"""The charts, as Vega-Lite specifications made by Altair. Rows are put in later, so that a control can swap them."""

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from geophone.report.words import measure

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

# Okabe & Ito's colours without yellow, which is lost on white paper. Shape and dash tell lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])

# What the level of a panel is.
LEVEL, IN_255THS, SEVERITY = "level", "level, in 255ths", "severity"

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def style(place: int) -> dict[str, Any]:
    """How the series at this place is drawn: colour, shape and dash, together different for 28 of them."""
    return {
        "colour": COLOURS[place % len(COLOURS)],
        "shape": SHAPES[place % len(SHAPES)],
        "dash": DASHES[place // len(COLOURS) % len(DASHES)],
    }


def svg(spec: Spec) -> str:
    """The chart drawn."""
    return vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)


def filled(spec: Spec, rows: Rows) -> Spec:
    """A specification with rows in it."""
    return {**spec, "data": {"values": rows}}


def standing(spec: Spec, rows: Rows) -> Spec:
    """The same for a figure that stands alone: without the layer of bands where no row has an interval."""
    if "layer" in spec and all(row["low"] is None for row in rows):
        spec = {**spec, "layer": [layer for layer in spec["layer"] if layer["mark"]["type"] != "area"]}
    return filled(spec, rows)


def columns(panels: int) -> int:
    """Panels side by side: 4, or 3 where that fills the last row better."""
    return min(panels, 3 if -panels % 3 < -panels % 4 else 4)


def accuracy_panel(
    kind: str,
    series: Sequence[str],
    levels: Sequence[float],
    words: tuple[str, str],
    unit: str = LEVEL,
    small: bool = False,
    width: int | str = "container",
) -> Spec:
    """Accuracy against the level of one perturbation; level 0 is the clean images.

    Args:
        kind: What a series is.
        series: The series.
        levels: Where the axis may have its marks; for a severity these are 1 to 5.
        words: Title, and what is under it.
        unit: `LEVEL`, `IN_255THS` or `SEVERITY`.
        small: For a panel among many.
        width: In pixels, or that of the place where it is.
    """
    marks = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0) if unit == SEVERITY else tuple(levels)
    return _named(_accuracy(kind, tuple(series), marks, unit, small), words, width)


@cache
def _accuracy(kind: str, series: tuple[str, ...], marks: tuple[float, ...], unit: str, small: bool) -> Spec:
    axis: dict[str, Any] = {
        "values": list(marks),
        "labelOverlap": False if unit == SEVERITY else "greedy",
        "labelSeparation": 3,
        "labelFlush": False,
        "format": ".3~g",
        "grid": False,
    }
    if unit == IN_255THS:
        axis["labelExpr"] = "format(datum.value * 255, '.3~g')"
    if unit == SEVERITY:
        axis["labelExpr"] = "datum.value === 0 ? 'clean' : datum.value"
    scale = alt.Scale(domain=[0, 5], nice=False) if unit == SEVERITY else alt.Scale(nice=False)
    x = alt.X("level:Q", title=unit, axis=alt.Axis(**axis), scale=scale)
    return _lines(kind, series, x, _share(small), 105 if small else 150, "Accuracy", ".1%", small=small)


def robust_panel(
    kind: str,
    series: Sequence[str],
    eps: Sequence[float],
    title: str,
    in_255ths: bool,
    width: int | str = "container",
) -> Spec:
    """Robust accuracy against the radius of one attack, on a logarithmic axis."""
    return _named(_robust(kind, tuple(series), tuple(eps), in_255ths), (title, ""), width)


@cache
def _robust(kind: str, series: tuple[str, ...], eps: tuple[float, ...], in_255ths: bool) -> Spec:
    axis: dict[str, Any] = {"values": list(eps), "labelOverlap": "greedy", "labelSeparation": 4, "format": ".2~g"}
    if in_255ths:
        axis["labelExpr"] = "format(datum.value * 255, '.3~g')"
    x = alt.X(
        "level:Q",
        title="eps, in 255ths" if in_255ths else "eps",
        axis=alt.Axis(**axis, grid=False, labelFlush=False),
        scale=alt.Scale(type="log", nice=False),
    )
    return _lines(kind, series, x, _share(), 200, "Robust accuracy", ".1%")


def _named(spec: Spec, words: tuple[str, str], width: int | str) -> Spec:
    """A copy with its title and width. Altair takes a fifth of a second for a specification, and panels are alike."""
    return {**deepcopy(spec), "title": heading(*words), "width": width}


def _share(small: bool = False) -> alt.Y:
    """An axis from 0 to 100 %."""
    marks = [0, 0.5, 1] if small else [0, 0.25, 0.5, 0.75, 1]
    axis = alt.Axis(format="%", values=marks, labelOverlap=False)
    return alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis)


def profile(
    kind: str,
    series: Sequence[str],
    layers: Sequence[tuple[int, str]],
    title: str,
    width: int | str = "container",
) -> Spec:
    """One measure over the depth of the network; `layers` are its depths with their layers' names."""
    depths = sorted({depth for depth, _ in layers})
    axis: dict[str, Any] = {"values": depths, "format": "d", "grid": False, "labelOverlap": "greedy"}
    order = "depth (layers in the order of execution)"
    if len(depths) == len(layers):  # else networks differ in what lies at a depth
        names = json.dumps({str(depth): name for depth, name in layers})
        steep = sum(len(name) + 3 for _, name in layers) > 90
        axis |= {"labelExpr": f"{names}[datum.value]", "labelLimit": 120, "labelAngle": -35 if steep else 0}
        order = "layer (in the order of execution)"
    x = alt.X("depth:Q", title=order, axis=alt.Axis(**axis), scale=alt.Scale(nice=False, padding=8))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=True), axis=alt.Axis(format="~g", tickCount=5))
    tip = [alt.Tooltip("layer:N", title="Layer")]
    return _named(_lines(kind, series, x, y, 320, "Value", ".3~f", tip), (title, ""), width)


def scatter(kind: str, series: Sequence[str], geometry: str, robustness: str, width: int | str = "container") -> Spec:
    """One point per network: a geometric measure against a robustness measure."""
    base = alt.Chart(alt.Data(name="rows"), width=width, height=340)
    points = base.mark_point(size=85, filled=True, opacity=0.85, clip=False).encode(
        x=alt.X("x:Q", title=measure(geometry).title, scale=alt.Scale(zero=False, padding=16), axis=_quiet()),
        y=alt.Y("y:Q", title=measure(robustness).title, scale=alt.Scale(zero=False, padding=16), axis=_quiet()),
        color=_colour(series),
        shape=_shape(series),
        tooltip=[
            alt.Tooltip("series:N", title=kind),
            alt.Tooltip("seed:N", title="Seed"),
            alt.Tooltip("x:Q", title=measure(geometry).title, format=".4~f"),
            alt.Tooltip("y:Q", title=measure(robustness).title, format=".4~f"),
        ],
    )
    return styled(points)


def heading(title: str, under: str = "", size: int = 13) -> dict[str, Any]:
    """A title over a chart, at its left."""
    return {"text": title, "subtitle": under, "anchor": "start", "fontSize": size, "fontWeight": 600, "offset": 8}


def name_y(spec: Spec, words: str) -> None:
    """Give a layered chart the title of its y axis, which a page says above the chart."""
    for layer in spec["layer"]:
        layer["encoding"]["y"]["title"] = words


def figure_profile(spec: Spec, rows: Rows, series: Sequence[str], words: str, caption: str) -> Spec:
    """The layer chart for a paper, with its y axis named and a legend."""
    figure = standing(spec, rows)
    name_y(figure, words)
    return with_legend({**figure, "title": heading(spec["title"]["text"], caption)}, series)


def figure_relation(spec: Spec, rows: Rows, series: Sequence[str], title: str) -> Spec:
    """The scatter for a paper, with a title and a legend."""
    return with_legend({**standing(spec, rows), "title": heading(title, "One point per network")}, series)


def figure_accuracy(
    groups: Sequence[tuple[str, bool, Sequence[tuple[Spec, Rows]]]], series: Sequence[str], caption: str
) -> Spec:
    """All accuracy panels in one figure for a paper, group by group, with a legend.

    Args:
        groups: Of each its heading, whether its panels are small, and its panels.
        series: The series.
        caption: What lines and bands are.
    """
    blocks = [
        {**_beside(panels, 6 if small else columns(len(panels)), "accuracy"), "title": heading(title, size=14)}
        for title, small, panels in groups
    ]
    title = heading("Accuracy under perturbation", caption, size=17)
    config = {**groups[0][2][0][0]["config"], "concat": {"spacing": 16}}
    return with_legend({"title": title, "vconcat": blocks, "config": config, "spacing": 28}, series, 4)


def figure_robust(panels: Sequence[tuple[Spec, Rows]], series: Sequence[str], caption: str) -> Spec:
    """The curves over eps in one figure for a paper, with a legend."""
    figure = _beside(panels, min(3, len(panels)), "robust accuracy")
    title = heading("Robust accuracy over the radius of the attack", caption, size=16)
    return with_legend({**figure, "title": title, "config": panels[0][0]["config"], "spacing": 18}, series, 3)


def figure_panels(title: str, caption: str, columns: int, panels: Sequence[tuple[Spec, Rows]]) -> Spec:
    """Panels, each with its own legend, in one figure for a paper."""
    return {
        "$schema": panels[0][0]["$schema"],
        "title": heading(title, caption, size=16),
        "columns": columns,
        "concat": [_cell(filled(*panel)) for panel in panels],
        "config": {**panels[0][0]["config"], "concat": {"spacing": 24}},
    }


def _cell(spec: Spec) -> Spec:
    """A specification as a part of another."""
    return {k: v for k, v in spec.items() if k not in ("config", "$schema")}


def _beside(panels: Sequence[tuple[Spec, Rows]], most: int, y: str) -> Spec:
    """Panels in rows of at most so many; the first of a row names the y axis."""
    cells = [_cell(standing(spec, rows)) for spec, rows in panels]
    for cell in cells[::most]:
        name_y(cell, y)
    return {"columns": most, "concat": cells}


def with_legend(spec: Spec, series: Sequence[str], columns: int = 2) -> Spec:
    """The specification with Vega's own legend under it, for figures that stand alone."""
    if len(series) == 1:
        return spec
    legend = {
        "orient": "bottom",
        "columns": columns,
        "labelLimit": 420,
        "title": None,
        "symbolOpacity": 1,
        "symbolSize": 80,
    }
    return _legend_in(spec, legend)


def _legend_in(part: Any, legend: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_legend_in(p, legend) for p in part]
    if not isinstance(part, dict):
        return part
    made = {k: _legend_in(v, legend) for k, v in part.items()}
    if "encoding" in made and "color" in made["encoding"]:
        made["encoding"] = {**made["encoding"], "color": {**made["encoding"]["color"], "legend": legend}}
    return made


def _lines(
    kind: str,
    series: Sequence[str],
    x: alt.X,
    y: alt.Y,
    height: int,
    value_title: str,
    value_format: str,
    first: Sequence[alt.Tooltip] = (),
    small: bool = False,
) -> Spec:
    """An interval band, a line and points for each series."""
    tooltip = [
        alt.Tooltip("series:N", title=kind),
        *first,
        alt.Tooltip("label:N", title="Images"),
        alt.Tooltip("value:Q", title=value_title, format=value_format),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("networks:Q", title="Networks"),
    ]
    base = alt.Chart().encode(x=x, color=_colour(series))
    band = base.mark_area(opacity=0.1, clip=True).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(strokeWidth=1.3 if small else 1.8, clip=True).encode(
        y=y,
        strokeDash=alt.StrokeDash(
            "series:N",
            scale=alt.Scale(domain=list(series), range=[style(i)["dash"] for i in range(len(series))]),
            legend=None,
        ),
    )
    points = base.mark_point(size=18 if small else 42, filled=True, opacity=1)
    points = points.encode(y=y, shape=_shape(series), tooltip=tooltip)
    return styled(alt.layer(band, line, points, data=alt.Data(name="rows"), height=height))


def _colour(series: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(series), range=[style(i)["colour"] for i in range(len(series))])
    return alt.Color("series:N", scale=scale, legend=None)


def _shape(series: Sequence[str]) -> alt.Shape:
    scale = alt.Scale(domain=list(series), range=[style(i)["shape"] for i in range(len(series))])
    return alt.Shape("series:N", scale=scale, legend=None)


def _quiet() -> alt.Axis:
    return alt.Axis(format="~g", tickCount=6, grid=True)


def styled(chart: alt.Chart | alt.LayerChart) -> Spec:
    """The specification in the style of all charts."""
    spec: Spec = chart.configure(
        font=FONT,
        axis=alt.AxisConfig(
            labelColor="#444",
            titleColor="#444",
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=12,
            gridColor="#e8e8e8",
            domainColor="#999",
            tickColor="#999",
        ),
        view=alt.ViewConfig(stroke=None),
        title=alt.TitleConfig(color="#1b1b1b", subtitleColor="#5a5a5a", subtitleFontSize=11),
    ).to_dict()
    return spec


def rows_of(part: pl.DataFrame) -> Rows:
    """Rows of a summary as a chart takes them, rounded."""
    where = ["layer", "depth"] if part["layer"].count() else ["level"]
    numbers = pl.col("value", "low", "high").round_sig_figs(4)
    return part.select("series", *where, numbers, "networks", "label").to_dicts()
