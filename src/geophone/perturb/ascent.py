"""Climbing the loss from the input's side, without leaving a trace on the model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from geophone.errors import GeophoneError
from geophone.perturb.norms import Norm
from geophone.types import Model, evaluating


def loss_gradient(
    model: Model, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], classes: int = 0
) -> Float[Tensor, "n ..."]:
    """Gradient with respect to x of the cross-entropy, summed over the batch so that no image scales another's.

    Nothing but x's gradient is computed: parameters keep theirs. Needs gradients to be enabled.

    Args:
        model: Gives logits `[n, k]`.
        x: Images.
        y: Their labels, in 0 … k-1.
        classes: The least k that the labels allow, `y.max() + 1`, when it is known.

    Raises:
        GeophoneError: the model doesn't give logits for these labels, or passes no gradient on to its input.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    if logits.ndim != 2 or len(logits) != len(y) or logits.shape[1] < classes:
        raise GeophoneError(
            f"an attack needs logits [n, k] with k above every label: the model gave {list(logits.shape)} for {len(y)} "
            f"images with labels up to {classes - 1}. Check the model's last layer and the data set's classes."
        )
    loss = cross_entropy(logits, y, reduction="sum")
    gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise GeophoneError(
            "the model passes no gradient on to its input, so it cannot be attacked by gradients. Take out what blocks "
            "them (torch.no_grad, .detach(), .data, numpy, rounding), or leave attacks out."
        )
    return gradient


def pgd(
    model: Model,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    start: Float[Tensor, "n ..."],
    *,
    norm: Norm,
    eps: float,
    steps: int,
    step_size: float,
) -> Float[Tensor, "n ..."]:
    """Projected gradient ascent on the cross-entropy, in the order of Madry et al. and of foolbox.

        x ← clip(x0 + project(x + step_size · steepest(∇ loss) - x0), 0, 1),   `steps` times

    Clipping moves every value towards x0, so it makes no perturbation larger. The model is in evaluation mode, and
    nothing of it changes. Costs `steps` forward and backward passes, without the gradients of weights.

    Args:
        model: Gives logits `[n, k]` for images in [0, 1].
        x: Clean images, the centre of the ball.
        y: Their labels.
        start: Where to begin, in the ball and in [0, 1].
        norm: `LINF` or `L2`.
        eps: Radius of the ball in the units of x.
        steps: How many steps.
        step_size: Length of a step, in the norm and in the units of x.

    Raises:
        GeophoneError: labels out of range, no gradient, or one that is not finite.
    """
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        # Copies, because tensors that were made in inference mode can't have gradients.
        x, moved, y = x.detach().clone(), start.detach().clone(), y.to(torch.int64, copy=True)
        lowest, highest = (int(edge) for edge in y.aminmax())
        if lowest < 0:
            raise GeophoneError(f"label {lowest} is negative: labels are 0 … k-1. Check the data set.")
        finite = torch.ones((), dtype=torch.bool, device=x.device)  # read once, so that a GPU need not wait each step
        for _ in range(steps):
            gradient = loss_gradient(model, moved, y, highest + 1)
            finite &= gradient.sum().isfinite()  # the sign of NaN is 0: it would pass for a zero gradient
            delta = norm.steepest(gradient).mul_(step_size).add_(moved).sub_(x)
            moved = norm.project(delta, eps).add_(x).clamp_(0, 1)
    if not finite:
        raise GeophoneError("the gradient of the model's loss is NaN or infinite: check its weights and its logits.")
    return moved
