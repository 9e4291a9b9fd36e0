"""A plug-in: one file that adds a metric, a perturbation and a recipe.

geophone list metrics --plugin examples/plugin.py
geophone scan examples/my_model.py:make_model fashion_mnist_mini --plugin examples/plugin.py --perturb "Fade, LinfPGD"
python -m geophone.testing examples/plugin.py
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from geophone import PERTURBATIONS, RECIPES, Recipe, metric
from geophone.stats import Moments


@metric(Moments)
def total_variance(moments: Moments) -> float:
    """Sum over units of the variance of their responses over images. In squared units of the response."""
    return float(moments.trace) / max(moments.n - 1, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class Fade:
    """Fade to black: x' = (1 - amount) · x."""

    amount: float = 0.3
    level: ClassVar[str] = "amount"
    levels: ClassVar[tuple[float, ...]] = (0.2, 0.4, 0.6, 0.8)
    family: ClassVar[str] = "corruption"

    def __call__(self, x: Tensor, y: Tensor, model: object, rng: object) -> Tensor:
        """Darker images."""
        return x * (1 - self.amount)


@RECIPES.register
@dataclass(frozen=True)
class LabelSmoothing(Recipe):
    """Cross-entropy with smoothed labels (arXiv:1512.00567)."""

    smoothing: float = 0.1

    def loss(self, model, x: Tensor, y: Tensor, rng: object) -> Tensor:
        """Mean cross-entropy against smoothed labels."""
        return cross_entropy(model(x), y, label_smoothing=self.smoothing)
