"""What perturbations cost, for the time that is left."""

import math
from dataclasses import fields
from typing import Any

from geophone.core.registry import PERTURBATIONS
from geophone.core.types import Perturbation
from geophone.perturb.attacks.ensemble import L1AutoAttack, L2AutoAttack, LinfAutoAttack

CURVE = 2.5
"""Runs of an attack that its curve over eps costs: some with fewer steps, and most images fall early."""

_STEPS = ("steps", "targets", "searches", "draws")  # each so many times the others
_QUERIES = ("queries", "tries")
_GRADIENT = 3  # passes: a backward pass costs two forward ones


def passes(perturbation: Perturbation) -> float:
    """About how many forward passes over an image a perturbation costs: an estimate, by which work is divided.

    An attack takes a gradient for each of its steps, targets, searches and draws, or a pass for each of its queries, as
    the fields of these names say; what stops early costs less. Anything else costs about one pass.
    """
    thing: Any = perturbation
    values = {field.name: getattr(thing, field.name) for field in fields(thing)}
    if isinstance(inner := values.get("inner"), str):
        return 1 + passes(PERTURBATIONS.build(inner))
    if perturbation.family != "attack":
        return 1.0
    if isinstance(perturbation, LinfAutoAttack | L2AutoAttack | L1AutoAttack):
        return sum((passes(member) for member in perturbation.members()), 0.0)
    counts = {name: value for name, value in values.items() if isinstance(value, int) and value > 0}
    for name in _QUERIES:
        if name in counts:
            return float(counts[name])
    return float(_GRADIENT * math.prod(counts.get(name, 1) for name in _STEPS))
