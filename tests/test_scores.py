"""Scores of corruptions: closed forms by hand, laws, and mutants that the checks reject."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from geophone.analysis.scores import EXTRA, GROUPS, SCORE_SCHEMA, STANDARD, scores, source_of, type_of, without_source
from geophone.core import table as tables
from geophone.core.errors import GeophoneError
from geophone.core.table import frame
from geophone.metrics.outcomes import wilson

room = import_module("geophone.analysis.scores")  # the module, which has a function of its name

Accuracies = Mapping[tuple[str, float], float]


def rows_of(
    accuracy: Accuracies,
    clean: float | None = 0.9,
    n: int | None = 1000,
    source: str = "preset='cifar10'",
    **who: Any,
) -> Iterable[dict[str, Any]]:
    """One network's rows. Intervals are Wilson's of n, or none."""
    network = {"job": "a", "dataset": "data", "model": "net", "recipe": "Standard", "seed": 0, "d": 10, "n": n, **who}

    def row(value: float, **where: Any) -> dict[str, Any]:
        low, high = (None, None) if n is None else wilson(value, n)
        return {**network, **where, "metric": "accuracy", "value": value, "low": low, "high": high}

    if clean is not None:
        yield row(clean, family="clean", perturbation="clean", level=0.0)
    for (name, severity), value in accuracy.items():
        yield row(value, family="corruption", perturbation=f"{name}({source})" if source else name, level=severity)


def everywhere(value: float, names: Iterable[str] = STANDARD) -> dict[tuple[str, float], float]:
    return {(name, float(s)): value for name in names for s in range(1, 6)}


def whole_of(found: pl.DataFrame) -> pl.DataFrame:
    """The rows over all types and severities."""
    return found.filter(pl.col("corruption").is_null() & pl.col("severity").is_null())


def pick(
    found: pl.DataFrame, metric: str, corruption: str | None = None, severity: float | None = None
) -> dict[str, Any]:
    """The one row of a score."""
    part = found.filter(
        (pl.col("metric") == metric)
        & pl.col("corruption").eq_missing(pl.lit(corruption, pl.String))
        & pl.col("severity").eq_missing(pl.lit(severity, pl.Float64))
    )
    assert len(part) == 1, (metric, corruption, severity, len(part))
    return part.row(0, named=True)


def simulated(seed: int, names: Iterable[str] = (*STANDARD, *EXTRA)) -> dict[tuple[str, float], float]:
    rng = np.random.default_rng(seed)
    return {key: round(float(rng.uniform(0.2, 0.85)), 3) for key in everywhere(0, names)}


# Which corruptions.


def test_the_published_names() -> None:
    assert len(STANDARD) == 15
    assert len(EXTRA) == 4
    assert sorted((*STANDARD, *EXTRA)) == sorted(name for group in GROUPS.values() for name in group)
    assert set(STANDARD).isdisjoint(EXTRA)


def test_names_in_the_table_are_read() -> None:
    for text, name, source, rest in (
        ("fog(preset='cifar10')", "fog", "preset='cifar10'", "fog"),
        ("frost(preset='imagenet', pictures='drawn')", "frost", "preset='imagenet'", "frost(pictures='drawn')"),
        ("frost(pictures='drawn', preset='imagenet')", "frost", "preset='imagenet'", "frost(pictures='drawn')"),
        ("fog(published='cifar10_c')", "fog", "published='cifar10_c'", "fog"),
        ("Blot(size=3)", "Blot", None, "Blot(size=3)"),
        ("fog", "fog", None, "fog"),
    ):
        assert (type_of(text), source_of(text), without_source(text)) == (name, source, rest)


# Mean accuracies, by hand.


HAND = {("fog", 1.0): 0.8, ("fog", 3.0): 0.6, ("snow", 1.0): 0.5, ("snow", 3.0): 0.1, ("spatter", 1.0): 0.0}


def test_means_by_hand() -> None:
    found = scores(frame(rows_of(HAND, clean=0.9, n=None)))
    assert found.schema == SCORE_SCHEMA
    for (name, severity), value in HAND.items():
        assert pick(found, "corruption_accuracy", name, severity)["value"] == value
    means = {"fog": 0.7, "snow": 0.3, "spatter": 0.0}
    for name, value in means.items():
        assert pick(found, "corruption_accuracy", name)["value"] == pytest.approx(value, abs=1e-12)
    assert pick(found, "corruption_accuracy", None, 1.0)["value"] == pytest.approx(0.65, abs=1e-12)  # without spatter
    assert pick(found, "corruption_accuracy", None, 3.0)["value"] == pytest.approx(0.35, abs=1e-12)
    for metric, value in (
        ("corruption_accuracy", 0.5),
        ("corruption_accuracy_relative", 0.5 / 0.9),
        ("corruption_accuracy_above_chance", (0.5 - 0.1) / 0.9),
    ):
        whole = pick(found, metric)
        assert whole["value"] == pytest.approx(value, abs=1e-12)
        assert whole["note"] == "over 2 of the 15 standard corruptions: snow, fog; severities 1, 3"
    assert pick(found, "corruption_accuracy_above_chance", "snow", 3.0)["value"] == pytest.approx(0, abs=1e-12)
    assert pick(found, "corruption_accuracy_relative", "fog")["value"] == pytest.approx(0.7 / 0.9, abs=1e-12)


def test_types_count_alike_however_many_severities_they_have() -> None:
    uneven = {("fog", 1.0): 0.8, ("snow", 1.0): 0.5, ("snow", 2.0): 0.3, ("snow", 3.0): 0.1}
    whole = pick(scores(frame(rows_of(uneven))), "corruption_accuracy")
    assert whole["value"] == pytest.approx((0.8 + 0.3) / 2, abs=1e-12)
    assert whole["value"] != pytest.approx(np.mean(list(uneven.values())), abs=0.01)  # the mutant: over conditions
    assert whole["note"].endswith("; not all at the same severities")


def test_the_four_extra_ones_and_plugins_are_scored_but_are_in_no_mean() -> None:
    table = frame(rows_of({**everywhere(0.5), **everywhere(0.1, EXTRA), ("Blot", 0.25): 0.2}))
    found = scores(table)
    assert pick(found, "corruption_accuracy")["value"] == pytest.approx(0.5, abs=1e-12)
    assert pick(found, "corruption_accuracy")["note"] == "over the 15 standard corruptions"
    for name in EXTRA:
        assert pick(found, "corruption_accuracy", name)["value"] == pytest.approx(0.1, abs=1e-12)
    assert pick(found, "corruption_accuracy", "Blot", 0.25)["value"] == 0.2
    assert pick(scores(frame(rows_of(everywhere(0.1, EXTRA)))), "corruption_accuracy")["note"] == room.NONE_STANDARD


def test_a_mean_says_what_is_missing() -> None:
    found = scores(frame(rows_of(everywhere(0.5, STANDARD[:-1]))))
    assert pick(found, "corruption_accuracy")["note"] == (
        f"over 14 of the 15 standard corruptions, without {STANDARD[-1]}"
    )


def test_what_is_undefined_is_null_and_says_why() -> None:
    for arguments, metric, said in (
        ({"clean": None}, "corruption_accuracy_relative", "no accuracy on clean images"),
        ({"clean": 0.0}, "corruption_accuracy_relative", "clean accuracy is 0"),
        ({"d": None}, "corruption_accuracy_above_chance", "how many classes"),
        ({"d": 1}, "corruption_accuracy_above_chance", "one class"),
    ):
        row = pick(scores(frame(rows_of(everywhere(0.5), **arguments))), metric)
        assert row["value"] is row["low"] is row["high"] is None
        assert said in row["note"]


# mCE, by hand and against the paper's formula.


def test_mce_by_hand() -> None:
    """Fog: (.2 + .4)/(.4 + .8) = 1/2; snow: (.5 + .9)/(.3 + .4) = 2. Less clean errors .1 and .2: .4/.8, 1.2/.3."""
    its = {("fog", 1.0): 0.6, ("fog", 3.0): 0.2, ("snow", 1.0): 0.7, ("snow", 3.0): 0.6}
    mine = {key: value for key, value in HAND.items() if key[0] != "spatter"}
    table = frame([*rows_of(mine, clean=0.9, n=None), *rows_of(its, clean=0.8, n=None, job="b", recipe="Other")])
    found = scores(table, "Other").filter(pl.col("job") == "a")
    for metric, corruption, value in (
        ("ce", "fog", 0.5),
        ("ce", "snow", 2.0),
        ("mce", None, 1.25),
        ("relative_ce", "fog", 0.5),
        ("relative_ce", "snow", 4.0),
        ("relative_mce", None, 2.25),
    ):
        assert pick(found, metric, corruption)["value"] == pytest.approx(value, abs=1e-12)
    assert pick(found, "mce")["note"] == "over 2 of the 15 standard corruptions: snow, fog"


def papers(mine: Accuracies, its: Accuracies, clean: tuple[float, float]) -> tuple[float, float]:
    """Hendrycks & Dietterich's mCE and relative mCE, written out: quotients of sums, then their mean."""
    ce, relative = [], []
    for name in STANDARD:
        top = sum(1 - mine[name, s] for s in range(1, 6))
        bottom = sum(1 - its[name, s] for s in range(1, 6))
        ce.append(top / bottom)
        relative.append((top - 5 * (1 - clean[0])) / (bottom - 5 * (1 - clean[1])))
    return float(np.mean(ce)), float(np.mean(relative))


