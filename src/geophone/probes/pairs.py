"""Two models on the same examples: how alike layers of the same name answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import polars as pl

from geophone.core import table
from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.registry import METRICS
from geophone.core.types import Model, Pair
from geophone.data import Split
from geophone.metrics import Metric
from geophone.models.run import Subject
from geophone.models.tap import PROBED, Reduce, check_axes, reduction, spatial_mean
from geophone.probes.layers import Condition, condition_rows, responses_of
from geophone.probes.part import Name, Part
from geophone.probes.probe import PROBES, Probe, Row, Soundness, Step, measured


@PROBES.register
@dataclass(frozen=True)
class Pairs(Probe):
    """Responses of two models to the same clean examples, layer by layer of the same name; a step is a batch.

    See `compare` for what the fields mean.
    """

    models: ClassVar[int] = 2

    metrics: tuple[str, ...] = ("cka", "pwcca")
    layers: tuple[str, ...] | None = None
    reduce: str | Reduce = "spatial_mean"
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)
        if wrong := [metric.name for metric in self.chosen if metric.reads != "pair"]:
            raise GeophoneError(
                f"{wrong[0]} does not compare two sets of responses. Name metrics that do, such as cka."
            )

    @cached_property
    def chosen(self) -> list[Metric]:
        """The metrics."""
        return [METRICS[name] for name in self.metrics]

    @property
    def kinds(self) -> Sequence[type[Any]]:
        return (*dict.fromkeys(metric.statistic for metric in self.chosen), Soundness)

    def steps(self, examples: Split) -> int:
        return examples.steps(self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        return [2 * len(examples) / self.steps(examples)]

    def check(self, subject: Subject, examples: Split) -> None:
        some = next(examples.batches(PROBED)).x
        for model in subject.models:
            check_axes(model, some, min(self.batch_size, len(examples)), self.layers)

    def begin(self, subject: Subject, examples: Split) -> Step:
        reduce = reduction(self.reduce)

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = examples.batch(number, self.batch_size)
            sides = []
            for which, model in enumerate(subject.models):
                subject.reseed("compare", "network", number, which)
                sides.append(responses_of(model, batch.x, self.layers, reduce)[1])
            ours, theirs = sides
            if not ours.keys() & theirs.keys():
                raise GeophoneError(
                    f"no layer has the same name in both networks: {', '.join(ours)} and {', '.join(theirs)}."
                )
            condition, sums = Condition(), dict[Name, Any]()
            for statistic in {metric.statistic: None for metric in self.chosen}:
                for name in (name for name in ours if name in theirs):
                    index = batch.with_rows(ours[name]).index
                    condition.add(name, statistic, False, Pair(ours[name], theirs[name], index), len(batch))
            condition.put(0, sums)
            done(1)
            return Part.of(number, sums, {"order": list(ours)})

        return step

    def rows(self, part: Part) -> Iterator[Row]:
        columns = {"family": "networks", "perturbation": "another network", "other": "second", "level": None}
        depth = {name: i for i, name in enumerate(part.facts["order"])}
        sums = {name[1:]: statistic for name, statistic in part.total().items()}
        yield from condition_rows(self.chosen, sums, (), columns, depth, units=True)


@checked
def compare(
    first: Model,
    second: Model,
    data: Any,
    metrics: Sequence[str] = ("cka", "pwcca"),
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 256,
    reduce: Reduce = spatial_mean,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """How alike two networks' responses to the same clean images are, layer by layer; returns rows of the table.

    Layers are compared that bear the same name in both. The rows' family is "networks".

    Args:
        first: Images in [0, 1] → logits. Layers and depths are its own.
        second: The other network, on the same device.
        data: As in `measure`.
        metrics: Names of metrics that read pairs.
        layers: As in `measure`.
        batch_size: Images per batch.
        reduce: As in `measure`.
        seed: Keys the noise of stochastic networks.
        columns: Values for the table's other columns; `perturbation` and `other` say what the second network is.

    Raises:
        GeophoneError: a metric that reads no pairs, or no layer that both have.
    """
    probe = Pairs(as_tuple(metrics), None if layers is None else as_tuple(layers), reduce, batch_size)
    return table.labelled(measured(probe, (first, second), data, seed=seed), columns or {})
