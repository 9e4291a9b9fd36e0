"""AutoAttack: attacks of different kinds, one after the other, each on what those before it left standing."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geophone.core.errors import unknown
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Averages, Ensemble, Model, TakesSteps
from geophone.perturb.attacks.apgd import L1APGD, L2APGD, LinfAPGD, evaluate
from geophone.perturb.attacks.ascent import Ascent, classes_of, is_fooled
from geophone.perturb.attacks.base import Attack
from geophone.perturb.attacks.fab import L1FAB, L2FAB, LinfFAB
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.attacks.square import L1Square, L2Square, LinfSquare
from geophone.perturb.checks import check_number

VERSIONS = ("standard", "rand")
TARGETS = 9


@dataclass(frozen=True)
class _AutoAttack(Attack, Averages, Ensemble, TakesSteps):
    """What the norms share: everything but the kinds of the members."""

    version: str = "standard"
    steps: int = 100
    queries: int = 5000
    draws: int = 20
    apgd: ClassVar[type[LinfAPGD | L2APGD | L1APGD]]
    fab: ClassVar[type[LinfFAB | L2FAB | L1FAB]]
    square: ClassVar[type[LinfSquare | L2Square | L1Square]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in VERSIONS:
            raise unknown("version of AutoAttack", str(self.version), VERSIONS, "rand is for stochastic networks.")
        for field in ("steps", "queries", "draws"):
            check_number(self, field, 1.0)

    def members(self) -> tuple[Attack, ...]:
        """The attacks, in the order in which they are run."""
        if self.version == "rand":
            return (
                self.apgd(self.eps, steps=self.steps, draws=self.draws),
                self.apgd(self.eps, steps=self.steps, draws=self.draws, loss="dlr"),
            )
        return (
            self.apgd(self.eps, steps=self.steps),
            self.apgd(self.eps, steps=self.steps, targets=TARGETS),
            self.fab(self.eps, steps=self.steps, targets=TARGETS),
            self.square(self.eps, queries=self.queries),
        )

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """Each member on the examples that none before it fooled."""
        judge = Ascent(model, margin, self.draws if self.version == "rand" else 1, classes_of(y))
        found, largest = x.clone(), x.new_full((len(x),), -math.inf)
        rows = torch.arange(len(x), device=x.device)
        for number, member in enumerate(self.members()):
            tried = member.search(x[rows], y[rows], model, rng[rows].child("member", number), stop)
            logits, margins = evaluate(judge, tried, y[rows], margin)
            fooled = is_fooled(logits, y[rows])
            better = fooled | (margins > largest[rows])
            found[rows[better]], largest[rows[better]] = tried[better], margins[better]
            rows = rows[~fooled]
            if not len(rows):
                break
        return found


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfAutoAttack(_AutoAttack):
    """AutoAttack in the l-infinity ball: an ensemble of attacks that needs no tuning.

    The standard version runs APGD, APGD with 9 targets, FAB with 9 targets and Square, each on the examples that none
    before it fooled. The version `rand`, for stochastic networks, runs APGD on cross-entropy and on the difference of
    logits ratio, each gradient a mean over 20 passes. The result is what the first attack to fool the network found, or
    where none did, of what all found, the image with the largest margin. Unlike the authors', the cross-entropy is
    scale-free. `members()` gives the attacks; `geophone.probes.survival.survival` runs them and counts what survives.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        version: `standard` or `rand`.
        steps: Steps of each run of APGD and of FAB, at least 1.
        queries: Images that Square tries, at least 1.
        draws: Passes that are averaged for each step of the version `rand`.

    References:
        Croce & Hein 2020, arXiv:2003.01690.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF
    apgd: ClassVar[type[LinfAPGD]] = LinfAPGD
    fab: ClassVar[type[LinfFAB]] = LinfFAB
    square: ClassVar[type[LinfSquare]] = LinfSquare


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2AutoAttack(_AutoAttack):
    """AutoAttack in the l2 ball: an ensemble of attacks that needs no tuning (see `LinfAutoAttack`).

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        version: `standard` or `rand`.
        steps: Steps of each run of APGD and of FAB, at least 1.
        queries: Images that Square tries, at least 1.
        draws: Passes that are averaged for each step of the version `rand`.

    References:
        Croce & Hein 2020, arXiv:2003.01690.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2
    apgd: ClassVar[type[L2APGD]] = L2APGD
    fab: ClassVar[type[L2FAB]] = L2FAB
    square: ClassVar[type[L2Square]] = L2Square


@PERTURBATIONS.register
@dataclass(frozen=True)
class L1AutoAttack(_AutoAttack):
    """AutoAttack in the l1 ball: an ensemble of attacks that needs no tuning (see `LinfAutoAttack`).

    The authors' version runs APGD 5 times and aims it at 5 targets; here it is run once and aimed at 9, as in the other
    norms, for the same cost.

    Attributes:
        eps: Largest sum of absolute changes of an image's values, at least 0.
        version: `standard` or `rand`.
        steps: Steps of each run of APGD and of FAB, at least 1.
        queries: Images that Square tries, at least 1.
        draws: Passes that are averaged for each step of the version `rand`.

    References:
        Croce & Hein 2021, arXiv:2103.01208.
    """

    eps: float = 12.0
    levels: ClassVar[tuple[float, ...]] = (3.0, 6.0, 12.0, 24.0)
    norm: ClassVar[Norm] = L1
    apgd: ClassVar[type[L1APGD]] = L1APGD
    fab: ClassVar[type[L1FAB]] = L1FAB
    square: ClassVar[type[L1Square]] = L1Square
