"""One number per network, read from the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import polars as pl

from geophone.core.errors import GeophoneError

CELL = ["perturbation", "level", "layer"]
NETWORK = ["job", "recipe", "seed"]


FAR = 0.15
"""How far from half of the accuracy a level may be that is taken for it."""


class NoRows(GeophoneError):
    """The table has nothing of what a measure or test is about."""


@dataclass(frozen=True)
class AtHalf:
    """The level at which a reference keeps about half of its clean accuracy: a rule that is fixed before the data are.

    Of the levels above 0 at which the measure has rows under a perturbation, it is the one at which the reference's
    accuracy, mean over seeds, comes closest to half of its clean accuracy; of two equally close, the lower. Where that
    is less than 35 % or more than 65 %, no level is near half, and there is no value. Accuracy is `accuracy`, but
    `robust_accuracy` for a measure of that.

    Attributes:
        reference: A recipe's name.
    """

    reference: str = "Standard"

    def __str__(self) -> str:
        return f"at the level where {self.reference} keeps about half its accuracy"


@dataclass(frozen=True)
class Measure:
    """One number for each network: a mean over layers, then over levels, then over perturbations, all unweighted.

    Attributes:
        metric: Name in the table.
        family: One family of perturbations or several: clean, noise, corruption, attack, or another of the table.
        perturbation: A name in the table or a shell pattern; None for all of the family.
        level: One level, `AtHalf`, or None for all.
        layers: Share of depth [from, to): of L layers in the order of depth, layer i from 0 counts where
            from <= i/L < to. None for the rows of the whole network.
        relative: Whether to divide by the network's accuracy on clean images.

    Raises:
        GeophoneError: layers that are no share of depth.

    >>> Measure("accuracy", family="attack", perturbation="LinfPGD*", level=AtHalf(), relative=True)
    """

    metric: str
    family: str | tuple[str, ...] = "clean"
    perturbation: str | None = None
    level: float | AtHalf | None = None
    layers: tuple[float, float] | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1] <= 1:
            raise GeophoneError(f"layers={self.layers} is no share of depth. Give (from, to), 0 <= from < to <= 1.")

    @property
    def families(self) -> tuple[str, ...]:
        """The families as a tuple."""
        return as_tuple(self.family)

    def __str__(self) -> str:
        parts = [self.metric.replace("_", " ")]
        if self.layers is not None:
            parts.append(f"in {_depth(*self.layers)}")
        parts.append(
            self.perturbation
            if self.perturbation and self.families == ("similarity",)
            else f"under {self.perturbation}"
            if self.perturbation
            else " and ".join(_family(name) for name in self.families)
        )
        if self.level is not None:
            parts.append(str(self.level) if isinstance(self.level, AtHalf) else f"at {self.level:.3g}")
        return " ".join(parts) + (", divided by clean accuracy" if self.relative else "")


def measured(table: pl.DataFrame, measure: Measure, recipes: Sequence[str] | None = None) -> pl.DataFrame:
    """The measure of each network.

    A network that lacks a row that another has, or has an undefined value among its rows, gets null: means over
    different layers or levels can't be compared.

    Args:
        table: The long table, of one data set and model.
        measure: What to read.
        recipes: Networks of these recipes only; None for all.

    Returns:
        Columns job, recipe, seed, value, ordered by recipe, seed and job.

    Raises:
        NoRows: no network has any of the rows.
    """
    return by_perturbation(table, measure, recipes).group_by(NETWORK, maintain_order=True).agg(_mean())


def by_perturbation(table: pl.DataFrame, measure: Measure, recipes: Sequence[str] | None = None) -> pl.DataFrame:
    """As `measured`, with a row for each network and perturbation."""
    rows = _rows(table, measure, recipes)
    mine = table if recipes is None else table.filter(pl.col("recipe").is_in(list(recipes)))
    if not (rows := rows.filter(pl.col("job").is_in(mine["job"].unique().implode()))).height:
        raise NoRows(f"no rows for {measure}")
    jobs = mine.select(NETWORK).unique().sort("recipe", "seed", "job")
    grid = jobs.join(rows.select(CELL).unique(maintain_order=True), how="cross")
    cells = grid.join(rows.select("job", *CELL, "value"), on=["job", *CELL], how="left", maintain_order="left")
    for keys in (CELL, CELL[:2], CELL[:1]):
        cells = cells.group_by(*NETWORK, *keys, maintain_order=True).agg(_mean())
    if measure.relative:
        clean = _accuracy(table, "accuracy").filter(pl.col("family") == "clean")
        clean = clean.group_by("job").agg(clean=pl.col("value").mean())
        value = pl.col("value") / pl.when(pl.col("clean") > 0).then("clean")
        cells = cells.join(clean, on="job", how="left", maintain_order="left").with_columns(value=value).drop("clean")
    return cells


def half_levels(table: pl.DataFrame, measure: Measure) -> dict[str, tuple[float, float]]:
    """For each perturbation of a measure at `AtHalf`, the level and the share of clean accuracy kept there.

    Raises:
        NoRows: the reference has no accuracy on clean images, or none at any level of a perturbation.
    """
    assert isinstance(measure.level, AtHalf)
    rows, name = _everywhere(table, measure), measure.level.reference
    accuracy = _accuracy(table, "accuracy").filter(pl.col("recipe") == name)
    clean = accuracy.filter(pl.col("family") == "clean")["value"].to_list()
    if not clean or not sum(clean) > 0:
        raise NoRows(f"no rows for the accuracy of {name} on clean images, or it is 0")
    if measure.metric == "robust_accuracy":
        accuracy = _accuracy(table, measure.metric).filter(pl.col("recipe") == name)
    kept = accuracy.group_by("perturbation", "level").agg(share=pl.col("value").mean() * len(clean) / sum(clean))
    found = {}
    for perturbation in rows["perturbation"].unique(maintain_order=True):
        levels = rows.filter((pl.col("perturbation") == perturbation) & (pl.col("level") > 0))["level"].unique()
        here = kept.filter((pl.col("perturbation") == perturbation) & pl.col("level").is_in(levels.implode()))
        if here.is_empty():
            raise NoRows(f"no rows for the accuracy of {name} under {perturbation}")
        level, share = here.sort((pl.col("share") - 0.5).abs(), "level").select("level", "share").row(0)
        if abs(share - 0.5) > FAR:
            raise NoRows(
                f"no rows near half: of the levels of {perturbation}, {name} keeps {share:.0%} of its accuracy at the "
                f"nearest, {level:.3g}"
            )
        found[perturbation] = level, share
    return found


def matching(patterns: Sequence[str], table: pl.DataFrame) -> list[str]:
    """The recipes of a table that have one of these names or match one of these shell patterns, in that order.

    Raises:
        NoRows: there is none for one of them.
    """
    names = table["recipe"].drop_nulls().unique().sort().to_list()
    found: dict[str, None] = {}
    for pattern in patterns:
        here = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not here:
            raise NoRows(f"no rows for the recipe {pattern}")
        found |= dict.fromkeys(here)
    return list(found)


def listed(names: str | tuple[str, ...]) -> str:
    """Names in a sentence: all of them up to three, else how many and between which."""
    every = as_tuple(names)
    return " and ".join(every) if len(every) <= 3 else f"{len(every)} recipes from {every[0]} to {every[-1]}"


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name as a tuple of one."""
    return (names,) if isinstance(names, str) else names


