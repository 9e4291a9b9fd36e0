"""How alike two sets of responses are: measures of the rows themselves, by kernels, dissimilarities and neighbours.

All take n × n matrices of one side each, so they cost O(n² (p + q)) and O(n²) memory; as metrics they read
`PairSample`, up to 1000 images. Rows are centred and in float64 before any Gram matrix.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.metrics.metric import Undefined, metric, not_finite
from geophone.metrics.similarity.moments import NO_SELF, NOUGHT, SMALL
from geophone.stats import PairSample
from geophone.stats.hsic import u_centred
from geophone.stats.statistic import double

FRACTION = 0.5
"""Bandwidth of the registered RBF kernels, as a share of the median distance: that of Kornblith et al.'s example."""

K = 10
"""Nearest neighbours of the registered measures, as in Huh et al. 2024."""

SAME_DISTANCE = 1e-12
"""Squared distances that differ by less than this share of the largest are equal: float64 cannot tell them apart."""


@metric(PairSample, when="asked")
def cka_rbf(sample: PairSample) -> float:
    """CKA with Gaussian kernels of half the median distance, debiased (unbiased HSIC). At most 1 in expectation.

    k(x, x') = exp(-|x - x'|² / (2σ²)), σ² = 0.5² · the median squared distance of different images of that side. Near 0
    for unrelated responses; sees relations that are not linear. Invariant to rotation, translation and scaling of
    either side. From up to 1000 images. `rbf_cka` has the bandwidth, the median and the bias as options.

    Raises:
        Undefined: fewer than four images, a side that does not vary, or more than half of whose distances are 0.

    References:
        Kornblith et al. 2019, arXiv:1905.00414.
    """
    return rbf_cka(sample.a, sample.b)


@metric(PairSample, when="asked")
def cka_rbf_kornblith(sample: PairSample) -> float:
    """CKA with Gaussian kernels as Kornblith et al.'s code has it: biased HSIC, zeros in the median. In [0, 1].

    For comparison with published numbers: as `cka_rbf`, but the median is over all n² squared distances, with the n
    zeros of images to themselves, and HSIC is the biased one, so unrelated responses come out above 0.

    Raises:
        Undefined: as `cka_rbf`, with three images enough.

    References:
        Kornblith et al. 2019, arXiv:1905.00414.
    """
    return rbf_cka(sample.a, sample.b, zeros=True, debiased=False)


def rbf_cka(
    x: Float[Tensor, "n p"],
    y: Float[Tensor, "n q"],
    fraction: float = FRACTION,
    *,
    zeros: bool = False,
    debiased: bool = True,
) -> float:
    """CKA with Gaussian kernels exp(-d²/(2σ²)), σ² = fraction² · median of d², each side with its own median.

    As fraction grows it tends to linear CKA, the debiased or the biased one.

    Args:
        x: One side, rows aligned with the other's.
        y: The other side.
        fraction: Bandwidth as a share of the median distance, above 0.
        zeros: Whether the n zero distances of rows to themselves enter the median.
        debiased: Whether HSIC is the unbiased one.

    Raises:
        GeophoneError: a fraction that is not positive.
        Undefined: as `cka_rbf`.

    References:
        Kornblith et al. 2019, arXiv:1905.00414; Alvarez 2021, arXiv:2112.09305 (the limit).
    """
    if not fraction > 0:
        raise GeophoneError(f"a bandwidth of {fraction:g} times the median distance: give a fraction above 0.")

    def gram(rows: Tensor) -> Tensor:
        square = _squared_distances(rows)
        median = _median(square.flatten() if zeros else _pairs(square))
        if median == 0:
            raise Undefined("at least half of the distances are 0, so the median gives no bandwidth")
        # The kernel less 1: centring takes constants out, and a wide kernel keeps its digits.
        return torch.expm1(square / (-2 * fraction**2 * median))

    _check(x, y, least=4 if debiased else 3)
    return _cosine(*(_u_centred(gram(side)) if debiased else _centred(gram(side)) for side in (x, y)))


@metric(PairSample, when="asked")
def cka_without_first_pc(sample: PairSample) -> float:
    """Debiased linear CKA after the first principal component of each side is taken out. At most 1 in expectation.

    One direction of large variance that both sides share makes their CKA near 1, whatever the rest; this is the CKA of
    the rest. Near 0 for unrelated responses. Invariant to rotation, translation and scaling of either side. From up to
    1000 images. `cka_without_pcs` takes out more.

    Raises:
        Undefined: fewer than four images, or a side with nothing left that varies.

    References:
        Nguyen, Raghu & Kornblith 2021, arXiv:2010.15327.
    """
    return cka_without_pcs(sample.a, sample.b)


