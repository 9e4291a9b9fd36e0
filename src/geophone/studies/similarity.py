"""Study II: what robust training does to the similarity of layers. The findings of the robust-similarity study."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from geophone.analysis.claims import Claim, Difference, Increasing, Measure, Selection
from geophone.study.comparison import TRAIN_TEST_GAP, LayerMap
from geophone.study.study import Sized, study
from geophone.study.tasks import Job
from geophone.train import Training

ALL_LAYERS = ("conv?", "norm?", "relu?", "pool", "head")
"""Convolutions, batch norms, activations, pooling and the linear layer of the small network."""

OF_WIDE = ("conv1", "stage*.*.*", "norm", "relu", "pool", "head")
"""The 80 layers of a WideResNet-28 in the robust-similarity study: no sums of blocks."""

EARLY, LATE = (0.0, 1 / 3), (2 / 3, 1.0)
SOURCE = "Cianfarani et al. 2022, arXiv:2206.09868"
HIGH = 0.9
"""What counts as "hardly changed": ours, fixed before anything was run."""


@study("similarity")
@dataclass(frozen=True)
class RobustSimilarity(Sized):
    """Layers of robust and of standard networks side by side: threat models, radii, widths, epochs, seeds.

    Sizes: `demo` takes minutes on two cores (2 seeds: too few to decide anything), `small` an hour or so (5 seeds, the
    small network and narrow WideResNet-10s on the Fashion-MNIST subset), `full` WideResNet-28-4 and other widths on
    CIFAR-10, 5 seeds; a GPU and the data are needed. Data, networks and lengths of training of the first two are ours;
    the paper's hyper-parameters of training are not known to us.

    Attributes:
        size: `demo`, `small` or `full`.
        seeds: Default those of the size.
    """

    question: ClassVar[str] = (
        "Do the layers of robust networks resemble each other more, and those of networks robust to other threats?"
    )
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "demo": {
            "seeds": 2,
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "layers": ALL_LAYERS,
            "training": Training(epochs=2, snapshots=(1,), keep="last"),
            "eps": ("8/255",),
            "main": "8/255",
            "steps": 3,
            "threats": (),
            "recipes": ("FastAdversarial(eps=8/255)",),
            "wide": (),
            "widths": (),
            "wide_training": Training(epochs=1, keep="last"),
            "shakes": ("LinfPGD(eps=8/255, steps=10)",),
            "images": 256,
            "batch_size": 32,
        },
        "small": {
            "seeds": 5,
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "layers": ALL_LAYERS,
            "training": Training(epochs=5, snapshots=(1, 2, 3, 4), keep="last"),
            "eps": ("4/255", "8/255", "16/255"),
            "main": "8/255",
            "steps": 5,
            "threats": (
                "Adversarial(attack='L2PGD(eps=0.5, steps=5)')",
                "Adversarial(attack='L1PGD(eps=5, steps=5)')",
                "Corrupted",
            ),
            "recipes": (
                "Trades(eps=8/255, steps=5)",
                "Mart(eps=8/255, steps=5)",
                "FastAdversarial(eps=8/255)",
            ),
            "wide": (1, 4),
            "wide_model": "wide_resnet(depth=10, width={}, first=4)",
            "wide_training": Training(epochs=3, keep="last"),
            "shakes": ("LinfPGD(eps=8/255, steps=20)", "gaussian_noise(severity=3)"),
            "images": 512,
            "batch_size": 64,
        },
        "full": {
            "seeds": 5,
            "dataset": "cifar10",
            "model": "wide_resnet(depth=28, width=4)",
            "layers": OF_WIDE,
            "training": Training(
                epochs=100,
                batch_size=128,
                warmup=0.0,
                milestones=(75, 90),
                crop=4,
                flip=True,
                snapshots=tuple(range(10, 100, 10)),
                keep="last",
            ),
            "eps": ("2/255", "4/255", "8/255", "12/255"),
            "main": "8/255",
            "steps": 10,
            "threats": (
                "Adversarial(attack='L2PGD(eps=1.0, steps=10)')",
                "Adversarial(attack='L1PGD(eps=12, steps=10)')",
                "Corrupted",
            ),
            "recipes": ("Trades(eps=8/255)", "Mart(eps=8/255)", "FastAdversarial(eps=8/255)"),
            "wide": (1, 2, 8, 10),
            "wide_model": "wide_resnet(depth=28, width={})",
            "wide_training": Training(
                epochs=100, batch_size=128, warmup=0.0, milestones=(75, 90), crop=4, flip=True, keep="last"
            ),
            "shakes": ("LinfPGD(eps=0.031, step_size=0.0078, steps=20)", "gaussian_noise(severity=3)"),
            "images": 10_000,
            "batch_size": 1024,
        },
    }

    @property
    def differs(self) -> str:
        """Where the setting differs from the paper's."""
        if self.size == "full":
            return f"{len(self.seen)} seeds; the paper's training is not known to us"
        return (
            "A subset of Fashion-MNIST (28 × 28 grey, 9,000 training images) and a network of 6 convolutions in place "
            f"of CIFAR-10, ImageNette and ImageNet with WideResNet-28; {self.setting['training'].epochs} epochs; "
            f"{len(self.seen)} seeds; {self.setting['images']} of 2,000 test images in batches of "
            f"{self.setting['batch_size']}; images are normalised inside the network"
        )

    def against(self, eps: str) -> str:
        """The recipe of one radius in the l∞ ball."""
        return f"Adversarial(eps={eps}, steps={self.setting['steps']})"

    def recipes(self) -> tuple[str, ...]:
        """All recipes of the first network."""
        setting = self.setting
        return ("Standard", *map(self.against, setting["eps"]), *setting["threats"], *setting["recipes"])

    def yardstick(self, seed: int) -> int:
        """The seed of another standard and another robust network, which no other seed's comparisons share."""
        return seed + max(self.seen) - min(self.seen) + 1

    def job(self, recipe: str, seed: int, wide: int | None = None) -> Job:
        """One network; with `wide`, a WideResNet of that width."""
        setting = self.setting
        return Job(
            dataset=setting["dataset"],
            model=setting["model"] if wide is None else setting["wide_model"].format(wide),
            recipe=recipe,
            seed=seed,
            training=setting["training"] if wide is None else setting["wide_training"],
            perturbations=setting["shakes"],
            metrics=("accuracy", "cka", "normalised_distance"),
            images=setting["images"],
        )

    def jobs(self) -> Sequence[Job]:
        """Every recipe with every seed, then the widths."""
        robust = self.against(self.setting["main"])
        return [
            *(self.job(recipe, seed) for seed in self.seen for recipe in self.recipes()),
            *(self.job("Standard", self.yardstick(seed)) for seed in self.seen),
            *(self.job(robust, self.yardstick(seed)) for seed in self.seen if self.setting["threats"]),
            *(
                self.job(recipe, seed, width)
                for seed in self.seen
                for width in self.setting["wide"]
                for recipe in ("Standard", robust)
            ),
        ]

    def comparisons(self) -> Sequence[LayerMap]:
        """Maps: of each network, beside others, under perturbations, and over epochs."""
        return list(self._maps())

    def _maps(self) -> Iterator[LayerMap]:
        setting, robust = self.setting, self.against(self.setting["main"])
        common: dict[str, Any] = {"images": setting["images"], "batch_size": setting["batch_size"]}
        main: dict[str, Any] = {**common, "layers": setting["layers"]}
        for seed in self.seen:
            for recipe in self.recipes():
                job = self.job(recipe, seed)
                yield LayerMap(job, **main)
                yield from (LayerMap(job, perturbation=p, gap="PGD" in p, **main) for p in setting["shakes"])
                if recipe != "Standard":
                    yield LayerMap(job, self.job("Standard", seed), beside="Standard", **main)
                if recipe not in ("Standard", robust):
                    yield LayerMap(job, self.job(robust, seed), beside=robust, **main)
            for recipe in ("Standard", robust):
                job = self.job(recipe, seed)
                yield from (LayerMap(job, epoch=epoch, **main) for epoch in setting["training"].snapshots)
            for width in setting["wide"]:
                plain, firm = (self.job(recipe, seed, width) for recipe in ("Standard", robust))
                for job in (plain, firm):
                    yield LayerMap(job, layers=OF_WIDE, **common)
                yield LayerMap(firm, plain, beside="Standard", layers=OF_WIDE, **common)
            other = self.job("Standard", self.yardstick(seed))
            for recipe in ("Standard", robust):
                yield LayerMap(self.job(recipe, seed), other, beside="Standard, another seed", **main)
            if setting["threats"]:
                other = self.job(robust, self.yardstick(seed))
                for recipe in ("Standard", robust, *setting["threats"]):
                    yield LayerMap(self.job(recipe, seed), other, beside=f"{robust}, another seed", **main)

    def claims(self) -> Sequence[Claim]:
        """The findings F1 to F6 of the specification, with scalars and signs fixed before anything was run."""
        return similarity_claims(self)


