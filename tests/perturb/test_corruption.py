"""The corruptions against scipy, plain loops and closed forms. All in float64, so 1e-12 is rounding."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from geophone.perturb import Brightness, Contrast, GaussianBlur, Pixelate
from geophone.rng import draws, stream

ROUNDING = 1e-12
BOUNDED = settings(deadline=None, max_examples=30, derandomize=True)
SIDES = st.integers(1, 20)


def images(height: int, width: int, n: int = 2, channels: int = 3) -> Tensor:
    generator = stream("images", n, channels, height, width)
    return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)


def corrupt(perturbation: Any, x: Tensor) -> Tensor:
    rng = draws("test", index=torch.arange(len(x)))
    return perturbation(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros_like, rng)


def is_scipys_blur(blur: Any, height: int, width: int, sigma: float) -> None:
    x = images(height, width)
    expected = gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    assert np.allclose(blur(x, sigma), expected, rtol=0, atol=ROUNDING)


def is_block_mean(pixelate: Any, height: int, width: int, block: int) -> None:
    x = images(height, width)
    expected = torch.empty_like(x)
    for top in range(0, height, block):
        for left in range(0, width, block):
            tile = x[:, :, top : top + block, left : left + block]
            expected[:, :, top : top + block, left : left + block] = tile.mean((2, 3), keepdim=True)
    assert torch.allclose(pixelate(x, block), expected, rtol=0, atol=ROUNDING)


def loses_contrast(contrast: Any, loss: float) -> None:
    """Channel means stay, deviations shrink by 1 - loss, and a constant image is itself."""
    x = images(9, 7)
    out = contrast(x, loss)
    assert torch.allclose(out.mean((2, 3)), x.mean((2, 3)), rtol=0, atol=ROUNDING)
    assert torch.allclose(out.std((2, 3)), (1 - loss) * x.std((2, 3)), rtol=0, atol=ROUNDING)
    flat = torch.full((1, 3, 9, 7), 0.3, dtype=torch.float64)
    assert torch.allclose(contrast(flat, loss), flat, rtol=0, atol=ROUNDING)


@given(SIDES, SIDES, st.floats(0, 4))
@BOUNDED
def test_blur_is_scipys(height: int, width: int, sigma: float) -> None:
    is_scipys_blur(lambda x, sigma: corrupt(GaussianBlur(sigma=sigma), x), height, width, sigma)


def test_blur_keeps_a_constant_image() -> None:
    flat = torch.full((1, 3, 9, 7), 0.3, dtype=torch.float64)
    assert torch.allclose(corrupt(GaussianBlur(sigma=2.0), flat), flat, rtol=0, atol=ROUNDING)


@given(SIDES, SIDES, st.integers(1, 24))
@BOUNDED
def test_pixelate_is_the_mean_of_each_block(height: int, width: int, block: int) -> None:
    is_block_mean(lambda x, block: corrupt(Pixelate(block=block), x), height, width, block)


@given(st.floats(0, 1))
@BOUNDED
def test_contrast(loss: float) -> None:
    loses_contrast(lambda x, loss: corrupt(Contrast(loss=loss), x), loss)


def test_contrast_is_imagenet_cs() -> None:
    """Hendrycks' `contrast`: (x - mean) * c + mean, with the mean of each channel and c = 1 - loss."""
    x = images(8, 8, n=1)
    picture = x[0].permute(1, 2, 0).numpy()
    mean = np.mean(picture, axis=(0, 1), keepdims=True)
    expected = np.clip((picture - mean) * 0.4 + mean, 0, 1)
    assert np.allclose(corrupt(Contrast(loss=0.6), x)[0].permute(1, 2, 0), expected, rtol=0, atol=ROUNDING)


@given(st.floats(0, 1))
@BOUNDED
def test_brightness(shift: float) -> None:
    x = images(4, 5)
    assert np.array_equal(corrupt(Brightness(shift=shift), x), np.minimum(x.numpy() + shift, 1))


def convolved(x: Tensor, sigma: float, mode: str = "replicate", truncate: float = 4.0, total: float = 1.0) -> Tensor:
    """A blur by `conv2d`, with a mistake to choose."""
    radius = int(truncate * sigma + 0.5)
    bell = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (torch.outer(bell, bell) / bell.sum() ** 2 * total)[None, None].repeat(3, 1, 1, 1)
    return conv2d(pad(x, (radius,) * 4, mode=mode), kernel, groups=3)


@pytest.mark.parametrize(
    "mistake", [{"mode": "reflect"}, {"mode": "constant"}, {"truncate": 3.0}, {"total": 1 / math.tau}], ids=repr
)
def test_a_mutant_fails_scipys_blur(mistake: dict[str, Any]) -> None:
    is_scipys_blur(convolved, 16, 12, 1.5)
    with pytest.raises(AssertionError):
        is_scipys_blur(lambda x, sigma: convolved(x, sigma, **mistake), 16, 12, 1.5)


def test_a_mutant_fails_the_block_mean() -> None:
    def counts_padding(x: Tensor, block: int) -> Tensor:
        rest = [-side % block for side in x.shape[2:]]
        coarse = avg_pool2d(pad(x, (0, rest[1], 0, rest[0])), block)
        return interpolate(coarse, scale_factor=block, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]

    is_block_mean(counts_padding, 12, 8, 4)
    with pytest.raises(AssertionError):
        is_block_mean(counts_padding, 13, 8, 4)


def test_a_mutant_fails_the_contrast() -> None:
    def towards_grey(x: Tensor, loss: float) -> Tensor:
        return 0.5 + (1 - loss) * (x - 0.5)

    def towards_the_mean_of_all_channels(x: Tensor, loss: float) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (1 - loss) * (x - mean)

    for mutant in (towards_grey, towards_the_mean_of_all_channels):
        with pytest.raises(AssertionError):
            loses_contrast(mutant, 0.5)
