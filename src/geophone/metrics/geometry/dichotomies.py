"""Which manifolds are told apart from which."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geophone.core.errors import GeophoneError, unknown
from geophone.core.rng import stream

ENSEMBLES = ("balanced", "one_vs_rest")


def labels(dichotomies: str | Any, p: int, n: int, *names: object) -> NDArray[np.float64]:
    """Labels of so many samples, `[n, P]`, ±1: see `geophone.metrics.geometry.glue`.

    They are drawn from the stream of these names and "labels".

    Raises:
        GeophoneError: an unknown ensemble, or rows that are not P times ±1.
    """
    if isinstance(dichotomies, str):
        if dichotomies == "balanced":
            drawn = torch.rand(n, p, generator=stream(*names, "labels"), dtype=torch.float64)
            rank = drawn.argsort(1).argsort(1)
            return np.where(rank.numpy() < p // 2, 1.0, -1.0)
        if dichotomies == "one_vs_rest":
            return (2 * np.eye(p) - 1)[np.arange(n) % p]
        raise unknown("ensemble of dichotomies", dichotomies, ENSEMBLES, "Or give rows of ±1, [n_y, P].")
    try:
        rows = torch.as_tensor(dichotomies).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise GeophoneError(f"dichotomies: {error}. Give rows of ±1, [n_y, {p}], or a name.") from None
    if rows.ndim != 2 or rows.shape[1] != p or not len(rows) or not (np.abs(rows) == 1).all():
        raise GeophoneError(f"dichotomies of the shape {list(rows.shape)}: give rows of ±1, [n_y, {p}].")
    return rows[np.arange(n) % len(rows)]
