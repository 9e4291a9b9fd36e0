"""Noise: every value of an image is disturbed at random, by draws that belong to the image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model
from geophone.perturb.checks import check_batch, check_number


@PERTURBATIONS.register
@dataclass(frozen=True)
class GaussianNoise:
    """Additive Gaussian noise: x' = clip(x + std·z, 0, 1), z standard normal for each value.

    Attributes:
        std: Standard deviation before clipping, in the units of x; at least 0.
    """

    std: float = 0.1
    level: ClassVar[str] = "std"
    levels: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2, 0.4)
    family: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        check_number(self, "std", 0.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Noisy images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        z = rng.normal("noise", *x.shape[1:]).to(x.dtype)
        return (x + self.std * z).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class UniformNoise:
    """Additive uniform noise: x' = clip(x + u, 0, 1), u uniform on [-width, width) for each value.

    Attributes:
        width: Half the width of the distribution, in the units of x; at least 0. Its standard deviation is width/√3.
    """

    width: float = 0.1
    level: ClassVar[str] = "width"
    levels: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2, 0.4)
    family: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        check_number(self, "width", 0.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Noisy images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        u = rng.uniform("noise", *x.shape[1:]).to(x.dtype)
        return (x + self.width * (2 * u - 1)).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class SaltAndPepper:
    """Salt-and-pepper (impulse) noise: a share of the values becomes 0 or 1, each half of the time.

    Every channel of a pixel is hit by itself, as in scikit-image's `random_noise` and ImageNet-C's impulse noise.
    What a smaller amount hits, a larger one hits too.

    Attributes:
        amount: Probability that a value is replaced, in [0, 1].
    """

    amount: float = 0.05
    level: ClassVar[str] = "amount"
    levels: ClassVar[tuple[float, ...]] = (0.02, 0.05, 0.1, 0.2)
    family: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        check_number(self, "amount", 0.0, 1.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Noisy images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        u = rng.uniform("noise", *x.shape[1:])
        peppered = torch.where(u < self.amount / 2, 0, x)
        return torch.where(u >= 1 - self.amount / 2, 1, peppered).clamp(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class RandomSign:
    """A random corner of the l∞ ball: x' = clip(x + eps·s, 0, 1), each s 1 or −1 with probability ½.

    What a signed attack does without knowing the network: the same size in l∞, the directions by chance.

    Attributes:
        eps: Size of every value's change before clipping, in the units of x; at least 0.

    References:
        The random control of Dapello et al. 2021, arXiv:2111.06979, in their published code.
    """

    eps: float = 8 / 255
    level: ClassVar[str] = "eps"
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    family: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0)

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Noisy images, of the shape and dtype of x."""
        check_batch(x, y, rng)
        up = rng.uniform("noise", *x.shape[1:]) < 0.5
        return torch.where(up, x + self.eps, x - self.eps).clamp(0, 1)
