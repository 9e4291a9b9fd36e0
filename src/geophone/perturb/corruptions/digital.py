"""Corruptions by arithmetic on an image's levels: brightness, contrast, saturation and size in pixels.

They are deterministic, and carried out in the published scripts' order of operations: in float64 where those use
NumPy, in whole levels where those use Pillow. So the results are theirs to the bit. Only where contrast puts a value
exactly on the border of two levels, the scripts' last bit depends on the order in which NumPy sums a channel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption


@PERTURBATIONS.register
@dataclass(frozen=True)
class brightness(Corruption):
    """Brighter at the same hue and saturation: a pixel is scaled until its largest channel v is min(v + shift, 1).

    The constant is shift. A black pixel becomes grey. An image of one channel becomes min(x + shift, 1); the formula
    holds for any number of channels.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.05, 0.1, 0.15, 0.2, 0.3),
        "tiny_imagenet": (0.1, 0.2, 0.3, 0.4, 0.5),
        "imagenet": (0.1, 0.2, 0.3, 0.4, 0.5),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        distance, saturation, value = _to_hsv(x)
        return _from_hsv(distance, saturation, value.add_(constants).clamp_(max=1))


@PERTURBATIONS.register
@dataclass(frozen=True)
class saturate(Corruption):
    """Paler or stronger colours: the saturation s of each pixel becomes clip(factor·s + shift, 0, 1).

    The constants are (factor, shift). With v and u the largest and smallest channel, s = (v - u)/v; v and the hue stay.
    Where v = u the hue is that of the first channel, so a shift turns grey pixels red, as in the published data sets.
    An image of one channel is left as it is; the formula holds for any number of channels.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    monotone: ClassVar[bool] = False  # two severities take colour away, three add some
    constants: ClassVar[Mapping[str, tuple[tuple[float, float], ...]]] = {
        "cifar10": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        "tiny_imagenet": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)),
        "imagenet": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
    }

    def corrupt(
        self, x: Float[Tensor, "n c h w"], rng: Draws, constants: tuple[float, float]
    ) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        distance, saturation, value = _to_hsv(x)
        factor, shift = constants
        return _from_hsv(distance, saturation.mul_(factor).add_(shift).clamp_(max=1), value)


@PERTURBATIONS.register
@dataclass(frozen=True)
class contrast(Corruption):
    """Lower contrast: m + share·(x - m), m the mean of each channel of each image.

    The constant is share. An image without contrast stays as it is.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.75, 0.5, 0.4, 0.3, 0.15),
        "tiny_imagenet": (0.4, 0.3, 0.2, 0.1, 0.05),
        "imagenet": (0.4, 0.3, 0.2, 0.1, 0.05),
    }

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        # In levels, whose sums are exact, so that the mean is the same in any order of summing.
        level = (x * 255).double()
        mean = level.mean((2, 3), keepdim=True)
        return divided(level.sub_(mean).mul_(constants).add_(mean), 255)


