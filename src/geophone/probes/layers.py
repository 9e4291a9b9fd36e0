"""Every layer, clean and perturbed, in one pass over the examples: from a model to rows of the table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan
from typing import Any

import polars as pl
import torch
from torch import Tensor

from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import Unlabelled, check_counts
from geophone.core.registry import METRICS
from geophone.core.rng import draws, stream
from geophone.core.types import Batch, GoesOn, Model, Pair, Perturbation, unwrapped
from geophone.data import Split
from geophone.metrics import Metric, Undefined, default_metrics
from geophone.metrics.metric import not_finite
from geophone.models.run import Subject, check_columns, check_labels, logits_of, need_labels
from geophone.models.stochastic import refuse_frozen
from geophone.models.tap import PROBED, Reduce, check_axes, check_ran, layers_of, reduction, spatial_mean, tap
from geophone.perturb.attacks.base import averaging, draws_of, eot_row, is_attack
from geophone.perturb.cost import passes
from geophone.perturb.parse import condition as columns_of
from geophone.perturb.parse import family_name, level_of, shakes
from geophone.probes.part import Name, Part, name_of
from geophone.probes.probe import PROBES, Probe, Row, Soundness, Step, measured
from geophone.probes.projection import RandomProjection

NO_UNIT = "this unit has no value: see what the metric says"


class Condition:
    """What one step sums up under one condition, by layer (none for the logits), statistic, and shuffled labels or not.

    Attributes:
        sums: The statistics.
        sound: Of each, its `Soundness`.
        missing: Why there is no statistic: the examples lack the labels that it needs.
    """

    def __init__(self) -> None:
        self.sums: dict[Name, Any] = {}
        self.sound: dict[Name, Soundness] = {}
        self.missing: dict[Name, str] = {}

    def add(self, layer: str | None, statistic: type[Any], shuffled: bool, batch: Batch | Pair, examples: int) -> None:
        """Sum up a batch of so many examples, of which each may have several rows."""
        name = (layer, name_of(statistic), shuffled)
        try:
            self.sums[name] = statistic.of(batch)
        except Unlabelled as reason:
            self.missing[name] = str(reason)
            return
        self.sound[name] = Soundness.of(batch, examples)

    def put(self, place: int, sums: dict[Name, Any]) -> list[list[Any]]:
        """Its sums among those of all conditions; what is missing, as facts."""
        for name, statistic in self.sums.items():
            sums[place, "sum", *name] = statistic
            sums[place, "sound", *name] = self.sound[name]
        return [[place, *name, reason] for name, reason in self.missing.items()]


@PROBES.register
@dataclass(frozen=True)
class Layers(Probe):
    """Responses of every layer, and the logits, to clean and perturbed examples; a step is a batch.

    See `measure` for what is done and what the fields mean.
    """

    perturbations: tuple[str | Perturbation, ...] = ()
    layers: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    reduce: str | Reduce = "spatial_mean"
    features: int = 2000
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, features=self.features)

    @cached_property
    def chosen(self) -> list[Metric]:
        """The metrics."""
        return [METRICS[name] for name in (default_metrics() if self.metrics is None else self.metrics)]

    @property
    def kinds(self) -> Sequence[type[Any]]:
        return (*dict.fromkeys(metric.statistic for metric in self.chosen), Soundness)

    def resolved(self, examples: Split) -> "Layers":
        shaken = tuple(shakes(self.perturbations, examples.x.shape))
        return replace(self, perturbations=shaken, metrics=tuple(metric.name for metric in self.chosen))

    @property
    def conditions(self) -> list[Perturbation | None]:
        """The clean examples, and every perturbation, of a probe that is resolved."""
        return [None, *(one for one in self.perturbations if not isinstance(one, str))]

    def steps(self, examples: Split) -> int:
        return examples.steps(self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        each = len(examples) / self.steps(examples)
        return [each * (1 if one is None else 1 + passes(one)) for one in self.conditions]

    def check(self, subject: Subject, examples: Split) -> None:
        if len(self.conditions) > 1:
            refuse_frozen(subject.model, "Robustness")
        if attack := next((one for one in self.conditions if one is not None and is_attack(one)), None):
            need_labels(examples, family_name(attack))
        some = next(examples.batches(PROBED)).x
        check_axes(subject.model, some, min(self.batch_size, len(examples)), self.layers)

    def begin(self, subject: Subject, examples: Split) -> Step:
        model, reduce = subject.model, reduction(self.reduce)
        wanted = [] if self.layers is None else layers_of(model, self.layers)
        points = any(metric.reads == "points" for metric in self.chosen)
        project = RandomProjection(self.features, subject.seed) if points else None
        order = torch.randperm(len(examples), generator=stream(subject.seed, "shuffled labels"))
        shuffled = examples.y[order.to(examples.y.device)]
        attacked = any(one is not None and is_attack(one) for one in self.conditions)
        noisy = attacked and subject.stochastic()
        runs = [one if one is None or not is_attack(one) else averaging(one, noisy) for one in self.conditions]
        facts = [_facts(one, run, noisy) for one, run in zip(self.conditions, runs, strict=True)]
        fits = False

        def step(number: int, done: Callable[[int], None]) -> Part:
            nonlocal fits
            batch = examples.batch(number, self.batch_size)
            shuffled_y = shuffled[number * self.batch_size :][: len(batch)]
            clean: dict[str, Tensor] = {}
            weaker: dict[str, tuple[Perturbation, Tensor]] = {}
            sums: dict[Name, Any] = {}
            missing: list[list[Any]] = []
            for place, (run, (here, _)) in enumerate(zip(runs, facts, strict=True)):
                subject.reseed("network", number, here["perturbation"], here["level"])
                x = batch.x
                if run is not None:
                    # What a stochastic model answers on the way depends on the draws before it.
                    begun = {} if noisy and is_attack(run) else weaker
                    x = _perturbed(run, here["perturbation"], batch, model, subject.seed, begun)
                logits, responses, projected = responses_of(model, x, self.layers, reduce, project)
                check_ran(wanted, responses)
                if run is None:
                    clean = responses
                    if not fits:
                        self._check_logits(logits, examples)
                        fits = True
                condition = Condition()
                self._sum_up(condition, run is not None, batch, x, logits, responses, projected, shuffled_y, clean)
                missing += condition.put(place, sums)
                done(place + 1)
            known = {"examples": len(examples), "order": list(clean), "conditions": facts, "missing": missing}
            return Part.of(number, sums, known)

        return step

    def _check_logits(self, logits: Tensor, examples: Split) -> None:
        if any(metric.reads == "logits" for metric in self.chosen):
            check_columns(logits)
        check_labels(examples, logits.shape[1])

    def _sum_up(
        self,
        condition: Condition,
        perturbed: bool,
        batch: Batch,
        x: Tensor,
        logits: Tensor,
        responses: dict[str, Tensor],
        points: dict[str, Tensor],
        shuffled_y: Tensor,
        clean: dict[str, Tensor],
    ) -> None:
        """Every statistic of one batch that a metric needs; x are its examples as this condition has them."""
        n = len(batch)
        here = [metric for metric in self.chosen if not (perturbed and metric.when == "clean")]
        for statistic, reads, shuffled in {(m.statistic, m.reads, m.shuffled): None for m in here}:
            if reads == "logits":
                condition.add(None, statistic, shuffled, batch.with_x(logits), n)
            elif reads == "images":
                if perturbed:
                    condition.add(None, statistic, shuffled, Pair(batch.x.flatten(1), x.flatten(1), batch.index), n)
            else:
                for layer, response in (points if reads == "points" else responses).items():
                    if reads != "pair":
                        labelled = Batch(batch.x, shuffled_y, batch.index) if shuffled else batch
                        condition.add(layer, statistic, shuffled, labelled.with_rows(response), n)
                    elif perturbed and layer in clean:
                        pair = Pair(clean[layer], response, batch.with_rows(response).index)
                        condition.add(layer, statistic, shuffled, pair, n)

    def rows(self, part: Part) -> Iterator[Row]:
        total, depth = part.total(), {name: i for i, name in enumerate(part.facts["order"])}
        for place, (columns, eot) in enumerate(part.facts["conditions"]):
            here = {name[1:]: statistic for name, statistic in total.items() if name[0] == place}
            missing = [rest for which, *rest in part.facts["missing"] if which == place]
            yield from condition_rows(self.chosen, here, missing, columns, depth, units=place == 0)
            if eot is not None:
                yield {**columns, **eot_row(eot), "n": part.facts["examples"]}


def _facts(perturbation: Perturbation | None, run: Perturbation | None, noisy: bool) -> tuple[Row, int | None]:
    """A condition's columns; of an attack on a stochastic model, over how many draws its gradients are averaged."""
    averaged = noisy and run is not None and is_attack(run)
    return columns_of(perturbation), draws_of(run, True) if averaged else None


