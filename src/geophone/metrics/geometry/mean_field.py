"""Mean-field analysis of manifolds: how many a linear readout can tell apart, and what of their shape decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, check_counts, unknown
from geophone.core.rng import stream
from geophone.metrics.geometry.clouds import as_clouds, by_label, projected
from geophone.metrics.geometry.nnls import Cones, project_all, refuse_unsolved
from geophone.stats.statistic import tensor_of

MODES = ("default", "reference")

VANISHED = 1e-6
"""A centre shorter than this, relative to the centres' typical length or to its own manifold, is no centre."""

INTERIOR = 1e-8
"""A step from t to its program's answer shorter than this is none: t was in the interior of the margin."""


@dataclass(frozen=True)
class ManifoldGeometry:
    """What `manifold_geometry` found.

    Attributes:
        capacity: α, manifolds per feature that can be separated: the harmonic mean over manifolds. In expectation it
            is in [0, 2] at κ = 0; a few samples of points can give more.
        radius: R, the mean over manifolds of their radius, in units of their centre's length.
        dimension: D, the mean over manifolds of their dimension.
        capacity_se: Standard error over the samples t; likewise the next two.
        radius_se: See above.
        dimension_se: See above.
        center_correlation: Mean |cos| between manifolds' centres, in [0, 1].
        k: Shared directions of the centres that were taken away.
        floor: 2/M, the capacity of M points in as many directions of many: what is near it says nothing but M.
        capacities: Of each manifold, `[P]`; likewise the next two.
        radii: See above.
        dimensions: See above.
        kkt_residual: The largest relative KKT residual of all programs.
        residual_correlations: Mean |cos| of the centres without k directions, for k = 0, 1, …; empty if these were
            given.
        features: How many features were read.
        ambient: How many there were before a random projection.
        points: Points of each manifold.
        kappa: The margin.
        n_t: Samples of t for each manifold.
        mode: "default" or "reference".
        weights: For each manifold `[n_t, m]`, rows of sum 1: the anchor point of each sample as a mean of the
            manifold's points; empty unless asked for.
    """

    capacity: float
    radius: float
    dimension: float
    capacity_se: float
    radius_se: float
    dimension_se: float
    center_correlation: float
    k: int
    floor: float
    capacities: Float[Tensor, " p"]
    radii: Float[Tensor, " p"]
    dimensions: Float[Tensor, " p"]
    kkt_residual: float
    residual_correlations: tuple[float, ...]
    features: int
    ambient: int
    points: tuple[int, ...]
    kappa: float
    n_t: int
    mode: str
    weights: tuple[Float[Tensor, "n_t m"], ...] = ()

    def __str__(self) -> str:
        sizes = sorted(set(self.points))
        many = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        reduced = f" (of {self.ambient})" if self.ambient != self.features else ""
        return (
            f"capacity {self.capacity:.4f} ± {self.capacity_se:.4f} (floor {self.floor:.4f})\n"
            f"radius {self.radius:.4f} ± {self.radius_se:.4f}, "
            f"dimension {self.dimension:.2f} ± {self.dimension_se:.2f}\n"
            f"centre correlation {self.center_correlation:.4f}, {self.k} shared directions removed\n"
            f"{len(self.points)} manifolds of {many} points in {self.features} features{reduced}, κ = {self.kappa:g}"
        )


