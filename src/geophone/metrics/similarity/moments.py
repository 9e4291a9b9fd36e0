"""How alike two sets of responses to the same images are: measures of their moments, exact over all images."""

from math import acos, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.metrics.dimensionality import components
from geophone.metrics.metric import OUT_OF_RANGE, Undefined, metric
from geophone.stats import CrossMoments, Displacement, Moments
from geophone.stats.statistic import root_product

SMALL = 1e-10
"""Directions with less variance than this share of the largest are rounding of float32 responses."""

NOUGHT = 1e-12
"""A float64 sum below this share of the terms that it is the sum of is their rounding."""

NO_SELF = "the unbiased HSIC of a side with itself is 0: too few images ({n}), or all of them equally far apart"


@metric(CrossMoments)
def cka(cross: CrossMoments) -> float:
    """Linear CKA between two sets of responses to the same images, with the unbiased HSIC (debiased CKA).

        CKA = d(A, B) / sqrt(d(A, A) d(B, B)),
        d(A, B) = ‖A'B‖²_F - n/(n-2) Σ_i |a_i|²|b_i|² + Σ_i|a_i|² Σ_i|b_i|² / ((n-1)(n-2))

    with centred rows a_i and b_i. At most 1 in expectation; near 0, and sometimes below, for unrelated responses;
    never clamped. Invariant to rotation, translation and positive scaling of either side. Exact in one pass over any
    split of the data, O(d²) memory, no n × n Gram matrix.

    Raises:
        Undefined: fewer than four images, a side that does not vary, or one whose responses are all equally far apart.

    References:
        Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012 (unbiased HSIC); Nguyen et al. 2021, arXiv:2010.15327.
    """
    n = cross.n
    _check(cross, 4)

    def debiased(product: float, fourth: float, trace_a: float, trace_b: float) -> float:
        return product - n / (n - 2) * fourth + trace_a * trace_b / ((n - 1) * (n - 2))

    def own(moments: Moments) -> float:
        trace, square = float(moments.trace), float(moments.scatter.square().sum())
        found = debiased(square, float(moments.fourth), trace, trace)
        if found <= NOUGHT * square:
            raise Undefined(NO_SELF.format(n=n))
        return found

    both = debiased(float(cross.cross.square().sum()), float(cross.fourth), float(cross.a.trace), float(cross.b.trace))
    return both / root_product(own(cross.a), own(cross.b))


@metric(CrossMoments, when="asked")
def cka_biased(cross: CrossMoments) -> float:
    """Linear CKA with the biased HSIC: the plug-in estimator, which most published numbers are. In [0, 1].

        CKA = ‖A'B‖²_F / (‖A'A‖_F ‖B'B‖_F),  A and B centred

    Biased up unless n is much larger than p and q: unrelated isotropic responses have √(pq / ((n-1+p)(n-1+q))), so
    layers of different width cannot be compared by it. `cka` is the debiased one. The same invariances.

    Raises:
        Undefined: fewer than three images (two have 1 whatever they are), or a side that does not vary.

    References:
        Kornblith et al. 2019, arXiv:1905.00414; Murphy, Zylberberg & Fyshe 2024, arXiv:2405.01012 (its bias).
    """
    _check(cross, 3)
    return float(cross.cross.square().sum() / (cross.a.scatter.norm() * cross.b.scatter.norm()))


@metric(CrossMoments, when="asked")
def cca(cross: CrossMoments) -> float:
    """Mean canonical correlation between two sets of responses to the same images. In [0, 1].

    The mean of ρ_1 … ρ_m, m the number of directions of the side that has fewer: those with less than 1e-10 of the
    variance of its largest count for none. Every direction counts alike, however little varies along it. Invariant to
    any invertible linear map of either side, and to translation. Biased up unless n ≫ p + q.

    Raises:
        Undefined: a side that does not vary, or n ≤ p + q directions: p + q - (n - 1) correlations would be 1 whatever
            the responses are.

    References:
        Hotelling 1936, doi:10.1093/biomet/28.3-4.321; Raghu et al. 2017, arXiv:1706.05806.
    """
    return float(_canonical(cross, _whitened(cross)).mean())


