"""Claims judged on made-up tables whose verdict is known, each promise with a mutant that must break it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, norm
from scipy.stats import t as t_distribution

from benchmarks import claims as boundaries
from geophone.analysis.claims import (
    CLAIM_SCHEMA,
    AtHalf,
    Best,
    Claim,
    Correlation,
    Difference,
    Increasing,
    Interaction,
    Measure,
    Rule,
    Selection,
    Types,
    evidence,
    judge,
    measured,
    measures,
    power,
    read_claims,
    rules,
    seeds_needed,
    units_needed,
    write_claims,
)
from geophone.analysis.claims.evidence import (
    ALPHA,
    Evidence,
    above_zero,
    best_of_several,
    fewest_types,
    least_of_all,
    mean_beyond,
    share_of_types,
    slopes,
    student,
    two_sided,
)
from geophone.analysis.claims.judge import joint
from geophone.analysis.claims.measures import NoRows, half_levels
from geophone.analysis.claims.rules import CONTRADICTED, NOT_DECIDED, SUPPORTED, Outcome
from geophone.core.errors import GeophoneError
from geophone.core.table import frame

Patch = pytest.MonkeyPatch
judging = import_module("geophone.analysis.claims.judge")  # the package has a function of this name
CLEAN = {"family": "clean", "perturbation": "clean", "level": 0.0}
ACCURACY = Measure("accuracy")
SELECTIVITY = Measure("class_selectivity")


def who(recipe: str | None, seed: int | None, **more: Any) -> dict[str, Any]:
    return {"job": f"{recipe}-{seed}", "dataset": "data", "model": "net", "recipe": recipe, "seed": seed, **more}


def simple(values: Mapping[str, Sequence[float | None]], metric: str = "accuracy") -> pl.DataFrame:
    """One clean row per network: a recipe's values are those of seeds 0, 1, …"""
    return frame(
        {**who(recipe, seed), **CLEAN, "metric": metric, "value": value}
        for recipe, each in values.items()
        for seed, value in enumerate(each)
    )


def verdict(test: Rule, table: pl.DataFrame) -> str:
    return str(judge([claim(test)], table)["verdict"][0])


def claim(*tests: Rule, **more: Any) -> Claim:
    return Claim("c", "A paper", "It is so.", tuple((f"part {i}", test) for i, test in enumerate(tests)), **more)


# Power.


def test_least_rho_is_the_tables_critical_value() -> None:
    """Two-sided 0.05 for a correlation of 7, 10 and 23 pairs: .754, .632, .413 in every statistics table."""
    found = [rules.least_rho(n) for n in (7, 10, 23)]
    assert found == pytest.approx([0.754, 0.632, 0.413], abs=5e-4)
    assert rules.least_rho(3) == 1.0


def test_units_needed_is_fishers_z_with_bonett_and_wrights_variance() -> None:
    # By hand for rho 0.6: (1.9600 + 0.8416)/atanh(0.6) = 2.8016/0.6931 = 4.0418; its square 16.336 times
    # 1 + 0.36/2 is 19.277; 3 more are 22.277.
    assert units_needed(0.6, 0.8) == 23
    assert units_needed(0.6, 0.8, held=1) == 24
    # For rho 0.9, the default of a correlation: (2.8016/1.4722)² · 1.405 + 3 = 8.09.
    assert units_needed(0.9, 0.8) == 9
    # For rho 0.5: (2.8016/0.5493)² · 1.125 + 3 = 32.26.
    assert units_needed(0.5, 0.8) == 33
    plain = 3 + ((norm.ppf(0.975) + norm.ppf(0.8)) / np.arctanh(0.6)) ** 2
    assert np.ceil(plain) == 20  # the variance of Pearson's r would ask for too few


def test_seeds_needed_is_that_of_the_noncentral_t() -> None:
    # The usual tables of the one-sample t-test at two-sided 0.05 and power 0.8.
    assert [seeds_needed(d, 0.8) for d in (0.5, 0.8, 1.0, 2.0)] == [34, 15, 10, 5]
    assert [seeds_needed(2.0, 0.8, 0.05 / k) for k in (1, 2, 8)] == sorted(
        seeds_needed(2.0, 0.8, 0.05 / k) for k in (1, 2, 8)
    )
    assert int(np.ceil(((norm.ppf(0.975) + norm.ppf(0.8)) / 2) ** 2)) == 2  # what the normal would ask for


def test_seeds_needed_give_the_power_in_simulation() -> None:
    """20000 samples: the standard error of a rate is at most 0.0035, so 4 of them are 0.014."""
    rng = np.random.default_rng(0)
    for n in (4, 5):
        d = rng.normal(2.0, 1.0, size=(20_000, n))
        t = d.mean(axis=1) / d.std(axis=1, ddof=1) * n**0.5
        rate = (np.abs(t) > t_distribution.ppf(0.975, n - 1)).mean()
        assert rate == pytest.approx(power._power(n, 2.0, 0.05), abs=0.014)
        assert (rate > 0.8) == (n == seeds_needed(2.0, 0.8))


# Measures.


def layered() -> pl.DataFrame:
    """Two networks, four layers named against their order, two attacks with levels of their own, one corruption."""

    def rows() -> Iterator[dict[str, Any]]:
        for seed, clean in enumerate((0.8, 0.5)):
            me = who("Standard", seed)
            yield {**me, **CLEAN, "metric": "accuracy", "value": clean}
            yield {**me, **CLEAN, "metric": "check.inputs", "value": 0.0}
            for depth, layer in enumerate("dcba"):
                at = {**me, **CLEAN, "layer": layer, "depth": depth, "metric": "s"}
                yield {**at, "value": 10.0**depth}
                yield {**at, "value": 1e6, "unit": 3}
            for name, levels in (("A(steps=2)", (0.1, 0.2, 0.4)), ("B", (1.0,))):
                for level in levels:
                    at = {**me, "family": "attack", "perturbation": name, "level": level, "metric": "accuracy"}
                    yield {**at, "value": clean * (1 - level)}
            yield {**me, "family": "noise", "perturbation": "N", "level": 1.0, "metric": "accuracy", "value": 0.3}

    return frame(rows())


def values(table: pl.DataFrame, measure: Measure) -> list[float | None]:
    return measured(table, measure)["value"].to_list()


