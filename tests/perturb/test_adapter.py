"""Attacks of other libraries: they do what the library does, and leave nothing behind, whatever the library does.

foolbox is a development dependency; torchattacks, ART and adv-lib are tested where they are installed. A library that
misbehaves in every way is made up here.
"""

import math
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.core.types import Perturbation, describe
from geophone.perturb import L2, LINF, LinfPGD, at_level
from geophone.perturb.attacks.adapter import (
    Foreign,
    Tool,
    from_adv_lib,
    from_art,
    from_callable,
    from_foolbox,
    from_torchattacks,
    undisturbed,
)
from geophone.perturb.parse import family_name, level_of
from geophone.testing.perturbation_laws import PERTURBATION_LAWS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports scipy in an old way
    import foolbox

SAME = 1e-6  # of images: the libraries step in another order of operations, and some in float32

# Foreign attacks are not made from text, and depend on the batch.
LAWS = [law for law in PERTURBATION_LAWS if law.__name__ not in ("is_plain_data", "ignores_batch_size_and_order")]


def rejected(check: Callable[..., None], *mutants: Any) -> None:
    """Every mutant fails the check."""
    for mutant in mutants:
        with pytest.raises(AssertionError):
            check(mutant)


def small_network() -> nn.Sequential:
    """In training mode, with dropout, a frozen BatchNorm, a frozen weight and a gradient that is there already."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
        network = nn.Sequential(*layers, nn.Linear(6 * 64, 5)).double()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[0].bias.grad = torch.full_like(network[0].bias, 3.0)
    return network


def small_batch(n: int = 6) -> tuple[Tensor, Tensor, Draws]:
    generator = stream("adapter")
    x = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    return x, torch.randint(5, (n,), generator=generator), draws("adapter", index=torch.arange(n) * 3 + 5)


def unmoved(model: Any, x: Tensor, y: Tensor, eps: float = 0.0) -> Tensor:
    return x


# --- names and levels


def test_tables_show_the_librarys_name_and_no_address_in_memory() -> None:
    attack = from_foolbox("LinfPGD", 0.1, steps=20)
    name = "foolbox.LinfProjectedGradientDescentAttack(steps=20)"
    assert repr(attack) == f"Foreign(attack={name}, eps=0.1, ball='linf')"
    assert describe(attack) == repr(attack)
    assert family_name(attack) == f"Foreign(attack={name}, ball='linf')"
    assert level_of(attack) == 0.1
    assert level_of(at_level(attack, 0.2)) == 0.2
    assert family_name(at_level(attack, 0.2)) == family_name(attack)
    assert isinstance(attack, Perturbation)
    assert attack == attack.__class__(attack.attack, 0.1, "linf")
    assert len({attack, at_level(attack, 0.2), at_level(attack, 0.1)}) == 2
    made = from_foolbox(foolbox.attacks.L2PGD(steps=7, random_start=False), 1.0)
    assert "steps=7" in repr(made)
    assert "random_start=False" in repr(made)
    assert made.norm is L2
    odd = from_callable(unmoved, 0.1, name="mine", criterion=lambda y: y, ball=None)
    assert repr(odd) == "Foreign(attack=mine(criterion=function), eps=0.1, ball=None)"
    assert family_name(odd) == "Foreign(attack=mine(criterion=function))"


def test_a_norm_is_there_where_there_is_a_ball() -> None:
    assert from_foolbox("LinfPGD", 0.1).norm is LINF
    assert from_foolbox("LinfPGD", 0.1, ball="l2").norm is L2
    assert getattr(from_callable(unmoved, 0.1, name="mine"), "norm", None) is None


def test_eps_reaches_the_library_at_every_level() -> None:
    given: list[float] = []

    def attack(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
        given.append(eps)
        return x

    def greek(model: Any, inputs: Tensor, labels: Tensor, ε: float, steps: int) -> Tensor:
        given.append(ε + steps)
        return inputs

    x, y, rng = small_batch()
    for eps in (0.1, 0.2):
        at_level(from_callable(attack, 0.5, name="mine"), eps)(x, y, small_network(), rng)
        at_level(from_adv_lib(greek, 0.5, steps=3), eps)(x, y, small_network(), rng)
    assert given == [0.1, 3.1, 0.2, 3.2]
    assert torch.equal(at_level(from_callable(attack, 0.5, name="mine"), 0)(x, y, small_network(), rng), x)
    assert len(given) == 4, "at level 0 the library isn't called"


# --- foolbox and torchattacks do what they do by themselves


def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks is not a development dependency")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("library", ["foolbox", "foolbox l2", "torchattacks"])
def test_laws(law: Callable[[Callable[[], Perturbation]], None], library: str) -> None:
    if library == "foolbox":
        law(lambda: from_foolbox("LinfPGD", 8 / 255, steps=5))
    elif library == "foolbox l2":
        law(lambda: from_foolbox("L2DeepFoolAttack", 0.5, steps=5))
    else:
        torchattacks()
        law(lambda: from_torchattacks("PGD", 8 / 255, ball="linf", steps=5))


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
def test_pgd_of_foolbox_and_torchattacks_is_geophones(eps: float) -> None:
    (x, y, rng), network = small_batch(), small_network()
    ours = LinfPGD(eps=eps, steps=5, step_size=eps / 3, random_start=False, loss="ce")(x, y, network, rng)

    def agrees(attack: Foreign) -> None:
        assert (attack(x, y, network, rng) - ours).abs().max() <= SAME

    make = foolbox.attacks.LinfPGD(steps=5, abs_stepsize=eps / 3, random_start=False)
    agrees(at_level(from_foolbox(make, 0.03), eps))  # type: ignore[arg-type]
    rejected(agrees, from_foolbox(make, eps / 2), from_foolbox("LinfPGD", eps, steps=5, abs_stepsize=eps / 3))
    torchattacks()
    one = from_torchattacks("PGD", 0.03, ball="linf", steps=5, alpha=eps / 3, random_start=False)
    agrees(at_level(one, eps))  # type: ignore[arg-type]
    rejected(agrees, from_torchattacks("PGD", eps, steps=5, alpha=eps / 3, random_start=True))


def test_random_starts_repeat_and_come_from_rng() -> None:
    (x, y, rng), network = small_batch(), small_network()
    for attack in (from_foolbox("LinfPGD", 0.1, steps=1), from_callable(noisy, 0.1, name="noisy")):
        one = attack(x, y, network, rng)
        for draw in (torch.rand, np.random.rand, lambda _: random.random()):
            draw(1)
        assert torch.equal(attack(x, y, network, rng), one)
        assert not torch.equal(attack(x, y, network, rng.child("again")), one)


def noisy(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Noise of all three global generators."""
    noise = torch.rand(x.shape, dtype=x.dtype) + torch.from_numpy(np.random.rand(*x.shape)) + random.random()  # noqa: NPY002
    return (x + eps * (noise / 3 - 0.5)).clamp(0, 1)


