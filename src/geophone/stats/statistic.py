"""What a statistic is."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import reduce
from math import inf, sqrt
from operator import add
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from geophone.core.errors import GeophoneError, reason_of

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


def finite(statistic: Any) -> bool:
    """Whether every number of a statistic, and of those inside it, is finite."""
    for field in fields(statistic):
        value = getattr(statistic, field.name)
        if is_dataclass(value):
            if not finite(value):
                return False
        elif isinstance(value, Tensor | float) and not bool(torch.as_tensor(value).isfinite().all()):
            return False
    return True


def root_product(a: float, b: float) -> float:
    """√(ab) of two numbers of at least 0, where their product leaves the range of float64 too."""
    product = a * b
    return sqrt(product) if 1e-300 < product < inf else sqrt(a) * sqrt(b)


def tensor_of(value: Any, name: str) -> Tensor:
    """What a user gives as a tensor.

    Raises:
        GeophoneError: it holds no numbers, or rows of different lengths.
    """
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = reason_of(error)
        raise GeophoneError(
            f"{name} cannot be made a matrix of numbers ({reason}). Give an array, a tensor or a list of rows."
        ) from None


def double(x: Tensor) -> Tensor:
    """Responses as float64, on their own device where it has float64 and else on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
