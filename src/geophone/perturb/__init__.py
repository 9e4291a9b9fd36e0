"""Shake the input: noise, corruptions and attacks are one thing, `x' = perturbation(x, y, model, rng)`.

Images are floats in [0, 1] and so are the results; a model normalises inside, as its first layer, so that a level means
the same for every model. `grid("noise, LinfPGD(steps=20)")` makes perturbations at their default levels.
"""

from geophone.perturb.attacks.ascent import loss_gradient
from geophone.perturb.attacks.base import Attack, MinimumNormAttack
from geophone.perturb.attacks.losses import LOSSES
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.attacks.pgd import FGSM, L1PGD, L2PGD, LinfPGD
from geophone.perturb.checks import check_batch, check_number
from geophone.perturb.corruptions.base import PRESETS, Corruption
from geophone.perturb.grids import at_level, grid
from geophone.perturb.noise import GaussianNoise, SaltAndPepper, UniformNoise

__all__ = [
    "FGSM",
    "L1",
    "L1PGD",
    "L2",
    "L2PGD",
    "LINF",
    "LOSSES",
    "PRESETS",
    "Attack",
    "Corruption",
    "GaussianNoise",
    "LinfPGD",
    "MinimumNormAttack",
    "Norm",
    "SaltAndPepper",
    "UniformNoise",
    "at_level",
    "check_batch",
    "check_number",
    "grid",
    "loss_gradient",
]
