"""Elastic transform against the published scripts' steps in OpenCV, SciPy and scikit-image, given the same draws.

`imagecorruptions` is no reference here: it leaves out the affine map and has constants of its own.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d, map_coordinates
from skimage.filters import gaussian
from torch import Tensor
from torch.nn.functional import grid_sample

from geophone.core.rng import draws, stream
from geophone.perturb.corruptions import elastic
from geophone.perturb.corruptions.elastic import elastic_transform
from geophone.testing.perturbation_laws import check_perturbation

SEVERITIES = (1, 2, 3, 4, 5)
NATIVE = {"cifar10": 32, "tiny_imagenet": 64, "imagenet": 224}

# Copied anew from make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py of hendrycks/robustness: in pixels.
PUBLISHED = {
    "cifar10": [
        (32 * 0, 32 * 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ],
    "tiny_imagenet": [
        (64 * 0, 64 * 0, 64 * 0.08),
        (64 * 0.05, 64 * 0.3, 64 * 0.06),
        (64 * 0.1, 64 * 0.08, 64 * 0.06),
        (64 * 0.1, 64 * 0.03, 64 * 0.03),
        (64 * 0.16, 64 * 0.03, 64 * 0.02),
    ],
    "imagenet": [
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ],
}


@cache
def photographs(side: int, n: int = 8) -> Tensor:
    """Real photographs, uint8 `[n, 3, side, side]`: CIFAR-10's up to 32 pixels, ImageNet's at other sizes."""
    found = find_spec("foolbox")
    assert found is not None
    assert found.origin is not None
    kind = "cifar10" if side <= 32 else "imagenet"
    files = sorted((Path(found.origin).parent / "data").glob(f"{kind}_*"))[:n]
    pictures = [Image.open(file).convert("RGB").resize((side, side)) for file in files]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def apply(corruption: Any, x: Tensor, start: int = 0) -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return corruption(x, y, torch.zeros_like, draws("test", index=start + torch.arange(len(x))))


def warp_by_scipy(picture: np.ndarray, matrix: np.ndarray, mode: str = "mirror") -> np.ndarray:
    """Where OpenCV may round a place to 1/32 pixel, this doesn't."""
    height, width = picture.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[:height, :width]
    places = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))[::-1]
    channels = [map_coordinates(channel, places, order=1, mode=mode) for channel in np.moveaxis(picture, 2, 0)]
    return np.stack(channels, axis=2)


