"""Spatter: drops of water or mud, with the edge detection and distances that draw the water's rims."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from geophone.perturb.corruptions.base import Corruption
from geophone.perturb.corruptions.colours import tint
from geophone.perturb.corruptions.filters import gaussian_filter, padded
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws

TURQUOISE, BROWN = (175, 238, 238), (63, 42, 20)
FAR = 20
"""Distances from an edge that are longer count as this many pixels."""
STEPS = (
    *((down, right, 1.0) for down, right in ((1, 0), (0, 1))),
    *((down, right, 1.4) for down, right in ((1, 1), (1, -1))),
    *((down, right, 2.1969) for down, right in ((1, 2), (2, 1), (1, -2), (2, -1))),
)
"""Steps of the 5 × 5 chamfer distance: down, right, length. Each also goes back."""


@PERTURBATIONS.register
@dataclass(frozen=True)
class spatter(Corruption):
    """Spatter: drops of pale turquoise water, x' = clip(x + m·colour), or of mud, x' = (1 - m)·x + m·colour.

    Drops lie where smoothed normal noise is above a threshold. Mud's opacity m is the drops smoothed, where that is at
    least 0.8. Water's m grows with the noise and with the relief that an emboss filter finds in the distance from the
    drops' edges. Colours stand for three channels, any other number gets their luminance.

    Constants: the noise's mean and deviation, its smoothing in pixels, the threshold, a share, 0 for water or 1 for mud.
    The share is water's largest m, and mud's smoothing in pixels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, ...], ...]]] = {
        "cifar10": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "tiny_imagenet": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "imagenet": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The spattered images."""
        mean, deviation, smoothing, threshold, share, mud = constants
        noise = rng.normal("drops", 1, *x.shape[2:]).mul_(deviation).add_(mean)
        liquid = gaussian_filter(noise, smoothing)
        if mud:
            return muddy(x, mud_opacity(liquid, threshold, share).to(x.dtype))
        return wet(x, share * water(liquid, threshold).to(x.dtype))


def wet(x: Float[Tensor, "n c h w"], opacity: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Images with water on them."""
    return x + opacity * tint(TURQUOISE, x)


def muddy(x: Float[Tensor, "n c h w"], opacity: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Images with mud on them."""
    return (x * (1 - opacity)).add_(opacity * tint(BROWN, x))


def mud_opacity(liquid: Float[Tensor, "n 1 h w"], threshold: float, smoothing: float) -> Float[Tensor, "n 1 h w"]:
    """How opaque mud is: its drops smoothed, and nothing below 0.8."""
    opacity = gaussian_filter((liquid > threshold).to(liquid.dtype), smoothing)
    return opacity.where(opacity >= 0.8, 0)


def water(liquid: Float[Tensor, "n 1 h w"], threshold: float) -> Float[Tensor, "n 1 h w"]:
    """How opaque water is, scaled to [0, 1] for each image; nothing where there is no drop.

    All numbers are whole but for the distances, in 65,536ths, so float32 is exact and OpenCV's results are met.
    """
    # Levels above 255 wrap around, as in the original, whose conversion to uint8 does.
    level = liquid.where(liquid >= threshold, 0).mul_(255).floor_().remainder_(256)
    distance = chamfer(canny(level, 50, 150))
    relief = emboss(equalised((box_sum(distance) / 9).floor_()))
    opacity = level * (box_sum(relief) / 9).round_()
    return opacity / opacity.amax((2, 3), keepdim=True).clamp_(min=1)


def canny(image: Float[Tensor, "n 1 h w"], low: float, high: float) -> Bool[Tensor, "n 1 h w"]:
    """Canny's edges as OpenCV finds them: 3 × 3 Sobel gradients, |across| + |down|, ridges, and what hangs on to them.

    A ridge is above `low` and not below its neighbours along the gradient, whose direction is rounded to 45°; edges are
    the ridges above `high` and those that touch an edge.

    Args:
        image: Whole numbers from 0 to 255.
        low: Ridges up to this are none.
        high: Ridges up to this need an edge beside them.
    """
    wide = padded(padded(image, 1, 2, "nearest"), 1, 3, "nearest")
    rows = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
    columns = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, :, 2:] - columns[:, :, :-2]
    steep, flat = down.abs(), across.abs()
    size = steep + flat
    around = pad(size, (1, 1, 1, 1))
    h, w = size.shape[2:]

    def beside(rows: int, columns: int) -> Tensor:
        return around[:, :, 1 + rows : 1 + rows + h, 1 + columns : 1 + columns + w]

    # OpenCV's tangents of 22.5° and 67.5°. Where two neighbours are as strong, one of them is a ridge, on a diagonal none.
    level, upright = steep * 32768 < flat * 13573, steep * 32768 > flat * 79109
    falling = across * down > 0
    before = beside(-1, -1).where(falling, beside(-1, 1))
    after = beside(1, 1).where(falling, beside(1, -1)) + 1
    before = beside(0, -1).where(level, beside(-1, 0).where(upright, before))
    after = beside(0, 1).where(level, beside(1, 0).where(upright, after))
    ridge = (size > before) & (size >= after) & (size > low)
    return connected(ridge & (size > high), ridge)


def connected(seeds: Bool[Tensor, "n 1 h w"], ridges: Bool[Tensor, "n 1 h w"]) -> Bool[Tensor, "n 1 h w"]:
    """The ridges that touch a seed, or one that does, and so on, over sides and corners."""
    while True:
        grown = seeds.clone()
        grown[:, :, 1:] |= seeds[:, :, :-1]
        grown[:, :, :-1] |= seeds[:, :, 1:]
        sides = grown.clone()
        sides[..., 1:] |= grown[..., :-1]
        sides[..., :-1] |= grown[..., 1:]
        sides &= ridges
        if torch.equal(sides, seeds):
            return seeds
        seeds = sides


def chamfer(edges: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Distance to the nearest edge, at most 20, in steps of 5 × 5 (OpenCV's `distanceTransform` with `DIST_L2`, 5).

    The order of steps doesn't change a path's length, so all of one kind can be taken at once: 1, then 2, 4 … of them.
    """
    distance = torch.full(edges.shape, float(FAR), device=edges.device).masked_fill_(edges, 0)
    for down, right, length in STEPS:
        many = 1
        while many * length < distance.max():
            further = distance + many * length
            for there, back in ((many, -many), (-many, many)):
                rows, columns = there * down, there * right
                here = _moved(distance, rows, columns)
                torch.minimum(here, _moved(further, -rows, -columns), out=here)
            many *= 2
    return distance


def _moved(x, rows, columns):
    h, w = x.shape[2:]
    return x.narrow(2, min(max(rows, 0), h), max(h - abs(rows), 0)).narrow(
        3, min(max(columns, 0), w), max(w - abs(columns), 0)
    )


def equalised(values: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Whole numbers from 0 to 20 spread over 0 to 255 by their ranks, as OpenCV's `equalizeHist`; a constant stays."""
    index = values.long().flatten(1)
    count = torch.zeros(len(values), FAR + 1, dtype=torch.int64, device=values.device)
    count.scatter_add_(1, index, torch.ones_like(index))
    upto = count.cumsum(1)
    first = count.gather(1, index.amin(1, keepdim=True))
    others = index.shape[1] - first
    rank = ((upto - first).float() * (torch.full_like(others, 255).float() / others.float())).round_()
    rank = rank.where(others > 0, torch.arange(FAR + 1, device=values.device))
    return rank.gather(1, index).view_as(values)


def emboss(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Rises towards the lower right: the kernel ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)), clipped to 0 … 255."""
    wide = padded(padded(x, 1, 2, "mirror"), 1, 3, "mirror")
    up, here, down = wide[:, :, :-2], wide[:, :, 1:-1], wide[:, :, 2:]
    total = here[..., 1:-1] + here[..., 2:] + down[..., 1:-1] + 2 * down[..., 2:]
    total -= 2 * up[..., :-2] + up[..., 1:-1] + here[..., :-2]
    return total.clamp_(0, 255)


def box_sum(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Sum over the 3 × 3 pixels around each; images are mirrored at their edges."""
    wide = padded(padded(x, 1, 2, "mirror"), 1, 3, "mirror")
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
