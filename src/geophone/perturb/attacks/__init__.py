"""Attacks: the perturbation in a small ball that hurts most, the smallest one that fools, and other threat models."""

from geophone.perturb.attacks.adapter import (
    Foreign,
    from_adv_lib,
    from_art,
    from_callable,
    from_foolbox,
    from_torchattacks,
)
from geophone.perturb.attacks.apgd import L1APGD, L2APGD, LinfAPGD
from geophone.perturb.attacks.ascent import loss_gradient
from geophone.perturb.attacks.base import Attack, MinimumNormAttack
from geophone.perturb.attacks.carlini_wagner import L2FMN, CarliniWagner
from geophone.perturb.attacks.deepfool import L2DeepFool, LinfDeepFool
from geophone.perturb.attacks.ensemble import L1AutoAttack, L2AutoAttack, LinfAutoAttack
from geophone.perturb.attacks.fab import L1FAB, L2FAB, LinfFAB
from geophone.perturb.attacks.gabor import GaborAttack
from geophone.perturb.attacks.jpeg import JpegAttack
from geophone.perturb.attacks.jsma import JSMA
from geophone.perturb.attacks.losses import LOSSES
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.attacks.pgd import FGSM, L1PGD, L2PGD, LinfPGD, PGDSteps
from geophone.perturb.attacks.snow import SnowAttack
from geophone.perturb.attacks.spatial import TranslationRotation
from geophone.perturb.attacks.square import L1Square, L2Square, LinfSquare

__all__ = [
    "FGSM",
    "JSMA",
    "L1",
    "L1APGD",
    "L1FAB",
    "L1PGD",
    "L2",
    "L2APGD",
    "L2FAB",
    "L2FMN",
    "L2PGD",
    "LINF",
    "LOSSES",
    "Attack",
    "CarliniWagner",
    "Foreign",
    "GaborAttack",
    "JpegAttack",
    "L1AutoAttack",
    "L1Square",
    "L2AutoAttack",
    "L2DeepFool",
    "L2Square",
    "LinfAPGD",
    "LinfAutoAttack",
    "LinfDeepFool",
    "LinfFAB",
    "LinfPGD",
    "LinfSquare",
    "MinimumNormAttack",
    "Norm",
    "PGDSteps",
    "SnowAttack",
    "TranslationRotation",
    "from_adv_lib",
    "from_art",
    "from_callable",
    "from_foolbox",
    "from_torchattacks",
    "loss_gradient",
]
