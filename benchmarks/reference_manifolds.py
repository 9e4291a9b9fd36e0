"""Manifold capacity as the public reference defines it, a program at a time with public solvers: oracle and yardstick.

Written from the definition alone, for what it computes and in which order; nothing is shared with Geophone. Quadratic
programs by cvxopt at tolerances of 1e-12, centre directions by pymanopt's conjugate gradient on the Stiefel manifold
with autograd's gradient; both have their defaults otherwise. Decompositions are thin.

Manifolds are arrays of points, `[m, d]`. Of one manifold in its own coordinates, `s` is `[D + 1, m]`: the points about
the centre in units of the centre's norm, and below them a row of ones, the direction of the centre.

References: Chung, Lee & Sompolinsky 2018 (doi:10.1103/PhysRevX.8.031003); Cohen, Chung, Lee & Sompolinsky 2020
(doi:10.1038/s41467-020-14578-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import autograd.numpy as anp
import cvxopt
import numpy as np
import pymanopt
from numpy.typing import NDArray
from pymanopt.manifolds import Stiefel
from pymanopt.optimizers import ConjugateGradient

Array = NDArray[np.float64]

TOLERANCES = {"show_progress": False, "abstol": 1e-12, "reltol": 1e-12, "feastol": 1e-12, "maxiters": 1_000_000}
INTERIOR = 1e-8  # |v - t| below which a sample counts as inside
SQUARED_NORM = 1e-12  # added to the anchors' squared norms in the cosines of the dimension


@dataclass(frozen=True)
class Analysis:
    """What the reference returns: of each manifold, then of all, then of the centres."""

    capacities: Array
    radii: Array
    dimensions: Array
    capacity: float
    radius: float
    dimension: float
    center_correlation: float
    k: int
    residual_correlations: Array
    basis: Array


def analysis(
    manifolds: Sequence[Array],
    *,
    kappa: float = 0.0,
    n_t: int = 300,
    n_reps: int = 1,
    rng: np.random.Generator,
    basis: Array | None = None,
    samples: Sequence[Array] | None = None,
) -> Analysis:
    """The whole of it. `basis`, `[d, K]`, replaces fitted directions; `samples`, P of `[D + 1, n_t]`, drawn ones."""
    x, q = centers(manifolds)
    residuals = np.empty(0)
    if basis is None:
        v, residuals = directions(x, n_reps, rng)
        basis = q @ v
    values = []
    for index, points in enumerate(centred(manifolds)):
        s = reduced(points, basis)
        t = rng.standard_normal((len(s), n_t)) if samples is None else samples[index]
        values.append(geometry(t, anchors(s, t, kappa), kappa))
    capacities, radii, dimensions = np.array(values).T
    return Analysis(
        capacities,
        radii,
        dimensions,
        capacity=float(1 / np.mean(1 / capacities)),
        radius=float(np.mean(radii)),
        dimension=float(np.mean(dimensions)),
        center_correlation=correlation(x),
        k=basis.shape[1],
        residual_correlations=residuals,
        basis=basis,
    )


def centred(manifolds: Sequence[Array]) -> list[Array]:
    """Every manifold less the mean of all points of all manifolds."""
    mean = np.concatenate(manifolds).mean(0)
    return [points - mean for points in manifolds]


def centers(manifolds: Sequence[Array]) -> tuple[Array, Array]:
    """The centres less their mean, in P - 1 coordinates, `[P, P - 1]`, and the basis these refer to, `[d, P - 1]`."""
    c = np.stack([points.mean(0) for points in manifolds])
    c = c - c.mean(0)
    q = np.linalg.qr(c.T)[0][:, : len(c) - 1]
    return c @ q, q


def correlation(x: Array) -> float:
    """Mean |cos| between different rows."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float((np.abs(unit @ unit.T).sum() - len(x)) / (len(x) * (len(x) - 1)))


def stability(x: Array, v: Array) -> float:
    """How much of its norm the worst row keeps without the directions `v`."""
    return float((np.linalg.norm(x - x @ v @ v.T, axis=1) / np.linalg.norm(x, axis=1)).min())


def cost(x: Array, v: Array) -> Array:
    """Half the sum of the squared correlation coefficients of the rows without the directions `v`, `[P - 1, k]`."""
    c = anp.dot(x, v)
    left = anp.sum(x**2, axis=1) - anp.sum(c**2, axis=1)
    covariance = anp.dot(x, x.T) - anp.dot(c, c.T)
    return 0.5 * anp.sum(covariance**2 / anp.outer(left, left))


