"""Attacks: the perturbation in a small ball that hurts most, found by the gradient of the loss.

What they show is an upper bound of robustness. Cross-entropy saturates in float32 for a very confident model; a robust
accuracy that stays high at large eps says as much of the gradient as of the model.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from geophone.errors import GeophoneError
from geophone.perturb.ascent import pgd
from geophone.perturb.checks import check_batch, check_number
from geophone.perturb.norms import L2, LINF, Norm
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws
from geophone.types import Model

_UNITS = "eps is in the units of images in [0, 1]: 8/255, not 8."


@PERTURBATIONS.register
@dataclass(frozen=True)
class FGSM:
    """Fast gradient sign method: x' = clip(x + eps·sign(∇ loss), 0, 1).

    Attributes:
        eps: Largest change of a value, in [0, 1].

    References:
        Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572.
    """

    eps: float = 8 / 255
    level: ClassVar[str] = "eps"
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    family: ClassVar[str] = "attack"
    norm: ClassVar[Norm] = LINF

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0, _UNITS)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        if self.eps == 0:
            return x.clone()
        return pgd(model, x, y, start=x, norm=self.norm, eps=self.eps, steps=1, step_size=self.eps)


@dataclass(frozen=True)
class _PGD:
    """What the projected gradient attacks share: everything but the norm."""

    eps: float
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    level: ClassVar[str] = "eps"
    family: ClassVar[str] = "attack"
    norm: ClassVar[Norm]

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0 if self.norm is LINF else math.inf, _UNITS)
        check_number(self, "steps", 1.0)
        if self.step_size is not None:
            check_number(self, "step_size", 0.0)
        if not isinstance(self.random_start, bool):
            raise GeophoneError(f"{type(self).__name__}(random_start={self.random_start!r}): write True or False.")

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        if self.eps == 0:
            return x.clone()
        start = (x + self.eps * self.norm.uniform(rng, x)).clamp(0, 1) if self.random_start else x
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        return pgd(model, x, y, start, norm=self.norm, eps=self.eps, steps=self.steps, step_size=step_size)


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfPGD(_PGD):
    """Projected gradient descent in the l-infinity ball: signed steps, each projected and clipped to [0, 1].

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: How many steps, at least 1.
        step_size: Change of a value in a step; 2.5·eps/steps when None.
        random_start: Begin uniformly at random in the ball, not at the image.

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2PGD(_PGD):
    """Projected gradient descent in the l2 ball: steps along the gradient, each projected and clipped to [0, 1].

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: How many steps, at least 1.
        step_size: Length of a step; 2.5·eps/steps when None.
        random_start: Begin uniformly at random in the ball (radius u^(1/d)), not at the image.

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2
