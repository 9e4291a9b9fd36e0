"""Laws, oracles and closed forms of `relate`, each with a mutant that must fail it."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import permutations as all_orders
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, rankdata, spearmanr

from geophone.analysis import inference
from geophone.analysis.inference import cluster_weights, exchanges, holm, permutation_p, rank_correlation
from geophone.analysis.relate import networks, relate
from geophone.core.errors import GeophoneError
from geophone.core.table import frame

Rho = Callable[..., Any]
room = import_module("geophone.analysis.relate")  # the package has a function of that name


def small_table(
    selectivity: Sequence[float],
    clean: Sequence[float],
    natural: Sequence[float],
    seeds: Sequence[int | None] | None = None,
    recipes: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """One layer, one noise at one level; one network per value."""
    seeds = seeds if seeds is not None else [i % 2 for i in range(len(clean))]
    recipes = recipes if recipes is not None else [f"r{i // 2}" for i in range(len(clean))]

    def rows() -> Iterator[dict[str, Any]]:
        for i, (s, c, a) in enumerate(zip(selectivity, clean, natural, strict=True)):
            who = {"job": f"j{i:03}", "dataset": "data", "model": "net", "recipe": recipes[i], "seed": seeds[i]}
            base = {**who, "family": "clean", "perturbation": "clean", "level": 0.0}
            yield {**base, "metric": "accuracy", "value": c}
            yield {**base, "metric": "class_selectivity", "layer": "l", "depth": 0, "value": s}
            yield {**who, "family": "noise", "perturbation": "N", "level": 1.0, "metric": "accuracy", "value": a}

    return frame(rows())


def simulated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three correlated columns with ties."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    return np.round(z + rng.normal(size=n), 1), np.round(z - rng.normal(size=n), 1), np.round(z, 1)


# Oracles: scipy for the plain rho, ordinary least squares written out for the partial one.


def agrees_with_scipy(rho: Rho) -> bool:
    x, y, _ = simulated(15, 1)
    return bool(abs(rho(x, y)[0] - spearmanr(x, y).statistic) < 1e-12)


def agrees_with_regression(rho: Rho) -> bool:
    x, y, z = simulated(15, 2)
    left, right = (_ols_residuals(rankdata(v), rankdata(z)) for v in (x, y))
    return bool(abs(rho(x, y, z)[0] - np.corrcoef(left, right)[0, 1]) < 1e-12)


def agrees_on_repeats(rho: Rho) -> bool:
    """A weight of k is the same as standing in the sample k times."""
    x, y, z = simulated(12, 3)
    times = np.array([0, 3, 1, 1, 2, 0, 1, 1, 1, 0, 1, 1])
    repeated = [np.repeat(v, times) for v in (x, y, z)]
    weights = times[None].astype(float)
    plain = abs(rho(x, y, None, weights)[0] - spearmanr(repeated[0], repeated[1]).statistic) < 1e-12
    return bool(plain and abs(rho(x, y, z, weights)[0] - rho(*repeated)[0]) < 1e-12)


def _ols_residuals(a: np.ndarray, z: np.ndarray) -> np.ndarray:
    line = linregress(z, a)
    return np.asarray(a - line.intercept - line.slope * z)


ORACLES = [agrees_with_scipy, agrees_with_regression, agrees_on_repeats]


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda o: o.__name__)
def test_oracles(oracle: Callable[[Rho], bool]) -> None:
    assert oracle(rank_correlation)


def test_oracles_catch_pearson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_ranks", lambda values, w: np.broadcast_to(values, w.shape))
    assert not any(oracle(rank_correlation) for oracle in ORACLES)


def test_oracles_catch_first_come_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties broken by order instead of averaged."""
    monkeypatch.setattr(
        inference, "_ranks", lambda values, w: np.broadcast_to(rankdata(values, method="ordinal") + 0.0, w.shape)
    )
    assert not any(oracle(rank_correlation) for oracle in ORACLES)


# Closed forms.


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=20, unique=True))
def test_monotone_is_one_and_reversed_is_minus_one(values: list[int]) -> None:
    x = np.array(values, dtype=float)
    assert rank_correlation(x, np.exp(x / 500))[0] == pytest.approx(1, abs=1e-12)
    assert rank_correlation(x, -(x**3))[0] == pytest.approx(-1, abs=1e-12)


