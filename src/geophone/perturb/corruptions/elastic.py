"""Elastic transform: a random affine map, then a random smooth displacement field."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption

_IMAGENET = 244 / 224  # ImageNet-C's script has 244 for the side of its images, which is 224


@PERTURBATIONS.register
@dataclass(frozen=True)
class elastic_transform(Corruption):
    """Elastic transform: a random affine map, then every pixel is fetched from p + amplitude·g(u) near its place p.

    The constants are (amplitude, width, jitter), in units of the image's longer side L. The affine map moves three
    points, the centre plus a·(1, 1), a·(1, -1) and a·(-1, -1) with a = ⌊min(h, w)/3⌋, by up to ±jitter in x and in y.
    u is uniform on [-1, 1] for each pixel, once for x and once for y; g is a Gaussian of standard deviation width, cut
    at 3 of them. Both maps interpolate linearly. Beyond its edges the image goes on mirrored: without repeating the
    edge for the affine map, and repeating it for the field, as does u.

    The scripts give the constants as multiples of the side of their images, 32 and 64; ImageNet-C's are multiples of
    244 pixels at a side of 224. Here they go with L at any size. The typical displacement, amplitude/(2·√(3π)·width)
    pixels while width is small against L, then is the same at every size.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261. Simard, Steinkraus & Platt 2003, ICDAR.
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, float, float], ...]]] = {
        "cifar10": ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "tiny_imagenet": (
            (0.0, 0.0, 0.08),
            (0.05, 0.3, 0.06),
            (0.1, 0.08, 0.06),
            (0.1, 0.03, 0.03),
            (0.16, 0.03, 0.02),
        ),
        "imagenet": (
            (2 * _IMAGENET, 0.7 * _IMAGENET, 0.1 * _IMAGENET),
            (2 * _IMAGENET, 0.08 * _IMAGENET, 0.2 * _IMAGENET),
            (0.05 * _IMAGENET, 0.01 * _IMAGENET, 0.02 * _IMAGENET),
            (0.07 * _IMAGENET, 0.01 * _IMAGENET, 0.02 * _IMAGENET),
            (0.12 * _IMAGENET, 0.01 * _IMAGENET, 0.02 * _IMAGENET),
        ),
    }

    def corrupt(
        self, x: Float[Tensor, "n c h w"], rng: Draws, constants: tuple[float, float, float]
    ) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        height, width = x.shape[2:]
        amplitude, sigma, jitter = (constant * max(height, width) for constant in constants)
        # In levels, to which 2⁻¹² is added at the end: where neighbours are equal, their weighted mean must not be
        # truncated to the level below because float32 rounds it, by up to 2⁻¹² after two interpolations.
        grid = _affine(height, width, jitter, rng).to(x.dtype)
        level = grid_sample(x * 255, grid, padding_mode="reflection", align_corners=True)
        if amplitude > 0:
            grid = _displaced(height, width, amplitude, sigma, rng).to(x.dtype)
            level = grid_sample(level, grid, padding_mode="reflection", align_corners=False)
        return divided(level.add_(2**-12), 255)


def _affine(height: int, width: int, jitter: float, rng: Draws) -> Float[Tensor, "n h w 2"]:
    """Where each pixel comes from when an affine map moves three points: (x, y), -1 and 1 the outer pixels."""
    row = partial(torch.tensor, dtype=torch.float64, device=rng.index.device)
    arm = max(1, min(height, width) // 3)
    points = row([[1, 1], [1, -1], [-1, -1]]) * arm + row([width // 2, height // 2])
    moved = points + (2 * rng.uniform("points", 3, 2).double() - 1) * jitter
    # The inverse map takes the moved triangle's second point back, and its legs a, b to (0, 2·arm) and (2·arm, 0).
    a, b = (moved[:, :2] - moved[:, 1:]).unbind(1)
    unit = row([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    scale = unit * (2 * arm / (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]))[:, None]
    by_column = torch.stack([-a[:, 1], b[:, 1]], 1).mul_(scale)[:, :, None]
    by_row = torch.stack([a[:, 0], -b[:, 0]], 1).mul_(scale)[:, :, None]
    columns, rows = (torch.arange(size, device=rng.index.device) for size in (width, height))
    across = by_column * (columns - moved[:, 1, :1])[:, None]
    down = by_row * (rows - moved[:, 1, 1:])[:, None] + (points[1] * unit - 1)[:, None]
    return (across.float()[:, :, None, :] + down.float()[:, :, :, None]).permute(0, 2, 3, 1)


def _displaced(height: int, width: int, amplitude: float, sigma: float, rng: Draws) -> Float[Tensor, "n h w 2"]:
    """Each pixel's place moved by smoothed noise: (x, y), -1 and 1 the outer edges of the outer pixels."""
    device = rng.index.device
    # Whole numbers of up to 20 bits times weights of 32 bits that sum to 1: float64 holds every sum exactly, so a
    # matrix product may add in any order, and an image's result does not depend on its batch.
    noise = rng.uniform("field", 2, height, width).mul_(2).sub_(1).mul_(2**20).round_().double()
    smooth = (noise @ _smoothing(width, sigma, device).T).round_()
    smooth = _smoothing(height, sigma, device) @ smooth
    for axis, size in enumerate((width, height)):
        place = torch.arange(1, 2 * size, 2, dtype=torch.float64, device=device) / size - 1
        smooth[:, axis].mul_(2**-20 * amplitude * 2 / size).add_(place if axis == 0 else place[:, None])
    return smooth.float().permute(0, 2, 3, 1)


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float, device: torch.device) -> Float[Tensor, "size size"]:
    """Gaussian smoothing of an axis as a matrix of 32-bit weights: cut at 3 sigma, mirrored with the edge repeated."""
    radius = int(3 * sigma + 0.5)
    tap = torch.arange(-radius, radius + 1)
    bell = torch.exp(-0.5 * (tap.double() / sigma) ** 2)
    source = (torch.arange(size)[:, None] + tap).remainder(2 * size)
    source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, (bell / bell.sum()).expand(size, -1))
    return matrix.mul_(2**32).round_().mul_(2**-32).to(device)