def mean_of_quotients(mine: Accuracies, its: Accuracies, clean: tuple[float, float]) -> tuple[float, float]:
    """A mutant: the mean of each severity's quotient."""
    conditions = [key for key in mine if key[0] in STANDARD]
    return (
        float(np.mean([(1 - mine[key]) / (1 - its[key]) for key in conditions])),
        float(np.mean([(clean[0] - mine[key]) / (clean[1] - its[key]) for key in conditions])),
    )


def quotient_of_all(mine: Accuracies, its: Accuracies, clean: tuple[float, float]) -> tuple[float, float]:
    """A mutant: errors averaged over everything before they are divided."""
    conditions = [key for key in mine if key[0] in STANDARD]
    top, bottom = (np.mean([1 - network[key] for key in conditions]) for network in (mine, its))
    return float(top / bottom), float((top - 1 + clean[0]) / (bottom - 1 + clean[1]))


def with_the_extra_ones(mine: Accuracies, its: Accuracies, clean: tuple[float, float]) -> tuple[float, float]:
    """A mutant: over all 19 types."""
    both = []
    for name in (*STANDARD, *EXTRA):
        top, bottom = (sum(1 - network[name, s] for s in range(1, 6)) for network in (mine, its))
        both.append((top / bottom, (top - 5 + 5 * clean[0]) / (bottom - 5 + 5 * clean[1])))
    return float(np.mean([a for a, _ in both])), float(np.mean([b for _, b in both]))