def near(found: Sequence[float | None], expected: Sequence[float]) -> bool:
    return None not in found and bool(np.allclose(np.array(found, dtype=float), expected, rtol=1e-12))


def reads_layers_in_order() -> bool:
    shares = {
        (0.0, 0.5): 5.5,
        (0.5, 1.0): 550.0,
        (0.0, 1.0): 277.75,
        (0.25, 0.5): 10.0,
        (0.0, 0.3): 5.5,
        (0.75, 1.0): 1e3,
    }
    return all(near(values(layered(), Measure("s", layers=part)), [mean] * 2) for part, mean in shares.items())


def test_layers_are_those_in_the_share_of_depth(monkeypatch: Patch) -> None:
    assert reads_layers_in_order()
    by_name = layered().with_columns(depth=pl.col("layer").rank("dense").cast(pl.Int64))
    assert not near(values(by_name, Measure("s", layers=(0.0, 0.5))), [5.5] * 2)
    monkeypatch.setattr(measures, "_layers", lambda table, start, stop: ["d", "c"])
    assert not reads_layers_in_order()


def test_a_layer_at_the_end_of_a_share_belongs_to_the_next_one() -> None:
    halves = [measures._layers(layered(), *part) for part in ((0.0, 0.5), (0.5, 1.0))]
    assert halves == [["d", "c"], ["b", "a"]]


def test_means_are_over_levels_then_over_perturbations() -> None:
    a, b = 0.8 * (1 - 0.7 / 3), 0.0
    table = layered()
    assert near(values(table, Measure("accuracy", "attack"))[:1], [(a + b) / 2])
    assert near(values(table, Measure("accuracy", "attack", "A(*"))[:1], [a])
    assert near(values(table, Measure("accuracy", "attack", "A(steps=2)", 0.2)), [0.64, 0.4])
    assert near(values(table, Measure("accuracy", ("attack", "noise")))[:1], [(a + b + 0.3) / 3])
    assert not near([(0.72 + 0.64 + 0.48 + 0) / 4], [(a + b) / 2])  # the mean over all rows alike


def test_relative_is_divided_by_the_networks_own_clean_accuracy() -> None:
    assert near(values(layered(), Measure("accuracy", "attack", "A*", 0.4, relative=True)), [0.6, 0.6])
    broken = layered().with_columns(
        value=pl.when((pl.col("family") == "clean") & (pl.col("seed") == 1)).then(0.0).otherwise("value")
    )
    assert values(broken, Measure("accuracy", "attack", "A*", 0.4, relative=True))[1] is None


@pytest.mark.parametrize("gone", ["missing", "undefined"])
def test_a_network_that_lacks_rows_gets_null(gone: str) -> None:
    one = (pl.col("seed") == 1) & (pl.col("level") == 0.2)
    table = layered()
    lacking = table.filter(~one) if gone == "missing" else table.with_columns(value=pl.when(~one).then("value"))
    assert values(lacking, Measure("accuracy", "attack"))[1] is None
    assert values(lacking, Measure("accuracy", "attack"))[0] is not None
    assert None not in values(lacking, Measure("accuracy", "attack", "B"))
    assert lacking.filter((pl.col("seed") == 1) & (pl.col("perturbation") == "A(steps=2)"))["value"].mean() is not None


def test_single_units_checks_and_other_metrics_are_left_out() -> None:
    for measure in (Measure("check.inputs"), Measure("s"), Measure("s", "attack"), Measure("accuracy", level=0.5)):
        with pytest.raises(NoRows, match="no rows for"):
            measured(layered(), measure)


def curve(accuracy: Mapping[float, Sequence[float]], clean: Sequence[float] = (0.8, 0.6)) -> pl.DataFrame:
    """The reference with this accuracy at each level of attack P, and another recipe that falls faster."""
    both = {"Standard": 1.0, "Other": 0.1}
    return frame(
        {
            **who(recipe, seed),
            "family": "attack" if level else "clean",
            "perturbation": "P" if level else "clean",
            "level": level,
            "metric": "accuracy",
            "value": each[seed] * (factor if level else 1.0),
        }
        for recipe, factor in both.items()
        for level, each in {0.0: clean, **accuracy}.items()
        for seed in range(2)
    )


def picks_the_half() -> bool:
    """Clean 0.7 on average, so half is 0.35: 0.4 at level 2 is nearest. Single seeds would say 1 or 3."""
    table = curve({1.0: (0.7, 0.31), 2.0: (0.6, 0.2), 3.0: (0.39, 0.1)})
    level, kept = half_levels(table, Measure("accuracy", "attack", level=AtHalf()))["P"]
    read = measured(table, Measure("accuracy", "attack", "P", AtHalf()))
    other = read.filter(pl.col("recipe") == "Other")["value"].to_list()
    return level == 2.0 and abs(kept - 0.4 / 0.7) < 1e-12 and near(other, [0.06, 0.02])


def test_half_is_where_the_reference_keeps_half_of_its_own_accuracy(monkeypatch: Patch) -> None:
    assert picks_the_half()
    monkeypatch.setattr(measures, "half_levels", lambda table, measure: {"P": (3.0, 0.5)})
    assert not picks_the_half()


def test_half_needs_the_reference_and_takes_the_lower_of_two() -> None:
    table = curve({1.0: (0.625, 0.625), 2.0: (0.375, 0.375)}, clean=(1.0, 1.0))  # 0.125 off at both
    assert half_levels(table, Measure("accuracy", "attack", level=AtHalf()))["P"][0] == 1.0
    with pytest.raises(NoRows, match="Other keeps 6%"):
        half_levels(table, Measure("accuracy", "attack", level=AtHalf("Other")))
    with pytest.raises(NoRows, match="accuracy of Nobody"):
        half_levels(table, Measure("accuracy", "attack", level=AtHalf("Nobody")))
    bare = table.filter((pl.col("family") == "clean") | (pl.col("recipe") == "Other"))
    with pytest.raises(NoRows, match="accuracy of Standard under P"):
        half_levels(bare, Measure("accuracy", "attack", level=AtHalf()))


