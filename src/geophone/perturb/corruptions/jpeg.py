"""JPEG compression: what a file of a given quality keeps of an image, without the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from geophone.perturb.corruptions import filters
from geophone.perturb.corruptions.base import Corruption
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws

_BRIGHTNESS = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99"""
_COLOUR = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99"""
# The cosine transform of 8 samples times 2^13 as libjpeg rounds it: its left half, of which the right half is the
# mirror image in even rows and minus that in odd ones.
_COSINES = """
 8192   8192   8192   8192
11363   9633   6437   2260
10703   4433  -4433 -10703
 9633  -2259 -11362  -6436
 8192  -8192  -8192   8192
 6437 -11362   2261   9633
 4433 -10704  10704  -4433
 2260  -6436   9633 -11363"""
# From red, green and blue to brightness and two colour differences and back, times 2^16.
_TO_YCC = """
 19595  38470   7471
-11059 -21709  32768
 32768 -27439  -5329"""
_TO_RGB = """
65536      0  91881
65536 -22554 -46802
65536 116130      0"""


@PERTURBATIONS.register
@dataclass(frozen=True)
class jpeg_compression(Corruption):  # noqa: N801
    """JPEG compression at a low quality, with colour at half the resolution in both directions.

    Bit for bit what Pillow makes of an RGB image (3 channels) or a grey one (1 channel; of any other number, each is
    taken for a grey image), whose values are rounded to 256 levels first: the arithmetic is libjpeg-turbo's, in whole
    numbers, so that it is the same on every device. Constants: Pillow's `quality`, 1 to 100 (Hendrycks & Dietterich
    2019, arXiv:1903.12261).

    The published files of Tiny ImageNet-C and ImageNet-C hold every corrupted image as a JPEG of quality 85. That is
    left out here, for this corruption and for all others.
    """

    constants: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "cifar10": (80, 65, 58, 50, 40),
        "tiny_imagenet": (65, 58, 50, 40, 25),
        "imagenet": (25, 18, 15, 10, 7),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The compressed images."""
        levels = x.double().mul_(255).round_()
        return jpeg(levels, constants).to(torch.promote_types(x.dtype, torch.float32)).div_(255)


def jpeg(levels: Float64[Tensor, "n c h w"], quality: int) -> Float64[Tensor, "n c h w"]:
    """Images in levels 0 … 255 after compression and decompression.

    All is done in whole numbers below 2^53, which float64 holds exactly: no sum depends on its order.
    """
    if levels.shape[1] != 3:
        return _coded(levels, _BRIGHTNESS, quality)
    h, w = levels.shape[2:]
    middle = torch.tensor([0.0, 128, 128], dtype=torch.float64, device=levels.device)[:, None]
    # Half a unit is added for rounding, and for colours one less.
    half = middle * 65536 + torch.tensor([32768.0, 32767, 32767], dtype=torch.float64, device=levels.device)[:, None]
    planes = _shifted(_matrix(_TO_YCC, levels) @ levels.flatten(2) + half, 16).view_as(levels)
    bright = _coded(planes[:, :1], _BRIGHTNESS, quality)
    colour = _coded(_halved(planes[:, 1:]), _COLOUR, quality)[:, :, :, : -(-w // 2)]
    colour = _doubled(colour)[:, :, :h, :w]
    planes = torch.cat((bright, colour), 1).flatten(2) - middle
    return _shifted(_matrix(_TO_RGB, levels) @ planes + 32768, 16).clamp_(0, 255).view_as(levels)


def _coded(planes: Float64[Tensor, "n c h w"], table: str, quality: int) -> Float64[Tensor, "n c h w"]:
    """Planes after the cosine transform of blocks of 8 × 8, rounding to multiples of a table, and back."""
    n, c, h, w = planes.shape
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = ((_matrix(table, planes) * scale + 50) / 100).floor_().clamp_(1, 255).T
    left = _matrix(_COSINES, planes)
    sign = torch.tensor([1.0, -1.0], dtype=left.dtype, device=left.device).repeat(4)[:, None]
    cosines = torch.cat((left, sign * left.flip(1)), 1)
    tall, wide = -(-h // 8), -(-w // 8)
    blocks = _stretched(planes, 8 * tall, 8 * wide).view(n * c, tall, 8, wide, 8).transpose(2, 3) - 128
    # The first transform keeps 2 bits below the point, and both together are scaled by 8.
    blocks = _rounded(blocks @ cosines.T, 11).transpose(3, 4)
    blocks = _rounded(blocks @ cosines.T, 15)
    steps8 = steps * 8
    blocks = (blocks.abs() + (steps8 / 2)).div_(steps8).floor_().copysign_(blocks).mul_(steps)
    blocks = _rounded(blocks @ cosines, 11).transpose(3, 4)
    blocks = _rounded(blocks @ cosines, 18).add_(128).clamp_(0, 255)
    return blocks.transpose(2, 3).reshape(n, c, 8 * tall, 8 * wide)[:, :, :h, :w]


def _halved(planes: Float64[Tensor, "n c h w"]) -> Float64[Tensor, "n c p q"]:
    """Means of 2 × 2 values; halves are rounded up and down in turns, quarters to the nearest."""
    h, w = planes.shape[2:]
    even = _stretched(planes, h + h % 2, -(-w // 16) * 16)
    rows = even[:, :, ::2] + even[:, :, 1::2]
    total = rows[..., ::2] + rows[..., 1::2]
    total[..., ::2] += 1
    total[..., 1::2] += 2
    return _shifted(total, 2)


def _doubled(planes: Float64[Tensor, "n c p q"]) -> Float64[Tensor, "n c h w"]:
    """Twice as many rows and columns, each 3/4 of the nearest and 1/4 of the next; copies if only 2 columns wide."""
    n, c, p, q = planes.shape
    if q <= 2:
        return planes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    around = filters.padded(filters.padded(planes, 1, 2, "nearest"), 1, 3, "nearest")
    rows = torch.stack((around[:, :, :-2], around[:, :, 2:]), 3).add_(around[:, :, 1:-1, None], alpha=3)
    left, right = rows[..., :-2] + 8, rows[..., 2:] + 7
    both = torch.stack((left, right), 5).add_(rows[..., 1:-1, None], alpha=3)
    return _shifted(both, 4).view(n, c, 2 * p, 2 * q)


def _stretched(planes, height: int, width: int):
    """Planes that go on with the values at their bottom and right edges."""
    h, w = planes.shape[2:]
    rows = torch.arange(height, device=planes.device).clamp_(max=h - 1)
    columns = torch.arange(width, device=planes.device).clamp_(max=w - 1)
    return planes.index_select(2, rows).index_select(3, columns)


def _matrix(text: str, like: Tensor) -> Float64[Tensor, "a b"]:
    rows = [[float(number) for number in line.split()] for line in text.split("\n")[1:]]
    return torch.tensor(rows, dtype=torch.float64, device=like.device)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """⌊x / 2^bits⌋, in place."""
    return x.mul_(2.0**-bits).floor_()


def _rounded(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits rounded to the nearest, halves up, in place."""
    return _shifted(x.add_(2.0 ** (bits - 1)), bits)
