"""JPEG compression: what a file of a given quality keeps of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from geophone.perturb.corruptions import filters
from geophone.perturb.corruptions.base import Corruption
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws


@PERTURBATIONS.register
@dataclass(frozen=True)
class jpeg_compression(Corruption):  # noqa: N801
    """JPEG compression at a low quality, with colour at half the resolution in both directions.

    Bit for bit what Pillow makes of an RGB image (3 channels) or a grey one (1 channel; of any other number, each is
    taken for a grey image), whose values are rounded to 256 levels first. The arithmetic is libjpeg-turbo's, in whole
    numbers and without a file where that is faster, so that results are the same on every device. Constants: Pillow's
    `quality`, 1 to 100 (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    The published files of Tiny ImageNet-C and ImageNet-C hold every corrupted image as a JPEG of quality 85. That is
    left out here, in this corruption and in all others.
    """

    constants: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "cifar10": (80, 65, 58, 50, 40),
        "tiny_imagenet": (65, 58, 50, 40, 25),
        "imagenet": (25, 18, 15, 10, 7),
    }
    large: ClassVar[int] = 128 * 128
    """Pixels of an image from which on a CPU writes it to a file of its own."""

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The compressed images."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        levels = (exact * 255).round_().float()
        whole = x.device.type == "cpu" and x.shape[2] * x.shape[3] >= self.large
        return (through_files if whole else through_arithmetic)(levels, constants).to(exact.dtype).div_(255)


def through_files(levels: Float32[Tensor, "n c h w"], quality: int) -> Float32[Tensor, "n c h w"]:
    """Images in levels 0 … 255, written to JPEG files in memory and read again."""
    n, c, h, w = levels.shape
    if c == 3:
        pictures = levels.byte().permute(0, 2, 3, 1).contiguous()
        return _read([_written(picture, quality=quality) for picture in pictures]).float().permute(0, 3, 1, 2)
    pictures = levels.byte().flatten(0, 1)
    return _read([_written(picture, quality=quality) for picture in pictures]).float().view_as(levels)


def through_arithmetic(levels: Float32[Tensor, "n c h w"], quality: int) -> Float32[Tensor, "n c h w"]:
    """What `through_files` gives, as arithmetic on the whole batch.

    All numbers are whole and below 2^24, which float32 holds exactly: no sum depends on its order. Colours become
    brightness and two differences, which are halved in size; all are coded in blocks and come back the same way.
    """
    if levels.shape[1] != 3:
        return _coded(levels, _steps(_BRIGHTNESS, quality))
    h, w = levels.shape[2:]
    planes = _mixed(levels, _TO_BRIGHTNESS_AND_COLOUR)
    bright = _coded(planes[:, :1], _steps(_BRIGHTNESS, quality))
    colour = _coded(_halved(planes[:, 1:]), _steps(_COLOUR, quality))
    colour = _doubled(colour[..., : -(-w // 2)])[:, :, :h, :w]
    return _mixed(colour.sub_(128), _FROM_COLOUR).add_(bright).clamp_(0, 255)


# The tables of quality 50 and the factors below are those of the JPEG standard (ITU T.81 K.1, T.871).
_BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)
# For each channel made, the factors times 2^16 and what is added, half a unit to round (for colours a little less, as
# libjpeg has it) and 128 units to make differences positive.
_TO_BRIGHTNESS_AND_COLOUR = (
    ((19595, 38470, 7471), 0x8000),
    ((-11059, -21709, 32768), (128 << 16) + 0x7FFF),
    ((32768, -27439, -5329), (128 << 16) + 0x7FFF),
)
_FROM_COLOUR = (
    ((0, 91881), 0x8000),
    ((-22554, -46802), 0x8000),
    ((116130, 0), 0x8000),
)
# The cosine transform of 8 samples times 2^13, rounded as libjpeg's fast algorithm does; the left half of each row,
# which goes on mirrored, in every second row with the opposite sign.
_COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


def _steps(table: Sequence[Sequence[int]], quality: int) -> list[int]:
    """A table of 8 × 8 step widths at a quality, row after row."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [min(max((step * percent + 50) // 100, 1), 255) for row in table for step in row]


def _mixed(planes: Float32[Tensor, "n c h w"], rows: Sequence[Any]) -> Float32[Tensor, "n d h w"]:
    """Channels as weighted sums of channels, ⌊(Σ_j factor_j·plane_j + offset) / 2^16⌋."""
    n, _, h, w = planes.shape
    mixed = planes.new_empty(n, len(rows), h, w)
    for (factors, offset), plane in zip(rows, mixed.unbind(1), strict=True):
        plane.fill_(offset)
        for source, factor in zip(planes.unbind(1), factors, strict=True):
            plane.add_(source, alpha=factor)
    return _shifted(mixed, 16)


def _halved(planes: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c p q"]:
    """Means of 2 × 2 values, quarters rounded to the nearest and halves by turns down and up; to whole blocks wide."""
    h, w = planes.shape[2:]
    even = _stretched(planes, h + h % 2, -(-w // 16) * 16)
    rows = even[:, :, ::2] + even[:, :, 1::2]
    total = rows[..., ::2] + rows[..., 1::2]
    total[..., ::2] += 1
    total[..., 1::2] += 2
    return _shifted(total, 2)


def _doubled(planes: Float32[Tensor, "n c p q"]) -> Float32[Tensor, "n c h w"]:
    """Twice as many rows and columns: 3/4 of the nearest and 1/4 of the next, or copies where only 2 columns are."""
    n, c, p, q = planes.shape
    if q <= 2:
        return planes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    above = torch.cat((planes[:, :, :1], planes[:, :, :-1]), 2)
    below = torch.cat((planes[:, :, 1:], planes[:, :, -1:]), 2)
    rows = torch.stack((above, below), 3).add_(planes[:, :, :, None], alpha=3).view(n, c, 2 * p, q)
    left = torch.cat((rows[..., :1], rows[..., :-1]), 3).add_(8)
    right = torch.cat((rows[..., 1:], rows[..., -1:]), 3).add_(7)
    columns = torch.stack((left, right), 4).add_(rows[..., None], alpha=3)
    return _shifted(columns, 4).view(n, c, 2 * p, 2 * q)


def _coded(planes: Float32[Tensor, "n c h w"], steps: list[int]) -> Float32[Tensor, "n c h w"]:
    """Planes, each block of 8 × 8 transformed, rounded to steps, and transformed back."""
    n, c, h, w = planes.shape
    tall, wide = -(-h // 8), -(-w // 8)
    stack = _stretched(planes, 8 * tall, 8 * wide).view(n * c, 8 * tall, 8 * wide)
    if planes.device.type == "cpu":
        # As blocks don't touch one another, many planes make one grey file. It has at most 65500 rows.
        parts = stack.byte().split(max(1, 65500 // (8 * tall)))
        coded = torch.cat([_read([_written(part.flatten(0, 1), qtables=[steps])])[0] for part in parts]).float()
    else:
        blocks = stack.view(n * c, tall, 8, wide, 8).transpose(2, 3)
        coded = transformed(blocks, steps).transpose(2, 3)
    return coded.reshape(n, c, 8 * tall, 8 * wide)[:, :, :h, :w]


def transformed(blocks: Float32[Tensor, "*b 8 8"], steps: list[int]) -> Float32[Tensor, "*b 8 8"]:
    """Blocks after the cosine transform, rounding of its coefficients to multiples of steps, and back.

    In float64, whose matrix products are exact here: some numbers exceed 2^24.
    """
    width = torch.tensor(steps, dtype=torch.float64, device=blocks.device).view(8, 8)
    left = torch.tensor(_COSINES, dtype=torch.float64, device=blocks.device)
    sign = 1 - 2 * (torch.arange(8, device=blocks.device) % 2)[:, None]
    cosines = torch.cat((left, sign * left.flip(1)), 1)
    # Rows, then columns; the former keep 2 bits below the point, and the coefficients are 8 times too large.
    rows = _shifted((blocks.double() - 128) @ cosines.T + 2**10, 11)
    coefficients = _shifted(cosines @ rows + 2**14, 15)
    kept = (coefficients.abs() / (8 * width) + 0.5).floor_().mul_(width).copysign_(coefficients)
    columns = _shifted(cosines.T @ kept + 2**10, 11)
    return _shifted(columns @ cosines + 2**17, 18).add_(128).clamp_(0, 255).float()


def _stretched(planes: Float32[Tensor, "n c h w"], height: int, width: int) -> Float32[Tensor, "n c p q"]:
    """Planes that go on with the values at their bottom and right edges."""
    n, c, h, w = planes.shape
    if height > h:
        planes = torch.cat((planes, planes[:, :, -1:].expand(n, c, height - h, w)), 2)
    if width > w:
        planes = torch.cat((planes, planes[..., -1:].expand(n, c, height, width - w)), 3)
    return planes.contiguous()


def _shifted(x: Tensor, bits: int) -> Tensor:
    """⌊x / 2^bits⌋, in place."""
    return x.mul_(2.0**-bits).floor_()


def _written(picture: UInt8[Tensor, "h w ..."], **options: Any) -> BytesIO:
    file = BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", **options)
    return file


def _read(files: list[BytesIO]) -> UInt8[Tensor, "n h w ..."]:
    return torch.stack([torch.from_numpy(np.array(Image.open(file, formats=["JPEG"]))) for file in files])