def test_a_level_far_from_half_is_not_taken_for_it() -> None:
    """0.35 to 0.65 of the clean accuracy will do; a grid that ends at three quarters decides nothing."""
    for kept, near_enough in ((0.36, True), (0.64, True), (0.34, False), (0.74, False)):
        table = curve({1.0: (kept, kept)}, clean=(1.0, 1.0))
        if near_enough:
            assert half_levels(table, Measure("accuracy", "attack", level=AtHalf()))["P"] == (1.0, pytest.approx(kept))
        else:
            with pytest.raises(NoRows, match="no rows near half: of the levels of P, Standard keeps"):
                half_levels(table, Measure("accuracy", "attack", level=AtHalf()))


def test_half_of_robust_accuracy_is_read_off_its_own_curve() -> None:
    table = curve({1.0: (0.7, 0.7), 2.0: (0.3, 0.3)}).with_columns(
        metric=pl.when(pl.col("family") == "attack").then(pl.lit("robust_accuracy")).otherwise("metric")
    )
    assert half_levels(table, Measure("robust_accuracy", "attack", level=AtHalf()))["P"][0] == 2.0


def test_measures_say_what_they_are() -> None:
    measure = Measure("pca_fraction_95", "attack", "PGD*", AtHalf(), (0.0, 0.5), relative=True)
    assert str(measure) == (
        "pca fraction 95 in the first half of the layers under PGD* at the level where Standard keeps about half its "
        "accuracy, divided by clean accuracy"
    )
    assert str(Measure("accuracy", "matched")) == "accuracy under matched perturbations"
    assert str(Measure("accuracy", ("noise", "corruption"))) == "accuracy under noise and under corruption"
    assert (
        str(Measure("s", layers=(0.25, 0.75), level=0.0))
        == "s in the layers from 25 % to 75 % of depth on clean images at 0"
    )


# Verdicts. Noise of the seeds, shared by all recipes, is what pairing takes away.

SWEEP = [f"R(alpha={a})" for a in range(-2, 8)]
SHARED = [0.3, -0.2, 0.1, 0.0, -0.3, 0.2, 0.25, -0.1]


def ladder(steps: Sequence[float], seeds: int = 8, jitter: float = 0.003, metric: str = "accuracy") -> pl.DataFrame:
    rng = np.random.default_rng(3)
    noise = jitter * rng.normal(size=(len(steps), 8))
    return simple(
        {
            recipe: [1 + step + SHARED[s] + float(noise[i, s]) for s in range(seeds)]
            for i, (recipe, step) in enumerate(zip(SWEEP, steps, strict=False))
        },
        metric,
    )


def tied(slope: float, seeds: int = 8, noise: float = 0.3) -> pl.DataFrame:
    """Selectivity goes with alpha; accuracy is slope times it, and noise."""
    x = ladder(range(len(SWEEP)), seeds, 0.1, "class_selectivity")
    rng = np.random.default_rng(1)
    y = x.with_columns(metric=pl.lit("accuracy"), value=slope * pl.col("value") + noise * rng.normal(size=len(x)))
    return pl.concat([x, y])


def types(better: int, of: int = 10, seeds: int = 8) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    return frame(
        {
            **who(recipe, seed),
            "family": "corruption",
            "perturbation": f"t{k}",
            "level": 1.0,
            "metric": "accuracy",
            "value": 0.5 + SHARED[seed] + (0.1 if k < better else -0.1) * (recipe == "A") + 0.005 * float(rng.normal()),
        }
        for recipe in ("A", "B")
        for seed in range(seeds)
        for k in range(of)
    )


def sloped(more: float, seeds: int = 8, recipes: int = 5) -> pl.DataFrame:
    """Both a and b rise with selectivity, and curve; a rises by more."""
    x = ladder(range(recipes), seeds, 0.1, "class_selectivity")
    rng = np.random.default_rng(4)
    noise = 0.03 * rng.normal(size=(2, len(x)))
    a, b = (
        x.with_columns(metric=pl.lit(name), value=(1 + slope) * pl.col("value") + pl.col("value") ** 2 + noise[i])
        for i, (name, slope) in enumerate((("a", more), ("b", 0.0)))
    )
    return pl.concat([x, a, b])


