"""Non-negative least squares on a Gram matrix that many right-hand sides share: projections onto a convex cone.

Every quadratic program of manifold capacity is one: with s_i the generators of a cone and t a point, the cone's nearest
point to t is Σ z_i s_i, where z ≥ 0 minimises ½ zᵀGz − bᵀz, G = SᵀS and b = Sᵀt. G belongs to the manifold; only b
belongs to t.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from geophone.geometry.active_set import enter, settle
from geophone.geometry.compiled import compiled

Array = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")

TOLERANCE = 1e-12
"""A generator enters while its slope is above this, relative to its own length and to the largest such slope at 0."""

ACCEPTED = 1e-9
"""The relative KKT residual above which a program is solved again by other means."""


class Cones(NamedTuple):
    """Projections of many points onto one cone.

    Attributes:
        z: The multipliers, `[q, m]`, at least 0.
        residual: The relative KKT residual of each, `[q]`: the largest slope that is left, over |s_i| |t|.
    """

    z: Float[Tensor, "q m"]
    residual: Float[Tensor, " q"]


@compiled
def lawson_hanson(gram, b, tolerance, z, place, factor, work):  # type: ignore[no-untyped-def]
    """Minimise ½ zᵀGz − bᵀz over z ≥ 0 by the active-set method of Lawson and Hanson.

    Args:
        gram: `[m, m]`.
        b: `[m]`.
        tolerance: Relative to the largest b_i/√G_ii.
        z: The answer, `[m]`; what it holds before does not matter.
        place: Room for `[m]` int64; on return its first entries are the generators in use.
        factor: Room for `[m, m]`.
        work: Room for `[5, m]`.

    Returns:
        How many generators are in use.
    """
    m = len(b)
    slope, row, solution, used, target = work[0], work[1], work[2], work[3], work[4]
    state = np.zeros(m, dtype=np.int8)  # 0 outside, 1 in use, 2 barred until something enters
    top = 0.0
    for i in range(m):
        z[i] = 0.0
        slope[i] = b[i]
        if gram[i, i] > 0:
            top = max(top, b[i] / np.sqrt(gram[i, i]))
    size = 0
    for _ in range(10 * m + 30):
        best, entering = tolerance * top, -1
        for i in range(m):
            if state[i] == 0 and gram[i, i] > 0:
                steep = slope[i] / np.sqrt(gram[i, i])
                if steep > best:
                    best, entering = steep, i
        if entering < 0:
            break
        for i in range(size):
            row[i] = gram[entering, place[i]]
        if not enter(factor, size, row, gram[entering, entering]):
            state[entering] = 2
            continue
        for i in range(size):
            state[place[i]] = 0
        place[size], used[size], target[size] = entering, 0.0, b[entering]
        size = settle(factor, place, used, target, size + 1, solution)
        stayed = False
        slope[:] = b
        for i in range(size):
            state[place[i]] = 1
            stayed = stayed or place[i] == entering
            line, much = gram[place[i]], used[i]
            for j in range(m):
                slope[j] -= much * line[j]
        if not stayed:
            state[entering] = 2  # it can't grow: rounding had given it a slope
            continue
        for i in range(m):
            if state[i] == 2:
                state[i] = 0
    for i in range(size):
        z[place[i]] = used[i]
    return size


@compiled
def _solve_all(gram, b, tolerance, z):  # type: ignore[no-untyped-def]
    m = gram.shape[0]
    place = np.empty(m, dtype=np.int64)
    factor = np.empty((m, m))
    work = np.empty((5, m))
    for q in range(b.shape[0]):
        lawson_hanson(gram, b[q], tolerance, z[q], place, factor, work)


def nonnegative(gram: Array, b: Array) -> Array:
    """Z ≥ 0 that minimises ½ zᵀGz − bᵀz for every row of b: `[m, m]` and `[q, m]` to `[q, m]`.

    Exact up to rounding (Lawson & Hanson 1974, chapter 23), O(m²) at each of the few steps that a program takes.
    """
    z = np.empty_like(b)
    _solve_all(np.ascontiguousarray(gram), np.ascontiguousarray(b), TOLERANCE, z)
    return z


def project(generators: Float[Tensor, "r m"], points: Float[Tensor, "q r"]) -> Cones:
    """Project points onto the cone that generators span: on a CPU, exactly.

    Whatever KKT residual is above `ACCEPTED` is solved again from the generators themselves, without their Gram matrix,
    which halves the digits.

    Args:
        generators: s_i in columns.
        points: t in rows.
    """
    gram, b = generators.T @ generators, points @ generators
    z = torch.from_numpy(nonnegative(gram.numpy(), b.numpy()))
    residual = kkt_residual(generators, points, z)
    if len(worst := (residual > ACCEPTED).nonzero()[:, 0]):
        matrix = generators.numpy()
        again = torch.stack([torch.from_numpy(nnls(matrix, points[q].numpy())[0]) for q in worst.tolist()])
        after = kkt_residual(generators, points[worst], again)
        better = after < residual[worst]
        z[worst[better]], residual[worst[better]] = again[better], after[better]
    return Cones(z, residual)


def project_all(generators: Sequence[Float[Tensor, "_ _"]], points: Sequence[Float[Tensor, "_ _"]]) -> list[Cones]:
    """Project onto several cones, each its own points: in threads on a CPU, elsewhere all of one size at once.

    On another device, whatever `project_batched` leaves above `ACCEPTED` is solved again on the CPU.
    """
    if generators[0].device.type == "cpu":
        return in_threads(lambda both: project(*both), list(zip(generators, points, strict=True)))
    found: dict[int, Cones] = {}
    sizes: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for i, (s, t) in enumerate(zip(generators, points, strict=True)):
        sizes.setdefault((s.shape, t.shape), []).append(i)
    for here in sizes.values():
        s, t = torch.stack([generators[i] for i in here]), torch.stack([points[i] for i in here])
        for i, (z, residual) in zip(here, project_batched(s, t), strict=True):
            if len(worst := (residual > ACCEPTED).nonzero()[:, 0]):
                again = project(generators[i].cpu(), points[i][worst].cpu())
                z[worst], residual[worst] = again.z.to(z), again.residual.to(residual)
            found[i] = Cones(z, residual)
    return [found[i] for i in range(len(found))]


def kkt_residual(
    generators: Float[Tensor, "... r m"], points: Float[Tensor, "... q r"], z: Float[Tensor, "... q m"]
) -> Float[Tensor, "... q"]:
    """How far multipliers are from optimal: the largest slope w_i, or |w_i| where z_i > 0, with w = Sᵀ(t − Sz).

    Relative to |s_i| |t|, so a number of the order of 1e-16 is as good as float64 allows.
    """
    slope = (points - z @ generators.mT) @ generators
    wrong = torch.where(z > 0, slope.abs(), slope.clamp(min=0))
    length = generators.norm(dim=-2).clamp(min=torch.finfo(z.dtype).tiny)
    scale = points.norm(dim=-1).clamp(min=torch.finfo(z.dtype).tiny)
    return (wrong / length[..., None, :]).amax(-1) / scale


def project_batched(
    generators: Float[Tensor, "p r m"], points: Float[Tensor, "p q r"], steps: int = 400
) -> list[Cones]:
    """Project onto several cones of one size at once, by matrix products alone: the way of a GPU.

    ADMM on the dual, min ½ zᵀGz − bᵀz + [y ≥ 0] with z = y, needs one factorisation of G + ρI for each cone and a
    product for each step (Boyd et al. 2011, doi:10.1561/2200000016); its support is then solved for exactly, by one
    masked Cholesky factorisation for each program, and kept where that is feasible and nearer to optimal.

    Args:
        generators: s_i in columns, for each cone.
        points: t in rows.
        steps: Of ADMM.
    """
    p, _, m = generators.shape
    gram, b = generators.mT @ generators, points @ generators
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    rho = diagonal.mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)[:, None, None]
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram + rho * eye)
    y = torch.zeros_like(b)
    u = torch.zeros_like(b)
    for _ in range(steps):
        z = (b + rho * (y - u)) @ inverse
        y = (z + u).clamp(min=0)
        u = u + z - y
    best, residual = y, kkt_residual(generators, points, y)
    jitter = 1e-14 * diagonal.amax(-1)[:, None, None, None]
    for _ in range(3):  # the support, then what its solution and the slopes say of it
        on = best > 0
        both = on[..., :, None] & on[..., None, :]
        masked = torch.where(both, gram[:, None], eye) + jitter * eye
        factor, failed = torch.linalg.cholesky_ex(masked)
        exact = torch.cholesky_solve(torch.where(on, b, 0)[..., None], factor)[..., 0]
        exact = torch.where(on, exact, 0).clamp(min=0)
        exact = torch.where((failed == 0)[..., None], exact, best)
        nearer = kkt_residual(generators, points, exact)
        better = nearer < residual
        best = torch.where(better[..., None], exact, best)
        residual = torch.where(better, nearer, residual)
        if not bool(better.any()):
            break
    return [Cones(best[i], residual[i]) for i in range(p)]


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in as many threads as torch has: for kernels that let the interpreter's lock go."""
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