@PERTURBATIONS.register
@dataclass(frozen=True)
class pixelate(Corruption):
    """Coarser pixels: resized to int(share·height) × int(share·width) and back, with Pillow's box filter.

    The constant is share. A pixel of the small image is the mean of those whose centres it covers, along rows first,
    rounded to 256 levels after each axis; a pixel of the result is the nearest of the small image's. The small image
    has at least one pixel.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.
    """

    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "cifar10": (0.95, 0.9, 0.85, 0.75, 0.65),
        "tiny_imagenet": (0.9, 0.8, 0.7, 0.6, 0.5),
        "imagenet": (0.6, 0.5, 0.4, 0.3, 0.25),
    }
    whole_levels: ClassVar[bool] = True

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: float) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation."""
        height, width = x.shape[2:]
        small = _box_resize(x, max(1, int(width * constants)), 3, unit=255)
        small = divided(_box_resize(small, max(1, int(height * constants)), 2), 255)
        return _box_resize(_box_resize(small, width, 3), height, 2)


def _to_hsv(
    x: Float[Tensor, "n c h w"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n 1 h w"], Float[Tensor, "n 1 h w"]]:
    """Distance, saturation and value of each pixel, float64: with v and u its largest and smallest channel, v ≠ u,

    distance = (v - x)/(v - u) for each channel (it says the hue), saturation = (v - u)/v, value = v.
    Where v = u, the distance is 0 for the first channel and 1 for the others, and the saturation 0.
    """
    # x·255 is whole for an 8-bit image, in float32 too; dividing it gives the bits that NumPy's uint8/255 has.
    x = divided((x * 255).double(), 255)
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - least
    saturation = (spread / value).nan_to_num_(0.0)
    distance = (value - x).div_(spread)
    if x.shape[1] == 3:
        between = _between(x, value, spread)
        distance = torch.where((distance > 0) & (distance < 1), between, distance)
    distance[:, :1].nan_to_num_(0.0)
    distance[:, 1:].nan_to_num_(1.0)
    return distance, saturation, value


def _between(
    x: Float[Tensor, "n 3 h w"], value: Float[Tensor, "n 1 h w"], spread: Float[Tensor, "n 1 h w"]
) -> Float[Tensor, "n 1 h w"]:
    """The distance of the middle one of three channels, with the rounding of a round trip through the hue.

    A change of saturation puts many values on the border of two levels, where the last bit decides.
    """
    red, green, blue = x.split(1, dim=1)
    hue = torch.where(
        blue == value,
        ((red - green) / spread).add_(4),
        torch.where(green == value, ((blue - red) / spread).add_(2), (green - blue) / spread),
    )
    divided(hue, 6).remainder_(1).mul_(6)
    sector = hue.floor()
    rise = hue.sub_(sector)
    return torch.where(sector.remainder_(2) == 1, rise, 1 - rise)


def _from_hsv(
    distance: Float[Tensor, "n c h w"], saturation: Float[Tensor, "n 1 h w"], value: Float[Tensor, "n 1 h w"]
) -> Float[Tensor, "n c h w"]:
    """Images value·(1 - saturation·distance); distance is used up."""
    return torch.sub(1, distance.mul_(saturation)).mul_(value)


def _box_resize(x: Float[Tensor, "n c h w"], size: int, axis: int, unit: int = 1) -> Float[Tensor, "n c p q"]:
    """Resize axis 2 or 3 of images as `PIL.Image.resize(…, Image.BOX)` does; unit is what makes levels (0 to 255) of x.

    A mean is taken of levels and rounded to one. Where x has others than 256, their sum is rounded to whole ones first.
    """
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    lines = x.flatten(0, axis - 1)  # in two dimensions a selection of columns is three times as fast
    picks, shares, weight = _windows(x.shape[axis], size, lines.ndim, x.device, x.dtype)
    total = lines.index_select(1, picks[0])
    for pick, share in zip(picks[1:], shares, strict=True):
        more = lines.index_select(1, pick)
        total = total.add_(more) if share is None else total.addcmul_(more, share)
    if unit != 1:
        total.mul_(unit).round_()
    if len(picks) > 1:
        # Whole sums times Pillow's fixed-point weights: the 24 bits of float32 keep apart the ties that those decide.
        total.mul_(weight).add_(0.5).floor_()
    return total.view(shape)


@lru_cache(maxsize=64)
def _windows(
    length: int, size: int, ndim: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Int[Tensor, " size"]], list[Float[Tensor, "size ..."] | None], Float[Tensor, "size ..."]]:
    """What Pillow's box filter averages when it resizes an axis of `length` pixels to `size`.

    A pixel of the result is the mean of the inputs whose centres lie within half a pixel of its own, in pixels of the
    coarser of both grids, the right border not counted.

    Returns:
        The first input of every result, the second of every result, …
        From the second on: 1 for these, 0 where there are fewer, shaped for axis 1 of ndim axes; None for all ones.
        The weight of one input, 1/count rounded to 22 bits; shaped alike.
    """
    scale = length / size
    reach = max(scale, 1.0)
    windows = []
    for i in range(size):
        center = (i + 0.5) * scale
        near = range(max(int(center - 0.5 * reach + 0.5), 0), min(int(center + 0.5 * reach + 0.5), length))
        windows.append([j for j in near if -0.5 < (j - center + 0.5) * (1 / reach) <= 0.5])

    counts = [len(window) for window in windows]
    shaped = partial(torch.Tensor.view, size=(size, *(1,) * (ndim - 2)))
    picks = [
        torch.tensor([window[min(k, len(window) - 1)] for window in windows], dtype=torch.int64, device=device)
        for k in range(max(counts))
    ]
    shares = [
        None if k < min(counts) else shaped(torch.tensor([float(k < count) for count in counts], dtype=dtype))
        for k in range(1, max(counts))
    ]
    weight = torch.tensor([math.floor(2**22 / count + 0.5) / 2**22 for count in counts], dtype=torch.float64)
    return picks, [share if share is None else share.to(device) for share in shares], shaped(weight.to(device, dtype))