A, B = (Selection(ACCURACY, SWEEP[i]) for i in (1, 0))
UP = Correlation(SELECTIVITY, ACCURACY, 1)
HELD = Correlation(SELECTIVITY, Measure("accuracy"), 1, held=Measure("z"))
CORRUPTED = Measure("accuracy", "corruption")
CASES: list[
    tuple[
        Callable[[int], Rule],
        Callable[[int], pl.DataFrame],
        Callable[[int], pl.DataFrame],
        Callable[[int], pl.DataFrame],
    ]
] = [
    (
        lambda sign: Correlation(SELECTIVITY, ACCURACY, sign),
        lambda seeds: tied(1.0, seeds),
        lambda seeds: tied(-1.0, seeds),
        lambda seeds: tied(0.0, seeds),
    ),
    (
        lambda sign: Difference(A, B, sign),
        lambda seeds: ladder([0, 0.1], seeds),
        lambda seeds: ladder([0, -0.1], seeds),
        lambda seeds: ladder([0, 0], seeds),
    ),
    (
        lambda sign: Increasing(ACCURACY, tuple(SWEEP[:4]), sign),
        lambda seeds: ladder([0, 0.1, 0.2, 0.3], seeds),
        lambda seeds: ladder([0, -0.1, -0.2, -0.3], seeds),
        lambda seeds: ladder([0, 0, 0, 0], seeds),
    ),
    (
        lambda sign: Best(ACCURACY, "R(alpha=-*)", SWEEP[2], sign),
        lambda seeds: ladder([0.1, 0.2, 0], seeds),
        lambda seeds: ladder([-0.1, -0.2, 0], seeds),
        lambda seeds: ladder([0, 0, 0], seeds),
    ),
    (
        lambda sign: Types(CORRUPTED, "A", "B", sign),
        lambda seeds: types(9, seeds=seeds),
        lambda seeds: types(1, seeds=seeds),
        lambda seeds: types(5, seeds=seeds),
    ),
    (
        lambda sign: Interaction(SELECTIVITY, Measure("a"), Measure("b"), sign, "R*"),
        lambda seeds: sloped(0.1, seeds),
        lambda seeds: sloped(-0.1, seeds),
        lambda seeds: sloped(0.0, seeds),
    ),
]
NAMES = ["correlation", "difference", "increasing", "best", "types", "interaction"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_verdicts_are_known_and_flip_with_the_sign(case: Any) -> None:
    make, for_it, against_it, neither = case
    assert [verdict(make(1), make_table(8)) for make_table in (for_it, against_it, neither)] == [
        *(SUPPORTED, CONTRADICTED, NOT_DECIDED)
    ]
    assert [verdict(make(-1), make_table(8)) for make_table in (for_it, against_it, neither)] == [
        *(CONTRADICTED, SUPPORTED, NOT_DECIDED)
    ]


def undecided_on_too_few(make: Callable[[int], Rule], for_it: Callable[[int], pl.DataFrame]) -> bool:
    row = judge([claim(make(1))], for_it(3)).row(0, named=True)
    return row["verdict"] == NOT_DECIDED and "needs" in (row["note"] or "") and row["seeds"] == 3


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_nothing_is_decided_on_less_than_the_power_asks_for(case: Any, monkeypatch: Patch) -> None:
    assert undecided_on_too_few(case[0], case[1])
    monkeypatch.setattr(rules, "units_needed", lambda *_, **__: 0)
    monkeypatch.setattr(rules, "seeds_needed", lambda *_: 0)
    monkeypatch.setattr(rules, "LEAST_SEEDS", 0)
    assert verdict(case[0](1), case[1](3)) == SUPPORTED  # the data would have said so
    assert not undecided_on_too_few(case[0], case[1])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_missing_rows_leave_it_undecided(case: Any) -> None:
    row = judge([claim(case[0](1))], case[1](8).with_columns(metric=pl.lit("other"))).row(0, named=True)
    assert row["verdict"] == NOT_DECIDED
    assert row["note"].startswith("no rows for ")
    assert row["value"] is None


def test_missing_recipes_leave_it_undecided() -> None:
    table = ladder([0, 0.1, 0.2])
    wanting: list[Rule] = [
        Correlation(SELECTIVITY, ACCURACY, 1, among="Nobody"),
        Difference(A, Selection(ACCURACY, "Nobody*")),
        Increasing(ACCURACY, (SWEEP[0], "Nobody")),
        Best(ACCURACY, "*", "Nobody"),
        Best(ACCURACY, SWEEP[0], SWEEP[0]),
        Types(ACCURACY, "Nobody", SWEEP[0]),
        Interaction(ACCURACY, ACCURACY, ACCURACY, 1, "Nobody*"),
        Interaction(ACCURACY, ACCURACY, ACCURACY, 1, (SWEEP[0], SWEEP[1])),
    ]
    for test in wanting:
        row = judge([claim(test)], table).row(0, named=True)
        assert (row["verdict"], row["note"][:12]) == (NOT_DECIDED, "no rows for ")


def test_the_note_says_what_is_needed_and_what_there_is() -> None:
    assert judge([claim(UP)], tied(1.0, seeds=2))["note"][0] == "needs 9 recipes and 5 seeds, has 10 and 2"
    assert judge([claim(UP)], tied(1.0, seeds=3))["needed"][0] == "9 recipes and 5 seeds"
    few = tied(1.0).filter(pl.col("recipe").is_in(SWEEP[:8]))  # 64 networks, of 8 recipes
    assert judge([claim(UP)], few).select("verdict", "note").row(0) == (
        NOT_DECIDED,
        "needs 9 recipes and 5 seeds, has 8 and 8",
    )
    of_one = tied(1.0).with_columns(recipe=pl.lit("One"), seed=pl.col("job").rank("dense").cast(pl.Int64))
    assert judge([claim(UP)], of_one)["needed"][0] == "9 networks and 5 seeds"
    four = judge([claim(Difference(A, B))], ladder([0, 0.1], 4)).row(0, named=True)
    assert (four["note"], four["needed"], four["networks"]) == ("needs 5 seeds, has 4", "5 seeds", 8)
    assert four["low"] > 0  # shown, not judged


def test_the_note_names_the_level_at_half() -> None:
    table = curve({1.0: (0.7, 0.7), 2.0: (0.42, 0.28)})
    attacked = Measure("accuracy", "attack", level=AtHalf())
    test = Difference(Selection(attacked, "Standard"), Selection(attacked, "Other"))
    note = judge([claim(test)], table)["note"][0]
    assert note == "needs 5 seeds, has 2; nearest to half of Standard’s clean accuracy: P at 2 (50 %)"


def test_left_out_networks_count_for_nothing() -> None:
    """Five seeds are enough; without one value of one there are four."""
    table = ladder([0, 0.1], 5)
    assert verdict(Difference(A, B), table) == SUPPORTED
    gone = table.with_columns(value=pl.when((pl.col("seed") != 2) | (pl.col("recipe") != SWEEP[0])).then("value"))
    row = judge([claim(Difference(A, B))], gone).row(0, named=True)
    assert (row["verdict"], row["seeds"], row["networks"]) == (NOT_DECIDED, 4, 8)
    assert row["note"] == (
        "needs 5 seeds, has 4; left out, for lack of some values of accuracy on clean images: R(alpha=-2), seed 2"
    )


def test_pairing_within_seeds_decides_what_means_would_not() -> None:
    """Steps of 0.1 under seed noise of 0.2 that recipes share; exchanging one recipe's seeds breaks the pairs."""
    table = ladder([0, 0.1])
    assert verdict(Difference(A, B), table) == SUPPORTED
    first = pl.col("recipe") == SWEEP[0]
    shifted = table.with_columns(seed=pl.when(first).then((pl.col("seed") + 3) % 8).otherwise("seed"))
    assert verdict(Difference(A, B), shifted) == NOT_DECIDED


def test_a_difference_may_be_of_two_measures_in_the_same_recipes() -> None:
    table = pl.concat([tied(0.0), tied(0.0).with_columns(metric=pl.lit("d"), value=pl.col("value") + 0.1)])
    table = table.unique(["job", "metric"], maintain_order=True)
    more, less = (Selection(Measure(m), "R(*") for m in ("d", "class_selectivity"))
    row = judge([claim(Difference(more, less))], table).row(0, named=True)
    assert row["value"] == pytest.approx(0.1, abs=1e-12)
    assert (row["verdict"], row["networks"], row["seeds"]) == (SUPPORTED, 80, 8)
    assert verdict(Difference(more, less, threshold=0.2), table) == CONTRADICTED
    assert verdict(Difference(more, less, sign=-1, threshold=0.2), table) == SUPPORTED


def test_the_interval_of_a_least_favourable_step_has_ends_of_two_kinds() -> None:
    """All steps must rise, so its lower end is not corrected; one that falls is enough, so its upper end is."""
    row = judge([claim(Increasing(ACCURACY, tuple(SWEEP[:4])))], ladder([0, 0.3, 0.5, 0.6])).row(0, named=True)
    assert row["effect"] == "least favourable step, R(alpha=0) to R(alpha=1)"
    last = ladder([0, 0.3, 0.5, 0.6]).pivot(on="recipe", index="seed", values="value")
    d = (last[SWEEP[3]] - last[SWEEP[2]]).to_numpy()
    value, low, _ = student(d)
    assert (row["value"], row["low"]) == pytest.approx((value, low), abs=1e-12)
    assert row["high"] == pytest.approx(student(d, 0.05 / 3)[2], abs=1e-12)
    half = t_distribution.ppf(1 - 0.05 / 6, 7) * d.std(ddof=1) / 8**0.5
    assert row["high"] == pytest.approx(d.mean() + half, abs=1e-12)


def test_one_wrong_step_contradicts_and_a_flat_one_leaves_it_open() -> None:
    test = Increasing(ACCURACY, tuple(SWEEP[:4]))
    made = judge([claim(test)], ladder([0, 0.3, 0.2, 0.4])).row(0, named=True)
    assert (made["verdict"], made["effect"]) == (CONTRADICTED, "least favourable step, R(alpha=-1) to R(alpha=0)")
    assert made["high"] < 0
    assert verdict(test, ladder([0, 0.3, 0.3, 0.4])) == NOT_DECIDED


def test_best_is_one_of_the_candidates_and_never_the_reference() -> None:
    made = judge([claim(Best(ACCURACY, "R(*", SWEEP[2]))], ladder([-0.1, 0.2, 0, -0.1])).row(0, named=True)
    assert (made["verdict"], made["effect"]) == (SUPPORTED, "R(alpha=-1) less R(alpha=0), best of 3")
    assert verdict(Best(ACCURACY, "R(*", SWEEP[2]), ladder([-0.1, -0.2, 0, -0.1])) == CONTRADICTED


def test_types_are_counted_against_the_share() -> None:
    made = judge([claim(Types(CORRUPTED, "A", "B"))], types(9)).row(0, named=True)
    assert (made["value"], made["effect"]) == (0.9, "share of types: 9 of 10")
    assert verdict(Types(CORRUPTED, "A", "B", at_least=0.95), types(9)) == CONTRADICTED
    assert verdict(Types(CORRUPTED, "A", "B", at_least=0.9), types(9)) == NOT_DECIDED
    assert judge([claim(Types(CORRUPTED, "A", "B", -1))], types(9))["value"][0] == pytest.approx(0.1)


def test_what_is_held_fixed_is_taken_away() -> None:
    """Both rise with z and with nothing else: the plain claim is supported, with z held fixed it is open."""
    rng = np.random.default_rng(5)
    z = ladder(range(len(SWEEP)), 8, 0.0, "z")
    x, y = (
        z.with_columns(metric=pl.lit(name), value=pl.col("value") + 0.5 * rng.normal(size=len(z)))
        for name in ("class_selectivity", "accuracy")
    )
    table = pl.concat([x, y, z])
    assert verdict(UP, table) == SUPPORTED
    made = judge([claim(HELD)], table).row(0, named=True)
    assert (made["verdict"], made["effect"], made["needed"]) == (NOT_DECIDED, "partial ρ", "10 recipes and 5 seeds")


def test_a_correlation_is_over_the_recipes_it_names() -> None:
    table = tied(1.0)
    strange = simple({"Strange": [50.0] * 8}, "class_selectivity"), simple({"Strange": [-50.0] * 8})
    both = pl.concat([table, *strange])
    assert judge([claim(UP)], both)["networks"][0] == 88
    among = Correlation(SELECTIVITY, ACCURACY, 1, among="R(*")
    assert judge([claim(among)], both)["networks"][0] == 80
    assert judge([claim(among)], both)["value"][0] == judge([claim(UP)], table)["value"][0]


def test_constant_measures_and_ragged_recipes_decide_nothing() -> None:
    flat = tied(1.0).with_columns(value=pl.when(pl.col("metric") == "accuracy").then(0.5).otherwise("value"))
    assert "the same in all networks" in judge([claim(UP)], flat)["note"][0]
    ragged = tied(1.0).filter(pl.col("seed") < 8 - pl.col("recipe").rank("dense").cast(pl.Int64))
    assert judge([claim(UP)], ragged)["note"][0].count("; no p: ") == 1


# No effect: the rate of "supported" is not above half of 5 %. A limit is the 99.9 % quantile of the number of hits that
# 2.5 % would give.


def limit(runs: int) -> int:
    return int(binom.ppf(0.999, runs, 0.025))


def false_correlations(runs: int = 100) -> int:
    """Nine recipes differ in accuracy, at random; selectivity has nothing to do with it."""
    rng = np.random.default_rng(0)
    recipes = [f"R{i}" for i in range(9)]
    hits = 0
    for _ in range(runs):
        x = {r: list(i + 0.1 * rng.normal(size=5)) for i, r in enumerate(recipes)}
        y = {r: list(3 * rng.normal() + rng.normal(size=5)) for r in recipes}
        hits += UP(pl.concat([simple(x, "class_selectivity"), simple(y)])).verdict == SUPPORTED
    return hits


def test_unrelated_measures_are_rarely_supported(monkeypatch: Patch) -> None:
    """Without the exchange of recipes, the networks of a recipe would count as independent evidence."""
    monkeypatch.setattr(evidence, "RESAMPLES", 200)
    assert false_correlations() <= limit(100)
    monkeypatch.setattr(evidence, "permutation_p", lambda *_: 0.0)
    assert false_correlations() > limit(100)


def test_no_difference_is_rarely_supported() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2000, 5))
    hits = sum((mean_beyond(d, 1).supports or 0) < ALPHA / 2 for d in samples)
    assert hits <= limit(2000)
    normal = samples.mean(axis=1) > norm.ppf(0.975) * samples.std(axis=1, ddof=1) / 5**0.5
    assert normal.sum() > limit(2000)


