"""Recipes against what they promise (specification §10)."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.registry import RECIPES
from geophone.core.rng import draws, stream
from geophone.core.types import describe
from geophone.metrics import class_selectivity
from geophone.metrics.selectivity import EPS, selectivity_of_means
from geophone.models import ResNet20, SmallCNN
from geophone.models.tap import activation_layers, spatial_mean, tap
from geophone.perturb import GaussianNoise, LinfPGD
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
    return selectivity_of_means(torch.stack([x[y == c].mean(0) for c in range(3)])).mean()


def test_negative_responses_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 4))
    _, x, y, rng = setting()
    with pytest.raises(GeophoneError, match="non-negative"):
        SelectivityRegularised(1.0).loss(model, x, y, rng)
    with pytest.raises(GeophoneError, match="has 0 activations to regularise, 1 are needed.*modules such as nn.ReLU"):
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


def layer_by_layer(responses, y, classes):
    """The definition, one layer and one class at a time, in the order of the specification."""
    layers = []
    for x in responses.values():
        means = torch.stack([x[y == c].mean(0) for c in classes])
        layers.append(selectivity_of_means(means).mean())
    return torch.stack(layers).mean()


def test_all_layers_at_once_are_the_definition_layer_by_layer():
    """Value and gradient of every weight. Float32 sums of 24 in another order: 24 · 2^-24 relative, gradients 1e-5."""
    found = []
    for ours in (True, False):
        model, x, _, _ = setting()
        y = torch.arange(24) ** 2 % 7  # 0, 1, 2, 4, not equally often
        if ours:
            _, responses = SelectivityRegularised(1.0).responses(model, x)
            value = mean_selectivity(responses, y)
        else:
            with tap(model, activation_layers(model), spatial_mean, detach=False) as responses:
                model(x)
            value = layer_by_layer(responses, y, (0, 1, 2, 4))
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((value.detach(), grads))
    (a, grad_a), (b, grad_b) = found
    assert a == pytest.approx(b.item(), rel=2e-6)
    assert (grad_a - grad_b).norm() < 1e-5 * grad_b.norm()
    flat = torch.cat([class_selectivity(r.detach(), y) for r in responses.values()]).mean()
    assert abs(flat - b) > 1e-3


def test_means_are_not_rounded_to_half_precision_under_autocast():
    y = torch.arange(60) % 3
    responses = {"a": torch.rand(60, 5, generator=stream("autocast")) + 3}
    plain = mean_selectivity(responses, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert mean_selectivity(responses, y) == plain
        half = (torch.nn.functional.one_hot(y, 3).float() / 20).T @ responses["a"]
    assert abs(selectivity_of_means(half.float()).mean() - plain) > 1e-4


def test_constant_responses_have_no_selectivity_however_the_classes_are_filled():
    """The mutant takes sums over a class, not means."""
    y = torch.tensor([0] * 7 + [1] * 2 + [2] * 15)
    constant = {"a": torch.full((24, 3), 0.7), "b": torch.full((24, 2), 5.0)}
    # Means of equal numbers differ by float32 rounding only.
    assert mean_selectivity(constant, y) == pytest.approx(0, abs=1e-6)
    sums = torch.stack([constant["a"][y == c].sum(0) for c in range(3)])
    assert selectivity_of_means(sums).mean() > 0.5


@pytest.mark.parametrize("eps_matters", [False, True])
def test_gradient_by_the_class_means_in_closed_form(eps_matters):
    """Specification §10, and Euler's identity Σ m dSI/dm = ε (μ_max - μ_rest) / S², 0 were SI free of ε.

    Mutants: the formulas with μ_max and μ_rest exchanged, and the gradient with the best class held constant.
    """
    scale = 1e-6 if eps_matters else 1.0
    m = (torch.rand(6, 4, generator=stream("euler")).double() + 0.1) * scale
    m.requires_grad_()
    (grad,) = torch.autograd.grad(selectivity_of_means(m).sum(), m)
    m = m.detach()
    top, best = m.max(0)
    rest = (m.sum(0) - top) / 5
    square = (top + rest + EPS) ** 2
    wanted = (-(2 * top + EPS) / (5 * square)).expand(6, 4).clone()
    wanted[best, torch.arange(4)] = (2 * rest + EPS) / square
    assert torch.allclose(grad, wanted, rtol=1e-9)
    assert torch.allclose((m * grad).sum(0), EPS * (top - rest) / square, rtol=1e-6, atol=1e-14)
    if eps_matters:
        assert ((m * grad).sum(0) > 1e-3).all()
    exchanged = (-(2 * rest + EPS) / (5 * square)).expand(6, 4)
    assert not torch.allclose(grad, exchanged, rtol=1e-2)
    held = wanted.clone()
    held[best, torch.arange(4)] = 0
    assert ((m * held).sum(0).abs() > 1e-2).all()


class Wrapped(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)


class Backwards(nn.Module):
    """Registered in another order than it runs, and one ReLU runs twice."""

    def __init__(self):
        super().__init__()
        self.late, self.shared = nn.ReLU(), nn.ReLU()
        self.head, self.conv = nn.Linear(4, 4), nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.head(self.late(self.shared(self.shared(self.conv(x)) - 0.1)).mean((2, 3)))


RELUS = [
    "relu1",
    *(f"layer{stage}.{block}.relu{i}" for stage in (1, 2, 3) for block in (0, 1, 2) for i in (1, 2)),
]
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


@pytest.mark.parametrize(
    ("make", "recipe", "wanted"),
    [
        (lambda: SmallCNN(4, (0.5,), (0.5,), 4), {}, [f"relu{i}" for i in range(1, 7)]),
        (lambda: SmallCNN(4, (0.5,), (0.5,), 4), {"first": 3}, ["relu1", "relu2", "relu3"]),
        (lambda: SmallCNN(4, (0.5,), (0.5,), 4), {"last": 3}, ["relu4", "relu5", "relu6"]),
        (lambda: SmallCNN(4, (0.5,), (0.5,), 4), {"last": 6}, [f"relu{i}" for i in range(1, 7)]),
        (lambda: ResNet20(4, (0.5,), (0.5,)), {}, RELUS),
        (lambda: ResNet20(4, (0.5,), (0.5,)), {"first": 3}, RELUS[:3]),
        (lambda: ResNet20(4, (0.5,), (0.5,)), {"granularity": "blocks"}, BLOCKS),
        (lambda: ResNet20(4, (0.5,), (0.5,)), {"granularity": "blocks", "last": 3}, BLOCKS[-3:]),
        (lambda: Wrapped(ResNet20(4, (0.5,), (0.5,))), {"granularity": "blocks"}, [f"inside.{b}" for b in BLOCKS]),
        (Backwards, {}, ["shared", "shared#2", "late"]),
        (Backwards, {"last": 2}, ["shared#2", "late"]),
        (lambda: nn.Sequential(Backwards(), nn.Softplus()), {}, ["0.shared", "0.shared#2", "0.late"]),
    ],
)
def test_layers_that_are_regularised(make, recipe, wanted):
    """In the order of execution; never the network's own output, were it a block's or an activation's."""
    x = torch.rand(4, 1, 12, 12, generator=stream("layers"))
    _, responses = SelectivityRegularised(1.0, **recipe).responses(initialised(make, 0), x)
    assert list(responses) == wanted