@checked
def manifold_geometry(
    manifolds: Any,
    labels: Any = None,
    *,
    mode: str = "default",
    kappa: float = 0.0,
    n_t: int = 300,
    n_reps: int | None = None,
    max_features: int | None = None,
    seed: int = 0,
    basis: Any = None,
    samples: Sequence[Any] | None = None,
    anchors: bool = False,
) -> ManifoldGeometry:
    """Capacity, radius and dimension of point-cloud manifolds by mean-field theory.

    Manifolds are shifted by the mean of their centres, and the directions that the centres share are taken away (see
    `geophone.metrics.geometry.low_rank.fit_directions`). In units of its centre's length a manifold's points are then
    s_i, with a last coordinate 1 along the centre. For t ~ N(0, I),

        V(t) = argmin |v − t|²  with  v·s_i + κ ≤ 0 for all i,     s̃ = (t − V) / (t − V)_last  the anchor point,
        1/α_μ = ⟨ max(t·s̃ + κ, 0)² / |s̃|² ⟩,    R_μ² = ⟨ |s̃ − ⟨s̃⟩|² ⟩,    D_μ = D ⟨ cos(t, s̃) ⟩²  off the centre,

    with D the dimensions of the manifold; where t violates no constraint, the anchor is the point with the largest
    t·s_i. α = P / Σ 1/α_μ; R and D are means. Capacity is bounded by the sample: m points of a manifold of many
    dimensions have 2/m, the floor that is printed beside every capacity.

    Cost: O(P m² d + P n_t m a), a the points in an anchor.

    Args:
        manifolds: P arrays or tensors `[m, d]`, points first; m may differ between manifolds. Or, with labels, all
            points in one, `[n, d]`.
        labels: Which manifold each of the points belongs to, `[n]`.
        mode: "default": any P from 2; the mean of centres is taken off, as many directions are taken away as is
            cheapest, which can be none, no centre vanishes by it, and D is the rank of the manifold's points.
            "reference": as the public Python code does, with its definitions (specification §1): the mean of all points
            is taken off, one direction is taken away at least, the most stable fit counts, and D = min(d, m). Of up to
            four manifolds, default mode takes none away.
        kappa: The margin, at least 0.
        n_t: Samples of t for each manifold.
        n_reps: Starts of each fit of shared directions. None is 10 in reference mode, as in the public code (1 in its
            `analyze`), and at most 60 in default mode, which stops once most of them agree.
        max_features: More features than these are projected to so many random directions; default all are read.
        seed: Keys the samples, the starts and the projection, each a stream of its own.
        basis: The shared directions, `[d, k]`, orthonormal, in place of a fit.
        samples: t for each manifold, `[D_μ + 1, n_t]`, the centre's direction last, in place of drawn ones. They refer
            to a basis of the points: in reference mode that of the R factor of their QR decomposition.
        anchors: Whether to return the anchor points.

    Raises:
        GeophoneError: fewer than two manifolds, NaN, κ < 0, a manifold whose centre vanishes, as with one feature when
            directions are taken away, a program that float64 cannot solve; and what `as_clouds` says.

    References:
        Chung, Lee & Sompolinsky 2018, arXiv:1710.06487; Cohen et al. 2020, doi:10.1038/s41467-020-14578-5;
        Stephenson et al. 2019, arXiv:2003.01787.

    >>> print(manifold_geometry([torch.randn(50, 500) + 3 * torch.randn(500) for _ in range(10)]))
    """
    from geophone.metrics.geometry.low_rank import fit_directions, mean_cosine

    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if not 0 <= kappa < float("inf"):
        raise GeophoneError(f"kappa={kappa}: a margin is a finite number of at least 0.")
    check_counts(2, n_t=n_t)
    check_counts(1, n_reps=n_reps, max_features=max_features)
    published = mode == "reference"
    clouds = as_clouds(manifolds if labels is None else by_label(manifolds, labels))
    device, ambient = clouds[0].device, clouds[0].shape[1]
    if max_features is not None and max_features < ambient:
        clouds = projected(clouds, max_features, seed)
    d = clouds[0].shape[1]
    means = torch.stack([cloud.mean(0) for cloud in clouds])
    counts = torch.tensor([float(len(cloud)) for cloud in clouds], dtype=means.dtype, device=device)
    middle = counts @ means / counts.sum() if published else means.mean(0)
    # Clouds about their means are made one at a time, where they are needed: all would take as much memory again.
    sizes = torch.stack([(cloud - mean).norm() / len(cloud) ** 0.5 for cloud, mean in zip(clouds, means, strict=True)])
    centers = means - middle
    typical = centers.square().sum(1).mean().sqrt()
    _check_centers(centers, sizes, means, 0)
    residuals: tuple[float, ...] = ()
    if basis is None:
        if published:  # directions are fitted about the mean of centres, in either mode
            _check_centers(means - means.mean(0), sizes, means, 0)
        fit = fit_directions(means.cpu().numpy(), published=published, restarts=n_reps, seed=seed)
        away, residuals = torch.from_numpy(fit.basis).to(device), fit.residuals
    else:
        away = _orthonormal(basis, d).to(device)
    correlation = residuals[0] if residuals else mean_cosine((means - means.mean(0)).cpu().numpy())
    centers = centers - (centers @ away) @ away.T
    lengths = centers.norm(dim=1)
    _check_centers(centers, sizes, means, away.shape[1])
    shapes = []
    for cloud, mean, length in zip(clouds, means, lengths, strict=True):
        points = cloud - mean
        if published and samples is not None:
            shape = _by_qr(points, away)
        else:  # t that is drawn has the same law in every basis
            shape = _by_rank(points, away, float(mean.norm() + typical))
        if published:
            shape = torch.nn.functional.pad(shape, (0, 0, 0, min(points.shape) - len(shape)))
        shapes.append(shape / length)
    generators = [torch.cat([shape, shape.new_ones(1, shape.shape[1])]) for shape in shapes]
    if samples is None:
        ts = [_drawn(len(s), n_t, seed, i).to(device) for i, s in enumerate(generators)]
    else:
        ts = _given(samples, generators)
    shifted = [torch.cat([t[:, :-1], t[:, -1:] + kappa], dim=1) for t in ts]
    cones = project_all(generators, shifted)
    refuse_unsolved(max(float(cone.residual.max()) for cone in cones))
    each = [_Manifold.of(*parts, kappa) for parts in zip(generators, ts, cones, strict=True)]
    inverse = torch.stack([one.inverse for one in each])
    radii, dimensions = (torch.stack([getattr(one, name) for one in each]) for name in ("radius", "dimension"))
    return ManifoldGeometry(
        capacity=float(1 / inverse.mean()),
        radius=float(radii.mean()),
        dimension=float(dimensions.mean()),
        capacity_se=float(inverse.mean() ** -2 * torch.stack([one.inverse_se for one in each]).norm() / len(each)),
        radius_se=float(torch.stack([one.radius_se for one in each]).norm() / len(each)),
        dimension_se=float(torch.stack([one.dimension_se for one in each]).norm() / len(each)),
        center_correlation=correlation,
        k=away.shape[1],
        floor=2 * len(clouds) / sum(len(cloud) for cloud in clouds),
        capacities=(1 / inverse).cpu(),
        radii=radii.cpu(),
        dimensions=dimensions.cpu(),
        kkt_residual=max(float(cone.residual.max()) for cone in cones),
        residual_correlations=residuals,
        features=d,
        ambient=ambient,
        points=tuple(len(cloud) for cloud in clouds),
        kappa=kappa,
        n_t=len(ts[0]),
        mode=mode,
        weights=tuple(one.weights.cpu() for one in each) if anchors else (),
    )


