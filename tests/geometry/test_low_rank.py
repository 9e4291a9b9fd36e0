"""Shared directions of centres: the cost by its definition, planted directions found, published and own choices."""

import numpy as np
import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.metrics.geometry import low_rank
from geophone.metrics.geometry.low_rank import fit_directions, mean_cosine


def centres(p, d, rank, seed=0, strength=3.0):
    """Independent directions, plus `rank` that all share."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(p, d)) / np.sqrt(d)
    shared = np.linalg.qr(rng.normal(size=(d, max(rank, 1))))[0][:, :rank]
    return own + strength * rng.normal(size=(p, rank)) @ shared.T, shared


def start(rng, d, k):
    """Random orthonormal directions."""
    return np.ascontiguousarray(np.linalg.qr(rng.normal(size=(d, k)))[0])


def cost(x, v, price=0.0):
    """As it is written: half the sum of squared correlations of what is left, and the price of leaving too little."""
    left = x - (x @ v) @ v.T
    unit = left / left.norm(dim=1, keepdim=True)
    r = left.square().sum(1)
    floor = 0.3**2 * torch.minimum(x.square().sum(1), r.mean())
    return 0.5 * (unit @ unit.T).square().sum() + price * (1 - r / floor).clamp(min=0).square().sum()


def unit_rows(p=8, d=7):
    x = torch.randn(p, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def analytic(x, v, price=0.0):
    """The kernel's cost and gradient."""
    gradient = np.empty(v.shape)
    squares = x.square().sum(1)
    unit = x / squares.sqrt()[:, None]
    given = (unit.numpy(), squares.numpy(), (unit @ unit.T).numpy(), np.ascontiguousarray(v.numpy()))
    value, least = low_rank._cost(*given, price, gradient)
    return value, least, gradient


def nearly_all(x, i):
    """A direction that leaves a fiftieth of centre i, and two others."""
    aside = torch.linalg.qr(torch.stack([x[i], *torch.eye(7, dtype=torch.float64)[:3]], 1))[0]
    return torch.stack([0.9996**0.5 * aside[:, 0] + 0.02 * aside[:, 3], *aside[:, 1:3].T], 1)


def scaled_rows():
    """Centres of which one is short, so that its own length is what counts, and others are long."""
    return unit_rows() * torch.linspace(0.2, 3, 8, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("near", [None, 0, 7])
@pytest.mark.parametrize("price", [0.0, 8.0])
def test_cost_and_slope_are_those_of_the_definition(price, near):
    x = scaled_rows() if price else unit_rows()
    v = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    if near is not None:
        v = nearly_all(x, near)
    v.requires_grad_()
    wanted = cost(x, v, price)
    (slope,) = torch.autograd.grad(wanted, v)
    v, wanted = v.detach(), wanted.detach()
    slope = slope - v @ (v.T @ slope)
    value, least, gradient = analytic(x, v, price)
    assert value == pytest.approx(float(wanted), rel=1e-12)
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-12 * float(slope.abs().max().clamp(min=1)))
    left = (x - (x @ v) @ v.T).square().sum(1)
    whole = torch.minimum(x.square().sum(1), left.mean()) if price else x.square().sum(1)
    assert abs(least - float((left / whole).min().sqrt())) < 1e-12
    if price and near is not None:
        assert float(wanted) > float(cost(x, v)) + 1  # the price is seen


def test_a_fit_ends_where_the_slope_is_level_and_below_its_start():
    x = unit_rows(12, 11)
    begun = start(np.random.default_rng(0), 11, 2)
    v, value, _ = low_rank._descend(x.numpy(), np.ones(12), begun, 0.0)
    np.testing.assert_allclose(v.T @ v, np.eye(2), atol=1e-12)
    assert value < float(cost(x, torch.from_numpy(begun)))
    # No rotation of the plane by 1e-3 towards a random direction is better by more than second order, (1e-3)² P.
    rng = np.random.default_rng(1)
    for _ in range(20):
        moved = np.linalg.qr(v + 1e-3 * rng.normal(size=v.shape))[0]
        assert float(cost(x, torch.from_numpy(moved))) > value - 1e-9


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_planted_directions_are_found(rank):
    x, shared = centres(40, 300, rank)
    found = fit_directions(x)
    assert found.k == rank
    # cos of the largest angle between the planes: the centres' own part, of length 1 over 300 dimensions, tilts them.
    assert np.linalg.svd(found.basis.T @ shared)[1].min() > 0.99
    assert found.residuals[rank] < 0.3 * found.residuals[0]
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(rank), atol=1e-12)


