"""Statistics of one stream of responses."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from geophone.core.types import Batch
from geophone.stats.statistic import double


@dataclass(frozen=True)
class Moments:
    """Mean, scatter, and the two higher moments that unbiased estimators need, of responses `u_i + mean`.

    Everything is about the mean of the examples seen so far, and moved exactly when two sets are merged, so nothing
    cancels however large the mean is. Memory O(d²), cost O(n d²).

    Attributes:
        n: Number of examples.
        mean: `[d]`.
        scatter: Sum of u u', `[d, d]`.
        third: Sum of |u|² u, `[d]`.
        fourth: Sum of |u|⁴, a scalar.

    References:
        Chan, Golub & LeVeque 1983 (merging), doi:10.1080/00031305.1983.10483115.
    """

    n: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]
    third: Float[Tensor, " d"]
    fourth: Float[Tensor, ""]

    reads: ClassVar[str] = "responses"

    @classmethod
    def of(cls, batch: Batch) -> "Moments":
        """Moments of one batch of responses `[n, d]`."""
        return cls.of_rows(batch.x)

    @classmethod
    def of_rows(cls, x: Float[Tensor, "n d"]) -> "Moments":
        """Moments of the rows of a matrix."""
        x = double(x)
        mean = x.mean(0)
        u = x - mean
        square = u.square().sum(1)
        return cls(len(x), mean, u.T @ u, square @ u, square @ square)

    def __add__(self, other: "Moments") -> "Moments":
        mean = merged_mean(self, other)
        a, b = self.about(mean), other.about(mean)
        return Moments(self.n + other.n, mean, a.scatter + b.scatter, a.third + b.third, a.fourth + b.fourth)

    def about(self, point: Float[Tensor, " d"]) -> "Moments":
        """The same sums about another point: u becomes u + (mean - point)."""
        shift = self.mean - point
        length = shift @ shift
        moved = self.scatter @ shift
        return Moments(
            self.n,
            point,
            self.scatter + self.n * torch.outer(shift, shift),
            self.third + shift * self.trace + 2 * moved + self.n * length * shift,
            self.fourth + 4 * shift @ moved + self.n * length**2 + 4 * shift @ self.third + 2 * length * self.trace,
        )

    @property
    def d(self) -> int:
        """Number of units."""
        return len(self.mean)

    @property
    def trace(self) -> Float[Tensor, ""]:
        """Sum of |u|²: (n - 1) times the total variance."""
        return self.scatter.trace()

    @property
    def constant(self) -> bool:
        """Whether the responses do not vary beyond what float32 can tell: total variance ≤ (2⁻²³ |mean|)²."""
        return bool(self.trace <= self.n * (2.0**-23) ** 2 * (self.mean @ self.mean))

    @property
    def squarable(self) -> bool:
        """Whether float64 holds what metrics make of the scatter's squares and of the fourth moment."""
        return 1e-140 < float(self.trace) < 1e150

    @cached_property
    def spectrum(self) -> Float[Tensor, " d"]:
        """Eigenvalues of the scatter, largest first, rounding below zero removed."""
        return torch.linalg.eigvalsh(self.scatter).flip(0).clamp(min=0)


def merged_mean(a: "Moments", b: "Moments") -> Float[Tensor, " d"]:
    """Mean of both sets of examples."""
    return a.mean + (b.mean - a.mean) * (b.n / (a.n + b.n))


@dataclass(frozen=True)
class ClassMeans:
    """Mean response of every unit to every class, and how much responses vary within the classes.

    A class without examples has count 0 and a mean of zeros that no metric may use.

    Attributes:
        count: Examples of each class, `[k]`. `k` is one more than the largest label seen.
        mean: `[k, d]`.
        within: Sum over examples of (response - mean of its class)², `[d]`.
    """

    count: Int[Tensor, " k"]
    mean: Float[Tensor, "k d"]
    within: Float[Tensor, " d"]

    reads: ClassVar[str] = "responses"

    @classmethod
    def of(cls, batch: Batch) -> "ClassMeans":
        """Class means of one batch of responses `[n, d]`.

        Raises:
            Unlabelled: the batch has no labels.
        """
        x = double(batch.x)
        y = batch.labels.to(x.device)
        count = torch.bincount(y)
        sums = torch.zeros(len(count), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, y, x)
        mean = sums / count.clamp(min=1)[:, None]
        return cls(count, mean, (x - mean[y]).square().sum(0))

    def __add__(self, other: "ClassMeans") -> "ClassMeans":
        k = max(len(self.count), len(other.count))
        a, b = self.padded(k), other.padded(k)
        count = a.count + b.count
        weight = b.count.double() / count.clamp(min=1)  # int / int would be float32
        between = b.mean - a.mean
        apart = (a.count * weight) @ between.square()
        return ClassMeans(count, a.mean + between * weight[:, None], a.within + b.within + apart)

    def padded(self, k: int) -> "ClassMeans":
        """The same with room for k classes."""
        room = (0, k - len(self.count))
        pad = torch.nn.functional.pad
        return ClassMeans(pad(self.count, room), pad(self.mean, (0, 0, *room)), self.within)

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.count.sum())

    @property
    def d(self) -> int:
        """Number of units."""
        return self.mean.shape[1]


@dataclass(frozen=True)
class Activity:
    """How often each unit is active, and the range of its responses.

    Attributes:
        n: Number of examples.
        active: Examples with a response above 0, `[d]`.
        low: Smallest response, `[d]`.
        high: Largest response, `[d]`.
    """

    n: int
    active: Int[Tensor, " d"]
    low: Float[Tensor, " d"]
    high: Float[Tensor, " d"]

    reads: ClassVar[str] = "responses"

    @classmethod
    def of(cls, batch: Batch) -> "Activity":
        """Activity of one batch of responses `[n, d]`."""
        x: Shaped[Tensor, "n d"] = batch.x
        return cls(len(x), (x > 0).sum(0), double(x.amin(0)), double(x.amax(0)))

    def __add__(self, other: "Activity") -> "Activity":
        return Activity(
            self.n + other.n,
            self.active + other.active,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    @property
    def d(self) -> int:
        """Number of units."""
        return len(self.active)
