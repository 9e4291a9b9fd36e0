"""One pass over the data for every metric, layer and perturbation: from a network and images to rows of the table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor

from geophone import table
from geophone.data import as_split
from geophone.errors import GeophoneError
from geophone.metrics import Metric, Undefined
from geophone.perturb import grid
from geophone.record import Reduce, check_ran, layers_of, logits_of, spatial_mean, tap, unwrapped
from geophone.registry import METRICS
from geophone.rng import draws, key, stream
from geophone.types import (
    Batch,
    Model,
    Pair,
    Perturbation,
    deterministic,
    device_of,
    evaluating,
    family_name,
    fitted,
    full_precision,
    level_of,
    seeded,
)

Key = tuple[str | None, type, bool]
"""Where a sum belongs: layer (none for the logits), statistic, and whether the labels were shuffled."""


@dataclass
class _Condition:
    """The clean images, or one perturbation of them, and what was summed up so far."""

    columns: dict[str, Any]
    perturbation: Perturbation | None
    sums: dict[Key, Any] = field(default_factory=dict)

    def add(self, layer: str | None, statistic: type[Any], shuffled: bool, batch: Batch | Pair) -> None:
        part = statistic.of(batch)
        key = (layer, statistic, shuffled)
        self.sums[key] = self.sums[key] + part if key in self.sums else part


def measure(
    model: Model,
    data: Any,
    perturbations: str | Sequence[Perturbation] = (),
    layers: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    batch_size: int = 256,
    reduce: Reduce = spatial_mean,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Perturb, record and measure in one pass over the images; returns rows of the table (see `geophone.table`).

    Each batch goes through the network clean and under every perturbation; every layer's responses are reduced inside
    the hook, summed into statistics and dropped. Memory is O(perturbations · layers · d²) however many the images.
    The network is in eval mode meanwhile and restored after; TF32 and autocast are off.

    Args:
        model: Images in [0, 1] → logits. On the device where it is.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`.
        perturbations: What to shake the images with, besides leaving them clean: objects, or text as `grid` reads it.
        layers: Module names or shell patterns; default every activation and block output.
        metrics: Names of registered metrics; default all of them.
        batch_size: Images per batch. Results do not depend on it, beyond rounding.
        reduce: From a response `[n, ...]` to `[n, d]`; default the mean over space.
        seed: Keys the perturbations' randomness and the shuffled labels.
        columns: Values for the table's columns job, dataset, model, recipe, seed and epoch.
        progress: Called with (steps done, steps in all).

    Raises:
        GeophoneError: bad images or labels, unknown layers or metrics, a network that gives no finite logits.

    >>> measure(model, "fashion_mnist_mini", "LinfPGD(eps=8/255)", ["relu*"], ["accuracy", "cka"])
    """
    chosen = [METRICS[name] for name in (metrics if metrics is not None else METRICS)]
    split = as_split(data).to(device_of(model))
    conditions = [_Condition({"family": "clean", "perturbation": "clean", "level": 0.0}, None)]
    conditions += [
        _Condition({"family": p.family, "perturbation": family_name(p), "level": level_of(p)}, p)
        for p in dict.fromkeys(
            fitted(p, split.x.shape) for p in (grid(perturbations) if isinstance(perturbations, str) else perturbations)
        )
    ]
    wanted = [] if layers is None else layers_of(model, layers)
    depth: dict[str, int] = {}
    shuffled = split.y[torch.randperm(len(split), generator=stream(seed, "shuffled labels")).to(split.y.device)]
    steps = -(-len(split) // batch_size) * len(conditions)
    done = 0
    noise = key(seed, "network")  # of a stochastic network, so that its rows can be repeated
    with evaluating(model), full_precision(), deterministic(), seeded(noise, split.x.device), torch.no_grad():
        for number, batch in enumerate(split.batches(batch_size)):
            shuffled_y = shuffled[number * batch_size :][: len(batch)]
            clean: dict[str, Tensor] = {}
            for condition in conditions:
                x = batch.x
                if condition.perturbation is not None:
                    # Keyed without the level: an image gets the same noise, only more of it, all along a curve.
                    rng = draws(seed, family_name(condition.perturbation), index=batch.index)
                    x = condition.perturbation(x, batch.y, model, rng)
                logits, responses = _responses(model, x, layers, reduce)
                check_ran(wanted, responses)
                if condition.perturbation is None:
                    _check_labels(batch, logits)
                _sum_up(condition, chosen, batch.with_x(logits), responses, shuffled_y, clean)
                if condition.perturbation is None:
                    clean = responses
                    depth = {name: i for i, name in enumerate(responses)}
                done += 1
                if progress is not None:
                    progress(done, steps)
    given = dict(columns or {})
    return table.frame({**given, **row} for c in conditions for row in _rows(c, chosen, depth))


def _responses(
    model: Model, x: Tensor, layers: Sequence[str] | None, reduce: Reduce
) -> tuple[Tensor, dict[str, Tensor]]:
    with tap(model, layers, reduce) as seen:
        return logits_of(unwrapped(model), x), dict(seen)


def _sum_up(
    condition: _Condition,
    chosen: Sequence[Metric],
    logits: Batch,
    responses: dict[str, Tensor],
    shuffled_y: Tensor,
    clean: dict[str, Tensor],
) -> None:
    """Add one batch to every statistic that a chosen metric needs."""
    for statistic, reads, shuffled in {(m.statistic, m.reads, m.shuffled): None for m in chosen}:
        if reads == "logits":
            condition.add(None, statistic, shuffled, logits)
            continue
        for layer, x in responses.items():
            if reads == "responses":
                y = shuffled_y if shuffled else logits.y
                condition.add(layer, statistic, shuffled, Batch(x, y, logits.index))
            elif layer in clean:
                condition.add(layer, statistic, shuffled, Pair(clean[layer], x))


def _rows(condition: _Condition, chosen: Sequence[Metric], depth: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The condition's rows: every metric of the network, then of each layer; single units on clean images only."""
    for metric in chosen:
        common = {**condition.columns, "metric": metric.name}
        layers = [layer for layer, statistic, shuffled in condition.sums if (statistic, shuffled) == _needs(metric)]
        layer_values, units = [], 0
        for layer in layers:
            statistic = condition.sums[(layer, *_needs(metric))]
            row: dict[str, Any] = {**common, "n": statistic.n, "d": statistic.d}
            if layer is not None:
                row |= {"layer": layer, "depth": depth[layer], "other": "clean" if metric.reads == "pair" else None}
            try:
                value = metric.compute(statistic)
                low, high = metric.interval(statistic) if metric.interval else (None, None)
            except Undefined as reason:
                yield row | {"note": str(reason)}
                continue
            if metric.per_unit:
                if condition.perturbation is None:
                    yield from (row | {"unit": unit, "value": v} for unit, v in enumerate(value.tolist()))
                units += len(value)
                value = float(value.mean())
                layer_values.append(value)
            yield row | {"value": float(value), "low": low, "high": high}
        if layer_values:
            mean = sum(layer_values) / len(layer_values)
            yield {
                **common,
                "value": mean,
                "n": statistic.n,
                "d": units,
                "note": f"mean over {len(layer_values)} layers",
            }


def _needs(metric: Metric) -> tuple[type[Any], bool]:
    return metric.statistic, metric.shuffled


def _check_labels(batch: Batch, logits: Tensor) -> None:
    if int(batch.y.max()) >= logits.shape[1]:
        raise GeophoneError(
            f"label {int(batch.y.max())} is out of range: the network gives {logits.shape[1]} logits, so labels run "
            f"from 0 to {logits.shape[1] - 1}. Check that the data set is the one the network was trained for."
        )
