"""What a metric is, and how one is registered."""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, short
from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.core.types import UNLABELLED, Batch, Pair
from geophone.stats.statistic import finite, tensor_of

OVERFLOW = (
    "the responses are NaN or infinite, or so large that sums of their squares are not finite: scale them, or mend "
    "what made them"
)
OUT_OF_RANGE = "its formula leaves the range of float64: the responses are too large or too small; scale them"


def not_finite(bad: int, n: int, what: str = "responses") -> str:
    """The reason why there is no value where some examples' responses are not numbers."""
    return f"{bad} of {n} examples have NaN or infinite {what}"


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
        least: The fewest examples of which it says anything: with fewer it is undefined.
        least_units: Likewise the fewest units, or logits.
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
    least: int = 1
    least_units: int = 1

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
            return self._computed(data[0])
        batch = _pack(self.name, self.reads, data)
        if len(batch) < self.least:
            raise Undefined(f"needs at least {self.least} images, has {len(batch)}")
        if self.shuffled and isinstance(batch, Batch):
            order = torch.randperm(len(batch), generator=stream(0, "shuffled labels")).to(batch.y.device)
            batch = Batch(batch.x, batch.y[order], batch.index)
        return self._computed(of_all_rows(self.statistic, batch))

    def _computed(self, statistic: Any) -> Any:
        """The value of a statistic; none of one that is not finite, whatever the formula would make of it."""
        if statistic.n < self.least:
            raise Undefined(f"needs at least {self.least} images, has {statistic.n}")
        if statistic.d < self.least_units:
            raise Undefined(f"needs at least {self.least_units} units, has {statistic.d}")
        if not finite(statistic):
            raise Undefined(OVERFLOW)
        value = self.compute(statistic)
        if self.per_unit:  # NaN is a unit without a value
            return torch.where(value.isinf(), torch.nan, value)
        if not isfinite(value):
            raise Undefined(OUT_OF_RANGE)
        return value

    def bounds(self, statistic: Any) -> tuple[float | None, float | None, str]:
        """The bounds of the interval, if it has one here, and otherwise why it has none; for a value that it has."""
        if self.interval is None:
            return None, None, ""
        try:
            low, high = self.interval(statistic)
        except Undefined as reason:
            return None, None, f"no interval: {reason}"
        if not (isfinite(low) and isfinite(high)):
            return None, None, f"no interval: {OUT_OF_RANGE}"
        return low, high, ""

    def __repr__(self) -> str:
        return f"<metric {self.name}>"


def of_all_rows(statistic: type[Any], data: Batch | Pair) -> Any:
    """The statistic of data that are all at hand: one that samples pairs (it has `of_all`) leaves no row out."""
    return getattr(statistic, "of_all", statistic.of)(data)


def _pack(name: str, reads: str, data: tuple[Any, ...]) -> Batch | Pair:
    """Plain tensors as what a statistic reads, checked."""
    tensors = [tensor_of(part, f"{name}: what it was given") for part in data]
    paired = reads in ("pair", "images")
    wanted = "two aligned matrices [n, p] and [n, q]" if paired else f"{reads} [n, d] and, if needed, labels [n]"
    if not tensors or len(tensors) > 2 or tensors[0].ndim != 2:
        shapes = ", ".join(str(list(t.shape)) for t in tensors) or "nothing"
        raise GeophoneError(f"{name} takes {wanted}; it was given {shapes}.")
    x = tensors[0]
    if len({len(t) for t in tensors}) != 1:
        raise GeophoneError(f"{name} takes {wanted}; the lengths differ: {[len(t) for t in tensors]}.")
    if bad := int(
        torch.stack([~t.isfinite().flatten(1).all(1) if t.ndim > 1 else ~t.isfinite() for t in tensors]).any(0).sum()
    ):
        raise Undefined(f"{name}: {not_finite(bad, len(x))}. Remove those rows, or mend what made them.")
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


@checked
def metric(
    statistic: Any = None,
    *,
    name: str = "",
    per_unit: bool = False,
    shuffled: bool = False,
    interval: Callable[[Any], tuple[float, float]] | None = None,
    when: str = "always",
    least: int = 1,
    least_units: int = 1,
) -> Callable[[Callable[[Any], Any]], Metric]:
    """Decorator: register a function of one statistic as a metric.

    Raises:
        GeophoneError: the statistic is missing, or no dataclass.

    >>> @metric(Moments)
    ... def total_variance(m: Moments) -> float:
    ...     return float(m.trace / (m.n - 1))
    """
    if not (isinstance(statistic, type) and is_dataclass(statistic)):
        raise GeophoneError(
            "a metric needs the statistic that it reads, a class of geophone.stats or one like it: @metric(Moments); "
            f"it was given {'none' if statistic is None else short(statistic)}."
        )

    def register(compute: Callable[[Any], Any]) -> Metric:
        named, doc = name or compute.__name__, compute.__doc__ or ""
        made = Metric(named, statistic, compute, per_unit, shuffled, interval, when, doc, least, least_units)
        return METRICS.add(made.name, made)

    return register


def default_metrics() -> tuple[str, ...]:
    """Names of the metrics that are measured where none are named."""
    return tuple(name for name, metric in METRICS.items() if metric.when != "asked")
