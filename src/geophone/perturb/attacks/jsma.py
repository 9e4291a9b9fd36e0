"""JSMA: few values changed by much, chosen in pairs by a saliency map."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model, StopsEarly
from geophone.perturb.attacks.ascent import (
    check_finite,
    classes_of,
    each_sum,
    input_gradient,
    is_fooled,
    logits_at,
)
from geophone.perturb.attacks.base import under_attack
from geophone.perturb.attacks.boundary import rivals
from geophone.perturb.checks import check_batch, check_number

CANDIDATES = 32
"""Values of which all pairs are tried."""

_ANGLES = [(math.cos(t), math.sin(t)) for t in ((k + 0.5) / 16 * math.pi / 2 for k in range(16))]
_TAKEN = -4.0  # below minus the sum of two scaled gradients: a pair with a value that can't be changed is never chosen


@PERTURBATIONS.register
@dataclass(frozen=True)
class JSMA(StopsEarly):
    """Jacobian saliency map attack: changes pairs of values by `theta` until the network is fooled or gamma is spent.

        (p, q) = argmax -(α_p + α_q)·(β_p + β_q)   where α_p + α_q > 0 and β_p + β_q < 0
        α = ∇ z_t,   β = Σ_{j≠t} ∇ z_j,   x'_p ← clip(x'_p + theta, 0, 1), and so for q

    with t the likeliest wrong class of the clean image, z the logits, and both signs turned where theta is negative. A
    value at the edge of [0, 1] is not changed again. An example is left once it is misclassified as whatever class,
    once no pair is left that helps, or after gamma·d/2 pairs (at least one), d the values of an image; so at most
    gamma·d values change. Multiplying the logits changes nothing. An example costs one forward and two backward passes
    for each pair, and memory in proportion to d.

    Attributes:
        gamma: Share of the values that may change, in [0, 1].
        theta: Change of a value, in [-1, 1]; below 0 it darkens.
        target: The class to aim at in all images; the likeliest wrong one if None. Images of it stay as they are.

    References:
        Papernot et al. 2016, arXiv:1511.07528.
    """

    gamma: float = 0.1
    theta: float = 1.0
    target: int | None = None
    level: ClassVar[str] = "gamma"
    levels: ClassVar[tuple[float, ...]] = (0.01, 0.03, 0.1)
    family: ClassVar[str] = "attack"
    black_box: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number(self, "gamma", 0.0, 1.0)
        check_number(self, "theta", -1.0, 1.0)
        if self.target is not None and (type(self.target) is not int or self.target < 0):
            raise GeophoneError(f"JSMA(target={self.target!r}): give the number of a class, from 0, or None.")

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, of the shape and dtype of x; each is left once it fools the network."""
        if self.gamma == 0:
            check_batch(x, y, rng)
            return x.clone()
        return under_attack(self.search, x, y, model, rng)

    def fool(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The same: it never does more than is needed."""
        return self(x, y, model, rng)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """The attack itself: gradients are on and the model is in evaluation mode."""
        with torch.no_grad():
            least = max(classes_of(y), 0 if self.target is None else self.target + 1)
            logits = logits_at(model, x, y, least)
        target = rivals(logits, y, 1)[:, 0] if self.target is None else torch.full_like(y, self.target)
        rows = (target != y).nonzero()[:, 0]
        out, moved, y, target = x.clone(), x[rows], y[rows], target[rows]
        rising = 1.0 if self.theta > 0 else -1.0
        for _ in range(max(1, int(self.gamma * x[0].numel() / 2))):
            if not len(rows):
                break
            moved = moved.requires_grad_()
            logits = logits_at(model, moved, y)
            towards = input_gradient(logits.gather(1, target[:, None])[:, 0], moved, again=True)
            others = input_gradient(logits.sum(1), moved) - towards
            check_finite([each_sum(towards), each_sum(others)])
            moved = moved.detach()
            free = (moved < 1 if rising > 0 else moved > 0).flatten(1)
            pair, helps = best_pair(rising * towards.flatten(1), -rising * others.flatten(1), free)
            left = helps & ~is_fooled(logits.detach(), y)
            rows, moved, y, target, pair = rows[left], moved[left], y[left], target[left], pair[left]
            step = torch.zeros_like(moved).flatten(1).scatter_(1, pair, self.theta)
            moved = (moved + step.reshape(moved.shape)).clamp_(0, 1)
            out[rows] = moved
        return out


def best_pair(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], free: Bool[Tensor, "n d"]
) -> tuple[Int[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """The two free values p ≠ q with the largest (a_p + a_q)·(b_p + b_q), both sums above 0; and whether there are any.

    The product of two sums A, B > 0 is V or more only if A·cos θ + B·sin θ ≥ 2·√(V·cos θ·sin θ) for every angle θ. So a
    value for which cos θ·a + sin θ·b, with the largest of them added, falls short of that at one of a few angles is in
    no pair that beats V, the best pair so far. All pairs are tried of the values that are left: exact where they are no
    more than 32 (in networks they are three or so), else of the 32 furthest above their bounds, twice. Time and memory
    grow with d; the d² pairs are never formed.
    """
    tiny = torch.finfo(a.dtype).tiny
    a, b = (torch.where(free, one / one.abs().amax(1, keepdim=True).clamp(min=tiny), _TAKEN) for one in (a, b))
    tops = [torch.topk(cos * a + sin * b, 2, dim=1) for cos, sin in _ANGLES]
    pair, product = _best_among(a, b, torch.cat([top.indices for top in tops], dim=1))
    for _ in range(2):
        excess = torch.full_like(a, torch.inf)
        for (cos, sin), top in zip(_ANGLES, tops, strict=True):
            bound = 2 * (product * cos * sin).sqrt() - top.values[:, 0]
            excess = torch.minimum(excess, cos * a + sin * b - bound[:, None])
        likely = excess.topk(min(CANDIDATES, a.shape[1]), dim=1)
        pair, product = _best_among(a, b, torch.cat([pair, likely.indices], dim=1))
        if not bool((likely.values[:, -1] > 0).any()):
            break
    return pair, product > 0


def _best_among(a: Tensor, b: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The pair `[n, 2]` of these values `[n, c]` with the largest product of sums, and that; 0 where none has both."""
    a, b = a.gather(1, values), b.gather(1, values)
    product = (a[:, :, None] + a[:, None]).clamp_(min=0) * (b[:, :, None] + b[:, None]).clamp_(min=0)
    best, at = product.masked_fill_(values[:, :, None] == values[:, None], 0).flatten(1).max(dim=1, keepdim=True)
    return values.gather(1, torch.cat([at // values.shape[1], at % values.shape[1]], dim=1)), best[:, 0]
