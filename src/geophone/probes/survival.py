"""What holds under attack: example by example, attack by attack, and over the radius of the attack.

A robust accuracy is the share of examples that survive every attack, worked out from a matrix of examples × attacks ×
restarts. Nothing is taken on an attack's word: a fresh forward pass judges every example that it returns.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core import table
from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.rng import draws, key
from geophone.core.types import Averages, Batch, Ensemble, Model, Perturbation, StopsEarly, TakesSteps, describe
from geophone.data import Split, as_split
from geophone.metrics import share_interval
from geophone.models.run import (
    asked_twice,
    check_columns,
    check_labels,
    deterministic,
    evaluating,
    full_precision,
    logits_of,
    need_labels,
    reseed,
    seeded,
)
from geophone.models.stochastic import refuse_frozen
from geophone.perturb import L2, LINF, Attack, MinimumNormAttack, at_level
from geophone.perturb.attacks.base import averaging, draws_of, eot_row
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import norm_of
from geophone.perturb.parse import family_name, named_perturbations

PASSES = 50
"""How many fresh passes judge an example of a stochastic network."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Survival:
    """Which examples survive which attacks.

    Attributes:
        attacks: The attacks, as code.
        index: Position of each example in its data set, `[n]`.
        clean: Share of passes in which the network gets the clean example right, `[n]`; 0 or 1 unless it is stochastic.
        rate: The same for the example that an attack returned, `[n, attacks, restarts]`; NaN where the attack was not
            run, because the example was wrong or fooled before.
        margin: Logit of the true class less the largest other there, the mean over the passes; NaN likewise.
        distance: How far that example is from the clean one, in the attack's norm (l2 where it has none); NaN likewise.
        judged: Share of passes in which the worst of an example's candidates is got right, for each attack
            `[n, attacks]`. The clean example is a candidate: what was wrong already is not robust. For a stochastic
            network the worst is chosen by `rate`, and judged by fresh passes that had no part in the choice.
        union: The same with the candidates of all attacks, `[n]`.
        passes: Passes behind each share: 1, or more for a stochastic network.
        classes: Number of logits.
        draws: Draws of the network's noise that each gradient of each attack was averaged over; 1 for none, and for a
            network that is not stochastic.
        problems: What looks wrong with network and data, in sentences: see `geophone.scan.attack`.
    """

    attacks: tuple[str, ...]
    index: Int[Tensor, " n"]
    clean: Float[Tensor, " n"]
    rate: Float[Tensor, "n attacks restarts"]
    margin: Float[Tensor, "n attacks restarts"]
    distance: Float[Tensor, "n attacks restarts"]
    judged: Float[Tensor, "n attacks"]
    union: Float[Tensor, " n"]
    passes: int
    classes: int
    draws: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fooled(self) -> Bool[Tensor, "n attacks restarts"]:
        """Which returned examples are misclassified, by most of the passes; False where the attack was not run."""
        return self.rate < 0.5

    def accuracy(self, attack: str | None = None) -> tuple[float, float, float]:
        """Robust accuracy under one attack, or under all of them together, and its 95 % interval.

        All together is an AND over the matrix, the mean of each example's worst; never the least of the averages.

        Raises:
            GeophoneError: the attack was not run, or not on all the examples.
        """
        if attack is None:
            return _accuracy(self.union)
        if attack not in self.attacks:
            raise GeophoneError(f"no attack {attack!r} was run; there are {', '.join(self.attacks)}.")
        column = self.judged[:, self.attacks.index(attack)]
        if bool(column.isnan().any()):
            raise GeophoneError(
                f"{attack} was run only on what the attacks before it left: ask for survival(..., every=True)."
            )
        return _accuracy(column)

    def summary(self) -> dict[str, tuple[float, float, float] | None]:
        """Accuracy with its interval: clean, under each attack (None where not run on all), and under all attacks."""
        whole = {name: not bool(column.isnan().any()) for name, column in zip(self.attacks, self.judged.T, strict=True)}
        each = {name: self.accuracy(name) if whole[name] else None for name in self.attacks}
        return {"none (clean images)": _accuracy(self.clean), **each, "all of them": self.accuracy()}

    def frame(self) -> pl.DataFrame:
        """One row for each example, attack and restart: index, attack, restart, clean, rate, margin, distance."""
        n, attacks, restarts = self.rate.shape
        cells = attacks * restarts
        return pl.DataFrame(
            {
                "index": self.index.repeat_interleave(cells).numpy(),
                "attack": [name for name in self.attacks for _ in range(restarts)] * n,
                "restart": list(range(restarts)) * (n * attacks),
                "clean": self.clean.repeat_interleave(cells).numpy(),
                **{name: getattr(self, name).flatten().numpy() for name in ("rate", "margin", "distance")},
            }
        ).with_columns(pl.col("rate", "margin", "distance").fill_nan(None))


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
        return [_accuracy(column) for column in self.holds.T]

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


