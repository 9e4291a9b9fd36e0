"""What numbers over seeds say for and against a claim: intervals and one-sided p-values, without tables or names.

Rows of an array are seeds, columns what is compared within a seed. Error rates of all tests at their boundaries are
simulated by `python -m benchmarks claims`; docs/statistics.md holds what came out.
"""

from collections.abc import Sequence
from math import ceil, floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geophone.analysis.inference import cluster_weights, exchanges, holm, permutation_p, rank_correlation

Array = NDArray[np.float64]

ALPHA = 0.05
RESAMPLES = 2000
CONSTANT = 1e-9
"""Differences whose standard deviation is less than this share of their mean have the spread of rounding alone."""


class Evidence(NamedTuple):
    """What was found, and how surprising it would be if the claim, or its contrary, did not hold.

    Attributes:
        value: The estimate.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        supports: One-sided p-value of "the claim does not hold": small where it does. None: can't be judged.
        contradicts: One-sided p-value of "the contrary does not hold".
        why: What keeps it from being judged, or from having an interval.
        place: Of several compared, which one the value is of.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    supports: float | None = None
    contradicts: float | None = None
    why: str = ""
    place: int = 0


def student(differences: Array, alpha: float = ALPHA) -> tuple[float | None, float | None, float | None]:
    """Mean with its two-sided Student t interval; no interval from one difference, nothing from none."""
    from scipy.special import stdtrit

    n = len(differences)
    if n == 0:
        return None, None, None
    value = float(differences.mean())
    if n == 1:
        return value, None, None
    half = float(stdtrit(n - 1, 1 - alpha / 2) * differences.std(ddof=1) / n**0.5)
    return value, value - half, value + half


def above_zero(columns: Array) -> Array:
    """One-sided p-value of each column's mean being above 0, `[k]`: Student's t over n >= 2 rows.

    Where all rows of a column are the same there is no spread to judge by. Then it is the sign test's: 2^-n if they are
    above 0, else 1. So five seeds that agree to the last digit decide nothing, and six do.
    """
    from scipy.special import stdtr

    n = len(columns)
    means, spread = columns.mean(axis=0), columns.std(axis=0, ddof=1)
    same = constant(columns)
    t = means * n**0.5 / np.where(same, 1.0, spread)
    p: Array = np.where(same, np.where(means > 0, 0.5**n, 1.0), stdtr(n - 1, -t))
    return p


def constant(columns: Array) -> NDArray[np.bool_]:
    """Which columns are the same in all rows, but for rounding."""
    same: NDArray[np.bool_] = columns.std(axis=0, ddof=1) <= CONSTANT * np.abs(columns.mean(axis=0))
    return same


def _bounds(columns: Array, alpha: float) -> Array:
    """How far a one-sided bound at `alpha` lies from each column's mean."""
    from scipy.special import stdtrit

    n = len(columns)
    half: Array = stdtrit(n - 1, 1 - alpha) * columns.std(axis=0, ddof=1) / n**0.5
    return half


def mean_beyond(differences: Array, sign: int, threshold: float = 0.0) -> Evidence:
    """The mean over seeds `[n]` lies above (sign 1) or below (−1) a threshold: Student's t."""
    value, low, high = student(differences)
    if len(differences) < 2:
        return Evidence(value)
    beyond = sign * (differences - threshold)[:, None]
    supports, contradicts = (float(above_zero(side)[0]) for side in (beyond, -beyond))
    return _without_interval(Evidence(value, low, high, supports, contradicts), beyond)


def least_of_all(columns: Array, sign: int) -> Evidence:
    """Every column's mean is on the claimed side: of k means, the least favourable one.

    supports = max p_i: all k have to hold, and each is tested at the full level (intersection-union test).
    contradicts = k · min p'_i: one of k is enough, so Bonferroni. The interval is that of the least favourable true
    mean: its ends are the smallest lower bound at 2.5 % and the smallest upper bound at 2.5 %/k.
    """
    if len(columns) == 0:
        return Evidence()
    mine, k = sign * columns, columns.shape[1]
    means = mine.mean(axis=0)
    place = int(means.argmin())
    if len(columns) == 1:
        return Evidence(float(sign * means[place]), place=place)
    low = float((means - _bounds(mine, ALPHA / 2)).min())
    high = float((means + _bounds(mine, ALPHA / 2 / k)).min())
    made = Evidence(
        float(sign * means[place]),
        *((low, high) if sign > 0 else (-high, -low)),
        float(above_zero(mine).max()),
        min(1.0, k * float(above_zero(-mine).min())),
        place=place,
    )
    return _without_interval(made, mine)


def best_of_several(columns: Array, sign: int) -> Evidence:
    """Some column's mean is on the claimed side: of k means, the most favourable one; the mirror of `least_of_all`.

    The best is chosen after looking: supports = k · min p_i. To contradict, all k must lie on the other side, each at
    the full level: contradicts = max p'_i.
    """
    other = least_of_all(columns, -sign)
    return other._replace(supports=other.contradicts, contradicts=other.supports)


