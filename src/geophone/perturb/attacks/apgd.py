"""Auto-PGD: projected gradient ascent that chooses its own step size, in the l∞, l2 and l1 ball."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Averages, Model, TakesSteps
from geophone.perturb.attacks.ascent import Ascent, classes_of, is_fooled, logits_at
from geophone.perturb.attacks.base import Attack, check_draws
from geophone.perturb.attacks.losses import Loss, find_loss, margin, targeted_dlr
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.checks import check_number

MOMENTUM = 0.25
"""The share of a step that repeats the step before; the rest goes where the gradient points."""

RISES = 0.75
"""The step size is halved where no more than this share of the steps since the last checkpoint raised the loss."""

DENSEST = 0.2
"""The largest share of values that the first l1 steps change."""

SPARSER = 1.5
"""An l1 step changes this many times fewer values than the best perturbation has; its length falls by the same."""


class Climb(NamedTuple):
    """Where a run of APGD got, for each example.

    Attributes:
        highest: The iterate with the highest loss.
        furthest: The iterate with the largest margin.
        margin: That margin, max_{j≠y} z_j - z_y.
        fooled: Whether an iterate fooled the network.
    """

    highest: Float[Tensor, "n ..."]
    furthest: Float[Tensor, "n ..."]
    margin: Float[Tensor, " n"]
    fooled: Bool[Tensor, " n"]

    def found(self) -> Tensor:
        """The iterate with the largest margin where the network was fooled, else that with the highest loss."""
        return torch.where(_wide(self.fooled, self.furthest), self.furthest, self.highest)


def apgd(
    ascent: Ascent,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    start: Float[Tensor, "n ..."],
    *,
    norm: Norm,
    eps: float,
    steps: int,
    target: Int[Tensor, " n"] | None = None,
    stop: bool = False,
) -> Climb:
    """One run of Auto-PGD.

        z  = inside(x_i + η·steepest(∇ loss))
        x' = inside(x_i + ¾(z - x_i) + ¼(x_i - x_{i-1}))

    η begins at 2·eps. At checkpoints it is halved, and the run goes back to its highest point, where at most ¾ of the
    steps since the last checkpoint raised the loss, or where neither η nor the highest loss has changed since then.
    Checkpoints are as in the authors' code: 22 % of the steps to the first, each next interval 3 % shorter, to 6 %.

    In l1, a step has no momentum and changes only the values with the largest gradients, 1.5 times fewer than the best
    perturbation does. Every 4 % of the steps, where that has become sparser by 5 %, η is set to eps and the run goes
    back to its highest point; elsewhere η is divided by 1.5, down to eps/10.

    Costs `steps` + 1 forward and `steps` backward passes, times the draws of `ascent`.

    Args:
        ascent: The loss to climb, and the network.
        x: Clean images, the centre of the ball.
        y: Their labels.
        start: Where to begin, in the ball and in [0, 1].
        norm: `LINF`, `L2` or `L1`.
        eps: Radius of the ball in the units of x.
        steps: How many steps.
        target: Classes to go to: instead of the loss of `ascent`, the targeted difference of logits ratio is climbed.
        stop: Leave an example once an iterate fools the network, and spend nothing more on it.

    References:
        Croce & Hein 2020, arXiv:2003.01690, Alg. 1; Croce & Hein 2021, arXiv:2103.01208, Alg. 1 (l1).
    """
    run = (_SparseRun if norm.order == 1 else _Run)(x, y, start, target, norm, eps, steps)
    nowhere = start.new_full((len(x),), -math.inf)
    climb = Climb(start.clone(), start.clone(), nowhere, torch.zeros_like(nowhere, dtype=torch.bool))
    for _ in range(steps):
        run.look(ascent)
        if stop and bool(run.fooled.any()):
            run.settle(climb, run.fooled)
            run.keep(~run.fooled)
            if not len(run.rows):
                return climb
        run.go_on()
    run.look(ascent, onward=False)
    run.settle(climb, torch.ones_like(run.fooled))
    return climb


class _Run:
    """The state of a run: each of its tensors has a row for each example that is still attacked."""

    def __init__(
        self, x: Tensor, y: Tensor, start: Tensor, target: Tensor | None, norm: Norm, eps: float, steps: int
    ) -> None:
        self.norm, self.eps, self.steps = norm, eps, steps
        self.rows = torch.arange(len(x), device=x.device)
        self.x, self.y, self.target = x, y, target
        self.at, self.before, self.momentum = start, start, 0.0
        self.highest, self.furthest = start, start
        self.gradient, self.gradient_at_highest = torch.zeros_like(x), torch.zeros_like(x)
        self.loss = x.new_full((len(x),), math.inf)
        self.highest_loss, self.margin = -self.loss, -self.loss
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.since = -1  # steps since the last checkpoint; the start is none
        self.begin()

    def begin(self) -> None:
        """Set what belongs to the step size."""
        self.interval = max(int(0.22 * self.steps), 1)
        self.step_size = _wide(torch.full_like(self.loss, 2 * self.eps), self.x)
        self.rises = torch.zeros_like(self.y)
        self.halved, self.checked_loss = self.fooled, self.highest_loss

    def look(self, ascent: Ascent, onward: bool = True) -> None:
        """Evaluate the network where the run is, with the gradient if it goes on from there, and note what is best."""
        loss = ascent.loss if self.target is None else _towards(self.target)
        if onward:
            logits, values, self.gradient = ascent(self.at, self.y, loss)
        else:
            logits, values = evaluate(ascent, self.at, self.y, loss)
        higher = values > self.highest_loss
        self.rises = self.rises + (values > self.loss)
        self.loss, self.highest_loss = values, values.maximum(self.highest_loss)
        wide = _wide(higher, self.x)
        self.highest = torch.where(wide, self.at, self.highest)
        self.gradient_at_highest = torch.where(wide, self.gradient, self.gradient_at_highest)
        margins = margin(logits, self.y)
        self.furthest = torch.where(_wide(margins > self.margin, self.x), self.at, self.furthest)
        self.margin = margins.maximum(self.margin)
        self.fooled = self.fooled | is_fooled(logits, self.y)
        self.since += 1

    def go_on(self) -> None:
        """Change the step size at a checkpoint, and take a step."""
        if self.since == self.interval:
            self.check()
            self.since = 0
        self.step()

    def check(self) -> None:
        """Halve the step size where it has not served."""
        few = self.rises <= RISES * self.interval
        stuck = ~self.halved & (self.checked_loss >= self.highest_loss)
        self.halved, self.checked_loss = few | stuck, self.highest_loss
        self.rises = torch.zeros_like(self.rises)
        self.step_size = torch.where(_wide(self.halved, self.x), self.step_size / 2, self.step_size)
        self.go_back(self.halved)
        self.interval = max(self.interval - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))

    def step(self) -> None:
        """Take a step."""
        moved = self.norm.inside(self.at + self.step_size * self.norm.steepest(self.gradient), self.x, self.eps)
        moved = self.at + (1 - self.momentum) * (moved - self.at) + self.momentum * (self.at - self.before)
        self.before, self.at = self.at, self.norm.inside(moved, self.x, self.eps)
        self.momentum = MOMENTUM

    def go_back(self, where: Bool[Tensor, " n"]) -> None:
        """Return to the highest point."""
        wide = _wide(where, self.x)
        self.at = torch.where(wide, self.highest, self.at)
        self.gradient = torch.where(wide, self.gradient_at_highest, self.gradient)

    def settle(self, climb: Climb, which: Bool[Tensor, " n"]) -> None:
        """Write down what was found for some of the examples."""
        rows = self.rows[which]
        for name in Climb._fields:
            getattr(climb, name)[rows] = getattr(self, name)[which]

    def keep(self, left: Bool[Tensor, " n"]) -> None:
        """Drop all other examples."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[left])


