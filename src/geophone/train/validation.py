"""What validation images say after each epoch: how robust it is, which epoch to keep, catastrophic overfitting."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, key
from geophone.core.types import Model, StopsEarly, device_of
from geophone.data import Split
from geophone.models.run import evaluating, full_precision, seeded
from geophone.models.stochastic import is_stochastic, refuse_frozen
from geophone.perturb import FGSM, LinfAPGD, LinfAutoAttack, LinfPGD

Shaken = Callable[[Tensor, Tensor, Model, Draws], Tensor]
"""A perturbation, or a recipe that corrupts as one."""

KEPT = ("best", "robust", "last")
"""Which epoch's network stays: the best clean validation accuracy, the best robust one, or the last."""

COLLAPSE = 0.5
"""The share of the best robust accuracy whose loss is a collapse.

Ordinary training is far from it: robust overfitting costs about a tenth of the best (arXiv:2002.11569), a step of the
learning rate some points. Catastrophic overfitting leaves next to nothing within an epoch or two (arXiv:2001.03994,
2007.02617). Half has room on both sides.
"""

EARNED = 0.05
"""How far above chance robust accuracy must have been: below that there was nothing to lose.

A network that gives every image the same answer is as robust as it is accurate, at chance, and loses that as it learns.
0.05 is over three standard errors of an accuracy of 0.1 on 400 images.
"""


def robust_accuracy(
    model: nn.Module, split: Split, perturbation: Shaken, *, batch_size: int = 256, seed: int = 0
) -> float:
    """Share of the images that are classified right both as they are and perturbed: what was wrong is not robust.

    The same for the same network and seed, in full precision and evaluation mode. Only what is right is perturbed; an
    attack that can leaves an image once it is fooled. Of a stochastic network images are attacked at full strength,
    since one that a lucky draw of the noise fooled may hold in the pass that judges it.

    Raises:
        GeophoneError: there are no images, or the network's noise is frozen.
    """
    refuse_frozen(model, "Robustness")
    if not len(split):
        raise GeophoneError("there are no images to measure robust accuracy on: give at least one.")
    given: Any = perturbation
    perturb: Shaken = given.fool if isinstance(given, StopsEarly) and not is_stochastic(model) else perturbation
    held = 0
    with evaluating(model), full_precision(), seeded(key(seed, "validation"), device_of(model)), torch.no_grad():
        for batch in split.batches(batch_size):
            right = model(batch.x).argmax(1) == batch.y
            x, y, rng = batch.x[right], batch.y[right], draws(seed, "validation", index=batch.index[right])
            if len(x):
                held += int((model(perturb(x, y, model, rng)).argmax(1) == y).sum())
    return held / len(split)


def single_step(perturbation: Shaken | None) -> FGSM | None:
    """FGSM of the same radius, for an attack in the l∞ ball; None for anything else."""
    if isinstance(perturbation, LinfPGD | LinfAPGD | LinfAutoAttack):
        return FGSM(eps=perturbation.eps)
    return None


def kept(history: Sequence[Mapping[str, int | float]], keep: str = "best") -> Mapping[str, int | float]:
    """The record of the epoch whose network stays, as `Training.keep` says; of equally good ones the first."""
    if keep == "last":
        return history[-1]
    return max(history, key=lambda record: record["robust" if keep == "robust" else "accuracy"])


def catastrophic_overfitting(history: Sequence[Mapping[str, int | float]], chance: float = 0.1) -> int | None:
    """The first epoch at which robust accuracy collapsed while a single-step attack saw none of it; None if none.

    With b the best robust validation accuracy of the epochs before, such an epoch has

        b ≥ chance + 0.05,   robust < b/2,   fgsm - robust ≥ b/2

    The first says that there was something to lose. The third tells it from training that breaks down or starts anew,
    which FGSM sees as well: at least half of the best robust accuracy is there in the eyes of one step only. A network
    that never was robust at the end of an epoch is not flagged. Meant for training against attacks in this ball: what
    robustness another network has at first it may lose to several steps before it does to one, and be flagged for that.

    Args:
        history: Records of `fit` with `robust` (several steps) and `fgsm` (one step of the same radius).
        chance: Accuracy of the best constant answer, the share of the largest class.

    References:
        Wong, Rice & Kolter 2020, arXiv:2001.03994; Andriushchenko & Flammarion 2020, arXiv:2007.02617. The thresholds
        are ours.
    """
    best = 0.0
    for record in history:
        if "fgsm" not in record:
            continue
        robust, fgsm = record["robust"], record["fgsm"]
        if best >= chance + EARNED and robust < COLLAPSE * best and fgsm - robust >= COLLAPSE * best:
            return int(record["epoch"])
        best = max(best, robust)
    return None
