"""Study III: the geometry of class and exemplar manifolds, and noise inside the network as a defence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from geophone.analysis.claims import AtHalf, Best, Claim, Difference, Increasing, Measure, Rule, Selection
from geophone.perturb import grid
from geophone.perturb.parse import family_name
from geophone.study.study import Sized, study
from geophone.study.tasks import Job
from geophone.train import Training

SOURCE = "Dapello et al. 2021, arXiv:2111.06979"

CLASS_METRICS = (
    *("manifold_capacity", "manifold_radius", "manifold_dimension"),
    *("center_correlation", "manifold_center_rank", "manifold_capacity_floor"),
)

_SMALL_CNN = ("normalise", *(f"relu{i}" for i in range(1, 7)), "head")
_RESNET18 = ("normalise", "relu1", *(f"layer{i}" for i in range(1, 5)), "head")


class Front(NamedTuple):
    """Networks behind a front end of their own, with what is asked of them.

    Attributes:
        model: As code.
        layers: Those recorded.
        attack: Under which accuracy is compared.
        recipes: That without noise, then those with it.
    """

    model: str
    layers: tuple[str, ...]
    attack: str
    recipes: tuple[str, ...]


@study("geometry")
@dataclass(frozen=True)
class PopulationGeometry(Sized):
    """Manifolds of classes and of single images in standard, robust and stochastic networks: noise as a defence.

    Sizes: `demo` takes minutes on two cores (2 seeds: too few to decide anything), `small` most of an hour (5 seeds,
    the small network on the Fashion-MNIST subset), `full` ResNet18 on CIFAR-10 with the settings of the paper's code, 5
    seeds; a GPU and the data are needed. Data, networks, lengths of training and strengths of noise of the first two
    are ours. The strengths were chosen by the clean accuracy of one network each, up to 4 (0.5: hardly lower; 4:
    clearly), and doubled twice more, so that the curve is seen to fall. The paper's second modality, audition, is not
    tested. A network behind a model of V1 is in `full` only.

    Attributes:
        size: `demo`, `small` or `full`.
        seeds: Default those of the size.
    """

    question: ClassVar[str] = (
        "Do noise inside a network and adversarial training make it robust by different geometries, and is there a "
        "best amount of noise?"
    )
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "demo": {
            "seeds": 2,
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "layers": _SMALL_CNN,
            "training": Training(epochs=2, keep="last"),
            "adversarial": "Adversarial(eps=8/255, steps=3)",
            "noisy": "relu1",
            "strengths": (1, 4),
            "central": 1,
            "others": (),
            "front": (),
            "steps": 5,
            "eps": ("2/255", "6/255", "8/255"),
            "images": 300,
            "exemplars": 20,
            "copies": 30,
            "features": 500,
        },
        "small": {
            "seeds": 5,
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "layers": _SMALL_CNN,
            "training": Training(epochs=5, keep="last"),
            "adversarial": "Adversarial(eps=8/255, steps=5)",
            "noisy": "relu1",
            "strengths": (0.5, 1, 2, 4, 8, 16),
            "central": 2,
            "others": (
                *(f"Stochastic(std=1, layer='{layer}')" for layer in ("normalise", "relu3", "relu5")),
                "Stochastic(noise='neuronal', layer='relu1')",
            ),
            "front": (),
            "steps": 10,
            "eps": ("2/255", "6/255", "8/255"),
            "images": 500,
            "exemplars": 25,
            "copies": 40,
            "features": 1000,
        },
        "full": {
            "seeds": 5,
            "dataset": "cifar10",
            "model": "resnet18",
            "layers": _RESNET18,
            "training": Training(
                epochs=150, batch_size=128, warmup=0.0, milestones=(75, 115), crop=4, flip=True, keep="last"
            ),
            "adversarial": "Adversarial(eps=8/255, steps=7)",
            "noisy": "relu1",
            "strengths": (0.5, 1, 2, 4, 8, 16),
            "central": 2,
            "others": (
                *(f"Stochastic(std=1, layer='{layer}')" for layer in ("normalise", "layer2", "layer4")),
                "Stochastic(noise='neuronal', layer='relu1')",
            ),
            "front": (
                Front(
                    "vone_cnn(width=32, simple=256, complex=256)",
                    ("normalise", "vone.noise", "relu?", "head"),
                    "LinfPGD(eps=8/255, steps=16)",
                    ("Standard", "Stochastic(std=4, layer='vone.noise')"),
                ),
            ),
            "steps": 16,
            "eps": ("1/255", "2/255", "4/255", "8/255"),
            "images": 10_000,
            "exemplars": 100,
            "copies": 50,
            "features": 2000,
        },
    }

    @property
    def differs(self) -> str:
        """Where the setting differs from the paper's."""
        setting = self.setting
        if self.size == "full":
            return (
                f"CIFAR-10 with ResNet18 only, noise after its first ReLU; {len(self.seen)} seeds of training, where "
                "the paper repeats projection and analysis; strengths of noise are ours"
            )
        return (
            "A subset of Fashion-MNIST (28 × 28 grey, 9,000 training images) and a network of 6 convolutions in place "
            f"of CIFAR-10 and ImageNet with ResNets; {setting['training'].epochs} epochs; {len(self.seen)} seeds; "
            f"{setting['images']} test images, 10 class manifolds of {setting['images'] // 10} points; "
            f"{setting['exemplars']} exemplars of {setting['copies']} copies in at most {setting['features']} "
            "dimensions; strengths of noise are ours, chosen by clean accuracy"
        )

    def noise(self, strength: int | float) -> str:
        """The recipe of one strength of Gaussian noise; its number comes first, so that they make a sweep."""
        return f"Stochastic(std={strength:g}, layer='{self.setting['noisy']}')"

    def sweep(self) -> tuple[str, ...]:
        """The recipes of all strengths, ascending."""
        return tuple(map(self.noise, self.setting["strengths"]))

    def recipes(self) -> tuple[str, ...]:
        """All recipes of the first network."""
        return ("Standard", self.setting["adversarial"], *self.sweep(), *self.setting["others"])

    def job(self, recipe: str, seed: int, front: Front | None = None) -> Job:
        """One network, by default without a front end of its own."""
        setting = self.setting
        most = setting["eps"][-1]
        attacks = [many_steps(eps, setting["steps"]) for eps in setting["eps"]]
        return Job(
            dataset=setting["dataset"],
            model=setting["model"] if front is None else front.model,
            recipe=recipe,
            seed=seed,
            training=setting["training"],
            perturbations=(f"RandomSign(eps={most})", *(attacks if front is None else [front.attack])),
            layers=setting["layers"] if front is None else front.layers,
            metrics=("accuracy", *CLASS_METRICS),
            images=setting["images"],
            exemplars=(f"RandomSign(eps={most})", *map(one_step, (setting["eps"][0], most))),
            exemplar_images=setting["exemplars"],
            exemplar_copies=setting["copies"],
            features=setting["features"],
        )

    def jobs(self) -> Sequence[Job]:
        """Every recipe with every seed, then the network with another front end."""
        return [
            *(self.job(recipe, seed) for seed in self.seen for recipe in self.recipes()),
            *(
                self.job(recipe, seed, front)
                for seed in self.seen
                for front in self.setting["front"]
                for recipe in front.recipes
            ),
        ]

    def claims(self) -> Sequence[Claim]:
        """The claims 1, 3 and 4 of the specification's §5.3 and the directions of §5.2, fixed before anything ran."""
        return geometry_claims(self)


