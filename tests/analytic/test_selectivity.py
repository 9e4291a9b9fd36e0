"""Closed forms of class selectivity (specification §10). All to 1e-9."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geophone.core.rng import stream
from geophone.core.types import Batch
from geophone.metrics import Undefined, class_selectivity, class_selectivity_floor, eta_squared, mean_response
from geophone.metrics.selectivity import EPS
from geophone.stats import ClassMeans

TOLERANCE = 1e-9


def selectivity(means, eps_free: bool = True):
    """SI of units given their class means `[k]` or `[k, d]`; scaled up so that eps = 1e-7 is below the tolerance.

    Of two equal images per class: one would be refused.
    """
    means = torch.as_tensor(means, dtype=torch.float64).reshape(len(means), -1)
    scale = 1e6 if eps_free else 1.0
    return class_selectivity((means * scale).repeat(2, 1), torch.arange(len(means)).repeat(2))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_of_a_ratio(ratio):
    """SI = (1 - r)/(1 + r) = tanh(ln(1/r)/2)."""
    found = selectivity([1.0, ratio]).item()
    assert found == pytest.approx((1 - ratio) / (1 + ratio), abs=TOLERANCE)
    if ratio > 0:
        assert found == pytest.approx(math.tanh(0.5 * math.log(1 / ratio)), abs=TOLERANCE)


def test_half_is_a_third():
    assert selectivity([2.0, 1.0, 1.0, 1.0]).item() == pytest.approx(1 / 3, abs=TOLERANCE)


def test_dead_unit_is_exactly_zero():
    assert selectivity([0.0] * 10).item() == 0.0


def test_one_hot():
    """m/(m + eps), with eps seen."""
    assert selectivity([0.5, 0.0, 0.0], eps_free=False).item() == pytest.approx(0.5 / (0.5 + EPS), abs=1e-12)


@pytest.mark.parametrize(
    ("classes", "k", "wanted"), [(10, 2, 0.8), (10, 5, 5 / 13), (200, 2, 198 / 200), (200, 100, 100 / 298)]
)
def test_k_equal_classes(classes, k, wanted):
    """k of C classes equal, the rest 0: (C - k)/(C + k - 2)."""
    found = selectivity([1.0] * k + [0.0] * (classes - k)).item()
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    assert wanted == pytest.approx((classes - k) / (classes + k - 2))


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_ramp(classes):
    """m_c = c: C/(3C - 4)."""
    assert selectivity([float(c) for c in range(classes)]).item() == pytest.approx(
        classes / (3 * classes - 4), abs=TOLERANCE
    )


@pytest.mark.parametrize(("shift", "wanted"), [(0, 0.5), (1, 1 / 3), (3, 0.2), (9, 1 / 11)])
def test_not_invariant_to_a_shift(shift, wanted):
    assert selectivity([3.0 + shift] + [1.0 + shift] * 9).item() == pytest.approx(wanted, abs=TOLERANCE)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    means=st.lists(st.floats(0.01, 10), min_size=2, max_size=12),
    scale=st.floats(1e-2, 1e4),
    seed=st.integers(0, 100),
)
def test_range_scale_and_class_order(means, scale, seed):
    found = selectivity(means).item()
    assert 0 <= found <= 1
    assert selectivity([m * scale for m in means]).item() == pytest.approx(found, abs=TOLERANCE)
    order = torch.randperm(len(means), generator=stream(seed))
    assert selectivity([means[i] for i in order]).item() == pytest.approx(found, abs=TOLERANCE)


def test_unbalanced_labels_do_not_make_a_constant_unit_selective():
    x = torch.full((10, 1), 1e6, dtype=torch.float64)
    y = torch.tensor([0] * 7 + [1, 1, 2])
    assert class_selectivity(x, y).item() == pytest.approx(0, abs=TOLERANCE)
    # Mutant: per-class sums in place of means, as one public implementation has it.
    means = ClassMeans.of(Batch(x, y, torch.arange(10)))
    sums = replace(means, mean=means.mean * means.count[:, None])
    assert class_selectivity(sums).item() > 0.5


def test_absent_class_does_not_enter_as_zero():
    """Dropping a class gives the SI of the remaining ones, whatever the label of the missing one."""
    without = selectivity([3.0, 1.0, 2.0]).item()
    x = torch.tensor([[3e6], [1e6], [2e6]], dtype=torch.float64)
    assert class_selectivity(x.repeat(2, 1), torch.tensor([0, 2, 4]).repeat(2)).item() == pytest.approx(
        without, abs=TOLERANCE
    )
    # Mutant: absent classes as zero means.
    assert selectivity([3.0, 0.0, 1.0, 0.0, 2.0]).item() > without + 0.1


def test_refuses_negative_responses_and_single_classes():
    with pytest.raises(Undefined, match="below 0"):
        selectivity([-1.0, 2.0])
    with pytest.raises(Undefined, match="two classes"):
        class_selectivity(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("metric", [class_selectivity, class_selectivity_floor, eta_squared])
@pytest.mark.parametrize("y", [list(range(10)), [0, 0, 1], [0] * 6 + list(range(1, 8))], ids=str)
def test_refuses_too_few_images_per_class(metric, y):
    """With one image per class selectivity is its own floor and all variance lies between the classes."""
    x = torch.rand(len(y), 3, generator=stream("few"), dtype=torch.float64)
    with pytest.raises(Undefined, match="needs at least 2 images per class"):
        metric(x, torch.tensor(y))


def test_the_range_of_the_floor_holds_other_shuffles():
    """Other shuffles' means over units scatter no more than it says, however alike the units are, and not far less."""
    generator = stream("range of the floor")
    shared = torch.rand(60, 1, generator=generator, dtype=torch.float64)
    noise = torch.rand(60, 20, generator=generator, dtype=torch.float64)
    for x, least in ((noise, 0.1), (shared + 0.1 * noise, 0.7)):
        y = torch.arange(3).repeat(20)
        low, high, _ = class_selectivity_floor.bounds(ClassMeans.of(Batch(x, y, torch.arange(60))))
        orders = [torch.randperm(60, generator=generator) for _ in range(200)]
        found = torch.stack([class_selectivity(x, y[order]).mean() for order in orders])
        # A standard deviation of 40 draws is known to 11 %, one of 200 shuffles to 5 %: room for three such errors.
        assert least < 2 * 1.96 * float(found.std()) / (high - low) < 1.4


