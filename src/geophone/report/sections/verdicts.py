"""The section that says which published claims these networks support."""

from math import floor, log10
from typing import Any

import polars as pl

from geophone.report.markup import count, text
from geophone.report.words import SPACE, p_value

# Each verdict has its sign, so that colour is not all that tells them apart.
SIGNS = {"supported": "✓", "contradicted": "✗", "not decided": "?"}
CAPTION = (
    "Measures, tests and what they need were fixed beforehand, unless it is said otherwise. Supported: the test speaks "
    "for the claim. Contradicted: it speaks for the contrary. Not decided: neither, or fewer networks or seeds than "
    "the power calculation asks for. Verdicts hold together: p-values are corrected for how many tests this table has "
    "(Holm), so that the chance of any false verdict is at most 5 %. What a test says by itself, without correction, "
    "stands under its verdict where it differs. Intervals are of each test by itself."
)


def claims_section(claims: pl.DataFrame | None) -> str:
    """A table with a row for each claim and a further one for each of its parts; empty without claims."""
    if claims is None or claims.is_empty():
        return ""
    settings = claims["differs"].drop_nulls().unique().to_list()
    common = settings[0] if len(settings) == 1 else ""  # said once, over the table
    rows = claims.with_columns(differs=pl.lit("")) if common else claims
    bodies = "".join(_claim(part.to_dicts()) for _, part in rows.group_by("claim", maintain_order=True))
    aside = "Assumed" if common else "Where our setting differs"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Verdict", "Claim", "Found [95 %]", "Networks", aside))
    differs = f'<p class="caption"><b>Where our setting differs:</b> {text(common)}.</p>\n' if common else ""
    return (
        f'<section id="claims"><h2>Claims</h2>\n<p class="finding">{_tally(claims)}</p>\n'
        f'<p class="caption">{CAPTION}</p>\n{differs}'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of claims">'
        f'<table class="claims"><thead><tr>{head}</tr></thead>{bodies}</table></div></section>'
    )


def _tally(claims: pl.DataFrame) -> str:
    """How many claims have which verdict: `Of 6 claims, 3 are supported, 1 is contradicted and 2 are not decided.`"""
    verdicts = claims.unique("claim", keep="first", maintain_order=True)["verdict"].to_list()
    each = [(verdicts.count(verdict), verdict) for verdict in SIGNS]
    said = [f"{n or 'none'} {'is' if n < 2 else 'are'} {verdict}" for n, verdict in each]
    return f"Of {count(len(verdicts), 'published claim')}, {said[0]}, {said[1]} and {said[2]}."


def _claim(rows: list[dict[str, Any]]) -> str:
    """One claim: its verdict, and under it the parts if there are several."""
    first = rows[0]
    aside = "".join(
        f"<p>{prefix}{text(first[key])}</p>"
        for key, prefix in (("differs", ""), ("assumptions", "Assumed: "))
        if first[key]
    )
    lines = []
    for row in rows:
        if row["part"] is None:
            what = f"{text(row['statement'])} <small>{text(row['source'])}</small>"
            start, end = "<tr>", f'<td rowspan="{len(rows)}" class="aside">{aside or "–"}</td></tr>'
        else:
            what, start, end = text(row["part"]), '<tr class="part">', "</tr>"
        verdict = f"<td>{_badge(row['verdict'])}{_alone(row)}</td>"
        lines.append(f"{start}{verdict}<td>{what}</td>{_found(row, len(rows) - 1)}{_size(row)}{end}")
    return f"<tbody>{''.join(lines)}</tbody>"


def _badge(verdict: str) -> str:
    kind = verdict.replace(" ", "-")
    return (
        f'<span class="verdict {kind}"><span aria-hidden="true">{SIGNS[verdict]}</span>{SPACE}'
        f"{text(verdict.replace(' ', SPACE))}</span>"
    )


def _alone(row: dict[str, Any]) -> str:
    """What the verdict would be without the other claims, where it is another."""
    return "" if row["alone"] == row["verdict"] else f"<br><small>by itself: {text(row['alone'])}</small>"


def _p(row: dict[str, Any]) -> str:
    """`p = 0.004, corrected = 0.031.`, or nothing where it could not be judged."""
    if row["p"] is None or row["p_holm"] is None:
        return ""
    return f"<small>p{SPACE}{p_value(row['p'])}, corrected {p_value(row['p_holm'])}.</small> "


def _found(row: dict[str, Any], parts: int) -> str:
    """The number with its interval, what it is, what was asked, and what is to be said of it."""
    if row["test"] is None:
        return f"<td>{_p(row)}<small>Holds if {'both' if parts == 2 else f'all {parts}'} parts do.</small></td>"
    value = "" if row["value"] is None else f"<b>{_number(row)}</b> {text(row['effect'])}. "
    note = f' <span class="why">{text(_sentence(row["note"]))}</span>' if row["note"] else ""
    return f"<td>{value}{_p(row)}<small>{text(row['test'])}</small>{note}</td>"


def _size(row: dict[str, Any]) -> str:
    """How many networks and seeds there are, and how many are needed."""
    if row["networks"] is None:
        return "<td></td>"
    needed = f"<small>needed: {text(row['needed'])}</small>" if row["needed"] else ""
    return f"<td>{count(row['networks'], 'network')}<br>{count(row['seeds'], 'seed')} {needed}</td>"


def _number(row: dict[str, Any]) -> str:
    """`−0.81 [−0.95, −0.42]`, with as many decimals as give the interval two digits."""
    ends = [row["low"], row["high"]]
    if None in ends:
        return _decimals(row["value"], _places(abs(row["value"])))
    places = _places((row["high"] - row["low"]) / 2 or abs(row["value"]))
    low, high = (_decimals(end, places) for end in ends)
    return f"{_decimals(row['value'], places)} [{low},{SPACE}{high}]"


def _places(size: float) -> int:
    return max(0, 1 - floor(log10(size))) if size > 0 else 2


def _decimals(value: float, places: int) -> str:
    said = f"{value:z.{places}f}" if places <= 6 else f"{value:.1e}"
    return said.replace("-", "−")


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}.".replace(" %", f"{SPACE}%")
