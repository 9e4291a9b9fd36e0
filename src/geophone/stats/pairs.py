"""Statistics of two aligned streams: row i of both comes from the same example."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.rng import draws
from geophone.core.types import Pair
from geophone.stats.moments import Moments, merged_mean
from geophone.stats.statistic import double


@dataclass(frozen=True)
class CrossMoments:
    """Moments of two streams and between them: all that linear CKA, biased and unbiased, needs.

    With u = a - mean(a) and v = b - mean(b). One pass, exact for any split of the data, no n × n matrix.

    Attributes:
        a: Moments of the first stream, `p` units.
        b: Moments of the second, `q` units.
        cross: Sum of u v', `[p, q]`.
        third_a: Sum of |v|² u, `[p]`.
        third_b: Sum of |u|² v, `[q]`.
        fourth: Sum of |u|² |v|², a scalar.
    """

    a: Moments
    b: Moments
    cross: Float[Tensor, "p q"]
    third_a: Float[Tensor, " p"]
    third_b: Float[Tensor, " q"]
    fourth: Float[Tensor, ""]

    reads: ClassVar[str] = "pair"

    @classmethod
    def of(cls, batch: Pair) -> "CrossMoments":
        """Cross moments of one batch of pairs."""
        a, b = Moments.of_rows(batch.a), Moments.of_rows(batch.b)
        u, v = double(batch.a) - a.mean, double(batch.b) - b.mean
        square_u, square_v = u.square().sum(1), v.square().sum(1)
        return cls(a, b, u.T @ v, square_v @ u, square_u @ v, square_u @ square_v)

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        mean_a, mean_b = merged_mean(self.a, other.a), merged_mean(self.b, other.b)
        one, two = self._about(mean_a, mean_b), other._about(mean_a, mean_b)
        sums = (x + y for x, y in zip(one, two, strict=True))
        return CrossMoments(self.a + other.a, self.b + other.b, *sums)

    def _about(self, point_a: Tensor, point_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four sums about other points: u becomes u + s, v becomes v + t."""
        s, t = self.a.mean - point_a, self.b.mean - point_b
        ss, tt = s @ s, t @ t
        cross_t, cross_s = self.cross @ t, s @ self.cross
        return (
            self.cross + self.n * torch.outer(s, t),
            self.third_a + s * self.b.trace + 2 * cross_t + self.n * tt * s,
            self.third_b + t * self.a.trace + 2 * cross_s + self.n * ss * t,
            self.fourth
            + 2 * (t @ self.third_b + s @ self.third_a)
            + tt * self.a.trace
            + ss * self.b.trace
            + 4 * s @ cross_t
            + self.n * ss * tt,
        )

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.a.n

    @property
    def d(self) -> int:
        """Number of units of the first stream."""
        return self.a.d


@dataclass(frozen=True)
class Displacement:
    """Where a perturbation moves the responses: moments of b - a beside the spread of a.

    The difference is taken before anything is summed, so a displacement of zero stays exactly zero.

    Attributes:
        shift: Moments of b - a.
        mean: Mean of a, `[d]`.
        spread: Sum of |a - mean|², a scalar.
    """

    shift: Moments
    mean: Float[Tensor, " d"]
    spread: Float[Tensor, ""]

    reads: ClassVar[str] = "pair"

    @classmethod
    def of(cls, batch: Pair) -> "Displacement":
        """Displacement of one batch of pairs with the same units.

        Raises:
            GeophoneError: the sides have different numbers of units.
        """
        if batch.a.shape[1] != batch.b.shape[1]:
            raise GeophoneError(
                f"{batch.a.shape[1]} and {batch.b.shape[1]} units: a displacement is the difference of the same units "
                "on both sides. Compare different units by a measure such as cka."
            )
        a = double(batch.a)
        mean = a.mean(0)
        return cls(Moments.of_rows(double(batch.b) - a), mean, (a - mean).square().sum())

    def __add__(self, other: "Displacement") -> "Displacement":
        between = other.mean - self.mean
        n = self.n + other.n
        return Displacement(
            self.shift + other.shift,
            self.mean + between * (other.n / n),
            self.spread + other.spread + between @ between * (self.n * other.n / n),
        )

    @property
    def constant(self) -> bool:
        """Whether b - a varies no more than float32 rounds a and b: total variance ≤ (2⁻²⁰)² mean |a|², 8 ulp."""
        scale = self.n * (self.mean @ self.mean) + self.spread
        return bool(self.shift.trace <= (2.0**-20) ** 2 * scale)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.shift.n

    @property
    def d(self) -> int:
        """Number of units."""
        return self.shift.d


