"""A study of your own: how noise in training changes robustness to other noise.

geophone run examples/my_study.py --seeds 0,1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from geophone import Job, Training
from geophone.study import study


@study("noise_sweep")
@dataclass(frozen=True)
class NoiseSweep:
    """Networks trained with noise of four strengths, shaken with other noise and FGSM."""

    question: ClassVar[str] = "Does training with Gaussian noise help against other perturbations?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None

    def jobs(self) -> Sequence[Job]:
        """One job per strength and seed."""
        return [
            Job(
                dataset="fashion_mnist_mini",
                model="small_cnn(width=8)",
                recipe=f"NoiseAugmented(std={std})",
                seed=seed,
                training=Training(epochs={"demo": 2, "small": 10, "full": 30}[self.size]),
                perturbations=("GaussianNoise", "SaltAndPepper", "FGSM"),
                images=500 if self.size == "demo" else None,
            )
            for seed in (self.seeds or (0, 1))
            for std in (0, 0.1, 0.2, 0.4)
        ]
