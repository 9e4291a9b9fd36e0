"""A made-up table with plausible values: 7 recipes x 2 seeds, 6 layers, noise, corruptions, attacks. No network ran."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from geophone.analysis.scores import GROUPS
from geophone.core.table import frame

ALPHAS = {f"SelectivityRegularised(alpha={a})": a for a in (-2, -1, 1, 2)}
RECIPES = ("Standard", *ALPHAS, "Adversarial(eps=0.0314)", "NoiseAugmented(std=0.1)")
LAYERS = ("conv1.relu", "conv2.relu", "block1.relu1", "block1.relu2", "block2.relu1", "block2.relu2")
Conditions = dict[str, tuple[str, tuple[float, ...]]]

SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
NOISES: Conditions = {"GaussianNoise": ("noise", (0.05, 0.1, 0.2)), "SaltAndPepper": ("noise", (0.02, 0.05, 0.1))}
ATTACKS: Conditions = {
    "FGSM": ("attack", (2 / 255, 4 / 255, 8 / 255)),
    "LinfPGD(steps=20)": ("attack", (2 / 255, 4 / 255, 8 / 255)),
    "L2PGD(steps=20)": ("attack", (0.25, 0.5, 1.0)),
}


HARM = {"FGSM": 1.0, "LinfPGD(steps=20)": 1.1, "L2PGD(steps=20)": 1.05}


def corruptions(names: Sequence[str], source: str = "preset='cifar10'") -> Conditions:
    return {f"{name}({source})": ("corruption", SEVERITIES) for name in names}


PERTURBATIONS = {**NOISES, **corruptions(("speckle_noise", "fog", "pixelate")), **ATTACKS}
EVERY = {**NOISES, **corruptions([name for group in GROUPS.values() for name in group]), **ATTACKS}
CURVES: dict[str, tuple[float, ...]] = {
    "LinfPGD(steps=20)": tuple(2.0**power / 255 for power in range(-2, 8)),
    "L2FAB(steps=20)": tuple(0.0625 * 64 ** (place / 9) for place in range(10)),
}
IMAGES, UNITS = 2000, 64


def wilson(rate: float, n: int) -> tuple[float, float]:
    z = 1.959964
    centre, half = rate + z * z / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return float((centre - half) / (1 + z * z / n)), float((centre + half) / (1 + z * z / n))


def make_table(
    recipes: Sequence[str | None] = RECIPES,
    seeds: Sequence[int | None] = (0, 1),
    perturbations: Conditions = PERTURBATIONS,
) -> pl.DataFrame:
    return frame(row for recipe in recipes for seed in seeds for row in _network(recipe, seed, perturbations))


def _network(recipe: str | None, seed: int | None, perturbations: Conditions) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([RECIPES.index(recipe) if recipe else 99, seed or 0])
    alpha = ALPHAS.get(recipe or "", 0)
    hard = {"Adversarial(eps=0.0314)": 0.6, "NoiseAugmented(std=0.1)": 0.15}.get(recipe or "", 0.05 * alpha + 0.1)
    soft = {"Adversarial(eps=0.0314)": 0.2, "NoiseAugmented(std=0.1)": 0.5}.get(recipe or "", 0.2 - 0.06 * alpha)
    clean = 0.885 - 0.008 * alpha**2 - (0.05 if hard > 0.5 else 0) + rng.normal(0, 0.004)
    who = {
        "job": f"job-{recipe}-{seed}",
        "dataset": "fashion_mnist",
        "model": "SmallCNN",
        "recipe": recipe,
        "seed": seed,
        "n": IMAGES,
    }

    def accuracy(family: str, name: str, level: float, rate: float) -> Iterator[dict[str, Any]]:
        at = {**who, "family": family, "perturbation": name, "level": level}
        rate = round(float(np.clip(rate, 0, 1)) * IMAGES) / IMAGES
        low, high = wilson(rate, IMAGES)
        yield {**at, "metric": "accuracy", "value": rate, "low": low, "high": high, "d": 10}
        yield {**at, "metric": "loss", "value": 2.3 * (1 - rate)}
        yield {**at, "metric": "margin", "value": 8 * rate - 4}
        yield {**at, "metric": "class_selectivity", "value": 0.4 + 0.15 * np.tanh(alpha)}

    def layer(
        family: str, name: str, level: float, depth: int, metric: str, value: float, other: str | None = None
    ) -> dict[str, Any]:
        at = {**who, "family": family, "perturbation": name, "level": level, "other": other, "d": UNITS}
        value = max(0.0, value * (1 + rng.normal(0, 0.02)))
        return {**at, "layer": LAYERS[depth], "depth": depth, "metric": metric, "value": value}

    def profile(family: str, name: str, level: float, depth: int, pull: float) -> Iterator[dict[str, Any]]:
        selectivity = (0.25 + 0.08 * depth + 0.12 * np.tanh(alpha)) * (1 - 0.4 * pull)
        fraction = min(1.0, (0.6 - 0.07 * depth - 0.06 * np.tanh(alpha)) * (1 + 0.3 * pull))
        yield layer(family, name, level, depth, "class_selectivity", selectivity)
        yield layer(family, name, level, depth, "class_selectivity_floor", 0.04)
        for share, factor in ((90, 0.7), (95, 1.0), (99, 1.5)):
            yield layer(family, name, level, depth, f"pca_fraction_{share}", min(1.0, fraction * factor))
            yield layer(family, name, level, depth, f"pca_dim_{share}", round(UNITS * min(1.0, fraction * factor)))
        yield layer(family, name, level, depth, "participation_ratio", 22 - 2.5 * depth)
        yield layer(family, name, level, depth, "participation_ratio_corrected", 23 - 2.5 * depth - alpha)
        yield layer(family, name, level, depth, "active_fraction", 0.6 - 0.05 * depth - 0.04 * alpha)
        yield layer(family, name, level, depth, "dead_fraction", 0.01 * depth)

    def curve(name: str, eps: tuple[float, ...], half: float, minimum: bool) -> Iterator[dict[str, Any]]:
        at = {**who, "family": "attack", "perturbation": name, "d": 10}
        for level in eps:
            rate = round(clean / (1 + (level / half) ** 2) * IMAGES) / IMAGES
            low, high = wilson(rate, IMAGES)
            yield {**at, "level": level, "metric": "robust_accuracy", "value": rate, "low": low, "high": high}
        found = half <= eps[-1]
        ends = {"value": half, "low": half / 1.08, "high": half * 1.08} if found else {"note": "beyond"}
        yield {**at, "metric": "half_accuracy_eps", **ends}
        if minimum:
            yield {**at, "metric": "median_minimum_norm", "value": 0.9 * half}

    yield from accuracy("clean", "clean", 0.0, clean)
    for depth in range(len(LAYERS)):
        yield from profile("clean", "clean", 0.0, depth, 0.0)
        for unit in range(3):
            row = layer("clean", "clean", 0.0, depth, "class_selectivity", 0.3)
            yield {**row, "unit": unit}
    for place, (name, (family, levels)) in enumerate(perturbations.items()):
        for level in levels:
            natural = 0.55 + 0.3 * place / len(perturbations)
            strength = level / levels[-1] * (HARM[name] if family == "attack" else natural)
            held = hard if family == "attack" else soft
            rate = clean * (1 - strength * (1 - held)) + rng.normal(0, 0.006)
            yield from accuracy(family, name, level, rate)
            for depth in range(len(LAYERS)):
                grows = (0.15 + 0.17 * depth) if family == "attack" else (0.5 + 0.04 * depth)
                moved = strength * (1 - held) * grows
                yield from profile(family, name, level, depth, min(1.0, moved))
                yield layer(family, name, level, depth, "cka", max(0.0, 1 - moved**1.5), "clean")
                yield layer(family, name, level, depth, "normalised_distance", moved, "clean")
                for share, factor in ((90, 0.8), (95, 1.0), (99, 1.4)):
                    value = min(1.0, factor * (0.5 - 0.06 * alpha) * (0.9 if family == "attack" else 0.6))
                    yield layer(family, name, level, depth, f"difference_fraction_{share}", value, "clean")
                    yield layer(family, name, level, depth, f"difference_dim_{share}", round(value * UNITS), "clean")
    for name, eps in CURVES.items():
        yield from curve(name, eps, 0.08 * (hard + 0.03) ** 0.5 / (1 if "Linf" in name else 0.06), "FAB" in name)
    dead = recipe is not None and alpha == 2
    notes = {
        "check.inputs": (0.0, "Inputs lie in [0, 1]."),
        "check.dead_layers": (
            float(dead),
            "block2.relu2 has 41 % dead units: its geometry is that of the others.",
        ),
        "check.chance": (0.0, "Clean accuracy is above chance."),
    }
    for metric, (value, note) in notes.items():
        at = {**who, "family": "clean", "perturbation": "clean", "level": 0.0}
        yield {**at, "metric": metric, "value": value, "note": note}