@dataclass(frozen=True)
class _Manifold:
    """One manifold's numbers, each with its standard error over samples."""

    inverse: Tensor
    radius: Tensor
    dimension: Tensor
    inverse_se: Tensor
    radius_se: Tensor
    dimension_se: Tensor
    weights: Tensor

    @classmethod
    def of(cls, s: Float[Tensor, "r m"], t: Float[Tensor, "q r"], cone: Cones, kappa: float) -> "_Manifold":
        """From generators, samples and the projections' multipliers."""
        total = cone.z.sum(1)
        outward = cone.z @ s.T
        inside = outward.norm(dim=1) < INTERIOR
        furthest = torch.nn.functional.one_hot((t @ s).argmax(1), s.shape[1]).to(s.dtype)
        weights = torch.where(inside[:, None], furthest, cone.z / torch.where(inside, 1, total)[:, None])
        anchor = weights @ s.T
        reach = ((t * anchor).sum(1) + kappa).clamp(min=0).square() / anchor.square().sum(1)
        off = anchor[:, :-1]
        far = (off - off.mean(0)).square().sum(1)
        around = t[:, :-1]
        norms = around.norm(dim=1) * (off.square().sum(1) + 1e-12).sqrt()
        cosine = (around * off).sum(1) / norms.clamp(min=torch.finfo(s.dtype).tiny)
        d = s.shape[0] - 1
        radius = far.mean().sqrt()
        error = sqrt(len(t))
        return cls(
            inverse=reach.mean(),
            radius=radius,
            dimension=d * cosine.mean() ** 2,
            inverse_se=reach.std() / error,
            radius_se=far.std() / error / (2 * radius.clamp(min=torch.finfo(s.dtype).tiny)),
            dimension_se=2 * d * cosine.mean().abs() * cosine.std() / error,
            weights=weights,
        )


def _without(points: Float[Tensor, "m d"], away: Float[Tensor, "d k"]) -> Float[Tensor, "m d"]:
    """In place."""
    return points.addmm_(points @ away, away.T, alpha=-1) if away.shape[1] else points