def cka_without_pcs(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int = 1) -> float:
    """Debiased linear CKA after the first k principal components of each side are taken out.

    For unrelated responses its numerator is 0 in expectation, whatever k: the rows stay exchangeable.

    Args:
        x: One side, rows aligned with the other's.
        y: The other side.
        k: Principal components to take out of each, 0 or more.

    Raises:
        GeophoneError: a negative k.
        Undefined: as `cka_without_first_pc`.
    """
    if k < 0:
        raise GeophoneError(f"{k} principal components cannot be taken out: k is 0 or more.")

    def gram(rows: Tensor) -> Tensor:
        whole = _gram(rows)
        values, vectors = torch.linalg.eigh(whole)
        kept = max(0, len(values) - k)
        rest, left = values[:kept], vectors[:, :kept]
        if kept == 0 or not float(rest[-1]) > SMALL * float(values[-1]):
            raise Undefined(f"nothing varies once the first {k} principal components are taken out")
        return (left * rest) @ left.T

    _check(x, y, least=4)
    return _cosine(*(_u_centred(gram(side)) for side in (x, y)))


def cka_deconfounded(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], confounder: Float[Tensor, "n ..."]) -> float:
    """Debiased linear CKA of what the confounder's similarities do not explain. At most 1 in expectation.

        A - a C and B - b C in place of A and B,  a = ⟨A, C⟩ / ⟨C, C⟩,  b = ⟨B, C⟩ / ⟨C, C⟩

    with A, B and C the U-centred Gram matrices of x, y and the confounder. Two networks look alike where both keep the
    similarities of the images themselves: with the images, flattened, as the confounder, that part is taken out, and
    random networks come out near 0. It is the partial correlation of the three Gram matrices. Invariant to rotation,
    translation and scaling of each of the three. Cui et al. regress the Gram matrices as they are; U-centred here, so
    that diagonals and means have no part in the fit. Residual Gram matrices are not made positive.

    Args:
        x: One side, rows aligned with the other's.
        y: The other side.
        confounder: What both sides may only pass on, as the images themselves; axes after the first are flattened.

    Raises:
        Undefined: fewer than five images, a part that does not vary, or a side that the confounder explains wholly.

    References:
        Cui et al. 2022, arXiv:2202.00095; Székely & Rizzo 2014, arXiv:1310.2926 (partial distance correlation).
    """
    confounder = confounder.flatten(1)
    _check(x, y, least=5)
    _check(x, confounder, least=5)
    c = _u_centred(_gram(confounder))
    if not bool(c.any()):
        raise Undefined(NO_SELF.format(n=len(c)))

    def residual(rows: Tensor) -> Tensor:
        a = _u_centred(_gram(rows))
        rest = a - (a * c).sum() / c.square().sum() * c
        if not float(rest.norm()) > 2.0**-20 * float(a.norm()):  # no more than float32 rounds the responses
            raise Undefined("the confounder explains all of a side's similarities")
        return rest

    return _cosine(residual(x), residual(y))


@metric(PairSample, when="asked")
def rsa_correlation(sample: PairSample) -> float:
    """Representational similarity: Spearman correlation of the two sides' correlation distances. In [-1, 1].

    The dissimilarity of two images is 1 - Pearson's correlation, over units, of their responses; the measure is
    Spearman's correlation over all pairs of images (equal dissimilarities have their mean rank). It depends on the
    units: invariant to permuting and scaling them together and to adding a constant to an image's response in all
    units, but not to rotation nor to a translation. 0 in expectation for unrelated responses. From up to 1000 images.

    Raises:
        Undefined: fewer than three images, an image with the same response in every unit, or dissimilarities that are
            all equal.

    References:
        Kriegeskorte, Mur & Bandettini 2008, doi:10.3389/neuro.06.004.2008.
    """
    _check(sample.a, sample.b, least=3)
    ranks = (_ranks(_pairs(_correlation_distances(side))) for side in (sample.a, sample.b))
    return _pearson(*ranks)


@metric(PairSample, when="asked")
def rsa_euclidean(sample: PairSample) -> float:
    """Representational similarity: Pearson correlation of the two sides' squared Euclidean distances. In [-1, 1].

    Over all pairs of images. 0 in expectation for unrelated responses. Invariant to rotation, translation and scaling
    of either side. From up to 1000 images.

    Raises:
        Undefined: fewer than three images, a side that does not vary, or distances that are all equal.

    References:
        Kriegeskorte, Mur & Bandettini 2008, doi:10.3389/neuro.06.004.2008.
    """
    _check(sample.a, sample.b, least=3)
    return _pearson(*(_pairs(_squared_distances(side)) for side in (sample.a, sample.b)))


