"""DeepFool: step by step over the nearest boundary of the linearised network, in l2 and l∞."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model, TakesSteps
from geophone.perturb.attacks.ascent import FOOLED, classes_of, is_fooled, logits_at, until_fooled
from geophone.perturb.attacks.base import MinimumNormAttack
from geophone.perturb.attacks.boundary import column, nearest_boundary
from geophone.perturb.attacks.norms import L2, LINF, Norm
from geophone.perturb.checks import check_number

NUDGE = 1e-4
"""What the authors' code adds to the length of each step, so that a search doesn't end in ever shorter ones."""


@dataclass(frozen=True)
class _DeepFool(MinimumNormAttack, TakesSteps):
    """What both norms share: everything."""

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "candidates", 2.0)
        check_number(self, "overshoot", 0.0)

    def approach(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Steps over the nearest plane until the network is fooled; x where it never is."""
        least = classes_of(y)

        def step(_: Tensor, y: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
            logits, lead, gradient = nearest_boundary(model, moved, y, self.candidates - 1, self.norm, least)
            # To where the other class leads by enough to count: an example on the boundary itself fools no one.
            missing = 2 * FOOLED * logits.abs().amax(1) - lead
            direction = self.norm.steepest(gradient)
            slope = (gradient * direction).flatten(1).sum(1)
            length = (missing / slope).nan_to_num(0).add(NUDGE).mul(1 + self.overshoot)
            # No move within [0, 1] is longer, in any norm, than there are values.
            return logits, (moved + column(length.clamp(max=moved[0].numel()), x) * direction).clamp_(0, 1)

        found = until_fooled(step, x, y, x, self.steps)
        with torch.no_grad():
            # Some end on a boundary that their short last steps don't cross: the overshoot of the whole way does.
            stuck = column(~is_fooled(logits_at(model, found, y), y), x)
            found = torch.where(stuck, (x + (1 + self.overshoot) * (found - x)).clamp_(0, 1), found)
            return torch.where(column(is_fooled(logits_at(model, found, y), y), x), found, x)


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2DeepFool(_DeepFool):
    """DeepFool in l2: steps along the gradient, each to the nearest of the linearised boundaries.

        x' ← clip(x' + (1 + overshoot)·|z_j - z_y|/‖w_j‖₂ · w_j/‖w_j‖₂, 0, 1),   w_j = ∇(z_j - z_y)

    with j the class for which |z_j - z_y|/‖w_j‖₂ is least, until x' is misclassified. So the whole way from x is 1 +
    overshoot times the sum of the steps. As a perturbation it goes towards what it found, no further than eps.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: How many steps at most; a step costs a forward pass and candidates - 1 backward passes.
        candidates: Classes with the largest logits that are considered, the true one among them, at least 2.
        overshoot: How much longer than the way to the boundary, relative to it, at least 0.

    References:
        Moosavi-Dezfooli, Fawzi & Frossard 2016, arXiv:1511.04599.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfDeepFool(_DeepFool):
    """DeepFool in l∞: steps along the gradient's signs, each to the nearest of the linearised boundaries.

        x' ← clip(x' + (1 + overshoot)·|z_j - z_y|/‖w_j‖₁ · sign w_j, 0, 1),   w_j = ∇(z_j - z_y)

    with j the class for which |z_j - z_y|/‖w_j‖₁ is least, until x' is misclassified. As a perturbation it goes towards
    what it found, no further than eps.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: How many steps at most; a step costs a forward pass and candidates - 1 backward passes.
        candidates: Classes with the largest logits that are considered, the true one among them, at least 2.
        overshoot: How much longer than the way to the boundary, relative to it, at least 0.

    References:
        Moosavi-Dezfooli, Fawzi & Frossard 2016, arXiv:1511.04599.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF
