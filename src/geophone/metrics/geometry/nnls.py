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
from torch import Tensor

from geophone.core.errors import GeophoneError

Array = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")

TOLERANCE = 1e-12
"""A generator enters while its slope is above this, relative to its own length and to the largest such slope at 0."""

CHUNK = 2**26
"""Numbers in the matrices of several programs that are held at once: half a gigabyte."""

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


def nonnegative(gram: Array, b: Array) -> Array:
    """Z ≥ 0 that minimises ½ zᵀGz − bᵀz for every row of b: `[m, m]` and `[q, m]` to `[q, m]`.

    Exact up to rounding (Lawson & Hanson 1974, chapter 23), O(m²) at each of the few steps that a program takes.
    """
    from geophone.metrics.geometry.active_set import solve_all

    z = np.empty_like(b)
    solve_all(np.ascontiguousarray(gram), np.ascontiguousarray(b), TOLERANCE, z)
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
        tried = [from_points(matrix, points[q].numpy(), z[q].numpy()) for q in worst.tolist()]
        again = torch.from_numpy(np.stack(tried))
        after = kkt_residual(generators, points[worst], again)
        better = after < residual[worst]
        z[worst[better]], residual[worst[better]] = again[better], after[better]
    return Cones(z, residual)


def from_points(generators: Array, point: Array, instead: Array) -> Array:
    """Multipliers by scipy's method, which takes no Gram matrix; others instead, where it gives up."""
    from scipy.optimize import nnls

    try:
        found: Array = nnls(generators, point)[0]
    except RuntimeError:  # it has taken too many steps
        return instead
    return found


def refuse_unsolved(residual: float) -> None:
    """Raise an error where programs were left with a larger KKT residual than `ACCEPTED`.

    Raises:
        GeophoneError: they were.
    """
    if not residual <= ACCEPTED:
        raise GeophoneError(
            f"a program is solved to a relative KKT residual of {residual:.1e} only, {ACCEPTED:g} is needed: points "
            "are on scales too different for float64, as where a centre nearly vanishes. Take out such manifolds."
        )


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
        found |= dict(zip(here, project_batched(s, t), strict=True))
    left = {i: (cone.residual > ACCEPTED).nonzero()[:, 0] for i, cone in found.items()}
    left = {i: worst for i, worst in left.items() if len(worst)}
    again = in_threads(lambda i: project(generators[i].cpu(), points[i][left[i]].cpu()), list(left))
    for (i, worst), (z, residual) in zip(left.items(), again, strict=True):
        found[i].z[worst], found[i].residual[worst] = z.to(found[i].z), residual.to(found[i].residual)
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
    rho = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)[:, None, None]
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram + rho * eye)
    y = torch.zeros_like(b)
    u = torch.zeros_like(b)
    for _ in range(steps):
        z = (b + rho * (y - u)) @ inverse
        y = (z + u).clamp(min=0)
        u = u + z - y
    most = max(1, CHUNK // (p * m * m))
    parts = [_polished(generators, points[:, q], gram, b[:, q], y[:, q]) for q in torch.arange(b.shape[1]).split(most)]
    best, residual = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return [Cones(best[i], residual[i]) for i in range(p)]


def _polished(
    generators: Float[Tensor, "p r m"],
    points: Float[Tensor, "p q r"],
    gram: Float[Tensor, "p m m"],
    b: Float[Tensor, "p q m"],
    best: Float[Tensor, "p q m"],
) -> tuple[Float[Tensor, "p q m"], Float[Tensor, "p q"]]:
    """Multipliers solved for exactly on their support, where that is feasible and nearer to optimal; their residual."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    residual = kkt_residual(generators, points, best)
    jitter = 1e-14 * gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None, None]
    for _ in range(3):  # the support, then what its solution says of it
        on = best > 0
        both = on[..., :, None] & on[..., None, :]
        factor, failed = torch.linalg.cholesky_ex(torch.where(both, gram[:, None], eye) + jitter * eye)
        exact = torch.cholesky_solve(torch.where(on, b, 0)[..., None], factor)[..., 0]
        exact = torch.where(on, exact, 0).clamp(min=0)
        exact = torch.where((failed == 0)[..., None], exact, best)
        nearer = kkt_residual(generators, points, exact)
        better = nearer < residual
        best = torch.where(better[..., None], exact, best)
        residual = torch.where(better, nearer, residual)
        if not bool(better.any()):
            break
    return best, residual


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in as many threads as torch has: for kernels that let the interpreter's lock go."""
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
