"""Blurs: of a lens out of focus, of frosted glass, of a camera that moves or zooms, and Gaussian.

Half-precision images are worked on in float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.perturb.corruptions import filters
from geophone.perturb.corruptions.base import Corruption
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws


@PERTURBATIONS.register
@dataclass(frozen=True)
class defocus_blur(Corruption):
    """A lens out of focus: each channel convolved with a disk whose edge is smoothed by a small Gaussian.

    Beyond its edges an image is mirrored, without repeating the edge. Constants: the disk's radius and the Gaussian's
    sigma, in pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, float], ...]]] = {
        "cifar10": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "tiny_imagenet": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        rings = disk_rings(*constants)
        margin = len(rings[0][0]) // 2
        wide = filters.padded(filters.padded(_at_least_float32(x), margin, 2, "mirror"), margin, 3, "mirror")
        # The disk's rows are bars of few widths. Each width's bar is the one before and what it adds on either side,
        # so that a disk of area πr² costs some 4r shifted images, not πr².
        bars: Tensor | float = 0.0
        total: Tensor | float = 0.0
        for column, row in rings:
            bars = filters.shifted_sum(wide, row, axis=3).add_(bars)
            total = filters.shifted_sum(bars, column, axis=2).add_(total)
        assert isinstance(total, Tensor)
        return _truncatable(total, x.dtype)


def disk_rings(radius: float, sigma: float) -> list[tuple[list[float], list[float]]]:
    """The kernel of `defocus_blur` as Σ_k v_k ⊗ (u_1 + … + u_k), for the pairs of columns v and rows u returned.

    The kernel is the disk dx² + dy² ≤ radius² on a grid of at least 17 × 17 points, normalised to sum 1, then smoothed
    with a Gaussian of 3 taps (5 for radii above 8). Smoothing mirrors the disk at the grid's edges, which a disk of
    radius 8 or more touches.
    """
    reach = max(8, int(radius))
    tails = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 if radius <= 8 else 3)]
    smooth = np.zeros((2 * reach + 1, 2 * reach + 1))
    for at in range(2 * reach + 1):
        for i in range(1 - len(tails), len(tails)):
            mirrored = 2 * reach - abs(2 * reach - abs(at + i))
            smooth[at, mirrored] += tails[abs(i)] / (tails[0] + 2 * sum(tails[1:]))
    offset = np.abs(np.arange(-reach, reach + 1))
    width = np.where(offset <= radius, np.floor(np.sqrt(np.maximum(radius**2 - offset**2, 0))), -1)
    area = np.sum(2 * width + 1, where=width >= 0)
    edge = min(reach, int(radius) + len(tails) - 1)
    inside = slice(reach - edge, reach + edge + 1)
    rings, narrower = [], -1.0
    for one in np.unique(width[width >= 0]):
        column = smooth @ (width == one) / area
        row = smooth @ ((offset <= one) & (offset > narrower))
        rings.append((column[inside].tolist(), row[inside].tolist()))
        narrower = one
    return rings


