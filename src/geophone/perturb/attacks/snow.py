"""Adversarial snow: the brightness of every flake is chosen against the network."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.perturb.attacks.layer import Laid, LayerAttack, luma
from geophone.perturb.checks import check_number

CELL = 4
"""Pixels between two flakes of a layer, along each axis."""

PLACES = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0))
"""Row and column, in its cell, of the flakes of each of the seven layers."""

REACH = 6
"""How far a flake reaches from its centre, in pixels."""

BLOCK = 8
"""Side, in cells, of the squares in which the mean intensity is bounded."""

DIMMEST = 1e-3
"""The least intensity: invisible (its fourth power counts), but with a gradient, so that a flake can come back."""


@PERTURBATIONS.register
@dataclass(frozen=True)
class SnowAttack(LayerAttack):
    """Falling snow whose flakes are placed and brightened against the network.

        x' = clip(bleached(x) + eps · Σ_k kernel_k * grid(z_k⁴), 0, 1),   z in [0, 1]
        bleached(x) = (1 - discolor)·x + discolor·max(x, 1.5·luma(x) + 0.5)

    Seven layers of flakes, one every four pixels along each axis. A flake is a streak with a random direction, length
    and width, the same in all of a layer. The intensities z climb the loss by signed steps; their mean over a layer's
    squares of 8 × 8 flakes stays at most `budget`. They begin at exp(-u/budget), u uniform: with all at 0 there would
    be no gradient.

    Every eps above 0 bleaches alike: accuracy does not tend to the clean one for eps → 0 unless `discolor` is 0.

    Attributes:
        eps: What a flake of full intensity adds to a pixel at its core, in units of images in [0, 1]; at least 0.
        steps: How many steps, at least 1.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).
        step_size: Change of an intensity in a step.
        budget: Largest mean intensity, in (0, 1].
        discolor: Share of the bleached image, in [0, 1].

    References:
        Kang et al. 2019, arXiv:1908.08016.
    """

    eps: float = 2.0
    step_size: float = 0.1
    budget: float = 0.15
    discolor: float = 0.25
    levels: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0)
    highest: ClassVar[float] = math.inf
    unit: ClassVar[str] = "It scales the snow, in units of images in [0, 1]; 2 is strong."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "step_size", 0.0)
        check_number(self, "budget", DIMMEST, 1.0)
        check_number(self, "discolor", 0.0, 1.0)

    def layer(self, x: Tensor, rng: Draws) -> tuple[Tensor, Laid]:
        """Random intensities, and random flakes for each image."""
        bleached = (1 - self.discolor) * x + self.discolor * x.maximum(1.5 * luma(x) + 0.5)
        flakes = flake_kernels(rng).to(x.dtype)
        h, w = x.shape[-2:]

        def laid(z: Tensor, rows: Tensor) -> Tensor:
            return (bleached[rows] + self.eps * falling(z**4, flakes[rows])[:, :, :h, :w]).clamp(0, 1)

        uniform = rng.uniform("intensity", len(PLACES), -(-h // CELL), -(-w // CELL)).to(x.dtype)
        return self._allowed(torch.exp(-uniform / self.budget)), laid

    def onward(self, z: Tensor, gradient: Tensor) -> Tensor:
        """A signed step, brought back to [0, 1] and into the budget."""
        return self._allowed(z + self.step_size * gradient.sign())

    def _allowed(self, z: Tensor) -> Tensor:
        z = z.clamp(DIMMEST, 1)
        mean = avg_pool2d(z, BLOCK, ceil_mode=True)  # of a smaller square at the edge, over what there is
        share = (self.budget / mean).clamp(max=1).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
        return z * share[:, :, : z.shape[2], : z.shape[3]]


def falling(
    brightness: Float[Tensor, "m 7 a b"], flakes: Float[Tensor, "m 7 13 13"]
) -> Float[Tensor, "m 1 height width"]:
    """Every flake put in its place, with its brightness, and summed: `[m, 1, 4a + 6, 4b + 6]`, cell by cell."""
    m, layers, rows, columns = brightness.shape
    side = flakes.shape[-1] + CELL - 1
    placed = flakes.new_zeros(m, layers, side, side)
    for layer, (row, column) in enumerate(PLACES):
        placed[:, layer, row : row + flakes.shape[-2], column : column + flakes.shape[-1]] = flakes[:, layer]
    # One flake a cell, so the stride does what a convolution would do with sixteen times the multiplications.
    whole = conv_transpose2d(
        brightness.reshape(1, m * layers, rows, columns),
        placed.reshape(m * layers, 1, side, side),
        stride=CELL,
        groups=m,
    )
    return whole.reshape(m, 1, *whole.shape[-2:])[:, :, REACH:, REACH:]


def flake_kernels(rng: Draws) -> Float[Tensor, "n 7 13 13"]:
    """Seven streaks for each image, as falling snow looks while the shutter is open.

    A streak goes through the centre, to ±(2 … 6) pixels along either axis, with a width of about 1.5, 2.5 or 3.5
    pixels (60, 30 and 10 % of them) and soft edges, 1 at its core, blurred by a Gaussian of 0.41 to 0.6 pixels. All of
    an image lean to one side.
    """
    n, layers = len(rng.index), len(PLACES)
    draw = rng.uniform("flakes", layers, 4)[..., None, None]
    ends = (2 + (REACH - 1) * draw[:, :, :2]).floor()
    long, short = ends.amax(2), ends.amin(2)
    steep = ends[:, :, 0] > ends[:, :, 1]
    width = 1 + 2 * (draw[:, :, 2] >= 0.6) + 2 * (draw[:, :, 2] >= 0.9)
    place = torch.arange(-REACH, REACH + 1, device=draw.device, dtype=draw.dtype)
    down, across = place[:, None], place[None, :]
    along, off = torch.where(steep, down, across), torch.where(steep, across, down)
    slope = short / long
    edge = 1 + width * (1 + slope).sqrt() / 4 - (off - slope * along).abs()
    streak = edge.clamp(0, 1) * (along.abs() <= long)
    streak = torch.where((rng.uniform("lean") < 0.5)[:, None, None, None], streak.flip(3), streak)
    near = torch.arange(-1, 2, device=draw.device)
    deviation = 0.41 + 0.19 * draw[:, :, 3]
    blur = torch.exp(-(near[:, None] ** 2 + near**2) / (2 * deviation**2))
    blur = (blur / blur.sum((2, 3), keepdim=True)).reshape(n * layers, 1, 3, 3)
    side = 2 * REACH + 1
    blurred = conv2d(streak.reshape(1, n * layers, side, side), blur, padding=1, groups=n * layers)
    return blurred.reshape(n, layers, side, side)
