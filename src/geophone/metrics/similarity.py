"""How alike two sets of responses to the same images are."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

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


SMALL = 1e-10
"""Directions with less variance than this share of the largest are rounding of float32 responses."""


@metric(CrossMoments, when="asked")
def pwcca(cross: CrossMoments) -> float:
    """Projection-weighted canonical correlation between two sets of responses to the same images. In [0, 1].

        PWCCA = Σ_i α_i ρ_i / Σ_i α_i,   α_i = Σ_j |⟨h_i, a_j⟩|

    with ρ_i the canonical correlations, h_i the canonical variates of the first side and a_j its centred units. So it
    is not symmetric: directions count by how much of the first side lies along them. Invariant to any invertible linear
    map of the second side; of the first, to translation and scaling. Biased up unless n is much larger than d:
    unrelated responses have about √(d/n).

    Raises:
        Undefined: a side that does not vary, or no more images than units.

    References:
        Morcos, Raghu & Bengio 2018, arXiv:1806.05759.
    """
    if cross.a.constant or cross.b.constant:
        raise Undefined("the responses do not vary")
    half, white_a = _whitening(cross.a)
    _, white_b = _whitening(cross.b)
    if cross.n <= max(white_a.shape[1], white_b.shape[1]) + 1:
        raise Undefined(f"needs more images than units, has {cross.n}")
    u, rho, _ = torch.linalg.svd(white_a.T @ cross.cross @ white_b, full_matrices=False)
    weights = (half @ u).abs().sum(0)
    return float(weights @ rho / weights.sum())


def _whitening(moments: Moments) -> tuple[Float[Tensor, "d r"], Float[Tensor, "d r"]]:
    """Roots of the scatter and of its inverse over the directions that vary: V √λ and V / √λ."""
    values, vectors = torch.linalg.eigh(moments.scatter)
    kept = values > SMALL * values[-1]
    root = values[kept].sqrt()
    return vectors[:, kept] * root, vectors[:, kept] / root


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
