"""Directions that manifolds' centres share, found by how much the centres correlate without them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geophone.errors import GeophoneError
from geophone.geometry.compiled import compiled
from geophone.geometry.nnls import in_threads
from geophone.rng import stream

Array = NDArray[np.float64]

STEPS, LOOK = 1000, 50
SLOPE, GAIN = 1e-7, 1e-9
"""A fit ends when its gradient is below `SLOPE` times P, the size of the cost; when `LOOK` steps brought less than
`GAIN` of the cost; or after `STEPS` steps, the limit of the solver that the published code uses."""

LEAST = 1e-12
"""A residual centre's squared length, of 1, below which it has vanished."""


STABLE = 0.2
"""Of every centre, the share of its length that a fit has to leave, where any does: radii are in units of what is left.

On layers of small networks with ten classes, the cheapest of all fits left 2 to 30 %, and a radius of 25 at the worst.
"""


class Directions(NamedTuple):
    """What was fitted.

    Attributes:
        basis: The directions, `[d, k]`, orthonormal.
        residuals: Mean |cos| between the residual centres for each number of directions that was tried: entry 0 is
            that of the centres themselves, and entry k of k directions, NaN where it was not tried.
    """

    basis: Array
    residuals: tuple[float, ...]

    @property
    def k(self) -> int:
        """How many directions."""
        return self.basis.shape[1]


