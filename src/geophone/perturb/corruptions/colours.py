"""Colours of corruptions that bring their own, for images of any number of channels."""

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.data.dataset import divided

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601), as OpenCV and Pillow turn colours grey."""


def grey(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Luminance of three channels, the mean of any other number.

    Summed channel by channel: a reduction may round differently in another batch.
    """
    weights = LUMINANCE if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    total = torch.zeros_like(x[:, :1])
    for channel, weight in enumerate(weights):
        total += weight * x[:, channel : channel + 1]
    return total


def tint(colour: tuple[int, int, int], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "c 1 1"]:
    """A colour in 256 levels for the channels of x: itself for three of them, else its luminance in each."""
    level = sum(weight * value for weight, value in zip(LUMINANCE, colour, strict=True))
    values = colour if x.shape[1] == 3 else (level,) * x.shape[1]
    return divided(torch.tensor(values, dtype=x.dtype, device=x.device), 255)[:, None, None]
