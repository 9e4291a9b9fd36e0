"""Brightness, contrast, saturation and pixelation: bit for bit what the published scripts make of photographs.

Images are compared as whole levels from 0 to 255, without a tolerance.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor

from geophone.core.rng import draws
from geophone.perturb.corruptions.base import quantised
from geophone.perturb.corruptions.digital import (
    _box_resize,
    _from_hsv,
    _to_hsv,
    brightness,
    contrast,
    pixelate,
    saturate,
)
from geophone.testing.perturbation_laws import check_perturbation

SEVERITIES = (1, 2, 3, 4, 5)
NATIVE = {"cifar10": 32, "tiny_imagenet": 64, "imagenet": 224}
BOX = Image.Resampling.BOX

# Copied anew from make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py of hendrycks/robustness.
PUBLISHED: dict[str, dict[str, list[Any]]] = {
    "brightness": {
        "cifar10": [0.05, 0.1, 0.15, 0.2, 0.3],
        "tiny_imagenet": [0.1, 0.2, 0.3, 0.4, 0.5],
        "imagenet": [0.1, 0.2, 0.3, 0.4, 0.5],
    },
    "contrast": {
        "cifar10": [0.75, 0.5, 0.4, 0.3, 0.15],
        "tiny_imagenet": [0.4, 0.3, 0.2, 0.1, 0.05],
        "imagenet": [0.4, 0.3, 0.2, 0.1, 0.05],
    },
    "saturate": {
        "cifar10": [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)],
        "tiny_imagenet": [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)],
        "imagenet": [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)],
    },
    "pixelate": {
        "cifar10": [0.95, 0.9, 0.85, 0.75, 0.65],
        "tiny_imagenet": [0.9, 0.8, 0.7, 0.6, 0.5],
        "imagenet": [0.6, 0.5, 0.4, 0.3, 0.25],
    },
}
OURS = {"brightness": brightness, "contrast": contrast, "saturate": saturate, "pixelate": pixelate}

Corrupt = Callable[[Tensor, Any], Tensor]
"""From images and a severity's constants to corrupted images, before they are quantised."""