@metric(CrossMoments, when="asked")
def r2_cca(cross: CrossMoments) -> float:
    """Mean squared canonical correlation (Yanai's generalised coefficient of determination). In [0, 1].

        Σ ρ² / min(p, q)

    with p and q the directions, as in `cca`, whose invariances it has. For unrelated responses it is
    max(p, q) / (n - 1) in expectation, if one side is normal.

    Raises:
        Undefined: as `cca`.

    References:
        Yanai 1974; Ramsay, ten Berge & Styan 1984, doi:10.1007/BF02306029; Kornblith et al. 2019, arXiv:1905.00414.
    """
    return float(_canonical(cross, _whitened(cross)).square().mean())


@metric(CrossMoments, when="asked")
def svcca(cross: CrossMoments) -> float:
    """Mean canonical correlation of the principal components that hold 99 % of each side's variance. In [0, 1].

    Invariant to rotation, translation and scaling of either side. Biased up unless n is much larger than the number of
    components kept. Others keep 20 components whatever they hold.

    Raises:
        Undefined: a side that does not vary, or no more images than components kept on both sides together.

    References:
        Raghu et al. 2017, arXiv:1706.05806.
    """
    _check(cross, 3)
    return float(_canonical(cross, (_leading(cross.a, 0.99), _leading(cross.b, 0.99))).mean())


@metric(CrossMoments, when="asked")
def pwcca(cross: CrossMoments) -> float:
    """Projection-weighted canonical correlation between two sets of responses to the same images. In [0, 1].

        PWCCA = Σ_i α_i ρ_i / Σ_i α_i,   α_i = Σ_j |⟨h_i, a_j⟩|

    with ρ_i the canonical correlations, h_i the canonical variates of the first side and a_j its centred units. So it
    is not symmetric: directions count by how much of the first side lies along them. Invariant to any invertible linear
    map of the second side; of the first, to translation and scaling. Biased up unless n is much larger than d:
    unrelated responses have about √(d/n).

    Raises:
        Undefined: a side that does not vary, or no more images than units on both sides together (see `cca`).

    References:
        Morcos, Raghu & Bengio 2018, arXiv:1806.05759.
    """
    _check(cross, 3)
    half, white_a = _whitening(cross.a)
    _, white_b = _whitening(cross.b)
    _check_directions(cross.n, white_a, white_b)
    u, rho, _ = torch.linalg.svd(white_a.T @ cross.cross @ white_b, full_matrices=False)
    weights = (half @ u).abs().sum(0)
    return float(weights @ rho / weights.sum())


@metric(CrossMoments, when="asked")
def procrustes(cross: CrossMoments) -> float:
    """Orthogonal Procrustes distance, squared, of centred responses of unit norm. In [0, 2]; 0 is alike.

        min_R ‖A/‖A‖_F - B R/‖B‖_F‖²_F = 2 - 2 ‖A'B‖_* / (‖A‖_F ‖B‖_F)

    with ‖·‖_* the sum of singular values; its root is a metric. Invariant to rotation, translation and scaling of
    either side. Biased down unless n is much larger than p and q: unrelated responses come out below 2.

    Raises:
        Undefined: fewer than three images (two have 0 whatever they are), or a side that does not vary.

    References:
        Ding, Denain & Steinhardt 2021, arXiv:2108.01661; Williams et al. 2021, arXiv:2110.14739.
    """
    return 2 - 2 * _nuclear(cross)


@metric(CrossMoments, when="asked")
def angular_distance(cross: CrossMoments) -> float:
    """Angle between two sets of responses after the best rotation (shape distance), in radians. In [0, π/2].

        arccos( ‖A'B‖_* / (‖A‖_F ‖B‖_F) ),  A and B centred

    A metric; 0 is alike. Invariances and bias as those of `procrustes`. Rounding of 1e-16 in the cosine is 1e-8 here,
    where it is near 0.

    Raises:
        Undefined: as `procrustes`.

    References:
        Williams et al. 2021, arXiv:2110.14739.
    """
    return acos(_nuclear(cross))


