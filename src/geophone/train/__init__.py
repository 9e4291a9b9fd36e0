"""Training: recipes turn a batch into a loss; one loop serves them all."""

# isort: off
# They are listed in the order in which they are registered here.
from geophone.train.recipes import (
    AugMix,
    Corrupted,
    NoiseAugmented,
    SelectivityRegularised,
    Standard,
    Stochastic,
    mean_selectivity,
)
from geophone.train.adversarial import Adversarial, FastAdversarial, Mart, Trades

# isort: on
from geophone.train.loop import Training, fit, initialised, watched
from geophone.train.validation import catastrophic_overfitting, kept, robust_accuracy

__all__ = [
    "Adversarial",
    "AugMix",
    "Corrupted",
    "FastAdversarial",
    "Mart",
    "NoiseAugmented",
    "SelectivityRegularised",
    "Standard",
    "Stochastic",
    "Trades",
    "Training",
    "catastrophic_overfitting",
    "fit",
    "initialised",
    "kept",
    "mean_selectivity",
    "robust_accuracy",
    "watched",
]
