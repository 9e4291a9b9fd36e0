"""How many directions the responses use."""

from collections.abc import Callable
from functools import partial

import torch

from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.metrics.geometry.dimensions import two_nn_dimension
from geophone.metrics.metric import OUT_OF_RANGE, Metric, Undefined, metric
from geophone.stats import Displacement, Moments, UniformSample

PERCENTS = (90, 95, 99)
LEAST = 3
"""Images that a count of directions needs: two have one direction whatever they are."""


def components(moments: Moments, share: float) -> int:
    """Smallest number of principal components that hold `share` of the variance; 0 when nothing varies.

    Raises:
        Undefined: fewer than `LEAST` examples.
    """
    if moments.n < LEAST:
        raise Undefined(f"needs at least {LEAST} images, has {moments.n}")
    if moments.constant:
        return 0
    held = moments.spectrum.cumsum(0)
    # 1e-12: the sum of d float64 eigenvalues is known no better, and a share that is met exactly counts as met.
    return int(torch.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1


def difference_components(displacement: Displacement, share: float) -> int:
    """As `components`, of perturbed minus clean responses; 0 when the difference is the same for all images.

    A difference that varies by no more than float32 rounds the responses themselves counts as the same.
    """
    return 0 if displacement.n >= LEAST and displacement.constant else components(displacement.shift, share)


@metric(Moments)
def participation_ratio(moments: Moments) -> float:
    """Participation ratio (Σλ)² / Σλ² of the sample covariance's eigenvalues. In [1, min(d, n - 1)].

    Biased down when n is not much larger than d: see `participation_ratio_corrected`.

    Raises:
        Undefined: fewer than three images (two have 1 whatever they are), or responses that do not vary.

    References:
        Gao et al. 2017, doi:10.1101/214262.
    """
    _check_varies(moments, LEAST)
    return float(moments.trace**2 / moments.scatter.square().sum())


@metric(Moments)
def participation_ratio_corrected(moments: Moments) -> float:
    """Participation ratio with unbiased estimates of (tr Σ)² and tr Σ² in place of the plug-in ones.

    With S the sample covariance and Q = Σ|u|⁴/(n - 1), for any distribution with four moments,

        tr Σ²  ≈ (n-1)/(n(n-2)(n-3)) · [(n-1)(n-2) tr S² + (tr S)² - nQ]
        (tr Σ)² ≈ (n-1)/(n(n-2)(n-3)) · [2 tr S² + (n²-3n+1)(tr S)² - nQ]

    Both are unbiased; their ratio is nearly so, and can leave [1, d] when n is small.

    Raises:
        Undefined: fewer than four examples, no variation, or an estimate of tr Σ² that is not positive.

    References:
        Himeno & Yamada 2014, Journal of Multivariate Analysis 130:27-44.
    """
    _check_varies(moments, 4)
    squared_trace, trace_of_square = unbiased_traces(moments)
    if trace_of_square <= 0:
        raise Undefined(f"too few images ({moments.n}) to estimate the covariance's spread over {moments.d} units")
    return squared_trace / trace_of_square


def unbiased_traces(moments: Moments) -> tuple[float, float]:
    """Unbiased estimates of (tr Σ)² and tr Σ² from at least four examples; see `participation_ratio_corrected`."""
    n = moments.n
    trace = float(moments.trace) / (n - 1)
    square = float(moments.scatter.square().sum()) / (n - 1) ** 2
    fourth = float(moments.fourth) / (n - 1)
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    return (
        scale * (2 * square + (n * n - 3 * n + 1) * trace**2 - n * fourth),
        scale * ((n - 1) * (n - 2) * square + trace**2 - n * fourth),
    )


@metric(UniformSample, when="clean")
def two_nn(sample: UniformSample) -> float:
    """Intrinsic dimension by the ratio of the distances to the two nearest neighbours (TwoNN). Above 0.

    For points spread evenly on a manifold of d dimensions, μ = r₂/r₁ has the distribution F(μ) = 1 - μ^-d. The
    estimate is the slope through the origin of -ln(1 - F) against ln μ, with F the ranks over the number of points and
    the largest tenth of μ left out. It counts curved dimensions that principal components overestimate; it is biased
    down above about 10 dimensions. For m points in few dimensions its standard error is about 1.5 d/√m. Equal points
    count once. O(m² d) time, O(m d) memory.

    Of a data set it reads the responses to up to 2000 images (`UniformSample.most`), whatever their labels; the row's n
    says how many. Called on plain points it reads them all.

    Raises:
        Undefined: fewer than 20 different points.

    References:
        Facco et al. 2017, arXiv:1803.06992.
    """
    try:
        return two_nn_dimension(sample.x)
    except GeophoneError as error:
        raise Undefined(str(error)) from None


def _check_varies(moments: Moments, least: int) -> None:
    if moments.n < least:
        raise Undefined(f"needs at least {least} images, has {moments.n}")
    if moments.constant:
        raise Undefined("the responses do not vary")
    if not moments.squarable:
        raise Undefined(OUT_OF_RANGE)


def _family(name: str, statistic: type, compute: Callable[..., float], doc: str) -> dict[int, Metric]:
    """Register one metric for each share of the variance; `pca_dim[95]` is the one for 95 %."""
    made = {}
    for percent in PERCENTS:
        one = Metric(
            f"{name}_{percent}", statistic, partial(compute, share=percent / 100), doc=doc.format(percent=percent)
        )
        made[percent] = METRICS.add(one.name, one)
    return made


pca_dim = _family(
    "pca_dim",
    Moments,
    lambda moments, share: float(components(moments, share)),
    "Number of principal components that hold {percent} % of the variance. In [0, min(d, n - 1)].",
)
pca_fraction = _family(
    "pca_fraction",
    Moments,
    lambda moments, share: components(moments, share) / moments.d,
    "Number of principal components that hold {percent} % of the variance, over the number of units. In [0, 1].",
)
difference_dim = _family(
    "difference_dim",
    Displacement,
    lambda displacement, share: float(difference_components(displacement, share)),
    "Principal components for {percent} % of the variance of (perturbed - clean) responses. In [0, min(d, n - 1)].",
)
difference_fraction = _family(
    "difference_fraction",
    Displacement,
    lambda displacement, share: difference_components(displacement, share) / displacement.d,
    "Principal components for {percent} % of the variance of (perturbed - clean) responses, over units. In [0, 1].",
)
