"""How much units prefer one class."""

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.rng import stream
from geophone.metrics.metric import Undefined, metric
from geophone.metrics.outcomes import Z
from geophone.stats import ClassMeans, Moments

EPS = 1e-7
PER_CLASS = 2
"""Images of a class, on average over classes, below which between classes and within them can't be told apart."""
DRAWS = 40
"""Of the class means, for the spread of the floor: it is then known to a ninth."""


def selectivity_of_means(mean: Float[Tensor, "k d"]) -> Float[Tensor, " d"]:
    """Class selectivity index of each unit from its class means; differentiable.

        SI = (μ_max - μ_rest) / (μ_max + μ_rest + 1e-7)

    where μ_max is the largest class mean and μ_rest the unweighted mean of the others.

    Args:
        mean: Mean response to each class that is present, at least two, not negative.
    """
    top = mean.amax(0)
    rest = (mean.sum(0) - top) / (len(mean) - 1)
    return (top - rest) / (top + rest + EPS)


@metric(ClassMeans, per_unit=True)
def class_selectivity(means: ClassMeans) -> Float[Tensor, " d"]:
    """Class selectivity index per unit: (μ_max - μ_rest) / (μ_max + μ_rest + ε). In [0, 1].

    μ_max is the mean response to the class that the unit likes best, μ_rest the unweighted mean over the other classes
    of their mean responses; ε = 1e-7, so a dead unit has 0. Classes without examples do not enter. Not invariant to
    adding a constant to a unit. Biased up when there are few images per class: see `class_selectivity_floor`.
    A layer's value is the mean over its units, the network's the mean over its layers (not the classifier).

    Raises:
        Undefined: fewer than two classes, fewer than two images per class (its floor is then all that it shows), or
            negative mean responses (selectivity is for the output of a ReLU).

    References:
        Morcos et al. 2018, arXiv:1803.06959; Leavitt & Morcos 2020, arXiv:2003.01262.
    """
    _check_classes(means)
    present = means.mean[means.count > 0]
    if bool((present < 0).any()):
        raise Undefined(
            "mean responses below 0: class selectivity is defined for non-negative responses (after a ReLU)"
        )
    return selectivity_of_means(present)


def _check_classes(means: ClassMeans) -> None:
    """Two classes at least with two images each, and two images of a class on average."""
    classes = int((means.count > 0).sum())
    if classes < 2:
        raise Undefined("needs labels [n], and images of at least two classes")
    if int((means.count >= PER_CLASS).sum()) < 2 or means.n < PER_CLASS * classes:
        raise Undefined(
            f"needs at least {PER_CLASS} images per class, has {means.n} of {classes} classes: what differs between "
            "classes cannot be told from what differs between images"
        )


def _floor_range(means: ClassMeans) -> tuple[float, float]:
    """Where 95 % of shuffles have a layer's mean: by draws of normal class means, the same for all units.

    Units that are alike are off together, and how alike they are is not known from their means: so all are taken to be.
    """
    present = means.count > 0
    count = means.count[present].double()[:, None]
    middle = (count * means.mean[present]).sum(0) / means.n
    spread = (means.within / (means.n - len(count))).sqrt() / count.sqrt()
    generator = stream("shuffled class means", len(count))
    normal = torch.randn(DRAWS, len(count), 1, generator=generator, dtype=torch.float64).to(middle.device)
    drawn = [selectivity_of_means((middle + spread * z).clamp(min=0)).mean() for z in normal]
    mean, half = float(class_selectivity.compute(means).mean()), Z * float(torch.stack(drawn).std())
    return mean - half, mean + half


@metric(ClassMeans, per_unit=True, shuffled=True, interval=_floor_range)
def class_selectivity_floor(means: ClassMeans) -> Float[Tensor, " d"]:
    """Class selectivity index after shuffling the labels over the images: its finite-sample floor. In [0, 1].

    What `class_selectivity` would show without any class information, for as many images. Of a layer, the interval says
    how far other shuffles may be off, if all units are off together.
    """
    return class_selectivity.compute(means)


@metric(ClassMeans, per_unit=True)
def eta_squared(means: ClassMeans) -> Float[Tensor, " d"]:
    """Share of a unit's variance that lies between classes (correlation ratio): class information per unit. In [0, 1].

        η² = Σ_c n_c (μ_c - μ)² / Σ_i (a_i - μ)²

    Unlike class selectivity it does not change when a constant is added to a unit, nor by scaling, and sees any
    difference between classes, not that of one class from the others. Without class information it is
    (k - 1)/(n - 1) in expectation for normal responses. A unit that does not vary has no value.

    Raises:
        Undefined: fewer than two classes, fewer than two images per class (all variance then lies between classes), or
            no unit that varies.

    References:
        Fisher 1925, Statistical Methods for Research Workers, §45.
    """
    _check_classes(means)
    count = means.count.double()[:, None]
    mean = (count * means.mean).sum(0) / means.n
    between = (count * (means.mean - mean).square()).sum(0)
    total = between + means.within
    # What varies by no more than float32 rounds the responses does not vary.
    varies = total > means.n * (2.0**-23 * mean) ** 2
    if not bool(varies.any()):
        raise Undefined("the responses do not vary")
    return torch.where(varies, between / total, torch.nan)


@metric(Moments, per_unit=True)
def mean_response(moments: Moments) -> Float[Tensor, " d"]:
    """Mean response of a unit over all images: the baseline that class selectivity is not invariant to."""
    return moments.mean
