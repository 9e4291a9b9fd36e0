"""An attack that moves the image: small translations and rotations."""

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model
from geophone.perturb.attacks.ascent import classes_of, is_fooled, logits_at
from geophone.perturb.attacks.base import Attack
from geophone.perturb.attacks.losses import margin
from geophone.perturb.checks import check_batch, check_number


@PERTURBATIONS.register
@dataclass(frozen=True)
class TranslationRotation(Attack):
    """The translation and rotation, of some that are tried, that hurts most.

        x' = the image turned about its centre by a, then moved by (r, d),   |a| ≤ eps·degrees,  |r|, |d| ≤ eps·pixels

    Tried is a regular grid with the edges of these ranges, or `tries` random transformations of each image. The one
    with the largest margin max_{j≠y} z_j - z_y is taken: one that fools the network if any does. Between pixels
    values are bilinear; outside the image they are 0. Costs one forward pass for each transformation, and no gradient.

    Attributes:
        eps: Share of the ranges that is used; 0 leaves the image alone.
        pixels: Largest translation along each axis, at eps = 1.
        degrees: Largest rotation to either side, at eps = 1.
        translations: Values on the grid for each of the two axes.
        rotations: Values on the grid for the rotation; 31 in the authors' code. The grid has translations²·rotations
            points, the image itself among them where both are odd.
        tries: How many random transformations are tried in place of the grid; 0 for the grid.

    References:
        Engstrom et al. 2019, arXiv:1712.02779.
    """

    eps: float = 1.0
    pixels: float = 5.0
    degrees: float = 30.0
    translations: int = 5
    rotations: int = 5
    tries: int = 0
    levels: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)
    highest: ClassVar[float] = 1.0
    black_box: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, remedy="It is a share of `pixels` and `degrees`: 1 for all of them.")
        check_number(self, "pixels", 0.0)
        check_number(self, "degrees", 0.0, 180.0)
        check_number(self, "translations", 1.0)
        check_number(self, "rotations", 1.0)
        check_number(self, "tries", 0.0)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """Try one transformation of every image after another, and keep each image's worst."""
        check_batch(x, y, rng, axes=4)
        classes = classes_of(y)
        motions = self._motions(x, rng)
        out, rows = x.clone(), torch.arange(len(x), device=x.device)
        worst, highest = x, torch.full_like(x[:, 0, 0, 0], -math.inf)
        with torch.no_grad():
            for motion in range(motions.shape[1]):
                moved = transformed(x, *motions[:, motion].T)
                logits = logits_at(model, moved, y, classes)
                gap = margin(logits, y)
                worst = torch.where((gap > highest)[:, None, None, None], moved, worst)
                highest = highest.maximum(gap)
                if stop and bool((fooled := is_fooled(logits, y)).any()):
                    out[rows[fooled]] = worst[fooled]
                    left = ~fooled
                    x, y, rows, worst, highest, motions = (one[left] for one in (x, y, rows, worst, highest, motions))
                    if not len(rows):
                        return out
        out[rows] = worst
        return out

    def _motions(self, x: Tensor, rng: Draws) -> Float[Tensor, "n k 3"]:
        """Pixels to the right and down, and degrees, of each transformation of each image."""
        if self.tries:
            share = 2 * rng.uniform("motion", self.tries, 3) - 1
        else:
            steps, turns = _grid(self.translations), _grid(self.rotations)
            share = torch.tensor(list(product(steps, steps, turns)), dtype=torch.float32, device=x.device).expand(
                len(x), -1, -1
            )
        return share.to(x.dtype) * (self.eps * x.new_tensor([self.pixels, self.pixels, self.degrees]))


def transformed(
    x: Float[Tensor, "n c h w"], right: Float[Tensor, " n"], down: Float[Tensor, " n"], degrees: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Images turned clockwise about their centre and then moved: bilinear between pixels, 0 outside the image.

    Args:
        x: Images.
        right: Pixels to the right.
        down: Pixels down.
        degrees: Angle in degrees, clockwise as the image is looked at (its second axis points down).
    """
    h, w = x.shape[-2:]
    angle = torch.deg2rad(degrees)[:, None, None]
    # Where in the image each pixel's value comes from: the inverse motion, from the centre, in pixels.
    across = torch.arange(w, device=x.device, dtype=x.dtype) - (w - 1) / 2 - right[:, None, None]
    downward = torch.arange(h, device=x.device, dtype=x.dtype)[:, None] - (h - 1) / 2 - down[:, None, None]
    column = angle.cos() * across + angle.sin() * downward
    row = angle.cos() * downward - angle.sin() * across
    place = torch.stack([column * (2 / w), row * (2 / h)], dim=-1)
    return grid_sample(x, place, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0, 1)


def _grid(count: int) -> list[float]:
    """`count` equidistant values from -1 to 1, or 0 alone."""
    return [2 * i / (count - 1) - 1 for i in range(count)] if count > 1 else [0.0]
