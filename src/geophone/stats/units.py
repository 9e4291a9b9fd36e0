"""Statistics of single units: no more than two numbers for each."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from geophone.core.types import Batch
from geophone.stats.statistic import double


@dataclass(frozen=True)
class UnitMoments:
    """Mean and squared deviations of each unit on its own. Memory O(d), where `Moments` takes O(d²).

    The deviations are about the mean of the examples seen so far, and moved exactly when two sets are merged, so
    nothing cancels however large the mean is.

    Attributes:
        n: Number of examples.
        mean: `[d]`.
        square: Sum of (x - mean)², `[d]`: n times the population variance, n - 1 times the sample variance.

    References:
        Chan, Golub & LeVeque 1983 (merging), doi:10.1080/00031305.1983.10483115.
    """

    n: int
    mean: Float[Tensor, " d"]
    square: Float[Tensor, " d"]

    reads: ClassVar[str] = "responses"

    @classmethod
    def of(cls, batch: Batch) -> "UnitMoments":
        """Moments of each unit in one batch of responses `[n, d]`."""
        x = double(batch.x)
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).square().sum(0))

    def __add__(self, other: "UnitMoments") -> "UnitMoments":
        n = self.n + other.n
        between = other.mean - self.mean
        square = self.square + other.square + between.square() * (self.n * other.n / n)
        return UnitMoments(n, self.mean + between * (other.n / n), square)

    @property
    def d(self) -> int:
        """Number of units."""
        return len(self.mean)
