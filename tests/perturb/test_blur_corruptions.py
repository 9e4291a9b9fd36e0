"""The blurs against imagecorruptions, SciPy, OpenCV, plain loops and ImageMagick.

Results are levels 0 … 255: the exact value truncated. A blur raises its values by SLACK before that, since float32
would otherwise lose whole levels to rounding; its errors and those of the references are below SLACK. So a level is
right if it is at least the exact value's and at most that of a value 2·SLACK higher.
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import imagecorruptions.corruptions as reference
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate, gaussian_filter, zoom
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from geophone.core.rng import draws, stream
from geophone.perturb.corruptions import blur, filters
from geophone.perturb.corruptions.base import Corruption
from geophone.testing.perturbation_laws import check_perturbation

SLACK = 2.0**-12
IMAGEMAGICK = 1 / 514  # half a step of its 16 bits, in levels
BLURS = [blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur, blur.gaussian_blur]
FIXED = [blur.defocus_blur, blur.zoom_blur, blur.gaussian_blur]
names = {"ids": lambda thing: getattr(thing, "__name__", str(thing))}
Blur = Callable[[Tensor], Tensor]


def photographs(side: int, count: int) -> Tensor:
    """Photographs [n, 3, side, side] of float32."""
    folder = Path(find_spec("foolbox").origin).parent / "data"  # importing it warns
    files = sorted(folder.glob("imagenet_*"))[:count]
    pictures = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BOX) for file in files]
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in pictures])


def random_images(n: int, c: int, h: int, w: int) -> Tensor:
    """Levels at random, but for one flat image."""
    levels = torch.randint(0, 256, (n, c, h, w), generator=stream("images", n, c, h, w))
    levels[0] = 200
    return levels.float() / 255


def apply(perturbation: Corruption, x: Tensor, index: Tensor | None = None) -> Tensor:
    index = torch.arange(len(x)) if index is None else index
    return perturbation(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros_like, draws("test", index=index))


def in_levels(x: Tensor) -> np.ndarray:
    levels = x.double() * 255
    assert torch.allclose(levels, levels.round(), rtol=0, atol=1e-4), "not in levels"
    return levels.round().numpy()


def is_truncated(out: Tensor, exact: np.ndarray, slack: float = SLACK) -> None:
    """Levels `out` are `exact` values (in units of levels) truncated."""
    levels, exact = in_levels(out), np.clip(exact, 0, 255)
    assert (levels >= np.floor(exact)).all(), f"{(levels < np.floor(exact)).mean():.2%} are too low"
    assert (levels <= np.floor(exact + 2 * slack)).all(), (
        f"{(levels > np.floor(exact + 2 * slack)).mean():.2%} too high"
    )


# --- Laws ---


@pytest.mark.parametrize("cls", BLURS, **names)
def test_laws(cls: type[Corruption]) -> None:
    assert check_perturbation(lambda: cls()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **names)
@pytest.mark.parametrize("cls", BLURS, **names)
def test_an_image_is_the_same_in_every_batch_to_the_bit(
    cls: type[Corruption], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its neighbours, its place, the chunks or how x lies in memory; rows don't fill vector registers."""
    for shape, preset in (((9, 3, 7, 5), "imagenet"), ((9, 1, 13, 33), "tiny_imagenet"), ((9, 3, 32, 32), "imagenet")):
        x = random_images(*shape).to(dtype)
        perturbation = cls(severity=4, preset=preset)
        whole = apply(perturbation, x)
        for rows in ([0], [8], [3, 1], [7, 6, 5], [2, 8, 0, 4, 1], [8, 7, 6, 5, 4, 3, 2, 1, 0]):
            index = torch.tensor(rows)
            assert torch.equal(apply(perturbation, x[index], index), whole[index])
        with monkeypatch.context() as patch:
            patch.setattr(cls, "chunk", 4 * x[0].numel())
            assert torch.equal(apply(perturbation, x), whole)
        assert torch.equal(apply(perturbation, x.contiguous(memory_format=torch.channels_last)), whole)


# --- Whole levels ---


