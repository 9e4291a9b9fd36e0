"""`alike`: its interval covers, its control is what unrelated responses have, its warnings and errors are said."""

import math
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.metrics import Alike, Undefined, alike, metric
from geophone.metrics.similarity.pairwise import ENDS
from geophone.stats import CrossMoments, Moments, PairSample


def normal(n, d, *names):
    return torch.randn(n, d, generator=stream("alike", n, d, *names), dtype=torch.float64)


SPREAD = torch.tensor([2, 1.5, 1, 1, 0.5]).double()
MIX = normal(5, 4, "mix")


def related(n, i=0):
    """Normal responses whose population CKA is known."""
    x = normal(n, 5, "x", i) * SPREAD
    return x, x @ MIX + 1.5 * normal(n, 4, "y", i)


def population():
    """‖Σ_xy‖² / (‖Σ_x‖ ‖Σ_y‖)."""
    within = torch.diag(SPREAD**2)
    cross = within @ MIX
    return float(cross.square().sum() / (within.norm() * (MIX.T @ cross + 1.5**2 * torch.eye(4).double()).norm()))


def test_the_interval_covers_a_known_value_as_often_as_it_says():
    """80 data sets of n = 200. At 95 %, fewer than 69 of them are covered once in 400 times, all of them once in 60.

    Mutants: intervals that are √3 too narrow, as those of three quarters of the rows without their factor, and too wide
    by as much, as those of quarters.
    """
    found = [alike(*related(200, i), resamples=25, shuffles=0)[0] for i in range(80)]
    true = population()
    half = np.array([(one.high - one.low) / 2 for one in found])
    value = np.array([one.value for one in found])

    def covered(factor):
        return np.sum(np.abs(value - true) <= factor * half)

    assert 69 <= covered(1) <= 79
    assert covered(1 / math.sqrt(3)) < 69
    assert covered(math.sqrt(3)) > 79
    # The width itself: the deviation over data sets is known to 8 %, the mean of the estimates to 2 %; three of these.
    assert np.mean(half) / 1.96 == pytest.approx(np.std(value, ddof=1), rel=0.25)


def test_the_interval_is_that_of_halves():
    """Written out, n odd: m = 20 of 41, and the factor √(20/21)."""
    x, y = related(41)
    generator = stream(3, "alike", "halves")
    halves = [torch.randperm(41, generator=generator)[:20] for _ in range(25)]
    values = np.array([METRICS["cka"](x[half], y[half]) for half in halves])
    found = alike(x, y, resamples=25, seed=3)[0]
    assert found.value == METRICS["cka"](x, y)
    error = values.std(ddof=1) * math.sqrt(20 / 21)
    assert found.high - found.value == pytest.approx(1.959963984540054 * error, abs=1e-12)
    assert found.value - found.low == pytest.approx(1.959963984540054 * error, abs=1e-12)
    assert found.high - found.value != pytest.approx(1.959963984540054 * values.std(ddof=1), abs=1e-6)


def test_drawing_with_replacement_would_repeat_rows():
    """Why halves: unrelated responses, n = 50, d = 200. Halves leave debiased CKA at 0; repeated rows make it large."""
    x, y = normal(50, 200, "one"), normal(50, 200, "other")
    generator = stream("with and without")
    halves = [torch.randperm(50, generator=generator)[:25] for _ in range(40)]
    again = [torch.randint(50, (50,), generator=generator) for _ in range(40)]
    for name in ("cka", "cka_rbf"):
        without, repeated = (np.mean([METRICS[name](x[i], y[i]) for i in drawn]) for drawn in (halves, again))
        assert abs(without) < 0.05
        assert repeated > 0.3


def test_the_control_is_what_unrelated_responses_have():
    """Biased CKA of shuffled noise: √(pq / ((n-1+p)(n-1+q))), within 3 %; debiased: 0. The first is warned of."""
    x, y = normal(64, 96, "left"), normal(64, 48, "right")
    biased, debiased = alike(x, y, ("cka_biased", "cka"), resamples=0)
    assert biased.control == pytest.approx(math.sqrt(96 * 48 / ((63 + 96) * (63 + 48))), rel=0.03)
    assert abs(debiased.control) < 0.03
    assert "biased for 64 images and these widths: shuffled rows have 0.5" in biased.note
    assert "where very many images would have 0" in biased.note
    assert debiased.note == ""
    assert (biased.low, biased.high) == (None, None)
    # Mutant: the rows as they are are no control.
    assert alike(x, x, resamples=0)[0].value - alike(x, x, resamples=0)[0].control > 0.9


