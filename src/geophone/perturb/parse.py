"""Perturbations by name, at their default levels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from geophone.core.arguments import checked
from geophone.core.errors import check_is, unknown
from geophone.core.registry import PERTURBATIONS, parse_call
from geophone.core.types import FitsImages, Perturbation, describe

_BETWEEN_NAMES = r",\s*(?=[A-Za-z_]\w*\s*(?:[(,]|$))"  # a comma before `Name`, not before `field=`


@checked
def grid(spec: str, levels: bool = True) -> list[Perturbation]:
    """Perturbations from a comma-separated list of names, families and calls, each once and in order.

    - `GaussianNoise`: one for each default level; `LinfPGD(steps=20)` likewise, with that field set.
    - `GaussianNoise(std=0.2)`: the level is given, so just this one.
    - `noise`, `corruption`, `attack`: everything registered in that family, a plug-in's too; `all`: everything.

    With `levels=False` each comes once, at the level that is given or else the one that it has by default.

    Raises:
        GeophoneError: a name is unknown, or a call can't be read.
    """
    found = [one for part in re.split(_BETWEEN_NAMES, spec) for one in _expand(part.strip(), levels)]
    return list(dict.fromkeys(found))


def shakes(
    perturbations: str | Perturbation | Sequence[Perturbation | str], shape: tuple[int, ...]
) -> list[Perturbation]:
    """Objects, or text as `grid` reads it, each once and with what it chooses by the images' shape written out."""
    return list(dict.fromkeys(fitted(one, shape) for one in named_perturbations(perturbations)))


def named_perturbations(
    given: str | Perturbation | Sequence[Perturbation | str], levels: bool = True
) -> list[Perturbation]:
    """Objects or one, or text as `grid` reads it, or texts.

    Raises:
        GeophoneError: something that is none of these, such as the class of a perturbation.
    """
    parts = given if isinstance(given, Iterable) and not isinstance(given, str | type) else [given]
    found: list[Perturbation] = []
    for part in parts:
        if isinstance(part, str):
            found += grid(part, levels)
            continue
        check_is(Perturbation, "it with its level, as LinfPGD(eps=8/255), or as text", **{"the perturbation": part})
        found.append(part)
    return found


def condition(perturbation: Perturbation | None) -> dict[str, Any]:
    """What the table calls images under a perturbation, or clean ones: its columns family, perturbation and level."""
    if perturbation is None:
        return {"family": "clean", "perturbation": "clean", "level": 0.0}
    return {
        "family": perturbation.family,
        "perturbation": family_name(perturbation),
        "level": level_of(perturbation),
    }


def at_level(perturbation: Perturbation, level: int | float) -> Perturbation:
    """The same perturbation at another level: `at_level(LinfPGD(steps=20), 0.1)` is `LinfPGD(eps=0.1, steps=20)`.

    The level keeps its type: a block of 4.0 pixels, as a table has it, is one of 4.
    """
    thing: Any = perturbation
    same_type = type(getattr(thing, thing.level))(level)
    return replace(thing, **{thing.level: same_type if same_type == level else level})


def _expand(part: str, levels: bool) -> list[Perturbation]:
    made: dict[str, Any] = dict(PERTURBATIONS.items())
    families = {one.family for one in made.values()}
    if part == "all" or part in families:
        return [one for name in made if part in ("all", made[name].family) for one in _expand(name, levels)]
    name, given = parse_call(part, "perturbation")
    if name not in made:
        remedy = "`geophone list perturbations` shows all of them."
        raise unknown("perturbation", name, [*made, *sorted(families), "all"], remedy)
    one = PERTURBATIONS.build(part)
    return [one] if one.level in given or not levels else [at_level(one, level) for level in one.levels]


def fitted(perturbation: Perturbation, shape: tuple[int, ...]) -> Perturbation:
    """The perturbation with what it chooses by the images' shape written out, so that a table says what was done."""
    return perturbation.for_images(tuple(shape)) if isinstance(perturbation, FitsImages) else perturbation


def level_of(perturbation: Perturbation) -> float:
    """How strong a perturbation is: the value of the field that its class calls its level."""
    return float(getattr(perturbation, perturbation.level))


def family_name(perturbation: Perturbation) -> str:
    """A perturbation's name without its level, as the table has it: `LinfPGD(steps=20)`."""
    return describe(perturbation, omit=(perturbation.level,))