Formula = Callable[[Accuracies, Accuracies, tuple[float, float]], tuple[float, float]]


def agrees(formula: Formula) -> bool:
    """Whether `scores` gives the formula's mCE and relative mCE; 1e-12 is rounding of sums of 75 numbers."""
    mine, its = simulated(1), simulated(2)
    table = frame([*rows_of(mine, clean=0.95), *rows_of(its, clean=0.9, job="b", recipe="Other")])
    found = scores(table, "Other").filter(pl.col("job") == "a")
    values = [pick(found, metric)["value"] for metric in ("mce", "relative_mce")]
    return bool(np.allclose(values, formula(mine, its, (0.95, 0.9)), rtol=0, atol=1e-12))


def test_mce_is_the_papers() -> None:
    assert agrees(papers)
    for mutant in (mean_of_quotients, quotient_of_all, with_the_extra_ones):
        assert not agrees(mutant)


def test_the_baseline_itself_has_an_mce_of_one() -> None:
    table = frame(rows_of(simulated(3), clean=0.9))
    for name in ("a", "net", "Standard", "Standard, 0", "net, 0"):
        found = scores(table, name)
        for metric in ("mce", "relative_mce"):
            row = pick(found, metric)
            assert row["value"] == 1
        assert set(found.filter(pl.col("metric") == "ce")["corruption"]) == {*STANDARD, *EXTRA}
    other = frame(rows_of(simulated(3), clean=0.9, job="z"))
    assert scores(table, other).filter(pl.col("metric").str.ends_with("mce"))["value"].to_list() == [1, 1]


