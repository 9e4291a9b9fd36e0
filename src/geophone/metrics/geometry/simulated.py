"""Capacity as an experiment: how few random features still tell manifolds apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from geophone.core.errors import GeophoneError, check_counts
from geophone.core.rng import stream
from geophone.metrics.geometry.clouds import about_mean, as_clouds, span
from geophone.metrics.geometry.dichotomies import labels
from geophone.metrics.geometry.nnls import in_threads
from geophone.metrics.geometry.separability import separated

Z = 1.96


@dataclass(frozen=True)
class SimulatedCapacity:
    """What `simulated_capacity` found.

    Attributes:
        capacity: P / critical; None where undefined.
        critical: N_c, the number of features at which half of the dichotomies are separable, interpolated.
        reason: Why there is no capacity; empty where there is one.
        low: Lower end of a 95 % interval of the capacity over the repeats: where p(n) crosses ½ + 1.96 of its standard
            errors. None where there is none.
        high: Upper end.
        visited: (n, share of repeats that are separable with n features), for the n where it changes, from n = 0 (where
            it is 0: a bias alone separates nothing) to the most features.
        thresholds: The fewest features that do, of each repeat, `[repeats]`; inf where none do.
    """

    capacity: float | None
    critical: float | None
    reason: str
    low: float | None
    high: float | None
    visited: tuple[tuple[int, float], ...]
    thresholds: Float[Tensor, " repeats"]


def simulated_capacity(
    manifolds: Sequence[Any],
    *,
    repeats: int = 100,
    dichotomies: str | Any = "balanced",
    max_features: int | None = None,
    seed: int = 0,
) -> SimulatedCapacity:
    """α = P/N_c: N_c random features are enough for half of the dichotomies of P manifolds to be linearly separable.

    p(n) is the probability that a hyperplane with a bias separates the points of manifolds labelled +1 from the others'
    after a Gaussian projection to n features; N_c is where it crosses ½, interpolated linearly between the last n below
    and the first that isn't. A repeat is one dichotomy and one sequence of projections, each of which has one direction
    more than the last: then what is separable stays so, and the fewest features that a repeat needs are found by
    bisection. The share of repeats that need at most n is p(n) of independent projections, for every n at once.

    Separability is decided exactly, by the nearest points of both sides' convex hulls, and by a linear program (HiGHS)
    where float64 can't tell that distance from 0. Points in general position have N_c = P/2 − 1 (Cover 1965): the bias
    is one feature for free, so α is above its value for large P by about 1/N_c.

    Projections are drawn in a basis of the points' span, which has the same law: adding features that are 0 changes
    nothing. Nor does a translation of all points, which the bias takes up, so there is nothing to centre. O(n²) memory
    for n points.

    Args:
        manifolds: P ≥ 2 arrays `[m, d]`; m may differ.
        repeats: Dichotomies; the error of N_c falls with the root of their number.
        dichotomies: As for `glue`, one for each repeat.
        max_features: The most features to try; by default all.
        seed: Of the labels and the projections, which have streams of their own.

    Raises:
        GeophoneError: unusable clouds, fewer than two repeats, or more features to try than there are.

    References:
        Cover 1965, doi:10.1109/PGEC.1965.264137; Chung, Lee & Sompolinsky 2018, doi:10.1103/PhysRevX.8.031003;
        Cohen, Chung, Lee & Sompolinsky 2020, doi:10.1038/s41467-020-14578-5.
    """
    clouds = [cloud.cpu() for cloud in as_clouds(manifolds)]
    p, features = len(clouds), clouds[0].shape[1]
    most = features if max_features is None else max_features
    check_counts(2, repeats=repeats)
    check_counts(1, max_features=max_features)
    if most > features:
        raise GeophoneError(f"max_features={most}: there are {features} features; try 1 to {features} of them.")
    points = about_mean(torch.cat(clouds))
    gram = points @ points.T
    scale = float(gram.diagonal().mean())
    if scale == 0:
        raise GeophoneError("all points are equal: there is nothing to tell apart.")
    basis = span(gram / scale)
    most = min(most, basis.shape[1])  # with as many directions as the points span, more say nothing new
    signs = labels(dichotomies, p, repeats, seed, "simulated")
    owner = np.repeat(np.arange(p), [len(cloud) for cloud in clouds])

    def threshold(repeat: int) -> float:
        drawn = stream(seed, "simulated", "projection", repeat)
        matrix = torch.randn(most, basis.shape[1], generator=drawn, dtype=torch.float64)
        x = basis @ matrix.T
        return _fewest(x - x.mean(0), signs[repeat, owner])

    thresholds = torch.tensor(in_threads(threshold, range(repeats)), dtype=torch.float64)
    visited = _shares(thresholds, most)
    critical, reason = _crossing(visited, 0.5), ""
    if critical is None:
        reason = f"only {visited[-1][1]:.0%} of the dichotomies are separable with {most} features"
    elif critical <= 1:
        critical, reason = None, "with one feature half of the dichotomies are separable"
    if critical is None:
        return SimulatedCapacity(None, None, reason, None, None, visited, thresholds)
    half = 0.5 * Z / repeats**0.5  # standard errors of a share near ½
    fewer, more = _crossing(visited, 0.5 - half), _crossing(visited, 0.5 + half)
    return SimulatedCapacity(
        capacity=p / critical,
        critical=critical,
        reason="",
        low=p / more if more else None,
        high=p / fewer if fewer else None,
        visited=visited,
        thresholds=thresholds,
    )


def _fewest(x: Float[Tensor, "n r"], side: NDArray[np.float64]) -> float:
    """The fewest leading features with which a hyperplane separates the sides; inf if all are too few."""
    most = x.shape[1]
    below, above = 0, 1
    while not _apart(x[:, :above], side):
        if above == most:
            return math.inf
        below, above = above, min(2 * above, most)
    while above - below > 1:
        middle = (below + above) // 2
        if _apart(x[:, :middle], side):
            above = middle
        else:
            below = middle
    return float(above)


def _apart(x: Float[Tensor, "n r"], side: NDArray[np.float64]) -> bool:
    """Whether a hyperplane with a bias separates the sides."""
    from scipy.optimize import linprog

    if len(np.unique(side)) == 1:
        return True
    if (sure := separated(x, side)) is not None:
        return sure
    points = np.c_[x.numpy(), np.ones(len(x))] * side[:, None]
    return linprog(np.zeros(points.shape[1]), A_ub=-points, b_ub=-np.ones(len(x)), bounds=(None, None)).status == 0


def _shares(thresholds: Float[Tensor, " r"], most: int) -> tuple[tuple[int, float], ...]:
    """(n, share of thresholds ≤ n) at 0, wherever it changes and just before, and at the most features."""
    changes = {int(n) for n in thresholds[thresholds.isfinite()].tolist()}
    wanted = sorted({0, most} | changes | {n - 1 for n in changes})
    return tuple((n, float((thresholds <= n).double().mean())) for n in wanted)


def _crossing(visited: tuple[tuple[int, float], ...], level: float) -> float | None:
    """Where the share crosses a level above 0, between the last n below and the first that isn't; None if nowhere."""
    for (n, share), (after, reached) in pairwise(visited):
        if share < level <= reached:
            return n + (level - share) / (reached - share) * (after - n)
    return None
