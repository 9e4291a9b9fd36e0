"""How well the network answers."""

from math import sqrt

import numpy as np
from jaxtyping import Float

from geophone.metrics.metric import Undefined, metric
from geophone.stats import Outcomes

Z = 1.959963984540054  # the 97.5 % point of the standard normal


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share p of n independent answers.

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(right: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Mean over examples of how often each is got right, with its 95 % interval.

    Wilson's. Where an example is got right in some passes and wrong in others, as by a stochastic network, it is wider
    than need be, since no values in [0, 1] vary more than those that are 0 or 1; never too narrow near 0 and 1.
    """
    mean = float(right.mean())
    return mean, *wilson(mean, len(right))


def _accuracy_interval(outcomes: Outcomes) -> tuple[float, float]:
    return wilson(accuracy.compute(outcomes), outcomes.n)


def _margin_interval(outcomes: Outcomes) -> tuple[float, float]:
    """Normal 95 % interval of the mean margin."""
    n, mean = outcomes.n, margin.compute(outcomes)
    if n < 2:
        raise Undefined("one image has no spread")
    variance = max(0.0, (float(outcomes.margin_square.sum()) - n * mean**2) / (n - 1))
    half = Z * sqrt(variance / n)
    return mean - half, mean + half


@metric(Outcomes, interval=_accuracy_interval, least_units=2)
def accuracy(outcomes: Outcomes) -> float:
    """Share of images classified right (top-1). In [0, 1], with Wilson's 95 % interval."""
    return float(outcomes.correct.sum()) / outcomes.n


@metric(Outcomes, interval=_margin_interval, least_units=2)
def margin(outcomes: Outcomes) -> float:
    """Mean of the right logit minus the largest other one, in logits. Positive where the answer is right."""
    return float(outcomes.margin.sum()) / outcomes.n


@metric(Outcomes, least_units=2)
def loss(outcomes: Outcomes) -> float:
    """Mean cross-entropy, in nats."""
    return float(outcomes.loss.sum()) / outcomes.n
