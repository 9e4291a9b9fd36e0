"""Every registered perturbation keeps every law, and every law catches a perturbation that breaks it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import stream
from geophone.models.run import evaluating
from geophone.perturb import (
    FGSM,
    L2PGD,
    LINF,
    GaussianNoise,
    LinfPGD,
    SaltAndPepper,
    fog,
    glass_blur,
    loss_gradient,
)
from geophone.testing import perturbation_laws as laws

VARIANTS = [
    GaussianNoise(std=3.0),
    SaltAndPepper(amount=1.0),
    *(kind(severity=5, preset=preset) for kind in (fog, glass_blur) for preset in ("tiny_imagenet", "imagenet")),
    FGSM(eps=1.0),
    LinfPGD(steps=1, random_start=False),
    L2PGD(steps=3, step_size=5.0),
]


# What would take minutes at its own settings: a law holds for any number of steps.
QUICK = {
    "steps": 4,
    "queries": 12,
    "searches": 2,
    "targets": 2,
}


def quick(name: str) -> laws.Make:
    """The perturbation with few steps, where it has any."""
    made = PERTURBATIONS[name]
    fields = getattr(made, "__dataclass_fields__", {})
    steps = {"steps": 40} if name == "CarliniWagner" else {}  # with fewer it finds nothing
    return lambda: made(**{field: value for field, value in (QUICK | steps).items() if field in fields})


@pytest.mark.parametrize("law", laws.PERTURBATION_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_every_perturbation_keeps_every_law(name: str, law: Callable[[laws.Make], None]) -> None:
    law(quick(name))


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_so_do_other_parameters(variant: Any) -> None:
    assert laws.check_perturbation(lambda: variant) == []


# Mutants: one wrong perturbation or more for each law. The attacks among them are FGSM but for one mistake.


@dataclass(frozen=True)
class Mutant:
    eps: float = 0.1
    level = "eps"
    levels = (0.05, 0.1)
    family = "attack"


def fgsm(mutant: Any, x: Tensor, y: Tensor, model: Any) -> Tensor:
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        return (x + mutant.eps * loss_gradient(model, x.clone(), y.clone()).sign()).clamp(0, 1)


@dataclass  # not frozen
class Thawed:
    eps: float = 0.1
    level = "eps"
    levels = (0.05, 0.1)
    family = "corruption"

    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class PrintsNoCode(Mutant):
    marks: tuple[str, ...] = field(default=("a",), repr=False)

    def __repr__(self):
        return f"<{self.eps}>"

    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class Unhashable(Mutant):
    weights: list[float] = field(default_factory=list)

    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class ToDouble(Mutant):
    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1).double()


@dataclass(frozen=True)
class CropsOddEdges(Mutant):
    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1)[..., : x.shape[-1] // 2 * 2]


@dataclass(frozen=True)
class KeepsGraph(Mutant):
    def __call__(self, x, y, model, rng):
        return (x.clone().requires_grad_() + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class DoesNotClip(Mutant):
    def __call__(self, x, y, model, rng):
        return x + self.eps


@dataclass(frozen=True)
class RoundsAtZero(Mutant):
    def __call__(self, x, y, model, rng):
        mean = x.mean((2, 3), keepdim=True)
        return (mean + (1 - self.eps) * (x - mean)).clamp(0, 1)


@dataclass(frozen=True)
class LevelIsWhatIsLeft(Mutant):
    def __call__(self, x, y, model, rng):
        mean = x.mean((2, 3), keepdim=True)
        return mean + self.eps * (x - mean)


@dataclass(frozen=True)
class LevelsFall(Mutant):
    levels = (0.1, 0.05)

    def __call__(self, x, y, model, rng):
        return (x + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class DoesNotProject(Mutant):
    norm = LINF

    def __call__(self, x, y, model, rng):
        for _ in range(3):
            x = fgsm(self, x, y, model)
        return x


@dataclass(frozen=True)
class GlobalNoise(Mutant):
    family = "noise"

    def __call__(self, x, y, model, rng):
        return (x + self.eps * torch.randn(x.shape)).clamp(0, 1)


@dataclass(frozen=True)
class ResetsGlobalSeed(Mutant):
    def __call__(self, x, y, model, rng):
        torch.manual_seed(rng.seed)
        return (x + self.eps * torch.randn(x.shape)).clamp(0, 1)


@dataclass(frozen=True)
class SameNoiseForAll(Mutant):
    family = "noise"

    def __call__(self, x, y, model, rng):
        z = torch.randn(x.shape[1:], generator=stream(rng.seed))
        return (x + self.eps * z).clamp(0, 1)


@dataclass(frozen=True)
class SameNoiseForAnySeed(Mutant):
    family = "noise"

    def __call__(self, x, y, model, rng):
        z = torch.randn(x.shape, generator=stream("noise"))
        return (x + self.eps * z).clamp(0, 1)


@dataclass(frozen=True)
class NoiseByPosition(Mutant):
    family = "noise"

    def __call__(self, x, y, model, rng):
        z = torch.randn(x.shape, generator=stream(rng.seed))
        return (x + self.eps * z).clamp(0, 1)


@dataclass(frozen=True)
class NormalisesOverBatch(Mutant):
    def __call__(self, x, y, model, rng):
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            gradient = loss_gradient(model, x.clone(), y.clone())
        return (x + self.eps * gradient / gradient.norm()).clamp(0, 1)


@dataclass(frozen=True)
class WritesToInput(Mutant):
    def __call__(self, x, y, model, rng):
        return x.add_(self.eps).clamp_(0, 1)


@dataclass(frozen=True)
class ReturnsInput(Mutant):
    def __call__(self, x, y, model, rng):
        return x if self.eps == 0 else (x + self.eps).clamp(0, 1)


@dataclass(frozen=True)
class LeavesGradients(Mutant):
    def __call__(self, x, y, model, rng):
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            moved = x.clone().requires_grad_()
            cross_entropy(model(moved), y.clone(), reduction="sum").backward()
        return (x + self.eps * moved.grad.sign()).clamp(0, 1)


@dataclass(frozen=True)
class FreezesParameters(Mutant):
    def __call__(self, x, y, model, rng):
        for parameter in model.parameters() if hasattr(model, "parameters") else []:
            parameter.requires_grad_(False)
        return fgsm(self, x, y, model)


@dataclass(frozen=True)
class LeavesEval(Mutant):
    def __call__(self, x, y, model, rng):
        if hasattr(model, "eval"):
            model.eval()
        return fgsm(self, x, y, model)


@dataclass(frozen=True)
class ThawsBatchNorm(Mutant):
    def __call__(self, x, y, model, rng):
        out = fgsm(self, x, y, model)
        if hasattr(model, "train"):
            model.train(model.training)
        return out


@dataclass(frozen=True)
class ForgetsFlagsOnFailure(Mutant):
    def __call__(self, x, y, model, rng):
        modules = list(model.modules()) if hasattr(model, "modules") else []
        before = [module.training for module in modules]
        for module in modules:
            module.training = False
        out = fgsm(self, x, y, model)
        for module, training in zip(modules, before, strict=True):
            module.training = training
        return out


@dataclass(frozen=True)
class AttacksInTraining(Mutant):
    def __call__(self, x, y, model, rng):
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            return (x + self.eps * loss_gradient(model, x.clone(), y.clone()).sign()).clamp(0, 1)


@dataclass(frozen=True)
class NeedsModule(Mutant):
    def __call__(self, x, y, model, rng):
        dtype = next(model.parameters()).dtype
        return fgsm(self, x.to(dtype), y, model)


@dataclass(frozen=True)
class ForgetsEnableGrad(Mutant):
    def __call__(self, x, y, model, rng):
        with evaluating(model):
            return (x + self.eps * loss_gradient(model, x, y).sign()).clamp(0, 1)


MUTANTS: list[tuple[type, str]] = [
    (Thawed, "is_plain_data"),
    (PrintsNoCode, "is_plain_data"),
    (Unhashable, "is_plain_data"),
    (ToDouble, "keeps_shape_and_dtype"),
    (CropsOddEdges, "keeps_shape_and_dtype"),
    (KeepsGraph, "keeps_shape_and_dtype"),
    (DoesNotClip, "stays_in_range"),
    (RoundsAtZero, "level_zero_changes_nothing"),
    (LevelIsWhatIsLeft, "levels_grow_stronger"),
    (LevelsFall, "levels_grow_stronger"),
    (DoesNotProject, "stays_in_its_ball"),
    (GlobalNoise, "repeats_itself"),
    (SameNoiseForAll, "draws_for_each_example"),
    (SameNoiseForAnySeed, "draws_for_each_example"),
    (NoiseByPosition, "ignores_batch_size_and_order"),
    (NormalisesOverBatch, "ignores_batch_size_and_order"),
    (WritesToInput, "leaves_its_input_alone"),
    (ReturnsInput, "leaves_its_input_alone"),
    (LeavesGradients, "leaves_the_model_alone"),
    (FreezesParameters, "leaves_the_model_alone"),
    (AttacksInTraining, "leaves_the_model_alone"),
    (AttacksInTraining, "evaluates_the_model"),
    (LeavesEval, "restores_training_flags"),
    (ThawsBatchNorm, "restores_training_flags"),
    (ForgetsFlagsOnFailure, "restores_training_flags"),
    (NeedsModule, "takes_a_plain_function"),
    (ForgetsEnableGrad, "works_where_gradients_are_off"),
    (GlobalNoise, "leaves_global_randomness_alone"),
    (ResetsGlobalSeed, "leaves_global_randomness_alone"),
]


@pytest.fixture
def registered_mutants() -> Iterator[None]:
    with PERTURBATIONS.restored(), torch.random.fork_rng(devices=[]):
        for mutant in (Mutant, *dict.fromkeys(mutant for mutant, _ in MUTANTS)):
            PERTURBATIONS.register(mutant)
        yield


@pytest.mark.usefixtures("registered_mutants")
@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_mutant_breaks_its_law(mutant: type, law: str) -> None:
    assert law in [line.split(":")[0] for line in laws.check_perturbation(mutant)]


def test_every_law_has_a_mutant() -> None:
    assert {law for _, law in MUTANTS} == {law.__name__ for law in laws.PERTURBATION_LAWS}


@pytest.mark.usefixtures("registered_mutants")
def test_the_mutants_are_wrong_in_little_else() -> None:
    """Or a law might catch them for another reason than its own."""
    broken = {m.__name__: {line.split(":")[0] for line in laws.check_perturbation(m)} for m, _ in MUTANTS}
    alone = [name for name, laws_broken in broken.items() if len(laws_broken) == 1]
    assert len(alone) >= len(broken) / 2, broken
