"""A perturbation at a given length."""

import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import draws, stream
from geophone.metrics import perturbation_l2, perturbation_linf
from geophone.perturb import MatchedL2
from geophone.perturb.matched import scaled


def bisected(x: torch.Tensor, moved: torch.Tensor, length: float) -> torch.Tensor:
    """The same by halving an interval of t, 200 times."""
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for _ in range(200):
        middle = (low + high) / 2
        short = ((x + middle * (moved - x)).clamp(0, 1) - x).norm(dim=1, keepdim=True) < length
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (x + high * (moved - x)).clamp(0, 1)


@pytest.mark.parametrize("length", [0.01, 0.3, 1.0, 2.0, 4.0])
def test_length_is_solved_exactly(length: float) -> None:
    """Against bisection; some images have values at their borders already, some reach them, some can't go so far."""
    generator = stream("matched", length)
    x = torch.rand(40, 25, generator=generator, dtype=torch.float64)
    x[:, :5] = x[:, :5].round()
    moved = (x + 0.2 * torch.randn(40, 25, generator=generator, dtype=torch.float64)).clamp(0, 1)
    found, wanted = scaled(x, moved, length), bisected(x, moved, length)
    assert torch.allclose(found, wanted, atol=1e-9)
    went = (found - x).norm(dim=1)
    furthest = (bisected(x, moved, 1e9) - x).norm(dim=1)
    assert torch.allclose(went, furthest.clamp(max=length), atol=1e-9)
    # Mutant: scaled first and clipped afterwards, which falls short wherever a value meets its border.
    unit = (moved - x) / (moved - x).norm(dim=1, keepdim=True)
    clipped = (x + length * unit).clamp(0, 1)
    assert length < 1 or not torch.allclose((clipped - x).norm(dim=1), went, atol=1e-3)


@pytest.mark.parametrize("inner", ["fog(severity=3)", "LinfPGD(eps=8/255, steps=3)", "GaussianNoise(std=0.3)"])
def test_direction_is_that_of_the_inner_perturbation(inner: str) -> None:
    x = 0.25 + 0.5 * torch.rand(6, 1, 12, 12, generator=stream("direction"))
    y, rng = torch.arange(6) % 2, draws(0, index=torch.arange(6))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    there = PERTURBATIONS.build(inner)(x, y, model, rng) - x
    found = MatchedL2(l2=0.05, inner=inner)(x, y, model, rng) - x
    cosine = torch.cosine_similarity(there.flatten(1), found.flatten(1))
    assert (cosine > 1 - 1e-5).all()  # float32 rounds x' to 6e-8, of a change of about 0.004 in each value
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([0.05] * 6, rel=1e-4)


def test_an_image_that_is_not_moved_stays() -> None:
    x = torch.rand(3, 4, generator=stream("stays")).double()
    assert torch.equal(scaled(x, x, 1.0), x)


def test_inner_is_checked_at_once() -> None:
    with pytest.raises(GeophoneError, match="fogg"):
        MatchedL2(inner="fogg")


def test_lengths_of_perturbations() -> None:
    a = torch.zeros(2, 4)
    b = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]) / 5
    assert perturbation_l2(a, b) == pytest.approx((1 + 0.2) / 2)
    assert perturbation_linf(a, b) == pytest.approx((0.8 + 0.2) / 2)
