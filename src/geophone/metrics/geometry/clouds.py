"""Point clouds as this package takes them: what a manifold is, checked, and projected to fewer features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.stats.statistic import double

FORM = "Give a list of P arrays [m, d], points first: one for each manifold, all with the same d."


def as_clouds(manifolds: Sequence[Any], least: int = 2) -> list[Float[Tensor, "_ d"]]:
    """Point clouds as float64 tensors, on the first one's device and without a history, checked.

    Args:
        manifolds: P arrays or tensors `[m, d]`, points first; m may differ.
        least: How many there must be.

    Raises:
        GeophoneError: fewer clouds, one that is no matrix or is empty, different numbers of features, NaN or infinite
            values.
    """
    try:
        count = len(manifolds)
    except TypeError:
        raise GeophoneError(f"{type(manifolds).__name__} is no list of point clouds. {FORM}") from None
    if count < least:
        raise GeophoneError(f"{count} manifolds: at least {least} are needed, since they are told apart. {FORM}")
    clouds = [_tensor(cloud, i) for i, cloud in enumerate(manifolds)]
    clouds = [cloud.to(clouds[0].device) for cloud in clouds]
    for i, cloud in enumerate(clouds):
        if cloud.ndim != 2 or not cloud.numel():
            raise GeophoneError(f"manifold {i} has the shape {list(cloud.shape)}. {FORM}")
        if cloud.shape[1] != clouds[0].shape[1]:
            raise GeophoneError(f"manifold {i} has {cloud.shape[1]} features, manifold 0 {clouds[0].shape[1]}. {FORM}")
        if not bool(cloud.sum().isfinite()):  # one pass, and no room for a mask
            raise GeophoneError(
                f"manifold {i} has NaN or infinite values, or so large ones that their sum is. Remove those points, or "
                "mend what made them."
            )
    return clouds


def by_label(points: Any, labels: Any) -> list[Tensor]:
    """Points `[n, d]` as a cloud for each label, in the labels' order.

    Raises:
        GeophoneError: no matrix of points, or not one label for each.
    """
    rows, own = _tensor(points, 0), np.asarray(labels)
    if rows.ndim != 2 or own.shape != (len(rows),):
        raise GeophoneError(
            f"points of the shape {list(rows.shape)} and labels of {list(own.shape)}: give points [n, d] and one label "
            f"for each, [n]. Or: {FORM}"
        )
    return [rows[torch.from_numpy(own == label).to(rows.device)] for label in np.unique(own)]


def _tensor(cloud: Any, i: int) -> Tensor:
    try:
        return double(torch.as_tensor(cloud).detach())
    except (TypeError, ValueError, RuntimeError) as error:
        raise GeophoneError(f"manifold {i}: {error}. {FORM}") from None


def about_mean(points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Points less their mean; exactly 0 where float64 leaves nothing but rounding of points that are all equal."""
    mean = points.mean(0)
    left = points - mean
    rounding = (8 * torch.finfo(points.dtype).eps) ** 2 * len(points) * float(mean @ mean)
    return left if float(left.square().sum()) > rounding else torch.zeros_like(left)


def span(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n r"]:
    """Points with a given Gram matrix in as few coordinates as they span, by Cholesky factorisation with pivots.

    What is left of a squared length counts as 0 below 8 n · 2⁻⁵² of the longest. Of points about their mean the last
    two pivots are equally long and opposite, so signs are chosen by a third moment, whatever the points' order.
    """
    from scipy.linalg.lapack import dpstrf

    n = len(gram)
    least = 8 * n * torch.finfo(torch.float64).eps * float(gram.diagonal().max())
    factor, pivots, rank, _ = dpstrf(gram.numpy(), tol=least, lower=1)
    basis = np.zeros((n, max(int(rank), 1)))
    basis[pivots - 1] = np.tril(factor)[:, : max(int(rank), 1)]
    return torch.from_numpy(basis * np.where(basis[:, 0] ** 2 @ basis < 0, -1.0, 1.0))


def projection(d: int, features: int, seed: int) -> Float[Tensor, "d features"]:
    """A Gaussian matrix with columns of length 1, float64, on the CPU: what clouds are multiplied with.

    Raises:
        GeophoneError: more features than there are, or fewer than 1.
    """
    if not 1 <= features <= d:
        raise GeophoneError(f"features={features}: a projection of {d} features gives 1 to {d} of them.")
    matrix = torch.randn(d, features, generator=stream(seed, "projection", d, features), dtype=torch.float64)
    matrix /= matrix.norm(dim=0)
    return matrix


def projected(clouds: Sequence[Float[Tensor, "_ d"]], features: int, seed: int) -> list[Float[Tensor, "_ _"]]:
    """Clouds in so many random directions, the same for all: see `projection`."""
    matrix = projection(clouds[0].shape[1], features, seed).to(clouds[0].device)
    return [cloud @ matrix for cloud in clouds]
