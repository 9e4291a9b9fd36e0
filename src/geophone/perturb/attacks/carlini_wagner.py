"""Minimal l2 perturbations by optimisation: Carlini and Wagner's attack, and the fast minimum-norm attack."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.errors import GeophoneError
from geophone.perturb.attacks.ascent import Ascent, checked_logits, classes_of, is_fooled
from geophone.perturb.attacks.base import MinimumNormAttack
from geophone.perturb.attacks.boundary import Closest, column
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import L2, Norm
from geophone.perturb.checks import check_number
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws
from geophone.types import Model

ADAM = 0.9, 0.999, 1e-8
"""Adam's decay of the first and of the second moment, and what keeps its quotient finite."""

_CHECKS = 10  # times in a search that its progress is looked at
_PROGRESS = 0.9999  # of the loss at the check before: what has not fallen below it has stopped
_INSIDE = 1 - 1e-6  # atanh of ±1 is infinite


@PERTURBATIONS.register
@dataclass(frozen=True)
class CarliniWagner(MinimumNormAttack):
    """Carlini and Wagner's l2 attack: Adam on the squared distance and the margin, which is weighed by a search.

        minimise ‖x' - x‖₂² + c·max(z_y - max_{j≠y} z_j + confidence, 0),   x' = (tanh(u) + 1)/2

    over u, from x. The weight c of each image is multiplied by 10 until a misclassified x' is found, then halved in
    between the largest that failed and the least that succeeded. The nearest of all misclassified x' is the result.
    Logits and confidence are in units of the range of the clean image's logits, so multiplying the logits changes
    nothing; `relative=False` is the textbook's loss, whose c depends on the network's scale.

    As a perturbation it goes towards what it found, no further than eps; with `fool` an image is left once something
    within eps is found.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: Adam's steps for each c; a step costs a forward and backward pass.
        searches: Values of c for each image.
        step_size: Adam's step size, in u.
        confidence: By how much the other class shall lead, at least 0.
        c: The first weight of the margin, above 0.
        relative: Divide logits by their range on the clean image.

    References:
        Carlini & Wagner 2017, arXiv:1608.04644.
    """

    eps: float = 0.5
    steps: int = 200
    searches: int = 5
    step_size: float = 0.01
    confidence: float = 0.0
    c: float = 1.0
    relative: bool = True
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "searches", 1.0)
        check_number(self, "step_size", 0.0)
        check_number(self, "confidence", 0.0)
        check_number(self, "c", 0.0)
        if not isinstance(self.relative, bool):
            raise GeophoneError(f"CarliniWagner(relative={self.relative!r}): write True or False.")

    def approach(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The nearest over all weights and steps."""
        return self._closest(x, y, model, enough=0.0)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """From x towards the nearest example, at most eps far."""
        return ...
