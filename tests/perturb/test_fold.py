"""The faster copy of a network that attacks run on: the same predictions, and left out where it does not apply."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geophone.core.rng import draws, stream
from geophone.models import resnet20
from geophone.models.run import evaluating, seeded
from geophone.perturb import LinfPGD
from geophone.perturb.attacks import fold
from geophone.perturb.attacks.ascent import attacking
from geophone.perturb.attacks.fold import SAME, folded

X = torch.rand(16, 3, 16, 16, generator=stream("fold"))


def trained_looking(model: nn.Module) -> nn.Module:
    """BatchNorm statistics and weights that are not the initial ones."""
    generator = stream("statistics")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.2, 3.0),
                (module.weight, 0.5, 2.0),
                (module.bias, -1.0, 1.0),
            ):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def small(**norm: Any) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, **norm), nn.ReLU()),
            *(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, **norm), nn.Flatten(), nn.Linear(4 * 144, 5)),
        )


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= SAME * expected.abs().max())


@pytest.mark.parametrize("norm", [{}, {"affine": False}])
def test_a_folded_network_gives_the_same_logits(norm: dict[str, Any]) -> None:
    model = trained_looking(small(**norm))
    twin = folded(model, X)
    assert isinstance(twin, nn.Module)
    assert twin is not model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert close(twin(X), model(X))


def test_so_does_a_residual_network_to_1e_5() -> None:
    model = trained_looking(resnet20(10, (0.5,) * 3, (0.25,) * 3))
    twin = folded(model, X)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 21  # two on shortcuts
    assert isinstance(twin, nn.Module)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert close(twin(X), model(X))


def test_in_float64_it_agrees_to_rounding() -> None:
    model = trained_looking(small()).double()
    twin = folded(model, X.double())
    assert twin is not model
    assert (twin(X.double()) - model(X.double())).abs().max() < 1e-12 * model(X.double()).abs().max()


class TwoReaders(nn.Module):
    """The convolution's output goes to the BatchNorm and past it: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return (self.norm(out) + out).mean((2, 3))


class UsedTwice(TwoReaders):
    """One BatchNorm behind two calls of one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.norm(self.conv(1 - x))).mean((2, 3))


class Noisy(TwoReaders):
    """Stochastic: it draws from the global state, which both are asked from."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + torch.randn(len(x), 4)


class NoisyByItself(TwoReaders):
    """Stochastic, from a stream of its own: its logits can't be compared with those of a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + torch.from_numpy(self.random.normal(size=(len(x), 4))).float()


def test_a_stochastic_network_is_folded_and_draws_the_same_noise() -> None:
    model = trained_looking(Noisy())
    twin = folded(model, X)
    assert twin is not model
    answers = []
    for one, seed in ((model, 0), (twin, 0), (twin, 1)):
        with seeded(seed, X.device):
            answers.append(one(X))
    assert close(answers[1], answers[0])
    assert not close(answers[2], answers[0])


class Locked(TwoReaders):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def hooked() -> nn.Module:
    model = trained_looking(small())
    model[2].register_forward_hook(lambda module, given, out: out * 2)
    return model


@pytest.mark.parametrize(
    "model",
    [
        trained_looking(TwoReaders()),
        trained_looking(UsedTwice()),
        NoisyByItself().eval(),
        Locked().eval(),
        hooked(),
        small(track_running_stats=False).eval(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(),
        lambda x: x.mean((2, 3)),
    ],
    ids=[
        "two readers",
        "used twice",
        "stochastic",
        "no copy",
        "hooks",
        "batch statistics",
        "nothing to fold",
        "function",
    ],
)
def test_where_it_does_not_apply_the_network_itself_is_attacked(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        assert folded(model, X) is model


class ByKeyword(nn.Module):
    """Calls its BatchNorm with `input=`, which a hook on it is not handed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = small()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.norm(input=self.convolution(x)).mean((1, 2, 3))[:, None]


def test_a_norm_that_is_called_by_keyword_is_left_as_it_is() -> None:
    model = trained_looking(ByKeyword())
    twin = folded(model, X)
    assert twin is not model  # the others are folded
    assert isinstance(twin.norm, nn.BatchNorm2d)
    assert close(twin(X), model(X))


def test_a_network_that_writes_to_its_images_writes_to_no_one_elses() -> None:
    before = X.clone()
    folded(trained_looking(nn.Sequential(nn.Threshold(0.5, 0.0, inplace=True), *small())), X)
    assert torch.equal(X, before)


def test_the_network_is_not_touched() -> None:
    model = trained_looking(small())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    folded(model, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_in_training_mode_is_folded_as_in_evaluation() -> None:
    model = trained_looking(small()).train()
    expected = folded(trained_looking(small()), X)(X)
    with attacking(model, X, draws("fold", index=torch.arange(len(X)))) as twin:
        assert torch.equal(twin(X), expected)
    assert all(module.training for module in model.modules())


def test_the_attack_is_as_strong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where no sign of a gradient hangs on rounding: the same examples with and without folding."""
    model, x = trained_looking(small()).double(), X.double()
    y, rng = torch.arange(16) % 5, draws("fold", index=torch.arange(16))
    ours = LinfPGD()(x, y, model, rng)
    monkeypatch.setattr(fold, "_pairs", lambda model, probe: ([], model(probe)))
    assert (ours - LinfPGD()(x, y, model, rng)).abs().max() < 1e-9


def test_a_mutant_that_forgets_the_variance_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong fold never reaches an attack: its logits differ, so the network itself is attacked."""
    absorb = fold._absorb

    def wrong(convolution: nn.Module, norm: Any) -> None:
        norm.running_var = torch.ones_like(norm.running_var)
        absorb(convolution, norm)

    monkeypatch.setattr(fold, "_absorb", wrong)
    model = trained_looking(small())
    assert folded(model, X) is model


def test_folding_is_asked_for_in_evaluation_mode() -> None:
    model = trained_looking(small()).train()
    with evaluating(model):
        assert folded(model, X) is not model
