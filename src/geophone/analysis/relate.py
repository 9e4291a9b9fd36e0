"""Does inner geometry go with robustness? Rank correlations over networks, with intervals and corrected p-values.

A network is a job of the table. Nothing here opens a network: it reads rows.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from geophone.analysis.inference import Array, cluster_weights, exchanges, holm, permutation_p, rank_correlation
from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, unknown

IDENTITY = ("job", "dataset", "model", "recipe", "seed", "clean_accuracy")
ROBUSTNESS = ("natural_accuracy", "attack_accuracy", "natural_accuracy_relative", "attack_accuracy_relative")
NATURAL = ("noise", "corruption")
STATISTICS = ("spearman", "partial_spearman")
SAME_SIDE = "both measured under the same perturbations"
UNDEFINED = "rho is undefined in"

# Versions, controls and floors of measures that stand in the table under another name. Testing them as well would only
# make Holm's correction harder; they are tested when asked for.
COMPANIONS = (
    *("class_selectivity_floor", "eta_squared", "mean_response", "participation_ratio"),
    *("manifold_capacity_floor", "manifold_center_rank"),
    *(f"pca_{kind}" for kind in ("dim_90", "dim_95", "dim_99", "fraction_90", "fraction_99")),
    *(
        f"{family}_difference_{kind}"
        for family in ("natural", "attack")
        for kind in ("dim_90", "dim_95", "dim_99", "fraction_90", "fraction_99")
    ),
)

RELATION_SCHEMA: dict[str, Any] = {
    "geometry": pl.String,
    "robustness": pl.String,
    "statistic": pl.String,
    "rho": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "networks": pl.Int64,
    "seeds": pl.Int64,
    "note": pl.String,
}


def networks(table: pl.DataFrame) -> pl.DataFrame:
    """One row per network: who it is, its clean accuracy, its geometry and its robustness.

    - Geometry on clean images, under the metric's name: the mean over the layers in which it is defined. Exemplar
      manifolds are left out: of clean images, they are those of a network's own noise.
    - Geometry that compares perturbed with clean responses: `natural_<metric>` (noise and corruption) and
      `attack_<metric>`. Mean over layers and levels within a perturbation, then unweighted over perturbations.
    - `natural_accuracy`, `attack_accuracy`: mean over levels within a perturbation, then unweighted over perturbations;
      with the ending `_relative`, the same divided by clean accuracy.
    - `accuracy.<perturbation>`: mean over the levels of one perturbation.

    What a network lacks is null. Rows are ordered by data set, model, recipe, seed and job.
    """
    # Exemplar manifolds of clean images are those of a network's own noise, and defined from the noisy layer on: means
    # over layers would be over others in each network.
    rows = table.filter(pl.col("unit").is_null() & ~pl.col("metric").str.contains(r"^(check\.|exemplar_)"))
    side = pl.when(pl.col("family").is_in(NATURAL)).then(pl.lit("natural")).otherwise(pl.col("family"))
    rows = rows.with_columns(side=side).filter(pl.col("side").is_in(["clean", "natural", "attack"]))
    accuracy = rows.filter(pl.col("layer").is_null() & (pl.col("metric") == "accuracy"))
    per_type = _mean(accuracy.filter(pl.col("side") != "clean"), "job", "side", "perturbation")
    geometry = rows.filter(pl.col("layer").is_not_null())
    compared = geometry.filter((pl.col("other") == "clean") & (pl.col("side") != "clean"))
    columns = [
        _mean(accuracy.filter(pl.col("side") == "clean"), "job").with_columns(column=pl.lit("clean_accuracy")),
        _mean(geometry.filter((pl.col("side") == "clean") & pl.col("other").is_null()), "job", "metric").with_columns(
            column=pl.col("metric")
        ),
        _mean(_mean(compared, "job", "side", "perturbation", "metric"), "job", "side", "metric").with_columns(
            column=pl.col("side") + "_" + pl.col("metric")
        ),
        _mean(per_type, "job", "side").with_columns(column=pl.col("side") + "_accuracy"),
        per_type.with_columns(column="accuracy." + pl.col("perturbation")),
    ]
    long = pl.concat([c.select("job", "column", "value") for c in columns])
    wide = long.pivot(on="column", index="job", values="value", aggregate_function="mean", maintain_order=True)
    missing = [name for name in ("clean_accuracy", *ROBUSTNESS[:2]) if name not in wide.columns]
    wide = wide.with_columns(pl.lit(None, pl.Float64).alias(name) for name in missing)
    clean = pl.when(pl.col("clean_accuracy") > 0).then(pl.col("clean_accuracy"))
    wide = wide.with_columns((pl.col(name) / clean).alias(f"{name}_relative") for name in ROBUSTNESS[:2])
    who = table.select(IDENTITY[:-1]).unique(subset="job", keep="first")
    who = who.sort("dataset", "model", "recipe", "seed", "job", nulls_last=False)
    return who.join(wide, on="job", how="left", maintain_order="left").select(*IDENTITY, pl.exclude(IDENTITY))


def geometry_measures(wide: pl.DataFrame) -> list[str]:
    """The columns of `networks` that are geometry and have a value somewhere."""
    robust = set(robustness_measures(wide))
    taken = {*IDENTITY, *ROBUSTNESS}
    return [c for c in wide.columns if c not in taken | robust and wide[c].null_count() < len(wide)]


def robustness_measures(wide: pl.DataFrame) -> list[str]:
    """The columns of `networks` that are robustness and have a value somewhere: the four summaries come first."""
    names = [*ROBUSTNESS, *(c for c in wide.columns if c.startswith("accuracy."))]
    return [c for c in names if wide[c].null_count() < len(wide)]


@checked
def relate(
    table: pl.DataFrame,
    *,
    geometry: Sequence[str] | None = None,
    robustness: Sequence[str] | None = None,
    minimum: int = 8,
    resamples: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """Rank correlation of each geometric measure with each robustness measure over networks.

    `spearman` is Spearman's rho with average ranks. `partial_spearman` is the correlation of the two ranks after both
    are residualised on the rank of clean accuracy: the association that clean accuracy does not explain.

    The interval is the 95 % percentile interval of a two-stage bootstrap: seeds are drawn with replacement, then
    networks within each drawn seed. Resamples in which the statistic is undefined (a measure is constant) are left out
    and counted in the note; above 5 % of them there is no interval. Few seeds make it rough, and the note says so.

    `p` is a two-sided permutation p-value, (1 + hits)/(1 + m), m = max(resamples, 100 x tests) so that a Holm-corrected
    p of 0.01 stays in reach. Whole recipes are exchanged, with all their seeds in order: networks of one recipe are
    alike, so exchanging single networks would count them as independent evidence. With one recipe, or none, single
    networks are exchanged. For the partial correlation the residuals are permuted (Freedman and Lane).

    `p_holm` is Holm's step-down correction over all the tests of the same statistic that this call makes.

    No pair is left out, but geometry that was measured under the same perturbations as the robustness is close to a
    restatement of it: the note says so.

    Args:
        table: The long table.
        geometry: Columns of `networks`; by default every geometric measure but those in `COMPANIONS`.
        robustness: Columns of `networks`; by default natural and attack accuracy, plain and relative to clean.
        minimum: Networks below which rho is refused, at least 4. Two seeds are always needed.
        resamples: Bootstrap resamples.
        seed: Of the resampling. A pair's interval does not depend on which other pairs are asked for.

    Returns:
        One row per geometry, robustness and statistic. `networks` and `seeds` count complete cases. A refused rho is
        null and `note` says why.

    Raises:
        GeophoneError: an unknown measure, a minimum below 4, or no resamples.

    References:
        Holm 1979, doi:10.2307/4615733; Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354; Davison & Hinkley
        1997, section 3.8 (two-stage bootstrap); Winkler et al. 2015, doi:10.1016/j.neuroimage.2015.05.092 (blocks).
    """
    if minimum < 4:
        raise GeophoneError(f"minimum={minimum} networks is too few for a rank correlation. Give at least 4.")
    if resamples < 1:
        raise GeophoneError(f"resamples={resamples} makes no interval. Give at least 1; 2000 is usual.")
    wide = networks(table)
    found, outcomes = geometry_measures(wide), robustness_measures(wide)
    chosen = [g for g in found if g not in COMPANIONS] if geometry is None else list(geometry)
    against = [r for r in outcomes if r in ROBUSTNESS] if robustness is None else list(robustness)
    for name in chosen:
        if name not in found:
            raise unknown("geometric measure", name, found)
    for name in against:
        if name not in outcomes:
            raise unknown("robustness measure", name, outcomes)
    families = dict(table.select("perturbation", "family").drop_nulls().unique().iter_rows())
    pairs = list(product(chosen, against))
    permutations = max(resamples, 100 * len(pairs))
    rows = [
        row
        for g, r in pairs
        for row in _pair(wide, g, r, _same_side(g, r, families), minimum, resamples, permutations, seed)
    ]
    made = pl.DataFrame(rows, schema=RELATION_SCHEMA, orient="row")
    if made.is_empty():
        return made
    corrected = [
        made.filter(pl.col("statistic") == s).with_columns(
            p_holm=pl.Series(holm(made.filter(pl.col("statistic") == s)["p"].to_list()), dtype=pl.Float64)
        )
        for s in STATISTICS
    ]
    order = ["geometry", "robustness", "statistic"]
    return made.select(order).join(pl.concat(corrected), on=order, how="left", maintain_order="left")


def _pair(
    wide: pl.DataFrame, g: str, r: str, same: bool, minimum: int, resamples: int, permutations: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Both statistics of one pair of measures."""
    rows = wide.drop_nulls([g, r, "clean_accuracy"])
    n, seeds = len(rows), rows["seed"].drop_nulls().n_unique()
    row: dict[str, Any] = {"geometry": g, "robustness": r, "networks": n, "seeds": seeds}
    constant = [name for name in (g, r) if n and rows[name].n_unique() == 1]
    refusal = None
    if n < minimum or seeds < 2:
        refusal = f"needs at least {minimum} networks and 2 seeds, has {n} and {seeds}"
    elif rows["seed"].null_count():
        refusal = f"{rows['seed'].null_count()} of the {n} networks have no seed, so the interval can't respect seeds"
    elif constant:
        refusal = f"{constant[0]} is the same in all {n} networks"
    if refusal:
        yield from ({**row, "statistic": s, "note": refusal} for s in STATISTICS)
        return
    notes = [f"rough interval, only {seeds} seeds"] if seeds < 5 else []
    if same:
        notes.append(SAME_SIDE)
    for name, plural in (("dataset", "data sets"), ("model", "models")):
        if (many := rows[name].n_unique()) > 1:
            notes.append(f"mixes {many} {plural}")
    x, y, z = (rows[name].to_numpy() for name in (g, r, "clean_accuracy"))
    rng = np.random.default_rng([seed, crc32(f"{g}\x1f{r}".encode())])
    weights = cluster_weights(rows["seed"].to_list(), resamples, rng)
    orders = exchanges(_blocks(rows), permutations, rng)
    for statistic, held in zip(STATISTICS, (None, z), strict=True):
        yield {**row, "statistic": statistic, **_test(x, y, held, weights, orders, notes)}