def warp_by_opencv(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(picture, matrix, picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)


def script(
    picture: np.ndarray,
    c: tuple[float, float, float],
    points: np.ndarray,
    field: np.ndarray,
    warp: Callable[[np.ndarray, np.ndarray], np.ndarray] = warp_by_scipy,
    mode: str = "reflect",
    truncate: float = 3.0,
    moved_from: bool = False,
    swapped: bool = False,
) -> np.ndarray:
    """The scripts' steps, with their draws (in [-1, 1]) given; the last four arguments make mistakes."""
    image = picture.astype(np.float32) / 255.0
    size = image.shape[:2]
    center = np.float32(size) // 2
    square = min(size) // 3
    fixed = np.float32([center + square, [center[0] + square, center[1] - square], center - square])
    moved = fixed + (points * c[2]).astype(np.float32)
    image = warp(image, cv2.getAffineTransform(*((moved, fixed) if moved_from else (fixed, moved))))
    dx, dy = ((gaussian(u, c[1], mode="reflect", truncate=truncate) * c[0]).astype(np.float32) for u in field)
    y, x = np.mgrid[: size[0], : size[1]]
    places = (x + dx, y + dy) if swapped else (y + dy, x + dx)
    channels = [map_coordinates(channel, places, order=1, mode=mode) for channel in np.moveaxis(image, 2, 0)]
    return np.uint8(np.clip(np.stack(channels), 0, 1) * 255)


def expected(x: Tensor, c: tuple[float, float, float], **mistake: Any) -> np.ndarray:
    rng = draws("test", index=torch.arange(len(x)))
    points = 2 * rng.uniform("points", 3, 2).double().numpy() - 1
    fields = 2 * rng.uniform("field", 2, *x.shape[2:]).double().numpy() - 1
    pictures = x.permute(0, 2, 3, 1).contiguous().numpy()
    return np.stack([script(*one, **mistake) for one in zip(pictures, [c] * len(x), points, fields, strict=True)])


def is_the_scripts(side: int, preset: str, n: int, share: float = 1e-3, **mistake: Any) -> None:
    """Up to rounding: few values end on the other side of a level's border, by one level.

    Ours has 2⁻¹² of a level more, so a share of 2.4e-4 crosses; places are float32, off by up to 2⁻²⁴·224 = 1.3e-5
    pixels, which moves a value where neighbours are 50 levels apart by 7e-4 of one. Together less than 1e-3.
    """
    x = photographs(side, n)
    for severity, c in zip(SEVERITIES, PUBLISHED[preset], strict=True):
        scaled = tuple(constant * side / NATIVE[preset] for constant in c)
        out = apply(elastic_transform(severity=severity, preset=preset), x.float() / 255)
        gap = np.abs((out * 255).round().numpy() - expected(x, scaled, **mistake))
        assert (gap > 0).mean() < share, severity
        assert gap.max() <= 1, severity


@pytest.mark.parametrize(("side", "preset", "n"), [(32, "cifar10", 8), (64, "tiny_imagenet", 8), (224, "imagenet", 2)])
def test_images_are_the_scripts(side: int, preset: str, n: int) -> None:
    is_the_scripts(side, preset, n)


@pytest.mark.parametrize(("side", "preset", "n"), [(28, "cifar10", 8), (48, "tiny_imagenet", 4), (96, "imagenet", 2)])
def test_constants_go_with_the_side_of_the_image(side: int, preset: str, n: int) -> None:
    is_the_scripts(side, preset, n)


@pytest.mark.parametrize("side", [32, 64])
def test_affine_map_is_opencvs(side: int) -> None:
    """Severity 1, where no field is: OpenCV before 5 rounds places to 1/32 pixel, 5 does not.

    So a value is off by up to 1/64 of the difference of its neighbours along each axis, at most 2·255/64 levels.
    """
    x = photographs(side)
    preset = "cifar10" if side == 32 else "tiny_imagenet"
    out = (apply(elastic_transform(severity=1), x.float() / 255) * 255).round().numpy()
    gap = out - expected(x, PUBLISHED[preset][0], warp=warp_by_opencv)
    assert np.abs(gap).max() <= 9
    assert np.abs(gap).mean() < 0.5
    assert np.abs(gap.mean()) < 0.05


@pytest.mark.parametrize(
    "mistake",
    [
        {"warp": lambda picture, matrix: picture},
        {"warp": lambda picture, matrix: warp_by_scipy(picture, matrix, mode="reflect")},
        {"mode": "mirror"},
        {"mode": "nearest"},
        {"truncate": 4.0},
        {"moved_from": True},
        {"swapped": True},
    ],
)
def test_a_mutant_is_not_the_scripts(mistake: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        is_the_scripts(32, "cifar10", 4, **mistake)


def test_constants_are_the_published_ones() -> None:
    for preset, side in NATIVE.items():
        ours = np.array(elastic_transform.constants[preset]) * side
        assert np.allclose(ours, PUBLISHED[preset], rtol=1e-14, atol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_flat_images_stay(severity: int) -> None:
    """All 256 of them: a weighted mean of equal levels must not round to the level below."""
    x = (torch.arange(256.0) / 255).view(-1, 1, 1, 1).expand(-1, 1, 24, 20)
    for preset in NATIVE:
        assert torch.equal(apply(elastic_transform(severity=severity, preset=preset), x), x), preset


def test_results_do_not_depend_on_the_batch() -> None:
    """Several chunks of images; each alone, and all backwards, are the same bits."""
    x = torch.rand(60, 3, 40, 36, generator=stream("images"))
    y, index = torch.zeros(60, dtype=torch.int64), torch.arange(60)
    for severity in (2, 4):
        corruption = elastic_transform(severity=severity)
        whole = apply(corruption, x)
        back = corruption(x.flip(0), y, torch.zeros_like, draws("test", index=index.flip(0))).flip(0)
        assert torch.equal(back, whole)
        assert all(torch.equal(apply(corruption, x[i : i + 1], start=i), whole[i : i + 1]) for i in range(60))


def test_channels_move_together() -> None:
    """Any number of them, each as it would alone."""
    x = torch.rand(3, 5, 20, 30, generator=stream("images"))
    whole = apply(elastic_transform(), x)
    for channel in range(5):
        assert torch.equal(apply(elastic_transform(), x[:, channel : channel + 1]), whole[:, channel : channel + 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_results_hardly_depend_on_dtype(dtype: torch.dtype) -> None:
    """An 8-bit image stored as k/255 in any float type is the same image, up to the rounding of float32."""
    x = photographs(32)
    wanted = (apply(elastic_transform(), x.float() / 255) * 255).round()
    out = apply(elastic_transform(), x.to(dtype) / 255)
    assert out.dtype == dtype
    gap = ((out.double() * 255).round() - wanted).abs()
    assert gap.max() <= 1
    assert (gap > 0).double().mean() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 9), (1, 2, 2, 2), (2, 1, 28, 28), (2, 3, 90, 31)])
@pytest.mark.parametrize("preset", NATIVE)
def test_any_shape(shape: tuple[int, ...], preset: str) -> None:
    x = torch.rand(shape, generator=stream("images"))
    for severity in (2, 5):
        out = apply(elastic_transform(severity=severity, preset=preset), x)
        assert out.shape == shape
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


def test_laws() -> None:
    assert check_perturbation(lambda: elastic_transform()) == []


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 60), (60, 31)])
def test_affine_map_takes_the_moved_points_back(height: int, width: int) -> None:
    """The grid is affine, so three of its entries say where any place comes from."""
    n, jitter = 20, 2.5
    rng = draws("test", index=torch.arange(n))
    grid = elastic._affine(height, width, jitter, rng).double()
    places = (grid + 1) * (torch.tensor([width, height]) - 1) / 2
    origin, right, down = places[:, 0, 0], places[:, 0, -1], places[:, -1, 0]
    arm = min(height, width) // 3
    points = torch.tensor([[arm, arm], [arm, -arm], [-arm, -arm]]) + torch.tensor([width // 2, height // 2])
    moved = points + (2 * rng.uniform("points", 3, 2).double() - 1) * jitter
    for k in range(3):
        x, y = moved[:, k, :1], moved[:, k, 1:]
        back = origin + (right - origin) * x / (width - 1) + (down - origin) * y / (height - 1)
        assert torch.allclose(back, points[k].expand_as(back).double(), rtol=0, atol=1e-4)
    assert torch.allclose(places[:, -1, -1], right + down - origin, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "sigma"), [(1, 0.5), (7, 0.9), (32, 6.4), (64, 19.2), (50, 40.0), (224, 2.44)])
def test_smoothing_is_scipys(size: int, sigma: float) -> None:
    """To 2⁻³³ a weight; where the kernel is wider than the image, several taps sum to a weight."""
    matrix = elastic._smoothing(size, sigma, torch.device("cpu"))
    wanted = gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3.0)
    assert np.allclose(matrix.numpy(), wanted, rtol=0, atol=2**-33 + 1e-15)
    for mistake in ({"truncate": 4.0}, {"mode": "mirror"}, {"mode": "nearest"}):
        mutant = gaussian_filter1d(np.eye(size), sigma, axis=0, **({"mode": "reflect", "truncate": 3.0} | mistake))
        assert size == 1 or not np.allclose(matrix, mutant, rtol=0, atol=2**-33 + 1e-15)


