"""How far a perturbation moves the images."""

from geophone.metrics.metric import metric
from geophone.stats import Lengths


@metric(Lengths)
def perturbation_l2(lengths: Lengths) -> float:
    """Mean over images of the Euclidean length of their change. In [0, √d], d the number of values in an image."""
    return float(lengths.l2) / lengths.n


@metric(Lengths)
def perturbation_linf(lengths: Lengths) -> float:
    """Mean over images of the largest change of a value. In [0, 1]."""
    return float(lengths.linf) / lengths.n
