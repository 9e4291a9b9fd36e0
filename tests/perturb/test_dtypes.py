"""Networks that compute in another dtype than the images have, whatever torch's default dtype is; and one logit."""

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geophone.perturb
from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS, RECIPES
from geophone.core.rng import draws, stream
from geophone.data import ImageData, Split
from geophone.perturb import FGSM, LinfAPGD, LinfPGD, at_level, from_callable
from geophone.perturb.attacks import ascent
from geophone.probes.checks import attack_checks
from geophone.probes.curves import eps_curve
from geophone.probes.layers import measure
from geophone.probes.survival import survival
from geophone.train import Training, fit

QUICK = {"steps": 3, "queries": 8, "searches": 2, "targets": 2, "translations": 3, "rotations": 3}
OTHER = (torch.float64, torch.bfloat16, torch.float16)
EVERY = pytest.mark.parametrize("name", list(PERTURBATIONS))


class Cast(nn.Module):
    """A small network that computes in `inside` and answers in `outside`; where both are float32, an ordinary one."""

    def __init__(self, inside: torch.dtype, outside: torch.dtype, classes: int = 4) -> None:
        super().__init__()
        generator = stream("cast")
        self.first = nn.Parameter(torch.randn(64, 16, generator=generator, dtype=torch.float32).to(inside))
        self.relu = nn.ReLU()
        self.second = nn.Parameter(torch.randn(16, classes, generator=generator, dtype=torch.float32).to(inside))
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        inner = x.mean(1).flatten(1).to(self.first.dtype) - 0.5
        return (self.relu(inner @ self.first) @ self.second).to(self.outside)


def networks() -> Iterator[Cast]:
    for dtype in OTHER:
        yield Cast(dtype, dtype)
        yield Cast(dtype, torch.float32)
        yield Cast(torch.float32, dtype)


PLAIN = Cast(torch.float32, torch.float32)


def images() -> tuple[Tensor, Tensor, Any]:
    x = torch.rand(6, 3, 8, 8, generator=stream("dtypes"), dtype=torch.float32)
    return x, PLAIN(x).argmax(1).detach(), draws("dtypes", index=torch.arange(6))


def quick(name: str, level: float | None = None) -> Any:
    made = PERTURBATIONS[name]
    fields = getattr(made, "__dataclass_fields__", {})
    thing = made(**{field: value for field, value in QUICK.items() if field in fields and field != made.level})
    return thing if level is None else at_level(thing, level)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def is_as_promised(one: Any, network: Cast) -> Tensor:
    """The images keep their shape and dtype, stay in [0, 1] and in the ball, and the labels alone decide the rest."""
    x, y, rng = images()
    moved = one(x, y, network, rng)
    assert moved.dtype == x.dtype
    assert moved.shape == x.shape
    assert bool(((moved >= 0) & (moved <= 1)).all())
    if hasattr(one, "norm"):
        assert one.norm.length(moved - x).max().item() <= getattr(one, one.level) + 1e-5
    return moved


@EVERY
def test_a_network_of_another_dtype_is_perturbed_as_any(name: str) -> None:
    for network in networks():
        is_as_promised(quick(name), network)


@EVERY
def test_the_dtype_of_the_logits_alone_changes_nothing(name: str) -> None:
    """Float32 logits are told in float64 without rounding, and a perturbation that is told so goes the same way."""
    one = quick(name)
    assert torch.equal(is_as_promised(one, Cast(torch.float32, torch.float64)), is_as_promised(one, PLAIN))


@EVERY
def test_torchs_default_dtype_changes_nothing(name: str) -> None:
    """To the bit."""
    for level in PERTURBATIONS[name].levels[:2]:
        one = quick(name, level if PERTURBATIONS[name].level != "steps" else int(level))
        expected = is_as_promised(one, PLAIN)
        with default(torch.float64):
            assert torch.equal(is_as_promised(one, PLAIN), expected)