def false_bests(runs: int = 150) -> int:
    rng = np.random.default_rng(0)
    test = Best(ACCURACY, "R*", "Standard")
    names = ["Standard", *(f"R{i}" for i in range(8))]
    return sum(test(simple({n: list(rng.normal(size=8)) for n in names})).verdict == SUPPORTED for _ in range(runs))


def test_the_best_of_many_alike_is_rarely_supported(monkeypatch: Patch) -> None:
    assert false_bests() <= limit(150)
    monkeypatch.setattr(rules, "best_of_several", lambda d, sign: mean_beyond(d.T[d.mean(axis=0).argmax()], sign))
    assert false_bests() > limit(150)


# Error rates at the boundary of every rule. `python -m benchmarks claims` is the same with more runs.

BOUNDARY_RUNS = 600


def by_signs(columns: np.ndarray, at_least: float) -> Evidence:
    """The rule as it was: the share of signs, when all means are drawn together from Student's t."""
    n, rng = len(columns), np.random.default_rng(0)
    means = columns.mean(axis=0)
    z = rng.normal(size=(300, n)) / np.sqrt(n * rng.chisquare(n - 1, size=(300, 1)))
    drawn = ((means + z @ (columns - means)) > 0).mean(axis=1)
    share = float((means > 0).mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    decided = min(low, share) > at_least, max(high, share) < at_least
    return Evidence(share, None, None, *(0.0 if yes else 1.0 for yes in decided))


def in_how_many(draw: Callable[[np.random.Generator, int], Evidence], seeds: int, runs: int = BOUNDARY_RUNS) -> int:
    rng = np.random.default_rng(seeds)
    found = [two_sided(draw(rng, seeds)) for _ in range(runs)]
    return sum(p is not None and p < ALPHA for p in found)


def most(runs: int) -> int:
    """The 99.9 % quantile of the number of false verdicts at the level of 5 %."""
    return int(binom.ppf(0.999, runs, 0.05))


@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("sign", [1, -1])
def test_types_hardly_on_the_other_side_decide_nothing(seeds: int, sign: int, shared: float) -> None:
    """Of 18 types 9 are far on one side and 9 next to nothing on the other: a count of signs is sure of a majority."""
    effect = sign * np.repeat([8, -1e-6], 9)

    def draw(test: Callable[..., Evidence]) -> Callable[[np.random.Generator, int], Evidence]:
        return lambda rng, n: test(effect + rng.normal(size=(n, 18)) + shared * rng.normal(size=(n, 1)), 0.5)

    assert in_how_many(draw(share_of_types), seeds) <= most(BOUNDARY_RUNS)
    assert in_how_many(draw(by_signs), seeds, 100) > most(100)


@pytest.mark.parametrize("case", list(boundaries.cases()), ids=lambda case: " - ".join(case[:3]))
def test_no_rule_decides_more_often_than_its_level_at_its_boundary(case: boundaries.Case, monkeypatch: Patch) -> None:
    monkeypatch.setattr(boundaries, "RESAMPLES", 100)
    runs = 200 if case.rule.startswith("Correlation") else BOUNDARY_RUNS
    assert in_how_many(case.draw, 5, runs) <= most(runs)


def test_the_boundary_cases_would_notice_a_rule_without_correction() -> None:
    """Mutants: the best of eight, and one of eight steps, tested as if they had been chosen beforehand."""

    def picked(rng: np.random.Generator, n: int) -> Evidence:
        columns = rng.normal(size=(n, 8))
        return mean_beyond(columns[:, columns.mean(axis=0).argmax()], 1)

    assert in_how_many(picked, 5) > most(BOUNDARY_RUNS)


def test_a_share_of_types_is_bounded_by_holm() -> None:
    """By hand: p-values of four types and Holm's steps 4, 3, 2, 1."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(6, 4)) + np.array([5, 4, 0.5, -3])
    p = np.sort(above_zero(columns))
    adjusted = np.maximum.accumulate(np.minimum(1, p * [4, 3, 2, 1]))
    made = share_of_types(columns, 0.25)
    assert made.supports == pytest.approx(adjusted[1])  # more than a quarter of four: two at least
    assert made.low == (adjusted < 0.025).mean()
    below = np.sort(above_zero(-columns))
    assert share_of_types(columns, 1.0 - 1e-6).contradicts == pytest.approx(4 * below[0])
    assert [fewest_types(share, m) for share, m in ((0.5, 18), (0.5, 17), (0.29, 100), (0.0, 3))] == [10, 9, 30, 1]
    assert share_of_types(columns, 0.0).contradicts == 1.0  # no share is below 0


def test_the_share_of_one_type_is_students_test() -> None:
    d = np.array([0.3, -0.1, 0.2, 0.4, 0.1])
    alone, share = mean_beyond(d, 1), share_of_types(d[:, None], 0.5)
    assert (share.supports, share.contradicts) == (alone.supports, alone.contradicts)


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_agree_with_intervals(sign: int) -> None:
    """A test is decided just where its interval lies wholly on one side."""
    rng = np.random.default_rng(1)
    decided = 0
    for _ in range(300):
        columns = rng.normal(size=(6, 5)) + 3 * rng.normal() + rng.normal(size=5)
        for made, at in (
            (mean_beyond(columns[:, 0], sign), 0.0),
            (least_of_all(columns, sign), 0.0),
            (best_of_several(columns, sign), 0.0),
            (share_of_types(sign * columns, 0.4), 0.4),
        ):
            assert made.low is not None
            assert made.high is not None
            assert made.low <= made.value <= made.high  # type: ignore[operator]
            up, down = made.low > at, made.high < at
            if sign < 0 and at == 0:
                up, down = down, up
            assert ((made.supports or 0) < ALPHA / 2, (made.contradicts or 0) < ALPHA / 2) == (up, down)
            decided += up or down
    assert decided > 300


def test_seeds_that_agree_exactly_are_judged_by_their_number() -> None:
    """Without a spread Student's t would be certain: five agree in 1 of 16 throws of a coin."""
    five, six = (mean_beyond(np.full(n, 0.002), 1) for n in (5, 6))
    assert (five.supports, six.supports) == (1 / 32, 1 / 64)
    assert (two_sided(five), two_sided(six)) == (1 / 16, 1 / 32)
    assert (five.low, five.why) == (None, "all 5 seeds agree exactly, which a coin does in 1 of 16")
    none = mean_beyond(np.zeros(8), 1)
    assert (none.supports, none.contradicts) == (1.0, 1.0)
    rounded = np.array([0.502, 0.902, 0.102, 0.302, 0.702]) - [0.5, 0.9, 0.1, 0.3, 0.7]
    assert rounded.std() > 0
    assert mean_beyond(rounded, 1).supports == 1 / 32


def test_slopes_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 7))
    found = slopes(x, y)
    assert found == pytest.approx([np.polyfit(a, b, 1)[0] for a, b in zip(x, y, strict=True)], abs=1e-12)
    assert slopes(np.ones((2, 3)), y[:2, :3]) is None


