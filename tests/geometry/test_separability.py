"""Separability of two clouds: margins against a public solver and closed forms, accuracy against the primal machine."""

import math

import cvxopt
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry.separability import Separability, linear_separability, separabilities, separated


def two(m, k, d, shift, *, seed=0):
    drawn = stream("two clouds", m, k, d, seed)
    a = torch.randn(m, d, generator=drawn, dtype=torch.float64)
    b = torch.randn(k, d, generator=drawn, dtype=torch.float64)
    b[:, 0] += shift
    return a, b


def hard_margin(a, b):
    """1/|w| of the hard-margin machine's primal program."""
    x, y = np.concatenate([a, b]), np.repeat([1.0, -1.0], [len(a), len(b)])
    d = x.shape[1]
    cost = np.diag([1.0] * d + [0.0])
    found = cvxopt.solvers.qp(
        cvxopt.matrix(cost),
        cvxopt.matrix(0.0, (d + 1, 1)),
        cvxopt.matrix(-y[:, None] * np.c_[x, np.ones(len(x))]),
        cvxopt.matrix(-1.0, (len(x), 1)),
        options={"show_progress": False, "abstol": 1e-10, "reltol": 1e-10, "feastol": 1e-10},
    )
    return 1 / np.linalg.norm(np.array(found["x"])[:d, 0])


@pytest.mark.parametrize(("m", "k", "d", "shift"), [(20, 20, 50, 0), (20, 7, 100, 0), (20, 20, 2, 6), (10, 30, 4, 7)])
def test_margin_is_that_of_the_hard_margin_machine(m, k, d, shift):
    a, b = two(m, k, d, shift)
    made = linear_separability(a, b)
    assert made.separable
    wanted = hard_margin(a, b)
    # Both are good to about 1e-8: cvxopt's tolerance, and coordinates from a Gram matrix.
    assert made.margin == pytest.approx(wanted, rel=1e-6)
    # Mutants: the distance instead of half of it; of the nearest points instead of the hulls.
    assert 2 * made.margin != pytest.approx(wanted, rel=1e-6)
    assert float(torch.cdist(a, b).min()) / 2 != pytest.approx(wanted, rel=1e-3)


def test_margins_in_closed_form():
    line = torch.tensor([[0.0], [1.0]])
    assert linear_separability(line, line + 3).margin == pytest.approx(1)
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    # From the corner (1, 1) to the corner (3, 2); and between two sides.
    assert linear_separability(square, square + torch.tensor([2.0, 1.0]).mul(1.5)).margin == pytest.approx(
        math.hypot(2, 0.5) / 2
    )
    assert linear_separability(square, square + torch.tensor([3.0, 0.4])).margin == pytest.approx(1)
    simplex = torch.eye(8)
    # Between the faces' centroids: |(1/4, …, −1/4, …)| = √(8/16).
    assert linear_separability(simplex[:4], simplex[4:]).margin == pytest.approx(math.sqrt(0.5) / 2)


def test_hulls_that_meet_have_no_margin():
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for other in (square, square + 0.5, square + torch.tensor([1.0, 0.0]), square * 0.1 + 0.4, square[:2].repeat(3, 1)):
        made = linear_separability(square, other)
        assert (made.separable, made.margin) == (False, 0.0)


def test_points_in_general_position_are_always_separable_in_enough_dimensions():
    assert linear_separability(*two(20, 20, 39, 0)).separable
    # Mutant of Cover's theorem: 40 points in 10 dimensions almost never are (2⁻³⁹ Σ_{k ≤ 10} C(39, k) < 0.002).
    assert not linear_separability(*two(20, 20, 10, 0)).separable


def test_separated_stops_early_with_the_same_answer():
    for seed in range(60):
        a, b = two(9, 9, 8, 0, seed=seed)  # about half are separable: 18 points in 8 dimensions
        x = torch.cat([a, b])
        side = np.repeat([1.0, -1.0], 9)
        assert separated(x - x.mean(0), side) is linear_separability(a, b).separable


def by_the_primal(a, b, folds, c, seed):
    """The protocol again, with the machine that minimises the primal loss by quasi-Newton steps."""
    x = torch.cat([a, b])
    x = (x - x.mean(0)) / (x - x.mean(0)).square().sum(1).mean().sqrt()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).numpy()
    y = np.repeat([1.0, -1.0], [len(a), len(b)])
    orders = [torch.randperm(size, generator=stream(seed, "folds", size)).numpy() % folds for size in (len(a), len(b))]
    fold = np.concatenate(orders)
    found = []
    for k in range(folds):
        train, test = fold != k, fold == k

        def loss(w, train=train):
            gap = np.maximum(0, 1 - y[train] * (x[train] @ w))
            return 0.5 * w @ w + c * gap @ gap, w - 2 * c * (y[train] * gap) @ x[train]

        w = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}).x
        hit = y[test] * (x[test] @ w) > 0
        found.append((hit[y[test] > 0].mean() + hit[y[test] < 0].mean()) / 2)
    return float(np.mean(found))


