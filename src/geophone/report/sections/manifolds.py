"""Figures of manifolds: their geometry over depth, a line for each recipe, and how far clean and shaken overlap."""

from collections.abc import Iterator

import polars as pl

from geophone.report.figures import charts
from geophone.report.figures.panels import Panel, bands_in_short
from geophone.report.figures.sweep import pictures, sweep_of
from geophone.report.findings import FAMILIES, Findings
from geophone.report.summary import series_order
from geophone.report.words import measure

CLASS = ("manifold_capacity", "manifold_radius", "manifold_dimension", "center_correlation")
EXEMPLAR = ("exemplar_capacity", "exemplar_radius", "exemplar_dimension", "exemplar_center_correlation")
WIDTH = "exemplar_width"
OVERLAP = "clean_separability"
FLOORS = {"manifold_capacity": "manifold_capacity_floor", "exemplar_capacity": "exemplar_capacity_floor"}


def manifold_figures(found: Findings) -> dict[str, charts.Spec]:
    """The figures that the table has rows for, by their file's name."""
    summary, series = _lines_of(found)
    made = {
        "manifolds_class": ("Manifolds of classes", 4, list(_grid(found, summary, series, CLASS))),
        "manifolds_exemplar": ("Exemplar manifolds", 5, list(_grid(found, summary, series, (*EXEMPLAR, WIDTH)))),
        "manifolds_overlap": ("Telling clean and shaken copies apart", 3, list(_overlap(found, summary, series))),
    }
    return {
        name: charts.with_legend(
            charts.figure_panels(title, f"{bands_in_short(found)}; dashed: the floor", columns, panels), series, 3
        )
        for name, (title, columns, panels) in made.items()
        if panels
    }


def manifold_section(found: Findings) -> str:
    """The figures under one heading, as pictures; empty where there are none."""
    figures = manifold_figures(found)
    if not figures:
        return ""
    return (
        '<section id="manifolds"><h2>Manifolds</h2>\n'
        '<p class="caption">A class manifold is the responses to the images of a class, an exemplar manifold those to '
        "copies of one image, each shaken by itself. What is near the floor, 2 over the number of points, says nothing "
        "of the network. Of recipes that differ in a number, the middle one is shown. The same figures lie in the "
        f"folder figures/.</p>\n{pictures(figures)}</section>"
    )


def _lines_of(found: Findings) -> tuple[pl.DataFrame, list[str]]:
    """The summary's rows of the series that are drawn, and these: of one model, and one of each sweep."""
    rows = found.table.filter(pl.col("metric").is_in([*CLASS, *EXEMPLAR, OVERLAP]))
    if rows.is_empty():
        return found.summary.clear(), []
    many = rows.group_by("model", "dataset", maintain_order=True).agg(pl.col("series").n_unique())
    model, dataset = many.sort("series", descending=True, maintain_order=True).row(0)[:2]
    rows = rows.filter(pl.col("model").eq_missing(model) & pl.col("dataset").eq_missing(dataset))
    if (sweep := sweep_of(found.table)) is not None:
        inner = [value for value in sweep.values if value != 0]
        others = sweep.rows.filter(~pl.col("swept").is_in([0.0, inner[(len(inner) - 1) // 2]]))["series"].unique()
        rows = rows.filter(~pl.col("series").is_in(others.implode()))
    series = series_order(rows)
    return found.summary.filter(pl.col("series").is_in(series)), series


def _grid(found: Findings, summary: pl.DataFrame, series: list[str], metrics: tuple[str, ...]) -> Iterator[Panel]:
    """A row of panels for each condition, a column for each measure."""
    rows = summary.filter(pl.col("metric").is_in(metrics) & pl.col("layer").is_not_null())
    for label in _ends(rows):
        for metric in metrics:
            part = rows.filter((pl.col("metric") == metric) & (pl.col("label") == label))
            if not part.is_empty():
                yield _panel(found, summary, part, series, metric, label)


def _overlap(found: Findings, summary: pl.DataFrame, series: list[str]) -> Iterator[Panel]:
    rows = summary.filter(pl.col("metric") == OVERLAP)
    for label in rows["label"].unique(maintain_order=True).to_list():
        yield _panel(found, summary, rows.filter(pl.col("label") == label), series, OVERLAP, label)


def _ends(rows: pl.DataFrame) -> list[str]:
    """Clean images, and each family of perturbations at its highest level."""
    strongest = rows.filter(pl.col("level") == pl.col("level").max().over("family"))
    labels = strongest.select("family", "label").unique(maintain_order=True).rows()
    return [label for _, label in sorted(labels, key=lambda one: FAMILIES.index(one[0]) if one[0] in FAMILIES else 9)]


def _panel(
    found: Findings, summary: pl.DataFrame, part: pl.DataFrame, series: list[str], metric: str, label: str
) -> Panel:
    """One measure under one condition over depth, a line for each series."""
    part = part.sort("series", "depth")
    names = part.select("depth", "layer").unique().sort("depth", "layer").rows()
    spec = charts.profile(found.kind, series, names, "", 250) | {"height": 180}
    spec["title"] = charts.heading(measure(metric).title, label, 12)
    for layer in spec["layer"]:
        layer["encoding"]["x"]["title"] = None
        layer["encoding"]["x"]["axis"] |= {"labelAngle": -45, "labelOverlap": False}
        if metric == OVERLAP:
            layer["encoding"]["y"]["scale"] = {"domain": [0.4, 1], "clamp": True}
    floors = summary.filter((pl.col("metric") == FLOORS.get(metric, "")) & (pl.col("label") == label))
    if not floors.is_empty():
        rule = {"type": "rule", "strokeDash": [4, 3], "color": "#777"}
        spec["layer"].append({"mark": rule, "encoding": {"y": {"datum": floors["value"][0]}}})
    return spec, charts.rows_of(part)
