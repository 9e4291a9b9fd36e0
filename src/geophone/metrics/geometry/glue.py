"""Capacity of manifolds that are told apart together, and the effective geometry that sets it (GLUE)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from geophone.core.errors import GeophoneError, check_counts, unknown
from geophone.core.rng import stream
from geophone.metrics.geometry.clouds import about_mean, as_clouds, span
from geophone.metrics.geometry.dichotomies import labels
from geophone.metrics.geometry.nnls import ACCEPTED, from_points, in_threads, refuse_unsolved

MEASURES = (
    "capacity",
    "dimension",
    "radius",
    "utility",
    "center_alignment",
    "axis_alignment",
    "center_axis_alignment",
)

RANK = 1e-10
"""Of matrices of inner products between unit anchors: eigenvalues below this share of the largest count as 0."""

_TOLERANCE = 1e-12  # of a slope, for points of length 1, relative to the largest at 0
_CHUNK = 2**24  # numbers in the anchors that are held at once


@dataclass(frozen=True)
class Glue:
    """What `glue` found; its docstring has the formulas.

    Attributes:
        capacity: Manifolds per feature at which a random dichotomy of the ensemble stops being separable.
        dimension: Effective dimension; None where anchors do not vary.
        radius: Effective radius, relative to the anchors' centres; None where anchors do not vary.
        utility: Effective utility, at least 0; near 1 where labels and the other manifolds cost nothing. Above 1 is
            possible where few manifolds have correlated centres, as after `center`.
        center_alignment: Mean |⟨s0_μ, s0_ν⟩|, in squared units of the features.
        axis_alignment: Mean E|⟨s1_μ, s1_ν⟩|, in squared units of the features.
        center_axis_alignment: Mean E|⟨s0_μ, s1_ν⟩|, in squared units of the features.
        standard_errors: Of each measure that is not None, over the samples, by the jackknife.
        p: Number of manifolds.
        n_t: Number of samples.
        rank: Dimensions that the points span; capacity is at least p/rank in expectation.
        floor: Capacity of as many points without any structure, in general position: p / min(n/2, rank), n in all.
        inside: Share of samples with Πt = t. Mostly their labels cannot be separated, and then neither the multipliers
            nor the anchors are unique.
        residual: Largest relative KKT residual of all programs.
        weights: Where asked for: of each manifold the anchors' convex weights, `[n_t, m]`, all 0 in samples where it
            has no anchor. `weights[i] @ cloud` are the anchors.
    """

    capacity: float
    dimension: float | None
    radius: float | None
    utility: float
    center_alignment: float
    axis_alignment: float
    center_axis_alignment: float
    standard_errors: Mapping[str, float]
    p: int
    n_t: int
    rank: int
    floor: float
    inside: float
    residual: float
    weights: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class GluePairs:
    """What `glue` found for pairs of manifolds.

    Attributes:
        pairs: Which two, by their place in the list.
        each: What was found, in the same order.
    """

    pairs: tuple[tuple[int, int], ...]
    each: tuple[Glue, ...]

    def mean(self, measure: str) -> float | None:
        """Mean of a measure over the pairs that have it; None if none has."""
        values = self._values(measure)
        return sum(values) / len(values) if values else None

    def standard_error(self, measure: str) -> float | None:
        """Of that mean, over the samples: pairs draw theirs independently. It says nothing of other manifolds."""
        if not (values := self._values(measure)):
            return None
        errors = [one.standard_errors[measure] for one in self.each if measure in one.standard_errors]
        return sum(error**2 for error in errors) ** 0.5 / len(values)

    def _values(self, measure: str) -> list[float]:
        if measure not in MEASURES:
            raise unknown("measure", measure, MEASURES)
        return [value for one in self.each if (value := getattr(one, measure)) is not None]


def glue(
    manifolds: Sequence[Any],
    *,
    dichotomies: str | Any = "balanced",
    n_t: int = 200,
    center: bool = True,
    anchors: bool = False,
    seed: int = 0,
) -> Glue:
    """Capacity, effective dimension, radius and utility of manifolds under the labels of an ensemble.

    A sample is t ~ N(0, I) and labels y ∈ {±1}^P. The points z of all manifolds, times y_μ, span a cone; t is projected
    onto it,

        Π t = Σ_μ y_μ Σ_i λ_μi z_μi,  λ = argmin_{λ ≥ 0} |Π t − t|²,

    an anchor is s_μ = Σ_i λ_μi z_μi / Σ_i λ_μi (0 where all λ_μi are 0), S the matrix of a sample's anchors, S0 its
    mean over samples and S1 = S − S0. With

        a = |Π t|² = (St)ᵀ(SSᵀ)†(St),  b = (S1t)ᵀ(S1S1ᵀ)†(S1t),  c = (S1t)ᵀ(S0S0ᵀ + S1S1ᵀ)†(S1t)

    the measures are capacity P/E[a], dimension E[b]/P, radius √(E[c]/E[b − c]), utility E[c]/E[a]; exactly

        capacity = utility · (1 + radius⁻²) / dimension.

    Alignments are means over μ ≠ ν of |⟨s0_μ, s0_ν⟩|, E|⟨s1_μ, s1_ν⟩| and E|⟨s0_μ, s1_ν⟩|, absolute and not divided by
    the anchors' lengths, so they change with the features' scale. [2nd]: the formulas of this paragraph and of b, c and
    the utility are second-hand, not checked against the papers. The hyperplanes have no bias: a mean that all points
    share acts as one, so the answer depends on `center`.

    The programs are solved exactly, from the points' Gram matrix: O(n²) memory for n points, whatever the number of
    features. t is drawn in a basis of the points' span, which has the same law, so rotating the features or adding
    features that are 0 changes nothing; where points are equally long, rounding decides on the basis, and then nothing
    but the draw. Where λ is not unique (labels that cannot be separated, points of different
    manifolds that are linearly dependent), capacity is exact, but how it divides into the others depends on the
    solution that is found: heed that where `inside` is not small.

    Args:
        manifolds: P ≥ 2 arrays `[m, d]`; m may differ.
        dichotomies: "balanced" (⌊P/2⌋ manifolds, drawn anew for each sample, against the rest), "one_vs_rest" (each
            manifold against the rest in turn), or rows of ±1, `[n_y, P]`, taken in turn.
        n_t: Number of samples.
        center: Whether to subtract the mean of all points.
        anchors: Whether to keep the anchors' weights.
        seed: Of t and the labels, which have streams of their own.

    Raises:
        GeophoneError: unusable clouds, fewer than two samples, labels that are not ±1, or points that are all equal
            (with `center`) or all 0.

    References:
        Chou, Kim, Arend, Yang, Mensh, Slatton, Wakhloo, Shim, Perich & Chung 2024, bioRxiv 2024.02.26.582157;
        Wakhloo, Sussman & Chung 2023, doi:10.1103/PhysRevLett.131.027301.
    """
    check_counts(2, n_t=n_t)
    clouds = [cloud.cpu() for cloud in as_clouds(manifolds)]
    signs = labels(dichotomies, len(clouds), n_t, seed, "glue")
    points = torch.cat(clouds)
    if center:
        points = about_mean(points)
    return _glue(points @ points.T, [len(cloud) for cloud in clouds], signs, anchors, (seed,))


def glue_pairs(
    manifolds: Sequence[Any],
    *,
    dichotomies: str | Any = "balanced",
    n_t: int = 200,
    center: bool = True,
    seed: int = 0,
    most: int | None = None,
) -> GluePairs:
    """`glue` of every two manifolds alone, the usual way where there are many: P(P − 1)/2 small problems.

    Args:
        manifolds: P ≥ 2 arrays `[m, d]`; m may differ.
        dichotomies: As for `glue`, of two manifolds.
        n_t: Number of samples for each pair.
        center: Whether to subtract the mean of a pair's points from them.
        seed: Of t, the labels and the choice of pairs. Pairs have streams of their own.
        most: If there are more pairs than this, so many are chosen at random.

    Raises:
        GeophoneError: see `glue`.
    """
    check_counts(2, n_t=n_t)
    check_counts(1, most=most)
    clouds = [cloud.cpu() for cloud in as_clouds(manifolds)]
    pairs = list(combinations(range(len(clouds)), 2))
    if most is not None:
        order = torch.randperm(len(pairs), generator=stream(seed, "glue pairs"))[:most]
        pairs = [pairs[i] for i in order.sort().values.tolist()]

    def one(pair: tuple[int, int]) -> Glue:
        names = (seed, *pair)
        signs = labels(dichotomies, 2, n_t, *names, "glue")
        points = torch.cat([clouds[i] for i in pair])
        if center:
            points = about_mean(points)
        return _glue(points @ points.T, [len(clouds[i]) for i in pair], signs, False, names)

    return GluePairs(tuple(pairs), tuple(one(pair) for pair in pairs))


def _glue(
    gram: Float[Tensor, "n n"], sizes: list[int], signs: NDArray[np.float64], anchors: bool, names: tuple[object, ...]
) -> Glue:
    """`glue` from the points' Gram matrix."""
    n_t, p = signs.shape
    scale = float(gram.diagonal().mean())
    if scale <= 0:
        raise GeophoneError("all points are equal (or 0, without `center`): there is nothing to tell apart.")
    basis = span(gram / scale)  # [n, r]
    n, rank = basis.shape
    drawn = stream(*names, "glue t")  # by coordinate: one more that only rounding gave changes no other
    t = torch.stack([torch.randn(n_t, generator=drawn, dtype=torch.float64) for _ in range(rank)], 1)
    owner = np.repeat(np.arange(p), sizes)
    lengths = basis.norm(dim=1)
    unit = basis / lengths.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    multipliers, residual = _project(unit, t, signs, owner)
    held = multipliers / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    mass = torch.zeros(n_t, p, dtype=torch.float64).index_add_(1, torch.from_numpy(owner), held)
    weights = held / mass.clamp(min=torch.finfo(torch.float64).tiny)[:, owner]
    a = (multipliers * torch.from_numpy(signs)[:, owner] * (t @ unit.T)).sum(1)

    blocks = [(weights[:, rows], basis[rows]) for rows in torch.arange(n).split(sizes)]
    s0 = torch.stack([part.mean(0) @ points for part, points in blocks])  # [P, r]
    central = s0 @ s0.T
    apart = (1 - torch.eye(p, dtype=torch.float64)) / (p * (p - 1))  # to take means over μ ≠ ν
    chunks = torch.arange(n_t).split(max(1, _CHUNK // (p * rank)))

    def deviations(some: Tensor) -> Float[Tensor, "q p r"]:
        return torch.stack([part[some] @ points for part, points in blocks], 1) - s0

    b, c, axis, crossed, shift = torch.empty(5, n_t, dtype=torch.float64)
    slopes = torch.zeros(4, p, rank, dtype=torch.float64)  # of the means of b, c, axis and crossed with S0
    for some in chunks:
        s1 = deviations(some)
        within, across = s1 @ s1.mT, s0 @ s1.mT  # ⟨s1_μ, s1_ν⟩, ⟨s0_μ, s1_ν⟩
        right = s1 @ t[some][:, :, None]  # S1 t
        b[some], x = _explained(within, right)
        c[some], w = _explained(within + central, right)
        axis[some], crossed[some] = (within.abs() * apart).sum((1, 2)), (across.abs() * apart).sum((1, 2))
        # S0 without sample i is S0 − S1_i/(n_t − 1).
        without = central - (across + across.mT) / (n_t - 1) + within / (n_t - 1) ** 2
        shift[some] = (without.abs() * apart).sum((1, 2))
        slopes[0] -= 2 * (x * (t[some][:, None] - x.mT @ s1)).sum(0) / n_t
        slopes[1] -= 2 * (w * (t[some][:, None] + w.mT @ (s0 - s1))).sum(0) / n_t
        slopes[2] -= 2 * ((within.sign() * apart) @ s1).sum(0) / n_t
        slopes[3] += ((across.sign() * apart) @ s1 - (across.sign() * apart).mT @ s0).sum(0) / n_t
    moved = torch.cat([torch.einsum("qpr,kpr->kq", deviations(some), slopes) for some in chunks], 1)

    found: dict[str, tuple[float, float] | None] = {
        "capacity": _ratio(lambda a: p / a, (a, 0)),
        "dimension": None,
        "radius": None,
        "utility": _ratio(lambda c, a: c / a, (c, moved[1]), (a, 0)),
        "center_alignment": (float((central.abs() * apart).sum()) * scale, _jackknife(shift) * scale),
        "axis_alignment": _ratio(lambda x: x * scale, (axis, moved[2])),
        "center_axis_alignment": _ratio(lambda x: x * scale, (crossed, moved[3])),
    }
    # 1e-20: squares of what float64 leaves of anchors that are the same in every sample.
    if float(b.mean()) > 1e-20 * float(a.mean()):
        found["dimension"] = _ratio(lambda b: b / p, (b, moved[0]))
        if float((b - c).mean()) > 0:
            found["radius"] = _ratio(lambda c, b: (c / (b - c).clamp(min=0)).sqrt(), (c, moved[1]), (b, moved[0]))
    return Glue(
        **{name: None if value is None else value[0] for name, value in found.items()},  # type: ignore[arg-type]
        standard_errors={name: value[1] for name, value in found.items() if value is not None},
        p=p,
        n_t=n_t,
        rank=rank,
        floor=p / min(n / 2, rank),
        # 1e-9: what is left of t is rounding.
        inside=float((a >= (1 - 1e-9) * t.square().sum(1)).double().mean()),
        residual=residual,
        weights=weights.split(sizes, 1) if anchors else None,
    )


def _explained(
    gram: Float[Tensor, "q p p"], right: Float[Tensor, "q p 1"]
) -> tuple[Float[Tensor, " q"], Float[Tensor, "q p 1"]]:
    """uᵀ G† u, and x with G x = u, for a vector's inner products u with vectors that have the Gram matrix G.

    Those are first made of length 1, which changes nothing but what `RANK` is relative to.
    """
    length = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inverse = torch.where(length > 0, 1 / length, 0)
    values, vectors = torch.linalg.eigh(gram * inverse[:, :, None] * inverse[:, None, :])
    kept = values > RANK * values[:, -1:]
    along = vectors.mT @ (right * inverse[:, :, None])
    solved = torch.where(kept, 1 / torch.where(kept, values, 1), 0)[:, :, None] * along
    return (along * solved).sum((1, 2)), (vectors @ solved) * inverse[:, :, None]


def _ratio(of: Callable[..., Tensor], *samples: tuple[Float[Tensor, " n"], Any]) -> tuple[float, float]:
    """A function of means, and its standard error by leaving out one sample after another.

    Beside each quantity: n − 1 times what its mean loses because S0 is another without that sample, to first order.
    """
    n = len(samples[0][0])
    without = [(x.sum() - x - moved) / (n - 1) for x, moved in samples]
    return float(of(*(x.mean() for x, _ in samples))), _jackknife(of(*without))


def _jackknife(without: Float[Tensor, " n"]) -> float:
    n = len(without)
    return float(((n - 1) * (without - without.mean()).square().mean()).sqrt())


def _project(
    unit: Float[Tensor, "n r"], t: Float[Tensor, "q r"], signs: NDArray[np.float64], owner: NDArray[np.int64]
) -> tuple[Float[Tensor, "q n"], float]:
    """Project each t onto the cone of the signed points, of length 1: multipliers ≥ 0 and the largest KKT residual.

    Whatever the kernel leaves above `ACCEPTED` is solved again from the points themselves.
    """
    from geophone.metrics.geometry.active_set import project_some

    gram, b = (unit @ unit.T).numpy(), (t @ unit.T).numpy()
    found, residual = np.zeros_like(b), np.zeros(len(b))

    def some(rows: NDArray[np.int64]) -> None:
        project_some(gram, b, signs, owner, rows, _TOLERANCE, found, residual)

    # More pieces than threads: programs differ in size, and a thread that is done takes the next.
    in_threads(some, np.array_split(np.arange(len(b)), min(len(b), 4 * torch.get_num_threads())))
    points = unit.numpy()
    for q in (residual > ACCEPTED).nonzero()[0]:
        signed = points * signs[q, owner][:, None]
        again = from_points(signed.T, t[q].numpy(), found[q])
        slope = signed @ (t[q].numpy() - again @ signed)
        left = max(np.abs(slope[again > 0]).max(initial=0), slope.max()) / max(np.abs(b[q]).max(), 1e-300)
        if left < residual[q]:
            found[q], residual[q] = again, left
    refuse_unsolved(float(residual.max()))
    return torch.from_numpy(found), float(residual.max())