@pytest.mark.parametrize(("n", "wanted"), [(1000, 0.0270), (500, 0.0382), (26, 0.152)])
def test_finite_sample_floor(n, wanted):
    """Exponential responses (CV 1) without class information, C = 10.

    For large n the formula E_C · C/(C-1) / (2 sqrt n) with E_C = 1.5388, a first order in 1/sqrt n; for n = 26 the
    simulated value of §10. The mean of 1,000 units is known to 1 %, the simulated value to three digits:
    allow three standard errors.
    """
    generator = stream("floor", n)
    x = -torch.rand(10 * n, 1000, generator=generator, dtype=torch.float64).log()
    y = torch.arange(10).repeat(n)  # the metric shuffles them
    assert class_selectivity_floor(x, y).mean().item() == pytest.approx(wanted, rel=0.03)


def test_the_floor_of_plain_tensors_is_shuffled():
    """A perfectly selective unit has selectivity 1 and a small floor."""
    y = torch.arange(10).repeat(50)
    x = (y == 3).double()[:, None]
    assert class_selectivity(x, y).item() > 0.99
    assert class_selectivity_floor(x, y).item() < 0.6


def test_eta_squared_is_the_share_of_variance_between_classes():
    """Two classes of means 0 and 2 with values at ±1 around them: between 1, within 1, per example."""
    x = torch.tensor([[-1.0], [1.0], [1.0], [3.0]]).double()
    y = torch.tensor([0, 0, 1, 1])
    assert eta_squared(x, y).item() == pytest.approx(0.5, abs=TOLERANCE)
    for moved in (x + 100, x * 7, -x):
        assert eta_squared(moved, y).item() == pytest.approx(0.5, abs=TOLERANCE)
    # Selectivity is not its like: it falls as the baseline rises, and unbalanced classes weigh alike in it.
    assert class_selectivity(x + 101, y) < class_selectivity(x + 2, y)
    unbalanced = torch.cat([x, x[2:], x[2:]]), torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    # Between: 8·(1/4)(3/4)·2² = 6; within: 8.
    assert eta_squared(*unbalanced).item() == pytest.approx(6 / 14, abs=TOLERANCE)


def test_eta_squared_of_classes_without_difference_is_its_floor():
    """(k - 1)/(n - 1) in expectation; its spread over 400 independent units is about 0.002/√400."""
    x = torch.randn(500, 400, generator=stream("eta"), dtype=torch.float64)
    assert eta_squared(x, torch.arange(500) % 10).mean().item() == pytest.approx(9 / 499, abs=0.002)


def test_a_unit_that_does_not_vary_has_no_eta_squared():
    x = torch.stack([torch.full((6,), 0.1), torch.arange(6.0), torch.zeros(6)], dim=1)
    found = eta_squared(x, torch.arange(6) % 2)
    assert found.isnan().tolist() == [True, False, True]
    with pytest.raises(Undefined, match="two classes"):
        eta_squared(x, torch.zeros(6, dtype=torch.int64))


def test_mean_response_is_the_baseline_that_selectivity_falls_with():
    x = torch.tensor([[1.0, 4.0], [3.0, 8.0]])
    assert mean_response(x).tolist() == [2.0, 6.0]