def test_a_type_under_which_the_baseline_is_perfect_has_no_ce() -> None:
    its = {**everywhere(0.5), **everywhere(1.0, ["fog"])}
    table = frame([*rows_of(everywhere(0.4)), *rows_of(its, clean=0.9, job="b", recipe="Other")])
    found = scores(table, "b").filter(pl.col("job") == "a")
    assert pick(found, "ce", "fog")["value"] is None
    assert pick(found, "ce", "fog")["note"] == "the baseline makes no error under fog"
    assert pick(found, "mce")["value"] is None
    assert pick(found, "mce")["note"] == "the baseline makes no error under fog"
    assert pick(found, "relative_mce")["note"] == "the baseline loses nothing under fog"
    assert pick(found, "ce", "snow")["value"] == pytest.approx(1.2, abs=1e-12)


def test_without_clean_images_there_is_no_relative_mce() -> None:
    mine, its = rows_of(everywhere(0.5)), rows_of(everywhere(0.4), clean=None, job="b", recipe="Other")
    row = pick(scores(frame([*mine, *its]), "b").filter(pl.col("job") == "a"), "relative_mce")
    assert (row["value"], row["note"]) == (None, "the baseline has no accuracy on clean images")


# Intervals.


def test_intervals_of_single_accuracies_are_the_rows() -> None:
    row = pick(scores(frame(rows_of(everywhere(0.5), n=400))), "corruption_accuracy", "fog", 2.0)
    assert (row["low"], row["high"]) == wilson(0.5, 400)
    assert row["n"] == 400


def covered(shared: float, draws: int = 400) -> dict[str, float]:
    """How often intervals hold the truth when conditions share a part of what makes an image hard.

    An image under a condition is right when a normal number, `shared` of whose variance is common to all conditions of
    the image, is below a threshold. 15 types × 2 severities, clean images, and a baseline on the same images.
    """
    rng = np.random.default_rng(5)
    n, names = 200, STANDARD
    quantile = {0.9: 1.2815515655446004, 0.5: 0.0, 0.3: -0.5244005127080407}
    truth = {
        "corruption_accuracy": 0.4,
        "corruption_accuracy_relative": 0.4 / 0.9,
        "corruption_accuracy_above_chance": (0.4 - 0.1) / 0.9,
        "mce": 1.0,
    }
    hits = dict.fromkeys(truth, 0)
    for _ in range(draws):
        common = rng.normal(size=n) * shared**0.5

        def share(p: float, common: np.ndarray = common) -> float:
            return float((common + rng.normal(size=n) * (1 - shared) ** 0.5 < quantile[p]).mean())

        table = frame(
            row
            for job in ("a", "b")
            for row in rows_of(
                {(name, s): share(p) for name in names for s, p in ((1.0, 0.5), (3.0, 0.3))},
                clean=share(0.9),
                n=n,
                job=job,
            )
        )
        found = scores(table, "b")
        for metric, true in truth.items():
            row = pick(found.filter(pl.col("job") == "a"), metric)
            hits[metric] += row["low"] <= true <= row["high"]
    return {metric: count / draws for metric, count in hits.items()}


@pytest.mark.parametrize("shared", [0.0, 0.9, 1.0], ids=["apart", "mostly together", "together"])
def test_intervals_of_means_and_quotients_are_never_too_narrow(shared: float) -> None:
    """At least 95 %, less 4 standard errors of 60 draws (0.11)."""
    assert min(covered(shared, 60).values()) >= 0.84


def test_an_interval_that_takes_conditions_for_independent_is_too_narrow() -> None:
    """The mutant, by hand: with conditions that go together, 1/√30 of the width is right far less often than 95 %."""
    rng = np.random.default_rng(6)
    n, conditions, hits = 200, 30, 0
    for _ in range(400):
        value = (rng.random(n) < 0.4).mean()  # the same images are wrong in every condition
        half = 1.96 * (0.24 / (n * conditions)) ** 0.5
        hits += abs(value - 0.4) <= half
    assert hits / 400 < 0.5


