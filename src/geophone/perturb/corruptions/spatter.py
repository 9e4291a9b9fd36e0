"""Spatter: drops of water or mud, with the edge detection and distances that draw the water's rims."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int16, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import hardshrink, pad

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption
from geophone.perturb.corruptions.colours import tint
from geophone.perturb.corruptions.filters import gaussian_filter

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

    Constants: the noise's mean and deviation, its smoothing in pixels, the threshold, water's largest m or mud's
    smoothing in pixels, 0 for water or 1 for mud (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    """

    constants: ClassVar[Mapping[str, tuple[tuple[float, ...], ...]]] = {
        "cifar10": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1.0, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "tiny_imagenet": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1.0, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "imagenet": (
            (0.65, 0.3, 4.0, 0.69, 0.6, 0),
            (0.65, 0.3, 3.0, 0.68, 0.6, 0),
            (0.65, 0.3, 2.0, 0.68, 0.5, 0),
            (0.65, 0.3, 1.0, 0.65, 1.5, 1),
            (0.67, 0.4, 1.0, 0.65, 1.5, 1),
        ),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The spattered images."""
        mean, deviation, smoothing, threshold, last, mud = constants
        noise = rng.normal("drops", 1, *x.shape[2:]).mul_(deviation).add_(mean)
        liquid = gaussian_filter(noise, smoothing)
        if mud:
            return muddy(x, mud_opacity(liquid, threshold, last))
        return wet(x, last * water(liquid, threshold))


def wet(x: Float[Tensor, "n c h w"], opacity: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Images with water on them."""
    return x + opacity * tint(TURQUOISE, x)


def muddy(x: Float[Tensor, "n c h w"], opacity: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Images with mud on them."""
    return x * (1 - opacity) + opacity * tint(BROWN, x)


def mud_opacity(liquid: Float[Tensor, "n 1 h w"], threshold: float, smoothing: float) -> Float[Tensor, "n 1 h w"]:
    """How opaque mud is: its drops smoothed, and nothing below 0.8."""
    return hardshrink(gaussian_filter((liquid > threshold).to(liquid.dtype), smoothing), 0.8)


def water(liquid: Float[Tensor, "n 1 h w"], threshold: float) -> Float[Tensor, "n 1 h w"]:
    """How opaque water is, scaled to [0, 1] for each image; nothing where there is no drop.

    Distances are float32. All else is whole numbers, in int16: a CPU adds those many times as fast as it compares or
    chooses. So agreement with OpenCV depends on the distances' rounding alone, and where it takes Intel's routines for
    them, no value in 3,600 images differed.
    """
    # A level above 255 wraps around, as in the original, whose conversion to uint8 does.
    level = (hardshrink(liquid.clamp(min=0), threshold) * 255).to(torch.int16).bitwise_and_(255)
    near = divided(box_sum(chamfer(canny(level, 50, 150))), 9).to(torch.int16)
    # The nearest whole number to a ninth of one is never in doubt.
    rims = (2 * box_sum(emboss(equalised(near))) + 9).floor_divide_(18)
    opacity = level.float() * rims
    return opacity / opacity.amax((2, 3), keepdim=True).clamp_(min=1)


def canny(image: Int16[Tensor, "n 1 h w"], low: int, high: int) -> UInt8[Tensor, "n 1 h w"]:
    """Canny's edges as OpenCV finds them: 3 × 3 Sobel gradients, |across| + |down|, ridges, and what hangs on to them.

    A ridge is above `low` and not below its neighbours along the gradient, whose direction is rounded to 45°; edges are
    the ridges above `high` and those that touch an edge.

    Args:
        image: Whole numbers from 0 to 255.
        low: Ridges up to this are none.
        high: Ridges up to this need an edge beside them.

    Returns:
        1 on edges, else 0.
    """
    wide = _framed(image, 0)
    across, down = _difference(_smoothed(wide, 2), 3), _difference(_smoothed(wide, 3), 2)
    flat, steep = across.abs(), down.abs()
    size = flat + steep
    around = pad(size, (1, 1, 1, 1))
    h, w = size.shape[2:]

    def bar(rows: int, columns: int) -> Tensor:
        """What a ridge reaches if the gradient points to this neighbour. Of two alike in a row, only one does."""
        before = around[:, :, 1 - rows : 1 - rows + h, 1 - columns : 1 - columns + w] + 1
        after = around[:, :, 1 + rows : 1 + rows + h, 1 + columns : 1 + columns + w]
        return torch.maximum(before, after + 1 if rows and columns else after, out=before)

    # OpenCV's tangents of 22.5° and, 2 more, of 67.5°; the products are exact in float32, and whole only if flat is 0.
    tangent = flat.float().mul_(13573 / 32768).to(torch.int16)
    falling = across.sign_().mul_(down.sign_())
    upright, level = steep - flat.mul_(2).add_(tangent), tangent.add_(1).sub_(steep)
    least = bar(1, -1)
    for chosen, other in ((falling, bar(1, 1)), (upright, bar(1, 0)), (level, bar(0, 1))):
        least += other.sub_(least).mul_(chosen.clamp_(0, 1))
    ridges = (size - least.clamp_(min=low + 1)).add_(1).clamp_(0, 1).to(torch.uint8)
    return connected(size.sub_(high).clamp_(0, 1).to(torch.uint8).mul_(ridges), ridges)


def connected(seeds: UInt8[Tensor, "n 1 h w"], ridges: UInt8[Tensor, "n 1 h w"]) -> UInt8[Tensor, "n 1 h w"]:
    """The ridges that touch a seed, or one that does, and so on, over sides and corners.

    Ends when nothing changes, after some five rounds; a GPU is waited for in each.
    """
    while True:
        grown = seeds
        for axis in (2, 3):
            spread, n = grown.clone(), grown.shape[axis] - 1
            spread.narrow(axis, 1, n).bitwise_or_(grown.narrow(axis, 0, n))
            spread.narrow(axis, 0, n).bitwise_or_(grown.narrow(axis, 1, n))
            grown = spread
        grown &= ridges
        if torch.equal(grown, seeds):
            return seeds
        seeds = grown


def chamfer(edges: UInt8[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Distance to the nearest edge, at most 20, in steps of 5 × 5 (OpenCV's `distanceTransform` with `DIST_L2`, 5).

    A path's length does not depend on the order of its steps, so all steps of a kind are taken at once: 1, 2, 4 …
    """
    n, _, h, w = edges.shape
    distance = (1 - edges.contiguous()).float().mul_(FAR)
    further = torch.empty_like(distance)
    for down, right, length in STEPS:
        many, longest = 1, float(distance.max())
        while many * length < longest and many * down < h and many * abs(right) < w:
            torch.add(distance, many * length, out=further)
            # One view of what stays in the image when moved, and one of where it goes.
            size, stride = (n, h - many * down, w - many * abs(right)), (h * w, w, 1)
            start, end = many * max(-right, 0), many * (down * w + max(right, 0))
            for here, there in ((start, end), (end, start)):
                nearer = distance.as_strided(size, stride, here)
                torch.minimum(nearer, further.as_strided(size, stride, there), out=nearer)
            many *= 2
    return distance


def equalised(values: Int16[Tensor, "n 1 h w"]) -> Int16[Tensor, "n 1 h w"]:
    """Whole numbers from 0 to 20 spread over 0 to 255 by their ranks, as OpenCV's `equalizeHist`; a constant stays."""
    index = values.flatten(1).long()
    count = torch.zeros(len(values), FAR + 1, dtype=torch.int64, device=values.device)
    count.scatter_add_(1, index, count.new_ones(()).expand_as(index))
    first = count.gather(1, (count > 0).long().argmax(1, keepdim=True))
    others = index.shape[1] - first
    scale = torch.full_like(others, 255).float() / others  # torch would take 255 / others for 255 · (1 / others)
    rank = ((count.cumsum(1) - first) * scale).round_()
    rank = rank.where(others > 0, torch.arange(FAR + 1, device=values.device))
    return rank.to(torch.int16).gather(1, index).view_as(values)


def emboss(x: Int16[Tensor, "n 1 h w"]) -> Int16[Tensor, "n 1 h w"]:
    """Rises towards the lower right: the kernel ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)), clipped to 0 … 255."""
    wide = _framed(x, 1)
    up, here, down = wide[:, :, :-2], wide[:, :, 1:-1], wide[:, :, 2:]
    rise = (down[..., 2:] - up[..., :-2]).mul_(2)
    rise += down[..., 1:-1] - up[..., 1:-1]
    rise += here[..., 2:] - here[..., :-2]
    return rise.add_(x).clamp_(0, 255)


def box_sum(x: Shaped[Tensor, "n 1 h w"]) -> Shaped[Tensor, "n 1 h w"]:
    """Sum over the 3 × 3 pixels around each; images are mirrored at their edges."""
    wide = _framed(x, 1)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def _smoothed(x: Int16[Tensor, "n 1 p q"], axis: int) -> Int16[Tensor, "n 1 r s"]:
    """Sobel's taps 1, 2, 1 along an axis."""
    pairs = x.narrow(axis, 1, x.shape[axis] - 1) + x.narrow(axis, 0, x.shape[axis] - 1)
    return pairs.narrow(axis, 1, pairs.shape[axis] - 1) + pairs.narrow(axis, 0, pairs.shape[axis] - 1)


def _difference(x: Int16[Tensor, "n 1 p q"], axis: int) -> Int16[Tensor, "n 1 r s"]:
    """Sobel's taps -1, 0, 1 along an axis."""
    return x.narrow(axis, 2, x.shape[axis] - 2) - x.narrow(axis, 0, x.shape[axis] - 2)


def _framed(x: Shaped[Tensor, "n 1 h w"], inside: int) -> Shaped[Tensor, "n 1 p q"]:
    """One pixel more on each side: what lies so many pixels inside of the edge."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        x = torch.cat((x.narrow(axis, min(inside, last), 1), x, x.narrow(axis, max(last - inside, 0), 1)), axis)
    return x
