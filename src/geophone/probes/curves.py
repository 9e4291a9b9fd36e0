"""Robust accuracy over the radius of an attack."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.rng import draws, key
from geophone.core.types import Batch, Model, Perturbation, TakesSteps, describe
from geophone.data import Split, as_split
from geophone.models.run import Subject, opened
from geophone.perturb import LINF, Attack, MinimumNormAttack, at_level
from geophone.perturb.attacks.base import averaging, draws_of, eot_row
from geophone.perturb.attacks.norms import norm_of
from geophone.perturb.cost import CURVE
from geophone.perturb.cost import passes as cost
from geophone.perturb.parse import family_name
from geophone.probes.judge import (
    Judge,
    accuracy_of,
    attacked,
    check_robustness,
    named_attacks,
    survive,
    warn_of_noise,
)
from geophone.probes.part import Columns, Name, Part
from geophone.probes.probe import PROBES, Probe, Row, Step, summed

_RESAMPLES = 1000


@dataclass(frozen=True)
class Curve:
    """Robust accuracy of one network over the radius of one attack.

    Attributes:
        attack: The attack without its radius.
        eps: The radii, increasing, `k` of them.
        clean: Share of passes in which each clean example is got right, `[n]`.
        holds: Share of passes in which it is got right at each radius, `[n, k]`; 0 or 1 unless the network is
            stochastic.
        minimum: Norm of the smallest perturbation that fools each example, `[n]`: 0 where it was wrong already,
            infinite where none was found. None unless the attack looks for it.
        classes: Number of logits.
        draws: Of a stochastic network, over how many draws of its noise each gradient was averaged; else None.
    """

    attack: str
    eps: tuple[float, ...]
    clean: Float[Tensor, " n"]
    holds: Float[Tensor, "n k"]
    minimum: Float[Tensor, " n"] | None
    classes: int
    draws: int | None = None

    def accuracy(self) -> list[tuple[float, float, float]]:
        """Robust accuracy with its 95 % interval at each radius."""
        return [accuracy_of(column) for column in self.holds.T]

    def half(self) -> tuple[float | None, float | None, float | None]:
        """The radius at which accuracy is half of the clean accuracy, with a 95 % bootstrap interval over examples.

        Between two radii accuracy is taken to fall evenly in log eps (in eps before the first). None beyond the last; 0
        where the network is always wrong.
        """
        levels = torch.cat([self.clean[:, None], self.holds], dim=1).double().numpy()
        value = _half(levels.mean(0), self.eps)
        generator = np.random.default_rng(key("half accuracy"))
        counts = generator.multinomial(len(levels), np.full(len(levels), 1 / len(levels)), size=_RESAMPLES)
        found = [_half(row, self.eps) for row in counts @ levels / len(levels)]
        low, high = np.quantile([math.inf if eps is None else eps for eps in found], [0.025, 0.975], method="nearest")
        return value, float(low) if math.isfinite(low) else None, float(high) if math.isfinite(high) else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table: `robust_accuracy` at each radius and, once, what is known of `half_accuracy_eps`,
        `median_minimum_norm` and `eot_draws`.
        """
        common = {"family": "attack", "perturbation": self.attack, "n": len(self.clean), "d": self.classes}
        for eps, (value, low, high) in zip(self.eps, self.accuracy(), strict=True):
            yield {**common, "metric": "robust_accuracy", "level": eps, "value": value, "low": low, "high": high}
        value_, low_, high_ = self.half()
        note = None if value_ is not None else f"accuracy does not fall to half of clean up to eps = {self.eps[-1]:.4g}"
        yield {**common, "metric": "half_accuracy_eps", "value": value_, "low": low_, "high": high_, "note": note}
        if self.minimum is not None:
            median = float(self.minimum.quantile(0.5, interpolation="lower"))
            found = math.isfinite(median)
            note = None if found else "no adversarial example was found for half of the images"
            yield {**common, "metric": "median_minimum_norm", "value": median if found else None, "note": note}
        if self.draws is not None:
            yield {**common, **eot_row(self.draws)}