class _SparseRun(_Run):
    """A run in the l1 ball."""

    def begin(self) -> None:
        self.interval = max(int(0.04 * self.steps), 1)
        self.step_size = _wide(torch.full_like(self.loss, self.eps), self.x)
        self.rises = torch.zeros_like(self.y)
        self.support = self.changed()
        self.share = self.sparser().clamp(max=DENSEST)

    def changed(self) -> Int[Tensor, " n"]:
        """How many values the best perturbation changes, by more than rounding."""
        return ((self.highest - self.x).abs() > 1e-6 * self.eps).flatten(1).sum(1)

    def sparser(self) -> Float[Tensor, " n"]:
        """The share of values that a step changes."""
        return self.support.to(self.x.dtype) / self.x[0].numel() / SPARSER

    def check(self) -> None:
        support = self.changed()
        fewer = support < 0.95 * self.support
        shorter = (self.step_size / SPARSER).clamp(min=self.eps / 10)
        self.step_size = torch.where(_wide(fewer, self.x), self.eps, shorter)
        self.support = support
        self.share = self.sparser()
        self.go_back(fewer)

    def step(self) -> None:
        flat = self.gradient.flatten(1)
        size = flat.abs()
        rank = ((1 - self.share) * flat.shape[1]).long().clamp(max=flat.shape[1] - 1)
        smallest = size.sort(dim=1).values.gather(1, rank[:, None])
        direction = torch.where(size >= smallest, flat.sign(), 0)
        direction = direction / direction.abs().sum(1, keepdim=True).clamp(min=1)
        self.at = self.norm.inside(self.at + self.step_size * direction.reshape(self.x.shape), self.x, self.eps)


