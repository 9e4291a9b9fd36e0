"""What the corruptions of CIFAR-10-C and its like share: severities, presets, chunks, quantisation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import unknown
from geophone.core.rng import Draws
from geophone.core.types import FitsImages, Model
from geophone.data.dataset import divided
from geophone.perturb.checks import check_batch, check_number

PRESETS = ("cifar10", "tiny_imagenet", "imagenet")
"""Whose published constants: CIFAR-10-C's (32 pixels), Tiny ImageNet-C's (64), ImageNet-C's (224)."""

SEVERITIES = (1, 2, 3, 4, 5)


def preset_for(height: int, width: int) -> str:
    """The preset for images of a size: `cifar10` up to 32 pixels, `tiny_imagenet` up to 64, else `imagenet`."""
    side = max(height, width)
    return "cifar10" if side <= 32 else "tiny_imagenet" if side <= 64 else "imagenet"


@dataclass(frozen=True)
class Corruption(FitsImages):
    """A natural corruption at one of five published severities; subclasses say what happens to the images.

    Results are quantised to 256 levels by truncation, as in the published data sets.

    Attributes:
        severity: 1 to 5; 0 leaves the images as they are.
        preset: Whose constants: `cifar10`, `tiny_imagenet` or `imagenet`; None chooses by the images' size.
    """

    severity: int = 3
    preset: str | None = None
    level: ClassVar[str] = "severity"
    levels: ClassVar[tuple[float, ...]] = SEVERITIES
    family: ClassVar[str] = "corruption"
    constants: ClassVar[Mapping[str, tuple[Any, ...]]]
    """For each preset, the published constants of severities 1 to 5."""
    chunk: ClassVar[int] = 1 << 19
    """About how many values are corrupted at once on a CPU, so that temporaries stay in its cache."""

    whole_levels: ClassVar[bool] = False
    """Whether `corrupt` gives multiples of 1/255 in [0, 1] by itself."""

    def __post_init__(self) -> None:
        check_number(self, "severity", 0.0, 5.0)
        if self.preset is not None and self.preset not in PRESETS:
            raise unknown("preset", str(self.preset), PRESETS, "None chooses by the images' size.")

    def for_images(self, shape: tuple[int, ...]) -> "Corruption":
        """The same corruption with the preset for images `[n, c, h, w]` written out, so that a table can name it."""
        return self if self.preset is not None else replace(self, preset=preset_for(*shape[-2:]))

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Corrupted images, of the shape and dtype of x."""
        check_batch(x, y, rng, axes=4)
        if self.severity == 0:
            return x.clone()
        constants = self.constants[self.preset or preset_for(*x.shape[-2:])][self.severity - 1]
        rows = max(1, self.chunk // x[0].numel()) if x.device.type == "cpu" else len(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        # In half precision k/255 may lie below k/255, and be truncated to (k - 1)/255; there 255·x is whole.
        exact = x.contiguous() if x.dtype.itemsize > 2 else divided(x.mul(255).float(), 255)
        with torch.no_grad():
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                found = self.corrupt(exact[part], rng[part], constants)
                out[part] = found if self.whole_levels else quantised(found)
        return out

    def corrupt(self, x: Float[Tensor, "n c h w"], rng: Draws, constants: Any) -> Float[Tensor, "n c h w"]:
        """The corrupted images before clipping and quantisation; must not write to x."""
        raise NotImplementedError


def quantised(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Clipped to [0, 1] and truncated to 256 levels, as `np.uint8(np.clip(x, 0, 1) * 255)` does."""
    return divided(x.mul(255).clamp_(0, 255).floor_(), 255)