def test_centres_without_shared_directions_keep_all_of_theirs_but_the_published_code_takes_one():
    x, _ = centres(40, 300, 0)
    assert fit_directions(x).k == 0
    assert fit_directions(x, published=True).k == 1


def test_residuals_are_the_mean_cosines_that_are_left():
    x, _ = centres(20, 100, 2)
    found = fit_directions(x)
    centred = x - x.mean(0)
    left = centred - (centred @ found.basis) @ found.basis.T
    by_hand = np.mean(
        [
            abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
            for i, a in enumerate(left)
            for j, b in enumerate(left)
            if i != j
        ]
    )
    assert abs(found.residuals[found.k] - by_hand) < 1e-12
    assert abs(mean_cosine(centred) - found.residuals[0]) < 1e-12


def test_the_published_choice_is_the_most_stable_start_and_ours_the_cheapest(monkeypatch):
    fits = iter([(np.eye(5, 1), 0.3, 0.9), (np.eye(5, 1, -1), 0.2, 0.3)] * 40)
    monkeypatch.setattr(low_rank, "_descend", lambda *_: next(fits))
    x = np.random.default_rng(0).normal(size=(6, 5))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    assert abs(fit_directions(x, restarts=2).basis[:, 0] @ axes[1]) > 0.99
    monkeypatch.setattr(low_rank, "mean_cosine", lambda x: 0.5 if next(counter) else 1.0)
    counter = iter([0, 1, 2, 2, 2, 2, 2, 2, 2])
    assert abs(fit_directions(x, restarts=2, published=True).basis[:, 0] @ axes[0]) > 0.99


def test_there_are_more_starts_until_most_agree(monkeypatch):
    x = np.random.default_rng(0).normal(size=(6, 5))
    for costs, starts in (
        ([2.0] * 3 + [1.0] * 67, 10),
        ([2.0] * 5 + [1.0] * 65, 20),
        ([1.0, 2.0, 2.0] * 30, 30),
        ([1.0, 2.0] * 20 + [1.0] * 30, 60),
    ):
        given, seen = iter(costs), []
        monkeypatch.setattr(
            low_rank, "_descend", lambda *_, given=given, seen=seen: seen.append(1) or (np.eye(5, 1), next(given), 1.0)
        )
        fit_directions(x, restarts=30 if starts == 30 else 60)
        assert len(seen) == starts


