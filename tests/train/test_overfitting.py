"""Catastrophic overfitting: made-up courses that must and must not be flagged, and a real one."""

from dataclasses import replace

import pytest
from torch import nn

from geophone.data import fashion_mnist_mini
from geophone.models.networks import Normalise
from geophone.train import Adversarial, FastAdversarial, Training, catastrophic_overfitting, fit, initialised


def course(robust, fgsm=None, offset=0.05):
    fgsm = [r + offset for r in robust] if fgsm is None else fgsm
    return [
        {"epoch": i + 1, "loss": 1.0, "accuracy": 0.9, "robust": r, "fgsm": f}
        for i, (r, f) in enumerate(zip(robust, fgsm, strict=True))
    ]


@pytest.mark.parametrize(
    ("history", "epoch"),
    [
        (course([0.30, 0.40, 0.44, 0.00, 0.00], [0.40, 0.50, 0.52, 0.85, 0.95]), 4),  # as published
        (course([0.30, 0.40, 0.05, 0.38, 0.01], [0.40, 0.50, 0.60, 0.50, 0.90]), 3),  # recovers, falls again: the first
        (course([0.20, 0.25, 0.30, 0.14, 0.02], [0.30, 0.35, 0.40, 0.30, 0.35]), 4),  # FGSM's falls too, but little
        (course([0.40, 0.20, 0.19], [0.50, 0.50, 0.50]), 3),  # half of the best is not below half
        # What must not be flagged:
        (course([0.30, 0.40, 0.44, 0.45, 0.46]), None),
        (course([0.30, 0.50, 0.53, 0.47, 0.44]), None),  # robust overfitting (Rice et al.)
        (course([0.30, 0.40, 0.10, 0.10, 0.10], [0.40, 0.50, 0.10, 0.10, 0.10]), None),  # broke down: FGSM's fell too
        (course([0.30, 0.40, 0.15, 0.35], [0.40, 0.50, 0.25, 0.45]), None),  # a bad epoch
        (course([0.10, 0.02, 0.05], [0.10, 0.20, 0.30]), None),  # was constant, which is robust at chance
        (course([0.00, 0.00, 0.00], [0.30, 0.60, 0.90]), None),  # never robust
        (course([0.45], [0.95]), None),  # nothing before it
        ([{"epoch": 1, "loss": 1.0, "accuracy": 0.9}] * 4, None),  # not watched
        ([], None),
    ],
)
def test_catastrophic_overfitting(history, epoch):
    assert catastrophic_overfitting(history) == epoch


def test_chance_is_the_largest_class():
    """Of two classes a network that learns leaves a robust accuracy of 0.5 behind, which was no achievement."""
    history = course([0.50, 0.20], [0.50, 0.60])
    assert catastrophic_overfitting(history, chance=0.5) is None
    assert catastrophic_overfitting(history, chance=0.1) == 2


def test_rules_with_a_part_left_out_would_be_wrong():
    """Each of the three conditions is needed: without it, one of the histories above is told wrongly."""

    def rule(history, earned=True, collapse=True, gap=True):
        best = 0.0
        for record in history:
            robust, fgsm = record["robust"], record["fgsm"]
            said = (not earned or best >= 0.15, not collapse or robust < best / 2, not gap or fgsm - robust >= best / 2)
            if best and all(said):
                return record["epoch"]
            best = max(best, robust)
        return None

    constant = course([0.10, 0.02, 0.05], [0.10, 0.20, 0.30])
    broken = course([0.30, 0.40, 0.10, 0.10], [0.40, 0.50, 0.10, 0.10])
    weak = course([0.20, 0.25, 0.26], [0.30, 0.50, 0.60])
    for history, part in ((constant, "earned"), (broken, "gap"), (weak, "collapse")):
        assert rule(history) is catastrophic_overfitting(history) is None
        assert rule(history, **{part: False}) is not None


def shallow():
    """One convolution of 16 filters: the single-layer network of Andriushchenko & Flammarion, section 5."""
    return initialised(
        lambda: nn.Sequential(
            Normalise((0.286,), (0.353,)), nn.Conv2d(1, 16, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 13 * 13, 10)
        ),
        0,
    )


def test_a_real_network_overfits_catastrophically():
    """A single step at eps = 0.25, of length 2·eps, on real images; with three steps the same network does not.

    Robust accuracy falls from about 0.2 to 0.02 or less, and FGSM's rises: 3 of 3 seeds did by the eighth epoch. The
    margins asserted leave room for other kernels' rounding.
    """
    whole = fashion_mnist_mini()
    some = type(whole)(whole.name, whole.classes, whole.train.take(3000), whole.val.take(200), whole.test)
    training = Training(epochs=8, batch_size=64, lr=0.02, weight_decay=0.0, milestones=(99,))
    history = fit(shallow(), some, FastAdversarial(eps=0.25, alpha=0.5), training)
    epoch = catastrophic_overfitting(history)
    assert epoch is not None
    best = max(record["robust"] for record in history[: epoch - 1])
    assert history[-1]["robust"] < best / 3
    assert history[-1]["fgsm"] > best
    several = replace(training, epochs=5, validate="LinfPGD(eps=0.25)")
    control = fit(shallow(), some, Adversarial(eps=0.25, steps=3), several)
    assert catastrophic_overfitting(control) is None
    assert control[-1]["robust"] > best
