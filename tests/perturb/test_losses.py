"""Losses that attacks climb: closed forms, and what a loss must not depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import draws, stream
from geophone.perturb import FGSM, L1PGD, L2PGD, LOSSES, LinfPGD
from geophone.perturb.attacks.losses import Loss, ce, dlr, find_loss, margin, scaled_ce, targeted_dlr

LOGITS = torch.tensor([[4.0, 1.0, 3.0, -2.0], [0.0, 2.0, 5.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 3])
EXACT = 1e-12  # float64, a few operations


def near(found: Tensor, expected: list[float]) -> None:
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=EXACT)


def test_closed_forms() -> None:
    near(margin(LOGITS, Y), [3 - 4, 5 - 1])
    near(dlr(LOGITS, Y), [(3 - 4) / (4 - 1), (5 - 1) / (5 - 1)])
    near(targeted_dlr(torch.tensor([2, 0]))(LOGITS, Y), [(3 - 4) / (4 - (1 - 2) / 2), (0 - 1) / (5 - (1 + 0) / 2)])
    near(ce(LOGITS, Y), (-LOGITS.log_softmax(1))[[0, 1], Y].tolist())
    spread = torch.tensor([[6.0], [5.0]], dtype=torch.float64)
    near(scaled_ce(LOGITS, Y), (-(LOGITS * 10 / spread).log_softmax(1))[[0, 1], Y].tolist())


def gradient(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(z, y).sum(), z)[0]


SCALE_FREE = ["scaled_ce", "margin", "dlr"]


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**7, 2.0**20])
def test_a_scale_free_loss_points_the_same_way_at_any_scale(name: str, dtype: torch.dtype, scale: float) -> None:
    """To the bit, since a power of two rounds nothing."""
    logits = LOGITS.to(dtype)
    plain, scaled = gradient(LOSSES[name], logits, Y), gradient(LOSSES[name], logits * scale, Y)
    # A ratio of logits is constant, and its gradient 0, where the true class is third: no scale to divide by.
    direction, expected = (g / g.abs().amax(1, keepdim=True).clamp(min=1e-30) for g in (scaled, plain))
    assert torch.equal(direction, expected)


def test_plain_cross_entropy_is_not_scale_free() -> None:
    confident = torch.tensor([[9.0, 1.0, 3.0]])
    assert gradient(ce, confident, Y[:1]).abs().max() > 1e-4
    assert gradient(ce, confident * 100, Y[:1]).abs().max() == 0
    assert gradient(scaled_ce, confident * 100, Y[:1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("scale", [0.0, 1e-37, 1.0, 1e30])
def test_gradients_stay_numbers(name: str, scale: float) -> None:
    logits = LOGITS.float() * scale
    assert gradient(LOSSES[name], logits, Y).isfinite().all()


def test_too_few_classes_for_a_ratio_of_logits() -> None:
    with pytest.raises(GeophoneError, match="dlr needs at least 3 classes and the network has 2: use the loss margin"):
        dlr(LOGITS[:, :2], Y[:1].expand(2))
    with pytest.raises(GeophoneError, match="targeted dlr needs at least 4"):
        targeted_dlr(Y)(LOGITS[:, :3], Y[:1].expand(2))
    assert margin(LOGITS[:, :2], Y[:1].expand(2)).shape == (2,)


def test_an_unknown_loss_is_one_clear_error() -> None:
    with pytest.raises(GeophoneError, match="unknown loss 'dlrr'. Did you mean 'dlr'"):
        find_loss("dlrr")
    with pytest.raises(GeophoneError, match="unknown loss"):
        LinfPGD(loss="cw")


class Confident(nn.Module):
    """A curved network whose logits are multiplied."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        generator = stream("confident")
        self.first = torch.randn(12, 30, generator=generator)
        self.second = torch.randn(30, 5, generator=generator)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(3 * (x - 0.5) @ self.first) @ self.second * self.scale


def examples() -> tuple[Tensor, Tensor]:
    x = torch.rand(400, 12, generator=stream("examples"))
    return x, Confident(1)(x).argmax(1)


@pytest.mark.parametrize(
    "attack", [FGSM(0.05), LinfPGD(0.05), L2PGD(0.3), L1PGD(0.5), LinfPGD(0.05, loss="dlr")], ids=repr
)
def test_logits_times_128_change_nothing(attack: Any) -> None:
    """Gotcha 1: in five libraries they raised robust accuracy from .56 to .96. A power of two rounds nothing."""
    (x, y), rng = examples(), draws("scale", index=torch.arange(400))
    assert torch.equal(attack(x, y, Confident(1), rng), attack(x, y, Confident(128), rng))


def robust(attack: Callable[..., Tensor], scale: float) -> float:
    (x, y), rng = examples(), draws("scale", index=torch.arange(400))
    model = Confident(scale)
    return (model(attack(x, y, model, rng)).argmax(1) == y).float().mean().item()


def test_with_plain_cross_entropy_they_would() -> None:
    """The mutant: what the default would be if it were the textbook's loss."""
    assert robust(LinfPGD(0.05), 100) <= robust(LinfPGD(0.05), 1) + 0.01
    assert robust(LinfPGD(0.05, loss="ce"), 100) > robust(LinfPGD(0.05, loss="ce"), 1) + 0.2