@pytest.mark.parametrize(("m", "k", "folds"), [(20, 20, 2), (12, 25, 2), (15, 15, 5)])
def test_accuracy_is_that_of_the_primal_machine(m, k, folds):
    kinds = [(seed, c, shift) for seed in range(3) for c in (0.1, 1.0, 30.0) for shift in (0.5, 1.5)]
    made, wanted, wrong = [], [], []
    for seed, c, shift in kinds:
        a, b = two(m, k, 10, shift, seed=seed)
        made.append(linear_separability(a, b, folds=folds, c=c, seed=seed).accuracy)
        wanted.append(by_the_primal(a, b, folds, c, seed))
        wrong.append(by_the_primal(a, b, folds, 100 * c, seed))
    # Shares of hits: equal unless a point is within 1e-5 of a hyperplane, as none of these is.
    assert made == pytest.approx(wanted, abs=1e-12)
    assert made != pytest.approx(wrong, abs=1e-12)  # mutant: another c


def test_clouds_of_one_law_have_chance_and_distant_ones_have_1():
    found = [linear_separability(*two(40, 40, 50, 0, seed=seed)).accuracy for seed in range(40)]
    # Held-out hits are not independent (the folds share a machine): 4 of the found standard errors of 40 clouds.
    assert np.mean(found) == pytest.approx(0.5, abs=4 * np.std(found) / 40**0.5)
    assert linear_separability(*two(40, 40, 50, 30)).accuracy == 1


def test_equal_clouds_have_one_half_exactly():
    a, _ = two(40, 40, 100, 0)
    assert linear_separability(a, a).accuracy == 0.5
    # Mutant of the pairing of folds: twins on either side of a split are learnt with the wrong label.
    assert linear_separability(a, a[torch.randperm(40, generator=stream("order"))]).accuracy < 0.45
    # Twins that hardly differ are no better than chance, however many features there are.
    found = [linear_separability(a, a + 1e-3 * two(40, 40, 100, 0, seed=seed)[1]).accuracy for seed in range(20)]
    assert np.mean(found) == pytest.approx(0.5, abs=4 * np.std(found) / 20**0.5)


def test_degenerate_clouds():
    one, other = torch.ones(5, 3), torch.zeros(7, 3)
    assert linear_separability(one, one) == Separability(False, 0.0, 0.5)
    made = linear_separability(one, other)
    assert (made.separable, made.accuracy) == (True, 1.0)
    assert made.margin == pytest.approx(math.sqrt(3) / 2)
    assert linear_separability(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [6.0]])).accuracy == 1
    # A point inside of a cloud.
    a, _ = two(40, 40, 5, 0)
    assert not linear_separability(a, a.mean(0).repeat(4, 1)).separable


@pytest.mark.parametrize("name", ["translation", "scale", "rotation", "features of 0"])
def test_invariance(name):
    a, b = two(15, 12, 6, 2)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=stream("turn"), dtype=torch.float64)).Q
    change = {
        "translation": lambda x: x + 100,
        "scale": lambda x: 1e-3 * x,
        "rotation": lambda x: x @ turn,
        "features of 0": lambda x: torch.cat([x, torch.zeros(len(x), 9, dtype=x.dtype)], 1),
    }[name]
    made, other = linear_separability(a, b), linear_separability(change(a), change(b))
    assert other.accuracy == made.accuracy
    assert other.separable == made.separable
    assert other.margin == pytest.approx(made.margin * (1e-3 if name == "scale" else 1), rel=1e-6)


def test_many_pairs_are_each_by_itself_in_any_number_of_threads():
    pairs = [two(8, 8 + i, 5, i, seed=i) for i in range(6)]
    made = [linear_separability(a, b, folds=4, seed=3) for a, b in pairs]
    assert separabilities(pairs, folds=4, seed=3) == made
    torch.set_num_threads(2)
    assert separabilities(pairs, folds=4, seed=3) == made
    assert separabilities([]) == []


@pytest.mark.parametrize(
    ("a", "b", "settings", "says"),
    [
        (torch.ones(5, 3), torch.ones(5, 4), {}, "features"),
        (torch.ones(5, 3), torch.full((5, 3), math.inf), {}, "infinite"),
        (torch.ones(5, 3), torch.ones(1, 3), {}, "folds=2"),
        (torch.ones(5, 3), torch.ones(5, 3), {"folds": 1}, "folds=1"),
        (torch.ones(5, 3), torch.ones(5, 3), {"folds": 6}, "2 to 5"),
        (torch.ones(5, 3), torch.ones(5, 3), {"c": 0.0}, "c=0"),
        (torch.ones(5, 3), torch.ones(5, 3), {"c": math.nan}, "c=nan"),
    ],
)
def test_bad_input(a, b, settings, says):
    with pytest.raises(GeophoneError, match=says):
        linear_separability(a, b, **settings)
