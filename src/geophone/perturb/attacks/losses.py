"""What an attack climbs: a loss for each image that grows as the network errs.

All but `ce` are scale-free: multiplying the logits by a constant changes neither which way they point nor how an attack
with them ends. Plain cross-entropy is not: its gradient vanishes in float32 where a network is confident, and robust
accuracy then looks high (.56 became .96 in five libraries when logits were multiplied by 100).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError, unknown

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits `[n, k]` and labels `[n]` to what shall grow, `[n]`."""

SPREAD = 10.0
"""The range that `scaled_ce` gives to the logits of an image: its softmax then keeps seven digits in float32."""


def ce(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy, -log softmax(z)_y: the textbook's loss. Its gradient underflows for confident networks."""
    return cross_entropy(logits, y, reduction="none")


def scaled_ce(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of z·10/(max z - min z), the divisor held constant: scale-free, in [0, 10 + log k]."""
    low, high = logits.detach().aminmax(dim=1, keepdim=True)
    # Equal logits, and such as differ by less than a float can divide by, have no spread to bring to a scale.
    spread = torch.where(high - low > 1e4 * torch.finfo(logits.dtype).tiny, high - low, 1)
    return ce((logits - high) / spread * SPREAD, y)


def margin(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The best other class over the true one, max_{j≠y} z_j - z_y; above 0 where the image is misclassified."""
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


def dlr(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Difference of logits ratio, (max_{j≠y} z_j - z_y) / (z_(1) - z_(3)), z_(i) the i-th largest; needs 3 classes.

    References:
        Croce & Hein 2020, arXiv:2003.01690, eq. 6.
    """
    _enough(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp(min=torch.finfo(logits.dtype).tiny)


def targeted_dlr(target: Int[Tensor, " n"]) -> Loss:
    """Towards a class t: (z_t - z_y) / (z_(1) - (z_(3) + z_(4))/2), z_(i) the i-th largest; needs 4 classes.

    References:
        Croce & Hein 2020, arXiv:2003.01690, eq. 7.
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        _enough(logits, 4, "targeted dlr")
        top = logits.topk(4, dim=1).values
        gap = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
        towards = logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
        return towards[:, 0] / gap.clamp(min=torch.finfo(logits.dtype).tiny)

    return loss


LOSSES: dict[str, Loss] = {"scaled_ce": scaled_ce, "margin": margin, "dlr": dlr, "ce": ce}


def find_loss(name: str) -> Loss:
    """A loss by its name.

    Raises:
        GeophoneError: there is none of that name.
    """
    if name not in LOSSES:
        raise unknown("loss", str(name), list(LOSSES), "scaled_ce is the default of most attacks.")
    return LOSSES[name]


def _enough(logits: Tensor, classes: int, name: str) -> None:
    if logits.shape[1] < classes:
        raise GeophoneError(
            f"the loss {name} needs at least {classes} classes and the network has {logits.shape[1]}: use the loss "
            "margin or scaled_ce."
        )
