"""Noise of four kinds: every value of an image is disturbed by itself, by draws that belong to the image.

All severities share an image's draws, so what a lower one does, a higher one does more of.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption


@PERTURBATIONS.register
@dataclass(frozen=True)
class gaussian_noise(Corruption):
    """Additive Gaussian noise: x + std·z, z standard normal for each value.

    The constant is std, in the units of x.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.04, 0.06, 0.08, 0.09, 0.10),
        "tiny_imagenet": (0.04, 0.08, 0.12, 0.15, 0.18),
        "imagenet": (0.08, 0.12, 0.18, 0.26, 0.38),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        return torch.add(x, rng.normal("noise", *x.shape[1:]), alpha=constants)


@PERTURBATIONS.register
@dataclass(frozen=True)
class shot_noise(Corruption):
    """Shot noise, of counted photons: Poisson(rate·x) / rate for each value.

    The constant is rate, the mean count where x is 1. An image is first rounded to 256 levels, as it was when the data
    sets were made. Counts are quantiles of the Poisson distribution at Φ(z), z standard normal; each probability is
    exact to 1e-4 of itself.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (500.0, 250.0, 100.0, 75.0, 50.0),
        "tiny_imagenet": (250.0, 100.0, 50.0, 30.0, 15.0),
        "imagenet": (60.0, 25.0, 12.0, 5.0, 3.0),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        count = _poisson(constants, (x * 255).round_().clamp_(0, 255), rng.normal("noise", *x.shape[1:]))
        # A ratio that is exactly a level (1/3 is level 85) must not be truncated to the one below by rounding. All
        # others lie at least 1/255 of a count from the next level: half of that is added.
        return divided(count.add_(0.5 / 255), constants)


@PERTURBATIONS.register
@dataclass(frozen=True)
class impulse_noise(Corruption):
    """Salt and pepper: a share of the values becomes 0 or 1, each half of the time.

    The constant is the share. Every channel of a pixel is hit by itself, as in scikit-image's `random_noise`.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.01, 0.02, 0.03, 0.05, 0.07),
        "tiny_imagenet": (0.01, 0.02, 0.05, 0.08, 0.14),
        "imagenet": (0.03, 0.06, 0.09, 0.17, 0.27),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        spared = 0.5 - constants / 2
        # 0 where |u - 1/2| ≤ spared, else beyond ±spared: a step of 2 or more up or down, which is clipped to 0 or 1.
        hit = hardshrink(rng.uniform("noise", *x.shape[1:]).sub_(0.5), spared)
        return torch.add(x, hit, alpha=2 / spared)


@PERTURBATIONS.register
@dataclass(frozen=True)
class speckle_noise(Corruption):
    """Multiplicative Gaussian noise: x + x·std·z, z standard normal for each value.

    The constant is std.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.06, 0.1, 0.12, 0.16, 0.2),
        "tiny_imagenet": (0.15, 0.2, 0.25, 0.3, 0.35),
        "imagenet": (0.15, 0.2, 0.35, 0.45, 0.6),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        return rng.normal("noise", *x.shape[1:]).mul_(constants).add_(1) * x


_REACH = 7.0
"""Normal draws lie within ±_REACH (`Draws.normal`: 6.7)."""


def _poisson(rate: float, level: Float[Tensor, "n c h w"], z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Poisson counts of means rate·level/255, for whole levels, by inversion at standard normal z; both are used up."""
    cells = _cells(rate)
    position = z.add_(_REACH).mul_(cells / (2 * _REACH))
    cell = position.floor()
    offset = _offsets(rate, level.device).index_select(0, level.mul(cells).add_(cell).int().view(-1))
    return position.add_(offset.view_as(position)).floor_()


def _cells(rate: float) -> int:
    """Into how many cells the axis of z is cut: so many that a count of mean at most rate grows by ≤ 1 within one.

    By Cornish and Fisher's expansion the count is m + √m·z + (z² - 1)/6 + …, which grows by at most √m + 7/3 per unit.
    """
    return math.ceil(2 * _REACH * (math.sqrt(rate) + 3))


@lru_cache(maxsize=16)
def _offsets(rate: float, device: torch.device) -> Float[Tensor, " entries"]:
    """The quantile functions of Poisson(rate·level/255) for levels 0 to 255, in a form that one look-up evaluates.

    In cell j, at position p in it, the count is floor(j + p + entry[level, j]), where the entry is n + 1 - t - j for a
    count that goes from n to n + 1 at p = t, and n - j for one that stays at n.
    """
    cells = _cells(rate)
    mean = torch.arange(256, dtype=torch.float64)[:, None] * (rate / 255)
    count = torch.arange(rate + 8 * math.sqrt(rate) + 32, dtype=torch.float64)
    share = torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count + 1))
    at_most, above = share.cumsum(1)[:, :-1], share.flip(1).cumsum(1).flip(1)[:, 1:]
    # step[level, n]: the z where the count goes from n to n + 1, from the smaller tail, which is the more precise one.
    tail = torch.special.ndtri(torch.minimum(at_most, above))
    step = torch.where(at_most < above, tail, -tail)
    cell = torch.arange(cells, dtype=torch.float64)
    left = cell * (2 * _REACH / cells) - _REACH
    least = torch.searchsorted(step, left.repeat(256, 1), right=True)
    until = ((step.gather(1, least) - left) * (cells / (2 * _REACH))).clamp_(max=1)
    return (least + 1 - until - cell).float().view(-1).to(device)