def test_a_difference_or_quotient_spans_both_intervals() -> None:
    span = room._Span
    assert room._difference(span(3.0, 2.0, 5.0), span(1.0, 0.5, 1.5)) == (2.0, 0.5, 4.5)
    assert room._quotient(span(3.0, 2.0, 6.0), span(1.0, 0.5, 2.0)) == (3.0, 1.0, 12.0)
    assert room._quotient(span(0.5, -1.0, 2.0), span(1.0, 0.5, 2.0)) == (0.5, -2.0, 4.0)
    assert room._quotient(span(3.0, 2.0, 6.0), span(1.0, -0.5, 2.0)) == (3.0, None, None)
    assert room._mean([span(1.0, 0.0, 2.0), span(3.0, 2.5, 3.5)]) == (2.0, 1.25, 2.75)
    assert room._mean([span(1.0, 0.0, 2.0), span(3.0)]) == (2.0, None, None)


# Several networks, sources and data sets.


def test_sources_and_data_sets_are_not_mixed() -> None:
    sources = ("preset='cifar10'", "published='cifar10_c'", "")
    table = frame(
        row
        for place, source in enumerate(sources)
        for row in rows_of(everywhere(0.5 + 0.1 * place), clean=None if place else 0.9, source=source)
    )
    whole = whole_of(scores(table, "a"))
    plain = whole.filter(pl.col("metric") == "corruption_accuracy")
    assert dict(plain.select("source", "value").iter_rows()) == pytest.approx(
        {"preset='cifar10'": 0.5, "published='cifar10_c'": 0.6, None: 0.7}, abs=1e-12
    )
    assert whole.filter(pl.col("metric") == "mce")["value"].to_list() == [1, 1, 1]
    two = pl.concat([frame(rows_of(everywhere(0.5))), frame(rows_of(everywhere(0.4), clean=0.5, dataset="other"))])
    relative = scores(two).filter(
        (pl.col("metric") == "corruption_accuracy_relative")
        & pl.col("corruption").is_null()
        & pl.col("severity").is_null()
    )
    assert dict(relative.select("dataset", "value").iter_rows()) == pytest.approx(
        {"data": 0.5 / 0.9, "other": 0.8}, abs=1e-12
    )


def test_other_rows_change_nothing() -> None:
    rows = list(rows_of(simulated(4)))
    own = scores(frame(rows))
    base = rows[1]
    more = [
        {**base, "metric": "loss", "value": 3.0},
        {**base, "metric": "robust_accuracy", "family": "attack", "perturbation": "LinfPGD", "level": 0.1},
        {**base, "metric": "half_accuracy_eps", "family": "attack", "perturbation": "LinfPGD", "level": None},
        {**base, "family": "noise", "perturbation": "GaussianNoise", "level": 0.1},
        {**base, "layer": "l", "depth": 0},
        {**base, "family": None, "perturbation": None, "level": None, "metric": "training_loss"},
        {**base, "job": "clean only", "family": "clean", "perturbation": "clean", "level": 0.0},
        base,  # the same row twice
    ]
    assert scores(frame([*rows, *more])).equals(own)
    assert scores(tables.empty()).is_empty()
    assert scores(frame(rows[:1])).is_empty()


def drawn(table: pl.DataFrame, pictures: str) -> pl.DataFrame:
    """The same rows with frost from these pictures."""
    named = pl.col("perturbation").str.replace(r"^frost\((.*)\)$", f"frost($1, pictures='{pictures}')")
    return table.with_columns(perturbation=named)


def test_frost_from_other_pictures_is_not_compared() -> None:
    def a_and_b(mine: str, its: str) -> pl.DataFrame:
        parts = frame(rows_of(everywhere(0.5))), frame(rows_of(everywhere(0.4), job="b", recipe="Other"))
        table = pl.concat([drawn(parts[0], mine), drawn(parts[1], its)])
        return scores(table, "b").filter(pl.col("job") == "a")

    found = a_and_b("published", "procedural")
    said = "frost is from published pictures, the baseline's from procedural ones"
    for metric, corruption in (("ce", "frost"), ("mce", None), ("relative_ce", "frost"), ("relative_mce", None)):
        row = pick(found, metric, corruption)
        assert row["value"] is None
        assert row["note"].startswith(said)
    assert pick(found, "ce", "fog")["value"] == pytest.approx(0.5 / 0.6)
    assert pick(found, "corruption_accuracy")["note"] == "over the 15 standard corruptions"

    for pictures in ("published", "procedural"):
        alike = a_and_b(pictures, pictures)
        assert pick(alike, "mce")["value"] == pytest.approx(0.5 / 0.6)
        procedural = pictures == "procedural"
        for metric, severity in (("mce", None), ("corruption_accuracy", None), ("corruption_accuracy", 3.0)):
            note = pick(alike, metric, severity=severity)["note"]
            assert note.endswith("; frost from procedural pictures") == procedural


