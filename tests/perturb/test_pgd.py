"""Attacks on linear models, whose answers are known in closed form, and at the edges where attacks go wrong."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.models.run import evaluating
from geophone.perturb import FGSM, L2, L2PGD, LINF, LinfPGD, Norm, loss_gradient
from geophone.perturb.attacks.ascent import Ascent, pgd
from geophone.perturb.attacks.losses import ce

N, D = 8, 12
ROUNDING = 1e-12  # of float64 with a few operations on numbers of order 1


def linear(classes: int = 2) -> nn.Linear:
    model = nn.utils.skip_init(nn.Linear, D, classes, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=stream("linear", parameter.ndim), dtype=torch.float64)
    return model


def grey(n: int = N) -> tuple[Tensor, Tensor, Draws]:
    """Images far enough inside [0, 1] that eps ≤ 0.2 clips nothing, their labels, and draws."""
    x = 0.4 + 0.2 * torch.rand(n, D, generator=stream("grey"), dtype=torch.float64)
    return x, torch.arange(n) % 2, draws("attack", index=torch.arange(n))


def margins(model: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x).detach()
    return logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]


@pytest.mark.parametrize("attack", [FGSM(eps=0.1), LinfPGD(eps=0.1), LinfPGD(eps=0.1, random_start=False)], ids=repr)
def test_linf_lowers_a_linear_margin_by_eps_times_the_l1_norm(attack: Any) -> None:
    (x, y, rng), model = grey(), linear()
    difference = model.weight[0] - model.weight[1]
    fall = margins(model, x, y) - margins(model, attack(x, y, model, rng), y)
    assert torch.allclose(fall, (0.1 * difference.abs().sum()).expand(N), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "attack", [L2PGD(eps=0.1, steps=1, random_start=False), L2PGD(eps=0.1, steps=20, random_start=False)]
)
def test_l2_moves_a_linear_model_along_its_weights(attack: L2PGD) -> None:
    (x, y, rng), model = grey(), linear()
    direction = (model.weight[1] - model.weight[0]).detach()
    sign = (1 - 2 * y).double()[:, None]
    delta = attack(x, y, model, rng) - x
    assert torch.allclose(delta, 0.1 * sign * direction / direction.norm(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("step_size", [None, 0.1])
def test_one_step_of_pgd_without_random_start_is_fgsm(step_size: float | None) -> None:
    (x, y, rng), model = grey(), linear(5)
    one = LinfPGD(eps=0.1, steps=1, step_size=step_size, random_start=False)(x, y, model, rng)
    assert torch.allclose(one, FGSM(eps=0.1)(x, y, model, rng), rtol=0, atol=ROUNDING)


def test_steps_that_are_short_stay_short() -> None:
    (x, y, rng), model = grey(), linear()
    delta = LinfPGD(eps=0.1, steps=3, step_size=0.01, random_start=False)(x, y, model, rng) - x
    assert torch.allclose(delta.abs(), torch.full_like(delta, 0.03), rtol=0, atol=ROUNDING)


def test_the_default_step_is_two_and_a_half_radii_over_the_steps() -> None:
    (x, y, rng), model = grey(), linear(5)
    for kind in (LinfPGD, L2PGD):
        given = kind(eps=0.1, steps=5, step_size=2.5 * 0.1 / 5)(x, y, model, rng)
        assert torch.equal(kind(eps=0.1, steps=5)(x, y, model, rng), given)


def fills_the_ball_evenly(norm: Norm) -> None:
    """Kolmogorov–Smirnov at p = 1e-4, a fixed seed: in l2 radius^d is uniform on [0, 1], in l∞ each value on [-1, 1].

    A radius that is itself uniform, or normal draws projected on the sphere, fail by far.
    """
    start = norm.uniform(draws("ball", index=torch.arange(4000)), torch.zeros(4000, 1, 2, 3, dtype=torch.float64))
    if norm.order == 2:
        share = start.flatten(1).norm(dim=1) ** 6
        assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-4
        angle = torch.atan2(start[:, 0, 0, 0], start[:, 0, 1, 2]) / torch.pi
        assert stats.kstest(angle.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    else:
        assert stats.kstest(start.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


class UniformRadius:
    order = 2.0
    steepest, project = L2.steepest, L2.project

    def uniform(self, rng: Draws, like: Tensor) -> Tensor:
        direction = self.steepest(rng.normal("start", *like.shape[1:]).to(like.dtype))
        return direction * rng.uniform("radius", 1, 1, 1).to(like.dtype)


class Cube(UniformRadius):
    def uniform(self, rng: Draws, like: Tensor) -> Tensor:
        return self.project(2 * rng.uniform("start", *like.shape[1:]).to(like.dtype) - 1, 1.0)


@pytest.mark.parametrize("norm", [LINF, L2])
def test_random_starts_fill_the_ball_evenly(norm: Norm) -> None:
    fills_the_ball_evenly(norm)


@pytest.mark.parametrize("mutant", [UniformRadius(), Cube()])
def test_a_mutant_start_does_not_fill_the_ball(mutant: Norm) -> None:
    with pytest.raises(AssertionError):
        fills_the_ball_evenly(mutant)


def test_more_steps_find_a_higher_loss() -> None:
    """On a network with a curved loss, PGD with 10 steps beats 1, and beats its start; mean over 32 images."""
    generator = stream("curved")
    x, y = torch.rand(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
    first, second = (torch.randn(shape, generator=generator) for shape in ((6, 16), (16, 3)))
    rng = draws("curved", index=torch.arange(32))

    def model(x: Tensor) -> Tensor:
        return torch.sin(3 * x @ first) @ second

    def loss(x: Tensor) -> float:
        return cross_entropy(model(x), y).item()

    for kind in (LinfPGD, L2PGD):
        one, ten = (loss(kind(eps=0.3, steps=steps)(x, y, model, rng)) for steps in (1, 10))
        assert loss(x) < one < ten


@pytest.mark.parametrize("attack", [FGSM(), LinfPGD(random_start=False), L2PGD(random_start=False)], ids=repr)
def test_a_zero_gradient_moves_nothing(attack: Any) -> None:
    x, y, rng = grey()
    assert torch.equal(attack(x, y, lambda x: 0 * x[:, :2], rng), x)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_an_l2_step_has_length_1_however_small_the_gradient(scale: float) -> None:
    """In float32, where squares of 1e-30 vanish and those of 1e30 overflow; d = 4, so the length is exact to 1e-6."""
    step = L2.steepest(torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]) * scale)
    assert torch.allclose(step.norm(dim=1), torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [LINF, L2])
def test_projection_is_onto_the_ball_and_only_from_outside(norm: Norm) -> None:
    generator = stream("projection")
    delta = torch.randn(50, 2, 3, generator=generator, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(delta.flatten(1), norm.order, dim=1)
    eps = lengths.median().item()
    projected = norm.project(delta, eps)
    after = torch.linalg.vector_norm(projected.flatten(1), norm.order, dim=1)
    assert torch.allclose(after, lengths.clamp(max=eps), rtol=0, atol=ROUNDING)
    assert torch.equal(projected[lengths <= eps], delta[lengths <= eps])


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.ones(len(x), 2),
        lambda x: x.detach()[:, :2],
        lambda x: torch.no_grad()(lambda: x[:, :2])(),
        lambda x: x.detach()[:, :2] @ torch.ones(2, 2, dtype=x.dtype, requires_grad=True),
    ],
)
def test_a_model_that_blocks_gradients_is_an_error(model: Any) -> None:
    x, y, rng = grey()
    with pytest.raises(GeophoneError, match=r"passes no gradient on to its input.*detach"):
        FGSM()(x, y, model, rng)


def test_nan_weights_are_an_error() -> None:
    (x, y, rng), model = grey(), linear()
    model.weight.data[0, 0] = torch.nan
    for attack in (FGSM(), LinfPGD(), L2PGD()):
        with pytest.raises(
            GeophoneError, match=r"is NaN or infinite for \d+ of \d+ images at a step: check its weights"
        ):
            attack(x, y, model, rng)


def test_labels_that_the_model_lacks_are_an_error() -> None:
    (x, y, rng), model = grey(), linear()
    with pytest.raises(GeophoneError, match=r"gave \[8, 2\] for 8 images with labels up to 2"):
        FGSM()(x, y + 1, model, rng)
    with pytest.raises(GeophoneError, match="label -1 is negative"):
        FGSM()(x, y - 1, model, rng)
    with pytest.raises(GeophoneError, match="needs logits"):
        FGSM()(x, y, lambda x: x.sum(1), rng)


def test_labels_may_be_of_any_integer_type() -> None:
    (x, y, rng), model = grey(), linear()
    assert torch.equal(FGSM()(x, y.to(torch.int32), model, rng), FGSM()(x, y, model, rng))


def test_no_image_scales_the_gradient_of_another() -> None:
    """The loss is summed: half of the batch has the gradient that it has in the whole."""
    (x, y, _), model = grey(), linear(5)
    whole = loss_gradient(model, x, y)
    assert torch.allclose(loss_gradient(model, x[:4], y[:4]), whole[:4], rtol=0, atol=ROUNDING)


def test_pgd_does_not_write_to_its_start() -> None:
    (x, y, _), model = grey(), linear()
    start = (x + 0.05).clone()
    before = start.clone()
    pgd(Ascent(model, ce), x, y, start, norm=LINF, eps=0.1, steps=3, step_size=0.05)
    assert torch.equal(start, before)


class Counts(nn.Module):
    """Overrides `train`, as models with frozen parts do; every call counts."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        self.calls = 0

    def train(self, mode: bool = True) -> "Counts":
        self.calls += 1
        return super().train(mode)


def test_evaluating_restores_each_flag() -> None:
    model = Counts()
    model.part[0].training = False
    model.calls = 0
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model.calls == 0


def test_evaluating_takes_a_plain_function() -> None:
    with evaluating(torch.relu):
        pass