def test_the_network_answers_in_evaluation_mode_with_gradients_and_its_own_noise() -> None:
    (x, y, rng), network = small_batch(), small_network()
    expected = small_network().eval()(x)

    def looks(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not model.training
        assert torch.equal(model(inputs), expected)
        assert torch.equal(model.train()(inputs), expected), "a library's train() must not reach the network"
        assert torch.autograd.grad(model(inputs.requires_grad_()).sum(), inputs)[0].abs().max() > 0
        assert next(model.parameters()).device == x.device
        return inputs

    attack = from_callable(looks, 0.1, name="mine")
    attack(x, y, network, rng)
    with torch.inference_mode():
        attack(x.clone(), y.clone(), network, rng)

    class Stochastic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :5] + torch.randn(len(x), 5)

    answers: list[Tensor] = []

    def asks(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        answers.extend(model(inputs) for _ in range(2))
        return inputs

    for _ in range(2):
        from_callable(asks, 0.1, name="mine")(x, y, Stochastic(), rng)
    assert not torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


# --- nothing is left behind


def misbehaves(network: nn.Module) -> dict[str, Callable[..., Tensor]]:
    """What a library may do; the network itself is reached behind the adapter's back, as a closure can."""

    def backward(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        network.requires_grad_(True)
        nn.functional.cross_entropy(network(x), y).backward()
        return x

    def trains(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        network.train()
        model.train()
        return x

    def thaws(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        network.requires_grad_(True)
        return x

    def forgets(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        network.zero_grad()
        return x

    def seeds(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        return noisy(model, x, y, eps)

    def writes(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        y.zero_()
        return x.zero_()

    def runs(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        network.train()(x)
        return x

    def fails(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        trains(model, x, y, eps)
        seeds(model, x, y, eps)
        backward(model, x, y, eps)
        raise RuntimeError("the library failed")

    return {one.__name__: one for one in (backward, trains, thaws, forgets, seeds, writes, runs, fails)}


@pytest.mark.parametrize("misdeed", ["backward", "trains", "thaws", "forgets", "seeds", "writes", "runs", "fails"])
def test_whatever_a_library_does_everything_is_as_it_was(misdeed: str) -> None:
    (x, y, rng), network = small_batch(), small_network()
    library = misbehaves(network)[misdeed]

    def clean(call: Callable[[], Tensor]) -> None:
        images, labels, gradient = x.clone(), y.clone(), network[0].bias.grad
        modes = [module.training for module in network.modules()]
        learns = [parameter.requires_grad for parameter in network.parameters()]
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
        try:
            out = call()
        except RuntimeError:
            out = None
        assert torch.equal(torch.get_rng_state(), before[0])
        assert str(np.random.get_state()) == before[1]  # noqa: NPY002
        assert [module.training for module in network.modules()] == modes
        assert [parameter.requires_grad for parameter in network.parameters()] == learns
        assert network[0].bias.grad is gradient
        assert gradient is None or gradient.eq(3.0).all()
        assert all(parameter.grad is None for name, parameter in network.named_parameters() if name != "0.bias")
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
        assert torch.equal(x, images)
        assert torch.equal(y, labels)
        assert out is None or not out.requires_grad
        if out is not None:
            out.fill_(0.5)
            assert torch.equal(x, images), "the result shares memory with x"

    attack = from_callable(library, 0.1, name="fake")
    clean(lambda: attack(x, y, network, rng))

    def bare() -> Tensor:
        with torch.enable_grad():
            return library(network, x, y, 0.1).clone()

    rejected(clean, bare)


def test_pythons_random_state_is_as_it_was() -> None:
    x, y, rng = small_batch()
    numbers: list[float] = []

    def library(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        random.seed(len(numbers))
        numbers.append(random.random())
        return x

    attack = Foreign(Tool("fake", library), 0.1)
    random.seed(1)
    random.random()
    state = random.getstate()
    # Without a call of Foreign, because run-time type checkers draw numbers of their own.
    with undisturbed(small_network(), x, rng) as network:
        attack.attack.run(network, x, y, 0.1)
        assert random.getstate() != state
    assert random.getstate() == state


# --- what comes back is checked


def returning(change: Callable[[Tensor], Any], eps: float = 0.1, ball: str | None = None) -> Foreign:
    def library(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        return change(x)

    return from_callable(library, eps, name="fakelib.Attack", ball=ball)


@pytest.mark.parametrize(
    ("change", "ball", "says"),
    [
        (lambda x: torch.full_like(x, math.nan), None, "NaN"),
        (lambda x: x / 0, None, "NaN or infinity"),
        (lambda x: x[:, :1], None, "shape"),
        (lambda x: x[:-1], None, "shape"),
        (lambda x: None, None, "NoneType"),
        (lambda x: "images", None, "str"),
        (lambda x: x * 255, None, r"\[0, 255\]"),
        (lambda x: x - 1e-4, None, r"in \[0, 1\]"),
        (lambda x: (x + 0.11).clamp(0, 1), "linf", "linf.*eps=0.1"),
        (lambda x: (x + 0.01).clamp(0, 1), "l2", "l2.*eps=0.1"),
        (lambda x: (x + 0.01).clamp(0, 1), "l1", "l1.*eps=0.1"),
    ],
)
def test_what_is_no_attacked_image_is_an_error_that_names_the_library(
    change: Callable[[Tensor], Any], ball: str | None, says: str
) -> None:
    x, y, rng = small_batch()
    with pytest.raises(GeophoneError, match=says) as error:
        returning(change, ball=ball)(x, y, small_network(), rng)
    assert "fakelib.Attack" in str(error.value)


def test_what_is_off_by_rounding_is_put_right_and_nothing_else_is_touched() -> None:
    (x, y, rng), network = small_batch(), small_network()
    high = returning(lambda x: (x + 0.1 + 5e-7).clamp(-1e-7, 1 + 5e-7), ball="linf")(x, y, network, rng)
    assert high.max() <= 1
    assert (high - x).abs().max() <= 0.1 * (1 + 1e-12)
    long = returning(lambda x: (x + 0.1 / math.sqrt(192) * (1 + 1e-6)).clamp(0, 1), ball="l2")(x, y, network, rng)
    assert L2.length(long - x).max() <= 0.1 * (1 + 1e-12)
    free = returning(lambda x: (x + 5e-7).clamp(-1e-7, 1 + 5e-7))(x, y, network, rng)
    assert free.max() == 1
    exact = returning(lambda x: (x + 0.05).clamp(0, 1), ball="linf")(x, y, network, rng)
    assert torch.equal(exact, (x + 0.05).clamp(0, 1))


def test_numpy_arrays_and_other_dtypes_come_back_as_the_images_are() -> None:
    (x, y, rng), network = small_batch(), small_network()
    for change in (lambda x: x.float().numpy(), lambda x: x.float(), lambda x: x.clone().requires_grad_() * 1):
        out = returning(change)(x, y, network, rng)
        assert out.dtype == x.dtype
        assert not out.requires_grad
        assert (out - x).abs().max() <= 1e-7


# --- attacks without a radius


def test_what_an_attack_without_radius_finds_is_brought_to_within_eps() -> None:
    (x, y, rng), network = small_batch(), small_network()
    x = 0.3 + 0.4 * x  # so that nothing is clipped
    direction = torch.randn(x.shape, generator=stream("direction"), dtype=torch.float64)
    direction = direction / L2.length(direction)[:, None, None, None]
    length = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.0]).double()[:, None, None, None]

    def nearest(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs + length * direction

    with pytest.raises(GeophoneError, match="ball"):
        from_callable(nearest, 0.5, name="mine")
    found = from_callable(nearest, 0.5, name="mine", ball="l2")(x, y, network, rng)
    assert torch.allclose(found, x + length.clamp(max=0.5) * direction, rtol=0, atol=1e-12)
    other = torch.rand(x.shape, generator=stream("other"), dtype=torch.float64)
    stays = from_callable(lambda model, inputs, labels: other, 1.0, name="mine", ball="linf")(x, y, network, rng)
    assert torch.equal(stays, other), "what is near enough stays, to the bit"
    assert not torch.equal(x + (other - x), other), "the test needs a sum that is rounded"
    linf = from_callable(nearest, 0.05, name="mine", ball="linf")(x, y, network, rng)
    assert (linf - x).abs().max() <= 0.05 * (1 + 1e-12)


def test_torchattacks_without_radius_is_brought_to_within_eps() -> None:
    torchattacks()
    (x, y, rng), network = small_batch(), small_network()
    with pytest.raises(GeophoneError, match="no radius"):
        from_torchattacks("DeepFool", 0.5)
    far = from_torchattacks("DeepFool", 10.0, ball="l2", steps=10)(x, y, network, rng)
    length = L2.length(far - x)
    eps = float(length.median())
    near = from_torchattacks("DeepFool", eps, ball="l2", steps=10)(x, y, network, rng)
    assert torch.allclose(L2.length(near - x), length.clamp(max=eps), rtol=0, atol=1e-9)


def test_torchattacks_takes_classes_and_functions_that_make_an_attack() -> None:
    module, (x, y, rng), network = torchattacks(), small_batch(), small_network()
    named = from_torchattacks("FGSM", 0.1, ball="linf")(x, y, network, rng)
    assert torch.equal(from_torchattacks(module.FGSM, 0.1, ball="linf")(x, y, network, rng), named)
    made = from_torchattacks(lambda model, eps: module.FGSM(model, eps=eps), 0.1, ball="linf")
    assert torch.equal(made(x, y, network, rng), named)


# --- what isn't there


@pytest.mark.parametrize(
    ("make", "library", "distribution"),
    [
        (from_foolbox, "foolbox", "foolbox"),
        (from_torchattacks, "torchattacks", "torchattacks"),
        (from_art, "art", "adversarial-robustness-toolbox"),
        (from_adv_lib, "adv_lib", "adv-lib"),
    ],
)
def test_a_missing_library_says_how_to_install_it(
    make: Any, library: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(GeophoneError, match=f"pip install {distribution}"):
        make("PGD", 0.1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: from_foolbox("LinfPDG", 0.1), "LinfPGD"),
        (lambda: from_foolbox("_private", 0.1), "unknown"),
        (lambda: from_foolbox(foolbox.attacks.LinfPGD(), 0.1, steps=3), "steps"),
        (lambda: from_foolbox("LinfPGD", 8.0), "8/255"),
        (lambda: from_foolbox("LinfPGD", -0.1), "eps"),
        (lambda: from_foolbox("LinfPGD", 0.1, ball="l3"), "l3"),
    ],
)
def test_wrong_names_and_radii_are_errors(wrong: Callable[[], Any], says: str) -> None:
    with pytest.raises(GeophoneError, match=says):
        wrong()


def test_images_are_checked_before_the_library_sees_them() -> None:
    x, y, rng = small_batch()
    with pytest.raises(GeophoneError, match="NaN"):
        returning(lambda x: x)(x * math.nan, y, small_network(), rng)


# --- ART and adv-lib


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_art(law: Callable[[Callable[[], Perturbation]], None]) -> None:
    pytest.importorskip("art.attacks.evasion", reason="ART is not a development dependency", exc_type=ImportError)
    law(lambda: from_art("ProjectedGradientDescent", 8 / 255, ball="linf", max_iter=5, eps_step=2 / 255))


def test_art_agrees_with_geophone() -> None:
    pytest.importorskip("art.attacks.evasion", reason="ART is not a development dependency", exc_type=ImportError)
    (x, y, rng), network = small_batch(), small_network()
    ours = LinfPGD(eps=0.1, steps=5, step_size=0.03, random_start=False, loss="ce")(x, y, network, rng)
    theirs = from_art("ProjectedGradientDescent", 0.1, ball="linf", max_iter=5, eps_step=0.03)(x, y, network, rng)
    assert (theirs - ours).abs().max() <= SAME
    deep = from_art("DeepFool", 0.05, ball="l2", max_iter=5)(x, y, network, rng)  # its `epsilon` is no radius
    assert L2.length(deep - x).max() <= 0.05 * (1 + 1e-9)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_adv_lib(law: Callable[[Callable[[], Perturbation]], None]) -> None:
    pytest.importorskip("adv_lib.attacks", reason="adv-lib is not a development dependency", exc_type=ImportError)
    law(lambda: from_adv_lib("ddn", 0.5, ball="l2", steps=10))
    law(lambda: from_adv_lib("pgd_linf", 8 / 255, ball="linf", steps=5))
