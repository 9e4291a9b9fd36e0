"""JPEG compression: what a file of a given quality keeps of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption


@PERTURBATIONS.register
@dataclass(frozen=True)
class jpeg_compression(Corruption):
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
    whole_levels: ClassVar[bool] = True
    large: ClassVar[int] = 80 * 80
    """Number of pixels from which on an image on a CPU gets a file of its own: arithmetic is slower there."""

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The compressed images."""
        if x.device.type == "cpu" and x.shape[2] * x.shape[3] >= self.large:
            return through_files(x, constants)
        levels = x.mul(255).add_(0.5).floor_()
        return divided(through_arithmetic(levels.float(), constants).to(x.dtype), 255)


def through_files(x: Float[Tensor, "n c h w"], quality: int) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1], each written to a JPEG file in memory and read again."""
    images = x.numpy()
    out = np.empty_like(images)
    for i, planes in enumerate(images):
        np.divide(_through_file(planes, quality), 255, out=out[i], dtype=out.dtype)
    return torch.from_numpy(out)


def _through_file(planes: NDArray[np.floating[Any]], quality: int) -> NDArray[np.uint8]:
    """An image `[c, h, w]` in [0, 1], and what is read back in levels 0 … 255."""
    scaled = planes * planes.dtype.type(255)
    scaled += planes.dtype.type(0.5)
    levels = scaled.astype(np.uint8)
    if len(levels) == 3:  # colours next to each other, in Pillow's order
        return _read(_written(np.stack(list(levels), axis=-1), quality=quality)).transpose(2, 0, 1)
    return np.stack([_read(_written(plane, quality=quality)) for plane in levels])


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
# The cosine transform of 8 samples times 2^13, as libjpeg's accurate algorithm rounds it; the left half of each row,
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
    rows = planes.new_empty(n, c, p, 2, q)
    torch.add(torch.cat((planes[:, :, :1], planes[:, :, :-1]), 2), planes, alpha=3, out=rows[:, :, :, 0])
    torch.add(torch.cat((planes[:, :, 1:], planes[:, :, -1:]), 2), planes, alpha=3, out=rows[:, :, :, 1])
    rows = rows.view(n, c, 2 * p, q)
    columns = planes.new_empty(n, c, 2 * p, q, 2)
    torch.add(torch.cat((rows[..., :1], rows[..., :-1]), 3).add_(8), rows, alpha=3, out=columns[..., 0])
    torch.add(torch.cat((rows[..., 1:], rows[..., -1:]), 3).add_(7), rows, alpha=3, out=columns[..., 1])
    return _shifted(columns.view(n, c, 2 * p, 2 * q), 4)


def _coded(planes: Float32[Tensor, "n c h w"], steps: list[int]) -> Float32[Tensor, "n c h w"]:
    """Planes, each block of 8 × 8 transformed, rounded to steps, and transformed back."""
    n, c, h, w = planes.shape
    tall, wide = -(-h // 8) * 8, -(-w // 8) * 8
    stack = _stretched(planes, tall, wide).view(n * c * tall, wide)
    coded = coded_in_file(stack, steps) if planes.device.type == "cpu" else coded_in_blocks(stack, steps)
    return coded.view(n, c, tall, wide)[:, :, :h, :w]


def coded_in_file(stack: Float32[Tensor, "h w"], steps: list[int]) -> Float32[Tensor, "h w"]:
    """What `coded_in_blocks` gives, by way of a grey file of any number of planes: blocks don't touch one another."""
    levels = stack.numpy().astype(np.uint8)
    most = 65500 // 8 * 8  # rows of a JPEG file
    parts = [_read(_written(levels[at : at + most], qtables=[steps])) for at in range(0, len(levels), most)]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def coded_in_blocks(stack: Float32[Tensor, "h w"], steps: list[int]) -> Float32[Tensor, "h w"]:
    """Each block of 8 × 8 cosine transformed, its coefficients rounded to multiples of steps, and transformed back.

    In float64, whose matrix products are exact here: some numbers exceed 2^24.
    """
    h, w = stack.shape
    blocks = stack.double().sub_(128).view(h // 8, 8, w // 8, 8).transpose(1, 2)
    width = torch.tensor(steps, dtype=blocks.dtype, device=blocks.device).view(8, 8)
    left = torch.tensor(_COSINES, dtype=blocks.dtype, device=blocks.device)
    sign = 1 - 2 * (torch.arange(8, device=blocks.device) % 2)[:, None]
    cosines = torch.cat((left, sign * left.flip(1)), 1)
    # Rows, then columns. Between them 2 bits below the point are kept, and coefficients are 8 times too large.
    rows = _shifted(blocks @ cosines.T + 2**10, 11)
    coefficients = _shifted(cosines @ rows + 2**14, 15)
    kept = (coefficients.abs() / (8 * width) + 0.5).floor_().mul_(width).copysign_(coefficients)
    columns = _shifted(cosines.T @ kept + 2**10, 11)
    blocks = _shifted(columns @ cosines + 2**17, 18).add_(128).clamp_(0, 255)
    return blocks.transpose(1, 2).reshape(h, w).float()


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


def _written(picture: NDArray[np.uint8], **options: Any) -> BytesIO:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file


def _read(file: BytesIO) -> NDArray[np.uint8]:
    return np.asarray(Image.open(file, formats=["JPEG"]))
