"""What a heat map of similarities shows, as numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from geophone.metrics.metric import Undefined

Map = Float[np.ndarray, "p q"]

NEAR, FAR = 0.1, 0.5
"""Shares of the depth up to which layers are near each other, and from which they are far."""
THRESHOLDS = (0.7, 0.8, 0.9)
"""Similarities from which layers belong to one block."""


NO_VALUE = "a layer has no similarity"


def near_similarity(similarity: Map) -> float:
    """Mean similarity of different layers at most a tenth of the depth apart, neighbours always included.

    Raises:
        Undefined: a network of one layer, no such pair, or one without a value.
    """
    apart = _apart(similarity)
    step = 1 / max(1, max(similarity.shape) - 1)
    return _mean(similarity[(apart > 1e-9) & (apart <= max(NEAR, step) + 1e-9)], "no two layers are near each other")


def far_similarity(similarity: Map) -> float:
    """Mean similarity of layers at least half of the depth apart. High: layers far apart do much the same.

    Raises:
        Undefined: a network of one layer, no such pair, or one without a value.
    """
    return _mean(similarity[_apart(similarity) >= FAR - 1e-9], "no two layers are far from each other")


def equal_depth_similarity(similarity: Map) -> float:
    """Mean similarity of layers at equal depth: of layer i with the other network's nearest in relative depth.

    Raises:
        Undefined: such a pair has no value.
    """
    rows, columns = similarity.shape
    nearest = np.round(np.arange(rows) * (columns - 1) / max(1, rows - 1)).astype(int)
    return _mean(similarity[np.arange(rows), nearest], "no pair at equal depth has a value")


def block_contrast(similarity: Map, stages: Sequence[int], others: Sequence[int] | None = None) -> float:
    """Mean similarity within stages less that between stages; the diagonal of a network with itself does not count.

    High: blocks along the diagonal stand out. A stage is a run of layers of one spatial size; in a WideResNet the first
    batch norm and ReLU of a block of half the size still belong to the stage before.

    Args:
        similarity: All layers by all layers.
        stages: The stage of each row.
        others: Of each column; default the rows'.

    Raises:
        Undefined: fewer than two stages, another number of them on the other side, or a pair without a value.
    """
    rows = np.asarray(stages)
    columns = rows if others is None else np.asarray(others)
    if rows.max() != columns.max():
        raise Undefined(f"{rows.max() + 1} stages on one side and {columns.max() + 1} on the other")
    same = rows[:, None] == columns[None]
    counted = ~np.eye(len(rows), dtype=bool) if others is None else np.ones(similarity.shape, dtype=bool)
    within = _mean(similarity[same & counted], "no two layers are in one stage")
    return within - _mean(similarity[~same & counted], "all layers are in one stage")


def effective_layers(similarity: Map) -> float:
    """Effective number of distinct layers: (Σ λ)²/Σ λ² of the eigenvalues of a network's similarity with itself.

    1: all layers are alike; L: all are unrelated. In [1, L] for a matrix without negative eigenvalues.

    Raises:
        Undefined: a layer has no value.
    """
    values = _spectrum(similarity)
    return float(values.sum() ** 2 / np.square(values).sum())


def entropy_layers(similarity: Map) -> float:
    """Exponential of the entropy of the eigenvalues, as shares of their sum; eigenvalues below 0 count as 0.

    A second effective number of distinct layers, which counts small eigenvalues for more.

    Raises:
        Undefined: a layer has no value.
    """
    values = np.maximum(_spectrum(similarity), 0)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def largest_block(similarity: Map, threshold: float) -> int:
    """Layers in the longest contiguous run in which all pairs are at least this similar; 1 if no two are.

    Raises:
        Undefined: a layer has no value.
    """
    _square(similarity)
    best = start = 0
    for end in range(len(similarity)):
        low = similarity[start : end + 1, end] < threshold
        if low[:-1].any():
            start += int(np.flatnonzero(low[:-1])[-1]) + 1
        best = max(best, end - start + 1)
    return best


def _apart(similarity: Map) -> NDArray[np.float64]:
    """How far the layers of each pair are apart, in shares of the depth, `[p, q]`."""
    rows, columns = (np.arange(size) / max(1, size - 1) for size in similarity.shape)
    return np.abs(rows[:, None] - columns[None])


def _mean(values: NDArray[np.float64], why: str) -> float:
    if not len(values):
        raise Undefined(why)
    if np.isnan(values).any():  # means over different layers could not be compared
        raise Undefined(NO_VALUE)
    return float(values.mean())


def _square(similarity: Map) -> None:
    if np.isnan(similarity).any():
        raise Undefined(NO_VALUE)


def _spectrum(similarity: Map) -> NDArray[np.float64]:
    _square(similarity)
    return np.linalg.eigvalsh((similarity + similarity.T) / 2)
