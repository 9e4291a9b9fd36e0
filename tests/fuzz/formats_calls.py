"""Calls as text: what is registered, with any argument."""

import inspect
import math
from typing import Any

import torch

from geophone.core.registry import DATASETS, MODELS, PERTURBATIONS, RECIPES, Registry, parse_call
from geophone.core.rng import Draws, stream
from geophone.models.networks import SmallCNN
from geophone.models.run import seeded
from geophone.perturb.parse import grid
from tests.fuzz.harness import Case, Format, register
from tests.fuzz.mutate import LITERALS, NUMBERS, any_word, damaged_text, hostile_call

_MORE: dict[str, dict[str, Any]] = {"models": {"classes": 3, "mean": (0.5,), "std": (0.5,)}}


def _parameters(registry: Registry[Any], name: str) -> list[str]:
    return list(inspect.signature(registry[name]).parameters)


def _call_of(registry: Registry[Any]):
    def mutator(case: Case) -> str:
        name = case.draw.choice(list(registry))
        case.words[0] = hostile_call(case, name, _parameters(registry, name))
        return f"{case.words[0]!r:.200}"

    return mutator


def _near(registry: Registry[Any]):
    """One argument: a plain number or text, near what may be right."""

    def mutator(case: Case) -> str:
        name = case.draw.choice(list(registry))
        parameter = case.draw.choice(_parameters(registry, name) or ["nothing"])
        value = case.draw.choice((*(repr(n) for n in NUMBERS if abs(n) < 1e6), "None", "'l2'", "'relu1'", "(1,)"))
        case.words[0] = f"{name}({parameter}={value})"
        return case.words[0]

    return mutator


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(one) for one in value)
    if isinstance(value, dict):
        return all(_plain(one) for pair in value.items() for one in pair)
    if type(value) in (int, float):
        return math.isfinite(value) and abs(value) < 2**65
    return value is None or type(value) in (bool, str)


def _parsed(case: Case) -> Any:
    return parse_call(case.words[0], "perturbation")


def _parsed_right(case: Case, result: Any) -> str | None:
    name, arguments = result
    if not name.isidentifier() or not _plain(arguments):
        return f"{result!r} is no plain call"
    return None if len(repr(arguments)) <= 4 * len(case.words[0]) + 100 else "it grew"


def _hostile_literal(case: Case) -> str:
    case.words[0] = f"LinfPGD(eps={case.draw.choice(LITERALS)}, steps={case.draw.choice(('20', *LITERALS))})"
    if case.draw.random() < 0.2:
        case.words[0] = damaged_text(case.words[0], case.draw)[0]
    return f"{case.words[0]!r:.200}"


register(
    Format(
        name="call",
        words=("LinfPGD(eps=8/255, steps=20)",),
        use=_parsed,
        right=_parsed_right,
        mutators=(any_word(), _hostile_literal, _call_of(PERTURBATIONS)),
        seconds=2,
        memory=1 << 28,
        cases=1000,
        row=200,
    )
)


def _grid_right(case: Case, found: Any) -> str | None:
    for one in found:
        level = getattr(one, one.level)
        if type(level) not in (int, float) or not math.isfinite(level):
            return f"{one!r} has the level {level!r}"
        hash(one)
    return None


register(
    Format(
        name="grid",
        words=("noise, LinfPGD(steps=2), GaussianNoise(std=0.2), corruption",),
        use=lambda case: grid(case.words[0], case.number % 2 == 0),
        right=_grid_right,
        mutators=(any_word(), _call_of(PERTURBATIONS), _near(PERTURBATIONS)),
        cases=600,
        row=100,
    )
)

for registry, valid in (
    (PERTURBATIONS, "LinfPGD(eps=8/255, steps=20)"),
    (RECIPES, "Standard"),
    (MODELS, "small_cnn(width=2)"),
    (DATASETS, "synthetic(classes=2, size=4, train=8, val=4, test=4)"),
):
    register(
        Format(
            name=f"call-{registry.plural}",
            words=(valid,),
            use=lambda case, registry=registry: registry.build(case.words[0], **_MORE.get(registry.plural, {})),
            mutators=(_call_of(registry), _near(registry), any_word()),
            cases=200 if registry is MODELS else 400,  # they are made, and some are large
            row=50,
            quiet=registry is not DATASETS,  # a download that is tried says so
        )
    )


_FEW = (
    "0",
    "1",
    "2",
    "3",
    "0.5",
    "-1",
    "0.001",
    "1e-300",
    "0.999",
    "4",
    "None",
    "True",
    "'l2'",
    "'dlr'",
    "'relu1'",
    "255",
    "1.0",
)


def _few(case: Case) -> str:
    """Any perturbation, with one or two numbers that keep its work small."""
    draw = case.draw
    name = draw.choice(list(PERTURBATIONS))
    parameters = _parameters(PERTURBATIONS, name)
    given = {one: draw.choice(_FEW) for one in draw.sample(parameters, min(len(parameters), draw.choice((0, 1, 2))))}
    given |= {
        one: "2"
        for one in ("steps", "binary_searches", "queries", "restarts")
        if one in parameters and one not in given
    }
    case.words[0] = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    return case.words[0]


def _shaken(case: Case) -> torch.Tensor:
    x = torch.rand(2, 1, 12, 12, generator=stream("fuzz"))
    with seeded(0, x.device):
        model = SmallCNN(3, (0.5,), (0.5,), 2).eval()
    return PERTURBATIONS.build(case.words[0])(x, torch.tensor([0, 1]), model, Draws(0, torch.arange(2)))


def _shaken_right(case: Case, shaken: torch.Tensor) -> str | None:
    if shaken.shape != (2, 1, 12, 12) or not bool(shaken.isfinite().all()):
        return f"{list(shaken.shape)}, finite: {bool(shaken.isfinite().all())}"
    return None if bool(((shaken >= 0) & (shaken <= 1)).all()) else "images outside [0, 1]"


register(
    Format(
        name="perturbation",
        words=("LinfPGD(eps=0.1, steps=2)",),
        use=_shaken,
        right=_shaken_right,
        mutators=(_few,),
        seconds=60,
        cases=100,
        many=2000,
        row=10,
    )
)