def test_an_interaction_says_what_it_asks_and_how_much() -> None:
    test = Interaction(SELECTIVITY, Measure("a"), Measure("b"), 1, "R*")
    assert str(test) == (
        "The slope of a on clean images on class selectivity on clean images, less that of b on clean images, over R*, "
        "is above 0."
    )
    row = judge([claim(test)], sloped(0.1)).row(0, named=True)
    assert row["value"] == pytest.approx(0.1, abs=0.03)
    assert (row["effect"], row["networks"], row["seeds"]) == ("slope less slope", 40, 8)
    gone = sloped(0.1).filter((pl.col("metric") != "a") | (pl.col("seed") != 2) | (pl.col("recipe") != SWEEP[0]))
    assert judge([claim(test)], gone)["seeds"][0] == 7


# Claims.


def given(p: float | None, side: str = SUPPORTED) -> Rule:
    """A test with this two-sided p-value."""
    one_sided = (None, None) if p is None else (p / 2, 1.0) if side == SUPPORTED else (1.0, p / 2)

    class Given:
        def __call__(self, table: pl.DataFrame) -> Outcome:
            return Outcome("given", 1.0, supports=one_sided[0], contradicts=one_sided[1])

        def __str__(self) -> str:
            return "It is given."

    return Given()


YES, NO, OPEN, MUTE = given(0.001), given(0.001, CONTRADICTED), given(0.3), given(None)


