"""The geometry of an attack's ball: its steepest direction, its projection, its uniform distribution."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.rng import Draws


@runtime_checkable
class Norm(Protocol):
    """A norm of perturbations, each example by itself.

    Attributes:
        order: The p of the p-norm.
    """

    order: float

    def steepest(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The direction of norm 1 in which the loss rises most; zero where the gradient is zero."""
        ...

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        """The nearest perturbations (in Euclidean distance) of norm at most eps."""
        ...

    def inside(self, moved: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        """A point near `moved` that is both in [0, 1] and in the ball of radius eps around x."""
        ...

    def length(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The norm of each perturbation."""
        ...

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Uniform draws from the ball of radius 1, of the shape and dtype of `like`."""
        ...


class _Ball:
    """What the norms share."""

    order: float

    def length(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return torch.linalg.vector_norm(delta.flatten(1), self.order, dim=1)

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        raise NotImplementedError

    def inside(self, moved: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        # Clipping moves every value towards x, so it makes no perturbation larger.
        return self.project(moved - x, eps).add_(x).clamp_(0, 1)


class _Linf(_Ball):
    order = math.inf

    def steepest(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return gradient.sign()

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        return delta.clamp(-eps, eps)

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return 2 * rng.uniform("start", *like.shape[1:]).to(like.dtype) - 1


class _L2(_Ball):
    order = 2.0

    def steepest(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        # Divided by its largest value first: the squares of a confident model's gradient underflow in float32.
        largest = gradient.abs().amax(_axes(gradient), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / largest
        return scaled.div_(_length(scaled).clamp(min=1))

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        length = _length(delta).clamp(min=torch.finfo(delta.dtype).tiny)
        return delta * (eps / length).clamp(max=1)

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        direction = self.steepest(rng.normal("start", *like.shape[1:]).to(like.dtype))
        radius = rng.uniform("radius", *[1] * (like.ndim - 1)).to(like.dtype) ** (1 / like[0].numel())
        return direction * radius


class _L1(_Ball):
    order = 1.0
    share = 0.05
    """Of the values that a step changes. With all of them it is a weak attack, with the largest alone a slow one."""

    def steepest(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        # Not the very steepest, which changes one value: equal steps on the values with the largest gradients.
        flat = gradient.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        largest = flat.abs().topk(count, dim=1).indices
        signs = flat.gather(1, largest).sign()
        return torch.zeros_like(flat).scatter_(1, largest, signs / count).reshape(gradient.shape)

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        return _shrink(delta, torch.full_like(delta, math.inf), eps)

    def inside(self, moved: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        delta = moved - x
        return _shrink(delta, torch.where(delta > 0, 1 - x, x), eps).add_(x).clamp_(0, 1)

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        # Of d + 1 exponential draws divided by their sum, any d are uniform on the simplex with its inside.
        size = like[0].numel()
        draws = -(1 - rng.uniform("start", size + 1)).to(like.dtype).log()
        signs = 1 - 2 * (rng.uniform("sign", size) < 0.5).to(like.dtype)
        return (signs * draws[:, :size] / draws.sum(1, keepdim=True)).reshape(like.shape)


def norm_of(perturbation: Any) -> Norm | None:
    """The norm of a perturbation's ball, if its class declares one; what else bears the name is none."""
    norm = getattr(perturbation, "norm", None)
    return norm if isinstance(norm, Norm) else None


LINF: Norm = _Linf()
L2: Norm = _L2()
L1: Norm = _L1()


def _shrink(delta: Float[Tensor, "n ..."], room: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
    """The nearest z with Σ|z| ≤ eps and |z| ≤ room, of the signs of delta: z = sign(δ)·min(max(|δ| - λ, 0), room).

    The sum falls piecewise linearly in λ ≥ 0, with corners at |δ| and |δ| - room, so λ is found by sorting them.

    References:
        Croce & Hein 2021, arXiv:2103.01208, Prop. 2.1.
    """
    size, room = delta.abs().flatten(1), room.flatten(1)
    corners, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(delta.dtype).cumsum(1)
    gaps = (corners[:, :-1] - corners[:, 1:]) * slope[:, :-1]
    total = torch.cat([torch.zeros_like(corners[:, :1]), gaps.nan_to_num(0).cumsum(1)], dim=1)  # at each corner
    budget = torch.full_like(total[:, :1], eps)
    after = torch.searchsorted(total, budget).clamp(1, total.shape[1] - 1)
    before = after - 1
    rise = (budget - total.gather(1, before)) / slope.gather(1, before).clamp(min=1)
    threshold = (corners.gather(1, before) - rise).clamp(min=0)
    shrunk = (size - threshold).clamp(min=0).minimum(room)
    # The threshold is rounded; what is left too long by that is scaled, by a few units in the last place.
    shrunk = shrunk * (eps / shrunk.sum(1, keepdim=True).clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1)
    return (shrunk.reshape(delta.shape)).copysign(delta)


def _length(delta: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Euclidean length of each example, `[n, 1, …]`, so that it broadcasts."""
    return torch.linalg.vector_norm(delta, dim=_axes(delta), keepdim=True)


def _axes(delta: Float[Tensor, "n ..."]) -> tuple[int, ...]:
    return tuple(range(1, delta.ndim))