@checked
def survival(
    model: Model,
    data: Any,
    attacks: str | Perturbation | Sequence[Perturbation | str],
    *,
    restarts: int = 1,
    every: bool = True,
    passes: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Survival:
    """Attack every example with every attack and see which survive.

    An example is attacked until it is fooled and no further (`attack.fool`), and then judged by a fresh forward pass
    of the network itself. An ensemble is run as its members.

    A stochastic network, one that answers the same images differently in two passes, is attacked at full strength and
    judged by repeated passes. Attacks whose `draws` are left open average each gradient over 10 draws of its noise
    (expectation over transformation); `Survival.draws` says how many. Attacks without `draws`, which cannot average
    (Square, which keeps its luckiest answer, FAB, DeepFool and the standard AutoAttack that runs them), are weak there,
    and a warning says so.

    Args:
        model: Images in [0, 1] → logits. On the device where it is; its modes are as before afterwards.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`.
        attacks: Perturbations or one, or text as `grid` reads it, each at the eps that it names or else its default.
        restarts: How often each attack is tried, from different random starts.
        every: Run every attack on all examples that are right when clean, so that each has an accuracy of its own.
            False leaves out what an attack before it fooled: enough for the union, and much faster.
        passes: Passes that judge an example; default 1, or 50 for a stochastic network.
        batch_size: Images per batch.
        seed: Keys the attacks' randomness, and the network's own if it has any.
        progress: Called with (steps done, steps in all); a step is one try of one attack on one batch.

    Raises:
        GeophoneError: no attacks, counts that are not whole numbers from 1, a network and data that do not fit, or a
            network whose noise is frozen.

    >>> survival(model, "fashion_mnist_mini", "LinfAPGD(eps=8/255), LinfSquare(eps=8/255)").accuracy()
    """
    check_counts(restarts=restarts, passes=passes, batch_size=batch_size)
    chosen = members(attacks)
    if not chosen:
        raise GeophoneError("no attacks were given: name at least one, such as LinfAPGD(eps=8/255).")
    parts = []
    split = as_split(data).near(model)
    each = len(chosen) * restarts
    steps = split.steps(batch_size) * each
    with _measuring(model, split.x.device):
        judge = _Judge.of(model, split, passes)
        _warn_of_noise(judge, chosen)
        averaged = tuple(draws_of(attack, judge.stochastic) for attack in chosen)
        run = [averaging(attack, judge.stochastic) for attack in chosen]
        for number, batch in enumerate(split.batches(batch_size)):
            reseed(key(seed, "survival", number), split.x.device)

            def step(tried: int, before: int = number * each) -> None:
                if progress is not None:
                    progress(before + tried, steps)

            parts.append(_survive(judge, batch, run, restarts, every, seed, step))
    rate, margins, distance, judged, union, clean = (torch.cat(column) for column in zip(*parts, strict=True))
    names = tuple(describe(attack) for attack in chosen)
    index = split.index.cpu()
    return Survival(names, index, clean, rate, margins, distance, judged, union, judge.passes, judge.classes, averaged)


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
    check_counts(passes=passes, batch_size=batch_size)
    named = with_radius(attack)
    if len(named) != 1:
        raise GeophoneError(f"a curve is of one attack, and {attack!r} names {len(named)}: call eps_curve for each.")
    (one,) = named
    name = family_name(one)
    radii = tuple(sorted(set(_radii(one) if eps is None else [eps] if isinstance(eps, int | float) else eps)))
    if not radii or radii[0] <= 0:
        raise GeophoneError(f"eps = {list(radii)}: a curve needs radii above 0.")
    attacks = [at_level(one, radius) for radius in radii]
    split = as_split(data).near(model)
    steps = split.steps(batch_size)
    parts, minima = [], []
    with _measuring(model, split.x.device):
        judge = _Judge.of(model, split, passes)
        _warn_of_noise(judge, [one])
        averaged = draws_of(one, judge.stochastic) if judge.stochastic else None
        attacks = [averaging(attack, judge.stochastic) for attack in attacks]
        for number, batch in enumerate(split.batches(batch_size)):
            reseed(key(seed, "eps curve", number), split.x.device)
            clean = judge(batch.x, batch.y)[0]
            if judge.passes > 1:
                holds = _survive(judge, batch, attacks, 1, True, seed)[3]
            elif isinstance(one, MinimumNormAttack):
                distance = _minimum(judge, batch, one, clean, seed)
                minima.append(distance.cpu())
                holds = (distance[:, None] > distance.new_tensor(radii)).float()
            else:
                holds = _fallen(judge, batch, attacks, clean, seed)
            parts.append((clean.cpu(), holds.cpu()))
            if progress is not None:
                progress(number + 1, steps)
    clean, holds = (torch.cat(column) for column in zip(*parts, strict=True))
    return Curve(name, radii, clean, holds, torch.cat(minima) if minima else None, judge.classes, averaged)


def curves(
    model: Model,
    data: Any,
    attacks: str | Sequence[Perturbation],
    *,
    columns: dict[str, Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Rows of the table for the curve of each attack, whatever its radius: see `eps_curve` and `Curve.rows`."""
    kinds = with_radius(attacks)
    found: list[dict[str, Any]] = []
    for place, attack in enumerate(kinds):

        def step(done: int, steps: int, place: int = place) -> None:
            if progress is not None:
                progress(place * steps + done, len(kinds) * steps)

        curve = eps_curve(model, data, attack, batch_size=batch_size, seed=seed, progress=step)
        found += [{**(columns or {}), **row} for row in curve.rows()]
    return table.frame(found)


def members(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """What `survival` runs for these attacks, in its order: an ensemble's members in its place, each once."""
    return _members(_named(attacks))


def with_radius(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """The attacks that curves can be drawn of, each once whatever its radius; none for an empty text.

    Raises:
        GeophoneError: one has no radius eps.
    """
    named = _named(attacks)
    for attack in named:
        if attack.level != "eps":
            raise GeophoneError(f"{describe(attack)} has no radius eps: a curve over eps needs an attack that has.")
    return list({family_name(attack): attack for attack in named}.values())


@dataclass(frozen=True)
class _Judge:
    """A network, how often it must be asked before its answer counts, and whether it answers at random."""

    model: Model
    passes: int
    classes: int
    stochastic: bool

    @classmethod
    def of(cls, model: Model, split: Split, passes: int | None) -> "_Judge":
        """Ask the network the same twice, to know whether it answers at random."""
        first, stochastic = asked_twice(model, split)
        check_columns(first)
        need_labels(split, "an attack")
        check_labels(split, first.shape[1])
        return cls(model, passes or (PASSES if stochastic else 1), first.shape[1], stochastic)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Share of passes that are right, and mean margin, `[n]` each."""
        right = total = torch.zeros(len(y), dtype=torch.float32, device=x.device)
        for _ in range(self.passes):
            logits = logits_of(self.model, x)
            right = right + (logits.argmax(1) == y).float()
            total = total - margin(logits, y).float()
        return right / self.passes, total / self.passes


@contextmanager
def _measuring(model: Model, device: torch.device) -> Iterator[None]:
    """Evaluation mode, full precision, no gradients, and global random states that are put back."""
    refuse_frozen(model, "Robustness")
    with evaluating(model), full_precision(), deterministic(), seeded(0, device), torch.no_grad():
        yield


def _named(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """The attacks that were given, or named in a text; none for an empty one."""
    if isinstance(attacks, str) and not attacks.strip():
        return []
    return named_perturbations(attacks, levels=False)


def _warn_of_noise(judge: _Judge, attacks: Sequence[Perturbation]) -> None:
    """Say which attacks cannot average over a stochastic network's noise."""
    weak = {type(one).__name__: None for one in attacks if isinstance(one, Attack) and not isinstance(one, Averages)}
    if judge.stochastic and weak:
        warnings.warn(
            f"The network answers at random, and {', '.join(weak)} can't average over its noise: the robust accuracy "
            "that it shows is too high. Use attacks with draws=20, such as LinfAPGD, or version='rand' of AutoAttack.",
            stacklevel=3,
        )


def _attacked(judge: _Judge, batch: Batch, rows: Tensor, attack: Perturbation, restart: int, seed: int) -> Tensor:
    """What the attack returns for these rows of the batch; as cheaply as a network without randomness allows."""
    run = attack.fool if judge.passes == 1 and isinstance(attack, StopsEarly) else attack
    rng = draws(seed, family_name(attack), restart, index=batch.index[rows])
    return run(batch.x[rows], batch.y[rows], judge.model, rng)


def _survive(
    judge: _Judge,
    batch: Batch,
    attacks: Sequence[Perturbation],
    restarts: int,
    every: bool,
    seed: int,
    step: Callable[[int], None] = lambda tried: None,
) -> tuple[Tensor, ...]:
    """Of one batch: rate, margin, distance `[n, attacks, restarts]`, judged `[n, attacks]`, union and clean `[n]`."""
    x, y = batch.x, batch.y
    clean, _ = judge(x, y)
    right = clean > 0
    shape = (len(y), len(attacks), restarts)
    rate, margins, distance = (torch.full(shape, math.nan, dtype=torch.float32, device=x.device) for _ in range(3))
    all_rows = torch.arange(len(y), device=x.device)
    # The worst candidates so far, and how often they are got right: of each attack, and in the last place of all.
    worst = [(clean.clone(), x.clone()) for _ in range(len(attacks) + 1)]
    for a, attack in enumerate(attacks):
        for r in range(restarts):
            # Another restart, or another attack unless every one is asked for, cannot do worse than never right.
            standing = right & (worst[a if every else -1][0] > 0)
            rows = all_rows[standing]
            if not len(rows):
                step(a * restarts + r + 1)
                continue
            found = _attacked(judge, batch, rows, attack, r, seed)
            rate[rows, a, r], margins[rows, a, r] = judge(found, y[rows])
            distance[rows, a, r] = (norm_of(attack) or L2).length(found - x[rows]).float()
            for least, image in (worst[a], worst[-1]):
                lower = rate[rows, a, r] < least[rows]
                image[rows[lower]] = found[lower]
                least[rows[lower]] = rate[rows, a, r][lower]
            step(a * restarts + r + 1)
    judged = [least if judge.passes == 1 else judge(image, y)[0] for least, image in worst]
    table_ = torch.stack(judged[:-1], dim=1)
    if not every:
        table_[right[:, None] & rate.isnan().all(2)] = math.nan
    return tuple(part.cpu() for part in (rate, margins, distance, table_, judged[-1], clean))


def _fallen(judge: _Judge, batch: Batch, attacks: Sequence[Perturbation], clean: Tensor, seed: int) -> Tensor:
    """Which examples hold at each radius, `[n, k]`.

    For each example a quarter of the attack's steps finds, by bisection, a radius that fools it; the whole attack then
    goes down from there, radius by radius, until one holds.
    """
    fallen = torch.where(clean > 0, len(attacks) + 1, 0)  # place, from 1, of the least radius known to fool; 0: clean

    def attacked(tried: Sequence[Perturbation], place: Tensor, open_: Tensor) -> Tensor:
        """Which of the open examples the attacks fool, each at its own place."""
        fooled = torch.zeros_like(open_)
        for one in place[open_].unique().tolist():
            rows = (open_ & (place == one)).nonzero()[:, 0]
            found = _attacked(judge, batch, rows, tried[one - 1], 0, seed)
            fooled[rows] = judge(found, batch.y[rows])[0] == 0
        return fooled

    quick = [_with_fewer_steps(attack) for attack in attacks]
    held = torch.where(clean > 0, 0, -1)
    while bool((open_ := fallen - held > 1).any()):
        middle = (held + fallen) // 2
        fooled = attacked(quick, middle, open_)
        fallen, held = torch.where(open_ & fooled, middle, fallen), torch.where(open_ & ~fooled, middle, held)
    open_ = fallen > 1
    while bool(open_.any()):
        open_ = attacked(attacks, fallen - 1, open_)
        fallen = fallen - open_.long()
        open_ = open_ & (fallen > 1)
    return (torch.arange(1, len(attacks) + 1, device=clean.device) < fallen[:, None]).float()


def _with_fewer_steps(attack: Perturbation) -> Perturbation:
    """The attack with a quarter of its steps, if it has any."""
    thing: Any = attack
    return replace(thing, steps=max(1, thing.steps // 4)) if isinstance(attack, TakesSteps) else attack


def _minimum(judge: _Judge, batch: Batch, attack: MinimumNormAttack, clean: Tensor, seed: int) -> Tensor:
    """Norm of the least perturbation that was found: 0 where the image is wrong already, infinite where none was."""
    rng = draws(seed, family_name(attack), 0, index=batch.index)
    found = attack.nearest(batch.x, batch.y, judge.model, rng)
    fooled = judge(found, batch.y)[0] == 0
    length = attack.norm.length(found - batch.x)
    return torch.where(clean == 0, 0, torch.where(fooled, length, math.inf))


def _members(attacks: Sequence[Perturbation]) -> list[Perturbation]:
    """The attacks, with an ensemble's members in its place; each once."""
    found: list[Perturbation] = []
    for attack in attacks:
        found += attack.members() if isinstance(attack, Ensemble) else [attack]
    return list(dict.fromkeys(found))


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


def _accuracy(right: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """Mean and its interval."""
    return share_interval(right.double().numpy())
