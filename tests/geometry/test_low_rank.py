"""Shared directions of centres: the cost by its definition, planted directions found, published and own choices."""

import numpy as np
import pytest
import torch

from geophone.errors import GeophoneError
from geophone.geometry import low_rank
from geophone.geometry.low_rank import fit_directions, mean_cosine


def centres(p, d, rank, seed=0, strength=3.0):
    """Independent directions, plus `rank` that all share."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(p, d)) / np.sqrt(d)
    shared = np.linalg.qr(rng.normal(size=(d, max(rank, 1))))[0][:, :rank]
    return own + strength * rng.normal(size=(p, rank)) @ shared.T, shared


def cost(x, v):
    """As it is written: half the sum of squared correlations of what is left."""
    left = x - (x @ v) @ v.T
    unit = left / left.norm(dim=1, keepdim=True)
    return 0.5 * (unit @ unit.T).square().sum()


def unit_rows(p=8, d=7):
    x = torch.randn(p, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def analytic(x, v):
    """The kernel's cost and gradient."""
    gradient = np.empty(v.shape)
    value, least = low_rank._cost(x.numpy(), (x @ x.T).numpy(), np.ascontiguousarray(v.numpy()), gradient)
    return value, least, gradient


def test_cost_and_slope_are_those_of_the_definition():
    x = unit_rows()
    v = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    v.requires_grad_()
    wanted = cost(x, v)
    (slope,) = torch.autograd.grad(wanted, v)
    v, wanted = v.detach(), wanted.detach()
    slope = slope - v @ (v.T @ slope)
    value, least, gradient = analytic(x, v)
    assert abs(value - float(wanted)) < 1e-12
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-12)
    left = (x - (x @ v) @ v.T).norm(dim=1).min()
    assert abs(least - float(left)) < 1e-12


def test_a_fit_ends_where_the_slope_is_level_and_below_its_start():
    x = unit_rows(12, 11)
    start = np.ascontiguousarray(np.linalg.qr(np.random.default_rng(0).normal(size=(11, 2)))[0])
    v, value, _ = low_rank._descend(x.numpy(), start)
    np.testing.assert_allclose(v.T @ v, np.eye(2), atol=1e-12)
    assert value < float(cost(x, torch.from_numpy(start)))
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
    fits = iter([(np.eye(5, 1), 3.0, 0.9), (np.eye(5, 1, -1), 2.0, 0.3)] * 40)
    monkeypatch.setattr(low_rank, "_descend", lambda x, start: next(fits))
    x = np.random.default_rng(0).normal(size=(6, 5))
    monkeypatch.setattr(low_rank, "mean_cosine", lambda x: 0.5 if next(counter) else 1.0)
    counter = iter([0, 1, 2, 2, 2, 2, 2, 2, 2])
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    assert abs(fit_directions(x, restarts=2).basis[:, 0] @ axes[1]) > 0.99
    counter = iter([0, 1, 2, 2, 2, 2, 2, 2, 2])
    assert abs(fit_directions(x, restarts=2, published=True).basis[:, 0] @ axes[0]) > 0.99


def test_a_fit_that_leaves_next_to_nothing_of_a_centre_is_kept_only_where_none_leaves_more(monkeypatch):
    x = np.random.default_rng(0).normal(size=(6, 5))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    for leasts, kept in (((0.9, 0.1), 0), ((0.1, 0.05), 0), ((0.3, 0.25), 1)):
        fits = iter([(np.eye(5, 1), 3.0, leasts[0]), (np.eye(5, 1, -1), 2.0, leasts[1])] * 40)
        counter = iter([0, 1, 2, 2, 2, 2, 2, 2, 2])
        monkeypatch.setattr(low_rank, "_descend", lambda x, start, fits=fits: next(fits))
        monkeypatch.setattr(low_rank, "mean_cosine", lambda x, counter=counter: 0.5 if next(counter) else 1.0)
        assert abs(fit_directions(x, restarts=2).basis[:, 0] @ axes[kept]) > 0.99


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
