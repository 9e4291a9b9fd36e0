"""Minimal l2 perturbations by optimisation: Carlini and Wagner's attack, and the fast minimum-norm attack."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.types import Model, TakesSteps
from geophone.perturb.attacks.ascent import FOOLED, Ascent, is_fooled
from geophone.perturb.attacks.boundary import Closest, ClosestAttack, column
from geophone.perturb.attacks.losses import find_loss, margin
from geophone.perturb.attacks.norms import L2, Norm
from geophone.perturb.checks import check_number

ADAM = 0.9, 0.999, 1e-8
"""Adam's decay of the first and of the second moment, and what keeps its quotient finite."""

_PATIENCE = 40  # steps, or a tenth of all, between two looks at progress: Adam turns round in some 20
_PROGRESS = 0.9999  # of the least at the look before: where the least has not fallen below it, the search stops
_INSIDE = 1 - 1e-6  # atanh of ±1 is infinite
_LAST = 0.01  # the last step relative to the first, where steps shorten
_FURTHER = 4  # by how much steps grow after a search that found nothing


@PERTURBATIONS.register
@dataclass(frozen=True)
class CarliniWagner(ClosestAttack, TakesSteps):
    """Carlini and Wagner's l2 attack: Adam on the squared distance and the margin, which is weighed by a search.

        minimise (‖x' - x‖₂/r)² + c·max(z_y - max_{j≠y} z_j + confidence, 0)/m   over x' in [0, 1]^d, from x
        m = z_y - max_{j≠y} z_j + confidence at x,   r = m/‖∇m‖₂

    so that distances count in units of that of the linearised boundary, and nothing depends on the scale of the logits
    or of the distance; for a linear network c has to be 2. The weight c of each image is multiplied by 10 until a
    misclassified x' is found, or divided by 10 until none is; then it is the mean of the largest that failed and the
    least that succeeded. The nearest of all misclassified x' is the result. Adam's steps are clipped to [0, 1] (the
    paper's projected gradient descent) and shorten along a cosine to a hundredth.

    `relative=False` is the paper's attack: r = m = 1, steps of one size over u in x' = (tanh(u) + 1)/2, and a search
    that ends where it makes no progress. There c depends on the scale of the logits, the step size on the distance to
    be found, and a value at 0 or 1 hardly moves; so the distances were 1.4 times as long on a small network for
    Fashion-MNIST, and hundreds of times near a boundary. The paper takes `relative=False, steps=10000, searches=9,
    step_size=0.01, c=0.001`.

    As a perturbation it goes towards what it found, no further than eps; with `fool` an image is left once something
    within eps is found. Costs steps·searches forward and backward passes: 300, three times what `L2FMN` does, for
    distances within 2 % of its, in the median.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: Adam's steps for each c; a step costs a forward and backward pass.
        searches: Values of c for each image.
        step_size: Euclidean length of the first step in units of r; after a search, of the least distance that was
            found, or of 4 times what it was before. Adam's step size in u if not `relative`.
        confidence: By how much the other class shall lead, at least 0, in units of the range of the clean image's
            logits, or of logits if not `relative`.
        c: The first weight of the margin, above 0.
        relative: In units of the linearised boundary's distance; False for the paper's own.

    References:
        Carlini & Wagner 2017, arXiv:1608.04644.
    """

    eps: float = 0.5
    steps: int = 100
    searches: int = 3
    step_size: float = 0.2
    confidence: float = 0.0
    c: float = 4.0
    relative: bool = True
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "searches", 1.0)
        check_number(self, "step_size", 0.0)
        check_number(self, "confidence", 0.0)
        check_number(self, "c", 0.0)
        if not isinstance(self.relative, bool):
            raise GeophoneError(f"CarliniWagner(relative={self.relative!r}): write True or False.")

    def improve(self, closest: Closest, logits: Tensor, y: Tensor, model: Model) -> None:
        """One search by Adam for each weight."""
        if not len(closest.unsolved()):
            return
        ascent = Ascent(model, margin, classes=logits.shape[1])
        if self.relative:
            problem = self._linearised(ascent, closest.x, logits, y)
        else:
            problem = _Problem.of_the_paper(closest.distance, self)
        low, high = torch.zeros_like(closest.distance), torch.full_like(closest.distance, torch.inf)
        c = torch.full_like(low, self.c)
        for _ in range(self.searches):
            found = self._descend(ascent, closest, y, c, problem)
            low, high = torch.where(found, low, c), torch.where(found, c, high)
            c = torch.where(high.isinf(), 10 * c, torch.where(low == 0, c / 10, (low + high) / 2))
            if self.relative:
                least = closest.distance
                step = torch.where(least.isfinite(), self.step_size * least, _FURTHER * problem.step)
                problem = replace(problem, step=step)
        ascent.check()

    def _linearised(self, ascent: Ascent, x: Tensor, logits: Tensor, y: Tensor) -> "_Problem":
        """In units of each image's distance from the linearised boundary, which no image in [0, 1] is beyond."""
        tiny, farthest = torch.finfo(x.dtype).tiny, math.sqrt(x[0].numel())
        _, lead, gradient = ascent(x, y)
        confidence = self.confidence * (logits.amax(1) - logits.amin(1))
        missing = (lead.abs() + confidence + 2 * FOOLED * logits.abs().amax(1)).clamp(min=tiny)
        distance = (missing / L2.length(gradient)).clamp(tiny, farthest)
        return _Problem(distance, missing / distance, confidence, self.step_size * distance)

    def _descend(self, ascent: Ascent, closest: Closest, y: Tensor, c: Tensor, problem: "_Problem") -> Tensor:
        """Adam from x with the weights c, and where it found something, `[n]`."""
        found = torch.zeros_like(y, dtype=torch.bool)
        rows = closest.unsolved()
        x, y, c, problem = closest.x[rows], y[rows], c[rows], problem.of(rows)
        u = x if self.relative else ((2 * x - 1) * _INSIDE).atanh_()
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        lowest = before = torch.full_like(c, torch.inf)
        for step in range(1, self.steps + 1):
            if not len(rows):
                break
            moved = u if self.relative else u.tanh().add_(1).div_(2)
            logits, lead, gradient = ascent(moved, y)
            short = problem.confidence - lead
            fooled = is_fooled(logits, y) & (short <= 0)
            closest.offer(rows, moved, fooled)
            delta = moved - x
            # What must fall for the search to go on: what is missing until something is found, and then the loss.
            first_found, found[rows] = fooled & ~found[rows], found[rows] | fooled
            loss = delta.flatten(1).square().sum(1) + c * short.clamp(min=0)
            before = torch.where(first_found, torch.inf, before)
            lowest = torch.where(first_found, loss, torch.minimum(lowest, torch.where(found[rows], loss, short)))
            # The gradient of the loss times the unit of distance, so that Adam sees numbers of one size.
            weight = torch.where(fooled, 0, c / problem.slope)
            gradient = delta.mul_(2).div_(column(problem.distance, x)).sub_(column(weight, x) * gradient)
            if not self.relative:  # in u: dx'/du = 2·x'·(1 - x')
                gradient.mul_(2 * moved * (1 - moved))
            first.lerp_(gradient, 1 - ADAM[0])
            second.lerp_(gradient.square(), 1 - ADAM[1])
            spread = (second / (1 - ADAM[1] ** step)).sqrt_().add_(ADAM[2])
            u = u - column(problem.step, x) * (self._shortened(step, x) / (1 - ADAM[0] ** step)) * first / spread
            if self.relative:
                u = u.clamp_(0, 1)
            look = not self.relative and step % max(_PATIENCE, self.steps // 10) == 0
            if look or closest.enough > 0:
                left = closest.distance[rows] > closest.enough
                if look:
                    left &= lowest < _PROGRESS * before
                    before = lowest
                rows, x, y, c, problem, u = rows[left], x[left], y[left], c[left], problem.of(left), u[left]
                first, second, lowest, before = first[left], second[left], lowest[left], before[left]
        return found

    def _shortened(self, step: int, x: Tensor) -> float:
        """What a step's length is multiplied by, for the step of each value; 1 for the paper's."""
        if not self.relative:
            return 1.0
        cosine = (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        return (_LAST + (1 - _LAST) * cosine) / math.sqrt(x[0].numel())


@dataclass(frozen=True)
class _Problem:
    """What the loss of each image is measured in, and how far Adam steps, `[n]` each.

    Attributes:
        distance: The unit of distances, r.
        slope: Of the margin, the unit of margins over r.
        confidence: By how much the other class shall lead, in logits.
        step: Length of the first step.
    """

    distance: Tensor
    slope: Tensor
    confidence: Tensor
    step: Tensor

    @classmethod
    def of_the_paper(cls, like: Tensor, attack: CarliniWagner) -> "_Problem":
        """Without units, for images that are `like` one value each."""
        one = torch.ones_like(like)
        return cls(one, one, attack.confidence * one, attack.step_size * one)

    def of(self, rows: Tensor) -> "_Problem":
        """That of some of the images."""
        return _Problem(self.distance[rows], self.slope[rows], self.confidence[rows], self.step[rows])


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2FMN(ClosestAttack, TakesSteps):
    """Fast minimum-norm attack in l2: steps up a loss, on a sphere that shrinks while the network is fooled.

        δ ← ε·u/‖u‖₂,   u = δ + α·g/‖g‖₂,   x' = clip(x + δ, 0, 1),   g = ∇ loss
        ε ← min(ε, ‖best‖₂)·(1 - γ)  where x' is misclassified, else ε·(1 + γ)

    from ε = |margin|/‖∇ margin‖₂ at x, the distance of the linearised boundary. α and γ fall along a cosine, to a
    hundredth and a fiftieth; γ stays while nothing was found. (The paper climbs the margin, and sets ε anew from its
    slope while nothing was found: so half of the images of a network were fooled on which this fools all.) Usually
    nearer than Carlini and Wagner's attack, at a tenth of the cost. Multiplying the logits changes nothing, but for the
    loss `ce`.

    As a perturbation it goes towards what it found, no further than eps; with `fool` an image is left once something
    within eps is found.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: How many steps; each costs a forward and backward pass.
        step_size: Length α of the first step.
        shrink: Share γ by which the radius changes at the first step, in [0, 1].
        loss: `scaled_ce`, `margin`, `dlr` or `ce`.

    References:
        Pintor et al. 2021, arXiv:2102.12827; Rony et al. 2019, arXiv:1811.09600 (DDN: the sphere, the cross-entropy).
    """

    eps: float = 0.5
    steps: int = 100
    step_size: float = 1.0
    shrink: float = 0.05
    loss: str = "scaled_ce"
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "step_size", 0.0)
        check_number(self, "shrink", 0.0, 1.0)
        find_loss(self.loss)

    def improve(self, closest: Closest, logits: Tensor, y: Tensor, model: Model) -> None:
        """The steps, from x."""
        ascent = Ascent(model, find_loss(self.loss), classes=logits.shape[1])
        rows = closest.unsolved()
        if not len(rows):
            return
        x, y = closest.x[rows], y[rows]
        _, lead, gradient = ascent(x, y, margin)
        # No image is further away, in [0, 1].
        farthest = math.sqrt(x[0].numel())
        radius = (lead.abs() / L2.length(gradient)).nan_to_num(0).clamp(max=farthest)
        moved = x
        for step in range(self.steps):
            logits, _, gradient = ascent(moved, y)
            fooled = is_fooled(logits, y)
            closest.offer(rows, moved, fooled)
            if closest.enough > 0:
                left = closest.distance[rows] > closest.enough
                rows, x, y, moved, radius = rows[left], x[left], y[left], moved[left], radius[left]
                gradient, fooled = gradient[left], fooled[left]
                if not len(rows):
                    break
            best = closest.distance[rows]
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            gamma = self.shrink * torch.full_like(best, 0.02 + 0.98 * cosine).masked_fill_(best.isinf(), 1)
            radius = torch.where(fooled, torch.minimum(radius, best) * (1 - gamma), radius * (1 + gamma))
            delta = (moved - x).add_(L2.steepest(gradient), alpha=self.step_size * (0.01 + 0.99 * cosine))
            moved = (x + column(radius.clamp(max=farthest), x) * L2.steepest(delta)).clamp_(0, 1)
        ascent.check()
