"""What a perturbation can do beyond being called is declared by inheritance; a method's name means nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import stream
from geophone.core.types import GoesOn
from geophone.perturb import LinfPGD, PGDSteps, at_level
from geophone.perturb.corruptions.base import Corruption
from geophone.perturb.parse import fitted
from geophone.probes.curves import eps_curve
from geophone.probes.layers import measure
from geophone.probes.survival import survival

QUICK = {"steps": 2, "queries": 4, "searches": 1, "targets": 1, "translations": 2, "rotations": 2}


def network(noise: float = 0.0) -> nn.Module:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(192, 4, generator=stream("abilities")))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            z = (x.flatten(1) - 0.5) @ self.weight
            return self.relu(z + 10 + noise * torch.randn_like(z))

    return Small()


def data() -> tuple[Tensor, Tensor]:
    x = torch.rand(6, 3, 8, 8, generator=stream("abilities images"))
    with torch.no_grad():
        return x, network()(x).argmax(1)


def two_levels(name: str) -> list[Any]:
    made = PERTURBATIONS[name]
    fields = getattr(made, "__dataclass_fields__", {})
    one = made(**{field: value for field, value in QUICK.items() if field in fields and field != made.level})
    return [at_level(one, level) for level in made.levels[:2]] + [at_level(one, 0)][: len(made.levels) == 1]


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_every_perturbation_is_measured_at_two_levels(name: str) -> None:
    shakes = two_levels(name)
    rows = measure(network(), data(), shakes, ["relu"], ["accuracy", "cka"], batch_size=4)
    assert set(rows["level"]) == {0.0, *(float(getattr(one, one.level)) for one in shakes)}
    assert rows.filter(rows["metric"] == "accuracy")["value"].null_count() == 0
    found = survival(network(), data(), shakes, batch_size=4)
    assert 0 <= found.accuracy()[0] <= 1


@dataclass(frozen=True)
class Strange:
    """A plug-in's perturbation whose own methods and fields bear names of what others can do."""

    eps: float = 0.1
    level: ClassVar[str] = "eps"
    levels: ClassVar[tuple[float, ...]] = (0.05, 0.1)
    family: ClassVar[str] = "attack"
    norm: ClassVar[str] = "linf"
    highest: ClassVar[str] = "very"

    def __call__(self, x: Tensor, y: Tensor, model: Any, rng: Any) -> Tensor:
        return (x + self.eps).clamp(0, 1)

    def _mine(self) -> None:
        raise AssertionError("a method of the perturbation's own was called")

    onward = averaging = averaged = fool = nearest = for_images = members = draws = steps = inner = search = _mine


@pytest.fixture
def registered() -> Iterator[None]:
    with PERTURBATIONS.restored():
        PERTURBATIONS.register(Strange)
        yield


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_methods_of_a_plug_ins_own_are_left_alone(noise: float) -> None:
    shakes = [Strange(0.05), Strange(0.1)]
    rows = measure(network(noise), data(), shakes, ["relu"], ["accuracy"])
    assert len(rows.filter(rows["metric"] == "accuracy")) == 3
    assert survival(network(noise), data(), shakes, passes=2).attacks == ("Strange(eps=0.05)", "Strange")
    assert eps_curve(network(noise), data(), Strange(), passes=2).holds.shape == (6, 10)
    assert (
        measure(network(noise), data(), "MatchedL2(inner='Strange')", ["relu"], ["accuracy"])["value"].null_count() == 0
    )


def test_the_declared_ones_are_used() -> None:
    """PGD goes on from fewer steps: of 2 and 4 steps only 4 are taken. Severities are written out."""
    calls = 0

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += torch.is_grad_enabled()
            return self.inner(x)

    measure(Counting(), data(), [PGDSteps(steps=2), PGDSteps(steps=4)], ["inner.relu"], ["accuracy"])
    assert calls == 4
    assert isinstance(PGDSteps(), GoesOn)
    assert not isinstance(LinfPGD(), GoesOn)
    fog: Any = PERTURBATIONS["fog"]()
    assert isinstance(fog, Corruption)
    assert fitted(fog, (1, 3, 32, 32)).preset == "cifar10"