def crowded(seed):
    """Ten centres like those of a small network's classes: in nine dimensions, most of them in two."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(10, 9)) * np.array([4, 3.5, 1.7, 1.5, 1.2, 1, 0.8, 0.5, 0.3])


def lengths_left(x, basis):
    """What is left of each centre, of its own length or of what is left on average, whichever is less."""
    x = x - x.mean(0)
    left = np.square(x - (x @ basis) @ basis.T).sum(1)
    return np.sqrt(left / np.minimum(np.square(x).sum(1), left.mean()))


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_no_centre_vanishes_though_that_would_be_cheapest(seed, monkeypatch):
    x = crowded(seed)
    # The price is finite, so a centre may fall short of 0.3 by a little.
    assert lengths_left(x, fit_directions(x).basis).min() > 0.29
    plain = low_rank._descend
    monkeypatch.setattr(low_rank, "_descend", lambda x, squares, start, price: plain(x, squares, start, 0.0))
    assert lengths_left(x, fit_directions(x).basis).min() < 0.25  # the mutant: without a price


def test_a_strong_direction_that_all_share_goes_though_little_is_left_of_their_own_lengths():
    x, shared = centres(40, 300, 1, strength=30.0)
    found = fit_directions(x)
    assert found.k == 1
    assert abs(found.basis[:, 0] @ shared[:, 0]) > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_no_other_number_of_directions_is_cheaper(seed):
    """More were not tried where P²/(2 dimensions), the least that unit vectors can have (Welch), is no less."""
    x = crowded(seed)
    x -= x.mean(0)
    lengths = np.linalg.norm(x, axis=1)
    unit = x / lengths[:, None]
    basis = fit_directions(x).basis
    chosen = float(cost(*map(torch.from_numpy, (x, basis)), price=10.0))
    rng = np.random.default_rng(seed)
    for k in range(1, 8):
        for _ in range(20):
            _, other, _ = low_rank._descend(unit, np.square(lengths), start(rng, 9, k), 10.0)
            assert chosen <= other * (1 + 1e-6)


@pytest.mark.parametrize(("p", "most"), [(4, 0), (7, 2), (10, 3), (16, 5)])
def test_so_many_directions_as_make_tight_frames_of_most_centres_are_not_taken(p, most):
    """Of random ones: with one more the cost is Welch's bound, and with as many it is above."""
    for seed in range(3):
        x = np.random.default_rng([p, seed]).normal(size=(p, p - 1)) * np.linspace(3, 1, p - 1)
        x -= x.mean(0)
        unit = np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True))
        rng = np.random.default_rng(seed)
        found = {}
        for k in (most, most + 1):
            starts = [start(rng, p - 1, k) for _ in range(20)]
            ends = (
                [low_rank._descend(unit, np.ones(p), one, 0.0)[1] for one in starts]
                if k
                else [0.5 * np.square(unit @ unit.T).sum()]
            )
            found[k] = min(ends) / (p**2 / 2 / (p - 1 - k)) - 1
        assert found[most + 1] < 1e-7  # fits end at gains of 1e-9 in 50 steps
        assert found[most] > 1e-6
        assert fit_directions(x).k <= most


@pytest.mark.parametrize("seed", range(4))
def test_rounding_and_another_seed_find_the_same_directions(seed):
    """Cosine of the largest angle between two fits: what a fit that ends at gains of 1e-9 leaves is 1 - 1e-6 or so."""
    x = crowded(seed)
    made = fit_directions(x)
    rounded = fit_directions(x * (1 + 6e-8 * np.random.default_rng(1).normal(size=x.shape)))
    for other in (rounded, fit_directions(x, seed=1)):
        assert other.k == made.k
        assert np.linalg.svd(other.basis.T @ made.basis)[1].min() > 1 - 1e-4
    few = [fit_directions(x, restarts=1, seed=i).basis for i in range(20)]  # the mutant: one start is not enough
    assert any(one.shape != made.basis.shape or np.linalg.svd(one.T @ made.basis)[1].min() < 0.99 for one in few)


def test_two_centres_share_nothing_and_the_published_code_cannot_take_them():
    x = np.random.default_rng(0).normal(size=(2, 30))
    assert fit_directions(x).k == 0
    with pytest.raises(GeophoneError, match="nothing is left of the centres"):
        fit_directions(x, published=True)


def test_one_seed_one_fit_whatever_the_threads():
    x, _ = centres(15, 60, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fit_directions(x, seed=3)
        torch.set_num_threads(2)
        two = fit_directions(x, seed=3)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(one.basis, two.basis)


def test_mutants_of_the_cost_are_found():
    x = unit_rows()
    v = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    left = x - (x @ v) @ v.T
    without_lengths = 0.5 * (left @ left.T).square().sum()
    unit = left / left.norm(dim=1, keepdim=True)
    without_squares = 0.5 * (unit @ unit.T).abs().sum()
    for mutant in (without_lengths, without_squares):
        assert abs(float(mutant) - analytic(x, v)[0]) > 0.1
