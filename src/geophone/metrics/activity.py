"""How many units take part."""

from jaxtyping import Float
from torch import Tensor

from geophone.metrics.metric import metric
from geophone.stats import Activity


@metric(Activity, per_unit=True)
def active_fraction(activity: Activity) -> Float[Tensor, " d"]:
    """Share of images to which a unit responds above 0. In [0, 1], one value per unit.

    A channel counts as active on an image when its reduced response (its spatial mean) is above 0.
    """
    return activity.active.double() / activity.n


@metric(Activity, least=2)
def dead_fraction(activity: Activity) -> float:
    """Share of units whose response is the same for every image. In [0, 1]; 1 is a dead layer.

    Raises:
        Undefined: fewer than two images.
    """
    return float((activity.low == activity.high).double().mean())
