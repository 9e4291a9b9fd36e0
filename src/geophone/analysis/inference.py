"""Rank correlations, their resampling by cluster, permutations within blocks, and Holm's correction."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rank_correlation(x: Array, y: Array, held: Array | None = None, weights: Array | None = None) -> Array:
    """Spearman's rho, or the partial rho with `held` fixed, of weighted samples.

    Args:
        x: One value per network, `[n]`.
        y: Likewise.
        held: Likewise, or None.
        weights: How often each network stands in each sample, `[b, n]`; by default once, in one sample.

    Returns:
        `[b]`, in [-1, 1]; NaN where a measure, or what `held` leaves of it, is constant.
    """
    w = np.ones((1, len(x))) if weights is None else weights
    a, b = _ranks(x, w), _ranks(y, w)
    if held is not None:
        z = _ranks(held, w)
        a, b = _residuals(a, z, w), _residuals(b, z, w)
    return _pearson(a, b, w)


def permutation_p(x: Array, y: Array, held: Array | None, orders: NDArray[np.intp]) -> float:
    """Two-sided permutation p-value of `rank_correlation`: (1 + hits)/(1 + m) over m `orders` `[m, n]` of networks."""
    w = np.ones((1, len(x)))
    a, b = _ranks(x, w), _ranks(y, w)
    if held is None:
        drawn = _pearson(a, b[0, orders], w)
    else:
        z = _ranks(held, w)
        a, b = _residuals(a, z, w), _residuals(b, z, w)
        drawn = _pearson(a, _residuals(b[0, orders], z, w), w)
    observed = abs(_pearson(a, b, w)[0])
    hits = np.count_nonzero(~(np.abs(drawn) < observed - 1e-9))
    return float((1 + hits) / (1 + len(orders)))


def cluster_weights(clusters: Sequence[Any], resamples: int, rng: np.random.Generator) -> Array:
    """How often each network stands in each two-stage bootstrap sample, `[resamples, n]`.

    Clusters are drawn with replacement, as many as there are; each time a cluster of size k is drawn, k of its
    networks are drawn with replacement.
    """
    labels = np.unique(np.asarray(clusters))
    drawn = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=resamples)
    weights = np.zeros((resamples, len(clusters)))
    for column, label in enumerate(labels):
        members = np.flatnonzero(np.asarray(clusters) == label)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(drawn[:, column] * len(members), share)
    return weights


def exchanges(blocks: Sequence[Any], permutations: int, rng: np.random.Generator) -> NDArray[np.intp] | None:
    """Orders of the networks that exchange whole blocks of equal size, `[permutations, n]`; None if there are none.

    Within a block the networks keep their order, so with recipes as blocks and seeds in order, a seed meets itself.
    """
    names = list(dict.fromkeys(blocks))
    members = {name: [i for i, b in enumerate(blocks) if b == name] for name in names}
    orders = np.tile(np.arange(len(blocks)), (permutations, 1))
    sizes = Counter(len(m) for m in members.values())
    if max(sizes.values()) == 1:
        return None
    for size, count in sizes.items():
        places = np.array([m for m in members.values() if len(m) == size])
        shuffled = rng.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)
        orders[:, places.ravel()] = places[shuffled].reshape(permutations, -1)
    return orders


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values; None stays None and does not count as a test."""
    ranked = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for done, (value, place) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - done) * value))
        adjusted[place] = largest
    return adjusted


def _ranks(values: Array, w: Array) -> Array:
    """Average ranks `[b, n]` of the values in each weighted sample: below + (equal + 1)/2."""
    below = values[:, None] < values[None, :]
    equal = values[:, None] == values[None, :]
    ranks: Array = w @ (below + equal / 2) + 0.5
    return ranks


def _residuals(a: Array, z: Array, w: Array) -> Array:
    """What a least-squares line on `z` leaves of `a`; a constant `z` only takes the mean away."""
    a, z = _centred(a, w), _centred(z, w)
    variance = (w * z * z).sum(axis=-1, keepdims=True)
    covariance = (w * a * z).sum(axis=-1, keepdims=True)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    residuals: Array = a - slope * z
    return residuals


def _pearson(a: Array, b: Array, w: Array) -> Array:
    a, b = _centred(a, w), _centred(b, w)
    total = w.sum(axis=-1)
    spread_a, spread_b = (w * a * a).sum(axis=-1), (w * b * b).sum(axis=-1)
    smallest = 1e-9 * total**3  # ranks of n networks scatter by about n^3/12; less than this is rounding
    defined = (spread_a > smallest) & (spread_b > smallest)
    scale = np.where(defined, np.sqrt(spread_a * spread_b), np.nan)
    rho: Array = np.clip((w * a * b).sum(axis=-1) / scale, -1, 1)
    return rho


def _centred(a: Array, w: Array) -> Array:
    centred: Array = a - (w * a).sum(axis=-1, keepdims=True) / w.sum(axis=-1, keepdims=True)
    return centred