def joins_by_and(join: Callable[..., Any]) -> bool:
    table = ladder([0, 0.1])
    pairs = {
        (YES, YES): SUPPORTED,
        (YES, OPEN): NOT_DECIDED,
        (YES, NO): CONTRADICTED,
        (OPEN, OPEN): NOT_DECIDED,
        (OPEN, NO): CONTRADICTED,
        (NO, NO): CONTRADICTED,
        (YES, MUTE): NOT_DECIDED,
        (NO, MUTE): CONTRADICTED,
        (MUTE, MUTE): NOT_DECIDED,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "joint", join)
        return all(
            judge([claim(*order)], table)[column][0] == expected
            for pair, expected in pairs.items()
            for order in (pair, pair[::-1])
            for column in ("verdict", "alone")
        )


def test_a_claim_holds_if_all_its_parts_do() -> None:
    assert joins_by_and(joint)
    assert not joins_by_and(lambda each, corrected, sides: (joint(each, corrected, sides)[0], SUPPORTED))
    assert not joins_by_and(lambda each, corrected, sides: (each[0], sides[0]))
    made = judge([claim(YES, OPEN)], ladder([0, 0.1]))
    assert made["verdict"].to_list() == [NOT_DECIDED, SUPPORTED, NOT_DECIDED]
    assert made["part"].to_list() == [None, "part 0", "part 1"]
    assert made["test"].to_list() == [None, "It is given.", "It is given."]
    assert made["statement"].unique().to_list() == ["It is so."]


def test_parts_are_corrected_against_a_claim_and_not_for_it() -> None:
    """Both must hold, so the larger p counts; one that fails is enough, so its p is corrected for there being two."""
    for pair, p, alone in (
        ((given(0.03), given(0.04)), 0.04, SUPPORTED),
        ((given(0.03, CONTRADICTED), given(0.5)), 0.06, NOT_DECIDED),
        ((given(0.03, CONTRADICTED), given(0.001)), 0.03, CONTRADICTED),  # Holm: the other is decided first
    ):
        row = judge([claim(*pair)], ladder([0, 0.1])).row(0, named=True)
        assert (row["p"], row["alone"]) == (pytest.approx(p), alone)


def several(*p: float | None) -> pl.DataFrame:
    claims = [Claim(f"c{i}", "s", "s", (("part", given(one)),)) for i, one in enumerate(p)]
    return judge(claims, ladder([0, 0.1]))


def test_claims_judged_together_are_corrected_for_their_number() -> None:
    """Holm by hand: 0.04 stays, 0.02 doubles, 0.001 trebles; a test without p counts for nothing."""
    made = several(0.02, 0.001, 0.04, None)
    assert made["p"].to_list() == pytest.approx([0.02, 0.001, 0.04, None])
    assert made["p_holm"].to_list() == pytest.approx([0.04, 0.003, 0.04, None])
    assert made["verdict"].to_list() == [SUPPORTED, SUPPORTED, SUPPORTED, NOT_DECIDED]
    made = several(0.03, 0.04)
    assert made["alone"].to_list() == [SUPPORTED, SUPPORTED]
    assert made["verdict"].to_list() == [NOT_DECIDED, NOT_DECIDED]
    assert several(0.03)["verdict"].to_list() == [SUPPORTED]


def test_parts_of_all_claims_are_one_family() -> None:
    both = [claim(given(0.01), given(0.02)), Claim("d", "s", "s", (("part", given(0.04)),))]
    made = judge(both, ladder([0, 0.1]))
    assert made["p_holm"].to_list() == pytest.approx([0.04, 0.03, 0.04, 0.04])
    assert made["p"].to_list() == pytest.approx([0.02, 0.01, 0.02, 0.04])
    assert made["verdict"].to_list() == [SUPPORTED] * 4


