"""Tables of how each series holds: scores under corruption, and how far attacks must go."""

from typing import Any

import polars as pl

from geophone.analysis.scores import GROUPS, NONE_STANDARD, STANDARD
from geophone.report.findings import Findings
from geophone.report.markup import count, select, text
from geophone.report.summary import RADII, summarise_scores
from geophone.report.words import SOURCES, in_255ths, measure, percent_range, radius

SCORES = ("corruption_accuracy", "corruption_accuracy_relative", "corruption_accuracy_above_chance")
# How deep the tint of a cell at 100 % is, in percent of the accent colour.
TINT = 45


def score_section(found: Findings) -> str:
    """Scores under corruption: one table for each source, the score chosen by a control; empty if there are none."""
    if found.scores.is_empty():
        return ""
    made = summarise_scores(found.scores.drop("series"), found.scores.select("job", "series").unique())
    shown = [name for name in SCORES if name in made["metric"]]
    sources = found.scores["source"].unique(maintain_order=True).to_list()
    tables = []
    for source in sources:
        same = pl.col("source").eq_missing(pl.lit(source, pl.String))
        part = made.filter(same & pl.col("severity").is_null())
        what = SOURCES.get(source, source) if source else None
        caption = f"{f'Made with {what}; means' if what else 'Means'} are {_means(found.scores.filter(same))}."
        tables.append(f'<p class="caption">{text(caption)}</p>\n{_score_table(found.series, part, shown)}')
    others = [name for name in made["corruption"].drop_nulls() if name not in STANDARD]
    extra = " ° is no part of the mean: it is not one of the 15 standard corruptions." if others else ""
    choice = select("score", "Score", [(name, measure(name).title) for name in shown], shown[0])
    return (
        '<section id="scores"><h2>Scores under corruption</h2>\n'
        '<p class="caption">In percent; a column is the mean over the severities of one corruption. Divided by clean '
        "accuracy, 100 means that corruption costs nothing. Above chance, 0 is guessing and 100 all right. Point at a "
        "number for its 95 % interval; those of means allow for all conditions erring on the same images, and are too "
        f"wide if they do not.{extra}</p>\n"
        f'<div class="controls">{choice}</div>\n{"".join(tables)}</section>'
    )


def _means(scores: pl.DataFrame) -> str:
    """What means are over, as the scores' notes say it of each network."""
    whole = pl.col("corruption").is_null() & pl.col("severity").is_null() & (pl.col("metric") == SCORES[0])
    notes = scores.filter(whole & pl.col("value").is_not_null())["note"].unique(maintain_order=True).to_list()
    return "; or ".join(notes) or f"missing: {NONE_STANDARD}"


def _score_table(series: list[str], rows: pl.DataFrame, shown: list[str]) -> str:
    """A row for each series and a column for each type, in the published order; a body for each score."""
    there = rows["corruption"].drop_nulls().unique(maintain_order=True).to_list()
    groups = {kind: [name for name in types if name in there] for kind, types in GROUPS.items()}
    groups["other"] = [name for name in there if not any(name in types for types in GROUPS.values())]
    groups = {kind: types for kind, types in groups.items() if types}
    columns = [None, *(name for types in groups.values() for name in types)]
    firsts = {types[0] for types in groups.values()}
    values = {(r["metric"], r["series"], r["corruption"]): r for r in rows.to_dicts()}
    over = "".join(f'<th scope="colgroup" colspan="{len(types)}">{kind}</th>' for kind, types in groups.items())
    names = "".join(
        f'<th scope="col"{_first(name, firsts)}><span>{text(name)}{"" if name in STANDARD else " °"}</span></th>'
        for name in columns[1:]
    )
    bodies = []
    for metric in shown:
        lines = []
        for name in series:
            if not any((metric, name, column) in values for column in columns):
                continue
            cells = "".join(_score(values.get((metric, name, column)), column, firsts) for column in columns)
            lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
        hidden = "" if metric == shown[0] else " hidden"
        bodies.append(f'<tbody data-score="{metric}"{hidden}>{"".join(lines)}</tbody>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of scores under corruption">'
        f'<table class="scores"><thead><tr><td></td><td></td>{over}</tr><tr><td></td>'
        f'<th scope="col" class="mean"><span>mean</span></th>{names}</tr></thead>{"".join(bodies)}</table></div>\n'
    )


def _first(name: str | None, firsts: set[str]) -> str:
    return ' class="first"' if name in firsts else ""


def _score(row: dict[str, Any] | None, column: str | None, firsts: set[str]) -> str:
    """One cell: a whole number of percent, for the mean with its interval."""
    if row is None:
        return f"<td{_first(column, firsts)}>–</td>"
    value, between = row["value"], percent_range(row["low"], row["high"]).replace("-", "−")
    if column is None:
        return f'<td class="mean">{_percent(value, 1)} <small>({between})</small></td>'
    tint = f' style="--tint:{TINT * min(1.0, max(0.0, value)):.0f}%"'
    return f'<td{_first(column, firsts)}{tint} title="{_percent(value, 1)} ({between})">{_percent(value)}</td>'


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}".replace("-", "−")


def radii_table(found: Findings) -> str:
    """For each attack and series the eps at half accuracy, and the median minimum norm where it was looked for."""
    rows = found.radii
    if rows.is_empty():
        return ""
    metrics = [name for name in RADII if name in rows["metric"]]
    values = {(r["perturbation"], r["series"], r["metric"]): r for r in rows.to_dicts()}
    lines = []
    for attack in rows["perturbation"].unique(maintain_order=True):
        there = [name for name in found.series if any((attack, name, metric) in values for metric in metrics)]
        for place, name in enumerate(there):
            cells = "".join(_radius(values.get((attack, name, metric)), attack) for metric in metrics)
            head = f'<th scope="rowgroup" rowspan="{len(there)}">{text(attack)}</th>' if place == 0 else ""
            who = f"<td>{text(name)}</td>" if len(found.series) > 1 else ""
            lines.append(f"<tr{' class=first' if place == 0 else ''}>{head}{who}{cells}</tr>")
    who = f"<th>{found.kind}</th>" if len(found.series) > 1 else ""
    heads = "".join(f'<th class="number">{measure(metric).title} [95 %]</th>' for metric in metrics)
    units = " An l∞ radius is in 255ths." if any(in_255ths(name) for name in rows["perturbation"].unique()) else ""
    abouts = " ".join(f"{measure(metric).title}: {measure(metric).about}" for metric in metrics)
    return (
        f'<h3>Where half of the accuracy is gone</h3>\n<p class="caption">{text(abouts)}{units}</p>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of radii">'
        f'<table class="radii"><thead><tr><th>Attack</th>{who}{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _radius(row: dict[str, Any] | None, attack: str) -> str:
    """One cell: `3.1/255 [2.8/255, 3.4/255]`, or how many networks have it beyond the largest radius tried."""
    if row is None:
        return '<td class="number">–</td>'
    if row["missing"]:
        past = f"beyond {radius(attack, row['beyond'])}" if row["beyond"] is not None else "not found"
        whose = f" in {row['missing']} of {count(row['networks'], 'network')}" if row["networks"] > 1 else ""
        return f'<td class="number">{past}{whose}</td>'
    ends = [row["low"], row["high"]]
    between = ""
    if row["low"] is not None:
        said = [radius(attack, end) if end is not None else "beyond" for end in ends]
        between = f" <small>[{said[0]}, {said[1]}]</small>"
    return f'<td class="number">{radius(attack, row["value"])}{between}</td>'