def test_what_clean_accuracy_fixes_has_no_partial() -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.5, 1, 12)
    made = relate(small_table(clean**2, clean, rng.uniform(0, 0.5, 12)), resamples=50)
    partial = made.filter((pl.col("statistic") == "partial_spearman") & (pl.col("robustness") == "natural_accuracy"))
    assert partial["rho"].to_list() == [None]
    assert "clean accuracy alone fixes" in partial["note"][0]
    assert made.filter(pl.col("statistic") == "spearman")["rho"].null_count() == 0


def test_constant_clean_accuracy_leaves_the_plain_rho() -> None:
    x, y, _ = simulated(12, 4)
    assert rank_correlation(x, y, np.full(12, 0.9))[0] == pytest.approx(rank_correlation(x, y)[0], abs=1e-12)


def test_constant_measure_is_nan() -> None:
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0))[0])


# Holm: the example of Holm (1979) worked by hand. Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 gives
# 0.02, 0.03, 0.06, 0.04; the running maximum lifts the last to 0.06.


def holm_by_hand(correct: Callable[[Sequence[float | None]], list[float | None]]) -> bool:
    adjusted = correct([0.01, 0.04, None, 0.03, 0.005])
    expected = [0.03, 0.06, None, 0.06, 0.02]
    return all(a == e or (a and e and abs(a - e) < 1e-12) for a, e in zip(adjusted, expected, strict=True))


def without_running_maximum(p: Sequence[float | None]) -> list[float | None]:
    ranked = sorted(v for v in p if v is not None)
    return [None if v is None else min(1.0, (len(ranked) - ranked.index(v)) * v) for v in p]


def bonferroni(p: Sequence[float | None]) -> list[float | None]:
    tests = sum(v is not None for v in p)
    return [None if v is None else min(1.0, tests * v) for v in p]


def test_holm() -> None:
    assert holm_by_hand(holm)
    assert not holm_by_hand(without_running_maximum)
    assert not holm_by_hand(bonferroni)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# Permutation: exact against the full enumeration, and honest when networks of a recipe are alike.


def test_p_is_the_exact_one_on_all_orders() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 3, 4, 6, 5])
    orders = np.array(list(all_orders(range(6))))
    rho = spearmanr(x, y).statistic
    hits = sum(abs(spearmanr(x, y[list(o)]).statistic) >= rho - 1e-9 for o in orders)
    assert permutation_p(x, y, None, orders) == pytest.approx((1 + hits) / (1 + len(orders)), abs=1e-12)


def test_exchanges_move_whole_recipes_and_keep_seeds() -> None:
    blocks = ["a", "a", "b", "b", "c", "c", "alone"]
    orders = exchanges(blocks, 300, np.random.default_rng(0))
    assert orders is not None
    assert (np.sort(orders, axis=1) == np.arange(7)).all()
    assert (orders[:, 6] == 6).all()
    assert (orders[:, 1:6:2] == orders[:, :6:2] + 1).all()
    assert len(np.unique(orders, axis=0)) == 6
    assert exchanges(["a", "a", "b"], 5, np.random.default_rng(0)) is None


