"""Can two point clouds be told apart by a hyperplane: exactly, and on points that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry.clouds import about_mean, as_clouds, span
from geophone.metrics.geometry.nnls import in_threads

_TOLERANCE = 1e-14  # of the nearest points' slope, relative to the squared scale


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
    from geophone.metrics.geometry.active_set import held_out

    clouds = [cloud.cpu() for cloud in as_clouds(pair)]
    sizes = [len(cloud) for cloud in clouds]
    if not 2 <= folds <= min(sizes):
        raise GeophoneError(
            f"folds={folds}: clouds of {sizes[0]} and {sizes[1]} points can be split into 2 to {min(sizes)} folds, "
            "and need at least two points each."
        )
    x = about_mean(torch.cat(clouds))
    gram = x @ x.T
    scale = float(gram.diagonal().mean())
    if scale == 0:
        return Separability(False, 0.0, 0.5)
    gram /= scale
    side = np.repeat(np.array([1.0, -1.0]), sizes)
    distance = hull_distance(span(gram), side)
    fold = np.concatenate([_folds(size, folds, seed) for size in sizes])
    accuracy = float(held_out((gram + 1).numpy(), side, fold, folds, c))
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
    from geophone.metrics.geometry.active_set import nearest_points

    distance, _ = nearest_points(np.ascontiguousarray(x.numpy()), side, _TOLERANCE, False)
    return 0.0 if distance <= _least(x) else float(distance)


def separated(x: Float[Tensor, "n r"], side: NDArray[np.float64]) -> bool | None:
    """Whether the hulls of the points of either side are further apart than `TOUCHING`; None if that was not found out.

    As `hull_distance`, but it stops at the first hyperplane that tells.
    """
    from geophone.metrics.geometry.active_set import nearest_points

    distance, apart = nearest_points(np.ascontiguousarray(x.numpy()), side, 0.0, True)
    if apart:
        return True
    return False if distance <= _least(x) else None


def _least(x: Float[Tensor, "n r"]) -> float:
    from geophone.metrics.geometry.active_set import TOUCHING

    return TOUCHING * float(x.norm(dim=1).max())
