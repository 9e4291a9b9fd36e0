"""The reference mode beside an implementation of the reference's definition with public solvers, which shares nothing
with the package: `benchmarks.reference_manifolds`, on the same subspace and samples. A mutant is that with one fault.
"""

import numpy as np
import pytest
import torch

from benchmarks import reference_manifolds as oracle
from geophone.metrics.geometry import low_rank, manifold_geometry
from geophone.metrics.geometry.low_rank import fit_directions

N_T = 25


def clouds(sizes, d, rank=0, seed=0):
    """Ellipsoids of 4 axes and noise about random centres, which share `rank` directions."""
    rng = np.random.default_rng([seed, d, rank, *sizes])
    centers = rng.standard_normal((len(sizes), d))
    centers += 2 * rng.standard_normal((len(sizes), rank)) @ rng.standard_normal((rank, d))
    axes = rng.standard_normal((len(sizes), 4, d)) / np.array([1.0, 1.5, 2.0, 4.0])[:, None]
    return [
        center + 0.4 * rng.standard_normal((m, 4)) @ own + 0.1 * rng.standard_normal((m, d)) + 1
        for m, center, own in zip(sizes, centers, axes, strict=True)
    ]


def subspace(manifolds, k):
    """The k leading directions of the centres, `[d, k]`."""
    x, q = oracle.centers(manifolds)
    return q @ np.linalg.svd(x)[2][:k].T


def samples(manifolds, seed=1):
    rng = np.random.default_rng([seed, len(manifolds)])
    return [rng.standard_normal((min(points.shape) + 1, N_T)) for points in manifolds]


def both(manifolds, kappa, k):
    """The capacities, radii and dimensions `[3, P]` of ours and of the oracle's."""
    basis, t = subspace(manifolds, k), samples(manifolds)
    found = manifold_geometry(manifolds, mode="reference", kappa=kappa, basis=basis, samples=t)
    theirs = oracle.analysis(manifolds, kappa=kappa, rng=np.random.default_rng(0), basis=basis, samples=t)
    ours = np.stack([found.capacities, found.radii, found.dimensions])
    return ours, np.stack([theirs.capacities, theirs.radii, theirs.dimensions]), found, theirs


def apart(ours, theirs):
    """The largest relative difference of capacities, radii and dimensions, `[3]`."""
    return np.abs(ours / theirs - 1).max(1)