def _by_rank(points: Float[Tensor, "m d"], away: Float[Tensor, "d k"], magnitude: float) -> Float[Tensor, "r m"]:
    """Centred points without some directions, in a basis of as many dimensions as they have.

    The basis is that of the principal axes, by the smaller Gram matrix, of points or features, each turned so that the
    third moment along it is positive: so it is the same after a rotation of the features and in any order of the
    points, unless that moment is 0 or two eigenvalues are equal. `magnitude` is the points' distance from the origin
    before they were centred: what of them is more than rounding depends on it, and on how long they were before
    directions were taken away.
    """
    longest = max(magnitude, float(points.norm(dim=1).max()))
    points = _without(points, away)
    m, d = points.shape
    values, vectors = torch.linalg.eigh(points @ points.T if m <= d else points.T @ points)
    eps = torch.finfo(points.dtype).eps
    kept = values > max(4 * m * eps * float(values[-1]), m * (4 * eps * longest) ** 2)
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    rows = values.sqrt()[:, None] * vectors.T if m <= d else vectors.T @ points.T
    return rows * torch.where((rows**3).sum(1) < 0, -1.0, 1.0)[:, None]


def _by_qr(points: Float[Tensor, "m d"], away: Float[Tensor, "d k"]) -> Float[Tensor, "r m"]:
    """Centred points without some directions, in min(d, m) dimensions: the R factor where there are fewer points."""
    m, d = points.shape
    left = _without(points, away).T
    return left if d <= m else torch.linalg.qr(left, mode="r").R


def _drawn(r: int, n_t: int, seed: int, manifold: int) -> Float[Tensor, "n_t r"]:
    """Samples of t.

    Coordinates are drawn one after the other, the centre's first, so that manifolds of other
    dimensions, as in another layer, share most of them.
    """
    t = torch.randn(r, n_t, generator=stream(seed, "t", manifold), dtype=torch.float64)
    return t.roll(-1, 0).T.contiguous()


def _check_centers(
    centers: Float[Tensor, "p d"], sizes: Float[Tensor, " p"], means: Float[Tensor, "p d"], k: int
) -> None:
    """Raise an error for a manifold that has no centre left to measure its points by."""
    lengths = centers.norm(dim=1)
    typical = lengths.square().mean().sqrt()
    rounding = 8 * torch.finfo(means.dtype).eps * means.norm(dim=1).max()
    least = torch.maximum(VANISHED * torch.maximum(sizes, typical), rounding)
    if bool((vanished := ~(lengths > least)).any()):
        raise GeophoneError(
            f"manifold {int(vanished.nonzero()[0])}: nothing is left of its centre once the mean of all centres and "
            f"{k} shared directions are taken off, and capacity is measured in its length. Use more manifolds or "
            "features, or take out manifolds that coincide."
        )


def _orthonormal(basis: Any, d: int) -> Float[Tensor, "d k"]:
    given = tensor_of(basis, "basis").detach().double()
    eye = torch.eye(given.shape[-1] if given.ndim else 0, dtype=given.dtype, device=given.device)
    # 1e-6: what rounding to float32 leaves of directions.
    if given.ndim != 2 or len(given) != d or not torch.allclose(given.T @ given, eye, rtol=0, atol=1e-6):
        raise GeophoneError(f"basis of the shape {list(given.shape)}: give [{d}, k] with orthonormal columns.")
    return given


def _given(samples: Sequence[Any], generators: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "n_t _"]]:
    if len(samples) != len(generators):
        raise GeophoneError(f"samples of {len(samples)} manifolds: give those of each of {len(generators)}.")
    given = [torch.as_tensor(t).detach().to(s) for t, s in zip(samples, generators, strict=True)]
    for i, (t, s) in enumerate(zip(given, generators, strict=True)):
        if t.ndim != 2 or len(t) != len(s) or t.shape != (len(s), given[0].shape[1]) or t.shape[1] < 2:
            raise GeophoneError(
                f"samples of manifold {i} have the shape {list(t.shape)}, not [{len(s)}, n_t] with one n_t ≥ 2 for all."
            )
        if not bool(t.isfinite().all()):
            raise GeophoneError(f"samples of manifold {i} have NaN or infinite values.")
    return [t.T.contiguous() for t in given]
