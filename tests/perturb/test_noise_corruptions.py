"""The four noises: value by value against NumPy and SciPy with the same draws, and in distribution.

There `imagecorruptions` is the reference, with ImageNet-C's constants. Distributions are compared by Welch's statistic,
the difference of two means in units of its standard error. Chance makes 5 of these once in 10⁶, and draws are fixed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor

from geophone.core.rng import Draws, draws
from geophone.perturb.corruptions import noise
from geophone.perturb.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from geophone.testing.perturbation_laws import check_perturbation

SEVERITIES = (1, 2, 3, 4, 5)
BOUND = 5.0
"""Standard errors that a difference by chance stays below."""

# Copied anew from make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py of hendrycks/robustness.
PUBLISHED = {
    "gaussian_noise": {
        "cifar10": [0.04, 0.06, 0.08, 0.09, 0.10],
        "tiny_imagenet": [0.04, 0.08, 0.12, 0.15, 0.18],
        "imagenet": [0.08, 0.12, 0.18, 0.26, 0.38],
    },
    "shot_noise": {
        "cifar10": [500, 250, 100, 75, 50],
        "tiny_imagenet": [250, 100, 50, 30, 15],
        "imagenet": [60, 25, 12, 5, 3],
    },
    "impulse_noise": {
        "cifar10": [0.01, 0.02, 0.03, 0.05, 0.07],
        "tiny_imagenet": [0.01, 0.02, 0.05, 0.08, 0.14],
        "imagenet": [0.03, 0.06, 0.09, 0.17, 0.27],
    },
    "speckle_noise": {
        "cifar10": [0.06, 0.1, 0.12, 0.16, 0.2],
        "tiny_imagenet": [0.15, 0.2, 0.25, 0.3, 0.35],
        "imagenet": [0.15, 0.2, 0.35, 0.45, 0.6],
    },
}
OURS: dict[str, Any] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
}
RATES = sorted({float(rate) for rates in PUBLISHED["shot_noise"].values() for rate in rates})


@cache
def photographs(side: int, n: int = 8) -> Tensor:
    """Real photographs, uint8 `[n, 3, side, side]`: CIFAR-10's at 32 pixels, ImageNet's at other sizes."""
    found = find_spec("foolbox")
    assert found is not None
    assert found.origin is not None
    kind = "cifar10" if side == 32 else "imagenet"
    files = sorted((Path(found.origin).parent / "data").glob(f"{kind}_*"))[:n]
    pictures = [Image.open(file).convert("RGB").resize((side, side)) for file in files]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def apply(corruption: Any, x: Tensor, seed: str = "test") -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return corruption(x, y, torch.zeros_like, draws(seed, index=torch.arange(len(x))))


def levels(x: Tensor) -> np.ndarray:
    """Results as uint8, which they must be."""
    whole = (x.double() * 255).round()
    assert torch.equal((whole / 255).to(x.dtype), x)
    return whole.to(torch.uint8).numpy()


# ---- value by value, with the same draws -----------------------------------------------------------------------------


def quantiles(z: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Poisson quantiles at Φ(z) by SciPy, from the nearer tail."""
    z, mean = np.broadcast_arrays(z, mean)
    low, out = z < 0, np.empty(z.shape)
    out[low] = stats.poisson.ppf(stats.norm.cdf(z[low]), mean[low])
    out[~low] = stats.poisson.isf(stats.norm.sf(z[~low]), mean[~low])
    return np.maximum(out, 0)


def script(name: str, picture: np.ndarray, c: float, rng: Draws) -> np.ndarray:
    """What the scripts do to uint8 images, in float64 and with our draws."""
    x = picture / 255.0
    z = rng.normal("noise", *x.shape[1:]).double().numpy()
    if name == "gaussian_noise":
        out = x + c * z
    elif name == "speckle_noise":
        out = x + x * (c * z)
    elif name == "shot_noise":
        out = quantiles(z, x * c) / c
    else:
        u = rng.uniform("noise", *x.shape[1:]).double().numpy()
        out = np.where(u < c / 2, 0, np.where(u > 1 - c / 2, 1, x))
    return np.uint8(np.clip(out, 0, 1) * 255)


