"""One pass over the data for every metric, layer and perturbation: from a network and images to rows of the table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from geophone.core import table
from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, Unlabelled, check_counts
from geophone.core.registry import METRICS
from geophone.core.rng import draws, key, stream
from geophone.core.types import Batch, GoesOn, Model, Pair, Perturbation, unwrapped, without_gradients
from geophone.data import Split, as_split
from geophone.metrics import Metric, Undefined, default_metrics
from geophone.metrics.metric import not_finite
from geophone.models.run import (
    answers_at_random,
    check_columns,
    check_labels,
    deterministic,
    evaluating,
    full_precision,
    logits_of,
    need_labels,
    seeded,
)
from geophone.models.stochastic import refuse_frozen
from geophone.models.tap import PROBED, Reduce, check_axes, check_ran, layers_of, spatial_mean, tap
from geophone.perturb.attacks.base import averaging, draws_of, eot_row, is_attack
from geophone.perturb.parse import condition as columns_of
from geophone.perturb.parse import family_name, level_of, shakes
from geophone.probes.projection import RandomProjection

NO_UNIT = "this unit has no value: see what the metric says"

Key = tuple[str | None, type, bool]
"""Where a sum belongs: layer (none for the logits), statistic, and whether the labels were shuffled."""


@dataclass
class _Condition:
    """The clean images, or one perturbation of them, and what was summed up so far."""

    columns: dict[str, Any]
    perturbation: Perturbation | None
    sums: dict[Key, Any] = field(default_factory=dict)
    missing: dict[Key, str] = field(default_factory=dict)
    """Why there is no sum: the images lack the labels that it needs."""
    examples: dict[Key, int] = field(default_factory=dict)
    """Of each sum, how many examples went into it."""
    bad: dict[Key, Any] = field(default_factory=dict)
    """How many of them have NaN or infinite responses; on the responses' device until it is read."""

    @property
    def attack(self) -> Perturbation | None:
        """The perturbation, where it attacks."""
        return self.perturbation if self.perturbation is not None and is_attack(self.perturbation) else None

    def add(self, layer: str | None, statistic: type[Any], shuffled: bool, batch: Batch | Pair, examples: int) -> None:
        """Sum up a batch of so many examples, of which each may have several rows."""
        key = (layer, statistic, shuffled)
        try:
            part = statistic.of(batch)
        except Unlabelled as reason:
            self.missing[key] = str(reason)
            return
        self.examples[key] = self.examples.get(key, 0) + examples
        self.bad[key] = self.bad.get(key, 0) + _not_finite(batch, examples)
        self.sums[key] = self.sums[key] + part if key in self.sums else part


def _not_finite(batch: Batch | Pair, examples: int) -> Int[Tensor, ""]:
    """How many examples have a NaN or an infinity, on either side of a pair."""
    sides = (batch.a, batch.b) if isinstance(batch, Pair) else (batch.x,)
    rows = torch.stack([~side.isfinite().all(1) for side in sides]).any(0)
    return rows.reshape(examples, -1).any(1).count_nonzero()


