"""The 19 corruptions at 5 severities and 3 sizes: milliseconds for an image, the reference's and ours, in one run."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.compare import seconds
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import draws
from geophone.core.types import Perturbation
from geophone.perturb.corruptions.base import SEVERITIES, preset_for

SIZES = {32: (64, 10_000), 64: (16, 512), 224: (2, 24)}
"""For each side: how many images the reference is timed on, one by one, and how many ours, in one call on a CPU."""
ON_CUDA = 16
"""How many times as many images a GPU is given at once."""


@dataclass(frozen=True)
class Cell:
    """Milliseconds for an image: the reference, ours with its constants (ImageNet-C's), ours with those of the size."""

    reference: float
    ours: float
    own: float


def corruptions(repeats: int, device: str) -> None:
    if find_spec("imagecorruptions") is None:
        print("needs the reference: `pip install imagecorruptions-imaug`")
        return
    import cv2
    import imagecorruptions

    cv2.setNumThreads(torch.get_num_threads())
    names = [name for name in imagecorruptions.get_corruption_names("all") if name in PERTURBATIONS]
    print(f"imagecorruptions-imaug on the CPU, one image at a time; ours on {device}. Each number is the mean over the")
    print(f"five severities of the median of {repeats} repeats, the two timed one after the other.")
    for side, (n, batch) in SIZES.items():
        batch *= 1 if device == "cpu" or side == 32 else ON_CUDA
        photos = photographs(side, batch)
        x = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous().to(device) / 255
        print(f"\n{side} × {side} pixels: reference {n} images, ours {batch}; own preset {preset_for(side, side)}\n")
        print(
            "| corruption | reference, ms | ours, ms | times as fast | at the worst severity | ours, own preset, ms |"
        )
        print("|---|---|---|---|---|---|")
        table = {}
        for name in names:
            table[name] = [timed(name, severity, photos[:n], x, repeats) for severity in SEVERITIES]
            print(row(name, table[name]), flush=True)
        print(row("all", [mean([cells[i] for cells in table.values()]) for i in range(len(SEVERITIES))], len(table)))


def timed(name: str, severity: int, photos: np.ndarray, x: Tensor, repeats: int) -> Cell:
    """The three, in turn; the first round warms up and does not count."""
    import imagecorruptions

    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rng = draws("bench", index=torch.arange(len(x), device=x.device))
    published, own = PERTURBATIONS[name](severity=severity, preset="imagenet"), PERTURBATIONS[name](severity=severity)

    def ours(perturbation: Perturbation) -> None:
        perturbation(x, y, torch.zeros_like, rng)

    def reference() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spatter divides 0 by 0
            for photo in photos:
                imagecorruptions.corrupt(photo, severity, name)

    rounds = [
        (seconds(reference), seconds(lambda: ours(published)), seconds(lambda: ours(own))) for _ in range(repeats + 1)
    ][1:]
    counts = (len(photos), len(x), len(x))
    return Cell(*(1e3 * median(times) / count for times, count in zip(zip(*rounds, strict=True), counts, strict=True)))


def mean(cells: list[Cell]) -> Cell:
    return Cell(*(sum(getattr(cell, field) for cell in cells) / len(cells) for field in ("reference", "ours", "own")))


def row(name: str, cells: list[Cell], count: int = 1) -> str:
    """A line of the table: means over severities, times `count` for a sum over corruptions."""
    middle, faster = mean(cells), [cell.reference / cell.ours for cell in cells]
    theirs, ours, own = (f"{count * number:.4g}" for number in (middle.reference, middle.ours, middle.own))
    return f"| {name} | {theirs} | {ours} | **{middle.reference / middle.ours:.1f}** | {min(faster):.1f} | {own} |"


def photographs(side: int, n: int) -> np.ndarray:
    """Foolbox's photographs, uint8 `[n, side, side, 3]`, over and over: CIFAR-10's at 32 pixels, else ImageNet's."""
    foolbox = find_spec("foolbox")
    assert foolbox is not None, "install foolbox (a development dependency): it brings the photographs"
    files = sorted((Path(str(foolbox.origin)).parent / "data").glob("cifar10_*" if side == 32 else "imagenet_*"))
    pictures = [np.array(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    return np.stack([pictures[i % len(pictures)] for i in range(n)])
