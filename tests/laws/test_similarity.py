"""What each measure of similarity is invariant to, and what it is not: the table below, checked over the registry."""

import math

import pytest
import torch

from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.metrics.similarity.pairwise import ENDS, TURNS
from geophone.stats import CrossMoments, PairSample

MEASURES = [name for name, m in METRICS.items() if m.statistic in (CrossMoments, PairSample)]

COMMON = {"scale first", "scale second", "permute rows", "permute units"}
SHIFT = {f"shift {side} {by}" for side in ("first", "second") for by in (30, 1000)}
TURN = {"turn first", "turn second"}
GEOMETRY = COMMON | SHIFT | TURN | {"swap"}
PROMISED = {
    **dict.fromkeys(("cka", "cka_biased", "procrustes", "angular_distance", "svcca"), GEOMETRY),
    **dict.fromkeys(("cka_rbf", "cka_rbf_kornblith", "cka_without_first_pc"), GEOMETRY),
    **dict.fromkeys(("rsa_euclidean", "rsa_whitened", "mutual_knn", "cknna"), GEOMETRY),
    **{name: GEOMETRY | {"map first", "map second"} for name in ("cca", "r2_cca")},
    "pwcca": COMMON | SHIFT | {"turn second", "map second"},
    "linear_regression_r2": COMMON | SHIFT | TURN | {"map second"},
    "rsa_correlation": COMMON | {"swap"},
}
TOLERANCE = 1e-9
"""A shift of 1000 rounds float64 responses of size 1 by 1e-13; the maps have condition numbers below 100."""


def responses(n=60):
    """Two sides of 6 and 5 units that are related, but not linearly, with unequal variances."""
    generator = stream("laws of similarity")
    a = torch.randn(n, 6, generator=generator, dtype=torch.float64) * torch.tensor([3, 2, 1.5, 1, 0.5, 0.3]).double()
    w = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return a, (a @ w).relu() + 0.5 * torch.randn(n, 5, generator=generator, dtype=torch.float64)


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, generator=stream("rotation", d), dtype=torch.float64)).Q


def invertible(d):
    """Stretches by 1 to 20 along directions of its own."""
    stretch = torch.logspace(0, math.log10(20), d, dtype=torch.float64)
    return rotation(d) @ torch.diag(stretch) @ rotation(d + 10)[:d, :d]


def shift(d, by):
    return by * (1 + torch.rand(d, generator=stream("shift", d), dtype=torch.float64))


def permuted(n, *, of):
    return torch.randperm(n, generator=stream("permuted", of))


TRANSFORMS = {
    "scale first": lambda a, b: (1e-4 * a, b),
    "scale second": lambda a, b: (a, 1e4 * b),
    **{f"shift first {by}": lambda a, b, by=by: (a + shift(a.shape[1], by), b) for by in (30, 1000)},
    **{f"shift second {by}": lambda a, b, by=by: (a, b + shift(b.shape[1], by)) for by in (30, 1000)},
    "turn first": lambda a, b: (a @ rotation(a.shape[1]), b),
    "turn second": lambda a, b: (a, b @ rotation(b.shape[1])),
    "map first": lambda a, b: (a @ invertible(a.shape[1]), b),
    "map second": lambda a, b: (a, b @ invertible(b.shape[1])),
    "permute rows": lambda a, b: (a[permuted(len(a), of="rows")], b[permuted(len(b), of="rows")]),
    "permute units": lambda a, b: (a[:, permuted(a.shape[1], of="first")], b[:, permuted(b.shape[1], of="second")]),
    "swap": lambda a, b: (b, a),
}


def changes(measure):
    """The transforms that change the measure."""
    a, b = responses()
    before = measure(a, b)
    return {name for name, change in TRANSFORMS.items() if not abs(measure(*change(a, b)) - before) <= TOLERANCE}