def is_the_scripts(name: str, made: Callable[[Tensor, Any], Tensor], x: Tensor, preset: str) -> None:
    """Up to rounding: few values end on the other side of a level's border, by one level (a count, for shot noise).

    Gaussian and speckle noise are computed in float32: x + c·z is off by up to 2⁻²³, which is 3e-5 levels, so a share
    of up to 6e-5 crosses. Of the counts of shot noise fewer differ (see the test of quantiles). How many is Poisson.
    """
    for severity, c in zip(SEVERITIES, PUBLISHED[name][preset], strict=True):
        expected = script(name, x.numpy(), c, draws("test", index=torch.arange(len(x))))
        out = levels(made(x.float() / 255, OURS[name](severity=severity, preset=preset)))
        gap = np.abs(out.astype(int) - expected)
        step = math.ceil(255 / c) if name == "shot_noise" else 1
        assert gap.max() <= (0 if name == "impulse_noise" else step), severity
        assert (gap > 0).sum() <= stats.poisson.isf(1e-6, 6e-5 * gap.size), severity


def ours(x: Tensor, corruption: Any) -> Tensor:
    return apply(corruption, x)


@pytest.mark.parametrize("name", OURS)
def test_constants_are_the_published_ones(name: str) -> None:
    assert {preset: list(c) for preset, c in OURS[name].constants.items()} == PUBLISHED[name]


@pytest.mark.parametrize("preset", ["cifar10", "tiny_imagenet", "imagenet"])
@pytest.mark.parametrize("name", OURS)
def test_values_are_the_scripts(name: str, preset: str) -> None:
    is_the_scripts(name, ours, photographs(32, 3 if name == "shot_noise" else 20), preset)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", OURS)
def test_any_number_of_channels(name: str, channels: int) -> None:
    is_the_scripts(name, ours, photographs(32, 2)[:, [0, 1, 2, 1]][:, :channels, :28, :20], "cifar10")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_results_hardly_depend_on_dtype(name: str, dtype: torch.dtype) -> None:
    """An 8-bit image stored as k/255 in any float type is the same to impulse and shot noise; the others round it.

    Half a unit in the last place of 1/2 to 1 is 255·2⁻¹² levels in float16 and 255·2⁻⁹ in bfloat16: one at most.
    """
    x = photographs(32)
    expected = apply(OURS[name](), x.float() / 255) * 255
    out = apply(OURS[name](), x.to(dtype) / 255)
    assert out.dtype == dtype
    gap = ((out.double() * 255).round() - expected.round()).abs()
    if name in ("impulse_noise", "shot_noise"):
        assert gap.max() == 0
    assert gap.max() <= 1
    assert (gap > 0).double().mean() <= (0.6 if dtype == torch.bfloat16 else 0.08)


@pytest.mark.parametrize("name", OURS)
def test_results_do_not_depend_on_the_batch(name: str) -> None:
    """Sixty-four images are several chunks; each alone, and all backwards, are the same bits."""
    x = photographs(32).repeat(8, 1, 1, 1).float() / 255
    y, index = torch.zeros(64, dtype=torch.int64), torch.arange(64) + 7
    corruption = OURS[name]()
    whole = corruption(x, y, torch.zeros_like, draws("test", index=index))
    back = corruption(x.flip(0), y, torch.zeros_like, draws("test", index=index.flip(0))).flip(0)
    assert torch.equal(back, whole)
    for i in range(0, 64, 5):
        alone = corruption(x[i : i + 1], y[:1], torch.zeros_like, draws("test", index=index[i : i + 1]))
        assert torch.equal(alone, whole[i : i + 1])


@pytest.mark.parametrize("name", OURS)
def test_laws(name: str) -> None:
    assert check_perturbation(lambda: OURS[name]()) == []


# ---- Poisson counts --------------------------------------------------------------------------------------------------