@dataclass(frozen=True)
class PairSample:
    """The rows of both streams for the `most` examples whose index has the smallest hash, in the order of the hash.

    For whatever needs the points and not their moments. Which examples those are depends on nothing but their indices,
    so every layer and every perturbation is sampled at the same ones. Memory O(most · (p + q)).

    Attributes:
        rank: The hash that decides, `[m]`, in [0, 2⁶³).
        index: Position of each example in its data set, `[m]`.
        a: Rows of the first stream, `[m, p]`.
        b: Rows of the second, `[m, q]`.
    """

    rank: Int[Tensor, " m"]
    index: Int[Tensor, " m"]
    a: Float[Tensor, "m p"]
    b: Float[Tensor, "m q"]

    reads: ClassVar[str] = "pair"
    most: ClassVar[int] = 1000

    @classmethod
    def of(cls, batch: Pair) -> "PairSample":
        """The sample of one batch of pairs.

        Raises:
            GeophoneError: the pairs come without their index.
        """
        if batch.index is None:
            raise GeophoneError("a sample of pairs needs the rows' positions in their data set: Pair(a, b, index).")
        return cls.of_all(batch)._smallest()

    @classmethod
    def of_all(cls, batch: Pair) -> "PairSample":
        """All rows of a pair, in their order and however many: what a metric that is given plain tensors reads."""
        a, b = double(batch.a), double(batch.b)
        index = (torch.arange(len(batch)) if batch.index is None else batch.index).to(a.device)
        return cls(draws("sample", index=index).bits("rank"), index, a, b)

    def __add__(self, other: "PairSample") -> "PairSample":
        pairs = zip(self._fields(), other._fields(), strict=True)
        return type(self)(*(torch.cat(pair) for pair in pairs))._smallest()

    def _fields(self) -> tuple[Tensor, ...]:
        return self.rank, self.index, self.a, self.b

    def _smallest(self) -> "PairSample":
        """In order of hash, no more than `most`."""
        kept = self.rank.argsort()[: self.most]
        return type(self)(*(part[kept] for part in self._fields()))

    @property
    def n(self) -> int:
        """Number of examples in the sample."""
        return len(self.rank)

    @property
    def d(self) -> int:
        """Number of units of the first stream."""
        return self.a.shape[1]


@dataclass(frozen=True)
class Lengths:
    """How far a perturbation moves the images themselves.

    Attributes:
        n: Number of images.
        d: Values in an image.
        l2: Sum over images of the Euclidean length of the change.
        linf: Sum over images of the largest change of a value.
    """

    n: int
    d: int
    l2: Float[Tensor, ""]
    linf: Float[Tensor, ""]

    reads: ClassVar[str] = "images"

    @classmethod
    def of(cls, batch: Pair) -> "Lengths":
        """Of one batch of clean and perturbed images `[n, d]`."""
        delta = double(batch.b) - double(batch.a)
        n, d = delta.shape
        return cls(n, d, delta.norm(dim=1).sum(), delta.abs().amax(1).sum())

    def __add__(self, other: "Lengths") -> "Lengths":
        return Lengths(self.n + other.n, self.d, self.l2 + other.l2, self.linf + other.linf)