@metric(PairSample, when="asked")
def rsa_whitened(sample: PairSample) -> float:
    """Representational similarity: whitened cosine of the two sides' squared Euclidean distances. In [0, 1].

        d_a' V⁻¹ d_b / sqrt(d_a' V⁻¹ d_a · d_b' V⁻¹ d_b),   V = (C C') ∘ (C C')

    with d the distances of all pairs of images, C the n(n-1)/2 × n matrix of their contrasts: V is, up to a factor, the
    covariance of distances between responses that are noise. V⁻¹ d is d double-centred, so this is the cosine of
    double-centred distances, which is biased linear CKA: `cka_biased` of the same images, in other words, and biased
    up as it is. Diedrichsen et al. take distances that are unbiased by repeated measurements, which a network's
    responses have none of. From up to 1000 images.

    Raises:
        Undefined: fewer than three images, or a side that does not vary.

    References:
        Diedrichsen et al. 2020, arXiv:2007.02789.
    """
    _check(sample.a, sample.b, least=3)
    return _cosine(*(_centred(_squared_distances(side)) for side in (sample.a, sample.b)))


@metric(PairSample, when="asked")
def mutual_knn(sample: PairSample) -> float:
    """Share of an image's 10 nearest neighbours on one side that are so on the other too, mean over images. In [0, 1].

        mean_i |N_k(a_i) ∩ N_k(b_i)| / k

    Neighbours by Euclidean distance, which for rows of unit length is the published measure's inner product. Unrelated
    responses have k / (n - 1): so values of different n are not comparable. Invariant to rotation, translation and
    scaling of either side. From up to 1000 images. `knn_overlap` takes another k.

    Raises:
        Undefined: n ≤ k + 1, or a side that does not vary.

    References:
        Huh et al. 2024, arXiv:2405.07987.
    """
    return knn_overlap(sample.a, sample.b)


def knn_overlap(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int = K) -> float:
    """Share of a row's k nearest neighbours on one side that are so on the other too, mean over rows.

    Where rows are equally far at the k-th place, each counts by its share, as if the side drew among them by itself: so
    the value does not depend on the rows' order and chance stays k / (n - 1).

    Args:
        x: One side, rows aligned with the other's.
        y: The other side.
        k: Neighbours of each row, 1 or more.

    Raises:
        GeophoneError: k below 1.
        Undefined: as `mutual_knn`.
    """
    _check_neighbours(x, y, k)
    near_x, near_y = (_neighbours(_squared_distances(side), k) for side in (x, y))
    return float((near_x * near_y).sum() / (k * len(x)))


@metric(PairSample, when="asked")
def cknna(sample: PairSample) -> float:
    """CKA of 10 nearest neighbours: debiased linear CKA over pairs of images that are near on both sides.

        S(a, b) / sqrt(S(a, a) S(b, b)),   S(a, b) = Σ_ij α_ij A_ij B_ij

    with A and B the U-centred Gram matrices, α_ij 1 where j is among the k nearest neighbours of i on both sides and
    else 0 (on the one side in S(a, a)). At most 1 with the same neighbours; k / (n - 1) or less for unrelated
    responses. With k = n - 1 it is `cka`. Invariant to rotation, translation and scaling of either side. From up to
    1000 images. `knn_alignment` takes another k. Published code takes uncentred inner products and, in Song's formula,
    only pairs that are neighbours in both directions: its numbers differ.

    Raises:
        Undefined: n ≤ k, a side that does not vary, or one whose responses are all equally far apart.

    References:
        Huh et al. 2024, arXiv:2405.07987, appendix A.
    """
    return knn_alignment(sample.a, sample.b)


def knn_alignment(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int = K) -> float:
    """Debiased linear CKA over the pairs of a row and one of its k nearest on both sides (CKNNA); see `cknna`.

    Ties in distance as in `knn_overlap`.

    Args:
        x: One side, rows aligned with the other's.
        y: The other side.
        k: Neighbours of each row, 1 or more; n - 1 gives debiased linear CKA.

    Raises:
        GeophoneError: k below 1.
        Undefined: k above n - 1, fewer than four images, or a side that does not vary.
    """
    _check_neighbours(x, y, k, spare=0)
    _check(x, y, least=4)
    a, b = (_u_centred(_gram(side)) for side in (x, y))
    near_a, near_b = (_neighbours(_squared_distances(side), k) for side in (x, y))
    own = (near_a * a.square()).sum() * (near_b * b.square()).sum()
    if not float(own) > 0:
        raise Undefined(NO_SELF.format(n=len(a)))
    return float((near_a * near_b * a * b).sum() / own.sqrt())


