"""Two plain matrices of responses to the same images: how alike, with an interval, a control and a warning."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.core.types import Pair, one_thread
from geophone.metrics.metric import Metric, Undefined, of_all_rows
from geophone.metrics.outcomes import Z
from geophone.metrics.similarity.kernels import constant
from geophone.stats.statistic import double, tensor_of

ENDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("cka", "cka_biased", "cka_rbf", "cka_rbf_kornblith", "cka_without_first_pc"), (0.0, 1.0)),
    **dict.fromkeys(("cca", "r2_cca", "svcca", "pwcca", "linear_regression_r2"), (0.0, 1.0)),
    **dict.fromkeys(("rsa_correlation", "rsa_euclidean", "rsa_whitened", "mutual_knn", "cknna"), (0.0, 1.0)),
    "procrustes": (2.0, 0.0),
    "angular_distance": (pi / 2, 0.0),
}
"""What unrelated responses have of very many images, and what the same responses have. A plug-in's measure has none."""

TURNS = frozenset(ENDS) - {"pwcca", "rsa_correlation"}
"""Measures that are invariant to rotation of either side, so that a wide side can be made narrow by `compact`."""

FAR = 0.1
"""Share of the way between a measure's ends by which shuffled rows may be off, or scatter, without a warning."""

LOST = 0.05
"""Share of the halves that may be undefined."""


@dataclass(frozen=True)
class Alike:
    """How alike two sets of responses are by one measure.

    Attributes:
        measure: The metric's name.
        value: Of all rows; none where it is undefined.
        low: Lower bound of the 95 % interval, where there is one.
        high: Upper bound.
        n: Rows.
        p: Columns of the first side.
        q: Columns of the second side.
        control: Mean of the measure over random permutations of the second side's rows: what unrelated responses of
            these n, p, q and spectra would have.
        note: Why there is no value or no interval, or why not to trust the value; empty where there is nothing to say.
    """

    measure: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    p: int
    q: int
    control: float | None
    note: str


def alike(
    x: Any, y: Any, measures: Sequence[str] = ("cka",), *, resamples: int = 200, shuffles: int = 20, seed: int = 0
) -> list[Alike]:
    """How alike two aligned matrices of responses are: each measure with an interval, a control and a warning.

    The interval is value ± 1.96 s, s the standard deviation of the measure over random halves of the rows drawn without
    replacement, times √(m/(n-m)), m = ⌊n/2⌋: that estimates the standard error of the value of all rows, for measures
    that are smooth functions of means. Drawing with replacement would repeat rows, which debiased estimators cannot
    take. In trials with normal responses it held the measure's mean over data sets in 89 to 99 of 100 of them from 60
    rows on; below, it can be a third too narrow or half too wide. Of responses that are unrelated it is up to √3 too
    wide. It says how much the value would vary with other images, not how far it is biased: for that, compare the value
    with the control. It is not clipped to the measure's range.

    `note` warns where shuffled rows are off by more than a tenth of the way from what unrelated responses have of very
    many images to what the same responses have (the measure is biased at this n, p and q), and where they scatter by
    more than that (n is too small).

    All rows are used. A side wider than n is made narrow first (see `compact`) for the measures that turning it leaves
    alone. Each measure is computed resamples + shuffles + 1 times.

    Args:
        x: Responses of one side, `[n, p]`, on any device.
        y: Responses of the other side to the same images in the same order, `[n, q]`.
        measures: Names of metrics that compare two sets of responses.
        resamples: Halves for the interval; 0 for none, else 20 or more.
        shuffles: Permutations for the control and the warning; 0 for none.
        seed: Keys the halves and the permutations, which are the same for every measure.

    Returns:
        One `Alike` for each measure, in their order.

    Raises:
        GeophoneError: matrices that are not aligned, have NaN or fewer than two rows; a metric that is unknown or does
            not compare responses by one number; numbers of resamples or shuffles that cannot be.

    References:
        Præstgaard & Wellner 1993, doi:10.1214/aop/1176989011 (exchangeable weights); Politis & Romano 1994,
        doi:10.1214/aos/1176325770 (subsampling).

    >>> alike(responses, other_responses, ("cka", "procrustes"))
    """
    a, b = _aligned(x, y)
    chosen = [_comparing(name) for name in dict.fromkeys([measures] if isinstance(measures, str) else measures)]
    if (resamples != 0 and resamples < 20) or shuffles < 0:
        raise GeophoneError(
            f"resamples={resamples}, shuffles={shuffles}: resamples is 0 or at least 20, shuffles 0 or more."
        )
    n, m = len(a), len(a) // 2
    halves, orders = stream(seed, "alike", "halves"), stream(seed, "alike", "orders")
    whole = torch.arange(n)
    # Rows of one side and of the other: as they are, in halves, and shuffled.
    rows = [(whole, whole)]
    rows += [(half, half) for half in (torch.randperm(n, generator=halves)[:m] for _ in range(resamples))]
    rows += [(whole, torch.randperm(n, generator=orders)) for _ in range(shuffles)]
    with one_thread(n):
        found = _found(chosen, a, b, rows)
    return [_summed(metric.name, found[metric.name], resamples, (n, a.shape[1], b.shape[1])) for metric in chosen]


