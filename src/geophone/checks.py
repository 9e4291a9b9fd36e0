"""Checks that stop a wrong claim: what can be wrong with a measurement, and with the robustness that it shows.

`checks` reads the table of a measurement; `attack_checks` runs small attacks. Both give rows of the table.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl
import torch

from geophone.data import Split
from geophone.record import WEIGHTED, activation_layers, layers_of, logits_of, unwrapped
from geophone.types import Model, device_of, evaluating, full_precision


def checks(model: Model, split: Split, rows: pl.DataFrame, classes: int | None = None) -> Iterator[dict[str, Any]]:
    """What can be wrong with a measurement: one row each, value 1 for a problem, with a sentence for the reader."""
    clean = rows.filter(pl.col("family") == "clean", pl.col("unit").is_null())
    for name, problem, fine in (
        _chance(clean),
        _classes(clean, classes or int(split.y.max()) + 1),
        _range(split),
        _normalisation(model, split),
        _activations(model),
        _dead_layers(clean),
        _samples(clean),
    ):
        yield {
            "metric": f"check.{name}",
            "value": float(problem is not None),
            "note": problem or fine,
            "n": len(split),
        }


Check = tuple[str, str | None, str]
"""A check's name, the sentence for a problem (None when there is none), and the sentence for when all is well."""


def _chance(clean: pl.DataFrame) -> Check:
    row = clean.filter(pl.col("metric") == "accuracy").row(0, named=True)
    chance = 1 / row["d"]
    found = f"clean accuracy is {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], chance is {chance:.3f}"
    problem = None
    if row["low"] <= chance:
        problem = (
            f"Not above chance: {found}. Check that labels and classes match, that the weights were loaded, and that "
            "the images are scaled as in training."
        )
    return "chance_accuracy", problem, f"Above chance: {found}."


def _classes(clean: pl.DataFrame, classes: int) -> Check:
    logits = clean.filter(pl.col("metric") == "accuracy").row(0, named=True)["d"]
    problem = None
    if logits != classes:
        problem = (
            f"The network gives {logits} logits and the data have {classes} classes: check that label i of the data is "
            "output i of the network (folders are numbered in alphabetical order)."
        )
    return "classes", problem, f"The network gives as many logits as the data have classes, {classes}."


def _range(split: Split) -> Check:
    low, high = (float(v) / (255 if split.x.dtype == torch.uint8 else 1) for v in (split.x.min(), split.x.max()))
    problem = None
    if high - low < 0.5:
        problem = (
            f"The images use only [{low:.3f}, {high:.3f}] of [0, 1]: they may be scaled twice, and then every level "
            "here is too large for them."
        )
    return "image_range", problem, f"The images fill [{low:.3f}, {high:.3f}] of [0, 1]."


def _normalisation(model: Model, split: Split) -> Check:
    """Does the network do better when the images are standardised outside it? Then it expects that."""
    part = split.take(min(len(split), 1000)).to(device_of(model))
    with evaluating(model), full_precision(), torch.no_grad():
        x = torch.cat([batch.x for batch in part.batches(256)])
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp(min=1e-6)

        def accuracy(images: torch.Tensor) -> float:
            answers = [logits_of(model, chunk).argmax(1) for chunk in images.split(256)]
            return float((torch.cat(answers) == part.y).double().mean())

        raw, standardised = accuracy(x), accuracy((x - mean) / std)
    found = f"accuracy {raw:.3f} on images in [0, 1], {standardised:.3f} on standardised ones ({len(part)} images)"
    problem = None
    # 0.05 is beyond the 95 % interval of a difference of two shares of 1,000 images (at most 0.044).
    if standardised > raw + 0.05:
        problem = (
            f"The network seems to expect normalised images: {found}. Put the normalisation inside, as its first layer "
            "(geophone.models.Normalise), so that levels and eps mean what they say."
        )
    return "normalisation_outside", problem, f"No sign of normalisation outside the network: {found}."


def _activations(model: Model) -> Check:
    names = layers_of(model)
    activations, recorded = len(activation_layers(model)), len(names)
    weighted = sum(isinstance(module, WEIGHTED) for module in unwrapped(model).modules()) - 1
    found = f"{activations} activation modules and {recorded - activations} others for {weighted} weighted layers"
    problem = None
    if activations == 0 or 2 * recorded < weighted:
        problem = (
            f"Layers are missing: by default {found} can be recorded ({', '.join(names[:8]) or 'none'}). A function "
            "such as F.relu is no layer: its output is recorded only as that of the module that calls it. Use nn.ReLU "
            "modules to record each one, or name the modules to record (--layers)."
        )
    return "activation_modules", problem, f"Activations can be recorded: {found}."


def _dead_layers(clean: pl.DataFrame) -> Check:
    rows = clean.filter(pl.col("metric") == "dead_fraction", pl.col("value") >= 0.5).sort("depth")
    problem = None
    if len(rows):
        worst = ", ".join(f"{r['layer']} ({r['value']:.0%} of {r['d']} units)" for r in rows.head(5).to_dicts())
        problem = f"Dead layers: half or more of the units answer the same to every image in {worst}."
    return "dead_layers", problem, "No layer has half of its units dead."


def _samples(clean: pl.DataFrame) -> Check:
    rows = clean.filter(pl.col("metric") == "participation_ratio", pl.col("n") < 5 * pl.col("d")).sort(
        "d", descending=True
    )
    problem = None
    if len(rows):
        row = rows.row(0, named=True)
        problem = (
            f"Too few images for the width: {row['n']} images for {row['d']} units in {row['layer']} "
            f"({len(rows)} such layers). Dimensions are then biased down (at least 5 images per unit are advised); "
            "trust participation_ratio_corrected and cka, which are corrected for it."
        )
    return "samples_for_width", problem, "Every layer has at least 5 images per unit."
