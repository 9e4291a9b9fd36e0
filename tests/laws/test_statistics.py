"""Every statistic is a commutative monoid over batches: how the examples were split must not matter."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.core.types import Batch
from geophone.metrics import ClassPoints
from geophone.stats import (
    Activity,
    ClassMeans,
    CrossMoments,
    Displacement,
    Lengths,
    Moments,
    Outcomes,
    PairSample,
    Sample,
    UniformSample,
)
from geophone.testing.statistic_laws import examples, merges_to_the_whole

STATISTICS = sorted({m.statistic for _, m in METRICS.items()}, key=lambda s: s.__name__)


@st.composite
def splits(draw):
    """A set of examples and a split of it: number, width, seed, offset, order and cut points."""
    n = draw(st.integers(2, 40))
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=5)))
    seed = draw(st.integers(0, 1000))
    order = torch.randperm(n, generator=stream("split", seed))
    bounds = [0, *cuts, n]
    parts = [order[a:b] for a, b in pairwise(bounds)]
    return n, draw(st.integers(2, 5)), seed, draw(st.sampled_from([0.0, 1.0, 100.0])), parts


def test_all_statistics_are_reached_through_the_metrics():
    responses, pairs = (
        {Activity, ClassMeans, ClassPoints, Moments, UniformSample},
        {CrossMoments, Displacement, PairSample},
    )
    assert set(STATISTICS) == responses | pairs | {Lengths, Outcomes}


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.__name__)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(split=splits())
def test_split_and_order_do_not_matter(statistic, split):
    n, d, seed, offset, parts = split
    merges_to_the_whole(statistic, examples(statistic.reads, n, d, seed, offset), parts)


# Mutants: each forgets one term of its merge.


class ForgetsTheShift(Moments):
    def __add__(self, other):
        return replace(super().__add__(other), scatter=self.scatter + other.scatter)


class ForgetsTheThird(Moments):
    def __add__(self, other):
        return replace(super().__add__(other), third=self.third + other.third)


class ForgetsTheFourth(Moments):
    def __add__(self, other):
        return replace(super().__add__(other), fourth=self.fourth + other.fourth)


class AveragesMeans(ClassMeans):
    def __add__(self, other):
        k = max(len(self.count), len(other.count))
        a, b = self.padded(k), other.padded(k)
        return replace(super().__add__(other), mean=(a.mean + b.mean) / 2)


class ForgetsTheDistanceOfMeans(ClassMeans):
    def __add__(self, other):
        return replace(super().__add__(other), within=self.within + other.within)


class KeepsTheFirstSeen(Sample):
    """As many examples as there should be, but those of the first part come first."""

    def __add__(self, other):
        merged = super().__add__(other)
        return Sample(*(torch.cat(pair)[: merged.n] for pair in zip(self._fields(), other._fields(), strict=True)))


class KeepsTheLarger(UniformSample):
    """As many examples as there should be, but not those of the smallest hash."""

    def __add__(self, other):
        kept = torch.cat((self.rank, other.rank)).argsort(descending=True)[: self.most]
        return UniformSample(torch.cat((self.rank, other.rank))[kept], torch.cat((self.x, other.x))[kept])


class ForgetsTheCross(CrossMoments):
    def __add__(self, other):
        return replace(super().__add__(other), cross=self.cross + other.cross)


class ForgetsTheCrossFourth(CrossMoments):
    def __add__(self, other):
        return replace(super().__add__(other), fourth=self.fourth + other.fourth)


class KeepsTheOrderOfParts(PairSample):
    def __add__(self, other):
        return PairSample(*(torch.cat(pair) for pair in zip(self._fields(), other._fields(), strict=True)))


class ForgetsTheSpread(Displacement):
    def __add__(self, other):
        return replace(super().__add__(other), spread=self.spread + other.spread)


class KeepsTheFirst(Activity):
    def __add__(self, other):
        return replace(super().__add__(other), low=self.low)


class TakesTheLarger(Lengths):
    def __add__(self, other):
        return replace(super().__add__(other), linf=torch.maximum(self.linf, other.linf))


class CountsTheFirst(Outcomes):
    def __add__(self, other):
        return replace(super().__add__(other), count=self.count)


def _as(mutant, statistic):
    """A statistic of the mutant's class with the original's numbers, so that its own `+` is used."""
    return mutant(**{field.name: getattr(statistic, field.name) for field in fields(statistic)})


@pytest.mark.parametrize(
    "mutant",
    [
        *(ForgetsTheShift, ForgetsTheThird, ForgetsTheFourth, AveragesMeans, ForgetsTheCross),
        *(ForgetsTheDistanceOfMeans, KeepsTheFirstSeen, KeepsTheLarger, TakesTheLarger),
        *(ForgetsTheCrossFourth, ForgetsTheSpread, KeepsTheFirst, CountsTheFirst, KeepsTheOrderOfParts),
    ],
    ids=lambda m: m.__name__,
)
def test_a_wrong_merge_is_caught(mutant):
    original = mutant.__mro__[1]

    class Wrong(mutant):
        @classmethod
        def of(cls, batch):
            return _as(mutant, original.of(batch))

    data = examples(original.reads, 30, 4, seed=3, offset=1.0)
    parts = [torch.arange(0, 7), torch.arange(7, 30)]
    merges_to_the_whole(original, data, parts)
    with pytest.raises(AssertionError, match="not a merge"):
        merges_to_the_whole(Wrong, data, parts)


def test_moments_do_not_cancel_under_a_large_mean():
    """A bias of 1e6 leaves the scatter as it was: the sums are about the running mean."""
    data = examples("responses", 400, 3)
    far = data.with_x(data.x + 1e6)
    near, moved = Moments.of(data), Moments.of(far)
    # Adding 1e6 rounds the data themselves by 1e-10; squared sums of 400 such terms stay below 1e-7.
    assert torch.allclose(near.scatter, moved.scatter, atol=1e-6)


def test_a_sample_is_the_same_examples_in_every_layer_and_under_every_split():
    """Bounded per class, and decided by the index alone."""
    n = 700
    y = torch.arange(n) % 3
    data = Batch(torch.randn(n, 2, generator=stream("sample")).double(), y, torch.arange(n))
    order = torch.randperm(n, generator=stream("sample order"))
    merges_to_the_whole(Sample, data, [order[:10], order[10:400], order[400:]])
    whole, other = Sample.of(data), Sample.of(data.with_x(torch.zeros(n, 5)))
    assert whole.n == 3 * Sample.per_class
    assert torch.equal(whole.index, other.index)
    assert torch.equal(whole.x, data.x[whole.index])
    # Chosen at random: neither the first of the data set nor any run of it. 300 of 700 even, 5 standard deviations.
    assert abs(int((whole.index < n // 2).sum()) - 150) < 5 * math.sqrt(300 * 0.25)


def test_a_uniform_sample_is_bounded_whatever_the_classes_and_all_of_plain_points():
    """Its budget holds with a class for every image, and the metric on plain points leaves none out."""
    n = UniformSample.most + 500
    data = Batch(torch.randn(n, 2, generator=stream("uniform")), torch.arange(n), torch.arange(n))
    order = torch.randperm(n, generator=stream("uniform order"))
    merges_to_the_whole(UniformSample, data, [order[:10], order[10:2100], order[2100:]])
    assert UniformSample.of(data).n == UniformSample.most
    assert METRICS["two_nn"].statistic.of(data).n <= UniformSample.most
    assert UniformSample.of_all(data).n == n
