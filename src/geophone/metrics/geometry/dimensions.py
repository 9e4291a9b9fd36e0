"""How many dimensions all the points of some manifolds take up together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.metrics.geometry.clouds import about_mean, as_clouds

SHARE = 0.9
LEAST = 20
"""Different points that TwoNN needs."""

CANDIDATES = 8
"""Points that are looked at for the two nearest."""

BLOCK = 2**22
"""Distances that are in memory at once: 32 MiB."""

_LEFT = 1e-12  # a share of the variance that is met exactly counts as met: sums of eigenvalues are known no better


@dataclass(frozen=True)
class DataDimensions:
    """Linear dimensions of all points together, about their mean.

    Attributes:
        participation_ratio: (Σλ)² / Σλ² of the covariance's eigenvalues, in [1, min(d, n − 1)].
        evd90: Principal components that hold 90 % of the variance.
        evd90_published: Principal components whose running share of the variance is at most 90 %: what the public code
            of manifold capacity counts, one fewer unless the share is met exactly.
        d: Number of features.
        n: Number of points.
    """

    participation_ratio: float
    evd90: int
    evd90_published: int
    d: int
    n: int


def data_dimensions(manifolds: Sequence[Any]) -> DataDimensions:
    """Dimensions of all points of all manifolds, their mean removed.

    From the smaller of the two matrices of inner products, O(n d min(n, d)). The published code differs in two ways
    that are not followed: for EVD90 it takes the mean of each point over its features instead of that of each feature
    over the points, and it leaves the smallest eigenvalue out of the participation ratio.

    Args:
        manifolds: One or more arrays `[m, d]`; m may differ.

    Raises:
        GeophoneError: unusable clouds, or points that are all equal.

    References:
        Gao et al. 2017, doi:10.1101/214262; Cohen, Chung, Lee & Sompolinsky 2020, doi:10.1038/s41467-020-14578-5.
    """
    points = about_mean(torch.cat(as_clouds(manifolds, least=1)))
    n, d = points.shape
    if not bool(points.any()):
        raise GeophoneError(f"all {n} points are equal: they have no dimension.")
    gram = points @ points.T if n < d else points.T @ points
    held = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0).cumsum(0)
    share = held / held[-1]
    return DataDimensions(
        participation_ratio=float(gram.trace() ** 2 / gram.square().sum()),
        evd90=int((share < SHARE * (1 - _LEFT)).sum()) + 1,
        evd90_published=int((share <= SHARE * (1 + _LEFT)).sum()),
        d=d,
        n=n,
    )


def two_nn_dimension(x: Float[Tensor, "m d"]) -> float:
    """Intrinsic dimension of points by the ratio of the distances to the two nearest neighbours (TwoNN). Above 0.

    For points spread evenly on a manifold of d dimensions, μ = r₂/r₁ has the distribution F(μ) = 1 - μ^-d. The
    estimate is the slope through the origin of -ln(1 - F) against ln μ, with F the ranks over the number of points and
    the largest tenth of μ left out. It counts curved dimensions that principal components overestimate; it is biased
    down above about 10 dimensions. All points are used; equal ones count once. O(m² d) time, O(m d) memory.

    Raises:
        GeophoneError: x is no finite matrix; fewer than 20 different points, or no point nearer to one neighbour than
            to the next.

    References:
        Facco et al. 2017, arXiv:1803.06992.
    """
    x = torch.cat(as_clouds([x], least=1)).unique(dim=0)
    if len(x) < LEAST:
        raise GeophoneError(f"needs at least {LEAST} different responses, has {len(x)}")
    # By a power of two, which rounds nothing, to lengths whose squares float64 holds.
    nearest = two_nearest(torch.ldexp(x, -x.abs().max().frexp().exponent))
    ratio = (nearest[:, 1] / nearest[:, 0]).log().sort().values
    m = len(ratio)
    kept = ratio[: int(0.9 * m)]
    rank = torch.arange(1, len(kept) + 1, dtype=kept.dtype, device=kept.device) / m
    bottom = float(kept @ kept)
    if bottom == 0:
        raise GeophoneError("every response is as far from its second neighbour as from its first")
    return float(-(1 - rank).log() @ kept) / bottom


def two_nearest(x: Float[Tensor, "m d"]) -> Float[Tensor, "m 2"]:
    """Distances from every point to its two nearest other points, exact to rounding of the differences.

    Candidates come from a matrix product of centred points, |a|² + |b|² - 2 a·b, whose digits do not tell near points
    apart. Distances to them are then taken by differences; where the product's rounding leaves it open whether a
    point that is no candidate is nearer still, those to all points are.
    """
    centred = x - x.mean(0)
    square = centred.square().sum(1)
    # A sum of d products is known to d · 2⁻⁵³ of the product of lengths at worst, and there are four such terms.
    rounding = 4 * (x.shape[1] + 2) * torch.finfo(x.dtype).eps * float(square.max())
    count = min(CANDIDATES, len(x) - 1)
    found = []
    for rows in torch.arange(len(x), device=x.device).split(max(1, BLOCK // len(x))):
        about = torch.addmm(square, centred[rows], centred.T, alpha=-2).add_(square[rows, None])
        about[torch.arange(len(rows), device=x.device), rows] = torch.inf  # no neighbour of itself
        least, candidates = about.topk(count, largest=False, sorted=True)
        apart = torch.stack([(x[rows] - x[other]).norm(dim=1) for other in candidates.T], 1)
        nearest = apart.topk(2, largest=False, sorted=True).values
        if count < len(x) - 1:
            open_ = least[:, -1] - nearest[:, 1].square() <= rounding
            if bool(open_.any()):
                nearest[open_] = _by_differences(x[rows[open_]], x)
        found.append(nearest)
    return torch.cat(found)


def _by_differences(part: Float[Tensor, "p d"], x: Float[Tensor, "m d"]) -> Float[Tensor, "p 2"]:
    """As `two_nearest`, of some of the points, slower."""
    distance = [torch.cdist(some, x, compute_mode="donot_use_mm_for_euclid_dist") for some in part.split(256)]
    return torch.cat([some.topk(3, largest=False, sorted=True).values[:, 1:] for some in distance])