def share_of_types(columns: Array, at_least: float) -> Evidence:
    """In more than a share of m types (columns) the mean is above 0.

    The count of types is bounded through single types: each has its one-sided t-test, and Holm's step-down over the m
    of them bounds from below how many are above 0. The claim says that at least r are, r the fewest that are more than
    the share, so supports = the r-th smallest of the Holm-adjusted p-values; contradicts likewise, by the tests for
    "below 0". Both hold whatever the dependence between types, which share their seeds. A type whose mean is close to 0
    counts for neither side, where a count of signs would take it for a full vote.
    """
    n, m = columns.shape
    value = float((columns.mean(axis=0) > 0).mean()) if n else None
    if n < 2:
        return Evidence(value)
    above, below = (np.sort(np.array(holm(list(above_zero(side))), dtype=float)) for side in (columns, -columns))
    not_less = ceil(at_least * m - CONSTANT)
    return Evidence(
        value,
        float((above < ALPHA / 2).sum() / m),
        float((below >= ALPHA / 2).sum() / m),
        float(above[fewest_types(at_least, m) - 1]),
        float(below[m - not_less]) if not_less else 1.0,
    )


def fewest_types(at_least: float, types: int) -> int:
    """How many types at the fewest are more than a share of them."""
    return floor(at_least * types + CONSTANT) + 1


def slopes(x: Array, y: Array) -> Array | None:
    """Least-squares slope of y on x in each row of `[n, recipes]`; None where x is the same throughout a row."""
    x = x - x.mean(axis=1, keepdims=True)
    variance = (x * x).sum(axis=1)
    if not (variance > 0).all():
        return None
    found: Array = (x * y).sum(axis=1) / variance
    return found


def correlated(
    x: Array,
    y: Array,
    held: Array | None = None,
    *,
    sign: int = 1,
    seeds: Sequence[int],
    recipes: Sequence[str],
    rng: np.random.Generator,
    resamples: int | None = None,
) -> tuple[Evidence, float | None]:
    """Rho has the claimed sign; and the two-sided p-value of exchanging recipes, None where none can be exchanged.

    Two conditions must both hold, so each one-sided p-value is the larger of two: that of the two-stage bootstrap, the
    share of resamples on the other side of 0, (1 + hits)/(1 + draws), and half of that of exchanging whole recipes.
    With a measure held fixed, exchanging what it leaves is only nearly exact, and too sure with few recipes: then p is
    that of Student's t over the recipes' means, if this is larger. Networks stand in the order of recipe and seed.
    """
    resamples = RESAMPLES if resamples is None else resamples
    rho = float(rank_correlation(x, y, held)[0])
    if np.isnan(rho):
        return Evidence(why="a measure is the same in all networks, or is fixed by the one held"), None
    drawn = rank_correlation(x, y, held, cluster_weights(seeds, resamples, rng))
    blocks = recipes if len(set(recipes)) > 1 else range(len(x))
    orders = exchanges(blocks, resamples, rng)
    p = None if orders is None else permutation_p(x, y, held, orders)
    if p is not None and held is not None:
        p = max(p, _students_p(x, y, held, list(blocks)))
    if np.isnan(drawn).mean() > 0.05:
        return Evidence(rho, why="ρ is undefined in over 5 % of the resamples"), p
    low, high = (float(q) for q in np.nanquantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]))
    if p is None:
        why = "no p: no two recipes have equally many networks to exchange"
        return Evidence(rho, low, high, why=why), None
    drawn = drawn[~np.isnan(drawn)]
    supports, contradicts = (
        max((1 + np.count_nonzero(side * drawn <= 0)) / (1 + len(drawn)), p / 2 if side * rho > 0 else 1 - p / 2)
        for side in (sign, -sign)
    )
    return Evidence(rho, low, high, float(supports), float(contradicts)), p


def _students_p(x: Array, y: Array, held: Array, blocks: Sequence[object]) -> float:
    """Two-sided p-value of the partial rho of k block means, by t = rho·sqrt((k − 3)/(1 − rho²)), k − 3 degrees."""
    from scipy.special import stdtr

    names = list(dict.fromkeys(blocks))
    members = [[i for i, block in enumerate(blocks) if block == name] for name in names]
    means = [np.array([values[each].mean() for each in members]) for values in (x, y, held)]
    rho, free = float(rank_correlation(*means)[0]), len(names) - 3
    if np.isnan(rho) or free < 1:
        return 1.0
    t = abs(rho) * (free / max(1 - rho**2, 1e-12)) ** 0.5
    return float(2 * stdtr(free, -t))


def two_sided(evidence: Evidence) -> float | None:
    """Twice the smaller of both one-sided p-values: what the verdict rests on."""
    if evidence.supports is None or evidence.contradicts is None:
        return None
    return min(1.0, 2 * min(evidence.supports, evidence.contradicts))


def _without_interval(made: Evidence, columns: Array) -> Evidence:
    """The same without an interval where a column has no spread."""
    if not constant(columns).any():
        return made
    n = len(columns)
    return made._replace(
        low=None, high=None, why=f"all {n} seeds agree exactly, which a coin does in 1 of {2 ** (n - 1)}"
    )
