"""Recipes against what they promise (specification §10)."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from geophone.errors import GeophoneError
from geophone.metrics import class_selectivity
from geophone.models import SmallCNN
from geophone.perturb import GaussianNoise, LinfPGD
from geophone.record import activation_layers, tap
from geophone.registry import RECIPES
from geophone.rng import draws, stream
from geophone.testing.contracts import broken_contracts
from geophone.train import Adversarial, NoiseAugmented, SelectivityRegularised, Standard, initialised, mean_selectivity


@pytest.mark.parametrize("name", list(RECIPES))
def test_contract(name):
    assert broken_contracts("recipes", name) == []


def setting(n=24, classes=4):
    model = initialised(lambda: SmallCNN(classes, (0.5,), (0.5,), width=4), 0)
    x = torch.rand(n, 1, 12, 12, generator=stream("recipes", n))
    return model, x, torch.arange(n) % classes, draws(0, "recipe", index=torch.arange(n))


def test_alpha_zero_is_cross_entropy_to_the_bit():
    model, x, y, rng = setting()
    losses, grads = [], []
    for recipe in (Standard(), SelectivityRegularised(0.0)):
        model.zero_grad()
        loss = recipe.loss(model, x, y, rng)
        loss.backward()
        losses.append(loss.detach())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("alpha", [-2.0, 0.5, 3.0])
def test_loss_is_cross_entropy_minus_alpha_times_selectivity(alpha):
    """Against the metric itself, layer by layer; and |regulariser| ≤ |alpha|."""
    model, x, y, rng = setting()
    model.eval()
    with torch.no_grad(), tap(model, activation_layers(model)) as seen:
        plain = cross_entropy(model(x), y)
        layers = [class_selectivity(response, y).mean() for response in seen.values()]
    wanted = plain - alpha * torch.stack(layers).mean()
    got = SelectivityRegularised(alpha).loss(model, x, y, rng).detach()
    assert got == pytest.approx(wanted.item(), abs=1e-6)
    assert abs(got - plain) <= abs(alpha)


def test_derivative_by_alpha_is_minus_selectivity():
    model, x, y, rng = setting()
    model.eval()
    losses = [SelectivityRegularised(a).loss(model, x, y, rng).item() for a in (1.0, 2.0, 3.0)]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert losses[1] < losses[0]


def test_the_classifier_gets_no_gradient_from_the_regulariser():
    model, x, y, _ = setting()
    with tap(model, activation_layers(model), detach=False) as seen:
        model(x)
    mean_selectivity(seen, y).backward()
    assert model.head.weight.grad is None
    assert bool(model.conv1.weight.grad.any())


def test_absent_classes_do_not_enter():
    """Labels 0, 1 of 10 or renamed 3, 7: the same. As zero means, the mutant's selectivity would be higher."""
    response = {"a": torch.rand(20, 5, generator=stream("absent")) + 1}
    y = torch.arange(20) % 2
    assert mean_selectivity(response, y) == mean_selectivity(response, y * 4 + 3)
    means = torch.stack([response["a"][y == c].mean(0) for c in (0, 1)] + [torch.zeros(5)] * 8)
    with_zeros = (means.amax(0) - (means.sum(0) - means.amax(0)) / 9) / (
        means.amax(0) + (means.sum(0) - means.amax(0)) / 9
    )
    assert mean_selectivity(response, y) < with_zeros.mean() - 0.3


def test_one_class_in_the_batch_is_no_term():
    model, x, _, rng = setting()
    model.eval()
    same = torch.zeros(24, dtype=torch.int64)
    assert SelectivityRegularised(5.0).loss(model, x, same, rng) == Standard().loss(model, x, same, rng)


def test_wide_layers_do_not_dominate():
    """Doubling every unit of one layer changes nothing; a flat mean over units, the mutant, would."""
    y = torch.arange(20) % 4
    a = torch.rand(20, 3, generator=stream("a"))
    b = torch.nn.functional.one_hot(y, 4).float()
    wanted = mean_selectivity({"a": a, "b": b}, y)
    assert mean_selectivity({"a": torch.cat([a, a], 1), "b": b}, y) == pytest.approx(wanted.item(), abs=1e-7)
    flat = torch.cat([class_selectivity(a, y), class_selectivity(b, y)]).mean()
    flat_doubled = torch.cat([class_selectivity(torch.cat([a, a], 1), y), class_selectivity(b, y)]).mean()
    assert abs(flat - flat_doubled) > 0.05


def test_gradient_against_finite_differences():
    """In float64 on responses away from ties."""
    y = torch.arange(12) % 3
    x = torch.rand(12, 2, generator=stream("fd")).double() + y[:, None] * torch.tensor([1.0, -0.4]) + 1
    assert torch.autograd.gradcheck(lambda v: _selectivity64(v, y), x.requires_grad_())


def _selectivity64(x, y):
    from geophone.metrics.selectivity import selectivity_of_means

    return selectivity_of_means(torch.stack([x[y == c].mean(0) for c in range(3)])).mean()


def test_negative_responses_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 4))
    _, x, y, rng = setting()
    with pytest.raises(GeophoneError, match="non-negative"):
        SelectivityRegularised(1.0).loss(model, x, y, rng)
    with pytest.raises(GeophoneError, match="needs activation modules"):
        SelectivityRegularised(1.0).loss(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), x, y, rng)


def test_adversarial_is_cross_entropy_on_attacked_images():
    model, x, y, rng = setting()
    recipe = Adversarial(eps=0.1, steps=3)
    attacked = LinfPGD(eps=0.1, steps=3)(x, y, model, rng)
    assert model.training
    model.eval()
    assert recipe.loss(model, x, y, rng).item() == pytest.approx(cross_entropy(model(attacked), y).item(), abs=1e-6)
    assert recipe.loss(model, x, y, rng) > cross_entropy(model(x), y)


def test_noise_augmented_is_cross_entropy_on_noisy_images():
    model, x, y, rng = setting()
    model.eval()
    noisy = GaussianNoise(0.2)(x, y, model, rng)
    assert NoiseAugmented(0.2).loss(model, x, y, rng) == cross_entropy(model(noisy), y)


@pytest.mark.parametrize("direction", [-5.0, 5.0])
def test_a_few_steps_move_selectivity(direction):
    model, x, y, rng = setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def selectivity():
        with torch.no_grad(), tap(model, activation_layers(model)) as seen:
            model(x)
        return mean_selectivity(seen, y).item()

    before = selectivity()
    for _ in range(10):
        optimizer.zero_grad()
        SelectivityRegularised(direction).loss(model, x, y, rng).backward()
        optimizer.step()
    assert (selectivity() - before) * direction > 0