def _perturbed(
    perturbation: Perturbation,
    name: str,
    batch: Batch,
    model: Model,
    seed: int,
    weaker: dict[str, tuple[Perturbation, Tensor]],
) -> Tensor:
    """The batch's examples, perturbed. What goes on from a lower level, as an attack does in steps, starts there."""
    # Keyed without the level: an example gets the same noise, only more of it, all along a curve.
    rng = draws(seed, name, index=batch.index)
    if not isinstance(perturbation, GoesOn):
        return perturbation(batch.x, batch.y, model, rng)
    before = weaker.get(name)
    if before is not None and level_of(before[0]) <= level_of(perturbation):
        x = perturbation.onward(before[1], before[0], batch.x, batch.y, model, rng)
    else:
        x = perturbation(batch.x, batch.y, model, rng)
    weaker[name] = perturbation, x
    return x


def responses_of(
    model: Model, x: Tensor, layers: Sequence[str] | None, reduce: Reduce, project: Reduce | None = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The logits, what every layer answers reduced, and the same projected."""
    projected: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
    if project is not None:
        projected = tap(model, layers, project)
    with tap(model, layers, reduce) as seen, projected as points:
        return logits_of(unwrapped(model), x), dict(seen), dict(points)


def condition_rows(
    chosen: Sequence[Metric],
    sums: Mapping[Any, Any],
    missing: Sequence[Sequence[Any]],
    columns: Mapping[str, Any],
    depth: Mapping[str, int],
    units: bool,
) -> Iterator[Row]:
    """A condition's rows: every metric of the model, then of each layer; of single units if asked for.

    Args:
        chosen: The metrics.
        sums: Statistics and their soundness, as `Condition.put` names them, of this condition: without its place.
        missing: For each that there is none of: layer, statistic, whether the labels were shuffled, and why.
        columns: Family, perturbation, level and others.
        depth: The layers' places.
        units: Whether there are rows of single units.
    """
    for metric in chosen:
        needs = [name_of(metric.statistic), metric.shuffled]
        common = {**columns, "metric": metric.name}
        for layer, *what, reason in missing:
            if what == needs:
                yield {**common, **_where(layer, depth), "note": reason}
        layers = [layer for kind, layer, *what in sums if kind == "sum" and what == needs]
        values: list[float] = []
        used = 0
        for layer in layers:
            statistic = sums["sum", layer, *needs]
            row: Row = {**common, "n": statistic.n, "d": statistic.d, **_where(layer, depth)}
            if layer is not None and metric.reads == "pair":
                row = {"other": "clean", **row}
            try:
                sound: Soundness = sums["sound", layer, *needs]
                if bad := int(sound.bad):
                    raise Undefined(not_finite(bad, sound.examples))
                value = metric(statistic)
                low, high, no_interval = metric.bounds(statistic)
            except Undefined as reason:
                yield row | {"note": str(reason)}
                continue
            if metric.per_unit:
                if units:
                    for unit, v in enumerate(value.tolist()):
                        yield row | {"unit": unit, "value": v, "note": NO_UNIT if isnan(v) else None}
                defined = value[~value.isnan()]
                if without := len(value) - len(defined):
                    row["note"] = f"{without} of {len(value)} units have no value"
                if len(defined) == 0:
                    yield row
                    continue
                used += len(defined)
                value = float(defined.mean())
                values.append(value)
            if no_interval:
                row["note"] = no_interval
            yield row | {"value": float(value), "low": low, "high": high}
        if values:
            of = "" if len(values) == len(layers) else f" of {len(layers)}"
            note = f"mean over {len(values)}{of} layers"
            yield {**common, "value": sum(values) / len(values), "n": statistic.n, "d": used, "note": note}


def _where(layer: str | None, depth: Mapping[str, int]) -> Row:
    return {} if layer is None else {"layer": layer, "depth": depth[layer]}


@checked
def measure(
    model: Model,
    data: Any,
    perturbations: str | Perturbation | Sequence[Perturbation | str] = (),
    layers: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    *,
    batch_size: int = 256,
    reduce: Reduce = spatial_mean,
    features: int = 2000,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Perturb, record and measure in one pass over the images; returns rows of the table (see `geophone.core.table`).

    Each batch goes through the network clean and under every perturbation; every layer's responses are reduced inside
    the hook, summed into statistics and dropped. Memory is O(perturbations · layers · d²) however many the images;
    for metrics that read whole responses, also O(size of a layer · features).
    The network is in eval mode meanwhile and restored after; TF32 and autocast are off. Of a network with noise, which
    says so or answers the same images differently in two passes, attacks whose `draws` are left open average their
    gradients over 10 draws of it, and rows `eot_draws` say how many it was for each attack.

    Args:
        model: Images in [0, 1] → logits. On the device where it is.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`; or images
            alone: what needs labels is then null, and attacks are refused.
        perturbations: What to shake the images with, besides leaving them clean: objects, or text as `grid` reads it.
        layers: Module names or shell patterns; default every activation and block output.
        metrics: Names of registered metrics; default all but those that are measured only when asked for.
        batch_size: Images per batch. Results do not depend on it, beyond rounding and a network's own noise.
        reduce: From a response `[n, ...]` to `[n, d]`; default the mean over space.
        features: To how many dimensions whole responses are projected, at most, for metrics that read these.
        seed: Keys the perturbations' randomness, the shuffled labels and the projection.
        columns: Values for the table's columns job, dataset, model, recipe, seed and epoch.
        progress: Called with (steps done, steps in all).

    Raises:
        GeophoneError: bad images or labels, unknown layers or metrics, a network that gives no finite logits, or
            perturbations of one whose noise is frozen.

    >>> measure(model, "fashion_mnist_mini", "LinfPGD(eps=8/255)", ["relu*"], ["accuracy", "cka"])
    """
    probe = Layers(
        as_tuple(perturbations),
        None if layers is None else as_tuple(layers),
        None if metrics is None else as_tuple(metrics),
        reduce,
        features,
        batch_size,
    )
    _ = probe.chosen  # an unknown metric is found before data are read
    return measured(probe, model, data, seed=seed, columns=columns, progress=progress)
