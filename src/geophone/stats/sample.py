"""A sample of the responses themselves, for whatever needs the points and not their moments."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.rng import draws
from geophone.core.types import Batch
from geophone.stats.statistic import double


@dataclass(frozen=True)
class Sample:
    """Of every class the `per_class` examples whose index has the smallest hash, in a fixed order.

    Which examples those are depends on nothing but their indices: not on batches, their order, or the number of
    workers. So two layers, or clean and perturbed responses, are sampled at the same examples.

    Attributes:
        rank: The hash that decides, `[m]`, in [0, 2⁶³).
        index: Position of each example in its data set, `[m]`.
        y: Labels, `[m]`, ascending; within a class, hashes ascend.
        x: Responses, `[m, d]`.
    """

    rank: Int[Tensor, " m"]
    index: Int[Tensor, " m"]
    y: Int[Tensor, " m"]
    x: Float[Tensor, "m d"]

    reads: ClassVar[str] = "responses"
    per_class: ClassVar[int] = 100

    @classmethod
    def of(cls, batch: Batch) -> "Sample":
        """The sample of one batch of responses `[n, d]`."""
        index = batch.index.to(batch.x.device)
        rank = draws("sample", index=index).bits("rank")
        return cls(rank, index, batch.y.to(batch.x.device), double(batch.x))._smallest()

    def __add__(self, other: "Sample") -> "Sample":
        pairs = zip(self._fields(), other._fields(), strict=True)
        return type(self)(*(torch.cat(pair) for pair in pairs))._smallest()

    def _fields(self) -> tuple[Tensor, ...]:
        return self.rank, self.index, self.y, self.x

    def _smallest(self) -> "Sample":
        """In order of class and hash, no more than `per_class` of each class."""
        order = self.rank.argsort()
        order = order[self.y[order].argsort(stable=True)]
        y = self.y[order]
        first = torch.searchsorted(y, y)  # where each one's class begins
        kept = order[torch.arange(len(y), device=y.device) - first < self.per_class]
        return type(self)(*(part[kept] for part in self._fields()))

    @property
    def n(self) -> int:
        """Number of examples in the sample."""
        return len(self.y)

    @property
    def d(self) -> int:
        """Number of units."""
        return self.x.shape[1]


@dataclass(frozen=True)
class UniformSample:
    """The responses to the `most` examples whose index has the smallest hash, whatever their labels, in its order.

    Which examples those are depends on nothing but their indices, as in `Sample`. Memory O(most · d).

    Attributes:
        rank: The hash that decides, `[m]`, in [0, 2⁶³).
        x: Responses, `[m, d]`.
    """

    rank: Int[Tensor, " m"]
    x: Float[Tensor, "m d"]

    reads: ClassVar[str] = "responses"
    most: ClassVar[int] = 2000

    @classmethod
    def of(cls, batch: Batch) -> "UniformSample":
        """The sample of one batch of responses `[n, d]`."""
        return cls.of_all(batch)._smallest()

    @classmethod
    def of_all(cls, batch: Batch) -> "UniformSample":
        """All rows, however many: what a metric that is given plain tensors reads."""
        index = batch.index.to(batch.x.device)
        return cls(draws("sample", index=index).bits("rank"), double(batch.x))

    def __add__(self, other: "UniformSample") -> "UniformSample":
        return UniformSample(torch.cat((self.rank, other.rank)), torch.cat((self.x, other.x)))._smallest()

    def _smallest(self) -> "UniformSample":
        """In order of hash, no more than `most`."""
        kept = self.rank.argsort()[: self.most]
        return UniformSample(self.rank[kept], self.x[kept])

    @property
    def n(self) -> int:
        """Number of examples in the sample."""
        return len(self.rank)

    @property
    def d(self) -> int:
        """Number of units."""
        return self.x.shape[1]