@checked
def measure(
    model: Model,
    data: Any,
    perturbations: str | Perturbation | Sequence[Perturbation | str] = (),
    layers: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
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
    chosen = _named(default_metrics() if metrics is None else metrics)
    check_counts(batch_size=batch_size)
    split = as_split(data).near(model)
    conditions = [_Condition(columns_of(p), p) for p in (None, *shakes(perturbations, split.x.shape))]
    if len(conditions) > 1:
        refuse_frozen(model, "Robustness")
    if attack := next((c.attack for c in conditions if c.attack is not None), None):
        need_labels(split, family_name(attack))
    wanted = [] if layers is None else layers_of(model, layers)
    project = RandomProjection(features, seed) if any(m.reads == "points" for m in chosen) else None
    depth: dict[str, int] = {}
    shuffled = split.y[torch.randperm(len(split), generator=stream(seed, "shuffled labels")).to(split.y.device)]
    steps = split.steps(batch_size) * len(conditions)
    done = 0
    noise = key(seed, "network")  # of a stochastic network, so that its rows can be repeated
    with evaluating(model), full_precision(), deterministic(), seeded(noise, split.x.device), without_gradients():
        check_axes(model, next(split.batches(PROBED)).x, min(batch_size, len(split)), layers)
        noisy = _average(conditions, model, split)
        for number, batch in enumerate(split.batches(batch_size)):
            shuffled_y = shuffled[number * batch_size :][: len(batch)]
            clean: dict[str, Tensor] = {}
            weaker: dict[str, tuple[Perturbation, Tensor]] = {}
            for condition in conditions:
                x = batch.x
                if condition.perturbation is not None:
                    name = condition.columns["perturbation"]
                    x = _perturbed(condition.perturbation, name, batch, model, seed, weaker)
                logits, responses, points = _responses(model, x, layers, reduce, project)
                check_ran(wanted, responses)
                if condition.perturbation is None and number == 0:
                    if any(m.reads == "logits" for m in chosen):
                        check_columns(logits)
                    check_labels(split, logits.shape[1])
                _sum_up(condition, chosen, batch, x, logits, responses, points, shuffled_y, clean)
                if condition.perturbation is None:
                    clean = responses
                    depth = {name: i for i, name in enumerate(responses)}
                done += 1
                if progress is not None:
                    progress(done, steps)
    given = dict(columns or {})
    rows = (row for c in conditions for row in (*_rows(c, chosen, depth), *_averaging(c, noisy, len(split))))
    return table.frame({**given, **row} for row in rows)


def _average(conditions: Sequence[_Condition], model: Model, split: Split) -> bool:
    """Whether a network under attack is stochastic; if so, the attacks average over its noise, under their names."""
    attacks = [(condition, attack) for condition in conditions if (attack := condition.attack) is not None]
    noisy = bool(attacks) and answers_at_random(model, split)
    for condition, attack in attacks:
        condition.perturbation = averaging(attack, noisy)
    return noisy


def _averaging(condition: _Condition, noisy: bool, n: int) -> Iterator[dict[str, Any]]:
    """Of an attack on a stochastic network, how its gradients were averaged."""
    if noisy and condition.attack is not None:
        yield {**condition.columns, **eot_row(draws_of(condition.attack, True)), "n": n}


def _perturbed(
    perturbation: Perturbation,
    name: str,
    batch: Batch,
    model: Model,
    seed: int,
    weaker: dict[str, tuple[Perturbation, Tensor]],
) -> Tensor:
    """The batch's images, perturbed. What goes on from a lower level, as an attack does in steps, starts there."""
    # Keyed without the level: an image gets the same noise, only more of it, all along a curve.
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


def _responses(
    model: Model, x: Tensor, layers: Sequence[str] | None, reduce: Reduce, project: Reduce | None = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The logits, what every layer answers reduced, and the same projected."""
    projected: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
    if project is not None:
        projected = tap(model, layers, project)
    with tap(model, layers, reduce) as seen, projected as points:
        return logits_of(unwrapped(model), x), dict(seen), dict(points)


def _sum_up(
    condition: _Condition,
    chosen: Sequence[Metric],
    batch: Batch,
    x: Tensor,
    logits: Tensor,
    responses: dict[str, Tensor],
    points: dict[str, Tensor],
    shuffled_y: Tensor,
    clean: dict[str, Tensor],
) -> None:
    """Add one batch to every statistic that a chosen metric needs; x are its images as this condition has them."""
    perturbed = condition.perturbation is not None
    here = [m for m in chosen if not (perturbed and m.when == "clean")]
    for statistic, reads, shuffled in {(m.statistic, m.reads, m.shuffled): None for m in here}:
        if reads == "logits":
            condition.add(None, statistic, shuffled, batch.with_x(logits), len(batch))
        elif reads == "images":
            if perturbed:
                condition.add(
                    None, statistic, shuffled, Pair(batch.x.flatten(1), x.flatten(1), batch.index), len(batch)
                )
        else:
            for layer, response in (points if reads == "points" else responses).items():
                if reads != "pair":
                    labelled = Batch(batch.x, shuffled_y, batch.index) if shuffled else batch
                    condition.add(layer, statistic, shuffled, labelled.with_rows(response), len(batch))
                elif layer in clean:
                    index = batch.with_rows(response).index
                    condition.add(layer, statistic, shuffled, Pair(clean[layer], response, index), len(batch))


def _rows(condition: _Condition, chosen: Sequence[Metric], depth: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The condition's rows: every metric of the network, then of each layer; single units on clean images only."""
    for metric in chosen:
        common = {**condition.columns, "metric": metric.name}
        for (layer, *needs), reason in condition.missing.items():
            if tuple(needs) == _needs(metric):
                where = {} if layer is None else {"layer": layer, "depth": depth[layer]}
                yield {**common, **where, "note": reason}
        layers = [layer for layer, statistic, shuffled in condition.sums if (statistic, shuffled) == _needs(metric)]
        layer_values, units = [], 0
        for layer in layers:
            key = (layer, *_needs(metric))
            statistic = condition.sums[key]
            row: dict[str, Any] = {**common, "n": statistic.n, "d": statistic.d}
            if layer is not None:
                row |= {"layer": layer, "depth": depth[layer]}
                if metric.reads == "pair":
                    row = {"other": "clean", **row}
            try:
                if bad := int(condition.bad[key]):
                    raise Undefined(not_finite(bad, condition.examples[key]))
                value = metric(statistic)
                low, high, no_interval = metric.bounds(statistic)
            except Undefined as reason:
                yield row | {"note": str(reason)}
                continue
            if metric.per_unit:
                if condition.perturbation is None:
                    for unit, v in enumerate(value.tolist()):
                        yield row | {"unit": unit, "value": v, "note": NO_UNIT if isnan(v) else None}
                defined = value[~value.isnan()]
                if missing := len(value) - len(defined):
                    row["note"] = f"{missing} of {len(value)} units have no value"
                if len(defined) == 0:
                    yield row
                    continue
                units += len(defined)
                value = float(defined.mean())
                layer_values.append(value)
            if no_interval:
                row["note"] = no_interval
            yield row | {"value": float(value), "low": low, "high": high}
        if layer_values:
            mean = sum(layer_values) / len(layer_values)
            of = "" if len(layer_values) == len(layers) else f" of {len(layers)}"
            yield {
                **common,
                "value": mean,
                "n": statistic.n,
                "d": units,
                "note": f"mean over {len(layer_values)}{of} layers",
            }


def _named(metrics: str | Sequence[str]) -> list[Metric]:
    """Metrics by their names, or by one name."""
    names = [metrics] if isinstance(metrics, str) else metrics
    return [METRICS[name] for name in names]


def _needs(metric: Metric) -> tuple[type[Any], bool]:
    return metric.statistic, metric.shuffled


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
    chosen = _named(metrics)
    check_counts(batch_size=batch_size)
    if wrong := [m.name for m in chosen if m.reads != "pair"]:
        raise GeophoneError(f"{wrong[0]} does not compare two sets of responses. Name metrics that do, such as cka.")
    condition = _Condition({"family": "networks", "perturbation": "another network", "other": "second"}, None)
    depth: dict[str, int] = {}
    split = as_split(data).near(first)
    noise = seeded(key(seed, "compare", "network"), split.x.device)  # of a stochastic network
    with evaluating(first), evaluating(second), full_precision(), deterministic(), noise, without_gradients():
        for model in (first, second):
            check_axes(model, next(split.batches(PROBED)).x, min(batch_size, len(split)), layers)
        for batch in split.batches(batch_size):
            (_, ours, _), (_, theirs, _) = (_responses(model, batch.x, layers, reduce) for model in (first, second))
            depth = {name: i for i, name in enumerate(ours)}
            if not ours.keys() & theirs.keys():
                raise GeophoneError(
                    f"no layer has the same name in both networks: {', '.join(ours)} and {', '.join(theirs)}."
                )
            for statistic in {m.statistic: None for m in chosen}:
                for name in (name for name in ours if name in theirs):
                    index = batch.with_rows(ours[name]).index
                    condition.add(name, statistic, False, Pair(ours[name], theirs[name], index), len(batch))
    condition.columns |= dict(columns or {})
    return table.frame(_rows(condition, chosen, depth))