def are_quantiles(poisson: Callable[[float, Tensor, Tensor], Tensor]) -> None:
    """All 256 means of all rates, at 100 z that a normal draw is likely to have and 100 to the ends of its range.

    A count is wrong only where z is next to a step of it: z and the table are float32, whose rounding at up to 700 is
    3e-5, three of which make 1e-4 of the distance of two steps.
    """
    ends = np.linspace(-6.7, 6.7, 100)
    z = np.concatenate([stats.norm.ppf((np.arange(100) + 0.5) / 100), ends]).astype(np.float32)
    level = torch.arange(256.0)[None, None, :, None].expand(1, 1, 256, len(z))
    for rate in RATES:
        counts = poisson(rate, level, torch.from_numpy(z).expand(1, 1, 256, -1).clone())[0, 0].numpy()
        expected = quantiles(z.astype(np.float64)[None], np.arange(256)[:, None] * (rate / 255))
        assert np.abs(counts - expected).max() <= 1, rate
        assert (counts != expected).mean() <= 1e-4, rate


def test_counts_are_poisson_quantiles() -> None:
    are_quantiles(noise._poisson)


@pytest.mark.parametrize("mean", [0.05, 0.9, 4.0, 12.0, 100.0, 400.0])
def test_counts_are_poisson(mean: float) -> None:
    """Mean m, variance m (whose sample value has variance (m + 2m²)/n), and the whole distribution by χ²."""
    rate = min(rate for rate in RATES if rate >= mean)
    level = round(255 * mean / rate)
    mean, n = level * rate / 255, 200_000
    z = draws("counts", index=torch.arange(1)).normal("z", 1, 1, n)
    counts = noise._poisson(rate, torch.full((1, 1, 1, n), float(level)), z)[0, 0, 0].double().numpy()
    assert abs(counts.mean() - mean) <= BOUND * math.sqrt(mean / n)
    assert abs(counts.var() - mean) <= BOUND * math.sqrt((mean + 2 * mean**2) / n)
    edges = np.unique(stats.poisson.ppf(np.linspace(0, 1, 30)[1:-1], mean))
    wanted = np.diff(stats.poisson.cdf(np.concatenate([[-1], edges, [np.inf]]), mean)) * n
    seen = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    assert stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(edges)) > 1e-6


def test_ratios_of_counts_are_truncated_as_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every count of every rate: 1/3 is level 85, neither 84 nor 86."""
    for preset, rates in PUBLISHED["shot_noise"].items():
        for severity, rate in zip(SEVERITIES, rates, strict=True):
            counts = torch.arange(2.0 * rate + 1).view(1, 1, 1, -1)
            monkeypatch.setattr(noise, "_poisson", lambda *_, counts=counts: counts.clone())
            out = apply(shot_noise(severity=severity, preset=preset), torch.zeros(1, 1, 1, int(2 * rate) + 1))
            assert np.array_equal(levels(out), np.uint8(np.clip(counts.double().numpy() / rate, 0, 1) * 255)), rate


def test_shot_noise_rounds_to_256_levels_first() -> None:
    """Values between two levels are counted like the nearer one. Black has no noise."""
    x = photographs(32).double()
    shifted = (x + 0.4 * torch.sin(x)).clamp(0, 255) / 255
    assert torch.equal(apply(shot_noise(), shifted), apply(shot_noise(), x / 255))
    assert not apply(shot_noise(severity=5, preset="imagenet"), torch.zeros(2, 3, 8, 8)).any()


# ---- impulse noise ---------------------------------------------------------------------------------------------------


def test_impulses_have_the_published_share() -> None:
    """Binomial: half of the share each is salt and pepper, and the channels of a pixel are hit independently."""
    x = torch.full((200, 3, 32, 32), 100 / 255)
    for severity, share in zip(SEVERITIES, PUBLISHED["impulse_noise"]["imagenet"], strict=True):
        out = apply(impulse_noise(severity=severity, preset="imagenet"), x)
        salt, pepper = out == 1, out == 0
        assert torch.equal(out[~(salt | pepper)], x[~(salt | pepper)])
        pixels = 200 * 32 * 32
        for hit, wanted, n in (
            (salt, share / 2, 3 * pixels),
            (pepper, share / 2, 3 * pixels),
            ((salt | pepper)[:, 0] & (salt | pepper)[:, 1], share**2, pixels),
            (salt[:, 1] & pepper[:, 2], share**2 / 4, pixels),
        ):
            assert abs(hit.sum().item() - n * wanted) <= BOUND * math.sqrt(n * wanted * (1 - wanted)), severity


def test_what_a_lower_severity_hits_a_higher_one_hits_too() -> None:
    x = torch.full((4, 3, 32, 32), 100 / 255)
    outs = [apply(impulse_noise(severity=severity), x) for severity in SEVERITIES]
    for weaker, stronger in pairwise(outs):
        assert torch.equal(stronger[weaker != x], weaker[weaker != x])


# ---- as distributions, against the reference -------------------------------------------------------------------------


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The reference draws from NumPy's global state."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@cache
def reference(name: str, severity: int, side: int, which: int, n: int) -> np.ndarray:
    """One photograph, n times corrupted, `[n, 3, side, side]`."""
    picture = photographs(side)[which].permute(1, 2, 0).contiguous().numpy()
    with seeded(severity):
        made = [
            imagecorruptions.corrupt(
                picture,
                corruption_name=name,
                severity=severity,
                **({"seed": 1000 * severity + i} if name == "impulse_noise" else {}),
            )
            for i in range(n)
        ]
    return np.stack(made).transpose(0, 3, 1, 2)


def welch(a: np.ndarray, b: np.ndarray) -> float:
    """How many standard errors the means over the first axis are apart, at most over the others."""
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    gap = np.abs(a.mean(0) - b.mean(0))
    return float(np.max(gap / np.maximum(error, 1e-9)))


def measures(out: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Of each noisy image: mean and squared distance to the clean one, and both in eight classes of clean level;

    products of neighbouring and of channels' differences; power of the difference in eight bands of spatial frequency.
    """
    gap = out.astype(float) - clean
    order = np.argsort(clean.ravel(), kind="stable")
    classes = np.array_split(gap.reshape(len(gap), -1)[:, order], 8, axis=1)
    centred = gap - gap.mean(0)
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in clean.shape[1:]), indexing="ij"))
    power = np.abs(np.fft.fft2(centred)) ** 2
    band = np.digitize(frequency, np.quantile(frequency, np.linspace(0, 1, 9)[1:-1]))
    return np.stack(
        [
            gap.mean((1, 2, 3)),
            (gap**2).mean((1, 2, 3)),
            *(part.mean(1) for part in classes),
            *((part**2).mean(1) for part in classes),
            (centred[..., 1:] * centred[..., :-1]).mean((1, 2, 3)),
            (centred[:, 0] * centred[:, 1]).mean((1, 2)),
            *(power[:, :, band == b].mean((1, 2)) for b in range(8)),
        ],
        axis=1,
    )


