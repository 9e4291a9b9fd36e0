"""A made-up data set for tests and tutorials: gratings whose class is their orientation."""

import math
from pathlib import Path

import torch

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.core.rng import draws
from geophone.data.dataset import ImageData, Split, assemble


@DATASETS.register
def synthetic(
    root: Path | str | None = None,
    classes: int = 4,
    channels: int = 1,
    size: int = 16,
    train: int = 512,
    val: int = 128,
    test: int = 256,
    noise: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Made-up gratings in noise, for tests and tutorials; the class is the orientation. Any size, made in a moment.

    Example i has the class c = i mod k, and its pixel at (u, v) in [0, 1)² of any channel is

        1/2 + 0.35 sin(2π f (u sin θ + v cos θ) + φ) + noise · z,   θ = π c/k,  f = 2 cycles,

    with the phase φ uniform on ±π/4 and z standard normal, clamped to [0, 1] and rounded to 256 levels.

    Args:
        root: Not used: nothing is read.
        classes: k, at least 2.
        channels: Colour channels; they differ in noise only.
        size: Height and width in pixels.
        train: Examples of the train part.
        val: Examples of the validation part.
        test: Examples of the test part.
        noise: Standard deviation of the noise.
        seed: Other seeds give other phases and noise of the same classes.
    """
    if classes < 2 or min(channels, size, train, val, test) < 1 or noise < 0:
        raise GeophoneError("synthetic needs classes ≥ 2, noise ≥ 0, and channels, size, train, val and test ≥ 1.")
    axis = torch.arange(size) / size
    v, u = torch.meshgrid(axis, axis, indexing="ij")

    def part(name: str, n: int) -> Split:
        index = torch.arange(n)
        y = index % classes
        rng = draws("synthetic", seed, name, index=index)
        theta = (math.pi / classes * y)[:, None, None]
        phase = math.pi / 2 * (rng.uniform("phase", 1, 1) - 0.5)
        wave = torch.sin(4 * math.pi * (u * theta.sin() + v * theta.cos()) + phase)
        x = 0.5 + 0.35 * wave[:, None] + noise * rng.normal("noise", channels, size, size)
        return Split(x.clamp(0, 1).mul(255).round().to(torch.uint8), y, index)

    names = tuple(f"{180 * c / classes:.4g}°" for c in range(classes))
    return assemble("synthetic", names, part("test", test), part("train", train), part("val", val))
