"""Corruptions: what cameras, light and storage do to an image. Those here are deterministic."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from geophone.perturb.checks import check_batch, check_number
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws
from geophone.types import Model


@PERTURBATIONS.register
@dataclass(frozen=True)
class Brightness:
    """Brighter by a constant: x' = clip(x + shift, 0, 1).

    Attributes:
        shift: What is added to every value, in [0, 1].
    """

    shift: float = 0.2
    level: ClassVar[str] = "shift"
    levels: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.3, 0.5)
    family: ClassVar[str] = "corruption"

    def __post_init__(self) -> None:
        check_number(self, "shift", 0.0, 1.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Corrupted images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        return (x + self.shift).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class Contrast:
    """Lower contrast: x' = m + (1 - loss)·(x - m), m the mean of each channel of each image.

    The `contrast` of ImageNet-C with factor c is `loss = 1 - c`.

    Attributes:
        loss: The share of contrast that is lost, in [0, 1]; 1 leaves flat channels.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    loss: float = 0.5
    level: ClassVar[str] = "loss"
    levels: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 0.9)
    family: ClassVar[str] = "corruption"

    def __post_init__(self) -> None:
        check_number(self, "loss", 0.0, 1.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Corrupted images, of the shape and dtype of x."""
        check_batch(x, y, rng, axes=4)
        # In float64, so that the mean doesn't depend on how torch orders the sum at one batch size or another.
        mean = x.mean((2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)
        return x.lerp(mean, self.loss).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur of each channel; beyond its edges an image goes on with the values at the edge.

    The kernel is cut at 4 sigma and sums to 1, which makes it `scipy.ndimage.gaussian_filter(mode="nearest")` and
    ImageNet-C's `gaussian_blur`. A sigma below 1/8 pixel leaves the image as it is. Costs O(sigma) passes over x.

    Attributes:
        sigma: Standard deviation of the kernel in pixels; at least 0.
    """

    sigma: float = 1.0
    level: ClassVar[str] = "sigma"
    levels: ClassVar[tuple[float, ...]] = (0.5, 1.0, 1.5, 2.0)
    family: ClassVar[str] = "corruption"

    def __post_init__(self) -> None:
        check_number(self, "sigma", 0.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Corrupted images, of the shape and dtype of x."""
        check_batch(x, y, rng, axes=4)
        radius = int(4 * self.sigma + 0.5)
        if radius == 0:
            return x.clone()
        bell = [math.exp(-0.5 * (i / self.sigma) ** 2) for i in range(-radius, radius + 1)]
        kernel = [value / sum(bell) for value in bell]
        return _weighted_sum(_weighted_sum(x, kernel, axis=2), kernel, axis=3).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class Pixelate:
    """Coarser pixels: each block of block × block pixels becomes its mean.

    Blocks start at the top left; those at the right and bottom edges may be smaller.

    Attributes:
        block: Side of a block in pixels, a whole number; 0 and 1 leave the image as it is.
    """

    block: int = 2
    level: ClassVar[str] = "block"
    levels: ClassVar[tuple[float, ...]] = (2, 3, 4, 8)
    family: ClassVar[str] = "corruption"

    def __post_init__(self) -> None:
        check_number(self, "block", 0.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Corrupted images, of the shape and dtype of x."""
        check_batch(x, y, rng, axes=4)
        if self.block <= 1:
            return x.clone()
        height, width = x.shape[2:]
        coarse = avg_pool2d(x, self.block, ceil_mode=True, count_include_pad=False)
        tall = coarse.repeat_interleave(self.block, dim=2)[:, :, :height]
        return tall.repeat_interleave(self.block, dim=3)[:, :, :, :width].clamp(0, 1)


def _weighted_sum(x: Float[Tensor, "n c h w"], kernel: list[float], axis: int) -> Float[Tensor, "n c h w"]:
    """Convolve along axis 2 or 3 with an odd kernel, the edges repeated.

    A sum of shifted images: `conv2d` may round an image differently in another batch, and to TF32 on a GPU.
    """
    radius = len(kernel) // 2
    padded = pad(x, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="replicate")
    total = torch.zeros_like(x)
    for shift, weight in enumerate(kernel):
        total.add_(padded.narrow(axis, shift, x.shape[axis]), alpha=weight)
    return total
