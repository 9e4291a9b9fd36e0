"""Shake the input: noise, corruptions and attacks are one thing, `x' = perturbation(x, y, model, rng)`.

Images are floats in [0, 1] and so are the results; a model normalises inside, as its first layer, so that a level means
the same for every model. `grid("noise, LinfPGD(steps=20)")` makes perturbations at their default levels.
"""

from geophone.perturb.ascent import loss_gradient, pgd
from geophone.perturb.attack import FGSM, L2PGD, LinfPGD
from geophone.perturb.checks import check_batch, check_number
from geophone.perturb.corruption import Brightness, Contrast, GaussianBlur, Pixelate
from geophone.perturb.grids import at_level, grid
from geophone.perturb.noise import GaussianNoise, SaltAndPepper, UniformNoise
from geophone.perturb.norms import L2, LINF, Norm

__all__ = [
    "FGSM",
    "L2",
    "L2PGD",
    "LINF",
    "Brightness",
    "Contrast",
    "GaussianBlur",
    "GaussianNoise",
    "LinfPGD",
    "Norm",
    "Pixelate",
    "SaltAndPepper",
    "UniformNoise",
    "at_level",
    "check_batch",
    "check_number",
    "grid",
    "loss_gradient",
    "pgd",
]
