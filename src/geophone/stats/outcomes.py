"""What the network answered."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geophone.core.types import Batch
from geophone.stats.statistic import double


@dataclass(frozen=True)
class Outcomes:
    """Right answers, margins and losses, summed per class.

    The margin of an example is its logit minus the largest other logit: positive when the answer is right. The loss is
    the cross-entropy in nats.

    Attributes:
        count: Examples of each class, `[k]`.
        correct: Right answers, `[k]`.
        margin: Sum of margins, `[k]`.
        margin_square: Sum of squared margins, `[k]`.
        loss: Sum of losses, `[k]`.
    """

    count: Int[Tensor, " k"]
    correct: Int[Tensor, " k"]
    margin: Float[Tensor, " k"]
    margin_square: Float[Tensor, " k"]
    loss: Float[Tensor, " k"]

    reads: ClassVar[str] = "logits"

    @classmethod
    def of(cls, batch: Batch) -> "Outcomes":
        """Outcomes of one batch of logits `[n, k]`.

        Raises:
            Unlabelled: the batch has no labels.
        """
        logits = double(batch.x)
        y = batch.labels.to(logits.device)
        rows = torch.arange(len(y), device=y.device)
        own = logits[rows, y]
        others = logits.clone()
        others[rows, y] = -torch.inf
        margin = own - others.amax(1)
        loss = logits.logsumexp(1) - own

        def per_class(values: Tensor) -> Tensor:
            return torch.zeros(logits.shape[1], dtype=values.dtype, device=y.device).index_add_(0, y, values)

        correct = logits.argmax(1) == y
        return cls(
            per_class(torch.ones_like(y)),
            per_class(correct.long()),
            per_class(margin),
            per_class(margin**2),
            per_class(loss),
        )

    def __add__(self, other: "Outcomes") -> "Outcomes":
        return Outcomes(
            self.count + other.count,
            self.correct + other.correct,
            self.margin + other.margin,
            self.margin_square + other.margin_square,
            self.loss + other.loss,
        )

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.count.sum())

    @property
    def d(self) -> int:
        """Number of classes."""
        return len(self.count)
