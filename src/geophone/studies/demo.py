"""The demo: the whole instrument in a few minutes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from geophone.analysis.scores import GROUPS
from geophone.study.study import Sized, study
from geophone.study.tasks import Job
from geophone.train import Training

_NOISE = ("GaussianNoise", "UniformNoise", "SaltAndPepper")


CORRUPTIONS = tuple(name for group in GROUPS.values() for name in group)


_DEMO: dict[str, dict[str, Any]] = {
    "demo": {
        "seeds": 2,
        "dataset": "fashion_mnist_mini",
        "model": "small_cnn(width=8)",
        "training": Training(epochs=3),
        "adversarial": "Adversarial(eps=0.05, steps=3)",
        "images": 600,
        "perturbations": (
            *_NOISE,
            *(f"{name}(severity={severity})" for name in CORRUPTIONS for severity in (1, 3, 5)),
            *("FGSM", "LinfPGD(eps=2/255)", "LinfPGD(eps=8/255)"),
        ),
        "curves": ("LinfPGD",),
    },
    "small": {
        "seeds": 5,
        "dataset": "fashion_mnist_mini",
        "model": "small_cnn(width=16)",
        "training": Training(epochs=10, crop=2),
        "adversarial": "Adversarial(eps=0.05, steps=7)",
        "images": None,
        "perturbations": (*_NOISE, *CORRUPTIONS, "FGSM", "LinfPGD(steps=20)", "L2PGD(steps=20)"),
        "curves": ("LinfAPGD(steps=20)", "L2APGD(steps=20)"),
    },
    "full": {
        "seeds": 10,
        "dataset": "fashion_mnist",
        "model": "resnet20",
        "training": Training(epochs=30, batch_size=256, crop=4, flip=True),
        "adversarial": "Adversarial(eps=0.05, steps=7)",
        "images": None,
        "perturbations": (*_NOISE, *CORRUPTIONS, "FGSM", "LinfPGD(steps=40)", "L2PGD(steps=40)"),
        "curves": ("LinfAPGD", "L2APGD", "LinfSquare"),
    },
}


@study("demo")
@dataclass(frozen=True)
class Demo(Sized):
    """The whole instrument in a few minutes: seven recipes, noise, corruptions and attacks, on real images.

    Sizes: `demo` takes minutes on two cores (2 seeds), `small` about an hour (5 seeds, more images and finer levels),
    `full` the whole of Fashion-MNIST with ResNet20 (10 seeds; best on a GPU).
    """

    question: ClassVar[str] = (
        "Do networks whose inner geometry differs (class selectivity, dimensionality) differ in robustness too?"
    )
    settings: ClassVar[dict[str, dict[str, Any]]] = _DEMO
    RECIPES: ClassVar[tuple[str, ...]] = (
        "Standard",
        "SelectivityRegularised(alpha=-2)",
        "SelectivityRegularised(alpha=-1)",
        "SelectivityRegularised(alpha=1)",
        "SelectivityRegularised(alpha=2)",
        "NoiseAugmented(std=0.2)",
    )

    def jobs(self) -> Sequence[Job]:
        """Every recipe with every seed; all recipes of a seed before the next seed."""
        setting = self.setting
        recipes = (*self.RECIPES, setting["adversarial"])
        return [
            Job(
                dataset=setting["dataset"],
                model=setting["model"],
                recipe=recipe,
                seed=seed,
                training=setting["training"],
                perturbations=setting["perturbations"],
                images=setting["images"],
                curves=setting["curves"],
            )
            for seed in self.seen
            for recipe in recipes
        ]
