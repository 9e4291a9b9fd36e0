"""The geometry of an attack's ball: its steepest direction, its projection, its uniform distribution."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.rng import Draws


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

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Uniform draws from the ball of radius 1, of the shape and dtype of `like`."""
        ...


class _Linf:
    order = math.inf

    def steepest(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return gradient.sign()

    def project(self, delta: Float[Tensor, "n ..."], eps: float) -> Float[Tensor, "n ..."]:
        return delta.clamp(-eps, eps)

    def uniform(self, rng: Draws, like: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return 2 * rng.uniform("start", *like.shape[1:]).to(like.dtype) - 1


class _L2:
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


LINF: Norm = _Linf()
L2: Norm = _L2()


def _length(delta: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Euclidean length of each example, `[n, 1, …]`, so that it broadcasts."""
    return torch.linalg.vector_norm(delta, dim=_axes(delta), keepdim=True)


def _axes(delta: Float[Tensor, "n ..."]) -> tuple[int, ...]:
    return tuple(range(1, delta.ndim))
