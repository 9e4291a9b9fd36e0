"""Shake the input: noise, corruptions and attacks are one thing, `x' = perturbation(x, y, model, rng)`.

Images are floats in [0, 1] and so are the results; a model normalises inside, as its first layer, so that a level means
the same for every model. `grid("noise, LinfPGD(steps=20)")` makes perturbations at their default levels.
"""

# isort: off
# They are listed in the order in which they are registered here.
from geophone.perturb.noise import GaussianNoise, RandomSign, SaltAndPepper, UniformNoise
from geophone.perturb.corruptions import *  # noqa: F403
from geophone.perturb.attacks import *  # noqa: F403
from geophone.perturb.matched import MatchedL2

# isort: on
from geophone.perturb import attacks, corruptions
from geophone.perturb.checks import check_batch, check_number
from geophone.perturb.parse import at_level, grid

__all__ = [
    "GaussianNoise",
    "MatchedL2",
    "RandomSign",
    "SaltAndPepper",
    "UniformNoise",
    "at_level",
    "check_batch",
    "check_number",
    "grid",
]
__all__ += attacks.__all__
__all__ += corruptions.__all__