def mean_cosine(x: Array) -> float:
    """Mean |cos| between different rows."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    p = len(x)
    return float((np.abs(unit @ unit.T).sum() - np.abs(np.einsum("ij,ij->i", unit, unit)).sum()) / (p * (p - 1)))


def fit_directions(centers: Array, *, published: bool = False, restarts: int = 10, seed: int = 0) -> Directions:
    """The k directions of centres `[P, d]`, without which these are correlated least.

    For k = 1, 2, … the directions V (orthonormal) minimise half the sum of squared correlations of what is left,

        ½ Σ_μν (x_μ·x_ν − c_μ·c_ν)² / (r_μ r_ν),  c = VVᵀx,  r_μ = |x_μ|² − |c_μ|²

    in the P − 1 dimensions that the centres span around their mean; the number of directions is the one with the
    least mean |cos| between what is left. Tried are at most 11 more than hold 95 % of the centres' variance, and no
    more once k is above 4 and the mean |cos| has risen three times in a row. The cost is not convex: each k is fitted
    from several starts, each the directions of k − 1 and a random combination of the centres, and the cheapest fit
    is kept, among those that leave a fifth of every centre's length. Where none does, it is the most stable one, with
    the largest min_μ |residual| / |x_μ|.

    Args:
        centers: One row for each manifold.
        published: As the published code has it: k = 0 is not considered, and of several starts the most stable is kept,
            whatever its cost.
        restarts: Starts for each k.
        seed: Keys the starts.

    Raises:
        GeophoneError: two centres, with `published`: nothing is left of them.

    References:
        Cohen et al. 2020, doi:10.1038/s41467-020-14578-5; Chung et al. 2018, arXiv:1710.06487.
    """
    p, d = centers.shape
    x = centers - centers.mean(0)
    first = mean_cosine(x)
    _, singular, axes = np.linalg.svd(x, full_matrices=False)
    rank = int((singular > singular[0] * max(p, d) * np.finfo(np.float64).eps).sum()) if singular[0] > 0 else 0
    held = np.cumsum(singular**2) / max(float((singular**2).sum()), np.finfo(np.float64).tiny)
    below = np.flatnonzero(held < 0.95)
    most = min((int(below[-1]) if len(below) else 0) + 11, min(p - 1, rank) - 1)
    if published and most < 1:
        raise GeophoneError(
            f"{p} manifolds whose centres span {rank} dimensions: the published code takes away one at least, and "
            "nothing is left of the centres. Use mode='default', which can take away none."
        )
    if most < 1:
        return Directions(np.zeros((d, 0)), (first,))
    basis = axes[: min(p - 1, rank)]  # the centres' own dimensions
    rows = x @ basis.T
    unit = np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    residuals = [first]
    found = [np.zeros((len(basis), 0))]
    rises = 0
    for k in range(1, most + 1):
        draws = torch.randn(restarts, p, generator=stream(seed, "centre directions", k), dtype=torch.float64).numpy()
        starts = [np.linalg.qr(np.column_stack([draw @ rows, found[-1]]))[0] for draw in draws]
        fits = in_threads(lambda start: _descend(unit, np.ascontiguousarray(start)), starts)
        stable = [] if published else [fit for fit in fits if fit[2] >= STABLE]
        best = min(stable, key=lambda fit: fit[1]) if stable else max(fits, key=lambda fit: fit[2])
        found.append(best[0])
        residuals.append(mean_cosine(unit - (unit @ best[0]) @ best[0].T))
        rises = rises + 1 if residuals[-1] > residuals[-2] else 0
        if k > 4 and rises >= 3:
            break
    start = 1 if published else 0
    chosen = start + int(np.argmin(residuals[start:]))
    return Directions(basis.T @ found[chosen], tuple(residuals))


@compiled
def _cost(x, gram, v, gradient):  # type: ignore[no-untyped-def]
    """The cost at V, its gradient into `gradient`, and the least residual length."""
    p = x.shape[0]
    c = x @ v
    cc = c @ c.T
    r = np.empty(p)
    for i in range(p):
        r[i] = max(1.0 - cc[i, i], LEAST)
    total = 0.0
    own = np.zeros(p)
    for i in range(p):
        for j in range(p):
            a = gram[i, j] - cc[i, j]
            weight = a / (r[i] * r[j])
            total += a * weight
            own[i] += a * weight / r[i]
            cc[i, j] = weight
    slope = cc @ c
    for i in range(p):
        for j in range(c.shape[1]):
            slope[i, j] = 2.0 * (own[i] * c[i, j] - slope[i, j])
    g = x.T @ slope
    g -= v @ (v.T @ g)
    gradient[:, :] = g
    return 0.5 * total, np.sqrt(r.min())


@compiled
def _descend(x, v):  # type: ignore[no-untyped-def]
    """Descent on orthonormal V with steps of Barzilai and Borwein and a line search that looks back ten costs.

    The cost depends on the span of V alone, so the gradient is that on the Grassmannian; QR brings a step back.

    Returns:
        V, the cost there and the least residual length, of centres of length 1.
    """
    gram = x @ x.T
    g = np.empty_like(v)
    cost, least = _cost(x, gram, v, g)
    best_v, best_cost, best_least = v.copy(), cost, least
    looked = cost
    recent = np.full(10, cost)
    step = 1.0 / max(np.sqrt((g * g).sum()), 1e-12)
    next_g = np.empty_like(v)
    for n in range(STEPS):
        square = (g * g).sum()
        if np.sqrt(square) <= SLOPE * x.shape[0]:
            break
        if n % LOOK == LOOK - 1:
            if looked - best_cost < GAIN * best_cost:
                break
            looked = best_cost
        ceiling = recent.max()
        after, q, now = np.inf, v, 0.0
        for _ in range(40):
            q = np.ascontiguousarray(np.linalg.qr(v - step * g)[0])
            after, now = _cost(x, gram, q, next_g)
            if after <= ceiling - 1e-4 * step * square:
                break
            step *= 0.3
        else:
            break
        # Columns of q may have turned over, which the span doesn't show: bring it to v's side before differences.
        left, _s, right = np.linalg.svd(v.T @ q)
        rotation = np.ascontiguousarray((np.ascontiguousarray(left) @ np.ascontiguousarray(right)).T)
        q = q @ rotation
        next_g = next_g @ rotation
        ds, dg = q - v, next_g - g
        across = np.abs((ds * dg).sum())
        if across > 0:
            step = (ds * ds).sum() / across if n % 2 else across / max((dg * dg).sum(), 1e-300)
        step = min(max(step, 1e-10), 1e6)
        v = q
        g = next_g.copy()
        cost, least = after, now
        recent[n % 10] = cost
        if cost < best_cost:
            best_v, best_cost, best_least = v.copy(), cost, least
    return best_v, best_cost, best_least
