"""Fog and snow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption
from geophone.perturb.corruptions.colours import grey
from geophone.perturb.corruptions.filters import clipped_zoom, motion_blur


@PERTURBATIONS.register
@dataclass(frozen=True)
class fog(Corruption):
    """Fog: x' = (x + a·f)·m / (m + a), where f is a plasma fractal in [0, 1] and m the image's largest value.

    The fractal's side is the smallest power of two that covers the image, of which the upper left is taken. It is the
    same in every channel. Constants: a, and how fast the fractal gets smoother (Hendrycks & Dietterich 2019,
    arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, float], ...]]] = {
        "cifar10": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        "tiny_imagenet": ((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
        "imagenet": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The foggy images."""
        amount, decay = constants
        size = max(2, 1 << (max(x.shape[2:]) - 1).bit_length())
        wobble = rng.uniform("plasma", size * size - 1).mul_(2).sub_(1)
        return foggy(x, plasma(wobble, decay), amount)


def plasma(wobble: Float[Tensor, "n m"], decay: float) -> Float[Tensor, "n s s"]:
    """A plasma fractal on a torus by the diamond-square algorithm, scaled to [0, 1].

    From one point, the grid is refined until it is s × s: each square's middle becomes the mean of its corners, then
    the middle of each edge that of its two ends and the two middles beside it, each plus a wobble that is decay² times
    smaller than at the step before.

    Args:
        wobble: m = s² - 1 numbers in [-1, 1], for each step k = 1, 2, 4 … s/2 those of k × k middles, of k × k
            horizontal edges and of k × k vertical ones.
        decay: Greater than 1 makes it smoother.
    """
    n, side = len(wobble), math.isqrt(wobble.shape[1] + 1)
    grid = wobble.new_zeros(n, 1, 1)
    scale = 1.0
    while (k := grid.shape[1]) < side:
        middle, across, down = (scale * wobble[:, k * k - 1 : 4 * k * k - 1].view(n, 3, k, k)).unbind(1)
        ends = grid + grid.roll(-1, 1)
        middle += (ends + ends.roll(-1, 2)).div_(4)
        across += (grid + grid.roll(-1, 2)).add_(middle).add_(middle.roll(1, 1)).div_(4)
        down += ends.add_(middle).add_(middle.roll(1, 2)).div_(4)
        rows = torch.stack((torch.stack((grid, across), 3), torch.stack((down, middle), 3)), 2)
        grid = rows.view(n, 2 * k, 2 * k)
        scale /= decay**2
    grid -= grid.amin((1, 2), keepdim=True)
    return grid.div_(grid.amax((1, 2), keepdim=True))


def foggy(x: Float[Tensor, "n c h w"], fractal: Float[Tensor, "n s s"], amount: float) -> Float[Tensor, "n c h w"]:
    """Images behind fog of a given fractal."""
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * fractal[:, None, : x.shape[2], : x.shape[3]]) * (most / (most + amount))


@PERTURBATIONS.register
@dataclass(frozen=True)
class snow(Corruption):
    """Snow: the image whitened, under flakes drawn out by the wind, x' = clip(w(x) + s + s turned by 180°).

    w(x) = c·x + (1 - c)·max(x, 1.5·grey(x) + 0.5). Flakes s are normal noise, magnified, kept where it is above a
    threshold, in 256 levels, and blurred along a line at 45° to 135° of the horizontal. Grey is the luminance of three
    channels and the mean of any other number. Constants: the noise's mean and deviation, magnification, threshold,
    the blur's radius and sigma in pixels, c (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, ...], ...]]] = {
        "cifar10": (
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ),
        "tiny_imagenet": (
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.8),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.6),
        ),
        "imagenet": (
            (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
        ),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The snowy images."""
        mean, deviation, magnification, threshold, radius, sigma, kept = constants
        noise = rng.normal("flakes", 1, *x.shape[2:]).mul_(deviation).add_(mean)
        angle = rng.uniform("wind").mul_(90).sub_(135)
        return snowy(x, flakes(noise, magnification, threshold, radius, sigma, angle), kept)


def flakes(
    noise: Float[Tensor, "n 1 h w"],
    magnification: float,
    threshold: float,
    radius: int,
    sigma: float,
    angle: Float[Tensor, " n"],
) -> Float[Tensor, "n 1 h w"]:
    """Snowflakes from noise, in 256 levels as the original stores them before and after the blur."""
    layer = clipped_zoom(noise, magnification)
    layer = hardshrink(layer.clamp_(0, 1), threshold).mul_(255).floor_()
    # ImageMagick rounds to 16 bits, of which 8 are kept.
    return divided(motion_blur(layer, radius, sigma, angle).add_(1 / 514).floor_(), 255)


def snowy(x: Float[Tensor, "n c h w"], flakes: Float[Tensor, "n 1 h w"], kept: float) -> Float[Tensor, "n c h w"]:
    """Images under given flakes: `kept` is the share of the image that isn't whitened."""
    white = torch.maximum(x, 1.5 * grey(x) + 0.5)
    return kept * x + white.mul_(1 - kept) + (flakes + flakes.flip(2, 3))