@PERTURBATIONS.register
@dataclass(frozen=True)
class glass_blur(Corruption):
    """Frosted glass: a Gaussian blur, 256 levels, pixels shuffled among near ones, and the same blur again.

    From bottom right to top left, each pixel more than `reach` from the edge becomes a copy of the pixel that is now
    (dy, dx) away, dy and dx uniform on -reach … reach-1. Images without such pixels are blurred only. Constants: the
    blur's sigma in pixels, reach, and how often this is done (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    The published code means to swap pixels but copies: `x[p], x[q] = x[q], x[p]` of NumPy views writes x[q] to both.
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, int, int], ...]]] = {
        "cifar10": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "tiny_imagenet": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        sigma, reach, times = constants
        n, c, h, w = x.shape
        soft = _truncatable(filters.gaussian_filter(_at_least_float32(x), sigma), x.dtype)
        levels = soft.mul_(255).floor_().div_(255)
        if min(h, w) > 2 * reach:
            source = torch.arange(h * w, device=x.device).expand(n, -1)
            for i in range(times):
                cell = rng.uniform(f"shuffle {i}", h - 2 * reach, w - 2 * reach).mul_(4 * reach**2).long()
                dy, dx = cell // (2 * reach) - reach, cell % (2 * reach) - reach
                source = source.gather(1, copied_from(dy, dx, reach, h, w))
            levels = levels.flatten(2).gather(2, source[:, None].expand(-1, c, -1)).view_as(levels)
        return _truncatable(filters.gaussian_filter(levels, sigma), x.dtype)


def copied_from(
    dy: Int[Tensor, "n a b"], dx: Int[Tensor, "n a b"], reach: int, height: int, width: int
) -> Int[Tensor, "n p"]:
    """Which pixel of the image as it was each pixel ends up with, after copies made one after another.

    From bottom right to top left, pixel (i + reach + 1, j + reach + 1) is overwritten with the pixel then at
    (dy, dx)[i, j] from it. Pixels are numbered along rows; p = height·width.

    A pixel whose source comes later in that order gets its original; otherwise what the source itself got. All such
    chains are followed at once, doubling their length in each round.
    """
    size = height * width
    number = torch.arange(size, device=dy.device)
    inner = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    here = number.view(height, width)[inner]
    written = torch.zeros(height, width, dtype=torch.bool, device=dy.device)
    written[inner] = True
    source = here + dy * width + dx
    original = (source <= here) | ~written.view(-1)[source]
    # Where a pixel's value leads: below `size` to what another pixel ends up with, from there on to an original.
    leads = torch.cat((number + size, number + size)).repeat(len(dy), 1)
    chain = leads[:, :size]
    chain.view(-1, height, width)[:, *inner] = source + original * size
    while (chain < size).any():
        chain.copy_(leads.gather(1, chain))
    return chain - size


@PERTURBATIONS.register
@dataclass(frozen=True)
class motion_blur(Corruption):
    """A camera that moves: a blur towards one side along a line at -45° to 45°, drawn for each image.

    The weights along the line fall as one half of a Gaussian bell; beyond its edges an image goes on with the values
    at the edge. The published data were made by ImageMagick, whose images have 16 bits: results are rounded to these
    before they are truncated to 8. Constants: the radius (the line has 2·radius + 1 points) and the bell's sigma, in
    pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[int, float], ...]]] = {
        "cifar10": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "tiny_imagenet": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    }
    chunk: ClassVar[int] = 1 << 18

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        radius, sigma = constants
        angle = rng.uniform("angle").mul_(90).sub_(45)
        blurred = filters.motion_blur(_at_least_float32(x), radius, sigma, angle)
        return _truncatable(blurred, x.dtype, slack=1 / 514)


@PERTURBATIONS.register
@dataclass(frozen=True)
class zoom_blur(Corruption):
    """A camera that zooms in: the mean of the image and of its magnifications by 1, 1 + step, … below a limit.

    Constants: limit and step (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, float], ...]]] = {
        "cifar10": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "tiny_imagenet": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "imagenet": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        factors = np.arange(1, *constants).tolist()  # whose rounding decides whether the limit itself is one of them
        exact = _at_least_float32(x)
        total = exact.clone()
        for factor in factors:
            total += filters.clipped_zoom(exact, factor)
        return _truncatable(total.div_(len(factors) + 1), x.dtype)


@PERTURBATIONS.register
@dataclass(frozen=True)
class gaussian_blur(Corruption):
    """Gaussian blur; beyond its edges an image goes on with the values at the edge.

    Constants: sigma, in pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.4, 0.6, 0.7, 0.8, 1),
        "tiny_imagenet": (0.5, 0.75, 1, 1.25, 1.5),
        "imagenet": (1, 2, 3, 4, 6),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        return _truncatable(filters.gaussian_filter(_at_least_float32(x), constants), x.dtype)


def _at_least_float32(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _truncatable(x: Float[Tensor, "n c h w"], given: torch.dtype, slack: float = 2.0**-12) -> Float[Tensor, "n c h w"]:
    """X plus a small share of a level, so that truncation to 256 levels takes no whole level for the one below.

    The share is 2^-12 of a level, more than float32's rounding errors in the sums here (for flat images at most ...);
    or, where it is more, the error with which the given dtype holds a level.
    """
    return x + max(slack, 64 * torch.finfo(given).eps) / 255
