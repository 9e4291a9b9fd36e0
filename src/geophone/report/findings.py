"""What the page and the figures are made from, worked out of the table once."""

from dataclasses import dataclass

import polars as pl

from geophone.analysis.relate import networks, relate
from geophone.analysis.scores import scores, source_of, without_source
from geophone.core.table import EOT
from geophone.report.summary import (
    series_order,
    summarise,
    summarise_radii,
    summarise_sides,
    with_series,
)

FAMILIES = ("clean", "noise", "corruption", "attack")


@dataclass(frozen=True)
class Findings:
    """A table, summarised and related.

    Attributes:
        table: The rows, with the series of each, but for those of layers beside layers.
        maps: These, and what goes with them.
        source: What all corruptions are made with, as the table has it; None if there are several, or none is named.
            Names of perturbations do not repeat it.
        summary: From `summarise`.
        sides: From `summarise_sides`.
        scores: From `scores`, with the series of each network.
        radii: From `summarise_radii`.
        averaged: Of networks with noise, over how many draws of it each attack averaged its gradients.
        series: The series, with the one first that the others are compared with.
        peers: The series of the same model and data set as the first, or all where it has none beside it.
        kind: What a series is: "Recipe", or "Network" where none has a recipe.
        wide: From `networks`.
        relations: From `relate`.
    """

    table: pl.DataFrame
    maps: pl.DataFrame
    source: str | None
    summary: pl.DataFrame
    sides: pl.DataFrame
    scores: pl.DataFrame
    radii: pl.DataFrame
    averaged: dict[str, int]
    series: list[str]
    peers: list[str]
    kind: str
    wide: pl.DataFrame
    relations: pl.DataFrame


def findings(table: pl.DataFrame) -> Findings:
    """Summarise and relate a table. Rows of the course of training belong to no condition and are left out."""
    table = table.filter(pl.col("family").is_not_null() | pl.col("metric").str.starts_with("check."))
    table = with_series(table.with_columns(pl.col("job").fill_null("network")))
    who = table.select("job", "series").unique(subset="job", keep="first")
    scored = scores(table).join(who, on="job", how="left", maintain_order="left")
    beside = pl.col("family").fill_null("") == "similarity"
    maps, table = table.filter(beside), table.filter(~beside)
    averaged, table = averaged_of(table), table.filter(pl.col("metric") != EOT)
    table, source = shortened(table)
    wide = networks(table).join(who, on="job", how="left", maintain_order="left")
    series = series_order(table)
    summary = summarise(table)
    first = [
        pl.col("series").replace_strict(series, range(len(series)), return_dtype=pl.Int64),
        pl.col("family").replace_strict(FAMILIES, range(len(FAMILIES)), return_dtype=pl.Int64, default=len(FAMILIES)),
    ]
    summary = summary.sort(*first, "perturbation", "level", "depth", nulls_last=False, maintain_order=True)
    kind = "Recipe" if table["recipe"].count() else "Network"
    sides, radii = summarise_sides(table), summarise_radii(table)
    peers = peers_of(table, series)
    made = (summary, sides, scored, radii, averaged, series, peers, kind, wide, relate(table))
    return Findings(table, maps, source, *made)


def peers_of(table: pl.DataFrame, series: list[str]) -> list[str]:
    """The series that the first can be compared with as recipes of one model on one data set; all if there is none."""
    who = table.select("series", "model", "dataset").unique(maintain_order=True)
    first = who.row(by_predicate=pl.col("series") == series[0], named=True)
    like = [pl.col(name).eq_missing(pl.lit(first[name], pl.String)) for name in ("model", "dataset")]
    beside = set(who.filter(*like)["series"])
    return [name for name in series if name in beside] if len(beside) > 1 else series


def averaged_of(table: pl.DataFrame) -> dict[str, int]:
    """The least number of draws behind the gradients of each attack that the table has an accuracy of.

    Exemplar manifolds under an attack have none, and may be made with another number of draws.
    """
    where = ["job", "perturbation"]
    judged = table.filter(pl.col("metric").is_in(["accuracy", "robust_accuracy"])).select(where).unique()
    rows = table.filter(pl.col("metric") == EOT).join(judged, on=where, how="semi")
    least = rows.group_by("perturbation", maintain_order=True).agg(pl.col("value").min())
    return {name: int(value) for name, value in least.select("perturbation", "value").iter_rows()}


def shortened(table: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """The table with `fog(preset='cifar10')` as `fog`, if all its corruptions have one source; and that source."""
    names = table.filter(pl.col("family") == "corruption")["perturbation"].unique(maintain_order=True).to_list()
    sources = {source for name in names if (source := source_of(name)) is not None}
    short = {name: without_source(name) for name in names}
    if len(sources) != 1 or len(set(short.values())) < len(short):
        return table, None
    renamed = pl.when(pl.col("family") == "corruption").then(pl.col("perturbation").replace(short))
    return table.with_columns(perturbation=renamed.otherwise("perturbation")), sources.pop()
