"""What holds under attack, example by example, attack by attack.

A robust accuracy is the share of examples that survive every attack, worked out from a matrix of examples × attacks ×
restarts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.types import Model, Perturbation, describe
from geophone.data import Split, as_split
from geophone.models.run import Subject, opened
from geophone.perturb.attacks.base import averaging, draws_of, eot_row
from geophone.perturb.cost import passes as cost
from geophone.perturb.parse import condition
from geophone.probes.judge import Judge, accuracy_of, check_robustness, members, named_attacks, survive, warn_of_noise
from geophone.probes.part import Columns, Part
from geophone.probes.probe import PROBES, Probe, Row, Step, summed

ALL = "all attacks"
"""What the table calls all attacks of a probe together."""

_COLUMNS = ("rate", "margin", "distance", "judged", "union", "clean")


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
        problems: What looks wrong with network and data, in sentences: see `geophone.diagnosis.attack`.
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
            return accuracy_of(self.union)
        if attack not in self.attacks:
            raise GeophoneError(f"no attack {attack!r} was run; there are {', '.join(self.attacks)}.")
        column = self.judged[:, self.attacks.index(attack)]
        if bool(column.isnan().any()):
            raise GeophoneError(
                f"{attack} was run only on what the attacks before it left: ask for survival(..., every=True)."
            )
        return accuracy_of(column)

    def summary(self) -> dict[str, tuple[float, float, float] | None]:
        """Accuracy with its interval: clean, under each attack (None where not run on all), and under all attacks."""
        whole = {name: not bool(column.isnan().any()) for name, column in zip(self.attacks, self.judged.T, strict=True)}
        each = {name: self.accuracy(name) if whole[name] else None for name in self.attacks}
        return {"none (clean images)": accuracy_of(self.clean), **each, "all of them": self.accuracy()}

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


@PROBES.register
@dataclass(frozen=True)
class Robustness(Probe):
    """Which examples survive which attacks; a step is a batch. See `survival` for what the fields mean."""

    attacks: tuple[str | Perturbation, ...] = ("LinfAPGD",)
    restarts: int = 1
    every: bool = True
    passes: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(restarts=self.restarts, passes=self.passes, batch_size=self.batch_size)
        if not self.chosen:
            raise GeophoneError("no attacks were given: name at least one, such as LinfAPGD(eps=8/255).")

    @property
    def chosen(self) -> list[Perturbation]:
        """The attacks, with an ensemble's members in its place."""
        return members(self.attacks)

    def resolved(self, examples: Split) -> "Robustness":
        return replace(self, attacks=tuple(self.chosen))

    def steps(self, examples: Split) -> int:
        return examples.steps(self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        each = len(examples) / self.steps(examples)
        return [each * cost(attack) for attack in self.chosen for _ in range(self.restarts)]

    def check(self, subject: Subject, examples: Split) -> None:
        check_robustness(subject, examples)

    def begin(self, subject: Subject, examples: Split) -> Step:
        judge = Judge.of(subject, self.passes)
        warn_of_noise(judge, self.chosen)
        run = [averaging(attack, judge.stochastic) for attack in self.chosen]
        facts = {
            "attacks": [[describe(attack), condition(attack)] for attack in self.chosen],
            "draws": [draws_of(attack, judge.stochastic) for attack in self.chosen],
            "passes": judge.passes,
            "classes": judge.classes,
            "stochastic": judge.stochastic,
        }

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = examples.batch(number, self.batch_size)
            reseed = partial(subject.reseed, "survival", number)
            found = survive(judge, batch, run, self.restarts, self.every, subject.seed, reseed, done)
            columns = dict(zip(_COLUMNS, found, strict=True)) | {"index": batch.index}
            return Part.of(number, {("examples",): Columns(columns)}, facts)

        return step

    def result(self, part: Part) -> Survival:
        """What came out, example by example."""
        facts = part.facts
        columns = {name: column.cpu() for name, column in part.total()["examples",].columns.items()}
        names = tuple(name for name, _ in facts["attacks"])
        return Survival(names, **columns, passes=facts["passes"], classes=facts["classes"], draws=tuple(facts["draws"]))

    def rows(self, part: Part) -> Iterator[Row]:
        found = self.result(part)
        common = {"metric": "robust_accuracy", "n": len(found), "d": found.classes}
        for place, ((_, columns), name) in enumerate(zip(part.facts["attacks"], found.attacks, strict=True)):
            if bool(found.judged[:, place].isnan().any()):
                yield {**columns, **common, "note": "run only on what the attacks before it left"}
                continue
            value, low, high = found.accuracy(name)
            yield {**columns, **common, "value": value, "low": low, "high": high}
            if part.facts["stochastic"]:
                yield {**columns, **eot_row(found.draws[place]), "n": len(found)}
        value, low, high = found.accuracy()
        yield {"family": "attack", "perturbation": ALL, **common, "value": value, "low": low, "high": high}


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
    probe = Robustness(tuple(named_attacks(attacks)), restarts, every, passes, batch_size)
    examples = as_split(data).near(model)
    with opened((model,), examples, seed) as subject:
        return probe.result(summed(probe, subject, examples, progress=progress))