def is_distributed_as_the_reference(name: str, made: Callable[[Tensor, Any], Tensor], severity: int) -> None:
    n, which = 120, 3
    clean = photographs(32)[which]
    x = (clean.float() / 255).expand(n, -1, -1, -1)
    out = levels(made(x, OURS[name](severity=severity, preset="imagenet")))
    expected = reference(name, severity, 32, which, n)
    assert welch(measures(out, clean.numpy()), measures(expected, clean.numpy())) < BOUND
    # Every value: the means of n draws each differ by chance alone. The sum of their squared differences is the sum of
    # the variances, to √(2/m), m the number of values that count: (sum of variances)² over the sum of their squares.
    variance = (out.var(0, ddof=1) + expected.var(0, ddof=1)) / n
    excess = ((out.mean(0) - expected.mean(0)) ** 2).sum() / variance.sum() - 1
    assert abs(excess) < BOUND * math.sqrt(2 * (variance**2).sum()) / variance.sum()


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", OURS)
def test_distribution_is_the_references(name: str, severity: int) -> None:
    is_distributed_as_the_reference(name, ours, severity)


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("name", OURS)
def test_psnr_and_ssim_are_the_references(name: str, side: int) -> None:
    """Of every severity, over a few draws: PSNR to 0.1 dB, SSIM to 0.01, and both to BOUND standard errors.

    The PSNR of one draw of so many values varies by some 0.03 dB (4.3·√(2/12288) at 64 pixels), that of six by less.
    """
    n = 6 if side == 64 else 3
    for severity in SEVERITIES if side == 64 else (1, 5):
        clean = photographs(side)[1]
        x = (clean.float() / 255).expand(n, -1, -1, -1)
        both = [levels(apply(OURS[name](severity=severity, preset="imagenet"), x))]
        both.append(reference(name, severity, side, 1, n))
        psnr, ssim = (
            [np.array([measure(one, clean.numpy()) for one in images]) for images in both]
            for measure in (decibels, similarity)
        )
        assert abs(psnr[0].mean() - psnr[1].mean()) < 0.1, severity
        assert abs(ssim[0].mean() - ssim[1].mean()) < 0.01, severity
        assert welch(np.concatenate(psnr[:1]), np.concatenate(psnr[1:])) < 2 * BOUND, severity  # Student's t of few
        assert welch(np.concatenate(ssim[:1]), np.concatenate(ssim[1:])) < 2 * BOUND, severity


