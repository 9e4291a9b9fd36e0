"""Climbing a loss from the input's side, without leaving a trace on the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, key
from geophone.core.types import Model
from geophone.models.run import check_columns, evaluating, passed, seeded
from geophone.models.stochastic import refuse_frozen
from geophone.perturb.attacks.fold import folded
from geophone.perturb.attacks.losses import Loss, ce, margin
from geophone.perturb.attacks.norms import Norm

FOOLED = 1e-5
"""How far, relative to the largest logit, another class must lead for an example to count as fooled while it is sought.

The network's own answer to the finished example may be rounded differently; 1e-5 is some hundred units in the last
place, so what was left alone in the search is still fooled when it is verified.
"""


@contextmanager
def attacking(model: Model, x: Tensor, rng: Draws) -> Iterator[Model]:
    """What an attack runs inside: gradients on, evaluation mode, randomness of its own, the network made fast.

    Yields the network to attack: a copy with BatchNorm folded into the convolutions where that gives the same logits,
    else the model itself. The model's modes, gradients and the global random state are as they were after the block. A
    stochastic network draws its noise from a stream that `rng` fixes.

    Raises:
        GeophoneError: the network's noise is frozen.
    """
    refuse_frozen(model, "An attack")
    # The noise differs from batch to batch, and is the same whenever this batch comes again.
    noise = key("network", rng.seed, int(rng.index.sum()), len(rng.index))
    with evaluating(model), seeded(noise, x.device), torch.inference_mode(False), torch.enable_grad():
        yield folded(model, x)


class Ascent:
    """Loss, logits and the loss's gradient at images, for one network: what every white-box attack steps by.

    Attributes:
        model: Gives logits `[n, k]`.
        loss: For each image; the gradient is that of the sum, so that no image scales another's.
        draws: Passes that are averaged, more than 1 for stochastic networks (expectation over transformation).
        classes: The least k that the labels allow, when it is known.
    """

    def __init__(self, model: Model, loss: Loss, draws: int = 1, classes: int = 0) -> None:
        self.model, self.loss, self.draws, self.classes = model, loss, draws, classes
        self._sums: list[Tensor] = []  # of each image's gradient, at each call

    def __call__(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[n, k]`, loss `[n]` and gradient like x, each the mean over the draws; of this `loss` if given.

        Raises:
            GeophoneError: the model doesn't give logits for these labels, or passes no gradient on to its input.
        """
        logits, values, gradient = self._once(x, y, loss or self.loss)
        for _ in range(self.draws - 1):
            more = self._once(x, y, loss or self.loss)
            logits, values, gradient = logits + more[0], values + more[1], gradient + more[2]
        # Noted here and read once in `check`, so that a GPU need not wait at each step.
        self._sums.append(each_sum(gradient))
        if self.draws > 1:
            logits, values, gradient = logits / self.draws, values / self.draws, gradient / self.draws
        return logits, values, gradient

    def check(self) -> None:
        """Say so if a gradient was not a number: the sign of NaN is 0, and it would pass for a vanished gradient.

        Raises:
            GeophoneError: a gradient was NaN or infinite.
        """
        check_finite(self._sums)
        self._sums = []

    def _once(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        logits = logits_at(self.model, x, y, self.classes)
        values = loss(logits, y)
        return logits.detach(), values.detach(), input_gradient(values, x)


def input_gradient(values: Float[Tensor, " n"], x: Float[Tensor, "n ..."], again: bool = False) -> Tensor:
    """Gradient of the values' sum with respect to x; `again` keeps the graph for another.

    Raises:
        GeophoneError: the values don't depend on x.
    """
    gradient = None
    if values.requires_grad:
        gradient = torch.autograd.grad(values.sum(), x, retain_graph=again, allow_unused=True)[0]
    if gradient is None:
        raise GeophoneError(
            "the model passes no gradient on to its input, so it cannot be attacked by gradients. Take out what blocks "
            "them (torch.no_grad, .detach(), .data, numpy, rounding), or use an attack without gradients (Square)."
        )
    return gradient


def each_sum(gradient: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """The sum over each image, whatever its layout in memory: not a number where the gradient isn't."""
    return gradient.sum(tuple(range(1, gradient.ndim)))


def check_finite(sums: Sequence[Float[Tensor, " _"]]) -> None:
    """Say so if a sum over an image's gradient, at any of several steps, was not a number.

    Raises:
        GeophoneError: one is NaN or infinite.
    """
    if not sums or bool(torch.cat(list(sums)).isfinite().all()):
        return
    broken, images = max((int((~step.isfinite()).sum()), len(step)) for step in sums)
    raise GeophoneError(
        f"the gradient of the model's loss is NaN or infinite for {broken} of {images} images at a step: check its "
        "weights and its logits. A root or logarithm of the images has no slope at 0: clamp them above it first."
    )


def logits_at(model: Model, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], classes: int = 0) -> Float[Tensor, "n k"]:
    """What the model answers at x, checked, in the dtype of x: every attack asks the network here.

    A network may compute in another dtype (float64, bfloat16, float16), all of it or its last layer; losses and
    margins, and what they are compared with, are of the dtype of the images all the same.

    Raises:
        GeophoneError: the answer isn't logits `[n, k]`, k is 1 or below `classes`, or the model writes to x.
    """
    logits = passed(model, x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise GeophoneError(
            f"an attack needs logits [n, k] with k above every label: the model gave {given} for {len(y)} images. "
            "Check the model's last layer."
        )
    check_columns(logits)
    if logits.shape[1] < classes:
        raise GeophoneError(
            f"an attack needs logits [n, k] with k above every label: the model gave {list(logits.shape)} for {len(y)} "
            f"images with labels up to {classes - 1}. Check the model's last layer and the data set's classes."
        )
    return logits.to(x.dtype)


def classes_of(y: Int[Tensor, " n"]) -> int:
    """The least number of classes that the labels allow.

    Raises:
        GeophoneError: a label is negative.
    """
    lowest, highest = (int(edge) for edge in y.aminmax())
    if lowest < 0:
        raise GeophoneError(f"label {lowest} is negative: labels are 0 … k-1. Check the data set.")
    return highest + 1


def is_fooled(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Tensor:
    """Which images another class leads by more than rounding (`FOOLED`), `[n]`, bool."""
    return margin(logits, y) > FOOLED * logits.abs().amax(1)


def loss_gradient(
    model: Model, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], loss: Loss = ce
) -> Float[Tensor, "n ..."]:
    """Gradient with respect to x of a loss (default cross-entropy), summed over the batch.

    Nothing but x's gradient is computed: parameters keep theirs. Needs gradients to be enabled.

    Raises:
        GeophoneError: the model doesn't give logits for these labels, or passes no gradient on to its input.
    """
    return Ascent(model, loss, classes=classes_of(y))(x, y)[2]


def pgd(
    ascent: Ascent,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    start: Float[Tensor, "n ..."],
    *,
    norm: Norm,
    eps: float,
    steps: int,
    step_size: float,
    stop: bool = False,
) -> Float[Tensor, "n ..."]:
    """Projected gradient ascent in the order of Madry et al. and of foolbox.

        x' ← inside(x' + step_size · steepest(∇ loss)),   `steps` times

    `inside` is the ball around x and [0, 1] together. Costs `steps` forward and backward passes, without the gradients
    of weights.

    Args:
        ascent: The loss to climb, and the network.
        x: Clean images, the centre of the ball.
        y: Their labels.
        start: Where to begin, in the ball and in [0, 1].
        norm: `LINF`, `L2` or `L1`.
        eps: Radius of the ball in the units of x.
        steps: How many steps.
        step_size: Length of a step, in the norm and in the units of x.
        stop: Leave an example as it is once it is fooled, and spend nothing more on it.
    """

    def step(x: Tensor, y: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, gradient = ascent(moved, y)
        return logits, norm.inside(norm.steepest(gradient).mul_(step_size).add_(moved), x, eps)

    if stop:
        return until_fooled(step, x, y, start, steps)
    for _ in range(steps):
        start = step(x, y, start)[1]
    return start


def until_fooled(
    step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    start: Float[Tensor, "n ..."],
    steps: int,
) -> Float[Tensor, "n ..."]:
    """Repeat a step on the examples that are not fooled yet; each is left where it first fooled the network.

    Args:
        step: From `(x, y, moved)` of some examples to the logits at `moved`, and where to go next.
        x: Clean images.
        y: Their labels.
        start: Where to begin.
        steps: How many steps at most.
    """
    out, rows = start.clone(), torch.arange(len(x), device=x.device)
    moved = start
    for _ in range(steps):
        logits, onward = step(x, y, moved)
        fooled = is_fooled(logits, y)
        if bool(fooled.any()):
            out[rows[fooled]] = moved[fooled]
            left = ~fooled
            x, y, rows, onward = x[left], y[left], rows[left], onward[left]
            if not len(rows):
                return out
        moved = onward
    out[rows] = moved
    return out
