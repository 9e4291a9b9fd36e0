"""What the attacks that look for the nearest misclassified image share: boundaries, and what was found so far."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core.rng import Draws
from geophone.core.types import Model
from geophone.perturb.attacks.ascent import (
    check_finite,
    classes_of,
    each_sum,
    input_gradient,
    is_fooled,
    logits_at,
)
from geophone.perturb.attacks.base import MinimumNormAttack
from geophone.perturb.attacks.norms import Norm

DUAL = {1.0: torch.inf, 2.0: 2.0, torch.inf: 1.0}
"""The order q of a p-norm's dual, 1/p + 1/q = 1: a plane {δ : ⟨w, δ⟩ = a} is |a| / ‖w‖_q away from 0."""


class Closest:
    """The nearest misclassified images that were found so far.

    Attributes:
        images: Like x; x itself where none was found.
        distance: From x, `[n]`; infinite where none was found.
    """

    def __init__(self, x: Float[Tensor, "n ..."], norm: Norm, enough: float = 0.0) -> None:
        """Args: the clean images, the norm that counts, and the distance within which an example counts as solved."""
        self.x, self.norm, self.enough = x, norm, enough
        self.images = x.clone()
        self.distance = torch.full_like(x.flatten(1)[:, 0], torch.inf)

    def offer(self, rows: Int[Tensor, " m"], moved: Float[Tensor, "m ..."], fooled: Bool[Tensor, " m"]) -> None:
        """Keep those of `moved`, of the images `rows`, that fool the network and are nearer than what was found."""
        length, before = self.norm.length(moved - self.x[rows]), self.distance[rows]
        nearer = fooled & (length < before)
        self.distance[rows] = torch.where(nearer, length, before)
        self.images[rows] = torch.where(column(nearer, moved), moved, self.images[rows])

    def unsolved(self) -> Int[Tensor, " m"]:
        """The images with nothing within `enough` yet."""
        return (self.distance > self.enough).nonzero()[:, 0]


@dataclass(frozen=True)
class ClosestAttack(MinimumNormAttack):
    """An attack that goes on after its first success and keeps the nearest; subclasses say how.

    With `fool` an example is left once something within eps is found.
    """

    def approach(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The nearest that was found; x itself where none was, and where x is misclassified."""
        return self._closest(x, y, model, enough=0.0)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """From x towards the nearest that was found, at most eps far."""
        return self.towards(self._closest(x, y, model, enough=self.eps if stop else 0.0), x)

    def improve(self, closest: Closest, logits: Tensor, y: Tensor, model: Model) -> None:
        """The search: offer images to `closest`, for those that are `unsolved`.

        Args:
            closest: What was found so far: the images that are misclassified as they are.
            logits: Of the clean images.
            y: Their labels.
            model: The network.
        """
        raise NotImplementedError

    def _closest(self, x: Tensor, y: Tensor, model: Model, enough: float) -> Tensor:
        closest = Closest(x, self.norm, enough)
        with torch.no_grad():
            logits = logits_at(model, x, y, classes_of(y))
        closest.offer(torch.arange(len(x), device=x.device), x, is_fooled(logits, y))
        self.improve(closest, logits, y, model)
        return closest.images


def nearest_boundary(
    model: Model,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    among: Int[Tensor, "n r"] | int,
    norm: Norm,
    least: int = 0,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, "n ..."]]:
    """The logits, and z_j - z_y and its gradient for the class j whose linearised boundary is nearest.

        distance = |z_j - z_y| / ‖∇(z_j - z_y)‖_q,   1/p + 1/q = 1

    Costs one forward pass, and one backward pass for each class.

    Args:
        model: The network.
        x: Images.
        y: Their labels.
        among: The classes j, `[n, r]`, without the true one; or how many, then those with the largest logits.
        norm: The norm whose p counts.
        least: The fewest classes that the labels allow, when it is known.

    Raises:
        GeophoneError: the model doesn't give logits for these labels, or no gradient, or one that isn't finite.
    """
    x = x.detach().requires_grad_()
    logits = logits_at(model, x, y, least)
    classes = rivals(logits.detach(), y, among) if isinstance(among, int) else among
    true = logits.gather(1, y[:, None])[:, 0]
    lead, steepness, normal = torch.zeros_like(true), torch.zeros_like(true), torch.zeros_like(x)
    for rank in range(classes.shape[1]):
        other = logits.gather(1, classes[:, rank, None])[:, 0] - true
        gradient = input_gradient(other, x, again=rank + 1 < classes.shape[1])
        check_finite([each_sum(gradient)])
        other, slope = other.detach(), torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm.order], dim=1)
        # |a| / s < |b| / t without the quotients: a boundary without a slope is infinitely far.
        nearer = (other.abs() * steepness < lead.abs() * slope) | (steepness == 0)
        lead, steepness = torch.where(nearer, other, lead), torch.where(nearer, slope, steepness)
        normal = torch.where(column(nearer, x), gradient, normal)
    return logits.detach(), lead.detach(), normal.detach()


def rivals(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], count: int) -> Int[Tensor, "n r"]:
    """The likeliest classes but the true one, likeliest first: `count` of them, or all where there are fewer."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def column(values: Tensor, like: Float[Tensor, "n ..."]) -> Tensor:
    """One value for each example, `[n, 1, …]`, so that it broadcasts over the images."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
