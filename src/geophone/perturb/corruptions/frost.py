"""Frost: pictures of ice over the images, the published ones or procedural ones of our own."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws, draws
from geophone.data.dataset import divided
from geophone.perturb.corruptions.base import Corruption, preset_for
from geophone.perturb.corruptions.colours import grey
from geophone.perturb.corruptions.weather import plasma

SOURCES = ("published", "procedural")
FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published pictures. A sixth comes with them, but the data sets' scripts draw one of the first five."""


@PERTURBATIONS.register
@dataclass(frozen=True)
class frost(Corruption):
    """Frost: x' = a·x + b·ice, where ice is cut out of one of five pictures, which and where is drawn for each image.

    The published pictures have no stated licence, so they are read from an installed `imagecorruptions`. Where there is
    none, procedural ones take their place, and a table names them. Pictures are reduced as in the data sets' scripts,
    but not so far that they no longer cover the images: for those larger than a picture, it is enlarged. Three channels
    get the colours, any other number their luminance.

    Constants: a, b, the pictures' scale (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    Attributes:
        pictures: `published` or `procedural`; None takes the published ones where they are installed.

    Raises:
        GeophoneError: `pictures` is neither; the published ones are asked for and not installed (when called).
    """

    pictures: str | None = None
    constants: ClassVar[Mapping[str, tuple[tuple[float, float, float], ...]]] = {
        "cifar10": ((1.0, 0.2, 0.2), (1.0, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        "tiny_imagenet": ((1.0, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        "imagenet": ((1.0, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures is not None and self.pictures not in SOURCES:
            raise unknown("source of frost", str(self.pictures), SOURCES, "None takes what is installed.")

    def for_images(self, shape: tuple[int, ...]) -> "frost":
        """The same corruption with its preset and the pictures that it uses here written out."""
        return replace(self, preset=self.preset or preset_for(*shape[-2:]), pictures=source(self.pictures))

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The frosted images."""
        share, opacity, scale = constants
        h, w = x.shape[2:]
        pages = album(source(self.pictures), scale, h, w, x.device)
        which, down, right = rng.uniform("picture", 3).unbind(1)
        picture = (which * len(FILES)).long()
        top = (down * (pages.height[picture] - h)).long()
        left = (right * (pages.width[picture] - w)).long()
        return frosted(x, pages.cut(picture, top, left, h, w).float(), share, opacity)


def frosted(
    x: Float[Tensor, "n c h w"], ice: Float[Tensor, "n 3 h w"], share: float, opacity: float
) -> Float[Tensor, "n c h w"]:
    """Images under given ice, which is in 256 levels."""
    ice = ice if x.shape[1] == 3 else grey(ice)
    return divided(share * (255 * x) + opacity * ice, 255)


@dataclass(frozen=True)
class Album:
    """Pictures of several sizes in one tensor, so that pieces of all can be cut out at once, wherever it lives.

    Attributes:
        pixels: All pixels' colours, picture by picture, row by row.
        start: Where each picture begins.
        height: Each one's number of rows.
        width: Each one's number of columns.
    """

    pixels: UInt8[Tensor, "m 3"]
    start: Int[Tensor, " p"]
    height: Int[Tensor, " p"]
    width: Int[Tensor, " p"]

    def cut(
        self, picture: Int[Tensor, " n"], top: Int[Tensor, " n"], left: Int[Tensor, " n"], h: int, w: int
    ) -> UInt8[Tensor, "n 3 h w"]:
        """An h × w piece for each image, of the picture and at the place that it asks for."""
        rows = top[:, None] + torch.arange(h, device=top.device)
        columns = left[:, None] + torch.arange(w, device=top.device)
        row_starts = self.start[picture, None] + rows * self.width[picture, None]
        return self.pixels[row_starts[:, :, None] + columns[:, None, :]].permute(0, 3, 1, 2)


def source(asked: str | None) -> str:
    """Which pictures are used when these are asked for: `published` or `procedural`."""
    if asked == "published" and published_folder() is None:
        raise GeophoneError(
            "frost(pictures='published'): the published pictures are not installed, and their licence is not stated, "
            "so they don't come with Geophone. `pip install 'geophone[frost]'` brings them; pictures='procedural' does "
            "without."
        )
    return asked or ("procedural" if published_folder() is None else "published")


@cache
def published_folder() -> Path | None:
    """Where an installed `imagecorruptions` keeps the pictures; it is not imported, since old versions fail to."""
    spec = importlib.util.find_spec("imagecorruptions")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "frost"
        if all((folder / name).is_file() for name in FILES):
            return folder
    return None


@lru_cache(maxsize=16)
def album(kind: str, scale: float, h: int, w: int, device: torch.device) -> Album:
    """The pictures of a kind at a scale, or larger where an h × w piece would not fit with a pixel to spare."""
    sized = []
    for picture in procedural() if kind == "procedural" else published():
        height, width = picture.shape[:2]
        factor = max(scale, (h + 1.5) / height, (w + 1.5) / width)
        sized.append(picture if factor == 1 else resized(picture, factor))
    heights, widths = (torch.tensor([picture.shape[axis] for picture in sized], dtype=torch.int64) for axis in (0, 1))
    start = (heights * widths).cumsum(0) - heights * widths
    pixels = torch.cat([picture.flatten(0, 1) for picture in sized])
    return Album(*(tensor.to(device) for tensor in (pixels, start, heights, widths)))


def resized(picture: UInt8[Tensor, "h w 3"], factor: float) -> UInt8[Tensor, "a b 3"]:
    """A picture scaled by linear interpolation between pixels' centres, as OpenCV's `resize`: no smoothing before."""
    scaled = interpolate(picture.permute(2, 0, 1)[None].float(), scale_factor=factor, mode="bilinear")
    return scaled[0].permute(1, 2, 0).round().to(torch.uint8)


@cache
def published() -> list[UInt8[Tensor, "h w 3"]]:
    """The data sets' own pictures, from the installed package."""
    folder = published_folder()
    assert folder is not None
    found = []
    for name in FILES:
        with Image.open(folder / name) as image:
            found.append(torch.from_numpy(np.array(image.convert("RGB"))))
    return found


@cache
def procedural() -> list[UInt8[Tensor, "s s 3"]]:
    """Ice of our own, 512 × 512 and the same everywhere, from thin and dark blue to thick and white.

    Cracks run along level lines of plasma fractals, the rougher the fainter; a smooth fractal clouds them, and the
    pictures' edges are brighter. Mean levels range from 110 to 221; those of the published pictures, from 123 to 207.
    """
    side = 512
    rng = draws("frost", index=torch.arange(len(FILES)))

    def fractal(name: str, decay: float) -> Tensor:
        return plasma(rng.uniform(name, side * side - 1).mul_(2).sub_(1), decay)

    cracks = torch.zeros(len(FILES), side, side, dtype=torch.float32)
    for strength, decay, lines in ((1.0, 1.6, 3), (0.7, 1.45, 4), (0.5, 1.3, 3)):
        # From 0 to 1 and back `lines` times, as the fractal rises from 0 to 1.
        ridge = (2 * lines * fractal(f"cracks {strength}", decay)).remainder_(2).sub_(1).abs_()
        cracks += strength * ridge**4
    cloud = fractal("cloud", 1.8)
    across = torch.linspace(-1, 1, side, dtype=torch.float32).abs()
    edge = torch.maximum(across[:, None], across) ** 3
    thickness = torch.linspace(-0.1, 0.5, len(FILES), dtype=torch.float32)[:, None, None]
    white = (cracks * (0.1 + 0.6 * cloud) + 0.3 * cloud + 0.2 * edge + thickness).clamp_(0, 1)
    dark, bright = torch.tensor([[40.0, 66.0, 88.0], [236.0, 244.0, 250.0]], dtype=torch.float32)
    return list((dark + white[..., None] * (bright - dark)).round().to(torch.uint8))
