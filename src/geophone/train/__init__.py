"""Training: recipes turn a batch into a loss; one loop serves them all."""

from geophone.train.loop import Training, fit, initialised
from geophone.train.recipes import (
    Adversarial,
    AugMix,
    NoiseAugmented,
    SelectivityRegularised,
    Standard,
    mean_selectivity,
)

__all__ = [
    "Adversarial",
    "AugMix",
    "NoiseAugmented",
    "SelectivityRegularised",
    "Standard",
    "Training",
    "fit",
    "initialised",
    "mean_selectivity",
]
