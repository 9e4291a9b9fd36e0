"""A small study that uses every part of the instrument, for `scripts/same_table.py`: half a minute a network.

geophone run scripts/yardstick.py --threads 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from geophone import Job, Training
from geophone.study import study
from geophone.study.comparison import Comparison, LayerMap

COMMON: dict[str, Any] = {
    "dataset": "fashion_mnist_mini",
    "model": "small_cnn(width=4)",
    "training": Training(epochs=2, crop=2, snapshots=(1,)),
    "perturbations": ("GaussianNoise(std=0.1)", "gaussian_blur(severity=2)", "LinfPGD(eps=8/255, steps=3)", "FGSM"),
    "images": 300,
    "batch_size": 64,
    "curves": ("LinfPGD(steps=3)",),
    "gradients": 40,
    "exemplars": ("RandomSign(eps=8/255)", "LinfPGD(eps=8/255, steps=3)"),
    "exemplar_images": 12,
    "exemplar_copies": 20,
    "features": 100,
}
RECIPES = (
    "Standard",
    "SelectivityRegularised(alpha=-1)",
    "Adversarial(eps=8/255, steps=2)",
    "FastAdversarial",
    "Stochastic(std=1, layer='relu2')",
)


@study("yardstick")
@dataclass(frozen=True)
class Yardstick:
    """Five recipes, one of them stochastic, with curves, gradients, exemplar manifolds, pairs and layer maps."""

    question: ClassVar[str] = "Does another commit give the same table?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None

    def jobs(self) -> Sequence[Job]:
        """Each recipe once."""
        return [Job(recipe=recipe, seed=seed, **COMMON) for seed in (self.seeds or (0,)) for recipe in RECIPES]

    def comparisons(self) -> Sequence[Comparison | LayerMap]:
        """A pair, and a layer map of each kind."""
        plain, selective, robust, _, noisy = self.jobs()[: len(RECIPES)]
        size: dict[str, Any] = {"images": 128, "batch_size": 32}
        return [
            Comparison(plain, selective),
            LayerMap(plain, gap=True, **size),
            LayerMap(plain, robust, beside="the robust network", **size),
            LayerMap(robust, perturbation="LinfPGD(eps=8/255, steps=3)", **size),
            LayerMap(plain, epoch=1, **size),
            LayerMap(noisy, **size),
        ]
