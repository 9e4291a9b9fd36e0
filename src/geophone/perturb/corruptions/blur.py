"""Blurs: of a lens out of focus, of frosted glass, of a camera that moves or zooms, and Gaussian."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions import filters
from geophone.perturb.corruptions.base import Corruption


@PERTURBATIONS.register
@dataclass(frozen=True)
class defocus_blur(Corruption):
    """A lens out of focus: each channel convolved with a disk whose edge is smoothed by a small Gaussian.

    Beyond its edges an image is mirrored, without repeating the edge. The published kernels of radius 8 and 10 sum to
    1.013 and 1.011, the others to 1 (see `disk_parts`). Constants: the disk's radius and the Gaussian's sigma, in
    pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, float], ...]]] = {
        "cifar10": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        "tiny_imagenet": ((0.5, 0.6), (1.0, 0.1), (1.5, 0.1), (2.5, 0.01), (3.0, 0.1)),
        "imagenet": ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        n, c, h, w = x.shape
        smooth, rings, area = disk_parts(*constants)
        margin = len(rings[0].edge_row) // 2
        wide = filters.padded(filters.padded(x, margin, 2, "mirror"), margin, 3, "mirror")
        soft = filters.shifted_sum(wide, smooth, axis=3)
        bars = wide.new_zeros(n, c, wide.shape[2], w)
        disks = wide.new_zeros(n, c, h + len(smooth) - 1, w)
        total = wide.new_zeros(x.shape)
        for ring in rings:
            filters.shifted_sum(soft, ring.row, 3, bars)
            filters.shifted_sum(wide, ring.edge_row, 3, bars)
            filters.shifted_sum(bars, ring.column, 2, disks)
            filters.shifted_sum(bars, ring.edge_column, 2, total)
        return _truncatable(divided(filters.shifted_sum(disks, smooth, 2, total), area))


class Ring(NamedTuple):
    """A part of a disk: the points that its rows of one length have and its shorter rows have not, and those rows."""

    row: list[float]
    edge_row: list[float]
    column: list[float]
    edge_column: list[float]


def disk_parts(radius: float, sigma: float) -> tuple[list[float], list[Ring], int]:
    """A smoothed disk in parts that are cheap to convolve with: some 4·radius shifted images rather than π·radius².

    The kernel is the disk dx² + dy² ≤ radius² on a grid of at least 17 × 17 points, smoothed along both axes with a
    Gaussian of 3 taps (5 for radii above 8), divided by the disk's area. Smoothing mirrors the disk at the grid's
    edges, which disks of radius 8 or more touch; that is, it is a convolution but for points near these edges.

    Returns:
        The Gaussian's taps; the disk's rings from the shortest rows to the longest, each as a row (points added on
        either side), a column (rows that are now complete), and what smoothing at the grid's edges adds to what the
        convolution makes of them; the disk's area.
    """
    reach, spread = max(8, int(radius)), 1 if radius <= 8 else 2
    bell = np.exp(-0.5 * (np.arange(-spread, spread + 1) / sigma) ** 2)
    bell /= bell.sum()
    edge = int(radius) + spread
    at = np.arange(-edge, edge + 1)
    smoothing, convolution = np.zeros((2, len(at), len(at)))
    for shift, weight in enumerate(bell, start=-spread):
        beyond = np.abs(at + shift)
        mirrored = np.sign(at + shift) * np.where(beyond > reach, 2 * reach - beyond, beyond)
        smoothing += weight * (mirrored[:, None] == at) * (np.abs(at) <= reach)[:, None]
        convolution += weight * ((at + shift)[:, None] == at)
    disk = at[:, None] ** 2 + at**2 <= radius**2
    lengths = disk.sum(1)
    core = slice(spread, -spread)
    rings, shorter = [], np.zeros(len(at), dtype=bool)
    for length in np.unique(lengths[lengths > 0]):
        rows = lengths == length
        longer = disk[rows][0]
        row, column = (longer & ~shorter).astype(float), rows.astype(float)
        difference = smoothing - convolution
        parts = row[core], difference @ row, column[core], difference @ column
        rings.append(Ring(*(part.tolist() for part in parts)))
        shorter = longer
    return bell.tolist(), rings, int(disk.sum())


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
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        sigma, reach, times = constants
        n, c, h, w = x.shape
        soft = _truncatable(filters.gaussian_filter(x, sigma))
        levels = divided(soft.mul_(255).floor_(), 255)
        if min(h, w) > 2 * reach:
            near = torch.arange(-reach, reach, device=x.device)
            moves = (near[:, None] * w + near).flatten()
            # One number per pixel says how far its source is each time.
            plans = torch.cartesian_prod(*[moves] * times).view(-1, times)
            plan = rng.uniform("moves", h - 2 * reach, w - 2 * reach).mul_(len(plans)).long()
            source = torch.arange(h * w, device=x.device).expand(n, -1)
            for move in plans.T:
                moved = move.index_select(0, plan.flatten()).view_as(plan)
                source = source.gather(1, copied_from(moved, reach, h, w))
            levels = levels.flatten(2).gather(2, source[:, None].expand(-1, c, -1)).view_as(levels)
        return _truncatable(filters.gaussian_filter(levels, sigma))


def copied_from(move: Int[Tensor, "n a b"], reach: int, height: int, width: int) -> Int[Tensor, "n p"]:
    """Which pixel of the image as it was each pixel ends up with, after copies made one after another.

    From bottom right to top left, pixel (i + reach + 1, j + reach + 1) is overwritten with the pixel then move[i, j]
    after it. Pixels are numbered along rows; p = height·width.

    A pixel whose source comes later in that order gets its original; otherwise what the source itself got. All such
    chains are followed at once, doubling their length in each round.
    """
    size = height * width
    number = torch.arange(size, device=move.device)
    inner = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    here = number.view(height, width)[inner]
    source = here + move
    # Where a value comes from: below `size` an original, from there on what another pixel ends up with.
    origin = torch.cat((number, number)).repeat(len(move), 1)
    chain = origin[:, size:]
    chain.view(-1, height, width)[:, *inner] = source + (source > here) * size
    while int(chain.max()) >= size:
        chain.copy_(origin.gather(1, chain))
    return chain


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
        "cifar10": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        "tiny_imagenet": ((10, 1.0), (10, 1.5), (10, 2.0), (10, 2.5), (12, 3.0)),
        "imagenet": ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        radius, sigma = constants
        angle = rng.uniform("angle").mul_(90).sub_(45)
        return _truncatable(filters.motion_blur(x, radius, sigma, angle), slack=1 / 514)


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

    chunk: ClassVar[int] = 1 << 17

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        factors = np.arange(1, *constants).tolist()  # whose rounding decides whether the limit itself is one of them
        total = x.clone()
        for factor in factors:
            total += filters.clipped_zoom(x, factor)
        return _truncatable(divided(total, len(factors) + 1))


@PERTURBATIONS.register
@dataclass(frozen=True)
class gaussian_blur(Corruption):
    """Gaussian blur; beyond its edges an image goes on with the values at the edge.

    Constants: sigma, in pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.4, 0.6, 0.7, 0.8, 1.0),
        "tiny_imagenet": (0.5, 0.75, 1.0, 1.25, 1.5),
        "imagenet": (1.0, 2.0, 3.0, 4.0, 6.0),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The blurred images."""
        return _truncatable(filters.gaussian_filter(x, constants))


def _truncatable(x: Float[Tensor, "n c h w"], slack: float = 2.0**-12) -> Float[Tensor, "n c h w"]:
    """Blurred images, raised by a share of a level, so that truncation takes no whole level for the one below.

    2^-12 of a level is twice what float32's rounding errors come to in the sums here. A value less than that below a
    level is taken for the level.
    """
    return x + slack / 255