VERBS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "survival": lambda model, data: (
        survival(model, data, "LinfPGD(steps=2), L2FMN(steps=3), LinfSquare(queries=4)").union
    ),
    "eps_curve": lambda model, data: eps_curve(model, data, LinfPGD(steps=2), [0.01, 0.1]).holds,
    "a curve of distances": lambda model, data: eps_curve(model, data, "L2FMN(steps=3)", [0.01, 0.1]).holds,
    "attack_checks": lambda model, data: [row["value"] for row in attack_checks(model, data, images=6)],
    "measure": lambda model, data: measure(model, data, "LinfPGD(steps=2)", ["*relu"], ["accuracy", "cka"])["value"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_networks_of_other_dtypes(verb: str) -> None:
    x, y, _ = images()
    for network in networks():
        VERBS[verb](network, (x, y))


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_depends_on_torchs_default_dtype(verb: str) -> None:
    x, y, _ = images()
    expected = VERBS[verb](PLAIN, (x, y))
    with default(torch.float64):
        got = VERBS[verb](PLAIN, (x, y))
    assert list(got) == list(expected) if not isinstance(got, Tensor) else torch.equal(got, expected)


def test_an_attack_of_another_library_sees_the_images_dtype() -> None:
    seen = []

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model(x).dtype)
        return x

    x, y, rng = images()
    from_callable(attack, 0.1, name="own", ball="linf")(x, y, Cast(torch.float64, torch.float64), rng)
    assert seen == [x.dtype]


def test_a_mutant_that_leaves_logits_as_they_come_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascent, "logits_at", lambda model, x, *_: model(x))
    with pytest.raises(RuntimeError, match="dtype"):
        is_as_promised(LinfAPGD(steps=3), Cast(torch.float32, torch.float64))


FLOATS = {"zeros", "ones", "full", "empty", "linspace", "eye", "rand", "randn", "logspace", "tensor"}


def without_dtype(source: str) -> list[int]:
    """Lines that make a tensor of torch's default dtype, unless what they are given has only whole numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in FLOATS:
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
            continue
        if "dtype" not in {keyword.arg for keyword in node.keywords}:
            found.append(node.lineno)
    return found


def test_perturbations_make_no_tensor_of_the_default_dtype() -> None:
    folder = Path(inspect.getfile(geophone.perturb)).parent
    files = [
        *folder.rglob("*.py"),
        *(folder.parent / "probes").rglob("*.py"),
        folder.parent / "core" / "rng.py",
    ]
    lines = {str(file.relative_to(folder.parent)): without_dtype(file.read_text()) for file in files}
    assert {name: found for name, found in lines.items() if found} == {}
    assert without_dtype("torch.zeros(3)\ntorch.zeros(3, dtype=torch.float32)") == [1]


# One logit


class OneLogit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = Cast(torch.float32, torch.float32, classes=2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.two(x)
        return logits[:, 1:] - logits[:, :1]


@pytest.mark.parametrize("name", [name for name, made in PERTURBATIONS.items() if made.family == "attack"])
def test_an_attack_of_one_logit_is_an_error(name: str) -> None:
    x, _, rng = images()
    for y in (torch.zeros(6, dtype=torch.int64), torch.arange(6) % 2):
        with pytest.raises(GeophoneError, match=r"one column.*torch\.cat\(\[torch\.zeros_like\(z\), z\], dim=1\)"):
            quick(name)(x, y, OneLogit(), rng)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_needs_classes_refuses_one_logit(verb: str) -> None:
    x, _, _ = images()
    with pytest.raises(GeophoneError, match=r"one column.*torch\.cat"):
        VERBS[verb](OneLogit(), (x, torch.zeros(6, dtype=torch.int64)))


@pytest.mark.parametrize("recipe", ["Standard", "Adversarial"])
def test_training_refuses_one_logit(recipe: str) -> None:
    x, _, _ = images()
    split = Split(x, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with pytest.raises(GeophoneError, match=r"one column.*torch\.cat"):
        fit(OneLogit(), ImageData("own", ("a",), split, split, split), RECIPES.build(recipe), Training(1, batch_size=3))


def test_geometry_takes_one_logit() -> None:
    x, _, _ = images()
    data = x, torch.zeros(6, dtype=torch.int64)
    assert measure(OneLogit(), data, "GaussianNoise(std=0.1)", ["two.relu"], ["cka"])["value"].null_count() == 0


@pytest.mark.parametrize("shape", [lambda z: z[:, 0], lambda z: z[:, :, None, None]])
def test_what_is_no_table_of_logits_is_an_error(shape: Callable[[Tensor], Any]) -> None:
    x, y, rng = images()

    class Shaped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return shape(PLAIN(x))

    for one in (FGSM(), LinfAPGD(steps=1), quick("LinfSquare"), quick("L2FMN"), quick("JSMA")):
        with pytest.raises(GeophoneError, match=r"needs logits \[n, k\]"):
            one(x, y, Shaped(), rng)
    with pytest.raises(GeophoneError, match=r"must give logits \[n, k\]"):
        survival(Shaped(), (x, y), FGSM())
