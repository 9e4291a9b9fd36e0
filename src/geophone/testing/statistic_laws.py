"""What every statistic promises: any split of the examples, merged in any order, gives the statistic of the whole."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.rng import stream
from geophone.core.types import Batch, Pair
from geophone.stats import total

TOLERANCE = 1e-9
"""Relative to 1 + |value|. The sums are of order n d² at most, known to 1e-16 of themselves in float64."""


def examples(reads: str, n: int, d: int, seed: int = 0, offset: float = 0.0) -> Batch | Pair:
    """`n` random examples of what a statistic reads, in float64: responses or logits with labels, or pairs."""
    generator = stream("examples", reads, n, d, seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64).abs() + offset
    if reads in ("pair", "images"):
        return Pair(x, x + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64), torch.arange(n))
    return Batch(x, torch.randint(0, d, (n,), generator=generator), torch.arange(n))


def part(data: Batch | Pair, rows: Int[Tensor, " m"]) -> Batch | Pair:
    """Some of the examples."""
    if isinstance(data, Pair):
        return Pair(data.a[rows], data.b[rows], None if data.index is None else data.index[rows])
    return Batch(data.x[rows], data.y[rows], data.index[rows])


def merges_to_the_whole(statistic: type[Any], data: Batch | Pair, parts: Sequence[Tensor]) -> None:
    """The sum of the parts' statistics is the statistic of all examples, whatever the parts and their order.

    Raises:
        AssertionError: a field differs by more than `TOLERANCE`.
    """
    whole = statistic.of(data)
    merged = total(statistic.of(part(data, rows)) for rows in parts)
    for (name, wanted), (_, got) in zip(numbers(whole), numbers(merged), strict=True):
        if wanted.shape != got.shape:
            raise AssertionError(f"{statistic.__name__}.{name} has shape {list(got.shape)}, not {list(wanted.shape)}")
        gap = float(((got - wanted).abs() / (1 + wanted.abs())).max())
        if not gap <= TOLERANCE:
            raise AssertionError(f"{statistic.__name__}.{name} of the parts is off by {gap:.3g}: `+` is not a merge")


def numbers(statistic: Any) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """Every number in a statistic, by field, those of nested statistics too."""
    for field in fields(statistic):
        value = getattr(statistic, field.name)
        if isinstance(value, Tensor | int | float):
            yield field.name, torch.as_tensor(value).double()
        else:
            yield from ((f"{field.name}.{name}", number) for name, number in numbers(value))
