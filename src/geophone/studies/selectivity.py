"""Study I: does class selectivity decide how robust a network is? The claims of the papers, on real data."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from geophone.analysis.claims import (
    AtHalf,
    Best,
    Claim,
    Correlation,
    Difference,
    Increasing,
    Interaction,
    Measure,
    Selection,
    Types,
)
from geophone.core.errors import unknown
from geophone.models.tap import REDUCTIONS
from geophone.studies.demo import CORRUPTIONS
from geophone.study.comparison import Comparison
from geophone.study.study import Sized, study
from geophone.study.tasks import Job
from geophone.train import Training

PAPER_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
"""Of both signs, with 0: the grid of the papers, read off the legend of their figure."""

GRANULARITIES = {"activations": None, "blocks": ("layer?.?",)}
"""Which layers are recorded: every activation module, or the outputs of residual blocks."""

ON_GREY = tuple(name for name in CORRUPTIONS if name != "saturate")  # which leaves grey images as they are
PGD_STEPS = (5, 10, 20, 40, 80, 160, 320)
FGSM_EPS = ("0.5/255", "1/255", "2/255", "4/255", "8/255", "16/255")
BUDGETS = ("2/255", "4/255", "8/255")


def adversarial(budget: str) -> str:
    """Adversarial training with 7 steps at one radius."""
    return f"Adversarial(eps={budget})"


@study("selectivity")
@dataclass(frozen=True)
class Selectivity(Sized):
    """Class selectivity and robustness (Leavitt & Morcos): an alpha sweep, both threat models, and the converse.

    Sizes: `demo` takes minutes on two cores (2 seeds: too few to decide anything), `small` an hour or so (5 seeds, 9
    alphas, the small network on the Fashion-MNIST subset), `full` the papers' (ResNet20 on CIFAR-10, 23 alphas, 20
    seeds; a GPU and the data are needed). Data, network and lengths of training of the first two are ours.

    Attributes:
        size: `demo`, `small` or `full`.
        seeds: Default those of the size.
        reduce: What a response is: `spatial_mean` (a channel's mean), or `positions` (rows are places of images). The
            papers leave it open.
        granularity: `activations` (every ReLU) or `blocks` (residual blocks' outputs), for recording and training.
    """

    question: ClassVar[str] = (
        "Does a network that is less class selective hold better under natural corruptions and worse under attacks?"
    )
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "demo": {
            "seeds": 2,
            "alphas": (-2.0, -1.0, 0.0, 1.0, 2.0),
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "training": Training(epochs=2, weight_decay=1e-4),
            "corruptions": ON_GREY,
            "severities": (3,),
            "fgsm": ("2/255", "8/255"),
            "pgd_steps": (20, 40),
            "matched": (0.1,),
            "curves": (),
            "images": 300,
            "gradients": 60,
            "budgets": BUDGETS[-1:],
            "parts": (),
        },
        "small": {
            "seeds": 5,
            "alphas": (-2.0, -1.0, -0.7, -0.4, 0.0, 0.4, 0.7, 1.0, 2.0),
            "dataset": "fashion_mnist_mini",
            "model": "small_cnn",
            "training": Training(epochs=8, weight_decay=1e-4),
            "corruptions": ON_GREY,
            "severities": (1, 2, 3, 4, 5),
            "fgsm": FGSM_EPS,
            "pgd_steps": PGD_STEPS,
            "matched": (0.1, 1.0),
            "curves": ("LinfAPGD(steps=20)",),
            "images": 500,
            "gradients": 100,
            "budgets": BUDGETS,
            "parts": (-1.0, 1.0),
        },
        "full": {
            "seeds": 20,
            "alphas": (*(-a for a in reversed(PAPER_ALPHAS)), 0.0, *PAPER_ALPHAS),
            "dataset": "cifar10",
            "model": "resnet20",
            "training": Training(
                epochs=200, batch_size=256, weight_decay=1e-4, warmup=0.0, milestones=(100, 150), crop=4, flip=True
            ),
            "corruptions": CORRUPTIONS,
            "severities": (1, 2, 3, 4, 5),
            "fgsm": FGSM_EPS,
            "pgd_steps": PGD_STEPS,
            "matched": (0.2, 1.0),
            "curves": ("LinfAPGD",),
            "images": None,
            "gradients": 500,
            "budgets": BUDGETS,
            "parts": (-1.0, 1.0),
        },
    }
    reduce: str = "spatial_mean"
    granularity: str = "activations"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, value, allowed in (
            ("reduction", self.reduce, REDUCTIONS),
            ("granularity", self.granularity, GRANULARITIES),
        ):
            if value not in allowed:
                raise unknown(kind, value, allowed)

    @property
    def layout(self) -> str:
        """What a response and a layer are, which the papers leave open."""
        response = "its place in an image" if self.reduce == "positions" else "an image, averaged over space"
        layer = "every ReLU" if self.granularity == "activations" else "every residual block"
        return (
            f"A row is a channel's response to {response}; layers are {layer}. The papers' layout is not known to us."
        )

    @property
    def differs(self) -> str:
        """Where the setting differs from the papers'."""
        if self.size == "full":
            return f"Nesterov's momentum; {len(self.seen)} seeds; corrupted images are made by us"
        return (
            "A subset of Fashion-MNIST (28 × 28 grey, 9,000 training images) and a network of 6 convolutions in place "
            f"of CIFAR-10 with ResNet20 and Tiny ImageNet with ResNet18; {self.setting['training'].epochs} epochs, "
            f"cosine schedule; {len(self.seen)} seeds in place of 20; {self.setting['images']} of 2,000 test images; "
            "18 types of corruption, since saturate leaves grey images as they are"
        )

    def sweep(self) -> tuple[str, ...]:
        """The recipes of the alpha sweep, alpha ascending."""
        return tuple(self.regularised(alpha) for alpha in self.setting["alphas"])

    def recipes(self) -> tuple[str, ...]:
        """All recipes: the sweep, regularised early or late layers alone, and those of the converse direction."""
        budgets = tuple(adversarial(budget) for budget in self.setting["budgets"])
        parts = tuple(
            self.regularised(alpha, **{where: 3}) for alpha in self.setting["parts"] for where in ("first", "last")
        )
        return (*self.sweep(), *parts, "AugMix", *budgets)

    def regularised(self, alpha: float, **more: int | str) -> str:
        """The recipe of one alpha, `Standard` for 0."""
        if self.granularity != "activations":
            more["granularity"] = repr(self.granularity)
        options = "".join(f", {name}={value}" for name, value in more.items())
        return f"SelectivityRegularised(alpha={alpha:g}{options})" if alpha else "Standard"

    def jobs(self) -> Sequence[Job]:
        """Every recipe with every seed; all recipes of a seed before the next seed."""
        setting = self.setting
        inner = (*(f"{name}(severity=3)" for name in setting["corruptions"]), "PGDSteps(steps=40)")
        return [
            Job(
                dataset=setting["dataset"],
                model=setting["model"],
                recipe=recipe,
                seed=seed,
                training=setting["training"],
                perturbations=(
                    *(
                        f"{name}(severity={severity})"
                        for name in setting["corruptions"]
                        for severity in setting["severities"]
                    ),
                    *(f"FGSM(eps={eps})" for eps in setting["fgsm"]),
                    *(f"PGDSteps(steps={steps})" for steps in setting["pgd_steps"]),
                    *(f"MatchedL2(l2={l2}, inner={one!r})" for one in inner for l2 in setting["matched"]),
                ),
                layers=GRANULARITIES[self.granularity],
                reduce=self.reduce,
                images=setting["images"],
                curves=setting["curves"],
                gradients=setting["gradients"],
            )
            for seed in self.seen
            for recipe in self.recipes()
        ]

    def comparisons(self) -> Sequence[Comparison]:
        """Each network of the sweep beside the plain one of its seed; plain ones beside that of the next seed."""
        of = {(job.recipe, job.seed): job for job in self.jobs()}
        seeds = list(dict.fromkeys(seed for _, seed in of))
        beside = [
            Comparison(of[recipe, seed], of["Standard", seed])
            for seed in seeds
            for recipe in self.sweep()
            if recipe != "Standard"
        ]
        return [*beside, *(Comparison(of["Standard", a], of["Standard", b]) for a, b in pairwise(seeds))]

    def claims(self) -> Sequence[Claim]:
        """What the papers say, with tests that were fixed before anything was run."""
        return selectivity_claims(self)


_TINY_IMAGENET: dict[str, Any] = {
    **Selectivity.settings["full"],
    "alphas": (-2.0, -1.0, -0.7, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0, 2.0),
    "dataset": "tiny_imagenet",
    "model": "resnet18(stem=7)",
    "training": Training(
        epochs=90, batch_size=4096, weight_decay=1e-4, warmup=0.0, milestones=(35, 50, 65, 80), crop=8, flip=True
    ),
    "matched": (0.4, 1.0),
    "gradients": 200,
}


@study("selectivity_tiny_imagenet")
@dataclass(frozen=True)
class SelectivityTinyImageNet(Selectivity):
    """The same with ResNet18 on Tiny ImageNet in the papers' settings; needs the data and a GPU.

    Sizes: `demo` one seed of five alphas for three epochs, `small` 5 seeds of nine alphas, `full` 20 seeds of the 15
    alphas that the papers show. The stem is 7 × 7 with stride 2 and no max-pool; crop and flip are assumptions.
    """

    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "demo": {
            **_TINY_IMAGENET,
            **{"seeds": 1, "alphas": (-2.0, -1.0, 0.0, 1.0, 2.0), "budgets": BUDGETS[-1:], "parts": ()},
            "training": Training(epochs=3, batch_size=512, weight_decay=1e-4, crop=8, flip=True),
        },
        "small": {**_TINY_IMAGENET, **{"seeds": 5, "alphas": (-2.0, -1.0, -0.7, -0.4, 0.0, 0.4, 0.7, 1.0, 2.0)}},
        "full": _TINY_IMAGENET,
    }

    @property
    def differs(self) -> str:
        """Where the setting differs from the papers'."""
        return (
            f"Nesterov's momentum; {len(self.seen)} seeds, {len(self.setting['alphas'])} alphas, "
            f"{self.setting['training'].epochs} epochs; corrupted images are made by us: Tiny ImageNet-C has no "
            "matching clean images"
        )


SELECTIVITY = Measure("class_selectivity")
EARLY, FIRST_HALF = (0.0, 1 / 3), (0.0, 0.5)
P1, P2, P3 = "arXiv:2007.04440", "arXiv:2010.07693", "arXiv:2003.01262"
LARGE = 4.0
"""In standard deviations over seeds: an effect that is looked for where many must be found at once."""


def selectivity_claims(made: Selectivity) -> list[Claim]:
    """The acceptance points (i) to (vi) of the specification's §14, the converse direction, and what goes with them."""
    sweep = made.sweep()
    low = tuple(r for alpha, r in zip(made.setting["alphas"], sweep, strict=True) if alpha < 0)
    near = tuple(r for alpha, r in zip(made.setting["alphas"], sweep, strict=True) if abs(alpha) <= 2)
    less, more = made.regularised(-1.0), made.regularised(2.0)
    corrupted = Measure("accuracy", family="corruption")
    clean_d = Measure("pca_fraction_95", layers=FIRST_HALF)

    def goes_with(y: Measure, sign: int) -> Correlation:
        return Correlation(SELECTIVITY, y, sign, among=near)

    def attacked(perturbation: str, relative: bool = False) -> Measure:
        return Measure("accuracy", "attack", perturbation, AtHalf(), relative=relative)

    def change(family: str, perturbation: str | None = None, level: float | None = None, early: bool = True) -> Measure:
        layers = EARLY if early else (0.0, 1.0)
        return Measure("difference_fraction_95", family, perturbation, level, layers)

    def claim(name: str, source: str, statement: str, *tests: tuple[str, Any], assumptions: str = "") -> Claim:
        return Claim(name, source, statement, tests, made.differs, assumptions)

    made_claims = [
        claim(
            "alpha sets selectivity",
            f"Leavitt & Morcos 2020, {P3}; specification §14 (i)",
            "Mean class selectivity rises strictly with alpha over [−2, 2].",
            ("SI", Increasing(SELECTIVITY, near, effect=LARGE)),
        ),
        claim(
            "lower selectivity, better under corruption",
            f"Leavitt & Morcos 2020, {P1}, {P2}; specification §14 (ii)",
            "Corrupted accuracy is better at some alpha below 0 than at 0, and falls as selectivity rises.",
            ("best alpha below 0", Best(corrupted, low, effect=3.0)),
            ("falls with SI", goes_with(corrupted, -1)),
        ),
        claim(
            "the same, over clean accuracy",
            f"Leavitt & Morcos 2020, {P1}, {P2}; specification §9.3 B",
            "Corrupted accuracy over clean accuracy falls as selectivity rises.",
            ("falls with SI", goes_with(Measure("accuracy", family="corruption", relative=True), -1)),
        ),
        claim(
            "in most types of corruption",
            f"Leavitt & Morcos 2020, {P2}; specification §9.3 C",
            "Lower selectivity helps in most types of corruption.",
            ("alpha = −1 against 0", Types(corrupted, less, effect=LARGE)),
        ),
        *(
            claim(
                f"higher selectivity, better under {name}",
                f"Leavitt & Morcos 2020, {P1}, {P2}; specification §14 (iii)",
                f"Accuracy under {name}, where plain networks keep half of it, rises with selectivity; divided by "
                "clean accuracy too.",
                ("accuracy", goes_with(attacked(perturbation), 1)),
                ("over clean accuracy", goes_with(attacked(perturbation, relative=True), 1)),
                assumptions=assumptions,
            )
            for name, perturbation, assumptions in (
                ("FGSM", "FGSM", "The grid of eps is ours."),
                ("PGD over steps", "PGDSteps", "It starts at the image, and gradients are taken in [0, 1]."),
            )
        ),
        *(
            claim(
                "higher selectivity, larger radius under APGD",
                f"Leavitt & Morcos 2020, {P1}, {P2}; specification §14 (iii)",
                "The radius at which APGD has taken half of a network's own accuracy rises with selectivity.",
                ("eps at half accuracy", goes_with(Measure("half_accuracy_eps", "attack", attack), 1)),
                assumptions="The papers did not use APGD: it is a stronger attack.",
            )
            for attack in made.setting["curves"]
        ),
        claim(
            "lower selectivity, more clean dimensions",
            f"Leavitt & Morcos 2020, {P2}; specification §14 (iv)",
            "In the first half of the layers, dimensionality (principal components for 95 % of the variance, over the "
            "number of units) falls as selectivity rises.",
            ("PCA 95 %", goes_with(clean_d, -1)),
            assumptions=made.layout,
        ),
        claim(
            "the same, by TwoNN",
            f"Leavitt & Morcos 2020, {P2}; specification §6",
            "In the first half of the layers, intrinsic dimension by TwoNN falls as selectivity rises.",
            ("TwoNN", goes_with(Measure("two_nn", layers=FIRST_HALF), -1)),
            assumptions=made.layout,
        ),
        claim(
            "attacks change more dimensions than corruptions",
            f"Leavitt & Morcos 2020, {P1}, {P2}; specification §14 (v)",
            "In early layers the difference between clean and attacked responses (PGD, 40 steps) has more dimensions "
            "than that between clean and corrupted ones.",
            (
                "PGD less corruption",
                Difference(
                    Selection(change("attack", "PGDSteps", 40.0), near), Selection(change("corruption"), near), sign=1
                ),
            ),
            assumptions=f"{made.layout} Early layers are the first third. All alphas are pooled; the figure "
            "sweep_difference shows each, and “lower selectivity, more so under attack” tests how the difference goes "
            "with selectivity.",
        ),
        *(
            claim(
                f"the same at matched length {l2:g}",
                "specification §14 (v); not in the papers",
                f"The same, with every image moved by an l2 distance of {l2:g}.",
                (
                    "PGD less corruption",
                    Difference(
                        Selection(change("matched", "MatchedL2(inner='PGDSteps*", l2), near),
                        Selection(change("matched", "MatchedL2(inner='[a-z]*", l2), near),
                        sign=1,
                    ),
                ),
                assumptions="Corruptions at severity 3 and PGD's 40 steps, each scaled to this length: where it is far "
                "from their own, they are no corruption or attack of that size. All alphas are pooled.",
            )
            for l2 in made.setting["matched"]
        ),
        claim(
            "lower selectivity, more dimensions of change",
            f"Leavitt & Morcos 2020, {P1}, {P2}; specification §9.3 G, H",
            "The difference between clean and perturbed responses has more dimensions in less selective networks.",
            ("corruptions", goes_with(change("corruption", early=False), -1)),
            ("PGD, 40 steps", goes_with(change("attack", "PGDSteps", 40.0, early=False), -1)),
            assumptions=made.layout,
        ),
        claim(
            "lower selectivity, more so under attack",
            f"Leavitt & Morcos 2020, {P1} (abstract)",
            "As selectivity falls, the dimensionality of the change in responses rises more under attack than under "
            "corruption.",
            (
                "slope of PGD, 40 steps, less slope of corruptions",
                Interaction(
                    SELECTIVITY,
                    change("attack", "PGDSteps", 40.0, early=False),
                    change("corruption", early=False),
                    sign=-1,
                    among=near,
                ),
            ),
            assumptions=f"{made.layout} Stated after the claim pooled over alphas had been seen to be contradicted and "
            "the sign to turn with alpha: it is the abstract's own statement, but not a blind test of it. All layers, "
            "which the abstract leaves open; slopes on mean selectivity are straight lines.",
        ),
        claim(
            "higher selectivity, more variable gradients",
            f"Leavitt & Morcos 2020, {P2}; specification §14 (vi)",
            "The coefficients of variation of input-unit gradients, over samples and over units, rise with it.",
            ("over samples", goes_with(Measure("input_gradient_cv_samples"), 1)),
            ("over units", goes_with(Measure("input_gradient_cv_units"), 1)),
        ),
        claim(
            "higher selectivity, smaller Jacobian",
            f"Leavitt & Morcos 2020, {P2}; specification §5 (sign recalled with low confidence)",
            "The norm of the input-output Jacobian falls as selectivity rises.",
            ("Frobenius norm", goes_with(Measure("jacobian_norm"), -1)),
        ),
        claim(
            "AugMix lowers selectivity",
            f"Leavitt & Morcos 2020, {P2}; specification §8",
            "A recipe that makes networks robust to corruptions lowers their selectivity.",
            ("AugMix less Standard", _against_standard("AugMix", -1)),
        ),
        claim(
            "adversarial training raises selectivity",
            f"Leavitt & Morcos 2020, {P2}; specification §8",
            "A recipe that makes networks robust to attacks raises their selectivity.",
            *((f"eps = {budget}", _against_standard(adversarial(budget), 1)) for budget in made.setting["budgets"]),
        ),
        claim(
            "selectivity costs accuracy",
            f"Leavitt & Morcos 2020, {P3}; specification §9.2",
            "Raising selectivity lowers clean accuracy, and by more than lowering it by the same |alpha|.",
            (
                "alpha = 2 less 0",
                Difference(Selection(Measure("accuracy"), more), Selection(Measure("accuracy"), "Standard"), sign=-1),
            ),
            (
                "alpha = 2 less −2",
                Difference(
                    Selection(Measure("accuracy"), more),
                    Selection(Measure("accuracy"), made.regularised(-2.0)),
                    sign=-1,
                ),
            ),
        ),
        claim(
            "selectivity can be cut at no cost",
            f"Leavitt & Morcos 2020, {P3}; specification §9.2",
            "Alpha = −1 costs less than one point of clean accuracy.",
            (
                "alpha = −1 less 0, above −0.01",
                Difference(
                    Selection(Measure("accuracy"), less),
                    Selection(Measure("accuracy"), "Standard"),
                    sign=1,
                    threshold=-0.01,
                ),
            ),
        ),
    ]
    if len(made.setting["budgets"]) > 1:
        made_claims.append(
            claim(
                "larger budgets raise it more",
                f"Leavitt & Morcos 2020, {P2}; specification §8",
                "Selectivity rises with the radius of adversarial training.",
                (
                    "SI over eps",
                    Increasing(SELECTIVITY, tuple(adversarial(b) for b in made.setting["budgets"]), effect=LARGE),
                ),
            )
        )
    return made_claims


def _against_standard(recipe: str, sign: int) -> Difference:
    return Difference(Selection(SELECTIVITY, recipe), Selection(SELECTIVITY, "Standard"), sign=sign)
