"""Attacks by steps along the gradient: FGSM and projected gradient descent in the l∞, l2 and l1 ball.

What they show is an upper bound of robustness: see `geophone.probes.checks` for signs that a bound says little.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Averages, GoesOn, Model, TakesSteps
from geophone.perturb.attacks.ascent import Ascent, classes_of, pgd
from geophone.perturb.attacks.base import Attack, check_draws, under_attack
from geophone.perturb.attacks.losses import find_loss
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.checks import check_number


@PERTURBATIONS.register
@dataclass(frozen=True)
class FGSM(Attack, Averages):
    """Fast gradient sign method: x' = clip(x + eps·sign(∇ loss), 0, 1).

    Attributes:
        eps: Largest change of a value, in [0, 1].
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572.
    """

    eps: float = 8 / 255
    loss: str = "scaled_ce"
    draws: int | None = None
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF

    def __post_init__(self) -> None:
        super().__post_init__()
        find_loss(self.loss)
        check_draws(self)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """One step of length eps from x."""
        ascent = Ascent(model, find_loss(self.loss), self.averaged(model), classes_of(y))
        found = pgd(ascent, x, y, x, norm=self.norm, eps=self.eps, steps=1, step_size=self.eps, stop=stop)
        ascent.check()
        return found


@dataclass(frozen=True)
class _PGD(Attack, Averages, TakesSteps):
    """What the projected gradient attacks share: everything but the norm."""

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    loss: str = "scaled_ce"
    draws: int | None = None
    fewest_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", float(self.fewest_steps))
        check_draws(self)
        find_loss(self.loss)
        if self.step_size is not None:
            check_number(self, "step_size", 0.0)
        if not isinstance(self.random_start, bool):
            raise GeophoneError(f"{type(self).__name__}(random_start={self.random_start!r}): write True or False.")

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """`steps` steps from a random place in the ball, or from x."""
        start = self.norm.inside(x + self.eps * self.norm.uniform(rng, x), x, self.eps) if self.random_start else x
        return self._climb(x, y, model, start, self.steps, stop)

    def _climb(self, x: Tensor, y: Tensor, model: Model, start: Tensor, steps: int, stop: bool = False) -> Tensor:
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        ascent = Ascent(model, find_loss(self.loss), self.averaged(model), classes_of(y))
        found = pgd(*(ascent, x, y, start), norm=self.norm, eps=self.eps, steps=steps, step_size=step_size, stop=stop)
        ascent.check()
        return found


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfPGD(_PGD):
    """Projected gradient descent in the l-infinity ball: signed steps, each projected and clipped to [0, 1].

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: How many steps, at least 1.
        step_size: Change of a value in a step; 2.5·eps/steps when None.
        random_start: Begin uniformly at random in the ball, not at the image.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF


@PERTURBATIONS.register
@dataclass(frozen=True)
class PGDSteps(LinfPGD, GoesOn):
    """Projected gradient descent whose strength is its number of steps: small ones, in a large l-infinity ball.

    The selectivity papers' attack: step size 1e-4 and radius 16/255, so that no image comes near the border of the ball
    in fewer than 627 steps, and accuracy is drawn over the number of steps. That it starts at the image, and the loss,
    are assumptions.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: How many steps; 0 leaves the images as they are.
        step_size: Change of a value in a step.
        random_start: Begin uniformly at random in the ball, not at the image.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Leavitt & Morcos 2020, arXiv:2010.07693.
    """

    eps: float = 16 / 255
    steps: int = 40
    step_size: float | None = 1e-4
    random_start: bool = False
    level: ClassVar[str] = "steps"
    levels: ClassVar[tuple[float, ...]] = (5, 10, 20, 40, 80)
    fewest_steps: ClassVar[int] = 0

    def onward(self, found: Tensor, weaker: Any, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """What calling it gives, from what a weaker one found: of a curve over steps only the last is paid for."""
        if weaker.steps == 0 or self.step_size is None:  # whose length depends on the number of steps
            return self(x, y, model, rng)

        def search(x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
            return self._climb(x, y, model, found, self.steps - weaker.steps)

        return under_attack(search, x, y, model, rng)


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2PGD(_PGD):
    """Projected gradient descent in the l2 ball: steps along the gradient, each projected and clipped to [0, 1].

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: How many steps, at least 1.
        step_size: Length of a step; 2.5·eps/steps when None.
        random_start: Begin uniformly at random in the ball (radius u^(1/d)), not at the image.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2


@PERTURBATIONS.register
@dataclass(frozen=True)
class L1PGD(_PGD):
    """Projected gradient descent in the l1 ball with sparse steps (sparse l1 descent).

    A step changes the 5 % of values with the largest gradients, each by the same amount and by its sign. The projection
    is on the ball and [0, 1] at once: one after the other, as in many libraries, wastes most of an l1 budget.

    Attributes:
        eps: Largest sum of absolute changes of an image's values, at least 0.
        steps: How many steps, at least 1.
        step_size: Length of a step; 2.5·eps/steps when None.
        random_start: Begin uniformly at random in the ball, not at the image.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Tramèr & Boneh 2019, arXiv:1904.13000; Croce & Hein 2021, arXiv:2103.01208 (the projection).
    """

    eps: float = 12.0
    levels: ClassVar[tuple[float, ...]] = (3.0, 6.0, 12.0, 24.0)
    norm: ClassVar[Norm] = L1