@metric(CrossMoments, when="asked")
def linear_regression_r2(cross: CrossMoments) -> float:
    """Share of the first side's variance that the best linear map of the second predicts (R²). In [0, 1].

        ‖Q_B'A‖²_F / ‖A‖²_F,  Q_B an orthonormal basis of the centred second side

    In sample: for unrelated responses it is q / (n - 1) in expectation, q the directions of the second side. Not
    symmetric. Invariant to rotation, translation and scaling of the first side, and to any invertible linear map of
    the second.

    Raises:
        Undefined: a side that does not vary, or n ≤ q + 1: then it is 1 whatever the responses are.

    References:
        Kornblith et al. 2019, arXiv:1905.00414.
    """
    _check(cross, 3)
    _, white = _whitening(cross.b)
    if cross.n <= white.shape[1] + 1:
        raise Undefined(
            f"needs more images than units of the second side, has {cross.n} for {white.shape[1]}: "
            "the fit would be perfect whatever the responses are"
        )
    return float((cross.cross @ white).square().sum() / cross.a.trace)


def _check(cross: CrossMoments, least: int) -> None:
    if cross.n < least:
        raise Undefined(f"needs at least {least} images, has {cross.n}")
    if cross.a.constant or cross.b.constant:
        raise Undefined("the responses do not vary")
    if not (cross.a.squarable and cross.b.squarable):
        raise Undefined(OUT_OF_RANGE)


def _whitening(moments: Moments) -> tuple[Float[Tensor, "d r"], Float[Tensor, "d r"]]:
    """Roots of the scatter and of its inverse over the directions that vary: V √λ and V / √λ."""
    values, vectors = torch.linalg.eigh(moments.scatter)
    kept = values > SMALL * values[-1]
    root = values[kept].sqrt()
    return vectors[:, kept] * root, vectors[:, kept] / root


def _leading(moments: Moments, share: float) -> Float[Tensor, "d r"]:
    """V / √λ over the first principal components that hold this share of the variance."""
    values, vectors = torch.linalg.eigh(moments.scatter)
    kept = components(moments, share)
    return vectors[:, -kept:] / values[-kept:].sqrt()


def _whitened(cross: CrossMoments) -> tuple[Float[Tensor, "p r"], Float[Tensor, "q s"]]:
    _check(cross, 3)
    return _whitening(cross.a)[1], _whitening(cross.b)[1]


def _canonical(cross: CrossMoments, white: tuple[Float[Tensor, "p r"], Float[Tensor, "q s"]]) -> Float[Tensor, " m"]:
    """Canonical correlations over the whitened directions of both sides, largest first; at most 1 but for rounding."""
    _check_directions(cross.n, *white)
    return torch.linalg.svdvals(white[0].T @ cross.cross @ white[1])


def _check_directions(n: int, white_a: Float[Tensor, "p r"], white_b: Float[Tensor, "q s"]) -> None:
    r, s = white_a.shape[1], white_b.shape[1]
    if n <= r + s:
        raise Undefined(
            f"needs more images than units on both sides together, has {n} for {r} and {s} directions: "
            f"{r + s - n + 1} correlations would be 1 whatever the responses are"
        )


def _nuclear(cross: CrossMoments) -> float:
    """‖A'B‖_* / (‖A‖_F ‖B‖_F). Rounding above 1 counts as 1; what rounding cannot explain is an error."""
    _check(cross, 3)
    found = float(torch.linalg.svdvals(cross.cross).sum()) / root_product(float(cross.a.trace), float(cross.b.trace))
    if found > 1 + 1e-9:  # sums over a million images are known to 1e-13 or better
        raise GeophoneError(f"a cosine of {found!r}, above 1: the moments do not belong to one set of examples.")
    return min(found, 1.0)


@metric(Displacement)
def normalised_distance(displacement: Displacement) -> float:
    """RMS distance between the responses to an image and to its perturbed version, over that between two clean images.

        sqrt( mean_i |b_i - a_i|² / (2 tr Cov(a)) )

    0: not moved; 1: as far away as the response to another image. Invariant to rotation, translation and scaling of
    the space.

    Raises:
        Undefined: fewer than two images, or clean responses that do not vary.
    """
    n = displacement.n
    spread = float(displacement.spread)
    if n < 2 or spread <= n * 2.0**-46 * float(displacement.mean @ displacement.mean):
        raise Undefined("the clean responses do not vary")
    mean = displacement.shift.mean
    moved = float(displacement.shift.trace) / n + float(mean @ mean)
    return sqrt(moved / (2 * spread / (n - 1)))
