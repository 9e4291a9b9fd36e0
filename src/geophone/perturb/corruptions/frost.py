"""Frost: pictures of ice over the images, the published ones or procedural ones of our own."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from geophone.errors import GeophoneError, unknown
from geophone.perturb.corruptions.base import Corruption
from geophone.perturb.corruptions.colours import grey
from geophone.registry import PERTURBATIONS
from geophone.rng import Draws, draws

SOURCES = ("published", "procedural")
FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The pictures that the data sets used: their scripts draw one of five, so that their sixth is never seen."""


@PERTURBATIONS.register
@dataclass(frozen=True)
class frost(Corruption):  # noqa: N801
    """Frost: x' = a·x + b·picture, where the picture is one of five, cut out at a place drawn for each image.

    The published pictures have no stated licence, so they are read from an installed `imagecorruptions`; where there is
    none, procedural ones take their place: ridged noise, bright along its crystals and dark blue between them. Pictures
    are reduced as in the data sets' scripts, and enlarged where they don't cover the image otherwise. Other channels
    than three get their luminance. Constants: a, b (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    Attributes:
        pictures: `published` or `procedural`; None takes the published ones where they are installed.
    """

    pictures: str | None = None
    constants: ClassVar[Mapping[str, tuple[tuple[float, float, float], ...]]] = {
        "cifar10": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "tiny_imagenet": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        "imagenet": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    }
    scales = 1