def _rows(table: pl.DataFrame, measure: Measure, recipes: Sequence[str] | None) -> pl.DataFrame:
    """The rows of a measure at its level. A level or layer that is null is -1 or "", so that joins find it."""
    rows = _everywhere(table, measure)
    if isinstance(measure.level, AtHalf):
        levels = {name: level for name, (level, _) in half_levels(table, measure).items()}
        rows = rows.filter(pl.col("level") == pl.col("perturbation").replace_strict(levels, return_dtype=pl.Float64))
    elif measure.level is not None:
        rows = rows.filter((pl.col("level") - measure.level).abs() <= 1e-6 * abs(measure.level))
    return rows.with_columns(pl.col("level").fill_null(-1.0), pl.col("layer").fill_null(""))


def _everywhere(table: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """The rows of a measure at every level."""
    rows = _plain(table, measure.metric).filter(pl.col("family").is_in(measure.families))
    if measure.layers is None:
        rows = rows.filter(pl.col("layer").is_null())
    else:
        rows = rows.filter(pl.col("layer").is_in(_layers(rows, *measure.layers)))
    if (pattern := measure.perturbation) is not None:
        names = rows["perturbation"].unique(maintain_order=True).to_list()
        chosen = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        rows = rows.filter(pl.col("perturbation").is_in(chosen))
    if rows.is_empty():
        raise NoRows(f"no rows for {measure}")
    return rows


def _plain(table: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The rows of a metric, without single units and without checks."""
    return table.filter(
        pl.col("unit").is_null() & (pl.col("metric") == metric) & ~pl.col("metric").str.starts_with("check.")
    )


def _accuracy(table: pl.DataFrame, metric: str) -> pl.DataFrame:
    return _plain(table, metric).filter(pl.col("layer").is_null() & pl.col("value").is_not_null())


def _layers(rows: pl.DataFrame, start: float, stop: float) -> list[str]:
    """The layers within a share of depth, of all that the rows have."""
    order = rows.filter(pl.col("layer").is_not_null()).group_by("layer").agg(pl.col("depth").min())
    names = order.sort("depth", "layer")["layer"].to_list()
    return [name for i, name in enumerate(names) if start <= i / len(names) < stop]


def _mean() -> pl.Expr:
    """The mean, or null where one of the values is."""
    value = pl.col("value")
    return pl.when(value.null_count() == 0).then(value.mean()).alias("value")


def _family(name: str) -> str:
    if name == "clean":
        return "on clean images"
    return f"under {name}" if name in ("noise", "corruption", "attack") else f"under {name} perturbations"


def _depth(start: float, stop: float) -> str:
    halves = {(0, 1): "all layers", (0, 0.5): "the first half of the layers", (0.5, 1): "the second half of the layers"}
    return halves.get((start, stop)) or f"the layers from {100 * start:g} % to {100 * stop:g} % of depth"