@PROBES.register
@dataclass(frozen=True)
class Curves(Probe):
    """Robust accuracy over the radius, for each attack; a step is a batch. See `eps_curve`.

    Attributes:
        attacks: Attacks whose level is a radius; theirs is left out.
        eps: The radii of all of them; None: ten of each attack's own.
        passes: Passes that judge an example.
        batch_size: Examples per batch.
    """

    stage: ClassVar[str] = "curves over eps"

    attacks: tuple[str | Perturbation, ...] = ("LinfAPGD",)
    eps: tuple[float, ...] | None = None
    passes: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(passes=self.passes, batch_size=self.batch_size)
        if self.eps is not None and (not self.eps or min(self.eps) <= 0):
            raise GeophoneError(f"eps = {sorted(self.eps)}: a curve needs radii above 0.")

    @property
    def kept(self) -> list[Perturbation]:
        """The attacks, each once whatever its radius."""
        return with_radius(self.attacks)

    def resolved(self, examples: Split) -> "Curves":
        return replace(self, attacks=tuple(self.kept))

    def radii(self, attack: Perturbation) -> tuple[float, ...]:
        """The radii of one attack's curve."""
        return tuple(sorted(set(_radii(attack) if self.eps is None else self.eps)))

    def steps(self, examples: Split) -> int:
        return examples.steps(self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        each = len(examples) / self.steps(examples)
        return [each * CURVE * cost(attack) for attack in self.kept]

    def check(self, subject: Subject, examples: Split) -> None:
        check_robustness(subject, examples)

    def begin(self, subject: Subject, examples: Split) -> Step:
        judge, kept = Judge.of(subject, self.passes), self.kept
        warn_of_noise(judge, kept)
        attacks = [[averaging(at_level(one, radius), judge.stochastic) for radius in self.radii(one)] for one in kept]
        averaged = [draws_of(one, True) if judge.stochastic else None for one in kept]
        curves = [[family_name(one), self.radii(one), count] for one, count in zip(kept, averaged, strict=True)]
        facts = {"curves": curves, "classes": judge.classes}

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = examples.batch(number, self.batch_size)
            sums: dict[Name, Any] = {}
            for place, (one, levels) in enumerate(zip(kept, attacks, strict=True)):
                sums[place,] = Columns(self._one(judge, batch, one, levels, subject, number))
                done(place + 1)
            return Part.of(number, sums, facts)

        return step

    def _one(
        self,
        judge: Judge,
        batch: Batch,
        one: Perturbation,
        levels: Sequence[Perturbation],
        subject: Subject,
        number: int,
    ) -> dict[str, Tensor]:
        """Of one batch and attack: whether the examples are right clean, and at each radius."""
        reseed = partial(subject.reseed, "eps curve", number)
        reseed()
        clean = judge(batch.x, batch.y)[0]
        found = {"clean": clean}
        if judge.passes > 1:
            found["holds"] = survive(judge, batch, levels, 1, True, subject.seed, reseed)[3]
        elif isinstance(one, MinimumNormAttack):
            found["minimum"] = distance = _minimum(judge, batch, one, clean, subject.seed)
            found["holds"] = (distance[:, None] > distance.new_tensor(self.radii(one))).float()
        else:
            found["holds"] = _fallen(judge, batch, levels, clean, subject.seed)
        return found

    def results(self, part: Part) -> list["Curve"]:
        """A curve of each attack."""
        made, total = [], part.total()
        for place, (name, radii, averaged) in enumerate(part.facts["curves"]):
            found = {name: column.cpu() for name, column in total[place,].columns.items()}
            minimum = found.get("minimum")
            made.append(
                Curve(name, tuple(radii), found["clean"], found["holds"], minimum, part.facts["classes"], averaged)
            )
        return made

    def rows(self, part: Part) -> Iterator[Row]:
        for curve in self.results(part):
            yield from curve.rows()


@checked
def eps_curve(
    model: Model,
    data: Any,
    attack: str | Perturbation,
    eps: float | Sequence[float] | None = None,
    *,
    passes: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Robust accuracy over the radius of an attack.

    What is fooled at a radius is fooled at every larger one, so only the radius at which an example falls is looked
    for: by bisection with a quarter of the steps, then with the whole attack from there downwards, until one radius
    holds. An attack that looks for the nearest adversarial example gives the whole curve in one run. A stochastic
    network is attacked anew at every radius.

    Args:
        model: Images in [0, 1] → logits.
        data: As for `survival`.
        attack: An attack whose level is a radius, or its name.
        eps: The radii, or one; default ten, each twice the one before, the largest 8 times the largest of the attack's
            own levels (in l∞ 16 times: 1/1020 to 128/255) or, where eps is a share, 1.
        passes: Passes that judge an example; default 1, or 50 for a stochastic network.
        batch_size: Images per batch.
        seed: Keys the attack's randomness.
        progress: Called with (steps done, steps in all).

    Raises:
        GeophoneError: radii that are not positive, an attack without a radius, or not one attack; counts that are not
            whole numbers from 1, a network and data that do not fit, or a network whose noise is frozen.

    >>> eps_curve(model, "fashion_mnist_mini", "LinfPGD(steps=20)").half()
    """
    named = with_radius(attack)
    if len(named) != 1:
        raise GeophoneError(f"a curve is of one attack, and {attack!r} names {len(named)}: call eps_curve for each.")
    probe = Curves(tuple(named), None if eps is None else as_tuple(eps), passes, batch_size)
    examples = as_split(data).near(model)
    with opened((model,), examples, seed) as subject:
        return probe.results(summed(probe, subject, examples, progress=progress))[0]


def with_radius(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """The attacks that curves can be drawn of, each once whatever its radius; none for an empty text.

    Raises:
        GeophoneError: one has no radius eps.
    """
    named = named_attacks(attacks)
    for attack in named:
        if attack.level != "eps":
            raise GeophoneError(f"{describe(attack)} has no radius eps: a curve over eps needs an attack that has.")
    return list({family_name(attack): attack for attack in named}.values())


def _fallen(judge: Judge, batch: Batch, attacks: Sequence[Perturbation], clean: Tensor, seed: int) -> Tensor:
    """Which examples hold at each radius, `[n, k]`.

    For each example a quarter of the attack's steps finds, by bisection, a radius that fools it; the whole attack then
    goes down from there, radius by radius, until one holds.
    """
    fallen = torch.where(clean > 0, len(attacks) + 1, 0)  # place, from 1, of the least radius known to fool; 0: clean

    def fooled_at(tried: Sequence[Perturbation], place: Tensor, open_: Tensor) -> Tensor:
        """Which of the open examples the attacks fool, each at its own place."""
        fooled = torch.zeros_like(open_)
        for one in place[open_].unique().tolist():
            rows = (open_ & (place == one)).nonzero()[:, 0]
            found = attacked(judge, batch, rows, tried[one - 1], 0, seed)
            fooled[rows] = judge(found, batch.y[rows])[0] == 0
        return fooled

    quick = [_with_fewer_steps(attack) for attack in attacks]
    held = torch.where(clean > 0, 0, -1)
    while bool((open_ := fallen - held > 1).any()):
        middle = (held + fallen) // 2
        fooled = fooled_at(quick, middle, open_)
        fallen, held = torch.where(open_ & fooled, middle, fallen), torch.where(open_ & ~fooled, middle, held)
    open_ = fallen > 1
    while bool(open_.any()):
        open_ = fooled_at(attacks, fallen - 1, open_)
        fallen = fallen - open_.long()
        open_ = open_ & (fallen > 1)
    return (torch.arange(1, len(attacks) + 1, device=clean.device) < fallen[:, None]).float()


def _with_fewer_steps(attack: Perturbation) -> Perturbation:
    """The attack with a quarter of its steps, if it has any."""
    thing: Any = attack
    return replace(thing, steps=max(1, thing.steps // 4)) if isinstance(attack, TakesSteps) else attack


def _minimum(judge: Judge, batch: Batch, attack: MinimumNormAttack, clean: Tensor, seed: int) -> Tensor:
    """Norm of the least perturbation that was found: 0 where the image is wrong already, infinite where none was."""
    rng = draws(seed, family_name(attack), 0, index=batch.index)
    found = attack.nearest(batch.x, batch.y, judge.model, rng)
    fooled = judge(found, batch.y)[0] == 0
    length = attack.norm.length(found - batch.x)
    return torch.where(clean == 0, 0, torch.where(fooled, length, math.inf))


def _radii(attack: Perturbation) -> Sequence[float]:
    """Ten radii, each twice the one before, with the largest of the attack's own levels among them."""
    box = norm_of(attack) is LINF
    highest = attack.highest if isinstance(attack, Attack) and attack.highest is not None else 1.0 if box else math.inf
    top = attack.levels[-1] * (16 if box else 8)
    while top > highest:
        top /= 2
    return [top / 2**halvings for halvings in range(9, -1, -1)]


def _half(accuracy: np.ndarray, eps: Sequence[float]) -> float | None:
    """Where accuracy, whose first value is clean, falls to half of that."""
    if accuracy[0] == 0:  # every example is wrong already
        return 0.0
    half = accuracy[0] / 2
    below = np.flatnonzero(accuracy[1:] <= half)
    if not len(below):
        return None
    place = int(below[0])
    before, after = accuracy[place], accuracy[place + 1]
    share = 1.0 if before == after else (before - half) / (before - after)
    if place == 0:
        return float(share * eps[0])
    return float(eps[place - 1] * (eps[place] / eps[place - 1]) ** share)
