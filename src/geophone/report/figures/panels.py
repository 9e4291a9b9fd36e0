"""The charts of a page or figure with their rows: what is drawn, in which order, under which title."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from geophone.analysis.scores import GROUPS, type_of
from geophone.report.figures import charts
from geophone.report.findings import Findings
from geophone.report.sections.answer import headline, relation_text
from geophone.report.summary import profile_metrics
from geophone.report.words import has_severity, in_255ths, measure

WHOLE = pl.col("layer").is_null()
Panel = tuple[charts.Spec, charts.Rows]


class Group(NamedTuple):
    """Panels under one heading; small ones if there may be many of them."""

    title: str
    small: bool
    panels: list[Panel]


def accuracy_groups(found: Findings, width: int | str = "container") -> list[Group]:
    """One panel per perturbation: noise, the corruptions by their kind, attacks."""
    rows = found.summary.filter(WHOLE & (pl.col("metric") == "accuracy"))
    return [
        Group(title, small, [_accuracy_panel(found, rows, family, name, small, width) for name in names])
        for title, small, family, names in _kinds(rows)
        if names
    ]


def _kinds(rows: pl.DataFrame) -> Iterator[tuple[str, bool, str, list[str]]]:
    """Heading, whether its panels are small, family, and the perturbations that belong there."""
    names = {
        family: part["perturbation"].unique(maintain_order=True).to_list()
        for (family,), part in rows.group_by("family", maintain_order=True)
    }
    yield "Noise", False, "noise", names.get("noise", [])
    corruptions = names.get("corruption", [])
    for kind, types in GROUPS.items():
        mine = [name for name in corruptions if type_of(name) in types]
        yield f"Corruptions: {kind}", True, "corruption", sorted(mine, key=lambda name: types.index(type_of(name)))
    others = [name for name in corruptions if not has_severity("corruption", name)]
    title = "Corruptions" if len(others) == len(corruptions) else "Other corruptions"
    yield title, False, "corruption", others
    yield "Attacks", False, "attack", names.get("attack", [])


def _accuracy_panel(
    found: Findings, rows: pl.DataFrame, family: str, name: str, small: bool, width: int | str
) -> Panel:
    part = rows.filter((pl.col("family") == "clean") | (pl.col("perturbation") == name)).sort("series", "level")
    levels = part["level"].unique().sort().to_list()
    title, under = name, ""
    unit = charts.LEVEL
    if has_severity(family, name):
        title, _, under = name.removesuffix(")").partition("(")
        unit = charts.SEVERITY
    elif family == "attack" and in_255ths(name) and max(levels) < 0.2:
        unit = charts.IN_255THS
    if small and isinstance(width, int):
        width = round(0.6 * width)
    spec = charts.accuracy_panel(found.kind, found.series, levels, (title, under), unit, small, width)
    return spec, charts.rows_of(part)


def robust_panels(found: Findings, width: int | str = "container") -> list[Panel]:
    """Robust accuracy over eps, one panel per attack."""
    rows = found.summary.filter((pl.col("metric") == "robust_accuracy") & (pl.col("level") > 0))
    panels = []
    for name in rows["perturbation"].unique(maintain_order=True):
        part = rows.filter(pl.col("perturbation") == name).sort("series", "level")
        eps = part["level"].unique().sort().to_list()
        spec = charts.robust_panel(found.kind, found.series, eps, name, in_255ths(name), width)
        panels.append((spec, charts.rows_of(part)))
    return panels


def default_profile(summary: pl.DataFrame) -> tuple[str, str]:
    """The measure and the condition that the layer chart starts with: distance under what hurts most."""
    layers = summary.filter(pl.col("layer").is_not_null())
    metric = profile_metrics(summary)[0]
    labels = layers.filter(pl.col("metric") == metric)["label"].unique()
    hurt = summary.filter(WHOLE & (pl.col("metric") == "accuracy") & pl.col("label").is_in(labels.implode()))
    ranked = hurt.group_by("label").agg(pl.col("value").mean()).sort("value", "label")["label"].to_list()
    return metric, ranked[0] if ranked else labels.sort()[0]


def profile_chart(found: Findings, summary: pl.DataFrame, width: int | str = "container") -> Panel:
    """The layer chart as it starts, from the whole summary or what a page carries of it."""
    metric, label = default_profile(summary)
    layers = summary.filter(pl.col("layer").is_not_null())
    part = layers.filter((pl.col("metric") == metric) & (pl.col("label") == label)).sort("series", "depth")
    names = layers.select("depth", "layer").drop_nulls().unique().sort("depth", "layer").rows()
    heading = f"{measure(metric).title}: {label}"
    return charts.profile(found.kind, found.series, names, heading, width), charts.rows_of(part)


def relation_chart(found: Findings, width: int | str = "container") -> Panel:
    """The scatter as it starts."""
    geometry, robustness = headline(found.relations)
    points = found.wide.drop_nulls([geometry, robustness])
    rows = points.select("series", "seed", x=geometry, y=robustness).to_dicts()
    return charts.scatter(found.kind, found.series, geometry, robustness, width), rows


def relation_title(found: Findings) -> str:
    """What a figure of the scatter is called: `Geometry and robustness, ρ = −0.89 [−1.00, −0.63]`."""
    geometry, robustness = headline(found.relations)
    pair = (pl.col("geometry") == geometry) & (pl.col("robustness") == robustness)
    row = found.relations.row(by_predicate=pair & (pl.col("statistic") == "spearman"), named=True)
    rho = "" if row["rho"] is None else f", Spearman’s ρ = {relation_text(row)}"
    return f"Geometry and robustness{rho}"


def bands_in_short(found: Findings) -> str:
    """What the lines and bands are, under the title of a figure."""
    if max(found.summary["networks"], default=1) == 1:
        return "One network a line; band: 95 % Wilson interval over the test images"
    return "Mean over seeds; band: 95 % interval of that mean"


def has_profile(found: Findings) -> bool:
    """Whether the table has anything layer by layer."""
    return bool(profile_metrics(found.summary))


def has_scatter(found: Findings) -> bool:
    """Whether there are networks enough for a scatter to show anything."""
    return len(found.wide) > 2 and not found.relations.is_empty()