def _test(
    x: Array, y: Array, held: Array | None, weights: Array, orders: NDArray[np.intp] | None, notes: list[str]
) -> dict[str, Any]:
    """One rho with its interval, p-value and note."""
    rho = float(rank_correlation(x, y, held)[0])
    if np.isnan(rho):
        return {"note": "; ".join(["clean accuracy alone fixes the ranks of one measure", *notes])}
    drawn = rank_correlation(x, y, held, weights)
    undefined = float(np.isnan(drawn).mean())
    notes = list(notes)
    low = high = p = None
    if undefined > 0:
        notes.append(f"{UNDEFINED} {undefined:.1%} of the resamples")
    if undefined <= 0.05:
        low, high = (float(q) for q in np.nanquantile(drawn, [0.025, 0.975]))
    if orders is None:
        notes.append("no p: no two recipes have equally many networks to exchange")
    else:
        p = permutation_p(x, y, held, orders)
    return {"rho": rho, "low": low, "high": high, "p": p, "note": "; ".join(notes) or None}


def _mean(rows: pl.DataFrame, *keys: str) -> pl.DataFrame:
    return rows.group_by(keys, maintain_order=True).agg(pl.col("value").mean())


def _blocks(rows: pl.DataFrame) -> list[Any]:
    """What is exchanged as one: the networks of a recipe, or single networks where there is only one recipe."""
    named = [
        (dataset, model, recipe, None if recipe is not None else job)
        for job, dataset, model, recipe in rows.select("job", "dataset", "model", "recipe").iter_rows()
    ]
    return named if len(set(named)) > 1 else rows["job"].to_list()


def _same_side(geometry: str, robustness: str, families: dict[str, str]) -> bool:
    """Whether both were measured under natural perturbations, or both under attacks."""
    family = families.get(robustness.removeprefix("accuracy."), robustness)
    side = "natural" if family in NATURAL else family.split("_")[0]
    return geometry.startswith(f"{side}_")
