"""Attacks on the parameters of a layer that is put on an image: what snow, Gabor noise and JPEG artefacts share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.rng import Draws
from geophone.core.types import Averages, Model, TakesSteps
from geophone.perturb.attacks.ascent import Ascent, classes_of, until_fooled
from geophone.perturb.attacks.base import Attack, check_draws
from geophone.perturb.attacks.losses import find_loss
from geophone.perturb.checks import check_batch, check_number

Laid = Callable[[Tensor, Tensor], Tensor]
"""From parameters `[m, …]` and the rows of the images that they belong to, `[m]`, to those images with the layer on."""


@dataclass(frozen=True)
class LayerAttack(Attack, Averages, TakesSteps):
    """An attack that climbs the loss in the parameters z of a layer, not in the pixels; subclasses say which layer.

    `steps` times z ← onward(z, ∂ loss / ∂z); then x' = laid(z).
    """

    steps: int = 10
    loss: str = "scaled_ce"
    draws: int | None = None
    highest: ClassVar[float]
    """The largest eps that makes sense."""
    unit: ClassVar[str]
    """One sentence on what eps = 1 is."""

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, self.highest, self.unit)
        check_number(self, "steps", 1.0)
        check_draws(self)
        find_loss(self.loss)

    def layer(self, x: Float[Tensor, "n c h w"], rng: Draws) -> tuple[Tensor, Laid]:
        """Parameters to start from, `[n, …]`, and how they and the images make attacked images."""
        raise NotImplementedError

    def onward(self, z: Float[Tensor, "m ..."], gradient: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
        """Parameters one step on, where they are allowed."""
        raise NotImplementedError

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """`steps` steps in the layer's parameters, from where it starts."""
        check_batch(x, y, rng, axes=4)
        z, laid = self.layer(x, rng)
        every = rows = torch.arange(len(x), device=x.device)
        ascent = Ascent(lambda z: model(laid(z, rows)), find_loss(self.loss), self.averaged(model), classes_of(y))

        def step(numbers: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal rows
            rows = numbers.long()
            logits, _, gradient = ascent(z, y)
            return logits, self.onward(z, gradient)

        if stop:
            # `until_fooled` hands on rows of what it is given: here the examples' numbers, exact in float32.
            z = until_fooled(step, every.float(), y, z, self.steps)
        else:
            for _ in range(self.steps):
                z = step(every, y, z)[1]
        ascent.check()
        with torch.no_grad():
            return laid(z, every)


def luma(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """The luma of ITU-R BT.709 of colour images; the mean of the channels where they aren't three."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return torch.einsum("nchw,c->nhw", x, x.new_tensor([0.2126, 0.7152, 0.0722]))[:, None]
