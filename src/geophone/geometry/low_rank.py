"""Directions that manifolds' centres share, found by how much the centres correlate without them."""

from collections.abc import Sequence
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

REACH = 10.0
"""The longest step, in tangents of angles: beyond it directions change wholly, and their factorisation loses digits."""

KEPT = 0.2
"""Of every centre, the share of its length that a fit has to leave: radii are in units of what is left.

On layers of small networks with ten classes, the cheapest of all fits left 1 to 30 %, and a radius of 25 at the worst.
"""

NEARLY = 0.95
"""Of that share, what has to be left: the penalty for less is finite, and lets a centre fall short by a per cent."""


ROUND, ALIKE, AGREE = 10, 0.7, 1e-4
"""After every `ROUND` starts a fit is done if a share `ALIKE` of them all is within `AGREE` of the cheapest."""


class Directions(NamedTuple):
    """What was fitted.

    Attributes:
        basis: The directions, `[d, k]`, orthonormal.
        residuals: Mean |cos| between the residual centres for each number of directions that was tried: entry 0 is
            that of the centres themselves, and entry k of k directions, NaN where no fit leaves enough of each centre.
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


def fit_directions(centers: Array, *, published: bool = False, restarts: int = 60, seed: int = 0) -> Directions:
    """The k directions of centres `[P, d]`, without which these are correlated least.

    For k = 1, 2, … the directions V (orthonormal) minimise half the sum of squared correlations of what is left,

        ½ Σ_μν (x_μ·x_ν − c_μ·c_ν)² / (r_μ r_ν) + P Σ_μ max(0, 1 − r_μ / (0.2² |x_μ|²))²,
        c = VVᵀx,  r_μ = |x_μ|² − |c_μ|²

    in the P − 1 dimensions that the centres span around their mean; the second sum is ours, and keeps a fifth of every
    centre's length. The number of directions is the one with the least mean |cos| between what is left, among those
    with which that much can be kept. Tried are at most 11 more than hold 95 % of the centres' variance, and no more
    once k is above 4 and the mean |cos| has risen three times in a row. The cost is not convex: each k is fitted from
    several starts, by turns the directions of k − 1 with a random combination of the centres, and k such combinations,
    and the cheapest fit is kept. There are no more starts once 70 % of at least 10 end within 1e-4 of the cheapest.

    Args:
        centers: One row for each manifold.
        published: As the published code has it: k = 0 is not considered, nothing keeps centres from vanishing, all
            starts are of the first kind and all are made, and the fit that is kept is the most stable one, with the
            largest min_μ r_μ / |x_μ|², whatever its cost.
        restarts: Starts for each k, at most.
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
        draws = torch.randn(restarts, k, p, generator=stream(seed, "centre directions", k), dtype=torch.float64).numpy()
        combined = [(draw @ rows).T for draw in draws]
        near = [np.column_stack([some[:, 0], found[-1]]) for some in combined]
        starts = near if published else [one[i % 2] for i, one in enumerate(zip(near, combined, strict=True))]
        v, least = _most_stable(unit, starts) if published else _cheapest(unit, starts)
        found.append(v)
        enough = published or least >= NEARLY * KEPT
        residuals.append(mean_cosine(unit - (unit @ v) @ v.T) if enough else float("nan"))
        rises = rises + 1 if residuals[-1] > residuals[-2] else 0
        if k > 4 and rises >= 3:
            break
    start = 1 if published else 0
    chosen = start + int(np.nanargmin(residuals[start:]))
    return Directions(basis.T @ found[chosen], tuple(residuals))


def _most_stable(x: Array, starts: Sequence[Array]) -> tuple[Array, float]:
    """The published choice among fits of rows of length 1: the directions and the least length that they leave."""
    v, _, least = max(_fits(x, starts, 0.0), key=lambda fit: fit[2])
    return v, least


def _cheapest(x: Array, starts: Sequence[Array]) -> tuple[Array, float]:
    """Ours, which keeps centres from vanishing."""
    fits: list[tuple[Array, float, float]] = []
    for some in range(0, len(starts), ROUND):
        fits += _fits(x, starts[some : some + ROUND], float(len(x)))
        costs = np.array([cost for _, cost, _ in fits])
        if len(fits) >= ROUND and (costs <= (1 + AGREE) * costs.min()).mean() >= ALIKE:
            break
    v, _, least = min(fits, key=lambda fit: fit[1])
    return v, least


