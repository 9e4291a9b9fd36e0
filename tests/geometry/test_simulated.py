"""Simulated capacity: Cover's count, theory's closed forms, and separability against linear programs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry import simulated as module
from geophone.metrics.geometry.simulated import simulated_capacity

REPEATS = 400


def gaussian(name, *shape):
    return torch.randn(*shape, generator=stream(name, *shape), dtype=torch.float64)


def segments(p, d, radius):
    """Two points each: c ± R u, with c and u of length about 1 in random directions."""
    ends = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    return [c + radius * ends * u for c, u in gaussian("segments", p, 2, d) / d**0.5]


def share(made, n):
    return float((made.thresholds <= n).double().mean())


def covers(p, n):
    """Share of the labellings of points in general position that a hyperplane with a bias separates in n features."""
    return sum(math.comb(p - 1, k) for k in range(n + 1)) / 2 ** (p - 1)


def test_points_have_covers_count():
    p = 16
    rows = np.where(torch.rand(REPEATS, p, generator=stream("rows")).numpy() < 0.5, 1.0, -1.0)
    points = list(gaussian("points", p, 1, 40))
    made = simulated_capacity(points, repeats=REPEATS, dichotomies=rows)
    distance = max(abs(share(made, n) - covers(p, n)) for n in range(p))
    # Kolmogorov and Smirnov: 1.95/√REPEATS is passed once in 1,000 times.
    assert distance < 1.95 / REPEATS**0.5
    # Mutant: a hyperplane without a bias counts one feature less.
    assert max(abs(share(made, n) - covers(p, n - 1)) for n in range(1, p)) > 2 * 1.95 / REPEATS**0.5
    # N_c = P/2 − 1: half of the labels exactly.
    assert covers(p, p // 2 - 1) == 0.5
    assert made.low < p / (p / 2 - 1) < made.high


@pytest.mark.parametrize(("radius", "wanted"), [(0.5, 1.2576), (1.0, 1.0), (2.0, 0.83)])
def test_segments_have_the_theorys_capacity(radius, wanted):
    """For P → ∞, P/N = 1/(½ + 2 atan(R)/π); a bias is a feature, so P/(N_c + 1) is compared."""
    p = 60
    made = simulated_capacity(segments(p, 300, radius), repeats=100)
    # 60 segments of random lengths and angles are some 3 % from P → ∞, and N_c has its own error.
    slack = 0.03 * wanted + (made.high - made.low) / 2
    assert p / (made.critical + 1) == pytest.approx(wanted, abs=slack)
    assert 1.2 * wanted != pytest.approx(p / (made.critical + 1), abs=slack)


def test_nested_projections_have_the_law_of_independent_ones():
    manifolds, n = segments(12, 40, 0.7), 9
    made = simulated_capacity(manifolds, repeats=REPEATS)
    points, drawn, hits = torch.cat(manifolds), stream("independent"), 0
    for _ in range(REPEATS):
        y = torch.ones(12)
        y[torch.randperm(12, generator=drawn)[:6]] = -1
        matrix = torch.randn(40, n, generator=drawn, dtype=torch.float64)
        x = torch.cat([points @ (matrix / matrix.norm(dim=0)), torch.ones(24, 1)], 1) * y.repeat_interleave(2)[:, None]
        hits += linprog(np.zeros(n + 1), A_ub=-x.numpy(), b_ub=-np.ones(24), bounds=(None, None)).status == 0
    # Two binomial shares of REPEATS: 4 standard errors of their difference.
    slack = 4 * (2 * 0.25 / REPEATS) ** 0.5
    assert 0.2 < hits / REPEATS < 0.8
    assert share(made, n) == pytest.approx(hits / REPEATS, abs=slack)
    assert share(made, n + 2) != pytest.approx(hits / REPEATS, abs=slack)  # mutant: two features more


def test_each_test_of_separability_agrees_with_a_linear_program():
    found = {True: 0, False: 0}
    for i in range(150):
        x = gaussian("near the threshold", 20, 10)[:, : 7 + i % 4] + gaussian("more", 150, 20, 1)[i]
        y = np.repeat([1.0, -1.0], 10)
        x = x - x.mean(0)
        a = np.c_[x.numpy(), np.ones(20)] * y[:, None]
        wanted = linprog(np.zeros(a.shape[1]), A_ub=-a, b_ub=-np.ones(20), bounds=(None, None)).status == 0
        assert module._apart(x, y) == wanted
        found[wanted] += 1
    for i in range(40):
        x, y = gaussian("threshold", 40, 18, 8)[i], np.repeat([1.0, -1.0], 9)
        a = np.c_[x.numpy(), np.ones(18)] * y[:, None]
        wanted = linprog(np.zeros(9), A_ub=-a, b_ub=-np.ones(18), bounds=(None, None)).status == 0
        assert module._apart(x - x.mean(0), y) == wanted
        found[wanted] += 1
    assert min(found.values()) > 10  # both answers were put to the test


def test_what_is_not_found_out_goes_to_a_linear_program(monkeypatch):
    manifolds = segments(8, 20, 0.7)
    made = simulated_capacity(manifolds, repeats=20)
    monkeypatch.setattr(module, "separated", lambda x, side: None)
    torch.testing.assert_close(simulated_capacity(manifolds, repeats=20).thresholds, made.thresholds)
    monkeypatch.setattr(module, "separated", lambda x, side: True)  # mutant
    assert simulated_capacity(manifolds, repeats=20).capacity != made.capacity


@pytest.mark.parametrize("name", ["translation", "scale", "rotation", "features of 0", "every point twice"])
def test_invariance(name):
    manifolds = segments(8, 20, 0.7)
    turn = torch.linalg.qr(gaussian("turn", 20, 20)).Q
    change = {
        "translation": lambda x: x + 10,
        "scale": lambda x: 1e-3 * x,
        "rotation": lambda x: x @ turn,
        "features of 0": lambda x: torch.cat([x, torch.zeros(len(x), 30, dtype=x.dtype)], 1),
        "every point twice": lambda x: x.repeat(2, 1),
    }[name]
    made, other = (simulated_capacity(part, repeats=30) for part in (manifolds, [change(x) for x in manifolds]))
    assert other.thresholds.tolist() == made.thresholds.tolist()
    assert other.visited == made.visited
    stretched = [x * torch.arange(1, 21) ** 3 for x in manifolds]  # mutant: features weighted
    assert simulated_capacity(stretched, repeats=30).thresholds.tolist() != made.thresholds.tolist()


def test_capacity_is_where_the_share_crosses_one_half():
    made = simulated_capacity(segments(10, 30, 1.0), repeats=50)
    assert made.visited[0] == (0, 0.0)
    assert [n for n, _ in made.visited] == sorted({n for n, _ in made.visited})
    (n, below), (after, above) = next((one, two) for one, two in pairwise(made.visited) if one[1] < 0.5 <= two[1])
    assert after == n + 1
    assert made.critical == pytest.approx(n + (0.5 - below) / (above - below))
    assert made.capacity == 10 / made.critical
    assert made.low < made.capacity < made.high
    assert made.reason == ""


def test_error_is_the_spread_over_seeds():
    found = [simulated_capacity(segments(10, 30, 1.0), repeats=60, seed=seed) for seed in range(40)]
    stated = np.mean([(one.high - one.low) / (2 * 1.96) for one in found])
    # A standard deviation of 40 is known to 11 %; the share's is taken at ½, and the curve as straight.
    assert stated == pytest.approx(np.std([one.capacity for one in found]), rel=0.45)


def test_undefined():
    cloud = gaussian("cloud", 5, 4)
    same = simulated_capacity([cloud, cloud, cloud, cloud], repeats=10)
    assert (same.capacity, same.critical, same.low, same.high) == (None, None, None, None)
    assert "only 0% of the dichotomies are separable with 4 features" in same.reason
    assert bool(same.thresholds.isinf().all())
    far = simulated_capacity([cloud, cloud + 1e4], repeats=10)
    assert far.capacity is None
    assert "with one feature" in far.reason
    capped = simulated_capacity(segments(10, 30, 1.0), repeats=50, max_features=3)
    assert capped.capacity is None
    assert "with 3 features" in capped.reason


def test_degenerate_clouds():
    for manifolds in (
        list(gaussian("few features", 6, 8, 2)),  # d = 2
        [cloud.repeat(3, 1) for cloud in segments(6, 9, 0.5)],
        [cloud[: 1 + i] for i, cloud in enumerate(gaussian("unequal", 6, 6, 20))],
        list(gaussian("one feature", 4, 1, 1)),
    ):
        made = simulated_capacity(manifolds, repeats=20)
        assert (made.capacity is None) == bool(made.reason)


def test_same_in_any_number_of_threads():
    manifolds = segments(8, 20, 0.7)
    made = simulated_capacity(manifolds, repeats=20)
    torch.set_num_threads(2)
    assert simulated_capacity(manifolds, repeats=20).thresholds.tolist() == made.thresholds.tolist()


@pytest.mark.parametrize(
    ("manifolds", "settings", "says"),
    [
        ([torch.ones(3, 2)], {}, "at least 2"),
        ([torch.ones(3, 2), torch.ones(3, 2)], {}, "equal"),
        ([torch.ones(3, 2), torch.full((3, 2), math.nan)], {}, "NaN"),
        ([torch.eye(2), torch.ones(3, 2)], {"max_features": 3}, "max_features=3"),
        ([torch.eye(2), torch.ones(3, 2)], {"repeats": 1}, "repeats=1"),
        ([torch.eye(2), torch.ones(3, 2)], {"dichotomies": "sparse"}, "unknown"),
    ],
)
def test_bad_input(manifolds, settings, says):
    with pytest.raises(GeophoneError, match=says):
        simulated_capacity(manifolds, **settings)