# Errors.


BAD: dict[str, tuple[list[dict[str, Any]], Any, str]] = {
    "unknown baseline": (
        [*rows_of(everywhere(0.5))],
        "Standart",
        "unknown baseline 'Standart'. Did you mean 'Standard'",
    ),
    "two networks of a name": (
        [*rows_of(everywhere(0.5)), *rows_of(everywhere(0.5), job="b", seed=1)],
        "Standard",
        r"must be one network, but 2 are meant: 'Standard, 0' \(job a\), 'Standard, 1' \(job b\)",
    ),
    "two networks in a table": (
        [*rows_of(everywhere(0.5))],
        frame([*rows_of(everywhere(0.5)), *rows_of(everywhere(0.5), job="b", seed=1)]),
        "must be one network, but 2 are meant",
    ),
    "a type missing from the baseline": (
        [*rows_of(everywhere(0.5)), *rows_of(everywhere(0.5, STANDARD[1:]), job="b", seed=1)],
        "b",
        f"same standard corruptions and severities in both: the baseline lacks {STANDARD[0]} at 1, 2, 3, 4, 5. Measure",
    ),
    "a severity missing from the network": (
        [
            *rows_of({k: v for k, v in everywhere(0.5).items() if k not in {("fog", 3.0), ("fog", 4.0)}}),
            *rows_of(everywhere(0.5), job="b", seed=1),
        ],
        "b",
        "the network 'Standard, 0' lacks fog at 3, 4. Measure",
    ),
    "many types missing": (
        [*rows_of(everywhere(0.5, ["fog"])), *rows_of(everywhere(0.5), job="b", seed=1)],
        "b",
        "and 9 more types",
    ),
    "another preset": (
        [*rows_of(everywhere(0.5)), *rows_of(everywhere(0.5), job="b", seed=1, source="preset='imagenet'")],
        "b",
        r"data \(preset='cifar10'\), the baseline on those of data \(preset='imagenet'\)",
    ),
    "another data set": (
        [*rows_of(everywhere(0.5)), *rows_of(everywhere(0.5), job="b", seed=1, dataset="other")],
        "b",
        r"corruptions of data \(.*the baseline on those of other",
    ),
    "a baseline without corruptions": ([*rows_of(everywhere(0.5))], frame(rows_of({})), "on those of nothing"),
    "the same condition twice": (
        [*rows_of({("fog", 1.0): 0.5}), *rows_of({("fog", 1.0): 0.6})],
        None,
        "'Standard, 0' has two accuracies on fog at severity 1",
    ),
    "clean images twice": (
        [*rows_of({("fog", 1.0): 0.5}), *rows_of({}, clean=0.8)],
        None,
        "two accuracies on clean images",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error(what: str) -> None:
    rows, baseline, said = BAD[what]
    with pytest.raises(GeophoneError, match=said) as caught:
        scores(frame(rows), baseline)
    assert "\n" not in str(caught.value)


def test_extra_types_need_not_be_in_both() -> None:
    table = frame([*rows_of(simulated(1)), *rows_of(simulated(2, STANDARD), job="b", recipe="Other")])
    found = scores(table, "b").filter(pl.col("job") == "a")
    assert set(found.filter(pl.col("metric") == "ce")["corruption"]) == set(STANDARD)
    assert pick(found, "mce")["value"] > 0


def test_scores_work_without_torch() -> None:
    """In a package without its `__init__`, which imports everything."""
    folder = Path(tables.__file__).parents[1]
    code = (
        "import sys, types; package = types.ModuleType('geophone'); package.__path__ = [sys.argv[1]];"
        "sys.modules['geophone'] = package; import geophone.analysis.scores; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
