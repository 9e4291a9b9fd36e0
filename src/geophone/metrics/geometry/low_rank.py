"""Directions that manifolds' centres share, found by how much the centres correlate without them."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry.compiled import compiled
from geophone.metrics.geometry.nnls import in_threads

Array = NDArray[np.float64]

STEPS, LOOK = 1000, 50
SLOPE, GAIN = 1e-7, 1e-9
"""A fit ends when its gradient is below `SLOPE` times P, the size of the cost; when `LOOK` steps brought less than
`GAIN` of the cost; or after `STEPS` steps, the limit of the solver that the published code uses."""

LEAST = 1e-12
"""A residual centre's squared length, of 1, below which it has vanished."""

REACH = 10.0
"""The longest step, in tangents of angles: beyond it directions change wholly, and their factorisation loses digits."""

KEPT = 0.3
"""What a fit has to leave of every centre: this share of the centre's length, or of what all are left with on average.

Radii are in units of what is left. On layers of small networks with ten classes, the cheapest of all fits left 1 to
30 % of a centre, and a radius of 25 at the worst.
"""

ROUND, ALIKE, AGREE = 10, 0.7, 1e-4
"""After every `ROUND` starts a fit is done if a share `ALIKE` of them all is within `AGREE` of the cheapest."""


class Directions(NamedTuple):
    """What was fitted.

    Attributes:
        basis: The directions, `[d, k]`, orthonormal.
        residuals: Mean |cos| between the residual centres for each number of directions that was tried: entry 0 is
            that of the centres themselves, and entry k of k directions.
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


def fit_directions(
    centers: Array, *, published: bool = False, restarts: int | None = None, seed: int = 0
) -> Directions:
    """The k directions of centres `[P, d]`, without which these are correlated least.

    For k = 0, 1, 2, … the directions V (orthonormal) minimise half the sum of squared correlations of what is left, and
    a price on leaving too little,

        ½ Σ_μν (x_μ·x_ν − c_μ·c_ν)² / (r_μ r_ν) + P Σ_μ max(0, 1 − r_μ / (0.3² min(|x_μ|², r̄)))²,
        c = VVᵀx,  r_μ = |x_μ|² − |c_μ|²,  r̄ their mean

    in the D dimensions, P − 1 at most, that the centres span around their mean; k is the cheapest. The price is ours:
    no centre vanishes, since about 0.3 is left of its length, or of the average length that is left of all.

    Without it the cost is at least P²/2(D − k), that of a tight frame (Welch's bound). Larger k are not tried where
    that is no less than the cheapest so far; once k is above 4 and the cost has risen three times in a row; beyond 10
    more than the components that hold less than 95 % of the centres' variance; and where V has as many free
    parameters, k(D − k), as a tight frame has conditions, (D − k)(D − k + 1)/2 − 1: with so many directions nearly
    tight frames can be made of most centres, in many ways. That leaves k up to about D/3, and none for four centres or
    fewer.

    The cost is not convex. Each k is fitted from several starts, by turns the directions of k − 1 with a random
    combination of the centres, and k such combinations, until 70 % of at least 10 end within 1e-4 of the cheapest.

    Args:
        centers: One row for each manifold.
        published: As the published code has it: there is no price, all starts are of the first kind and all are made,
            and the fit that is kept is the most stable one, with the largest min_μ r_μ / |x_μ|², whatever its cost; k
            is not 0, but that with the least mean |cos| between what is left, of those until, above 4, it has risen
            three times in a row.
        restarts: Starts for each k, at most; None is 60, or with `published` 10 as that code has.
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
    lengths = np.linalg.norm(rows, axis=1)
    unit = np.ascontiguousarray(rows / lengths[:, None])
    span, many = len(basis), restarts or (10 if published else 60)

    def starts(k: int, before: Array) -> Iterator[Array]:
        draws = torch.randn(many, k, p, generator=stream(seed, "centre directions", k), dtype=torch.float64).numpy()
        for i, draw in enumerate(draws):
            near = published or i % 2 == 0
            chosen = np.column_stack([draw[0] @ rows, before]) if near else (draw @ rows).T
            yield np.ascontiguousarray(np.linalg.qr(chosen)[0])

    found, residuals = [np.zeros((span, 0))], [first]
    costs = [0.5 * float(np.square(unit @ unit.T).sum())]
    rises = 0
    for k in range(1, most + 1):
        left = span - k
        if not published and (p**2 / (2 * left) >= min(costs) or k * left >= left * (left + 1) / 2 - 1):
            break
        fits = _fits(unit, lengths, starts(k, found[-1]), published)
        v, cost, _ = max(fits, key=lambda fit: fit[2]) if published else min(fits, key=lambda fit: fit[1])
        found.append(v)
        costs.append(cost)
        residuals.append(mean_cosine(unit - (unit @ v) @ v.T))
        judged = residuals if published else costs
        rises = rises + 1 if judged[-1] > judged[-2] else 0
        if k > 4 and rises >= 3:
            break
    chosen = 1 + int(np.argmin(residuals[1:])) if published else int(np.argmin(costs))
    return Directions(basis.T @ found[chosen], tuple(residuals))


def _fits(x: Array, lengths: Array, starts: Iterator[Array], published: bool) -> list[tuple[Array, float, float]]:
    """Fits to rows of length 1 from several starts: all, or until enough of them agree."""
    squares, price = np.square(lengths / lengths.max()), 0.0 if published else float(len(x))
    fits: list[tuple[Array, float, float]] = []
    while some := list(islice(starts, ROUND)):
        fits += in_threads(lambda start: _descend(x, squares, start, price), some)
        costs = np.array([cost for _, cost, _ in fits])
        if not published and len(fits) >= ROUND and (costs <= (1 + AGREE) * costs.min()).mean() >= ALIKE:
            break
    return fits


@compiled
def _cost(x, squares, gram, v, price, gradient):  # type: ignore[no-untyped-def]
    """The cost at V, its gradient into `gradient`, and what is left least of a centre.

    Args:
        x: Centres, each of length 1.
        squares: Their squared lengths, in any unit.
        gram: X Xᵀ.
        v: Orthonormal columns.
        price: P, or 0 for none; what is left is then counted of the centre's own length.
        gradient: Filled.
    """
    p, k = x.shape[0], v.shape[1]
    c = x @ v
    cc = c @ c.T
    r = np.empty(p)
    inverse = np.empty(p)
    mean = 0.0
    for i in range(p):
        r[i] = max(1.0 - cc[i, i], LEAST)
        inverse[i] = 1.0 / r[i]
        mean += squares[i] * r[i] / p
    total = 0.0
    for i in range(p):
        own = 0.0
        for j in range(p):
            a = gram[i, j] - cc[i, j]
            weight = a * inverse[j]
            own += a * weight
            cc[i, j] = weight * inverse[i]
        total += 0.5 * own * inverse[i]
        cc[i, i] -= own * inverse[i] ** 2  # of c_i's slope, what comes from its own residual length
    least, shared = 1.0, 0.0
    for i in range(p):
        whole = min(1.0, mean / squares[i]) if price > 0 else 1.0
        least = min(least, r[i] / whole)
        short = 1.0 - r[i] / (KEPT**2 * whole)
        if price > 0 and short > 0:
            total += price * short * short
            slope = 2.0 * price * short / (KEPT**2 * whole)
            cc[i, i] -= slope
            if whole < 1.0:
                shared += slope * r[i] / mean / p
    for i in range(p):
        cc[i, i] += shared * squares[i]
    g = x.T @ (cc @ c)
    g -= v @ (v.T @ g)
    for i in range(g.shape[0]):
        for j in range(k):
            gradient[i, j] = -2.0 * g[i, j]
    return total, np.sqrt(least)


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
def _descend(x, squares, v, price):  # type: ignore[no-untyped-def]
    """Descent on orthonormal V with steps of Barzilai and Borwein and a line search that looks back ten costs.

    The cost depends on the span of V alone, so the gradient is that on the Grassmannian.

    Returns:
        V, the cost there and what is left least of a centre, as `_cost` has it.
    """
    gram = x @ x.T
    g = np.empty_like(v)
    cost, least = _cost(x, squares, gram, v, price, g)
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
            after, now = _cost(x, squares, gram, q, price, next_g)
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