def test_warnings_are_for_too_few_images_only():
    """No word where 1500 images have 3 units; some for every measure where 8 have 6, if only why it has no value."""
    x, y = normal(1500, 3, "x"), normal(1500, 3, "y")
    names = [name for name, m in METRICS.items() if name in ENDS and m.statistic is CrossMoments]
    assert [one.note for one in alike(x, y, names, resamples=0, shuffles=5)] == [""] * len(names)
    few = {one.measure: one.note for one in alike(normal(8, 6, "x"), normal(8, 6, "y"), tuple(ENDS), resamples=0)}
    assert all(few.values())
    # Debiased ones aren't biased there: they scatter.
    assert few["cka"].startswith("8 images are few: the value of shuffled rows scatters by ±0.")
    assert few["procrustes"].startswith("biased for 8 images and these widths")
    assert few["cca"].startswith("needs more images than units on both sides together")


def test_one_line_for_each_measure():
    x, y = related(60)
    found = alike(x, y, ["procrustes", "cka", "procrustes", "mutual_knn"], resamples=20, shuffles=3)
    assert [one.measure for one in found] == ["procrustes", "cka", "mutual_knn"]
    assert all((one.n, one.p, one.q) == (60, 5, 4) for one in found)
    assert all(one.low < one.value < one.high for one in found)
    assert found[1] == alike(x, y, "cka", resamples=20, shuffles=3)[0]
    assert found[1] != alike(x, y, "cka", resamples=20, shuffles=3, seed=1)[0]
    assert alike(x.numpy(), y.tolist(), "cka", resamples=0, shuffles=0)[0].value == found[1].value
    assert alike(x.float(), y.float(), "cka", resamples=0)[0].value == pytest.approx(found[1].value, abs=1e-6)
    assert alike(x, y, resamples=0, shuffles=0) == [Alike("cka", METRICS["cka"](x, y), None, None, 60, 5, 4, None, "")]
    with pytest.raises(FrozenInstanceError):
        found[0].value = 1.0


def test_all_rows_are_used():
    n = PairSample.most + 100
    x, y = normal(n, 2, "x"), normal(n, 2, "x") + normal(n, 2, "y")
    assert alike(x, y, "rsa_euclidean", resamples=0, shuffles=0)[0].value == METRICS["rsa_euclidean"](x, y)


@pytest.mark.parametrize("rank", [4, 300])
def test_wide_sides(rank):
    """300 columns of 40 images: the same values as from the columns themselves, those that units matter to as well."""
    x = normal(40, rank, "scores") @ normal(rank, 300, "axes") + 30
    y = x[:, :200] + 5 * normal(40, rank, "others") @ normal(rank, 200, "more axes")
    for one in alike(x, y, tuple(ENDS), resamples=0, shuffles=0):
        assert (one.p, one.q) == (300, 200)
        if one.value is None:
            with pytest.raises(Undefined, match="needs more images than units"):
                METRICS[one.measure](x, y)
        else:
            assert one.value == pytest.approx(METRICS[one.measure](x, y), abs=1e-9), one.measure
    assert {one.measure for one in alike(x, y, tuple(ENDS), resamples=0, shuffles=0) if one.value is None} == (
        set() if rank == 4 else {"cca", "r2_cca", "svcca", "pwcca", "linear_regression_r2"}
    )


def test_undefined_is_said():
    x, _ = related(30)
    found = alike(x, torch.full((30, 50), 1000.1), ("cka", "procrustes"), resamples=20)
    assert [(one.value, one.low, one.high, one.control) for one in found] == [(None,) * 4] * 2
    assert {one.note for one in found} == {"the responses do not vary"}
    # Halves of 15 images are too few for 9 directions twice, 30 are not.
    (one,) = alike(normal(30, 9, "x"), normal(30, 9, "y"), "cca", resamples=20, shuffles=0)
    assert one.value is not None
    assert one.low is None
    assert one.note.startswith("no interval: 20 of 20 halves have no value (needs more images than units")