def many_steps(eps: str, steps: int) -> str:
    """The attack on the images of class manifolds, whose accuracy is compared."""
    return f"LinfPGD(eps={eps}, steps={steps})"


def _named(attack: str) -> str:
    """An attack's name in the table."""
    return family_name(grid(attack)[0])


def one_step(eps: str) -> str:
    """One signed step of length eps from a random start in the ball of eps, by one gradient: as the paper's code."""
    return f"LinfPGD(eps={eps}, steps=1, step_size={_number(eps):.4g}, draws=1)"


def _number(eps: str) -> float:
    above, _, below = eps.partition("/")
    return float(above) / float(below)


def geometry_claims(made: PopulationGeometry) -> list[Claim]:
    """Claims on exemplar manifolds, their overlap, class manifolds and the trade-off."""
    setting = made.setting
    robust, central, sweep = setting["adversarial"], made.noise(setting["central"]), made.sweep()
    weakest, strongest = sweep[0], sweep[-1]
    layers: tuple[str, ...] = setting["layers"]
    place = layers.index(setting["noisy"])

    def depths(start: int, stop: int, pixels: bool) -> tuple[float, float]:
        """The share of depth that holds the layers from one to before another; exemplars have one more, the pixels."""
        n, start, stop = len(layers) + pixels, start + pixels, stop + pixels
        return round((start - 0.5) / n, 3), round((stop - 0.5) / n, 3) if stop < n else 1.0

    everywhere = (0.0, 1.0)
    noisy, after = (depths(i, len(layers), pixels=True) for i in (place, place + 1))
    class_noisy = depths(place, len(layers), pixels=False)
    at_noise = depths(place, place + 1, pixels=False)
    most = _number(setting["eps"][-1])

    def exemplar(metric: str, layers: tuple[float, float], family: str = "attack", **more: Any) -> Measure:
        pattern = "LinfPGD(steps=1, *" if family == "attack" else "RandomSign"
        return Measure(metric, family, pattern, layers=layers, **more)

    def classes(metric: str, layers: tuple[float, float]) -> Measure:
        return Measure(metric, layers=layers)

    def more(measure: Measure, than: str = "Standard", of: str = central, sign: int = 1) -> Difference:
        return Difference(Selection(measure, of), Selection(measure, than), sign=sign)

    def claim(
        name: str, place: str, statement: str, *tests: tuple[str, Rule], assumptions: str = "", model: str = ""
    ) -> Claim:
        where = f"{SOURCE}; {place}"
        return Claim(name, where, statement, tests, made.differs, assumptions, model=model or setting["model"])

    attacked = Measure("accuracy", "attack", _named(many_steps(setting["eps"][0], setting["steps"])), level=AtHalf())
    ours = "Of the strengths, the one that stands for all was fixed beforehand"
    claims = [
        claim(
            "adversarial training keeps exemplar manifolds small",
            "specification §5.3, claim 1",
            "Attacked copies of an image stay closer together in an adversarially trained network than in a standard "
            "one.",
            ("radius", more(exemplar("exemplar_radius", everywhere), of=robust, sign=-1)),
            ("width", more(exemplar("exemplar_width", everywhere), of=robust, sign=-1)),
            assumptions=(
                "Mean over all layers and radii of the attack, each network attacked by its own gradients. Width is "
                "taken to be R·√D. That they are stable over layers and radii has no test."
            ),
        ),
        claim(
            "noise expands exemplar manifolds",
            "specification §5.3, claim 1",
            "From the noisy layer on, copies of an image lie further apart in a stochastic network than in a standard "
            "one.",
            ("width, attacked", more(exemplar("exemplar_width", noisy))),
            ("width, random signs", more(exemplar("exemplar_width", noisy, "noise"))),
            assumptions=f"{ours}: {central}. Compare the claim on layers after the noise, which says the opposite.",
        ),
        claim(
            "clean and attacked copies overlap",
            "specification §5.3, claim 3",
            "From the noisy layer on, a linear classifier tells clean and attacked copies of an image apart less well "
            "in a stochastic network than in a standard one, and the less, the more noise.",
            ("than standard", more(exemplar("clean_separability", noisy), sign=-1)),
            ("over strengths", Increasing(exemplar("clean_separability", noisy), ("Standard", *sweep), -1, effect=4.0)),
            assumptions=(
                "Held-out accuracy of a linear support vector machine in two folds: the paper's protocol is not known "
                "to us. In a standard network the clean copies are one point."
            ),
        ),
        claim(
            "noise enlarges class manifolds",
            "specification §5.3, claim 4",
            "From the noisy layer on, manifolds of classes have a larger radius and dimension and a smaller capacity "
            "the more noise there is, and clean accuracy falls.",
            ("radius", more(classes("manifold_radius", class_noisy), weakest, strongest)),
            ("dimension", more(classes("manifold_dimension", class_noisy), weakest, strongest)),
            ("capacity", more(classes("manifold_capacity", class_noisy), weakest, strongest, sign=-1)),
            ("clean accuracy", more(Measure("accuracy"), of=strongest, sign=-1)),
            assumptions="The strongest noise against the weakest, clean images; accuracy against the standard network.",
        ),
        claim(
            "noise makes networks robust",
            "specification §5.3, claims 2 and 4",
            "A stochastic network is more accurate under attack than a standard one.",
            ("attacked accuracy", more(attacked)),
            assumptions=(
                f"{ours}: {central}. Attacks average gradients over the noise. At the radius where the standard "
                "network keeps about half of its accuracy."
            ),
        ),
        claim(
            "the noisy layer scatters classes",
            "specification §5.2",
            "In the noisy layer, capacity of class manifolds is lower and their dimension higher than in the same "
            "layer of a standard network.",
            ("capacity", more(classes("manifold_capacity", at_noise), sign=-1)),
            ("dimension", more(classes("manifold_dimension", at_noise))),
            assumptions=f"{ours}: {central}. Clean images, where the paper's numbers are of attacked ones.",
        ),
        claim(
            "after the noise exemplar manifolds are no larger",
            "specification §5.2",
            "In the layers after the noisy one, exemplar manifolds have a higher capacity and a smaller radius in a "
            "stochastic network than in a standard one.",
            ("capacity", more(exemplar("exemplar_capacity", after, level=most))),
            ("radius", more(exemplar("exemplar_radius", after, level=most), sign=-1)),
            assumptions=(
                f"{ours}: {central}. The direction of the released numbers; the paper's summary says that noise "
                "expands exemplar manifolds, which is a claim of its own here."
            ),
        ),
    ]
    if len(sweep) > 2:
        best = {
            end: Best(attacked, sweep[1:-1], end, effect=3.0) for end in ("Standard", strongest)
        }  # 3: what 5 seeds find among four candidates
        claims.append(
            claim(
                "there is a best amount of noise",
                "specification §5.3, claim 4",
                "Accuracy under attack is highest at a strength of noise between none and the strongest.",
                ("above none", best["Standard"]),
                ("above the strongest", best[strongest]),
                assumptions=(
                    "The best of the strengths between, found with correction for their number, against either end. "
                    "Where the optimum lies depends on the strengths."
                ),
            )
        )
    if setting["others"]:
        claims.append(
            claim(
                "noise in other places and of another kind helps too",
                "ours",
                "Networks with noise elsewhere, or with noise whose variance grows with the response, are more "
                "accurate under attack than a standard one.",
                *((_short(recipe), more(attacked, of=recipe)) for recipe in setting["others"]),
            )
        )
    for front in setting["front"]:
        plain, *noisier = front.recipes
        hurt = Measure("accuracy", "attack", _named(front.attack), level=most)
        claims.append(
            claim(
                "noise after a model of V1",
                "specification §5.2",
                "The network behind a fixed model of primary visual cortex is more accurate under attack with noise in "
                "that model than without.",
                *((_short(recipe), more(hurt, plain, recipe)) for recipe in noisier),
                assumptions=(
                    f"Attack: {front.attack}. Cells, pixels and noise are ours. Not fixed blind: accuracies of a small "
                    "network of this kind were seen before."
                ),
                model=front.model,
            )
        )
    return claims


def _short(recipe: str) -> str:
    """What tells a stochastic recipe from others."""
    return recipe.removeprefix("Stochastic(").removesuffix(")").replace("'", "")
