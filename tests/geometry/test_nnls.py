"""Projections onto cones: against scipy, against the conditions of optimality, and by matrix products alone."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry import nnls as module
from geophone.metrics.geometry.nnls import (
    Cones,
    kkt_residual,
    nonnegative,
    project,
    project_all,
    project_batched,
    refuse_unsolved,
)


@pytest.fixture
def no_fallback(monkeypatch):
    """What the kernel leaves would be solved by scipy, which is the oracle here: a broken kernel would not be seen."""

    def fail(*_):
        raise AssertionError("the kernel left a program to scipy")

    monkeypatch.setattr("scipy.optimize.nnls", fail)


SHAPES = [(51, 50), (11, 50), (11, 120), (2, 30), (1, 5), (30, 1)]  # many dimensions, few, one; one generator


def cone(r, m, q=40, *, seed=0, duplicates=False):
    generator = stream("cone", r, m, seed)
    s = torch.randn(r, m, generator=generator, dtype=torch.float64)
    s[-1] = 1
    if duplicates:
        s = torch.cat([s, s], dim=1)
    return s, 2 * torch.randn(q, r, generator=generator, dtype=torch.float64)


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize(("r", "m"), SHAPES)
def test_is_the_nearest_point_of_the_cone_as_scipy_finds_it(r, m, duplicates):
    s, t = cone(r, m, duplicates=duplicates)
    made = project(s, t)
    distance = (t - made.z @ s.T).norm(dim=1)
    wanted = torch.tensor([nnls(s.numpy(), one.numpy())[1] for one in t], dtype=torch.float64)
    # Both are exact methods; the distance is known to rounding times the problem's condition, far below 1e-8.
    torch.testing.assert_close(distance, wanted, rtol=0, atol=1e-8)
    assert float(made.z.min()) >= 0
    assert float(made.residual.max()) <= module.ACCEPTED


def test_orthogonal_generators_have_their_positive_parts():
    s = 3 * torch.eye(6, dtype=torch.float64)
    t = torch.randn(20, 6, generator=stream("orthant"), dtype=torch.float64)
    # Each coordinate by itself: z = max(t, 0)/3.
    torch.testing.assert_close(project(s, t).z, t.clamp(min=0) / 3, rtol=1e-14, atol=0)


def test_what_the_conditions_of_optimality_say_is_what_they_are():
    s, t = cone(8, 12)
    z = project(s, t).z
    wrong = z.clone()
    wrong[:, 0] += 0.1
    moved = kkt_residual(s, t, wrong)
    assert float(kkt_residual(s, t, z).max()) < 1e-13
    assert float(moved.min()) > 1e-6
    # Written out for one program.
    slope = s.T @ (t[3] - s @ wrong[3])
    by_hand = max(
        float(abs(w) if active else max(w, 0)) / float(s[:, i].norm() * t[3].norm())
        for i, (w, active) in enumerate(zip(slope, wrong[3] > 0, strict=True))
    )
    assert abs(float(moved[3]) - by_hand) < 1e-15


@pytest.mark.parametrize(("r", "m"), SHAPES)
def test_matrix_products_alone_find_the_same_where_they_say_so(r, m):
    s, t = cone(r, m)
    exact = project(s, t)
    (made,) = project_batched(s[None], t[None])
    good = made.residual <= module.ACCEPTED
    assert float(good.double().mean()) >= 0.75  # the others are solved again on the CPU
    torch.testing.assert_close((made.z @ s.T)[good], (exact.z @ s.T)[good], rtol=0, atol=1e-7)


def test_a_program_that_rounding_spoils_is_solved_again(monkeypatch):
    s, t = cone(9, 14)
    wanted = project(s, t)

    def poor(gram, b):
        z = nonnegative(gram, b)
        z[::3] *= 1.001
        return z

    monkeypatch.setattr(module, "nonnegative", poor)
    made = project(s, t)
    torch.testing.assert_close(made.z @ s.T, wanted.z @ s.T, rtol=0, atol=1e-10)
    assert float(made.residual.max()) < module.ACCEPTED


@pytest.mark.parametrize("mutant", [lambda gram, b: np.zeros_like(b), lambda gram, b: np.maximum(b, 0) / np.diag(gram)])
@pytest.mark.usefixtures("no_fallback")
def test_a_broken_kernel_is_seen(mutant, monkeypatch):
    monkeypatch.setattr(module, "nonnegative", mutant)
    with pytest.raises(AssertionError, match="left a program to scipy"):
        project(*cone(9, 14))


def test_scipy_giving_up_leaves_what_there_was_and_that_is_refused(monkeypatch):
    def gives_up(*_):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", gives_up)
    monkeypatch.setattr(module, "nonnegative", lambda gram, b: np.zeros_like(b))
    made = project(*cone(9, 14))
    assert float(made.z.abs().max()) == 0
    with pytest.raises(GeophoneError, match="KKT residual"):
        refuse_unsolved(float(made.residual.max()))


def test_programs_are_polished_in_pieces_as_all_at_once(monkeypatch):
    s, t = cone(20, 15)
    (whole,) = project_batched(s[None], t[None])
    monkeypatch.setattr(module, "CHUNK", 3 * 15 * 15)
    (pieces,) = project_batched(s[None], t[None])
    torch.testing.assert_close(pieces.z, whole.z, rtol=0, atol=1e-12)


def test_several_cones_are_each_projected_to_by_itself():
    parts = [cone(r, m, seed=i) for i, (r, m) in enumerate(SHAPES)]
    for (s, t), made in zip(parts, project_all(*zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(made.z, project(s, t).z, rtol=0, atol=0)


# Mutants: methods that look like non-negative least squares and are not.


def clipped(s, t):
    """Least squares, then what is negative set to 0."""
    z = torch.linalg.lstsq(s, t.T).solution.T.clamp(min=0)
    return Cones(z, kkt_residual(s, t, z))


def one_sweep(s, t):
    """One pass of coordinate descent."""
    z = torch.zeros(len(t), s.shape[1], dtype=torch.float64)
    gram = s.T @ s
    for i in range(s.shape[1]):
        z[:, i] = ((t @ s - z @ gram)[:, i] / gram[i, i]).clamp(min=0)
    return Cones(z, kkt_residual(s, t, z))


@pytest.mark.parametrize("mutant", [clipped, one_sweep])
def test_mutants_are_found(mutant):
    s, t = cone(8, 12)
    wanted = np.array([nnls(s.numpy(), one.numpy())[1] for one in t])
    found = (t - mutant(s, t).z @ s.T).norm(dim=1).numpy()
    assert np.abs(found - wanted).max() > 1e-3
    assert float(mutant(s, t).residual.max()) > module.ACCEPTED
