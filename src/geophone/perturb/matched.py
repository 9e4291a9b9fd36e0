"""A perturbation at a given length: what differs between two of them is then their direction, not their size."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model, Scales
from geophone.perturb.attacks.norms import L2, Norm
from geophone.perturb.checks import check_batch, check_number


@PERTURBATIONS.register
@dataclass(frozen=True)
class MatchedL2(Scales):
    """Another perturbation, stretched or shrunk until each image has moved by the Euclidean length `l2`.

        x' = clip(x + t·(p(x) - x), 0, 1),  t ≥ 0 such that |x' - x|₂ = l2

    An image that cannot move that far in that direction without leaving [0, 1] goes as far as it can, and one that `p`
    leaves as it is stays so: the metric `perturbation_l2` says what came of it. Its family is its own, so that it does
    not count as natural or as an attack in summaries.

    Attributes:
        l2: Length of the change of an image, at least 0.
        inner: The perturbation as code, at the level that it is to have before it is scaled.
    """

    l2: float = 0.5
    inner: str = "GaussianNoise"
    level: ClassVar[str] = "l2"
    levels: ClassVar[tuple[float, ...]] = (0.1, 0.5, 2.0)
    family: ClassVar[str] = "matched"
    norm: ClassVar[Norm] = L2

    def __post_init__(self) -> None:
        check_number(self, "l2", 0.0)
        PERTURBATIONS.build(self.inner)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Perturbed images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        if self.l2 == 0:
            return x.clone()
        moved = PERTURBATIONS.build(self.inner)(x, y, model, rng)
        with torch.no_grad():
            return scaled(x.flatten(1), moved.flatten(1), self.l2).reshape(x.shape)


def scaled(x: Float[Tensor, "n d"], moved: Float[Tensor, "n d"], length: float) -> Float[Tensor, "n d"]:
    """Points on the way from x through `moved`, clipped to [0, 1], at a distance from x or as far as there are any.

    The squared distance grows with t as Σ min(t|δ|, room)², where room is what a value has left in its direction: a
    parabola between the places where one more value reaches its border. Sorted by those, it is solved exactly.
    """
    exact = x.double().clamp(0, 1)
    delta = moved.double() - exact
    room = torch.where(delta > 0, 1 - exact, exact)
    border, order = (room / delta.abs()).nan_to_num_(torch.inf).sort(dim=1)
    room, speed = room.gather(1, order).square(), delta.square().gather(1, order)
    # With the first k values at their borders: Σ_{<k} room² + t² Σ_{≥k} δ² = length².
    at_border = torch.cat([torch.zeros_like(room[:, :1]), torch.where(speed > 0, room, 0).cumsum(1)], dim=1)
    free = torch.cat([speed.flip(1).cumsum(1).flip(1), torch.zeros_like(room[:, :1])], dim=1)
    reached = (at_border[:, :-1] + border.square() * free[:, :-1]).nan_to_num_(torch.inf)
    k = (reached < length**2).sum(1, keepdim=True)
    left, slope = length**2 - at_border.gather(1, k), free.gather(1, k)
    t = torch.where(slope > 0, (left / slope).clamp(min=0).sqrt(), torch.inf)
    step = torch.where(delta == 0, 0, t * delta)
    return (exact + step).clamp_(0, 1).to(x.dtype)