@dataclass(frozen=True)
class _APGD(Attack, Averages, TakesSteps):
    """What the norms share."""

    steps: int = 50
    loss: str = "scaled_ce"
    targets: int = 0
    draws: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps", 1.0)
        check_number(self, "targets", 0.0)
        check_draws(self)
        find_loss(self.loss)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """One run from a random start, or one for each target."""
        ascent = Ascent(model, _climbable(self.loss), self.averaged(model), classes_of(y))
        if self.targets:
            found = self._to_targets(ascent, x, y, rng, stop)
        else:
            found = self.climb(ascent, x, y, rng, None, stop).found()
        ascent.check()
        return found

    def climb(self, ascent: Ascent, x: Tensor, y: Tensor, rng: Draws, target: Tensor | None, stop: bool) -> Climb:
        """One run from a random start in the ball."""
        start = self.norm.inside(x + self.eps * self.norm.uniform(rng, x), x, self.eps)
        return apgd(*(ascent, x, y, start), norm=self.norm, eps=self.eps, steps=self.steps, target=target, stop=stop)

    def _to_targets(self, ascent: Ascent, x: Tensor, y: Tensor, rng: Draws, stop: bool) -> Tensor:
        """One run to each target; of each example the run with the largest margin."""
        logits, _ = evaluate(ascent, x, y, margin)
        wrong = logits.scatter(1, y[:, None], -math.inf)
        targets = wrong.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        found, largest = x.clone(), x.new_full((len(x),), -math.inf)
        rows = torch.arange(len(x), device=x.device)
        for number, target in enumerate(targets.unbind(1)):
            climb = self.climb(ascent, x[rows], y[rows], rng[rows].child("target", number), target[rows], stop)
            better = climb.margin > largest[rows]
            found[rows[better]], largest[rows[better]] = climb.found()[better], climb.margin[better]
            if stop:
                rows = rows[~climb.fooled]
                if not len(rows):
                    break
        return found


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfAPGD(_APGD):
    """Auto-PGD in the l-infinity ball: signed steps with momentum and a step size that halves when it stops helping.

    From a random start; see `apgd` for the steps. The result is, of all iterates, the one with the largest margin
    max_{j≠y} z_j - z_y if any fooled the network, else the one with the highest loss. Costs `steps` + 1 forward and
    `steps` backward passes; with targets that for each, and a forward pass.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        steps: How many steps, at least 1; AutoAttack takes 100.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`, of the attack without targets; AutoAttack's is `ce`.
        targets: 0 for no targets. Else a run for each of this many wrong classes, the likeliest at the image, with the
            targeted difference of logits ratio; of each example the run with the largest margin is kept.
        draws: Passes that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    Where a network has too few classes for `scaled_ce` and `dlr` (3; 4 with targets), a margin is climbed.

    References:
        Croce & Hein 2020, arXiv:2003.01690.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2APGD(_APGD):
    """Auto-PGD in the l2 ball: normalised steps with momentum and a step size that halves when it stops helping.

    Its result, its cost and its fields are those of `LinfAPGD`.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        steps: How many steps, at least 1; AutoAttack takes 100.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`, of the attack without targets; AutoAttack's is `ce`.
        targets: 0 for no targets, else a run for each of this many wrong classes, the likeliest at the image.
        draws: Passes that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Croce & Hein 2020, arXiv:2003.01690.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2


@PERTURBATIONS.register
@dataclass(frozen=True)
class L1APGD(_APGD):
    """Auto-PGD in the l1 ball: sparse steps whose sparsity follows the best perturbation.

    The first 30 % of the steps are taken in the ball of radius 3·eps, the next 30 % in that of 2·eps, each run from the
    highest point of the one before, brought into the smaller ball. Its result and its fields are those of `LinfAPGD`;
    with 4 steps or more it costs 2 forward passes more.

    Attributes:
        eps: Largest sum of absolute changes of an image's values, at least 0.
        steps: How many steps, at least 1; AutoAttack takes 100.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`, of the attack without targets; AutoAttack's is `ce`.
        targets: 0 for no targets, else a run for each of this many wrong classes, the likeliest at the image.
        draws: Passes that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).

    References:
        Croce & Hein 2021, arXiv:2103.01208.
    """

    eps: float = 12.0
    levels: ClassVar[tuple[float, ...]] = (3.0, 6.0, 12.0, 24.0)
    norm: ClassVar[Norm] = L1

    def climb(self, ascent: Ascent, x: Tensor, y: Tensor, rng: Draws, target: Tensor | None, stop: bool) -> Climb:
        """Runs in three balls, from the largest to that of radius eps."""
        early = 3 * self.steps // 10
        phases = [(3 * self.eps, early), (2 * self.eps, early)] if early else []
        phases.append((self.eps, self.steps - 2 * early))
        start = x + phases[0][0] * self.norm.uniform(rng, x)
        for radius, steps in phases:
            climb = apgd(
                *(ascent, x, y, self.norm.inside(start, x, radius)),
                norm=self.norm,
                eps=radius,
                steps=steps,
                target=target,
                stop=stop and radius == self.eps,
            )
            start = climb.highest
        return climb


def evaluate(
    ascent: Ascent, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], loss: Loss
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """Logits and loss, each the mean over the draws, without the gradient."""
    with torch.no_grad():
        draws = [logits_at(ascent.model, x, y, ascent.classes) for _ in range(ascent.draws)]
        losses = [loss(logits, y) for logits in draws]
    if len(draws) == 1:
        return draws[0], losses[0]
    return torch.stack(draws).mean(0), torch.stack(losses).mean(0)


def _climbable(name: str) -> Loss:
    """The loss of that name; the margin for networks that have too few classes for it.

    With 2 classes the scaled cross-entropy has a gradient, but only two values; the difference of logits ratio needs 3.
    """
    loss = find_loss(name)
    if name not in ("scaled_ce", "dlr"):
        return loss
    return lambda logits, y: loss(logits, y) if logits.shape[1] > 2 else margin(logits, y)


def _towards(target: Int[Tensor, " n"]) -> Loss:
    ratio: Callable[[Tensor, Tensor], Tensor] = targeted_dlr(target)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        if logits.shape[1] > 3:
            return ratio(logits, y)
        return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]

    return loss


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One value for each example, so that it broadcasts over `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
