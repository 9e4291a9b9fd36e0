"""What a perturbation asks of its batch and of its parameters, said once for all of them."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws
from geophone.core.types import ROUNDING


def check_batch(x: Tensor, y: Tensor, rng: Draws, axes: int | None = None) -> None:
    """Check a batch before it is perturbed.

    Args:
        x: Images `[n, c, h, w]`, or anything `[n, ...]` of one float dtype, in [0, 1].
        y: Labels `[n]`.
        rng: Draws for the same n examples, on the device of x.
        axes: How many axes x must have; None when it does not matter.

    Raises:
        GeophoneError: x is empty, not float, of the wrong shape, NaN or outside [0, 1]; y or rng are of other examples.
    """
    n = len(x) if x.ndim else 0
    if x.ndim < 2 or x.numel() == 0 or (axes is not None and x.ndim != axes):
        wanted = "[n, c, h, w]" if axes == 4 else "[n, ...]"
        raise GeophoneError(
            f"cannot perturb a tensor of shape {list(x.shape)}: give a batch {wanted} that isn't empty."
        )
    if tuple(y.shape) != (n,) or tuple(rng.index.shape) != (n,):
        raise GeophoneError(
            f"{n} images came with labels of shape {list(y.shape)} and draws of shape {list(rng.index.shape)}: "
            f"give one label and one index for each image, [{n}]."
        )
    if rng.index.device != x.device or y.device != x.device:
        raise GeophoneError(
            f"images are on {x.device}, labels on {y.device} and draws on {rng.index.device}: move all to one device."
        )
    if y.is_floating_point():
        raise GeophoneError(f"labels are {y.dtype}: give the number of each image's class, int64.")
    if not x.is_floating_point():
        raise GeophoneError(f"images are {x.dtype}, not float: scale them to [0, 1] first, `x.float() / 255`.")
    low, high = (float(edge) for edge in x.detach().aminmax())
    if math.isnan(low):
        raise GeophoneError(
            "images hold NaN: perturbations need numbers in [0, 1]. Check the data set or its preprocessing."
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise GeophoneError(
            f"images lie in [{low:.4g}, {high:.4g}], not in [0, 1]: scale them to [0, 1] and normalise inside the "
            "model (as its first layer), so that a level means the same for every model."
        )


def check_number(thing: Any, field: str, low: float, high: float = math.inf, remedy: str = "") -> None:
    """Check a numeric field of a frozen dataclass, and keep it as a plain `int` or `float`.

    A whole number is asked for where the field is annotated `int` or `int | None`. Plain numbers print as code that can
    be read back; `numpy.float64(0.1)` does not.

    Raises:
        GeophoneError: the field is not a finite number in [low, high].
    """
    value = getattr(thing, field)
    whole = type(thing).__dataclass_fields__[field].type in (int, "int", int | None)
    number = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of at least {low:g}"
        tail = f" {remedy}" if remedy else ""
        raise GeophoneError(f"{type(thing).__name__}({field}={value!r}): {field} must be {kind} {bounds}.{tail}")
    object.__setattr__(thing, field, int(value) if whole else float(value))