@pytest.mark.parametrize(("size", "sigma"), [(64, 19.2), (224, 170.8), (224, 2.44)])
def test_sums_of_the_smoothing_are_exact(size: int, sigma: float) -> None:
    """In whole numbers of any size the same comes out: so no order of summing can change it."""
    weights = elastic._smoothing(size, sigma, torch.device("cpu")).mul(2**32)
    assert torch.equal(weights, weights.round())
    noise = torch.randint(-(2**20), 2**20 + 1, (40, size), generator=stream("noise"))
    noise[0], noise[1] = 2**20, -(2**20)  # the largest sums that can be
    product = noise.double() @ elastic._smoothing(size, sigma, torch.device("cpu")).T
    exact = noise.numpy().astype(object) @ weights.long().numpy().astype(object).T
    assert all(int(a * 2**32) == b for a, b in zip(product.flatten().tolist(), exact.ravel(), strict=True))


def test_displacement_has_the_size_that_the_docstring_says() -> None:
    """Amplitude/(2·√(3π)·width) far from the edges, where white noise of variance 1/3 is smoothed in two dimensions.

    200 images × 2 × (64/2.44√(4π))² independent patches: √(1/2n) is under .005; the cut at 3 sigma adds under 1 %.
    """
    amplitude, sigma = 12.2, 2.44
    grid = elastic._displaced(64, 64, amplitude, sigma, draws("test", index=torch.arange(200)))
    at = (torch.arange(64) * 2 + 1) / 64 - 1
    shift = (grid - torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=2)) * 32
    inner = shift[:, 8:-8, 8:-8].double()
    assert inner.std().item() == pytest.approx(amplitude / (2 * math.sqrt(3 * math.pi) * sigma), rel=0.03)
    assert abs((inner[..., 0] * inner[..., 1]).mean().item()) < 0.05 * inner.var().item()


def test_both_maps_mirror_as_they_should() -> None:
    """Half a pixel beyond the edge: without the edge repeated, the mean of both; with it, the edge itself."""
    x = torch.tensor([[[[8.0, 4.0, 0.0]]]])
    ends = {True: torch.tensor([6.0]), False: torch.tensor([8.0])}
    for corners, wanted in ends.items():
        place = (2 * -0.5 / 2 - 1) if corners else (2 * -0.5 + 1) / 3 - 1
        grid = torch.tensor([[[[place, 0.0]]]])
        out = grid_sample(x, grid, padding_mode="reflection", align_corners=corners)
        assert torch.allclose(out.flatten(), wanted)