def _found(
    chosen: Sequence[Metric], a: Tensor, b: Tensor, rows: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, list[float | Undefined]]:
    """Of each measure the values of some rows of one side and of the other."""
    found: dict[str, list[float | Undefined]] = {}
    for statistic, turns in dict.fromkeys((metric.statistic, metric.name in TURNS) for metric in chosen):
        members = [metric for metric in chosen if (metric.statistic, metric.name in TURNS) == (statistic, turns)]
        sides = tuple(_narrow(side) if turns else side for side in (a, b))
        found |= {metric.name: [] for metric in members}
        for one, other in rows:
            parts = [side[index.to(side.device)] for side, index in zip(sides, (one, other), strict=True)]
            summary = of_all_rows(statistic, Pair(*(_narrow(part) if turns else part for part in parts)))
            for metric in members:
                found[metric.name].append(_value(metric, summary))
    return found


def compact(x: Float[Tensor, "n p"]) -> Float[Tensor, "n r"]:
    """A narrow matrix, r ≤ n - 1, with the same centred Gram matrix as a wide one: x turned, without empty directions.

    U √Λ, of the eigenvectors and eigenvalues of the n × n Gram matrix of the centred rows, in float64; eigenvalues that
    are rounding are left out. Exact for whatever is invariant to rotation and translation. O(n² p + n³). Rows that do
    not vary give r = 0.
    """
    if constant(x):
        return double(x)[:, :0]
    u = double(x)
    u = u - u.mean(0)
    values, vectors = torch.linalg.eigh(u @ u.T)
    kept = values > len(x) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def _aligned(x: Any, y: Any) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
    """Both sides, checked, in float64 and on the device of the first."""
    # By way of NumPy, a list of lists stays float64.
    names = "the first side", "the second side"
    sides = [_tensor(side, name) for side, name in zip((x, y), names, strict=True)]
    shapes = " and ".join(str(list(side.shape)) for side in sides)
    if any(side.ndim != 2 for side in sides):
        raise GeophoneError(
            f"two matrices of responses, [n, p] and [n, q], are wanted; these are {shapes}. Reduce or flatten the "
            "rest: x.flatten(1)."
        )
    if len(sides[0]) != len(sides[1]):
        raise GeophoneError(
            f"{shapes}: the numbers of rows differ. Row i of both must be the response to the same image."
        )
    if len(sides[0]) < 2 or 0 in (sides[0].shape[1], sides[1].shape[1]):
        raise GeophoneError(f"{shapes}: there must be at least two rows, and a column on both sides.")
    for name, side in zip(("first", "second"), sides, strict=True):
        if side.is_complex():
            raise GeophoneError(f"the {name} side is complex. Give real numbers, such as its real and imaginary parts.")
        if bad := int((~side.isfinite()).any(1).sum()):
            raise GeophoneError(
                f"{bad} of {len(side)} rows of the {name} side have NaN or infinite values. Remove those rows from "
                "both sides, or mend what made them."
            )
    a = double(sides[0])
    return a, double(sides[1]).to(a.device)


def _tensor(side: Any, name: str) -> Tensor:
    if isinstance(side, Tensor):
        return side
    with suppress(ValueError):  # rows of different lengths, which is said of all tensors alike
        side = np.asarray(side)
    return tensor_of(side, name)


def _comparing(name: str) -> Metric:
    metric: Metric = METRICS[name]
    if metric.reads != "pair" or metric.per_unit:
        usable = ", ".join(other for other, m in METRICS.items() if m.reads == "pair" and not m.per_unit)
        raise GeophoneError(f"{name} does not compare two sets of responses by one number. Those that do: {usable}.")
    return metric


def _narrow(side: Float[Tensor, "n p"]) -> Float[Tensor, "n r"]:
    return compact(side) if side.shape[1] > len(side) else side


def _value(metric: Metric, summary: Any) -> float | Undefined:
    try:
        return float(metric(summary))
    except Undefined as reason:
        return reason


def _summed(name: str, found: list[float | Undefined], resamples: int, shape: tuple[int, int, int]) -> Alike:
    """One measure's line, from its value of all rows, of the halves and of shuffled rows, in this order."""
    n, p, q = shape
    value, halves, shuffled = found[0], found[1 : 1 + resamples], found[1 + resamples :]
    if isinstance(value, Undefined):
        return Alike(name, None, None, None, n, p, q, None, str(value))
    notes = []
    low = high = None
    defined = [half for half in halves if not isinstance(half, Undefined)]
    if len(defined) < (1 - LOST) * len(halves):
        reason = next(half for half in halves if isinstance(half, Undefined))
        notes.append(f"no interval: {len(halves) - len(defined)} of {len(halves)} halves have no value ({reason})")
    elif halves:
        m = n // 2
        error = float(torch.tensor(defined, dtype=torch.float64).std()) * sqrt(m / (n - m))
        low, high = value - Z * error, value + Z * error
    chance = torch.tensor([one for one in shuffled if not isinstance(one, Undefined)], dtype=torch.float64)
    control = float(chance.mean()) if len(chance) else None
    if control is not None and name in ENDS:
        unrelated, same = ENDS[name]
        if abs(control - unrelated) > FAR * abs(same - unrelated):
            notes.append(
                f"biased for {n} images and these widths: shuffled rows have {control:.2g}, where very many images "
                f"would have {unrelated:.2g}"
            )
        elif len(chance) > 1 and float(chance.std()) > FAR * abs(same - unrelated):
            notes.append(f"{n} images are few: the value of shuffled rows scatters by ±{float(chance.std()):.2g}")
    return Alike(name, value, low, high, n, p, q, control, "; ".join(notes))
