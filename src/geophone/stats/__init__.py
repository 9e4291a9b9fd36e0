"""Statistics: commutative monoids over batches. `S.of(batch)` reads one batch, `a + b` merges two.

Shards of a data set, several workers, a resumed run and metrics that share one pass are all this `+`: the result does
not depend on how the examples were split (up to rounding in float64) or on their order.
"""

from geophone.stats.moments import Activity, ClassMeans, Moments
from geophone.stats.outcomes import Outcomes
from geophone.stats.pairs import CrossMoments, Displacement, Lengths, PairSample
from geophone.stats.sample import Sample, UniformSample
from geophone.stats.statistic import Statistic, total
from geophone.stats.units import UnitMoments

__all__ = [
    "Activity",
    "ClassMeans",
    "CrossMoments",
    "Displacement",
    "Lengths",
    "Moments",
    "Outcomes",
    "PairSample",
    "Sample",
    "Statistic",
    "UniformSample",
    "UnitMoments",
    "total",
]
