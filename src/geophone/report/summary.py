"""The table in the form that charts and sentences need: means over the networks of a series, with intervals."""

import re
from typing import Any

import polars as pl
from scipy.stats import t

from geophone.report.words import PROFILE, condition_label, level_label, measure

WHERE = ["family", "perturbation", "level", "layer", "depth", "metric"]

# The full table lies beside the page; the page itself carries at most so many rows, or it would not open quickly.
MOST_ROWS = 60_000
REDUNDANT = ("pca_dim_", "difference_dim_")
SECONDARY = ("_90", "_99", "_floor", "margin", "loss", "participation_ratio", "dead_fraction")


def with_series(table: pl.DataFrame) -> pl.DataFrame:
    """Add `series`: what one line of a chart stands for, the recipe and whatever else differs in the table."""
    varied = [name for name in ("model", "dataset") if table[name].n_unique() > 1]
    if table["recipe"].null_count() == len(table) and not varied:
        model = table["model"].drop_nulls()
        return table.with_columns(series=pl.lit(model[0] if len(model) else "network"))
    name = pl.concat_str("recipe", *varied, separator=" · ", ignore_nulls=True)
    return table.with_columns(series=pl.when(name == "").then(pl.lit("network")).otherwise(name))


def summarise(table: pl.DataFrame) -> pl.DataFrame:
    """Mean over the networks of each series, for every condition, layer and metric.

    The 95 % interval is Student's t over two or more networks (seeds), cut at the bounds of the metric. It is
    never narrower than the mean of the rows' own intervals (for an accuracy Wilson's), so that two seeds that agree by
    chance do not look certain. With one network it is that row's own interval.

    Returns:
        Columns series, family, perturbation, level, layer, depth, metric, value, low, high, networks, label,
        level_label.
    """
    rows = table.filter(
        pl.col("unit").is_null() & ~pl.col("metric").str.starts_with("check.") & pl.col("value").is_not_null()
    )
    grouped = rows.group_by("series", *WHERE, maintain_order=True).agg(
        pl.col("value").mean(),
        own_low=pl.col("low").mean(),
        own_high=pl.col("high").mean(),
        networks=pl.len(),
        error=pl.col("value").std(ddof=1) / pl.len().sqrt(),
    )
    quantile = {n: float(t.ppf(0.975, n - 1)) if n > 1 else None for n in grouped["networks"].unique()}
    bounds = {name: measure(name).bounds or (None, None) for name in grouped["metric"].unique()}
    grouped = grouped.with_columns(
        pl.Series("quantile", [quantile[n] for n in grouped["networks"]], pl.Float64),
        pl.Series("floor", [bounds[name][0] for name in grouped["metric"]], pl.Float64),
        pl.Series("ceiling", [bounds[name][1] for name in grouped["metric"]], pl.Float64),
    )
    half = pl.col("error") * pl.col("quantile")
    grouped = grouped.with_columns(
        low=pl.min_horizontal(pl.col("value") - half, "own_low"),
        high=pl.max_horizontal(pl.col("value") + half, "own_high"),
    )
    grouped = grouped.with_columns(
        low=pl.when(pl.col("low") < pl.col("floor")).then("floor").otherwise("low"),
        high=pl.when(pl.col("high") > pl.col("ceiling")).then("ceiling").otherwise("high"),
    )
    where = ["family", "perturbation", "level"]
    labels = [
        {
            "family": f,
            "perturbation": p,
            "level": v,
            "label": condition_label(f, p, v),
            "level_label": level_label(f, v),
        }
        for f, p, v in grouped.select(where).unique().iter_rows()
    ]
    schema: dict[str, Any] = {
        **{name: grouped.schema[name] for name in where},
        "label": pl.String,
        "level_label": pl.String,
    }
    return grouped.drop("error", "own_low", "own_high", "quantile", "floor", "ceiling").join(
        pl.DataFrame(labels, schema=schema), on=where, how="left", maintain_order="left"
    )


def series_order(table: pl.DataFrame) -> list[str]:
    """The series: `Standard` first, then by name, with numbers in a name by their size (alpha=-2 before alpha=-1)."""
    return sorted(table["series"].unique().to_list(), key=_place)


def _place(name: str) -> tuple[bool, str, list[float]]:
    numbers = r"-?\d+\.?\d*(?:e-?\d+)?"
    return not name.startswith("Standard"), re.sub(numbers, "", name), [float(n) for n in re.findall(numbers, name)]


def profile_metrics(summary: pl.DataFrame) -> list[str]:
    """The layer metrics that can be drawn over depth, the well-known ones first."""
    found = summary.filter(pl.col("layer").is_not_null())["metric"].unique(maintain_order=True).to_list()
    found = [name for name in found if not name.startswith(REDUNDANT)]
    return sorted(found, key=lambda name: PROFILE.index(name) if name in PROFILE else len(PROFILE))


def thinned(summary: pl.DataFrame, most: int = MOST_ROWS) -> tuple[pl.DataFrame, list[str]]:
    """The rows that the page carries, and sentences on what was left out to keep it light."""
    kept = summary.filter(~pl.col("metric").str.contains("|".join(f"^{name}" for name in REDUNDANT)))
    omitted = []
    whole = pl.col("layer").is_null()
    strongest = pl.col("level") == pl.col("level").max().over("perturbation")
    steps = [
        ("layer rows at all but the highest level of each perturbation", whole | strongest),
        (
            "secondary layer measures",
            whole | ~_ends(*SECONDARY),
        ),
        ("layer rows on perturbed images", whole | (pl.col("family") == "clean")),
    ]
    for what, keep in steps:
        if len(kept) > most:
            kept = kept.filter(keep)
            omitted.append(f"Left out of this page to keep it light: {what}.")
    return kept, omitted


def _ends(*endings: str) -> pl.Expr:
    return pl.any_horizontal(pl.col("metric").str.ends_with(ending) for ending in endings)