def false_alarms(whole_recipes: bool) -> float:
    """How often p < 0.05 when geometry and robustness are unrelated, but networks of one recipe are alike."""
    rng = np.random.default_rng(5)
    recipes, seeds, studies = 7, 6, 200
    blocks = [i // seeds for i in range(recipes * seeds)] if whole_recipes else list(range(recipes * seeds))
    hits = 0
    for _ in range(studies):
        x, y = (np.repeat(rng.normal(size=recipes), seeds) + 0.2 * rng.normal(size=recipes * seeds) for _ in range(2))
        orders = exchanges(blocks, 300, rng)
        assert orders is not None
        hits += permutation_p(x, y, None, orders) < 0.05
    return hits / studies


def test_permutation_keeps_its_level_and_exchanging_networks_does_not() -> None:
    """Level 0.05; the standard error over 200 studies is 0.015, so 0.1 is 3 of them away."""
    assert false_alarms(whole_recipes=True) < 0.1
    assert false_alarms(whole_recipes=False) > 0.25


def test_freedman_lane_keeps_its_level() -> None:
    """Both measures follow clean accuracy and nothing else joins them: only the partial p is uniform."""
    rng = np.random.default_rng(6)
    partial = plain = 0
    for _ in range(200):
        z = rng.normal(size=16)
        x, y = z + 0.7 * rng.normal(size=16), z + 0.7 * rng.normal(size=16)
        orders = exchanges(list(range(16)), 300, rng)
        assert orders is not None
        partial += permutation_p(x, y, z, orders) < 0.05
        plain += permutation_p(x, y, None, orders) < 0.05
    assert partial / 200 < 0.1
    assert plain / 200 > 0.5


# The bootstrap: coverage where networks of a seed share a shift.


def coverage(clustered: bool) -> float:
    """Share of 120 studies (15 seeds x 8 networks, intraclass correlation 0.9) whose interval holds the true rho.

    For a bivariate normal with correlation r the true rho is 6/pi asin(r/2) (Pearson 1907).
    """
    rng = np.random.default_rng(7)
    seeds, each, r = 15, 8, 0.5
    truth = 6 / np.pi * np.arcsin(r / 2)
    factor = np.linalg.cholesky([[1, r], [r, 1]])
    clusters = np.repeat(np.arange(seeds), each)
    held = 0
    for _ in range(120):
        shared, own = (factor @ rng.normal(size=(2, count)) for count in (seeds, seeds * each))
        x, y = np.sqrt(0.9) * np.repeat(shared, each, axis=1) + np.sqrt(0.1) * own
        groups = clusters if clustered else np.arange(len(x))
        drawn = rank_correlation(x, y, None, cluster_weights(groups.tolist(), 200, rng))
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= truth <= high
    return held / 120


def test_coverage_needs_the_clusters() -> None:
    """Nominal 0.95; percentile intervals of 15 clusters are known to fall a few points short; standard error 0.02."""
    assert coverage(clustered=True) > 0.87
    assert coverage(clustered=False) < 0.7


def test_cluster_weights_draw_seeds_then_networks() -> None:
    clusters = [0, 0, 0, 1, 1, 2]
    weights = cluster_weights(clusters, 2000, np.random.default_rng(0))
    per_seed = np.stack([weights[:, np.array(clusters) == s].sum(axis=1) for s in range(3)], axis=1) / [3, 2, 1]
    assert (per_seed == np.round(per_seed)).all()
    assert (per_seed.sum(axis=1) == 3).all()
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.15  # mean 1, variance below 3: 0.15 is over 3 standard errors
    alone = cluster_weights([0] * 4, 50, np.random.default_rng(0))
    assert (alone.sum(axis=1) == 4).all()


# The networks table.


def test_networks_averages_levels_then_types() -> None:
    who = {"job": "j", "dataset": "d", "model": "m", "recipe": "r", "seed": 0}
    rows = [{**who, "family": "clean", "perturbation": "clean", "level": 0.0, "metric": "accuracy", "value": 0.8}]
    for family, name, values in (("noise", "A", (0.6, 0.2)), ("corruption", "B", (0.7,)), ("attack", "C", (0.1, 0.3))):
        for level, value in enumerate(values, start=1):
            at = {**who, "family": family, "perturbation": name, "level": float(level)}
            rows.append({**at, "metric": "accuracy", "value": value})
            for depth, cka in enumerate((value, value / 2)):
                layer = {"layer": f"l{depth}", "depth": depth}
                rows.append({**at, **layer, "metric": "cka", "other": "clean", "value": cka})
                rows.append({**at, **layer, "metric": "class_selectivity", "value": 0.123})
    for depth, selectivity in enumerate((0.2, 0.6, None)):
        at = {**who, "family": "clean", "perturbation": "clean", "level": 0.0, "layer": f"l{depth}", "depth": depth}
        rows.append({**at, "metric": "class_selectivity", "value": selectivity})
        rows.append({**at, "metric": "class_selectivity", "unit": 0, "value": 0.99})
    rows.append({**rows[0], "metric": "check.inputs", "value": 1.0})
    got = networks(frame(rows)).row(0, named=True)
    expected = {
        "clean_accuracy": 0.8,
        "natural_accuracy": (0.4 + 0.7) / 2,
        "attack_accuracy": 0.2,
        "natural_accuracy_relative": 0.55 / 0.8,
        "attack_accuracy_relative": 0.25,
        "accuracy.A": 0.4,
        "accuracy.B": 0.7,
        "accuracy.C": 0.2,
        "class_selectivity": 0.4,
        "natural_cka": 0.75 * 0.55,
        "attack_cka": 0.75 * 0.2,
    }
    assert {k: v for k, v in got.items() if k in expected} == pytest.approx(expected, abs=1e-12)
    assert set(got) == {*expected, "job", "dataset", "model", "recipe", "seed"}


def test_a_scan_has_one_network_and_is_refused() -> None:
    made = relate(small_table([0.3], [0.9], [0.5], seeds=[None], recipes=[None]))
    assert made["rho"].null_count() == len(made) > 0
    assert set(made["note"]) == {"needs at least 8 networks and 2 seeds, has 1 and 0"}


def test_refusals() -> None:
    rng = np.random.default_rng(1)
    x, c, a = rng.uniform(size=(3, 12))
    seven = relate(small_table(x[:7], c[:7], a[:7]))
    assert set(seven["note"]) == {"needs at least 8 networks and 2 seeds, has 7 and 2"}
    one_seed = relate(small_table(x, c, a, seeds=[0] * 12))
    assert set(one_seed["note"]) == {"needs at least 8 networks and 2 seeds, has 12 and 1"}
    constant = relate(small_table([0.5] * 12, c, a))
    assert constant["rho"].null_count() == len(constant)
    assert set(constant["note"]) == {"class_selectivity is the same in all 12 networks"}
    some_unseeded = relate(small_table(x, c, a, seeds=[0, 1, 2, None] * 3))
    assert "have no seed" in some_unseeded["note"][0]
    assert relate(small_table(x, c, a)[:0]).columns == list(room.RELATION_SCHEMA)


def test_relate_reports_what_it_says() -> None:
    rng = np.random.default_rng(2)
    x = rng.uniform(size=16)
    clean = rng.uniform(0.8, 0.9, 16)
    made = relate(small_table(x, clean, 0.5 - 0.4 * x), resamples=200, robustness=["natural_accuracy", "accuracy.N"])
    assert made.schema == pl.Schema(room.RELATION_SCHEMA)
    assert made["statistic"].to_list() == ["spearman", "partial_spearman"] * 2
    first = made.row(0, named=True)
    assert first["rho"] == pytest.approx(-1, abs=1e-12)
    assert first["low"] == first["high"] == pytest.approx(-1, abs=1e-12)
    assert (first["networks"], first["seeds"]) == (16, 2)
    assert first["p"] < 0.02
    assert first["p_holm"] == pytest.approx(2 * first["p"], abs=1e-12)
    assert "only 2 seeds" in first["note"]


def test_same_seed_same_answer_whatever_else_is_asked() -> None:
    rng = np.random.default_rng(3)
    table = small_table(*rng.uniform(size=(3, 12)))
    both = relate(table, resamples=200)
    one = relate(table, resamples=200, robustness=["natural_accuracy"])
    assert one.select("rho", "low", "high").equals(
        both.filter(pl.col("robustness") == "natural_accuracy").select("rho", "low", "high")
    )
    assert both.equals(relate(table, resamples=200))
    assert not both.equals(relate(table, resamples=200, seed=1))


def test_row_order_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    table = small_table(*rng.uniform(size=(3, 12)))
    assert relate(table, resamples=200).equals(relate(table.sample(fraction=1, shuffle=True, seed=0), resamples=200))


def test_bad_arguments() -> None:
    table = small_table(*np.random.default_rng(5).uniform(size=(3, 12)))
    with pytest.raises(GeophoneError, match="unknown geometric measure 'class_selectvity'"):
        relate(table, geometry=["class_selectvity"])
    with pytest.raises(GeophoneError, match="unknown robustness measure 'attack_accuracy'"):
        relate(table, robustness=["attack_accuracy"])
    with pytest.raises(GeophoneError, match="at least 4"):
        relate(table, minimum=3)
    with pytest.raises(GeophoneError, match="resamples=0"):
        relate(table, resamples=0)