@pytest.mark.parametrize(("by", "tolerance"), [(30, 1e-5), (1000, 1e-4)])
@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"rsa_correlation"}))
def test_a_bias_changes_float32_responses_by_no_more_than_it_rounds_them(name, by, tolerance):
    """Rounding is up to 1e-6 at 30 and 3e-5 at 1000, of units whose smallest deviation is 0.3: 3e-6 and 1e-4 of it."""
    a, b = responses()
    moved = METRICS[name]((a + by).float(), (b + by).float())
    # Two of 600 neighbours may change places.
    assert moved == pytest.approx(METRICS[name](a, b), abs=2 / 600 if "knn" in name else tolerance)
    assert abs(uncentred((a + by).float(), (b + by).float()) - uncentred(a, b)) > 0.1


def test_every_measure_has_its_promises():
    assert set(PROMISED) == set(MEASURES) == set(ENDS)


@pytest.mark.parametrize("name", MEASURES)
def test_invariances_are_those_that_are_promised(name):
    """Those in the table and no others: what is not promised does change the value."""
    assert changes(METRICS[name]) == set(TRANSFORMS) - PROMISED[name]


def test_wide_sides_are_made_narrow_only_where_turning_changes_nothing():
    assert {name for name, promised in PROMISED.items() if promised >= TURN | SHIFT} == TURNS


# Mutants: each breaks a law that public tools break.


def uncentred(a, b):
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def with_an_epsilon(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm() + 1e-6))


def with_fixed_bandwidth(a, b):
    k, m = (torch.exp(-torch.cdist(side, side).square() / 2) for side in (a, b))
    h = torch.eye(len(a), dtype=a.dtype) - 1 / len(a)
    k, m = h @ k @ h, h @ m @ h
    return float((k * m).sum() / (k.norm() * m.norm()))


def neighbours_by_inner_product(a, b):
    near = [(side @ side.T).fill_diagonal_(-torch.inf).topk(10, dim=1).indices for side in (a, b)]
    return sum(len(set(x) & set(y)) for x, y in zip(*(m.tolist() for m in near), strict=True)) / (10 * len(a))


@pytest.mark.parametrize(
    ("mutant", "caught"),
    [
        (uncentred, SHIFT),
        (with_an_epsilon, {"scale first"}),
        (with_fixed_bandwidth, {"scale first", "scale second"}),
        (neighbours_by_inner_product, {"shift first 30", "shift second 1000"}),
        (lambda a, b: METRICS["pwcca"](a, b), {"turn first", "swap"}),
    ],
)
def test_a_broken_promise_is_caught(mutant, caught):
    assert caught <= changes(mutant) & GEOMETRY


def broken_identities(measure, same):
    """Which of the identities, of responses that are alike but for what no measure of geometry sees, do not hold.

    In units of the distance's root where 0 is alike: √1e-16 is 1e-8.
    """
    a, _ = responses()
    pairs = {
        "itself": (a, a),
        "empty units": (a, torch.cat([a, torch.zeros(60, 3, dtype=a.dtype)], dim=1)),
        "twice": (torch.cat([a, a], dim=1), a),
        "turned, scaled and shifted": (a, 3 * a @ rotation(6) - 7),
    }
    return {name for name, (one, other) in pairs.items() if not abs(measure(one, other) - same) <= 1e-7}


@pytest.mark.parametrize("name", sorted(TURNS | {"pwcca"}))
def test_the_same_geometry_is_recognised(name):
    assert broken_identities(METRICS[name], ENDS[name][1]) == set()


def test_the_units_themselves_matter_to_correlation_distances():
    """The mean over units, which correlation takes out, is another once there are empty ones."""
    broken = broken_identities(METRICS["rsa_correlation"], 1.0)
    assert broken == {"empty units", "turned, scaled and shifted"}


def test_dropping_a_unit_is_caught():
    broken = broken_identities(lambda a, b: METRICS["cka"](a, b[:, 1:]), 1.0)
    assert broken >= {"itself", "empty units"}