def similarity_claims(made: RobustSimilarity) -> list[Claim]:
    """The findings F1 to F6 of the specification's §1.6, by the scalars of §1.7."""
    setting = made.setting
    robust = made.against(setting["main"])
    model = setting["model"]

    def of(metric: str, recipe: str | tuple[str, ...], compared: str = "itself", **more: Any) -> Selection:
        return Selection(Measure(metric, "similarity", compared, **more), recipe)

    def more(metric: str, sign: int = 1) -> Difference:
        return Difference(of(metric, robust), of(metric, "Standard"), sign=sign)

    def claim(name: str, place: str, statement: str, *tests: tuple[str, Any], assumptions: str = "") -> Claim:
        where = f"{SOURCE}; specification §1.6 {place}"
        return Claim(name, where, statement, tests, made.differs, assumptions, model=model)

    attack = LayerMap(made.job(robust, made.seen[0]), perturbation=setting["shakes"][0]).compared
    early = {"layers": EARLY}
    claims = [
        claim(
            "robust networks specialise less",
            "F1",
            "Layers far apart are more similar in a robust network, which has fewer effective layers.",
            ("far similarity", more("far_similarity")),
            ("effective layers", more("effective_layers", -1)),
            assumptions="Far: at least half of the depth apart. The paper shows maps and gives no scalar.",
        ),
        claim(
            "block structure vanishes",
            "F2",
            "Blocks along the diagonal stand out less in a robust network: mean similarity within stages less that "
            "between them is smaller.",
            ("block contrast", more("block_contrast", -1)),
            assumptions=(
                "Contrast, not the number of high values: robust networks have more of these (specification §1.7). A "
                "stage is a run of layers of one spatial size."
            ),
        ),
        claim(
            "robust and standard networks differ",
            "F3",
            "At equal depth a robust network is less similar to a standard one of another seed than the standard one "
            "of its own seed is to that.",
            (
                "equal depth",
                Difference(
                    of("equal_depth_similarity", robust, "beside Standard, another seed"),
                    of("equal_depth_similarity", "Standard", "beside Standard, another seed"),
                    sign=-1,
                ),
            ),
            assumptions=(
                "That two seeds are the yardstick is ours; the paper says “poorly similar”. Every seed has a standard "
                "network of its own to be compared with."
            ),
        ),
        claim(
            "early layers of robust networks hardly change",
            "F4",
            "In the first third of the layers of a robust network, attacked responses are as similar to clean ones as "
            f"{HIGH:g} or more, and more similar than in a standard network.",
            (
                f"above {HIGH:g}",
                Difference(of("same_layer_similarity", robust, attack, **early), sign=1, threshold=HIGH),
            ),
            (
                "than standard",
                Difference(
                    of("same_layer_similarity", robust, attack, **early),
                    of("same_layer_similarity", "Standard", attack, **early),
                    sign=1,
                ),
            ),
            assumptions=f"{HIGH:g} is ours.",
        ),
        claim(
            "overfitting is in the deep layers",
            "F5",
            "Of a robust network, the similarity of clean and attacked responses is higher on training images than on "
            "test images, by more in the last third of the layers than in the first.",
            (
                "gap, last less first third",
                Difference(
                    of(TRAIN_TEST_GAP, robust, attack, layers=LATE),
                    of(TRAIN_TEST_GAP, robust, attack, layers=EARLY),
                    sign=1,
                ),
            ),
            assumptions="The paper's figure of it is not known to us; the measure is ours.",
        ),
        *(
            claim(
                "threat models agree",
                "F6",
                "Networks robust to another threat model are more similar, at equal depth, to one robust in the l∞ "
                "ball than a standard network is to that.",
                *(
                    (
                        _threat(other),
                        Difference(
                            of("equal_depth_similarity", other, f"beside {robust}"),
                            of("equal_depth_similarity", robust, "beside Standard"),
                            sign=1,
                        ),
                    )
                    for other in setting["threats"]
                ),
                assumptions=(
                    "All of one seed, which share initial weights and the order of the data: it does not show that "
                    "robust networks are of one kind whatever their seed. The paper's threat models include JPEG, "
                    "Gabor and snow."
                ),
            )
            for _ in setting["threats"][:1]
        ),
        *(
            claim(
                "threat models agree across seeds",
                "F6; ours",
                "Networks robust to another threat model are more similar, at equal depth, to one of another seed that "
                "is robust in the l∞ ball than a standard network is to that.",
                *(
                    (
                        _threat(other),
                        Difference(
                            of("equal_depth_similarity", other, f"beside {robust}, another seed"),
                            of("equal_depth_similarity", "Standard", f"beside {robust}, another seed"),
                            sign=1,
                        ),
                    )
                    for other in setting["threats"]
                ),
                assumptions=(
                    "Stated after the claim within seeds had been judged, and before any network was compared across "
                    "seeds. Every seed has a robust network of its own to be compared with."
                ),
            )
            for _ in setting["threats"][:1]
        ),
    ]
    if len(setting["eps"]) > 1:
        claims.append(
            claim(
                "more so at larger radii",
                "F1; ours",
                "Similarity of layers far apart rises with the radius of adversarial training.",
                (
                    "far similarity over eps",
                    Increasing(
                        Measure("far_similarity", "similarity", "itself"),
                        ("Standard", *map(made.against, setting["eps"])),
                        effect=4.0,
                    ),
                ),
            )
        )
    return claims


def _threat(recipe: str) -> str:
    return recipe.partition("attack='")[2].partition("(")[0] or recipe
