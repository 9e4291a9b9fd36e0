"""The distributions of the noises, against their closed forms."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from geophone.core.rng import draws
from geophone.perturb import GaussianNoise, RandomSign, SaltAndPepper, UniformNoise

SHAPE = (64, 3, 32, 32)
SIZE = math.prod(SHAPE)
GREY = 0.5


def shake(perturbation: Any, x: Tensor | None = None, seed: str = "test") -> Tensor:
    x = torch.full(SHAPE, GREY, dtype=torch.float64) if x is None else x
    return perturbation(
        x, torch.zeros(len(x), dtype=torch.int64), torch.zeros_like, draws(seed, index=torch.arange(len(x)))
    )


# Strengths are small enough that nothing is clipped. With 196,608 values the Kolmogorov–Smirnov test at p = 1e-4 sees a
# distribution function that is wrong by 0.005; a right one fails it once in 10,000 seeds, and this seed is fixed.


def is_gaussian(perturbation: Any) -> None:
    z = (shake(perturbation) - GREY) / perturbation.std
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4


def is_uniform(perturbation: Any) -> None:
    u = (shake(perturbation) - GREY) / perturbation.width
    assert stats.kstest(u.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


def is_salt_and_pepper(perturbation: Any) -> None:
    out, half = shake(perturbation), perturbation.amount / 2
    deviation = math.sqrt(half * (1 - half) / SIZE)
    for value, share in ((0, half), (1, half), (GREY, 1 - 2 * half)):
        assert abs((out == value).double().mean().item() - share) <= 5 * deviation


def is_random_sign(perturbation: Any) -> None:
    change = shake(perturbation) - GREY
    assert torch.allclose(change.abs(), torch.full_like(change, perturbation.eps), rtol=0, atol=1e-12)  # rounding
    # The share of a fair coin's heads has the deviation 1/(2√n).
    assert abs((change > 0).double().mean().item() - 0.5) <= 5 / (2 * math.sqrt(SIZE))


def values_are_independent(perturbation: Any) -> None:
    """Neighbours in every axis (images, channels, rows, columns) are uncorrelated: |r| below 5/√n."""
    noise = shake(perturbation) - GREY
    noise = noise - noise.mean()
    for axis, length in enumerate(SHAPE):
        a, b = noise.narrow(axis, 0, length - 1), noise.narrow(axis, 1, length - 1)
        correlation = (a * b).mean() / noise.square().mean()
        assert abs(correlation.item()) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("std", [0.01, 0.05])
def test_gaussian(std: float) -> None:
    is_gaussian(GaussianNoise(std=std))


@pytest.mark.parametrize("width", [0.01, 0.5])
def test_uniform(width: float) -> None:
    is_uniform(UniformNoise(width=width))


@pytest.mark.parametrize("amount", [0.02, 0.3, 1.0])
def test_salt_and_pepper(amount: float) -> None:
    is_salt_and_pepper(SaltAndPepper(amount=amount))


@pytest.mark.parametrize("eps", [8 / 255, 0.5])
def test_random_sign(eps: float) -> None:
    is_random_sign(RandomSign(eps=eps))


@pytest.mark.parametrize("noise", [GaussianNoise(std=0.05), UniformNoise(), SaltAndPepper(), RandomSign()], ids=repr)
def test_values_are_independent(noise: Any) -> None:
    values_are_independent(noise)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_larger_amount_hits_what_a_smaller_one_hits(one: float, other: float) -> None:
    x = torch.full((2, 1, 16, 16), GREY)
    less, more = (shake(SaltAndPepper(amount=amount), x) for amount in sorted((one, other)))
    assert torch.equal(more[less != GREY], less[less != GREY])


@given(st.floats(0, 1), st.sampled_from([GaussianNoise, UniformNoise, RandomSign]))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_noise_scales_with_its_level(level: float, kind: type) -> None:
    """Twice the level is twice the same noise, where nothing is clipped: 1e-12 is rounding in float64."""
    field, x = kind.level, torch.full((2, 1, 4, 4), GREY, dtype=torch.float64)
    once, twice = (shake(kind(**{field: scale * level}), x) - GREY for scale in (0.5, 1.0))
    free = twice.abs() < GREY
    assert torch.allclose(2 * once[free], twice[free], rtol=0, atol=1e-12)


@dataclass(frozen=True)
class GaussianOfVariance(GaussianNoise):
    def __call__(self, x, y, model, rng):
        return (x + self.std**0.9 * rng.normal("noise", *x.shape[1:])).clamp(0, 1)


@dataclass(frozen=True)
class UniformOfFullWidth(UniformNoise):
    def __call__(self, x, y, model, rng):
        return (x + self.width * (rng.uniform("noise", *x.shape[1:]) - 0.5)).clamp(0, 1)


@dataclass(frozen=True)
class SaltOnly(SaltAndPepper):
    def __call__(self, x, y, model, rng):
        return torch.where(rng.uniform("noise", *x.shape[1:]) < self.amount, 1, x)


@dataclass(frozen=True)
class MoreUpThanDown(RandomSign):
    def __call__(self, x, y, model, rng):
        up = rng.uniform("noise", *x.shape[1:]) < 0.52
        return torch.where(up, x + self.eps, x - self.eps).clamp(0, 1)


@dataclass(frozen=True)
class SameInEveryChannel(GaussianNoise):
    def __call__(self, x, y, model, rng):
        return (x + self.std * rng.normal("noise", 1, *x.shape[2:])).clamp(0, 1)


@pytest.mark.parametrize(
    ("oracle", "mutant"),
    [
        (is_gaussian, GaussianOfVariance(std=0.05)),
        (is_uniform, UniformOfFullWidth()),
        (is_salt_and_pepper, SaltOnly()),
        (is_random_sign, MoreUpThanDown()),
        (values_are_independent, SameInEveryChannel(std=0.05)),
    ],
)
def test_a_mutant_fails_its_oracle(oracle: Any, mutant: Any) -> None:
    with pytest.raises(AssertionError):
        oracle(mutant)