def _check(x: Tensor, y: Tensor, least: int) -> None:
    if len(x) != len(y):
        raise GeophoneError(f"{len(x)} and {len(y)} rows: row i of both sides must come from the same example.")
    if len(x) < least:
        raise Undefined(f"needs at least {least} images, has {len(x)}")
    if bad := int((~(x.isfinite().all(1) & y.isfinite().all(1))).sum()):
        raise Undefined(not_finite(bad, len(x)))
    for side in (x, y):
        if constant(side):
            raise Undefined("the responses do not vary")


def constant(x: Float[Tensor, "n p"]) -> bool:
    """Whether rows vary by no more than float32 rounds them, as `Moments.constant` has it."""
    x = double(x)
    mean = x.mean(0)
    return bool((x - mean).square().sum() <= len(x) * 2.0**-46 * (mean @ mean))


def _check_neighbours(x: Tensor, y: Tensor, k: int, spare: int = 1) -> None:
    if k < 1:
        raise GeophoneError(f"{k} nearest neighbours: k is 1 or more.")
    _check(x, y, least=k + 1 + spare)


def _gram(x: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """Inner products of the centred rows, all scaled by one power of two, so that none leaves float64's range."""
    u = double(x)
    u = u - u.mean(0)
    u = torch.ldexp(u, -u.abs().max().frexp().exponent)
    return u @ u.T


def _squared_distances(x: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    gram = _gram(x)
    square = gram.diag()
    return (square[:, None] + square - 2 * gram).fill_diagonal_(0)


def _centred(m: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """H M H, H = I - 11'/n."""
    rows = m.mean(1)
    return m - rows[:, None] - rows + rows.mean()


def _u_centred(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A symmetric matrix whose off-diagonal rows sum to 0; ⟨A, B⟩ of two of them is n(n - 3) times the unbiased HSIC.

    Raises:
        Undefined: nothing is left but rounding.
    """
    found = u_centred(gram[None].clone())[0]
    if not float(found.square().sum()) > NOUGHT * float(gram.square().sum()):
        raise Undefined(NO_SELF.format(n=len(gram)))
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def _pearson(a: Float[Tensor, " m"], b: Float[Tensor, " m"]) -> float:
    parts = [side - side.mean() for side in (a, b)]
    for whole, part in zip((a, b), parts, strict=True):
        if not float(part.square().sum()) > NOUGHT * float(whole.square().sum()):
            raise Undefined("all images of a side are equally far apart")
    return _cosine(*parts)


def _pairs(m: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    """The upper triangle."""
    row, column = torch.triu_indices(len(m), len(m), 1, device=m.device)
    return m[row, column]


def _median(values: Float[Tensor, " m"]) -> float:
    """The middle value, or the mean of the two in the middle."""
    order = values.sort().values
    return float(order[(len(order) - 1) // 2] + order[len(order) // 2]) / 2


def _ranks(values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Ranks from 1; equal values, to 1e-12, have the mean of theirs."""
    _, place, count = values.round(decimals=12).unique(return_inverse=True, return_counts=True)
    last: Int[Tensor, " k"] = count.cumsum(0)
    return (last.double() - (count.double() - 1) / 2)[place]


def _correlation_distances(x: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """1 - Pearson's correlation, over units, of every two rows."""
    mean = x.mean(1, keepdim=True)
    u = x - mean
    norm = u.norm(dim=1, keepdim=True)
    flat = int((norm <= x.shape[1] ** 0.5 * 2.0**-23 * mean.abs()).sum())
    if flat:
        raise Undefined(f"{flat} of {len(x)} images have the same response in every unit, so no correlation over units")
    u = u / norm
    return 1 - u @ u.T


def _neighbours(square: Float[Tensor, "n n"], k: int) -> Float[Tensor, "n n"]:
    """How far j counts among the k nearest neighbours of i: 1, 0, or its share of a tie. Rows sum to k."""
    distance = square.clone().fill_diagonal_(torch.inf)
    last = distance.kthvalue(k, dim=1, keepdim=True).values
    slack = SAME_DISTANCE * float(square.max())
    nearer, tied = distance < last - slack, (distance - last).abs() <= slack
    return nearer + tied * (k - nearer.sum(1, keepdim=True)).double() / tied.sum(1, keepdim=True)
