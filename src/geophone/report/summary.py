"""The table in the form that charts and sentences need: means over the networks of a series, with intervals."""

import re

import polars as pl

from geophone.analysis.relate import NATURAL
from geophone.report.words import PROFILE, condition_label, level_label, measure

WHERE = ["family", "perturbation", "level", "layer", "depth", "metric"]

RADII = ("half_accuracy_eps", "median_minimum_norm")

# From so many networks on, the spread of a series is estimated from itself alone.
OWN_SPREAD = 5

# The full table lies beside the page; the page itself carries at most so many rows, or it would not open quickly.
MOST_ROWS = 60_000
REDUNDANT = ("pca_dim_", "difference_dim_")
MOVED = ("normalised_distance", "cka")
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
    """Mean over the networks of each series with its interval, for every condition, layer and metric.

    Returns:
        Columns series, family, perturbation, level, layer, depth, metric, value, low, high, networks, label,
        level_label. `level` is null for what belongs to a perturbation at no one level. For the interval see
        `over_networks`.
    """
    beyond = pl.col("metric").is_in(RADII) & pl.col("value").is_null().any().over("series", *WHERE)
    rows = table.filter(
        pl.col("unit").is_null()
        & ~pl.col("metric").str.starts_with("check.")
        & pl.col("value").is_not_null()
        & ~beyond  # a mean over the rest would be too small: see `summarise_radii`
    )
    grouped = over_networks(rows, WHERE)
    conditions = list(grouped.select("family", "perturbation", "level").iter_rows())
    labels, levels = (
        {condition: words(*condition) for condition in set(conditions)} for words in (condition_label, level_label)
    )
    return grouped.with_columns(
        pl.Series("label", [labels[condition] for condition in conditions], pl.String),
        pl.Series("level_label", [levels[condition] for condition in conditions], pl.String),
    )


def summarise_sides(table: pl.DataFrame) -> pl.DataFrame:
    """Accuracy left on each side, natural (noise and corruption) and attack, and under each of its perturbations.

    A network's accuracy under a perturbation is its mean over levels; on a side, the unweighted mean of that over
    perturbations, as in `relate.networks`. The rows' own intervals are averaged likewise. As all conditions share
    their images, that is the interval of the mean if the conditions err together, and too wide if they do not.

    Returns:
        Columns series, side, perturbation (null: the whole side), metric, value, low, high, networks. For the interval
        see `over_networks`.
    """
    side = pl.when(pl.col("family").is_in(NATURAL)).then(pl.lit("natural")).otherwise(pl.col("family"))
    rows = table.with_columns(side=side).filter(
        pl.col("layer").is_null()
        & (pl.col("metric") == "accuracy")
        & pl.col("side").is_in(["natural", "attack"])
        & pl.col("value").is_not_null()
    )
    network = ["series", "model", "dataset", "job", "side", "metric"]
    means = [pl.col(name).mean() for name in ("value", "low", "high")]
    types = rows.group_by(*network, "perturbation", maintain_order=True).agg(means)
    whole = types.group_by(network, maintain_order=True).agg(pl.lit(None, pl.String).alias("perturbation"), *means)
    return over_networks(pl.concat([whole, types]), ["side", "perturbation", "metric"])


