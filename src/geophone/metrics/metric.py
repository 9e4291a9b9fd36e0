"""What a metric is, and how one is registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geophone.errors import GeophoneError
from geophone.registry import METRICS
from geophone.rng import stream
from geophone.types import UNLABELLED, Batch, Pair


class Undefined(GeophoneError):
    """The metric has no value here; the message says why. The table gets null and that reason."""


@dataclass(frozen=True)
class Metric:
    """A pure function of one statistic, with what the table and the report need to know of it.

    Attributes:
        name: The literature's name; unique in the registry.
        statistic: The class of statistic that it reads.
        compute: From a statistic to a number, or to one number per unit, `[d]`.
        per_unit: Whether there is one number per unit, NaN where a unit has none. A layer's value is then the mean over
            the others, and the whole network's the mean over layers.
        shuffled: Whether it reads responses whose labels were shuffled over the data set: a finite-sample floor.
        interval: From the statistic to the bounds of a 95 % interval, where there is one.
        when: "always"; "clean" if it is left out for perturbed images, being costly and of no use there; "asked" if it
            is measured only where it is named.
        doc: What it is; the first line is what `geophone list metrics` shows.
    """

    name: str
    statistic: type[Any]
    compute: Callable[[Any], Any]
    per_unit: bool = False
    shuffled: bool = False
    interval: Callable[[Any], tuple[float, float]] | None = None
    when: str = "always"
    doc: str = ""

    @property
    def reads(self) -> str:
        """What the statistic reads: "responses", "points", "logits", "pair" or "images"."""
        return self.statistic.reads

    def __call__(self, *data: Any) -> Any:
        """The metric of a statistic, or of plain tensors: `(x)` or `(x, y)`, or `(a, b)` for a comparison.

        A comparison of plain tensors reads all their rows, where one of a data set may read a sample.

        Args:
            data: A statistic of the right class; or responses `[n, d]` and, where the metric needs them, labels
                `[n]`; or two aligned matrices `[n, p]` and `[n, q]`.

        Raises:
            Undefined: there is no value for these data.
            Unlabelled: it needs labels, and was given none.
        """
        if len(data) == 1 and isinstance(data[0], self.statistic):
            return self.compute(data[0])
        batch = _pack(self.name, self.reads, data)
        if self.shuffled and isinstance(batch, Batch):
            order = torch.randperm(len(batch), generator=stream(0, "shuffled labels")).to(batch.y.device)
            batch = Batch(batch.x, batch.y[order], batch.index)
        return self.compute(of_all_rows(self.statistic, batch))

    def __repr__(self) -> str:
        return f"<metric {self.name}>"


def of_all_rows(statistic: type[Any], data: Batch | Pair) -> Any:
    """The statistic of data that are all at hand: one that samples pairs (it has `of_all`) leaves no row out."""
    return getattr(statistic, "of_all", statistic.of)(data)


def _pack(name: str, reads: str, data: tuple[Any, ...]) -> Batch | Pair:
    """Plain tensors as what a statistic reads, checked."""
    tensors = [torch.as_tensor(part) for part in data]
    paired = reads in ("pair", "images")
    wanted = "two aligned matrices [n, p] and [n, q]" if paired else f"{reads} [n, d] and, if needed, labels [n]"
    if not tensors or len(tensors) > 2 or tensors[0].ndim != 2:
        shapes = ", ".join(str(list(t.shape)) for t in tensors) or "nothing"
        raise GeophoneError(f"{name} takes {wanted}; it was given {shapes}.")
    x = tensors[0]
    if len({len(t) for t in tensors}) != 1:
        raise GeophoneError(f"{name} takes {wanted}; the lengths differ: {[len(t) for t in tensors]}.")
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise GeophoneError(f"{name}: the data have NaN or infinite values. Remove those rows, or mend what made them.")
    if paired:
        if len(tensors) != 2 or tensors[1].ndim != 2:
            raise GeophoneError(f"{name} takes {wanted}.")
        return Pair(x, tensors[1])
    if len(tensors) == 1:
        return Batch(x, torch.full((len(x),), UNLABELLED), torch.arange(len(x)))
    y: Tensor = tensors[1]
    if y.is_floating_point() or y.ndim != 1 or bool((y < 0).any()):
        raise GeophoneError(f"{name}: labels must be integers ≥ 0 of shape [n].")
    return Batch(x, y.long(), torch.arange(len(x)))


def metric(
    statistic: type[Any],
    *,
    name: str = "",
    per_unit: bool = False,
    shuffled: bool = False,
    interval: Callable[[Any], tuple[float, float]] | None = None,
    when: str = "always",
) -> Callable[[Callable[[Any], Any]], Metric]:
    """Decorator: register a function of one statistic as a metric.

    >>> @metric(Moments)
    ... def total_variance(m: Moments) -> float:
    ...     return float(m.trace / (m.n - 1))
    """

    def register(compute: Callable[[Any], Any]) -> Metric:
        named, doc = name or compute.__name__, compute.__doc__ or ""
        made = Metric(named, statistic, compute, per_unit, shuffled, interval, when, doc)
        return METRICS.add(made.name, made)

    return register


def default_metrics() -> tuple[str, ...]:
    """Names of the metrics that are measured where none are named."""
    return tuple(name for name, metric in METRICS.items() if metric.when != "asked")
