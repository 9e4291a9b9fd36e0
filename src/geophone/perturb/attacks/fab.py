"""FAB, the fast adaptive boundary attack: minimal perturbations in l∞, l2 and l1."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.types import Model, TakesSteps
from geophone.perturb.attacks.ascent import FOOLED, is_fooled, logits_at
from geophone.perturb.attacks.boundary import Closest, ClosestAttack, column, nearest_boundary, rivals
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.checks import check_number


@dataclass(frozen=True)
class _FAB(ClosestAttack, TakesSteps):
    """What the three norms share: everything but the projection."""

    steps: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "targets", 0.0)
        check_number(self, "alpha_max", 0.0, 1.0)
        check_number(self, "eta", 1.0)
        check_number(self, "beta", 0.0, 1.0)

    def improve(self, closest: Closest, logits: Tensor, y: Tensor, model: Model) -> None:
        """One search for each target, or one for all."""
        towards = rivals(logits, y, self.targets or logits.shape[1])
        for classes in towards.split(1, dim=1) if self.targets else [towards]:
            self._descend(model, closest, y, classes)

    def _descend(self, model: Model, closest: Closest, y: Tensor, classes: Tensor) -> None:
        """The steps from x, towards the nearest boundary of these classes, `[n, r]`."""
        rows = closest.unsolved()
        moved = closest.x[rows]
        for _ in range(self.steps):
            if not len(rows):
                return
            x, label = closest.x[rows], y[rows]
            logits, lead, normal = nearest_boundary(model, moved, label, classes[rows], self.norm)
            # To where the other class leads by enough to count: an example on the boundary itself fools no one.
            lead = lead - 2 * FOOLED * logits.abs().amax(1)
            # Two moves onto the plane: from where the search is, and from the image, which keeps the search near it.
            lead_at_x = lead + ((x - moved) * normal).flatten(1).sum(1)
            points = torch.stack([moved, x]).flatten(2)
            onto = onto_plane(points, normal.flatten(1), -torch.stack([lead, lead_at_x]), self.norm)
            length = torch.linalg.vector_norm(onto, self.norm.order, dim=2)
            weight = (length[0] / length.sum(0).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=self.alpha_max)
            from_moved, from_x = (points + self.eta * onto).reshape(2, *x.shape)
            moved = torch.lerp(from_moved, from_x, column(weight, x)).clamp_(0, 1)
            with torch.no_grad():
                fooled = is_fooled(logits_at(model, moved, label), label)
            closest.offer(rows, moved, fooled)
            moved = torch.where(column(fooled, x), torch.lerp(x, moved, self.beta), moved)
            if closest.enough > 0:
                left = closest.distance[rows] > closest.enough
                rows, moved = rows[left], moved[left]


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfFAB(_FAB):
    """Fast adaptive boundary attack in l-infinity: the smallest largest change of a value that fools the network.

    Each step linearises the boundary towards one class at x', and moves x' and the image x onto its part in [0, 1]^d:

        x' ← clip((1-α)·(x' + η·d(x')) + α·(x + η·d(x))),   α = min(‖d(x')‖ / (‖d(x')‖ + ‖d(x)‖), α_max)

    with d(·) the shortest such move. A misclassified x' is kept if it is the nearest so far, and the search goes on
    from x + β·(x' - x). It needs no step size and no radius, and multiplying the logits changes nothing. As a
    perturbation it goes towards the nearest that it found, no further than eps; with `fool` an image is left once
    something within eps is found.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: Steps for each target, at least 1; a step costs a forward and backward pass and a forward pass.
        targets: Classes that are aimed at one after the other, the likeliest first; 0 for the nearest of all classes at
            each step, at a backward pass for each.
        alpha_max: Largest weight α of the move from x, in [0, 1].
        eta: Overshoot η over the boundary, at least 1.
        beta: Share β of the way from x that is kept after a success, in [0, 1].

    References:
        Croce & Hein 2020, arXiv:1907.02044.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2FAB(_FAB):
    """Fast adaptive boundary attack in l2: the shortest change of an image that fools the network (see `LinfFAB`).

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: Steps for each target, at least 1.
        targets: Classes that are aimed at one after the other; 0 for the nearest of all at each step.
        alpha_max: Largest weight of the move from x, in [0, 1].
        eta: Overshoot over the boundary, at least 1.
        beta: Share of the way from x that is kept after a success, in [0, 1].

    References:
        Croce & Hein 2020, arXiv:1907.02044.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2


@PERTURBATIONS.register
@dataclass(frozen=True)
class L1FAB(_FAB):
    """Fast adaptive boundary attack in l1: the smallest sum of changes that fools the network (see `LinfFAB`).

    Attributes:
        eps: Largest sum of absolute changes of an image's values, at least 0.
        steps: Steps for each target, at least 1.
        targets: Classes that are aimed at one after the other; 0 for the nearest of all at each step.
        alpha_max: Largest weight of the move from x, in [0, 1].
        eta: Overshoot over the boundary, at least 1.
        beta: Share of the way from x that is kept after a success, in [0, 1].

    References:
        Croce & Hein 2020, arXiv:1907.02044.
    """

    eps: float = 12.0
    levels: ClassVar[tuple[float, ...]] = (1.0, 3.0, 6.0, 12.0)
    norm: ClassVar[Norm] = L1


def onto_plane(
    points: Float[Tensor, "m n d"], normal: Float[Tensor, "n d"], gap: Float[Tensor, "m n"], norm: Norm
) -> Float[Tensor, "m n d"]:
    """The shortest move δ with ⟨w, δ⟩ = gap that stays in [0, 1]; as far as the box allows where it can't get there.

    Every value moves the way that closes the gap, and has room as far as the box's edge:

        l∞:  |δ_i| = min(t, room_i),     l2:  |δ_i| = min(t·|w_i|, room_i),     one t for all values
        l1:  values with the largest |w_i| first, each by its whole room, until the gap is closed

    Args:
        points: m points for each of n planes, in [0, 1].
        normal: w, of each plane.
        gap: What ⟨w, ·⟩ shall grow by, of either sign.
        norm: `LINF`, `L2` or `L1`.
    """
    # Divided by its largest value, w keeps its squares from vanishing or overflowing.
    largest = normal.abs().amax(1, keepdim=True).clamp(min=torch.finfo(normal.dtype).tiny)
    weight, gap = (normal / largest).abs(), gap / largest[:, 0]
    sign = normal.sign() * gap.sign()[..., None]
    room = torch.where(sign > 0, 1 - points, points) * (sign != 0)
    if norm is L1:
        size = _largest_first(weight, room, gap.abs())
    else:
        size = _all_at_once(weight, weight if norm is L2 else torch.ones_like(weight), room, gap.abs())
    return size * sign


def _largest_first(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Sizes in [0, room] with Σ weight·size = gap and the least Σ size."""
    order = weight.argsort(dim=1, descending=True).expand_as(room)
    weight, sorted_room = weight.expand_as(room).gather(2, order), room.gather(2, order)
    gain = weight * sorted_room
    before = gain.cumsum(2) - gain
    share = ((gap[..., None] - before) / gain.clamp(min=torch.finfo(gain.dtype).tiny)).clamp(0, 1)
    return torch.empty_like(room).scatter_(2, order, share * sorted_room)


def _all_at_once(weight: Tensor, rate: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Sizes min(t·rate, room) with Σ weight·size = gap, or the whole room where that is too little.

    The sum is concave and piecewise linear in t, so Newton's method from t = 0 comes to t from below: each iteration
    solves for t with the values that are at the edge so far held there, until no other value gets there.
    """
    gain, slope, full = weight * room, weight * rate, room <= 0
    t = torch.zeros_like(gap)
    while True:
        missing = gap - torch.where(full, gain, 0).sum(2)
        t = torch.maximum(t, missing / torch.where(full, 0, slope).sum(2).clamp(min=torch.finfo(gap.dtype).tiny))
        size = t[..., None] * rate
        reached = size >= room
        if bool((reached <= full).all()):
            return torch.where(full, room, size)
        full = full | reached
