"""What the attacks that stay in a ball share: checks, surroundings, and stopping early."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.table import EOT
from geophone.core.types import Averages, Ensemble, Model, Perturbation, Scales, StopsEarly, describe
from geophone.models.stochastic import is_stochastic
from geophone.perturb.attacks.ascent import attacking
from geophone.perturb.attacks.norms import LINF, Norm
from geophone.perturb.checks import check_batch, check_number
from geophone.perturb.parse import level_of

EOT_DRAWS = 10
"""Draws of a stochastic network's noise that a gradient is averaged over, where the attack doesn't say: as many as in
VOneNet's evaluation (Dapello et al. 2020); expectation over transformation (Athalye et al. 2018, arXiv:1802.00420)."""

UNITS = "eps is in the units of images in [0, 1]: 8/255, not 8."


@dataclass(frozen=True)
class Attack(StopsEarly):
    """An attack of radius `eps` in the norm `norm`; subclasses say how it searches.

    `attack(x, y, model, rng)` gives adversarial examples of full strength, also where a weaker one would have fooled
    the network; `attack.fool(...)` leaves each example once it is fooled and spends nothing more on it: the same
    robust accuracy for less, where only that is wanted.
    """

    eps: float
    level: ClassVar[str] = "eps"
    levels: ClassVar[tuple[float, ...]]
    family: ClassVar[str] = "attack"
    norm: ClassVar[Norm]
    black_box: ClassVar[bool] = False
    """Whether the attack sees nothing but the logits."""
    highest: ClassVar[float | None] = None
    """The largest eps that makes sense; None: 1 in l∞, else any."""

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0 if self.norm is LINF else math.inf, UNITS)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, of the shape and dtype of x."""
        return self._attack(x, y, model, rng, stop=False)

    def fool(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, each left as it is once it fools the network: cheaper, and no stronger than need be."""
        return self._attack(x, y, model, rng, stop=True)

    def _attack(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        if level_of(self) == 0:
            check_batch(x, y, rng)
            return x.clone()
        return under_attack(partial(self.search, stop=stop), x, y, model, rng)

    def averaged(self, model: Model) -> int:
        """How many passes each gradient is a mean over: see `draws_of`."""
        return draws_of(self, is_stochastic(model))

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """The attack itself: gradients are on and the model is in evaluation mode; never called at level 0.

        Args:
            x: Clean images, a copy.
            y: Labels, int64.
            model: The network, or a faster copy of it.
            rng: Draws for these examples.
            stop: Whether examples may be left once they are fooled.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MinimumNormAttack(Attack):
    """An attack that looks for the nearest misclassified image; subclasses say how.

    As a perturbation of radius eps it goes from the image towards what it found, no further than eps. One search gives
    a whole curve: the accuracy at eps is the share of images whose nearest adversarial example is further away.
    """

    def nearest(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The nearest misclassified images that were found, at any distance; x itself where none was."""
        check_batch(x, y, rng)
        return under_attack(self.approach, x, y, model, rng)

    def approach(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The search behind `nearest`: gradients are on and the model is in evaluation mode."""
        raise NotImplementedError

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """From x towards the nearest example, at most eps far."""
        return self.towards(self.approach(x, y, model, rng), x)

    def towards(self, found: Tensor, x: Tensor) -> Tensor:
        """What was found where it is within eps, else the point between it and x that is."""
        delta = found - x
        share = self.eps / self.norm.length(delta).clamp(min=torch.finfo(x.dtype).tiny)
        share = share.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(share >= 1, found, x + delta * share).clamp_(0, 1)


def is_attack(perturbation: Any) -> bool:
    """Whether a perturbation attacks, or scales one that does (`MatchedL2`)."""
    inner = _inner(perturbation)
    return bool(perturbation.family == "attack" if inner is None else is_attack(inner))


def averaging(attack: Perturbation, stochastic: bool) -> Perturbation:
    """The attack, averaging its gradients where the network is stochastic and the attack leaves open how often."""
    thing: Any = attack
    if stochastic and (inner := _inner(thing)) is not None:
        return replace(thing, inner=describe(averaging(inner, True)))
    open_ = stochastic and isinstance(attack, Averages) and attack.draws is None
    return replace(thing, draws=EOT_DRAWS) if open_ else attack


def draws_of(attack: Any, stochastic: bool) -> int:
    """How many draws of a network's noise each gradient of an attack is averaged over.

    Its own `draws`; where that is left open (None) 1, or 10 for a stochastic network. 1 for an attack that can't
    average, for an ensemble the least of its members', and for an attack that is scaled its own.
    """
    if (inner := _inner(attack)) is not None:
        return draws_of(inner, stochastic)
    if isinstance(attack, Ensemble):
        return min(draws_of(member, stochastic) for member in attack.members())
    draws = attack.draws if isinstance(attack, Averages) else 1
    if draws is None:
        return EOT_DRAWS if stochastic else 1
    return int(draws)


def eot_row(draws: int) -> dict[str, Any]:
    """What a table says of an attack on a stochastic network: over how many draws of its noise gradients are means.

    Also of one that has no gradients: 1 is an attack that does not average.
    """
    over = f"each gradient is the mean over {draws} draws of" if draws > 1 else "not averaged over"
    return {"metric": EOT, "value": float(draws), "note": f"{over} the network's noise"}


def _inner(perturbation: Any) -> Any:
    """The perturbation that another scales, as `MatchedL2` does; None for any other."""
    return PERTURBATIONS.build(perturbation.inner) if isinstance(perturbation, Scales) else None


def check_draws(attack: Any) -> None:
    """Raise an error for `draws` that are neither None nor a whole number from 1."""
    if attack.draws is not None:
        check_number(attack, "draws", 1.0)


def under_attack(
    search: Callable[[Tensor, Tensor, Model, Draws], Tensor], x: Tensor, y: Tensor, model: Model, rng: Draws
) -> Tensor:
    """Run a search with gradients on, the model in evaluation mode and made fast, and no trace of it left after.

    Raises:
        GeophoneError: the batch can't be perturbed (see `check_batch`).
    """
    check_batch(x, y, rng)
    with attacking(model, x, rng) as network:
        # Copies, because tensors that were made in inference mode can't have gradients.
        copied = Draws(rng.seed, rng.index.clone())
        return search(x.detach().clone(), y.to(torch.int64, copy=True), network, copied).detach()