@pytest.mark.parametrize(("marked", "interval"), [(7, True), (2, False)])
def test_a_few_undefined_halves_are_left_out(marked, interval):
    """A measure that needs one of the marked rows: a half has none of 7 in 1 of 128 times, none of 2 in 1 of 4."""

    @metric(PairSample, when="asked")
    def needs_a_marked_row(sample):
        if not bool((sample.a[:, 0] == 7).any()):
            raise Undefined("no marked row")
        return float((sample.a[:, 1] * sample.b[:, 1]).mean())

    x, y = related(100)
    x[:marked, 0] = 7
    (one,) = alike(x, y, ["needs_a_marked_row"])
    assert one.value == pytest.approx(float((x[:, 1] * y[:, 1]).mean()), abs=1e-12)
    assert (one.low is not None) == interval
    assert ("halves have no value (no marked row)" in one.note) == (not interval)
    # A plug-in's measure has no known ends, so no warning; its control is there.
    assert one.control is not None


def test_measures_of_the_same_units_compare_unit_by_unit():
    x = normal(30, 80, "same units")
    y = x + 0.1 * normal(30, 80, "moved")
    (one,) = alike(x, y, "normalised_distance", resamples=20)
    assert one.value == METRICS["normalised_distance"](x, y)
    assert one.low < one.value < one.high < 0.2 < 0.9 < one.control
    with pytest.raises(GeophoneError, match="80 and 79 units: a displacement is the difference of the same units"):
        alike(x, y[:, :79], "normalised_distance")


def with_nan(x):
    x = x.clone()
    x[3, 1] = torch.nan
    x[5, 0] = torch.inf
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), r"\[30, 5\] and \[29, 4\]: the numbers of rows differ"),
        (lambda x, y: (x, with_nan(y)), "2 of 30 rows of the second side have NaN or infinite values. Remove those"),
        (lambda x, y: (with_nan(x), y), "rows of the first side"),
        (lambda x, y: (x[:1], y[:1]), "at least two rows"),
        (lambda x, y: (x[:, :0], y), "a column on both sides"),
        (lambda x, y: (x, y.reshape(30, 2, 2)), r"these are \[30, 5\] and \[30, 2, 2\].*flatten"),
        (lambda x, y: (x[:, 0], y), r"these are \[30\] and"),
        (lambda x, y: (x, torch.complex(y, y)), "second side is complex"),
    ],
)
def test_data_that_cannot_be_compared(change, message):
    with pytest.raises(GeophoneError, match=message):
        alike(*change(*related(30)))


@pytest.mark.parametrize(
    ("measures", "options", "message"),
    [
        (["ckaa"], {}, "ckaa.*cka"),
        (["accuracy"], {}, "accuracy does not compare two sets of responses.*cka, "),
        (["perturbation_l2"], {}, "does not compare"),
        (["cka"], {"resamples": 5}, "resamples is 0 or at least 20"),
        (["cka"], {"shuffles": -1}, "shuffles 0 or more"),
    ],
)
def test_what_cannot_be_asked(measures, options, message):
    with pytest.raises(GeophoneError, match=message):
        alike(*related(30), measures, **options)


def test_a_measure_of_single_units_is_no_single_number():
    @metric(Moments, per_unit=True, when="asked")
    def of_units(moments):
        return moments.mean

    with pytest.raises(GeophoneError, match="by one number"):
        alike(*related(30), ["of_units"])


@pytest.mark.parametrize("fails", [False, True])
def test_small_matrices_are_worked_on_in_one_thread_and_the_caller_keeps_his(fails, monkeypatch):
    """Threads that wait for one another took 40 times as long as the work."""
    before, seen = torch.get_num_threads(), []
    compute = METRICS["cka"].compute

    def watched(statistic):
        seen.append(torch.get_num_threads())
        if fails:
            raise RuntimeError("the measure's own")
        return compute(statistic)

    monkeypatch.setitem(METRICS._things, "cka", replace(METRICS["cka"], compute=watched))
    x, y = torch.randn(40, 30, generator=stream("threads")), torch.randn(40, 30, generator=stream("more threads"))
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="own") if fails else nullcontext():
            alike(x, y, resamples=20, shuffles=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
