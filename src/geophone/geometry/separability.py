"""Can two point clouds be told apart by a hyperplane: exactly, and on points that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from geophone.errors import GeophoneError
from geophone.geometry.active_set import enter, settle
from geophone.geometry.clouds import as_clouds
from geophone.geometry.compiled import compiled
from geophone.geometry.glue import span
from geophone.geometry.nnls import in_threads, lawson_hanson
from geophone.rng import stream

TOUCHING = 1e-7
"""Distance between two hulls, relative to the longest point about the mean, that counts as 0.

Points come from their Gram matrix, which halves the digits, and usually from float32.
"""

_TOLERANCE = 1e-14  # of the nearest points' slope, relative to the squared scale
_TIE = 1e-9  # of a score, relative to the largest there could be: on the hyperplane


@dataclass(frozen=True)
class Separability:
    """Whether and how well two clouds are separated by a hyperplane.

    Attributes:
        separable: Whether the clouds are separated by a hyperplane.
        margin: Half the distance between their convex hulls, in units of the features; 0 when they meet.
        accuracy: Balanced accuracy of a linear support vector machine on held-out points, in [0, 1]: about 0.5 when the
            clouds overlap fully, 1 when they are apart.
    """

    separable: bool
    margin: float
    accuracy: float


def linear_separability(a: Any, b: Any, *, folds: int = 2, c: float = 1.0, seed: int = 0) -> Separability:
    """How well a hyperplane separates two clouds: the exact margin, and the accuracy on held-out points.

    The margin is half of min |p − q| over p in the convex hull of a and q in that of b: the hard-margin support vector
    machine's.

    The accuracy is that of the machine that minimises

        ½ |(w, w₀)|² + c Σ_i max(0, 1 − y_i (w·x_i + w₀))²

    on all folds but one, on that one, averaged over the folds; what LinearSVC(C=c, loss="squared_hinge", dual=True) of
    scikit-learn converges to, here exactly by its dual min_{z ≥ 0} ½ zᵀ(G_y + I/2c) z − 1ᵀz. Before, the mean of both
    clouds is subtracted and all features are divided by one number, so that the points' root mean squared length is 1:
    c means the same whatever the features' scale. Each cloud counts for half (the mean of both clouds' recalls, so 0.5
    is chance whatever their sizes), and a point on the hyperplane for half a hit.

    Folds are drawn within each cloud. If both have the same size then the i-th points of both are in the same fold: of
    clouds of corresponding points (an image's clean and perturbed responses) no machine is tested on the twin of a
    point that it was trained with, and equal clouds have 0.5 exactly.

    This protocol is Geophone's own; that of the paper on stochastic networks is not known.

    Args:
        a: Points, `[m, d]`.
        b: Points, `[k, d]`.
        folds: From 2 to the size of the smaller cloud.
        c: Cost of a violated margin, above 0.
        seed: Of the folds.

    Raises:
        GeophoneError: unusable clouds, or more folds than a cloud has points.

    References:
        Cortes & Vapnik 1995, doi:10.1007/BF00994018; Hsieh et al. 2008, doi:10.1145/1390156.1390208 (this dual);
        Wolfe 1976, doi:10.1007/BF01580381 (the nearest points).
    """
    return separabilities([(a, b)], folds=folds, c=c, seed=seed)[0]


def separabilities(
    pairs: Sequence[tuple[Any, Any]], *, folds: int = 2, c: float = 1.0, seed: int = 0
) -> list[Separability]:
    """`linear_separability` of many pairs of clouds, in as many threads as torch has.

    Pairs may differ in all sizes. Pairs of the same sizes have the same folds.

    Raises:
        GeophoneError: see `linear_separability`.
    """
    if not c > 0 or c == float("inf"):
        raise GeophoneError(f"c={c}: the cost of a violated margin is a number above 0.")
    return in_threads(lambda pair: _separability(pair, folds, c, seed), list(pairs))


def _separability(pair: tuple[Any, Any], folds: int, c: float, seed: int) -> Separability:
    clouds = [cloud.cpu() for cloud in as_clouds(pair)]
    sizes = [len(cloud) for cloud in clouds]
    if not 2 <= folds <= min(sizes):
        raise GeophoneError(
            f"folds={folds}: clouds of {sizes[0]} and {sizes[1]} points can be split into 2 to {min(sizes)} folds, "
            "and need at least two points each."
        )
    x = torch.cat(clouds)
    x -= x.mean(0)
    gram = x @ x.T
    scale = float(gram.diagonal().mean())
    if scale == 0:
        return Separability(False, 0.0, 0.5)
    gram /= scale
    side = np.repeat(np.array([1.0, -1.0]), sizes)
    distance = hull_distance(span(gram), side)
    fold = np.concatenate([_folds(size, folds, seed) for size in sizes])
    accuracy = float(_held_out((gram + 1).numpy(), side, fold, folds, c))
    return Separability(distance > 0, 0.5 * distance * scale**0.5, accuracy)


def _folds(size: int, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each point of a cloud: the same for all clouds of a size."""
    order = torch.randperm(size, generator=stream(seed, "folds", size)).numpy()
    return order % folds


def hull_distance(x: Float[Tensor, "n r"], side: NDArray[np.float64]) -> float:
    """Distance between the convex hulls of the points of either side; 0 below `TOUCHING`.

    Args:
        x: Points, about their mean.
        side: ±1, both present.
    """
    distance, _ = _nearest(np.ascontiguousarray(x.numpy()), side, _TOLERANCE, False)
    return 0.0 if distance <= _least(x) else float(distance)


def separated(x: Float[Tensor, "n r"], side: NDArray[np.float64]) -> bool | None:
    """Whether the hulls of the points of either side are further apart than `TOUCHING`; None if that was not found out.

    As `hull_distance`, but it stops at the first hyperplane that tells.
    """
    distance, apart = _nearest(np.ascontiguousarray(x.numpy()), side, 0.0, True)
    if apart:
        return True
    return False if distance <= _least(x) else None


def _least(x: Float[Tensor, "n r"]) -> float:
    return TOUCHING * float(x.norm(dim=1).max())


@compiled
def _nearest(x, side, tolerance, any_plane):  # type: ignore[no-untyped-def]
    """The nearest points of two convex hulls, by Wolfe's method on the differences of points of either side.

    With v = x_i − x_j (i of the side 1, j of −1) it minimises ½ |Σ z v|² + ½ κ (Σ z − 1)² over z ≥ 0, κ the squared
    scale: the point of the hull of all v that is nearest to 0, shortened by a known factor. The steepest of the many
    differences is found from the products of n points with Σ z v, so none are ever formed but those in use. It stops
    when none is steep; or, with `any_plane`, when a plane across Σ z v has the sides on either side of it.

    Returns:
        The distance, and whether the last plane keeps the sides further apart than `TOUCHING`.
    """
    n, r = x.shape
    cap = min(n, r + 1) + 1
    factor = np.empty((cap, cap))
    place, other = np.empty(cap, np.int64), np.empty(cap, np.int64)
    z, target = np.empty(cap), np.empty(cap)
    row, solution = np.empty(cap), np.empty(cap)
    v = np.empty((cap, r))  # by their place in a pool: `place` holds which
    free = np.arange(cap)
    u = np.zeros(r)
    ones = 0
    for i in range(n):
        if side[i] > 0:
            ones += 1
    kappa, longest = 0.0, 0.0
    for i in range(n):
        length = 0.0
        for a in range(r):
            length += x[i, a] * x[i, a]
            u[a] += x[i, a] / ones if side[i] > 0 else -x[i, a] / (n - ones)
        kappa += length / n
        longest = max(longest, length)
    longest = np.sqrt(longest)
    if kappa == 0:
        return 0.0, False
    size, total, apart, gap = 0, 0.0, False, 0.0
    for _ in range(50 * n + 100):
        low, high = -1, -1
        least, most = np.inf, -np.inf
        for i in range(n):
            value = 0.0
            for a in range(r):
                value += x[i, a] * u[a]
            if side[i] > 0:
                if value < least:
                    least, low = value, i
            elif value > most:
                most, high = value, i
        gap = least - most
        if size:
            length = 0.0
            for a in range(r):
                length += u[a] * u[a]
            apart = gap > TOUCHING * longest * np.sqrt(length)
            if any_plane and apart:
                break
            if kappa * (1 - total) - gap <= tolerance * kappa:
                break
        known = False
        for i in range(size):
            if other[place[i]] == low * n + high:
                known = True
        if known or size == cap:
            break
        new = free[size]
        length = 0.0
        for a in range(r):
            v[new, a] = x[low, a] - x[high, a]
            length += v[new, a] * v[new, a]
        for i in range(size):
            value = kappa
            for a in range(r):
                value += v[place[i], a] * v[new, a]
            row[i] = value
        if not enter(factor, size, row, length + kappa):
            break
        place[size], z[size], target[size], other[new] = new, 0.0, kappa, low * n + high
        size = settle(factor, place, z, target, size + 1, solution)
        # Slots that left give their room back.
        used = np.zeros(cap, np.bool_)
        for i in range(size):
            used[place[i]] = True
        spare = size
        for i in range(cap):
            if not used[i]:
                free[spare] = i
                spare += 1
        total = 0.0
        u[:] = 0.0
        for i in range(size):
            total += z[i]
            for a in range(r):
                u[a] += z[i] * v[place[i], a]
    length = 0.0
    for a in range(r):
        length += u[a] * u[a]
    return np.sqrt(length) / max(total, 1e-300), apart


@compiled
def _held_out(gram, side, fold, folds, c):  # type: ignore[no-untyped-def]
    """Balanced accuracy of the squared-hinge machine on each fold in turn, averaged. `gram` has the intercept's 1."""
    n = len(side)
    mean = 0.0
    for k in range(folds):
        m = 0
        train = np.empty(n, np.int64)
        for i in range(n):
            if fold[i] != k:
                train[m] = i
                m += 1
        program = np.empty((m, m))
        for i in range(m):
            for j in range(m):
                program[i, j] = gram[train[i], train[j]] * side[train[i]] * side[train[j]]
            program[i, i] += 0.5 / c
        z = np.empty(m)
        lawson_hanson(program, np.ones(m), 1e-12, z, np.empty(m, np.int64), np.empty((m, m)), np.empty((5, m)))
        hits, points = np.zeros(2), np.zeros(2)
        for i in range(n):
            if fold[i] == k:
                score, size = 0.0, 0.0
                for j in range(m):
                    part = z[j] * gram[i, train[j]]
                    score += side[train[j]] * part
                    size += abs(part)
                of = 0 if side[i] > 0 else 1
                points[of] += 1
                if abs(score) <= _TIE * size:
                    hits[of] += 0.5
                elif score * side[i] > 0:
                    hits[of] += 1
        mean += 0.5 * (hits[0] / points[0] + hits[1] / points[1]) / folds
    return mean