def descended(x: Array, start: Array) -> Array:
    """Where conjugate gradient arrives from `start`, `[P - 1, k]`, orthonormal."""
    manifold = Stiefel(*start.shape)

    @pymanopt.function.autograd(manifold)
    def of(v):
        return cost(x, v)

    problem = pymanopt.Problem(manifold, of)
    return ConjugateGradient(verbosity=0).run(problem, initial_point=start).point


def most_directions(x: Array) -> int:
    """Eleven more than the index, from 0, of the last component whose cumulated share of the variance is below 0.95.

    At most P - 2: with P - 1 directions nothing is left. The reference stops with an error there.
    """
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    below = np.flatnonzero(np.cumsum(squares) / squares.sum() < 0.95)
    return min((int(below[-1]) if len(below) else 0) + 11, len(x) - 2)


def start(x: Array, before: Array, rng: np.random.Generator) -> Array:
    """A random combination of the rows beside the directions before it, made orthonormal."""
    return np.linalg.qr(np.column_stack([rng.standard_normal(len(x)) @ x, before]))[0]


def directions(x: Array, n_reps: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The directions `[P - 1, K]` whose removal leaves the least mean |cos|, and that mean for k = 1, 2, ...

    Of the `n_reps` starts at each k that with the largest stability is kept, whatever its cost.
    """
    found, residuals = [np.empty((x.shape[1], 0))], []
    for k in range(1, most_directions(x) + 1):
        tried = [descended(x, start(x, found[-1], rng)) for _ in range(n_reps)]
        found.append(max(tried, key=lambda v: stability(x, v)))
        residuals.append(correlation(x - x @ found[-1] @ found[-1].T))
        if k > 4 and residuals[-1] > residuals[-2] > residuals[-3] > residuals[-4]:
            break
    return found[1 + int(np.argmin(residuals))], np.array(residuals)


def reduced(points: Array, basis: Array) -> Array:
    """A manifold's points without the directions `basis`, about the centre, over the centre's norm, and a row of ones.

    In the coordinates of a thin QR where there are more features than points: D is the smaller of the two.
    """
    points = points - (points @ basis) @ basis.T
    center = points.mean(0)
    s = (points - center).T / np.linalg.norm(center)
    if len(s) > s.shape[1]:
        s = np.linalg.qr(s, mode="r")
    return np.vstack([s, np.ones(s.shape[1])])


def anchor(s: Array, t: Array, kappa: float) -> Array:
    """The anchor of one sample, `[D + 1]`: the touching point, or the multipliers' mean of the points that v touches.

    v is the point nearest to t with v·s_i + kappa ≤ 0 for all i.
    """
    products = t @ s
    furthest = s[:, products.argmax()]
    if products.max() + kappa < 0:
        return furthest
    found = cvxopt.solvers.qp(
        cvxopt.matrix(np.eye(len(t))),
        cvxopt.matrix(-t),
        cvxopt.matrix(s.T.copy()),
        cvxopt.matrix(-kappa, (s.shape[1], 1)),
        options=TOLERANCES,
    )
    v, z = np.array(found["x"]).ravel(), np.array(found["z"]).ravel()
    return furthest if np.linalg.norm(v - t) < INTERIOR else (t - v) / z.sum()


def anchors(s: Array, samples: Array, kappa: float) -> Array:
    """The anchors of all samples, `[D + 1, n_t]`."""
    return np.column_stack([anchor(s, t, kappa) for t in samples.T])


def geometry(t: Array, found: Array, kappa: float) -> tuple[float, float, float]:
    """Capacity, radius and dimension from the samples and their anchors, both `[D + 1, n_t]`."""
    excess = np.maximum((t * found).sum(0) + kappa, 0)
    inverse = np.mean(excess**2 / (found**2).sum(0))
    about = (found - found.mean(1, keepdims=True))[:-1] / found[-1]
    radius = np.sqrt(np.mean((about**2).sum(0)))
    t, found = t[:-1], found[:-1]
    cosines = (t * found).sum(0) / (np.linalg.norm(t, axis=0) * np.sqrt((found**2).sum(0) + SQUARED_NORM))
    return float(1 / inverse), float(radius), float(len(t) * cosines.mean() ** 2)


def participation_ratio(manifolds: Sequence[Array]) -> float:
    """Of all points less their mean, by SVD with its vectors; the last singular value is left out."""
    squares = np.linalg.svd(np.concatenate(centred(manifolds)).T, full_matrices=False)[1][:-1] ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def evd90(manifolds: Sequence[Array]) -> int:
    """Principal components with a cumulated share of the variance of at most 0.9.

    As the reference has it, each point is about its own mean over the features.
    """
    points = np.concatenate(manifolds)
    squares = np.linalg.svd((points - points.mean(1, keepdims=True)).T, full_matrices=False)[1] ** 2
    return int((np.cumsum(squares) / squares.sum() <= 0.9).sum())