CASES = {
    "more features than points": ([12] * 6, 30, 0, 0.0, 1),
    "a margin": ([12] * 6, 30, 0, 0.5, 1),
    "more features than points, none removed": ([12] * 4, 30, 0, 0.0, 0),
    "fewer features than points": ([20] * 5, 6, 0, 0.0, 1),
    "fewer features than points, a margin": ([20] * 5, 6, 0, 0.5, 2),
    "as many features as points": ([10] * 4, 10, 0, 0.0, 1),
    "unequal sizes": ([5, 9, 14, 20], 16, 0, 0.2, 1),
    "correlated centres": ([10] * 8, 40, 2, 0.0, 2),
    "a pair": ([15, 10], 12, 0, 0.0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_same_subspace_and_samples_give_the_same_geometry(case):
    """To 1e-6: cvxopt's interior points stop at 1e-12, and an anchor's coordinates have about the root of that."""
    sizes, d, rank, kappa, k = CASES[case]
    manifolds = clouds(sizes, d, rank)
    ours, theirs, found, reference = both(manifolds, kappa, k)
    assert apart(ours, theirs).max() < 1e-6
    assert found.capacity == pytest.approx(reference.capacity, rel=1e-6)
    assert found.radius == pytest.approx(reference.radius, rel=1e-6)
    assert found.dimension == pytest.approx(reference.dimension, rel=1e-6)
    assert found.center_correlation == pytest.approx(reference.center_correlation, abs=1e-10)  # arithmetic alone
    assert found.k == reference.k == k
    assert found.kkt_residual < 1e-9  # what is accepted of a program


def other_sign(s, t, kappa):
    """A margin that is granted, not asked for."""
    return ANCHOR(s, t, -kappa)


def first_touching(s, t, kappa):
    """The touching point where there is a cone of several."""
    return s[:, (t @ s).argmax()]


def squared_after(t, found, kappa):
    """Another dimension in circulation: the mean of (t·δs)²/|δs|²."""
    capacity, radius, _ = GEOMETRY(t, found, kappa)
    around = found[:-1] - found[:-1].mean(1, keepdims=True)
    return capacity, radius, float(np.mean((t[:-1] * around).sum(0) ** 2 / (around**2).sum(0)))


def from_the_center(t, found, kappa):
    """A radius about the centre, not about the mean anchor."""
    capacity, _, dimension = GEOMETRY(t, found, kappa)
    return capacity, float(np.sqrt(np.mean((found[:-1] ** 2).sum(0)))), dimension


def without_ones(points, basis):
    """The centre's direction left out: here its coordinate is 0, so that the coordinates stay as many."""
    s = REDUCED(points, basis)
    s[-1] = 1e-6
    return s


def in_units_of_one(points, basis):
    """Points not in units of their centre's length."""
    points = points - (points @ basis) @ basis.T
    s = REDUCED(points, basis)
    s[:-1] *= np.linalg.norm(points.mean(0))
    return s


def about_mean_of_centers(manifolds):
    """Another global mean, the same for equal sizes alone."""
    mean = np.mean([points.mean(0) for points in manifolds], 0)
    return [points - mean for points in manifolds]


ANCHOR, GEOMETRY, REDUCED = oracle.anchor, oracle.geometry, oracle.reduced

# What is replaced by what, in which case, and which of capacity, radius and dimension show it.
MUTANTS = [
    ("anchor", other_sign, "a margin", (0,)),
    ("anchor", first_touching, "more features than points", (0, 1)),
    ("geometry", squared_after, "more features than points", (2,)),
    ("geometry", from_the_center, "more features than points", (1,)),
    ("reduced", without_ones, "more features than points", (0,)),
    ("reduced", in_units_of_one, "more features than points", (0, 1)),
    ("centred", about_mean_of_centers, "unequal sizes", (0, 1)),
]


@pytest.mark.parametrize(("name", "mutant", "case", "shows"), MUTANTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_wrong_oracle_is_seen(monkeypatch, name, mutant, case, shows):
    sizes, d, rank, kappa, k = CASES[case]
    monkeypatch.setattr(oracle, name, mutant)
    ours, theirs, *_ = both(clouds(sizes, d, rank), kappa, k)
    assert (apart(ours, theirs)[list(shows)] > 1e-3).all()


def test_fewer_directions_on_the_same_samples_are_seen():
    manifolds = clouds([10] * 8, 40, 2)
    t = samples(manifolds)
    right, wrong = (
        manifold_geometry(manifolds, mode="reference", basis=subspace(manifolds, k), samples=t) for k in (2, 1)
    )
    assert abs(right.capacity / wrong.capacity - 1) > 1e-3


# The fit of the centres' directions


def rows(p, rank=0, seed=0):
    """Centres in P - 1 coordinates, and the same as rows of length 1, as the package's solver takes them."""
    x, _ = oracle.centers(clouds([1] * p, 40, rank, seed))
    return x, np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def descended(unit, v):
    """As published: nothing keeps a centre from vanishing."""
    return low_rank._descend(unit, np.ones(len(unit)), v, 0.0)


def starts(p, k, n, seed=0):
    rng = np.random.default_rng([p, k, seed])
    return [np.ascontiguousarray(np.linalg.qr(rng.standard_normal((p - 1, k)))[0]) for _ in range(n)]


@pytest.mark.parametrize(("p", "rank"), [(6, 0), (8, 0), (8, 2)])
def test_the_fit_s_cost_is_the_definition_s(p, rank):
    x, unit = rows(p, rank)
    for v in starts(p, 2, 3):
        end, cost, least = descended(unit, v)
        assert cost == pytest.approx(float(oracle.cost(x, end)), rel=1e-12)  # sums of P² terms of order 1
        assert least == pytest.approx(oracle.stability(x, end), rel=1e-9)  # a root of a difference from 1
        assert np.allclose(end.T @ end, np.eye(2), atol=1e-12)


@pytest.mark.parametrize(("p", "rank", "k"), [(6, 0, 1), (8, 0, 1), (8, 2, 1), (8, 3, 2)])
def test_conjugate_gradient_and_ours_reach_the_same_values(p, rank, k):
    """The cost isn't convex, and two descents from one start may part: the lowest of some starts is compared, and where
    ours starts from where conjugate gradient ended. 1e-6: there the latter's gradient has that length."""
    x, unit = rows(p, rank)
    theirs = [oracle.descended(x, v) for v in starts(p, k, 4)]
    costs = [float(oracle.cost(x, v)) for v in theirs]
    ours = [descended(unit, v)[1] for v in starts(p, k, 4)]
    assert min(ours) <= min(costs) * (1 + 1e-6)
    for cost, v in zip(costs, theirs, strict=True):
        assert descended(unit, np.ascontiguousarray(v))[1] <= cost * (1 + 1e-9)
    mutant = [float(oracle.cost(x, np.linalg.svd(x)[2][:k].T))]  # principal directions of the centres are no minimum
    assert min(mutant) > min(ours) * (1 + 1e-4)


def test_where_ours_ends_conjugate_gradient_finds_nothing_to_descend():
    """From one start the two may reach different minima, so it goes on from where ours ends, at gains below 1e-8."""
    x, unit = rows(8)
    for v in starts(8, 1, 4):
        end, cost, _ = descended(unit, v)
        assert cost == pytest.approx(float(oracle.cost(x, oracle.descended(x, end))), rel=1e-6)
        assert cost < float(oracle.cost(x, v)) * (1 - 1e-3)  # the mutant: the start


def test_residual_correlations_are_those_of_the_definition():
    manifolds = clouds([6, 9, 12, 7, 8, 10, 5, 11], 40, 2)
    centers = np.stack([points.mean(0) for points in manifolds])
    fit = fit_directions(centers, published=True, restarts=3, seed=0)
    x, q = oracle.centers(manifolds)
    within = q.T @ fit.basis
    assert np.allclose(q @ within, fit.basis, atol=1e-10)  # in the space of the centres
    assert fit.residuals[0] == pytest.approx(oracle.correlation(x), abs=1e-10)
    left = oracle.correlation(x - x @ within @ within.T)
    assert fit.residuals[fit.k] == pytest.approx(left, abs=1e-10)
    assert fit.residuals[fit.k] == min(fit.residuals[1:])
    assert len(fit.residuals) - 1 <= oracle.most_directions(x)


def test_the_mode_takes_the_fit_and_the_samples_of_its_own_seed():
    """End to end without anything given: capacity within its scatter over samples, of both, by 5 standard errors."""
    manifolds = clouds([12] * 8, 40)
    ours = manifold_geometry(manifolds, mode="reference", n_t=200, n_reps=2)
    theirs = oracle.analysis(manifolds, n_t=40, n_reps=2, rng=np.random.default_rng(0))
    assert ours.k == theirs.k == 1
    error = np.hypot(ours.capacity_se, ours.capacity_se * 5**0.5)
    assert ours.capacity == pytest.approx(theirs.capacity, abs=5 * error)
    assert torch.isfinite(ours.capacities).all()