def _fits(x: Array, starts: Sequence[Array], penalty: float) -> list[tuple[Array, float, float]]:
    return in_threads(lambda start: _descend(x, np.ascontiguousarray(np.linalg.qr(start)[0]), penalty), starts)


@compiled
def _cost(x, gram, v, penalty, gradient):  # type: ignore[no-untyped-def]
    """The cost at V, its gradient into `gradient`, and the least residual length."""
    p, k = x.shape[0], v.shape[1]
    c = x @ v
    cc = c @ c.T
    r = np.empty(p)
    inverse = np.empty(p)
    for i in range(p):
        r[i] = max(1.0 - cc[i, i], LEAST)
        inverse[i] = 1.0 / r[i]
    total = 0.0
    for i in range(p):
        own = 0.0
        for j in range(p):
            a = gram[i, j] - cc[i, j]
            weight = a * inverse[j]
            own += a * weight
            cc[i, j] = weight * inverse[i]
        own *= inverse[i]
        total += 0.5 * own
        own *= inverse[i]
        short = 1.0 - r[i] / KEPT**2
        if short > 0:
            total += penalty * short * short
            own += penalty * 2.0 * short / KEPT**2
        cc[i, i] -= own  # of c_i's slope, what comes from its own residual length
    slope = cc @ c
    g = x.T @ slope
    g -= v @ (v.T @ g)
    for i in range(g.shape[0]):
        for j in range(k):
            gradient[i, j] = -2.0 * g[i, j]
    return total, np.sqrt(r.min())


@compiled
def _stepped(v, g, step):  # type: ignore[no-untyped-def]
    """V less a step along the gradient, orthonormal again, by the Cholesky factor of its Gram matrix.

    The gradient is at right angles to V, so that matrix is 1 + step² gᵀg, well conditioned up to `REACH`.
    """
    q = v - step * g
    n, k = q.shape
    left = q.T @ q
    for j in range(k):
        for i in range(j):
            for m in range(j, k):
                left[m, j] -= left[m, i] * left[j, i]
        root = np.sqrt(left[j, j])
        for m in range(j, k):
            left[m, j] /= root
        for i in range(n):
            value = q[i, j]
            for m in range(j):
                value -= left[j, m] * q[i, m]
            q[i, j] = value / root
    return q


@compiled
def _descend(x, v, penalty):  # type: ignore[no-untyped-def]
    """Descent on orthonormal V with steps of Barzilai and Borwein and a line search that looks back ten costs.

    The cost depends on the span of V alone, so the gradient is that on the Grassmannian.

    Returns:
        V, the cost there and the least residual length, of centres of length 1.
    """
    gram = x @ x.T
    g = np.empty_like(v)
    cost, least = _cost(x, gram, v, penalty, g)
    best_v, best_cost, best_least = v.copy(), cost, least
    looked = cost
    recent = np.full(10, cost)
    square = (g * g).sum()
    step = 1.0 / max(np.sqrt(square), 1e-12)
    next_g = np.empty_like(v)
    for n in range(STEPS):
        if np.sqrt(square) <= SLOPE * x.shape[0]:
            break
        if n % LOOK == LOOK - 1:
            if looked - best_cost < GAIN * best_cost:
                break
            looked = best_cost
        ceiling = recent.max()
        step = min(max(step, 1e-10), REACH / np.sqrt(square))
        after, q, now = np.inf, v, 0.0
        for _ in range(40):
            q = _stepped(v, g, step)
            after, now = _cost(x, gram, q, penalty, next_g)
            if after <= ceiling - 1e-4 * step * square:
                break
            step *= 0.3
        else:
            break
        across, moved, turned = 0.0, 0.0, 0.0
        for i in range(v.shape[0]):
            for j in range(v.shape[1]):
                ds, dg = q[i, j] - v[i, j], next_g[i, j] - g[i, j]
                across += ds * dg
                moved += ds * ds
                turned += dg * dg
        across = np.abs(across)
        if across > 0:
            step = moved / across if n % 2 else across / max(turned, 1e-300)
        v = q
        g, next_g = next_g, g
        square = (g * g).sum()
        cost, least = after, now
        recent[n % 10] = cost
        if cost < best_cost:
            best_v, best_cost, best_least = v.copy(), cost, least
    return best_v, best_cost, best_least
