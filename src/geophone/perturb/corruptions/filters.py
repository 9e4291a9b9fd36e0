"""Filters that several corruptions share: Gaussian and motion blur, and zooming in.

All are gathers and sums of shifted images, element by element: convolutions and matrix products may round an image
differently in another batch, and to TF32 on a GPU. Borders are indices, so that a kernel may be wider than the image.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEGLIGIBLE = 2.0**-40
"""Weights below this are left out of sums: they'd change a value in [0, 1] by less than float32 resolves."""

Border = Literal["nearest", "mirror"]
"""What lies beyond the edges, in SciPy's words, of `a b c`: nearest `c c c`, mirror `b a b`."""


def gaussian_filter(x: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Gaussian blur of each channel, as `scipy.ndimage.gaussian_filter(mode="nearest")`.

    The kernel is exp(-i²/2σ²) for |i| ≤ round(4σ), normalised to sum 1; where that leaves one tap, x is returned as it
    is. Costs 2·(8σ + 1) passes over x.
    """
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return x
    bell = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    kernel = [value / sum(bell) for value in bell]
    for axis in (2, 3):
        x = shifted_sum(padded(x, radius, axis, "nearest"), kernel, axis)
    return x


def motion_blur(
    x: Float[Tensor, "n c h w"], radius: int, sigma: float, angle: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Blur along a line, one angle per image, as ImageMagick's MotionBlurImage; the edges' values go on beyond them.

    x'(p) = Σ_i k_i·x(p + d_i) for i = 0 … 2·radius, with k_i ∝ exp(-i²/2σ²), a bell's one half, and
    d_i = i·(sin angle, cos angle) rounded to whole pixels down and to the right. Taps below 2^-40 are left out.

    Args:
        x: Images; a result is not clipped or rounded.
        radius: Reach of the kernel: it has 2·radius + 1 taps.
        sigma: Of the bell, in pixels.
        angle: In degrees, clockwise from rightwards.
    """
    n, c, h, w = x.shape
    reach = 2 * radius
    bell = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(reach + 1)]
    wide = padded(x.contiguous(), reach, 3, "nearest")
    # Row q of `windows` is the w values that start at value q of `wide`: a shift by columns is a later start, a shift
    # by rows a start in another row.
    windows = wide.view(-1).unfold(0, w, 1)
    pitch = wide.shape[3]
    turn = torch.deg2rad(angle.double())[:, None, None]
    rows = torch.arange(h, device=x.device)
    image = torch.arange(n * c, device=x.device).view(n, c, 1) * (h * pitch) + reach
    total = torch.zeros_like(x)
    for i, weight in enumerate(value / sum(bell) for value in bell):
        if weight < NEGLIGIBLE:
            break
        down = torch.ceil(i * torch.sin(turn) - 0.5).long()
        right = torch.ceil(i * torch.cos(turn) - 0.5).long()
        start = image + (rows + down).clamp_(0, h - 1) * pitch + right
        total.add_(windows.index_select(0, start.view(-1)).view_as(x), alpha=weight)
    return total


def clipped_zoom(x: Float[Tensor, "n c h w"], factor: float) -> Float[Tensor, "n c h w"]:
    """The images' centre, magnified by a factor of at least 1 with linear interpolation, of the size of x.

    The middle ceil(size/factor) rows and columns are stretched to round(ceil(size/factor)·factor) samples, corners on
    corners (`scipy.ndimage.zoom` with order 1), whose middle is returned.
    """
    for _ in range(2):
        x = x.transpose(2, 3).contiguous()  # rows are gathered several times faster than columns
        size = x.shape[2]
        crop = math.ceil(size / factor)
        stretched = round(crop * factor)
        step = (crop - 1) / (stretched - 1) if stretched > 1 else 1.0
        first = (stretched - size) // 2
        at = torch.arange(first, first + size, device=x.device, dtype=torch.float64) * step
        lower = at.floor()
        here = lower.long() + (size - crop) // 2
        there = (here + 1).clamp_(max=size - 1)
        x = x.index_select(2, here).lerp_(x.index_select(2, there), (at - lower).to(x.dtype)[:, None])
    return x


def padded(x: Float[Tensor, "n c h w"], margin: int, axis: int, mode: Border) -> Float[Tensor, "n c p q"]:
    """X with a margin on both sides of axis 2 or 3, which may be wider than the image itself."""
    size = x.shape[axis]
    outside = torch.arange(margin, device=x.device)
    before = x.index_select(axis, _inside(outside - margin, size, mode))
    after = x.index_select(axis, _inside(outside + size, size, mode))
    return torch.cat((before, x, after), axis)


def shifted_sum(
    x: Float[Tensor, "n c p q"], kernel: Sequence[float], axis: int, onto: Float[Tensor, "n c r s"] | None = None
) -> Float[Tensor, "n c r s"]:
    """Σ_i kernel[i]·x shifted by i along axis 2 or 3, for all shifts at which the kernel lies within x.

    It is added to `onto` in place, where that is given.
    """
    size = x.shape[axis] - len(kernel) + 1
    if onto is None:
        onto = torch.zeros_like(x.narrow(axis, 0, size), memory_format=torch.contiguous_format)
    for shift, weight in enumerate(kernel):
        if abs(weight) > NEGLIGIBLE:
            onto.add_(x.narrow(axis, shift, size), alpha=weight)
    return onto


def _inside(at: Int[Tensor, " m"], size: int, mode: Border) -> Int[Tensor, " m"]:
    """The indices of an axis of some size that stand for indices beyond its ends."""
    if mode == "nearest" or size == 1:
        return at.clamp(0, size - 1)
    period = 2 * size - 2
    at = at.remainder(period)
    return torch.minimum(at, period - at)