def decibels(image: np.ndarray, clean: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((image.astype(float) - clean) ** 2).mean()))


def similarity(image: np.ndarray, clean: np.ndarray) -> float:
    return float(structural_similarity(image, clean, channel_axis=0))


# ---- each comparison rejects a mistake -------------------------------------------------------------------------------


def truncated(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).floor() / 255


def normal(x: Tensor, *shape: int) -> Tensor:
    return draws("test", index=torch.arange(len(x))).normal("noise", *(shape or x.shape[1:]))


def rounds(x: Tensor, corruption: Any) -> Tensor:
    std = corruption.constants["imagenet"][corruption.severity - 1]
    return ((x + std * normal(x)).clamp(0, 1) * 255).round() / 255


def two_percent_more(x: Tensor, corruption: Any) -> Tensor:
    return truncated(x + 0.1836 * normal(x))


def one_noise_for_all_channels(x: Tensor, corruption: Any) -> Tensor:
    return truncated(x + 0.18 * normal(x, 1, *x.shape[2:]))


def smooth(x: Tensor, corruption: Any) -> Tensor:
    z = normal(x)
    return truncated(x + 0.18 * (0.995 * z + 0.0999 * z.roll(1, 3)))


def same_noise_for_all(x: Tensor, corruption: Any) -> Tensor:
    return truncated(x + 0.18 * normal(x[:1]))


def gaussian_counts(x: Tensor, corruption: Any) -> Tensor:
    return truncated(x + (x / 12).sqrt() * normal(x))


def rounded_counts(x: Tensor, corruption: Any) -> Tensor:
    return truncated((12 * x + (12 * x).sqrt() * normal(x)).round().clamp(min=0) / 12)


def hits_whole_pixels(x: Tensor, corruption: Any) -> Tensor:
    u = draws("test", index=torch.arange(len(x))).uniform("noise", 1, *x.shape[2:])
    return truncated(torch.where(u < 0.045, 0.0, torch.where(u > 0.955, 1.0, x)))


def speckle_of_the_root(x: Tensor, corruption: Any) -> Tensor:
    return truncated(x + x.sqrt() * 0.35 * normal(x))


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("gaussian_noise", rounds),
        ("gaussian_noise", two_percent_more),
        ("gaussian_noise", one_noise_for_all_channels),
        ("gaussian_noise", smooth),
        ("gaussian_noise", same_noise_for_all),
        ("shot_noise", gaussian_counts),
        ("shot_noise", rounded_counts),
        ("impulse_noise", hits_whole_pixels),
        ("speckle_noise", speckle_of_the_root),
    ],
)
def test_a_mutant_is_not_distributed_as_the_reference(name: str, mutant: Callable[[Tensor, Any], Tensor]) -> None:
    with pytest.raises(AssertionError):
        # Half a level more in the mean is 5 standard errors only where the noise is weak.
        is_distributed_as_the_reference(name, mutant, severity=1 if mutant is rounds else 3)


@pytest.mark.parametrize(("name", "mutant"), [("gaussian_noise", rounds), ("shot_noise", rounded_counts)])
def test_a_mutant_is_not_the_scripts(name: str, mutant: Callable[[Tensor, Any], Tensor]) -> None:
    with pytest.raises(AssertionError):
        is_the_scripts(name, mutant, photographs(32, 2), "imagenet")


def test_coarser_cells_are_not_poisson(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a count grows by two within a cell, the table has no room for it."""
    noise._offsets.cache_clear()
    monkeypatch.setattr(noise, "_cells", lambda rate: math.ceil(14 * math.sqrt(rate) / 1.5))
    with pytest.raises(AssertionError):
        are_quantiles(noise._poisson)
    noise._offsets.cache_clear()
