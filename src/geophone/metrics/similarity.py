"""How alike two sets of responses to the same images are."""

from math import sqrt

from geophone.metrics.metric import Undefined, metric
from geophone.stats import CrossMoments, Displacement, Moments


@metric(CrossMoments)
def cka(cross: CrossMoments) -> float:
    """Linear CKA between two sets of responses to the same images, with the unbiased HSIC (debiased CKA).

        CKA = d(A, B) / sqrt(d(A, A) d(B, B)),
        d(A, B) = ‖A'B‖²_F - n/(n-2) Σ_i |a_i|²|b_i|² + Σ_i|a_i|² Σ_i|b_i|² / ((n-1)(n-2))

    with centred rows a_i and b_i. At most 1 in expectation; near 0, and sometimes below, for unrelated responses;
    never clamped. Invariant to rotation, translation and positive scaling of either side. Exact in one pass over any
    split of the data, O(d²) memory, no n × n Gram matrix.

    Raises:
        Undefined: fewer than four images, or a side that does not vary.

    References:
        Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012 (unbiased HSIC); Nguyen et al. 2021, arXiv:2010.15327.
    """
    n = cross.n
    if n < 4:
        raise Undefined(f"needs at least 4 images, has {n}")
    if cross.a.constant or cross.b.constant:
        raise Undefined("the responses do not vary")

    def debiased(product: float, fourth: float, trace_a: float, trace_b: float) -> float:
        return product - n / (n - 2) * fourth + trace_a * trace_b / ((n - 1) * (n - 2))

    def own(moments: Moments) -> float:
        trace = float(moments.trace)
        return debiased(float(moments.scatter.square().sum()), float(moments.fourth), trace, trace)

    both = debiased(float(cross.cross.square().sum()), float(cross.fourth), float(cross.a.trace), float(cross.b.trace))
    bottom = own(cross.a) * own(cross.b)
    if bottom <= 0:
        raise Undefined(f"too few images ({n}) for the unbiased HSIC of a side with itself")
    return both / sqrt(bottom)


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