def test_a_study_without_effects_is_rarely_sure_of_anything() -> None:
    """200 studies of 20 claims, none of which holds; judged each by itself, as they were, most would decide one."""
    rng = np.random.default_rng(0)
    studies = [above_zero(columns) for columns in rng.normal(size=(200, 5, 20))]
    two = [list(2 * np.minimum(p, 1 - p)) for p in studies]
    assert sum(any(p < ALPHA for p in judging.holm(each)) for each in two) <= most(200)
    assert sum(any(p < ALPHA for p in each) for each in two) > most(200)


def test_three_seeds_decide_nothing_whatever_the_effect() -> None:
    """The power calculation of four standard deviations asks for three; the least of all rules is five."""
    assert seeds_needed(4.0, 0.8) == 3
    row = judge([claim(Difference(A, B, effect=4.0))], ladder([0, 0.1], 4)).row(0, named=True)
    assert (row["verdict"], row["note"], row["p"]) == (NOT_DECIDED, "needs 5 seeds, has 4", None)
    assert verdict(Difference(A, B, effect=4.0), ladder([0, 0.1], 5)) == SUPPORTED


def test_verdicts_have_a_fixed_schema() -> None:
    assert dict(judge([], ladder([0, 0.1])).schema) == CLAIM_SCHEMA
    made = judge([claim(Difference(A, B), differs="Smaller.", assumptions="None.")], ladder([0, 0.1]))
    assert dict(made.schema) == CLAIM_SCHEMA
    row = made.row(0, named=True)
    assert (row["part"], row["differs"], row["assumptions"], row["source"]) == (None, "Smaller.", "None.", "A paper")
    assert row["test"] == "Accuracy on clean images, R(alpha=-1) less R(alpha=-2), is above 0."


def test_judging_twice_gives_the_same() -> None:
    claims = [claim(UP, Types(ACCURACY, SWEEP[0], SWEEP[1]))]
    shuffled = tied(1.0).sample(fraction=1.0, shuffle=True, seed=1)
    assert judge(claims, tied(1.0)).equals(judge(claims, tied(1.0)))
    assert judge(claims, tied(1.0)).equals(judge(claims, shuffled))


def test_models_and_data_sets_are_not_mixed() -> None:
    one = ladder([0, 0.1])
    for column, words in (("model", "models"), ("dataset", "data sets")):
        other = ladder([0, -0.1]).with_columns(pl.lit("other").alias(column), job="o" + pl.col("job"))
        both = pl.concat([one, other])
        made = judge([claim(Difference(A, B))], both)
        assert (made["verdict"][0], made["note"][0]) == (NOT_DECIDED, f"mixes 2 {words}: name one in the claim")
        assert judge([claim(Difference(A, B), **{column: "other"})], both)["verdict"][0] == CONTRADICTED
        assert judge([claim(Difference(A, B), **{column: one[column][0]})], both)["verdict"][0] == SUPPORTED
        nothing = judge([claim(Difference(A, B), **{column: "x"})], both)
        assert nothing["note"][0] == "no rows for its data set and model, with recipe and seed"


def test_two_networks_of_one_recipe_and_seed_are_not_guessed_at() -> None:
    table = ladder([0, 0.1])
    again = table.filter((pl.col("recipe") == SWEEP[0]) & (pl.col("seed") == 3)).with_columns(job=pl.lit("again"))
    made = judge([claim(Difference(A, B))], pl.concat([table, again]))
    assert made["note"][0] == "the table has several networks of R(alpha=-2), seed 3: leave one"


def test_networks_without_seed_or_recipe_are_left_out() -> None:
    table = ladder([0, 0.1], 4)
    stray = frame([{**who(SWEEP[0], None), **CLEAN, "metric": "accuracy", "value": 0.5}])
    assert judge([claim(Difference(A, B))], pl.concat([table, stray]))["seeds"][0] == 4


def test_bad_settings_are_refused() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Measure("accuracy", layers=(0.5, 0.5)), "no share of depth"),
        (lambda: Correlation(ACCURACY, ACCURACY, 0), "sign=0"),
        (lambda: Correlation(ACCURACY, ACCURACY, 1, rho=1.0), "rho=1"),
        (lambda: Correlation(ACCURACY, ACCURACY, 1, power=1.0), "power=1"),
        (lambda: Difference(A, B, effect=0.0), "effect=0"),
        (lambda: Increasing(ACCURACY, ("one",)), "at least two"),
        (lambda: Types(ACCURACY, "A", at_least=1.0), "at_least=1"),
        (lambda: Claim("c", "s", "s", ()), "at least one test"),
        (lambda: Claim("c", "s", "s", (("a", UP), ("a", UP))), "label of its own"),
        (lambda: judge([claim(UP), claim(UP)], tied(1.0)), "2 claims are named 'c'"),
    ]
    for make, message in wrong:
        with pytest.raises(GeophoneError, match=message):
            make()


# Files.


def test_verdicts_are_written_and_read(tmp_path: Path) -> None:
    made = judge([claim(UP, Difference(A, B))], tied(1.0))
    assert read_claims(tmp_path) is None
    assert write_claims(made, tmp_path / "out") == tmp_path / "out" / "claims.parquet"
    back = read_claims(tmp_path / "out")
    assert back is not None
    assert back.equals(made)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["claims.parquet"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Patch) -> None:
    made = judge([claim(UP)], tied(1.0))
    write_claims(made, tmp_path)

    write = Path.write_bytes

    def fails(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(GeophoneError, match=r"cannot write .*claims\.parquet: No space left on device"):
        write_claims(made.head(0), tmp_path)
    monkeypatch.undo()
    back = read_claims(tmp_path)
    assert back is not None
    assert back.equals(made)


@pytest.mark.parametrize("cut", [0, 4, 100])
def test_a_corrupt_file_is_one_clear_error(tmp_path: Path, cut: int) -> None:
    path = write_claims(judge([claim(UP)], tied(1.0)), tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(GeophoneError, match=r"claims\.parquet is corrupt"):
        read_claims(tmp_path)


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"claim": ["c"]}).write_parquet(tmp_path / "claims.parquet")
    with pytest.raises(GeophoneError, match="other columns"):
        read_claims(tmp_path)