@cache
def photographs(side: int, n: int = 20) -> Tensor:
    """Real photographs, uint8 `[n, 3, side, side]`: CIFAR-10's at 32 pixels, ImageNet's at other sizes."""
    found = find_spec("foolbox")
    assert found is not None
    assert found.origin is not None
    kind = "cifar10" if side == 32 else "imagenet"
    files = sorted((Path(found.origin).parent / "data").glob(f"{kind}_*"))[:n]
    pictures = [Image.open(file).convert("RGB").resize((side, side)) for file in files]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def apply(corruption: Any, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return corruption(x, y, torch.zeros_like, draws("test", index=torch.arange(len(x))))


def levels(x: Tensor) -> Tensor:
    """Results as uint8, which they must be."""
    whole = (x.double() * 255).round()
    assert torch.equal((whole / 255).to(x.dtype), x)
    return whole.to(torch.uint8)


def pictures(images: Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())


def tensor(made: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def script(name: str, picture: np.ndarray, c: Any) -> np.ndarray:
    """What the scripts do to one picture, uint8 `[h, w, 3]`, with the constants c."""
    height, width = picture.shape[:2]
    if name == "pixelate":
        small = Image.fromarray(picture).resize((int(width * c), int(height * c)), BOX)
        return np.array(small.resize((width, height), BOX))
    x = picture / 255.0
    if name == "contrast":
        means = np.mean(x, axis=(0, 1), keepdims=True)
        x = (x - means) * c + means
    else:
        x = rgb2hsv(x)
        if name == "brightness":
            x[:, :, 2] = np.clip(x[:, :, 2] + c, 0, 1)
        else:
            x[:, :, 1] = np.clip(x[:, :, 1] * c[0] + c[1], 0, 1)
        x = hsv2rgb(x)
    return np.uint8(np.clip(x, 0, 1) * 255)


def is_the_scripts(name: str, corrupt: Corrupt, preset: str = "tiny_imagenet", n: int = 20) -> None:
    for c in PUBLISHED[name][preset]:
        images = photographs(NATIVE[preset], n)
        expected = tensor([script(name, picture, c) for picture in pictures(images)])
        assert torch.equal(levels(quantised(corrupt(images.float() / 255, c)).float()), expected), c


def ours(name: str) -> Corrupt:
    rng = draws("test", index=torch.arange(1))  # drawn from by none of these
    return lambda x, c: OURS[name]().corrupt(x, rng, c)


@pytest.mark.parametrize("name", OURS)
def test_constants_are_the_published_ones(name: str) -> None:
    assert {preset: list(c) for preset, c in OURS[name].constants.items()} == PUBLISHED[name]


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("name", OURS)
def test_imagenets_preset_is_imagecorruptions_to_the_bit(name: str, side: int) -> None:
    images = photographs(side, 20 if side < 224 else 3)
    for severity in SEVERITIES:
        expected = [imagecorruptions.corrupt(p, corruption_name=name, severity=severity) for p in pictures(images)]
        out = apply(OURS[name](severity=severity, preset="imagenet"), images.float() / 255)
        assert torch.equal(levels(out), tensor(expected)), severity


@pytest.mark.parametrize("preset", ["cifar10", "tiny_imagenet"])
@pytest.mark.parametrize("name", OURS)
def test_other_presets_are_their_scripts_to_the_bit(name: str, preset: str) -> None:
    """And the images' size chooses the preset."""
    images = photographs(NATIVE[preset])
    for severity, c in zip(SEVERITIES, PUBLISHED[name][preset], strict=True):
        expected = tensor([script(name, picture, c) for picture in pictures(images)])
        assert torch.equal(levels(apply(OURS[name](severity=severity), images.float() / 255)), expected)


@pytest.mark.parametrize("name", OURS)
def test_results_do_not_depend_on_dtype(name: str) -> None:
    """An 8-bit image stored as k/255 in any float type is the same image."""
    images = photographs(32)
    expected = levels(apply(OURS[name](), images.float() / 255))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        out = apply(OURS[name](), images.to(dtype) / 255)
        assert out.dtype == dtype
        assert torch.equal((out.double() * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize("name", OURS)
def test_results_do_not_depend_on_the_batch(name: str) -> None:
    """Several chunks of images; some alone, and all backwards, are the same bits. Values off the 8-bit grid too."""
    x = photographs(32).repeat(10, 1, 1, 1).float() / 255
    x = (x + torch.linspace(0, 1e-3, 200)[:, None, None, None]).clamp(0, 1)
    corruption = OURS[name](severity=5)
    whole = apply(corruption, x)
    assert torch.equal(apply(corruption, x.flip(0)).flip(0), whole)
    assert all(torch.equal(apply(corruption, x[i : i + 1]), whole[i : i + 1]) for i in range(0, 200, 9))


@pytest.mark.parametrize("name", OURS)
def test_laws(name: str) -> None:
    broken = check_perturbation(lambda: OURS[name]())
    # Severities 1 and 2 take saturation away, 3 to 5 add it, and the law's random images are saturated already.
    weaker = "levels_grow_stronger: the strongest of [1, 2, 3, 4, 5] moves images less than the weakest"
    assert broken in ([], [weaker] if name == "saturate" else [])


@pytest.mark.parametrize("preset", NATIVE)
@pytest.mark.parametrize("name", OURS)
def test_the_last_severity_moves_photographs_most(name: str, preset: str) -> None:
    x = photographs(NATIVE[preset], 3).float() / 255
    moved = [(apply(OURS[name](severity=s), x) - x).abs().mean().item() for s in SEVERITIES]
    assert min(moved) > 0
    assert max(moved) == moved[-1]


# ---- other numbers of channels, other sizes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_one_channel_is_the_first_of_three_equal_ones(name: str) -> None:
    """As in imagecorruptions: brightness is x + shift, and saturation finds nothing to change."""
    grey = photographs(64)[:, :1].float() / 255
    for severity in SEVERITIES:
        out = apply(OURS[name](severity=severity), grey)
        colour = apply(OURS[name](severity=severity), grey.expand(-1, 3, -1, -1))
        assert torch.equal(out[:, 0], colour[:, 0])
        if name == "saturate":
            assert torch.equal(out, grey)
        else:
            shift = PUBLISHED[name]["tiny_imagenet"][severity - 1]
            wanted = np.uint8(np.clip(photographs(64)[:, :1].numpy() / 255.0 + shift, 0, 1) * 255)
            assert np.array_equal(levels(out).numpy(), wanted)


@pytest.mark.parametrize("channels", [2, 3, 4, 7])
def test_hsv_is_what_it_says_with_any_number_of_channels(channels: int) -> None:
    x = torch.rand(5, channels, 6, 9, generator=torch.Generator().manual_seed(channels), dtype=torch.float64)
    distance, saturation, value = _to_hsv(x)
    top, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    assert torch.allclose(value, top, rtol=0, atol=1e-15)
    assert torch.allclose(saturation, (top - least) / top, rtol=0, atol=1e-14)
    assert torch.allclose(distance, (top - x) / (top - least), rtol=0, atol=1e-12)
    assert torch.allclose(_from_hsv(distance, saturation, value), x, rtol=0, atol=1e-14)


def test_grey_pixels_turn_red_where_saturation_is_added() -> None:
    """Hue 0, as in the data sets. Black stays black, and the first channel stays as it is."""
    grey = torch.tensor([0.0, 0.2, 0.8, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    out = apply(saturate(severity=5, preset="cifar10"), grey)
    assert torch.equal(levels(out)[:, 0], levels(grey)[:, 0])
    assert torch.equal(levels(out)[0, 1:].flatten(1), torch.tensor([[0, 40, 163, 204]] * 2, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 1, 9), (1, 4, 28, 28), (2, 3, 5, 90)])
@pytest.mark.parametrize("name", OURS)
def test_any_shape(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    out = apply(OURS[name](), x)
    assert out.shape == shape
    assert out.isfinite().all()
    levels(out)


def test_contrast_keeps_flat_images() -> None:
    """All 256 of them: a mean that rounds must not cost a level."""
    x = (torch.arange(256.0) / 255).view(-1, 1, 1, 1).expand(-1, 3, 5, 7)
    for severity in SEVERITIES:
        assert torch.equal(apply(contrast(severity=severity), x), x)


def boxes(resize: Callable[[Tensor, int, int], Tensor]) -> None:
    """Every pair of 19 lengths from 1 to 223, down and up, along both axes; random levels, and ones with many ties."""
    generator = np.random.default_rng(0)
    lengths = [*range(1, 13), 20, 28, 31, 32, 64, 100, 223]
    for length in lengths:
        for top in (256, 2):
            picture = generator.integers(0, top, (length, 5)).astype(np.uint8)
            for size in lengths:
                for axis, image in ((2, picture), (3, np.ascontiguousarray(picture.T))):
                    shape = (5, size) if axis == 2 else (size, 5)
                    expected = np.array(Image.fromarray(image).resize(shape, BOX))
                    out = resize(torch.from_numpy(image).float()[None, None], size, axis)[0, 0]
                    assert np.array_equal(out.numpy(), expected), (length, size, axis)


def test_box_resize_is_pillows() -> None:
    boxes(_box_resize)


# ---- each comparison rejects a mistake -------------------------------------------------------------------------------


def adds_to_every_channel(x: Tensor, c: float) -> Tensor:
    return x.double() + c


def brightens_in_float32(x: Tensor, c: float) -> Tensor:
    top = x.amax(1, keepdim=True)
    return torch.where(top > 0, x * ((top + c).clamp(max=1) / top), (top + c).clamp(max=1))


def rounds(x: Tensor, c: float) -> Tensor:
    return ours("brightness")(x, c) + 0.5 / 255


def saturates_in_closed_form(x: Tensor, c: tuple[float, float]) -> Tensor:
    """Right in real numbers, but without the hue's rounding."""
    x = (x * 255).double() / 255
    top, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    saturation = ((top - least) / top).nan_to_num(0) * c[0] + c[1]
    distance = ((top - x) / (top - least)).nan_to_num(1)
    distance[:, :1] = torch.where(top == least, 0, distance[:, :1])
    return top * (1 - saturation.clamp(max=1) * distance)


def leaves_grey_grey(x: Tensor, c: tuple[float, float]) -> Tensor:
    out = ours("saturate")(x, c)
    return torch.where(x.amax(1, keepdim=True) == x.amin(1, keepdim=True), x.double(), out)


def mean_of_all_channels(x: Tensor, c: float) -> Tensor:
    mean = x.double().mean((1, 2, 3), keepdim=True)
    return (x - mean) * c + mean


def pixelates(x: Tensor, c: float, order: tuple[int, ...] = (3, 2), exact: bool = False) -> Tensor:
    level, side = x * 255, x.shape[3]
    for axis in order:
        level = area_mean(level, int(side * c), axis) if exact else _box_resize(level, int(side * c), axis)
    return _box_resize(_box_resize(level, side, 3), side, 2) / 255


def area_mean(level: Tensor, size: int, axis: int) -> Tensor:
    """The mean over each coarse pixel's area: what one would expect of a box filter."""
    length = level.shape[axis]
    fine = level.repeat_interleave(size, axis).unflatten(axis, (size, length)).mean(axis + 1)
    return (fine + 0.5).floor()


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("brightness", adds_to_every_channel),
        ("brightness", brightens_in_float32),
        ("brightness", rounds),
        ("saturate", saturates_in_closed_form),
        ("saturate", leaves_grey_grey),
        ("contrast", mean_of_all_channels),
        ("pixelate", lambda x, c: pixelates(x, c, order=(2, 3))),
        ("pixelate", lambda x, c: pixelates(x, c, exact=True)),
    ],
)
def test_a_mutant_is_not_the_scripts(name: str, mutant: Corrupt) -> None:
    if name == "pixelate":
        is_the_scripts(name, pixelates)
    with pytest.raises(AssertionError):
        is_the_scripts(name, mutant)


def test_weights_of_full_precision_are_not_pillows() -> None:
    """A tenth of 2²² is rounded down, so that Pillow rounds the mean of ten down at a tie."""

    def resize(level: Tensor, size: int, axis: int) -> Tensor:
        out = _box_resize(level, size, axis)
        if level.shape[axis] == 10 * size:
            out = (level.unflatten(axis, (size, 10)).mean(axis + 1) + 0.5).floor()
        return out

    with pytest.raises(AssertionError, match="10"):
        boxes(resize)