def summarise_scores(scores: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """Mean over the networks of each series of their scores under corruption, with its interval.

    Args:
        scores: From `scores`.
        series: The columns job and series.

    Returns:
        Columns series, source, corruption, severity, metric, value, low, high, networks. See `over_networks`.
    """
    rows = scores.filter(pl.col("value").is_not_null()).join(series, on="job", how="left", maintain_order="left")
    return over_networks(rows, ["source", "corruption", "severity", "metric"])


def summarise_radii(table: pl.DataFrame) -> pl.DataFrame:
    """How far attacks must go: `half_accuracy_eps` and `median_minimum_norm`, means over the networks of each series.

    A network that has no such radius among those tried has it beyond them. A mean without it would be too small, so
    there is none: `missing` counts these networks, and `value` is null where there are any. Likewise the interval has
    no upper end where that of a network has none.

    Returns:
        Columns series, perturbation, metric, value, low, high, networks, missing, beyond (the largest radius tried).
    """
    rows = table.filter(pl.col("metric").is_in(RADII))
    where = ["series", "perturbation", "metric"]
    known = over_networks(rows.filter(pl.col("value").is_not_null()), where[1:])
    counts = rows.group_by(where, maintain_order=True).agg(
        networks=pl.len(),
        missing=pl.col("value").null_count(),
        endless=(pl.col("high").is_null() & pl.col("low").is_not_null()).any(),
    )
    tried = table.filter(pl.col("metric") == "robust_accuracy")
    beyond = tried.group_by("perturbation").agg(beyond=pl.col("level").max())
    both = counts.join(known.drop("networks"), on=where, how="left", maintain_order="left")
    both = both.join(beyond, on="perturbation", how="left", maintain_order="left")
    every = pl.col("missing") == 0
    return both.select(
        *where,
        pl.when(every).then("value").alias("value"),
        pl.when(every).then("low").alias("low"),
        pl.when(every & ~pl.col("endless")).then("high").alias("high"),
        "networks",
        "missing",
        "beyond",
    ).sort("perturbation", maintain_order=True)


def over_networks(rows: pl.DataFrame, where: list[str]) -> pl.DataFrame:
    """Mean over the networks (seeds) of each series, with its 95 % interval.

    The interval is Student's t, mean ± t_df · s/√n for the n networks of a series. From `OWN_SPREAD` networks on, s is
    the series' own standard deviation and df = n − 1. With fewer, s is pooled over all the series of the same data set,
    model and `where`, as in a one-way analysis of variance: s² = Σ(n_i − 1)s_i² / Σ(n_i − 1), df = Σ(n_i − 1). That
    assumes an equal spread in all series, and then keeps 95 % coverage; two networks alone have t_1 = 12.7.

    The interval is never narrower than the mean of the rows' own intervals (for an accuracy Wilson's), so that seeds
    that agree by chance do not look certain, and it is cut at the bounds of the metric. Where no series has two
    networks it is the rows' own interval.

    Args:
        rows: One row per network and `where`, with series, model, dataset, metric, value, low and high.
        where: The columns that tell apart what is not averaged, `metric` among them.

    Returns:
        Columns series, `where`, value, low, high, networks.
    """
    from scipy.stats import t

    grouped = rows.group_by("series", *where, maintain_order=True).agg(
        pl.col("value").mean(),
        own_low=pl.col("low").mean(),
        own_high=pl.col("high").mean(),
        networks=pl.len(),
        variance=pl.col("value").var(ddof=1).fill_null(0),
        model=pl.col("model").first(),
        dataset=pl.col("dataset").first(),
    )
    own_df = pl.col("networks").cast(pl.Int64) - 1
    squares = own_df * pl.col("variance")
    alike = [*where, "model", "dataset"]
    grouped = grouped.with_columns(
        df=pl.when(pl.col("networks") < OWN_SPREAD).then(own_df.sum().over(alike)).otherwise(own_df),
        squares=pl.when(pl.col("networks") < OWN_SPREAD).then(squares.sum().over(alike)).otherwise(squares),
    )
    quantile = {df: float(t.ppf(0.975, df)) if df else None for df in grouped["df"].unique()}
    bounds = {name: measure(name).bounds or (None, None) for name in grouped["metric"].unique()}
    grouped = grouped.with_columns(
        pl.Series("quantile", [quantile[df] for df in grouped["df"]], pl.Float64),
        pl.Series("floor", [bounds[name][0] for name in grouped["metric"]], pl.Float64),
        pl.Series("ceiling", [bounds[name][1] for name in grouped["metric"]], pl.Float64),
    )
    half = pl.col("quantile") * (pl.col("squares") / pl.col("df") / pl.col("networks")).sqrt()
    grouped = grouped.with_columns(
        low=pl.min_horizontal(pl.col("value") - half, "own_low"),
        high=pl.max_horizontal(pl.col("value") + half, "own_high"),
    )
    grouped = grouped.with_columns(
        low=pl.when(pl.col("low") < pl.col("floor")).then("floor").otherwise("low"),
        high=pl.when(pl.col("high") > pl.col("ceiling")).then("ceiling").otherwise("high"),
    )
    return grouped.select("series", *where, "value", "low", "high", "networks")


def over_seeds(rows: pl.DataFrame, where: list[str]) -> pl.DataFrame:
    """As `over_networks`, with intervals of the spread over seeds alone: the rows' own do not count."""
    own = pl.lit(None, pl.Float64)
    return over_networks(rows.with_columns(low=own, high=own), where)


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
    strongest = pl.col("level") == pl.col("level").filter(~whole).max().over("perturbation")
    secondary = "secondary layer measures (90 % and 99 % dimensions, floors, participation ratio, dead units)"
    steps = [
        (secondary, whole | ~_ends(*SECONDARY)),
        ("layer rows at all but the highest level of each perturbation", whole | strongest),
        (
            "layer rows on perturbed images, but for the distance moved and CKA",
            whole | (pl.col("family") == "clean") | pl.col("metric").is_in(MOVED),
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
