"""What a statistic is."""

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

S = TypeVar("S")


@runtime_checkable
class Statistic(Protocol):
    """A frozen dataclass of float64 tensors that summarises a set of examples.

    `reads` says what `of` takes: "responses" (a `Batch` of `[n, d]`), "points" (the same, of whole
    responses, projected to fewer units where they are many), "logits" (a `Batch` of `[n, k]`), "pair" (a `Pair` of
    aligned `[n, p]` and `[n, q]`) or "images" (a `Pair` of clean and perturbed images `[n, d]`).
    """

    reads: ClassVar[str]

    @classmethod
    def of(cls, batch: Any) -> "Statistic":
        """The statistic of one batch."""
        ...

    def __add__(self, other: Any) -> "Statistic":
        """The statistic of both sets together."""
        ...

    @property
    def n(self) -> int:
        """Number of examples."""
        ...

    @property
    def d(self) -> int:
        """Number of units, or of classes."""
        ...


def total(parts: Iterable[S]) -> S:
    """The sum of one or more statistics."""
    return reduce(add, parts)


def double(x: Tensor) -> Tensor:
    """Responses as float64, on their own device where it has float64 and else on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