def test_nineteen_activations_and_nine_blocks():
    assert (len(RELUS), len(BLOCKS)) == (19, 9)


def test_blocks_answer_what_their_last_relus_do():
    model, x = initialised(lambda: ResNet20(4, (0.5,), (0.5,)), 0), torch.rand(6, 1, 12, 12, generator=stream("blocks"))
    model.eval()
    _, blocks = SelectivityRegularised(1.0, granularity="blocks").responses(model, x)
    _, relus = SelectivityRegularised(1.0).responses(model, x)
    assert all(torch.equal(response, relus[f"{name}.relu2"]) for name, response in blocks.items())
    assert not torch.equal(blocks["layer1.0"], relus["layer1.0.relu1"])


@pytest.mark.parametrize(("chosen", "layer"), [({"last": 1}, "relu6"), ({"first": 1}, "relu1")])
def test_only_the_chosen_layers_are_in_the_loss(chosen, layer):
    model, x, y, rng = setting()
    model.eval()
    with torch.no_grad(), tap(model, activation_layers(model)) as seen:
        plain = cross_entropy(model(x), y)
        values = {name: class_selectivity(response, y).mean() for name, response in seen.items()}
    got = SelectivityRegularised(2.0, **chosen).loss(model, x, y, rng).detach()
    assert got == pytest.approx((plain - 2 * values[layer]).item(), abs=1e-6)
    others = [plain - 2 * value for name, value in values.items() if name != layer]
    assert all(abs(got - other) > 1e-4 for other in others)


def test_only_what_feeds_the_chosen_layers_gets_gradients():
    model, x, y, _ = setting()
    for chosen, fed in (({"first": 3}, {1, 2, 3}), ({"last": 3}, {1, 2, 3, 4, 5, 6})):
        model.zero_grad()
        _, responses = SelectivityRegularised(1.0, **chosen).responses(model, x)
        mean_selectivity(responses, y).backward()
        has = {i for i in range(1, 7) if getattr(model, f"conv{i}").weight.grad is not None}
        assert has == fed
        assert model.head.weight.grad is None


def test_layers_that_are_not_there_are_refused():
    model, x, y, rng = setting()
    for wrong, match in (
        ({"first": 0}, "first is a number of layers, from 1"),
        ({"last": -2}, "last is a number of layers, from 1"),
        ({"first": 1, "last": 1}, "not both"),
        ({"granularity": "block"}, "Did you mean 'blocks'"),
    ):
        with pytest.raises(GeophoneError, match=match):
            SelectivityRegularised(1.0, **wrong)
    for wrong, match in (
        ({"first": 7}, "has 6 activations to regularise, 7 are needed"),
        ({"last": 7}, "has 6 activations to regularise, 7 are needed"),
        ({"granularity": "blocks"}, "has 0 blocks to regularise"),
    ):
        with pytest.raises(GeophoneError, match=match):
            SelectivityRegularised(1.0, **wrong).loss(model, x, y, rng)
    with pytest.raises(GeophoneError, match="has 0 blocks"):  # its only block gives the logits
        SelectivityRegularised(1.0, granularity="blocks").loss(Wrapped(model), x, y, rng)


def test_a_recipe_is_the_code_that_makes_it():
    for text in (
        "SelectivityRegularised(alpha=-1)",
        "SelectivityRegularised(alpha=-1, first=3)",
        "SelectivityRegularised(alpha=2, last=3, granularity='blocks')",
        "AugMix(depth=2, jsd=6)",
    ):
        assert describe(RECIPES.build(text)) == text


def test_alpha_zero_is_cross_entropy_to_the_bit_whatever_the_layers():
    model, x, y, rng = setting()
    model.eval()
    plain = Standard().loss(model, x, y, rng)
    for layers in ({"first": 2}, {"last": 2}, {"granularity": "blocks"}):
        assert torch.equal(SelectivityRegularised(0.0, **layers).loss(model, x, y, rng), plain)