def keeps_flat_images(cls: type[Corruption], dtype: torch.dtype) -> None:
    x = (torch.arange(256, dtype=torch.float64) / 255).to(dtype).view(-1, 1, 1, 1)
    for preset, constants in cls.constants.items():
        for severity, values in enumerate(constants, start=1):
            if cls is blur.defocus_blur and values[0] >= 8:
                continue  # these kernels' sum isn't 1
            for shape in ((12, 9), (1, 1)):
                flat = x.expand(-1, 1, *shape).contiguous()
                assert torch.equal(apply(cls(severity=severity, preset=preset), flat), flat), (preset, severity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **names)
@pytest.mark.parametrize("cls", BLURS, **names)
def test_flat_images_keep_each_of_the_256_levels(cls: type[Corruption], dtype: torch.dtype) -> None:
    keeps_flat_images(cls, dtype)


@pytest.mark.parametrize("cls", [blur.zoom_blur, blur.gaussian_blur, blur.motion_blur], **names)
def test_mere_truncation_would_lose_levels(cls: type[Corruption], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blur, "_truncatable", lambda x, *_, **__: x)
    with pytest.raises(AssertionError):
        keeps_flat_images(cls, torch.float32)


# --- The deterministic blurs ---


def middle(sizes: Sequence[int], crops: Sequence[int]) -> tuple[slice, ...]:
    starts = [(size - crop) // 2 for size, crop in zip(sizes, crops, strict=True)]
    return tuple(slice(start, start + crop) for start, crop in zip(starts, crops, strict=True))


def oracle(name: str, picture: np.ndarray, values: Any) -> np.ndarray:
    """A published blur of one channel [h, w] in float64, from SciPy's and OpenCV's parts."""
    if name == "gaussian_blur":
        return gaussian_filter(picture, values, mode="nearest", truncate=4.0)
    if name == "defocus_blur":
        radius, sigma = values
        reach = max(8, int(radius))
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disk = np.array(x**2 + y**2 <= radius**2, dtype=np.float64)
        taps = (3, 3) if radius <= 8 else (5, 5)
        return correlate(picture, cv2.GaussianBlur(disk / disk.sum(), taps, sigma), mode="mirror")
    factors = np.arange(1, *values)
    total = picture.copy()
    for factor in factors:
        crops = [math.ceil(size / factor) for size in picture.shape]
        large = zoom(picture[middle(picture.shape, crops)], factor, order=1)
        total += large[middle(large.shape, picture.shape)]
    return total / (len(factors) + 1)


def is_published(cls: type[Corruption], preset: str, blurred: Callable[[int, Tensor], Tensor], x: Tensor) -> None:
    for severity, values in enumerate(cls.constants[preset], start=1):
        exact = [[oracle(cls.__name__, channel, values) for channel in one] for one in x.double().numpy()]
        is_truncated(blurred(severity, x), np.array(exact) * 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **names)
@pytest.mark.parametrize("preset", ["cifar10", "tiny_imagenet", "imagenet"])
@pytest.mark.parametrize("cls", FIXED, **names)
def test_blur_is_the_published_one(cls: type[Corruption], preset: str, dtype: torch.dtype) -> None:
    """At any size: kernels reach over the edges of the smallest images several times."""
    side = {"cifar10": 32, "tiny_imagenet": 64, "imagenet": 64}[preset]
    for x in (photographs(side, 1), random_images(2, 1, 7, 5), random_images(2, 2, 20, 33), random_images(2, 1, 1, 2)):
        is_published(
            cls, preset, lambda severity, x: apply(cls(severity=severity, preset=preset), x.to(dtype)), x.to(dtype)
        )


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("cls", FIXED, **names)
def test_blur_is_imagecorruptions(cls: type[Corruption], side: int) -> None:
    """Pixel by pixel, before theirs is truncated; theirs has ImageNet-C's constants at every size."""
    x = photographs(side, 6 if side < 224 else 1)
    for severity in range(1, 6):
        pictures = [Image.fromarray((one.permute(1, 2, 0) * 255).round().byte().numpy()) for one in x]
        exact = np.stack([getattr(reference, cls.__name__)(one, severity) for one in pictures]).transpose(0, 3, 1, 2)
        is_truncated(apply(cls(severity=severity, preset="imagenet"), x), exact)


def test_the_preset_follows_from_the_size() -> None:
    for side, preset in ((32, "cifar10"), (64, "tiny_imagenet"), (65, "imagenet")):
        x = random_images(1, 1, side, 9)
        for cls in BLURS:
            assert torch.equal(apply(cls(), x), apply(cls(preset=preset), x))


MUTANTS: dict[str, tuple[type[Corruption], Callable[[pytest.MonkeyPatch], None]]] = {
    "rounds instead of truncating": (
        blur.gaussian_blur,
        lambda patch: patch.setattr(blur, "_truncatable", lambda x, *_, **__: x + 0.5 / 255),
    ),
    "another border": (
        blur.gaussian_blur,
        lambda patch: patch.setattr(
            filters, "padded", lambda x, margin, axis, mode, good=filters.padded: good(x, margin, axis, "mirror")
        ),
    ),
    "a border that repeats the edge": (
        blur.defocus_blur,
        lambda patch: patch.setattr(
            filters, "padded", lambda x, margin, axis, mode, good=filters.padded: good(x, margin, axis, "nearest")
        ),
    ),
    "a disk without its smooth edge": (
        blur.defocus_blur,
        lambda patch: patch.setattr(blur, "disk_parts", lambda r, _, good=blur.disk_parts: good(r, 0.01)),
    ),
    "a disk that the grid's edge does not mirror": (
        blur.defocus_blur,
        lambda patch: patch.setattr(blur, "disk_parts", without_edges),
    ),
    "one magnification too few": (
        blur.zoom_blur,
        lambda patch: patch.setattr(
            blur.zoom_blur,
            "constants",
            {"imagenet": tuple((limit - step, step) for limit, step in blur.zoom_blur.constants["imagenet"])},
        ),
    ),
    "a crop off the centre": (
        blur.zoom_blur,
        lambda patch: patch.setattr(
            filters, "clipped_zoom", lambda x, factor, good=filters.clipped_zoom: good(x.roll(1, 2), factor).roll(-1, 2)
        ),
    ),
}


def without_edges(radius: float, sigma: float, good: Callable[..., Any] = blur.disk_parts) -> Any:
    smooth, rings, area = good(radius, sigma)
    zeros = [0.0] * len(rings[0].edge_row)
    return smooth, [ring._replace(edge_row=zeros, edge_column=zeros) for ring in rings], area


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_not_the_published_blur(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, change = MUTANTS[mutant]
    x = torch.cat((photographs(64, 1), torch.full((1, 3, 64, 64), 100 / 255)))
    constants = dict(cls.constants)
    is_published(cls, "imagenet", lambda severity, x: apply(cls(severity=severity, preset="imagenet"), x), x)
    change(monkeypatch)
    found = [apply(cls(severity=severity, preset="imagenet"), x) for severity in range(1, 6)]
    monkeypatch.setattr(cls, "constants", constants)
    with pytest.raises(AssertionError):
        is_published(cls, "imagenet", lambda severity, _: found[severity - 1], x)


# --- Motion blur ---

ANGLES = (-44.0, -20.3, 0.0, 7.7, 31.0, 45.0, -60.0, -90.0, -132.5)


def along_a_line(picture: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur of one channel, pixel by pixel."""
    h, w = picture.shape
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    out = np.zeros_like(picture)
    for i, weight in enumerate(weights):
        rows = np.clip(np.arange(h) + math.ceil(i * sine - 0.5), 0, h - 1)
        columns = np.clip(np.arange(w) + math.ceil(i * cosine - 0.5), 0, w - 1)
        out += weight / sum(weights) * picture[rows][:, columns]
    return out


def is_along_a_line(blurred: Callable[..., Tensor]) -> None:
    """With values in [0, 1], float32 sums of up to 41 terms are exact to 41·2^-24."""
    for shape in ((9, 2, 12, 17), (9, 1, 2, 3)):
        x = random_images(*shape)
        for radius, sigma in ((3, 1.0), (20, 15.0)):
            out = blurred(x, radius, sigma, torch.tensor(ANGLES))
            for one, picture, angle in zip(out, x.double().numpy(), ANGLES, strict=True):
                exact = [along_a_line(channel, radius, sigma, angle) for channel in picture]
                assert np.abs(one.numpy() - np.array(exact)).max() < 41 * 2**-24


def test_motion_blur_goes_along_each_images_own_line() -> None:
    is_along_a_line(filters.motion_blur)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda x, r, s, a: filters.motion_blur(x, r, s, -a),
        lambda x, r, s, a: filters.motion_blur(x, r, s, 90 - a),
        lambda x, r, s, a: filters.motion_blur(x, r, s, a + 180),
        lambda x, r, s, a: filters.motion_blur(x, r, s, a.roll(1)),
        lambda x, r, s, a: filters.motion_blur(x, r - 1, s, a),
        lambda x, r, s, a: (filters.motion_blur(x, r, s, a) + filters.motion_blur(x, r, s, a + 180)) / 2,
    ],
    ids=["downside up", "transposed", "backwards", "another image's", "a tap short", "two-sided"],
)
def test_a_mutant_goes_along_another_line(mutant: Callable[..., Tensor]) -> None:
    with pytest.raises(AssertionError):
        is_along_a_line(mutant)


def test_motion_blur_is_imagemagicks() -> None:
    """What ImageMagick 6.9.11-60 (Q16) makes of a small grey picture by `MagickMotionBlurImage`, level by level."""
    i, j = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    picture = ((37 * i**2 + 101 * j + 13 * i * j) % 256)[None, None] / 255
    found = [
        [
            [42, 146, 147, 99, 186, 151, 120, 163],
            [95, 79, 71, 143, 157, 113, 113, 54],
            [100, 108, 90, 68, 94, 63, 73, 19],
            [131, 141, 161, 171, 103, 83, 103, 54],
            [162, 170, 88, 118, 126, 119, 148, 105],
            [138, 135, 170, 124, 120, 144, 76, 39],
        ],
        [
            [96, 116, 140, 143, 163, 183, 160, 195],
            [108, 133, 75, 168, 193, 130, 199, 151],
            [121, 46, 162, 127, 139, 111, 112, 68],
            [64, 141, 106, 142, 108, 64, 73, 34],
            [134, 171, 162, 59, 113, 81, 99, 64],
            [161, 100, 138, 125, 105, 173, 112, 81],
        ],
        [
            [0, 65, 165, 101, 112, 212, 148, 159],
            [8, 76, 120, 119, 133, 176, 175, 129],
            [42, 56, 109, 111, 131, 123, 185, 88],
            [57, 83, 93, 154, 123, 75, 193, 57],
            [68, 111, 123, 106, 125, 87, 179, 89],
            [93, 132, 131, 129, 96, 130, 149, 95],
        ],
    ]
    for levels, (radius, sigma, angle) in zip(found, ((3, 1.5, 30.0), (2, 2.0, -40.0), (5, 3.0, -100.0)), strict=True):
        blurred = filters.motion_blur(picture, radius, sigma, torch.tensor([angle]))
        raised = blur._truncatable(blurred, slack=IMAGEMAGICK)
        assert torch.equal(raised.mul(255).floor()[0, 0], torch.tensor(levels).float())


def test_motion_blur_is_imagecorruptions_along_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs larger than the blur: on smaller ones, theirs drops taps and gets darker."""
    angles: list[Tensor] = []
    good = filters.motion_blur
    monkeypatch.setattr(filters, "motion_blur", lambda x, r, s, angle: (angles.append(angle), good(x, r, s, angle))[1])
    x = photographs(64, 20)
    for severity in range(1, 6):
        out = apply(blur.motion_blur(severity=severity, preset="imagenet"), x)
        radius, sigma = blur.motion_blur.constants["imagenet"][severity - 1]
        pictures = (x * 255).round().permute(0, 2, 3, 1).byte().numpy()
        drawn = [
            reference._motion_blur(one, radius, sigma, angle)
            for one, angle in zip(pictures, torch.cat(angles).tolist(), strict=True)
        ]
        angles.clear()
        is_truncated(out, np.stack(drawn).transpose(0, 3, 1, 2), IMAGEMAGICK)


def test_motion_blurs_angles_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[Tensor] = []
    monkeypatch.setattr(filters, "motion_blur", lambda x, r, s, angle: (angles.append(angle), x)[1])
    apply(blur.motion_blur(), torch.zeros(4000, 1, 1, 1))
    drawn = torch.cat(angles).sort().values
    assert drawn.min() >= -45
    assert drawn.max() < 45
    # Kolmogorov and Smirnov's distance exceeds 1.95/√n with probability 0.001.
    assert ((drawn + 45) / 90 - torch.linspace(0, 1, 4000)).abs().max() < 1.95 / math.sqrt(4000)


# --- Glass blur ---


def one_after_another(move: np.ndarray, reach: int, height: int, width: int, swap: bool = False) -> np.ndarray:
    """The published loops on numbered pixels; a true swap is what they look like."""
    pixels = np.arange(height * width).reshape(height, width)
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            dy, dx = move[h - reach - 1, w - reach - 1]
            old = int(pixels[h, w])
            pixels[h, w] = pixels[h + dy, w + dx]
            if swap:
                pixels[h + dy, w + dx] = old
    return pixels.flatten()


def are_copied(copied: Callable[..., np.ndarray]) -> None:
    generator = np.random.default_rng(0)
    for height, width, reach in ((3, 3, 1), (9, 8, 1), (5, 30, 2), (32, 20, 4)):
        moves = generator.integers(-reach, reach, (3, height - 2 * reach, width - 2 * reach, 2))
        numbers = torch.from_numpy(moves[..., 0] * width + moves[..., 1])
        found = blur.copied_from(numbers, reach, height, width).numpy()
        assert (found == [copied(move, reach, height, width) for move in moves]).all()


def test_pixels_are_copied_one_after_another() -> None:
    are_copied(one_after_another)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda move, *shape: one_after_another(move, *shape, swap=True),
        lambda move, *shape: one_after_another(move[::-1, ::-1], *shape),
        lambda move, *shape: one_after_another(np.minimum(move, 0), *shape),
    ],
    ids=["swapped", "in another order", "without chains"],
)
def test_a_mutant_copies_others(mutant: Callable[..., np.ndarray]) -> None:
    with pytest.raises(AssertionError):
        are_copied(mutant)


def test_numpys_swap_of_pixels_copies() -> None:
    """The published line `x[h, w], x[h', w'] = x[h', w'], x[h, w]` on an image of several channels."""
    x = np.arange(12).reshape(2, 2, 3)
    x[0, 0], x[1, 1] = x[1, 1], x[0, 0]
    assert (x[0, 0] == x[1, 1]).all()


@pytest.mark.parametrize("preset", ["cifar10", "tiny_imagenet", "imagenet"])
def test_glass_blur_is_the_published_one_along_the_same_moves(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blurs with a level cut between, and each round's copies on the result of the one before."""
    moves: list[np.ndarray] = []
    good = blur.copied_from
    monkeypatch.setattr(blur, "copied_from", lambda move, *shape: (moves.append(move.numpy()), good(move, *shape))[1])
    side = {"cifar10": 32, "tiny_imagenet": 64, "imagenet": 48}[preset]
    x = photographs(side, 2)
    for severity, (sigma, reach, times) in enumerate(blur.glass_blur.constants[preset], start=1):
        moves.clear()
        out = apply(blur.glass_blur(severity=severity, preset=preset), x)
        assert len(moves) == times
        exact = np.empty(x.shape)
        for n, picture in enumerate(x.double().numpy()):
            soft = np.floor(gaussian_filter(picture, (0, sigma, sigma), mode="nearest") * 255 + SLACK)
            for move in moves:
                steps = np.stack(((move[n] + reach + side * reach) // side - reach, 0 * move[n]), -1)
                steps[..., 1] = move[n] - side * steps[..., 0]
                soft = soft.reshape(3, -1)[:, one_after_another(steps, reach, side, side)].reshape(picture.shape)
            exact[n] = gaussian_filter(soft, (0, sigma, sigma), mode="nearest")
        is_truncated(out, exact)


def test_glass_blurs_moves_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """All (2·reach)² moves in every round alike; the moves of two rounds are independent."""
    moves: list[Tensor] = []
    good = blur.copied_from
    monkeypatch.setattr(blur, "copied_from", lambda move, *shape: (moves.append(move), good(move, *shape))[1])
    for severity, (_, reach, times) in enumerate(blur.glass_blur.constants["imagenet"], start=1):
        moves.clear()
        apply(blur.glass_blur(severity=severity, preset="imagenet"), torch.zeros(4, 1, 50, 50))
        allowed = [dy * 50 + dx for dy in range(-reach, reach) for dx in range(-reach, reach)]
        rounds = [torch.searchsorted(torch.tensor(allowed), move.flatten()) for move in moves]
        pairs = [rounds[0]] if times == 1 else [rounds[0] * len(allowed) + rounds[1]]
        for cells in (*rounds, *pairs):
            size = len(allowed) if cells is not pairs[0] or times == 1 else len(allowed) ** 2
            counts = torch.bincount(cells, minlength=size).double()
            mean = counts.sum() / size
            chi2 = ((counts - mean) ** 2 / mean).sum()
            # Of mean size - 1 and variance 2·(size - 1); 5 deviations.
            assert abs(chi2 - (size - 1)) < 5 * math.sqrt(2 * (size - 1))


def test_glass_blur_of_images_without_inner_pixels_only_blurs() -> None:
    x = random_images(3, 3, 8, 20)
    soft = filters.gaussian_filter(x, 1.5).mul(255).add(SLACK).floor().div(255)
    is_truncated(
        apply(blur.glass_blur(severity=5, preset="imagenet"), x), filters.gaussian_filter(soft, 1.5).numpy() * 255.0
    )


# --- The random blurs, on photographs ---


def statistics(x: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """For each photograph: mean, deviation, two bands of the spectrum (in dB), PSNR and SSIM to the clean one."""
    found = []
    for one, before in zip(x.astype(float), clean, strict=True):
        grey = one.mean(-1)
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(len(grey))] * 2))
        edges = ((0.05, 0.15), (0.15, 0.35))
        bands = [10 * np.log10(power[(frequency > low) & (frequency <= high)].mean()) for low, high in edges]
        psnr = peak_signal_noise_ratio(before, one, data_range=255)
        ssim = structural_similarity(before.astype(float), one, data_range=255, channel_axis=-1)
        found.append([one.mean(), one.std(), *bands, psnr, ssim])
    return np.array(found)


def are_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means over photographs differ by less than 5 standard errors, of differences photograph by photograph."""
    gap = ours - theirs
    error = gap.std(0, ddof=1) / math.sqrt(len(gap))
    assert (np.abs(gap.mean(0)) < 5 * error + 1e-9).all(), gap.mean(0) / error


@pytest.mark.parametrize("name", ["motion_blur", "glass_blur"])
def test_random_blurs_look_like_imagecorruptions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each severity, and unlike another one. 64 pixels: more than any of the blurs reaches."""
    shuffle = reference._shuffle_pixels_njit_glass_blur
    monkeypatch.setattr(reference, shuffle.__name__, shuffle.py_func)  # compiling it takes longer
    np.random.seed(0)  # noqa: NPY002 - the reference's own generator
    x = photographs(64, 10)
    clean = (x * 255).round().permute(0, 2, 3, 1).byte().numpy()
    found: list[np.ndarray] = []
    for severity in (1, 2, 5):
        options = {"seed": severity} if name == "glass_blur" else {}
        pictures = [np.uint8(getattr(reference, name)(Image.fromarray(one), severity, **options)) for one in clean]
        theirs = statistics(np.stack(pictures), clean)
        out = apply(getattr(blur, name)(severity=severity, preset="imagenet"), x)
        ours = statistics((out * 255).round().permute(0, 2, 3, 1).numpy(), clean)
        are_alike(ours, theirs)
        for other in found:
            with pytest.raises(AssertionError):
                are_alike(other, theirs)
        found.append(ours)
