"""What the report calls things, and how it writes numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isclose

from geophone.analysis.scores import GROUPS, type_of


@dataclass(frozen=True)
class Measure:
    """How one metric is named and explained to a reader.

    Attributes:
        title: Its name in a chart or sentence.
        about: What it is, its unit, and what a higher value means.
        bounds: The range that it can't leave, if there is one; intervals are cut there.
        gloss: A few plain words that say in passing what it is; empty where the title says it.
    """

    title: str
    about: str
    bounds: tuple[float, float] | None = (0.0, 1.0)
    gloss: str = ""


_SHARE = "Number of principal components that hold {0} % of the variance, as a share of the layer's units. Higher: {1}"
_SPREAD = "the responses spread over more directions."
_CHANGE = "the disturbance spreads over more directions."
_DIRECTIONS = ("over how many directions the responses spread", "over how many directions the disturbance spreads")

MEASURES: dict[str, Measure] = {
    "normalised_distance": Measure(
        "Normalised distance",
        "How far the responses move: root-mean-square displacement of an image's response, divided by that between two "
        "different clean images. 0: not moved; 1: as far as another image. Higher: more disturbed.",
        (0.0, inf),
        "how far the responses move",
    ),
    "cka": Measure(
        "Linear CKA with clean",
        "Unbiased linear centred kernel alignment between clean and perturbed responses to the same images. 1: the "
        "same geometry up to rotation and scale; about 0: unrelated. Higher: less disturbed.",
        (-1.0, 1.0),
        "how alike clean and perturbed responses are",
    ),
    "difference_fraction_95": Measure(
        "Dimensions of the difference (95 %), share of units", _SHARE.format(95, _CHANGE), gloss=_DIRECTIONS[1]
    ),
    "difference_fraction_90": Measure(
        "Dimensions of the difference (90 %), share of units", _SHARE.format(90, _CHANGE), gloss=_DIRECTIONS[1]
    ),
    "difference_fraction_99": Measure(
        "Dimensions of the difference (99 %), share of units", _SHARE.format(99, _CHANGE), gloss=_DIRECTIONS[1]
    ),
    "cka_minibatch": Measure(
        "Linear CKA",
        "Linear centred kernel alignment of unbiased HSICs summed over batches. 1: the same geometry up to rotation "
        "and scale; about 0: unrelated.",
        (-1.0, 1.0),
    ),
    "cka_minibatch_deconfounded": Measure(
        "Deconfounded CKA", "The same, without what the images' own similarity explains.", (-1.0, 1.0)
    ),
    "near_similarity": Measure("Near", "Mean similarity of layers at most a tenth of the depth apart.", (-1.0, 1.0)),
    "far_similarity": Measure("Far", "Mean similarity of layers at least half of the depth apart.", (-1.0, 1.0)),
    "block_contrast": Measure(
        "Block contrast", "Mean similarity within runs of layers of one spatial size, less that between them.", None
    ),
    "effective_layers": Measure(
        "Effective layers", "(Σλ)²/Σλ² of the map's eigenvalues. 1: all layers are alike.", (0.0, inf)
    ),
    "entropy_layers": Measure("… by entropy", "exp of the entropy of the map's eigenvalues.", (0.0, inf)),
    **{
        f"largest_block_{t}": Measure(
            f"Block ≥ 0.{t // 10}",
            f"Layers in the longest run in which all pairs have 0.{t // 10} or more.",
            (0.0, inf),
        )
        for t in (70, 80, 90)
    },
    "equal_depth_similarity": Measure("Equal depth", "Mean similarity of layers at equal depth.", (-1.0, 1.0)),
    "same_layer_similarity": Measure(
        "Similarity of a layer with itself", "With the layer of the same name on the other side.", (-1.0, 1.0)
    ),
    "train_test_gap": Measure(
        "Similarity on training less test images",
        "Of clean and perturbed responses, on training images less that on test images. Above 0: overfitted.",
        None,
    ),
    "first_pc_share": Measure(
        "Share of the first component", "Of a layer's variance, all units; mean over the batches looked at."
    ),
    "dominant_share": Measure(
        "Share of dominant images",
        "Of the squared distances from the mean response, that of the largest 1 % of images.",
    ),
    "class_selectivity": Measure(
        "Class selectivity",
        "Mean over units of (largest class mean − mean of the others)/(their sum). 0: a unit answers alike to all "
        "classes; 1: to one class only. Higher: more class-selective units.",
        gloss="how much units prefer one class",
    ),
    "eta_squared": Measure(
        "Variance between classes, share",
        "Mean over units of the share of a unit's variance that lies between classes (η²). Does not change when a "
        "constant is added to a unit. Higher: more class information in single units.",
    ),
    "mean_response": Measure(
        "Mean response", "Mean over units of their mean response: the baseline that class selectivity falls with.", None
    ),
    "two_nn": Measure(
        "Intrinsic dimension (TwoNN)",
        "Dimension of the manifold of responses, from the distances to the two nearest neighbours. Higher: more.",
        (0.0, inf),
        "how many dimensions the manifold of responses has",
    ),
    "input_gradient_norm": Measure(
        "Input gradient of units",
        "Mean over images and units of the l2 norm of the gradient of a unit's mean response by the image.",
        (0.0, inf),
    ),
    "input_gradient_cv_samples": Measure(
        "Variability of input gradients over images",
        "Coefficient of variation over images of a unit's gradient norm, mean over units. Higher: fewer images at a "
        "time move the unit.",
        (0.0, inf),
    ),
    "input_gradient_cv_units": Measure(
        "Variability of input gradients over units",
        "Coefficient of variation over units of their mean gradient norm. Higher: units differ more.",
        (0.0, inf),
    ),
    "pwcca": Measure(
        "PWCCA",
        "Projection-weighted canonical correlation between two networks' responses. 1: alike up to a linear map.",
    ),
    "class_selectivity_floor": Measure(
        "Class selectivity with shuffled labels",
        "The class selectivity that chance alone gives with these many images. Selectivity near it means nothing.",
    ),
    "pca_fraction_95": Measure(
        "PCA dimensions (95 %), share of units", _SHARE.format(95, _SPREAD), gloss=_DIRECTIONS[0]
    ),
    "pca_fraction_90": Measure(
        "PCA dimensions (90 %), share of units", _SHARE.format(90, _SPREAD), gloss=_DIRECTIONS[0]
    ),
    "pca_fraction_99": Measure(
        "PCA dimensions (99 %), share of units", _SHARE.format(99, _SPREAD), gloss=_DIRECTIONS[0]
    ),
    "participation_ratio_corrected": Measure(
        "Participation ratio",
        "Effective number of dimensions, (Σλ)²/Σλ² over the covariance's eigenvalues λ, corrected for the bias of few "
        "images. In dimensions. Higher: variance shared by more directions.",
        (0.0, inf),
        _DIRECTIONS[0],
    ),
    "participation_ratio": Measure(
        "Participation ratio (uncorrected)",
        "Effective number of dimensions, (Σλ)²/Σλ² over the covariance's eigenvalues λ; too low when images are few.",
        (0.0, inf),
        _DIRECTIONS[0],
    ),
    "manifold_capacity": Measure(
        "Capacity of class manifolds",
        "Classes that a linear readout tells apart, per feature. At most 2; 2/M for M points of a class without "
        "structure. Higher: easier to tell apart.",
        (0.0, inf),
        "how many classes a readout can tell apart",
    ),
    "manifold_radius": Measure(
        "Radius of class manifolds",
        "How far the images of a class spread, over the distance of their centre from that of all. Higher: more "
        "spread.",
        (0.0, inf),
        "how far the images of a class spread",
    ),
    "manifold_dimension": Measure(
        "Dimension of class manifolds",
        "Over how many directions the images of a class spread, as a linear readout sees it.",
        (0.0, inf),
        "over how many directions the images of a class spread",
    ),
    "center_correlation": Measure(
        "Correlation of classes' centres", "Mean |cos| between the centres of classes. Lower: easier to tell apart."
    ),
    "manifold_center_rank": Measure(
        "Shared directions of classes' centres",
        "Directions that the centres share and that are taken away.",
        (0.0, inf),
    ),
    "manifold_capacity_floor": Measure(
        "Floor of classes' capacity", "2/M: the capacity of M points of a class without structure.", (0.0, inf)
    ),
    "exemplar_capacity": Measure(
        "Capacity of exemplar manifolds",
        "Manifolds of shaken copies of one image that a linear readout tells apart, per feature. At most 2; 2/copies "
        "for clouds without structure. Higher: easier to tell apart.",
        (0.0, inf),
        "how many images' copies a readout can tell apart",
    ),
    "exemplar_radius": Measure(
        "Radius of exemplar manifolds",
        "How far copies of an image spread, over the distance of their centre from that of all. Higher: more spread.",
        (0.0, inf),
        "how far copies of an image spread",
    ),
    "exemplar_dimension": Measure(
        "Dimension of exemplar manifolds",
        "Over how many directions copies of an image spread, as a linear readout sees it.",
        (0.0, inf),
        "over how many directions copies of an image spread",
    ),
    "exemplar_width": Measure(
        "Width of exemplar manifolds",
        "Radius times the root of the dimension, mean over images. Higher: copies of an image lie further apart.",
        (0.0, inf),
        "how wide the copies of an image lie",
    ),
    "exemplar_center_correlation": Measure(
        "Correlation of exemplars' centres",
        "Mean |cos| between the centres of images' copies. Lower: easier to tell apart.",
    ),
    "exemplar_center_rank": Measure(
        "Shared directions of exemplars' centres",
        "Directions that the centres share and that are taken away.",
        (0.0, inf),
    ),
    "exemplar_capacity_floor": Measure(
        "Floor of exemplars' capacity", "2/copies: the capacity of clouds without structure.", (0.0, inf)
    ),
    "clean_separability": Measure(
        "Separability of clean and shaken copies",
        "Held-out accuracy of a linear classifier between clean and shaken copies of one image, mean over images. 0.5: "
        "they overlap; 1: they lie apart.",
        gloss="how well clean and shaken copies of an image can be told apart",
    ),
    "active_fraction": Measure(
        "Active fraction",
        "Share of responses above zero. Higher: denser, less sparse responses.",
        gloss="how often units answer",
    ),
    "dead_fraction": Measure(
        "Dead units", "Share of units that answer to no image. Higher: more of the layer is unused."
    ),
    "accuracy": Measure("Accuracy", "Share of images classified correctly. Higher: better."),
    "margin": Measure("Margin", "Logit of the true class less the largest other, mean over images.", None),
    "loss": Measure("Loss", "Cross-entropy in nats, mean over images. Lower: better.", (0.0, inf)),
    "clean_accuracy": Measure("Clean accuracy", "Accuracy on unperturbed images."),
    "natural_accuracy": Measure(
        "Accuracy under noise and corruption",
        "Mean over levels within a perturbation, then over the noise and corruption types.",
    ),
    "attack_accuracy": Measure("Accuracy under attack", "Mean over levels within an attack, then over the attacks."),
    "robust_accuracy": Measure(
        "Robust accuracy",
        "Share of images still classified correctly when the attack may move them by up to eps. Higher: better.",
    ),
    "half_accuracy_eps": Measure(
        "eps at half accuracy",
        "Radius of the attack at which accuracy is half of the clean accuracy, for images in [0, 1]. Higher: better.",
        (0.0, inf),
    ),
    "median_minimum_norm": Measure(
        "Median minimum norm",
        "Size of the smallest perturbation found that changes an image’s answer, median over the images; 0 for those "
        "that were wrong already. Higher: better.",
        (0.0, inf),
    ),
    "corruption_accuracy": Measure(
        "Accuracy", "Share of corrupted images classified correctly, mean over severities, then types. Higher: better."
    ),
    "corruption_accuracy_relative": Measure(
        "Divided by clean accuracy", "1: the corruption costs nothing. Higher: better.", (0.0, inf)
    ),
    "corruption_accuracy_above_chance": Measure(
        "Above chance",
        "(accuracy − 1/classes)/(1 − 1/classes). 0: guessing; 1: all right. Higher: better.",
        (-inf, 1.0),
    ),
}
PROFILE = tuple(list(MEASURES)[: list(MEASURES).index("accuracy")])


def measure(name: str) -> Measure:
    """The words for a metric or for a column of `relate.networks`; a plug-in's metric goes by its own name."""
    if name in MEASURES:
        return MEASURES[name]
    if name.endswith("_relative") and (base := name.removesuffix("_relative")) in MEASURES:
        return Measure(
            f"{MEASURES[base].title} relative to clean", "Divided by the same network's clean accuracy.", None
        )
    if name.startswith("accuracy."):
        return Measure(f"Accuracy under {name.removeprefix('accuracy.')}", "Mean over its levels.")
    for side, words in (("natural_", "noise and corruption"), ("attack_", "attack")):
        if name.startswith(side) and (base := name.removeprefix(side)) in MEASURES:
            found = MEASURES[base]
            title, comma, unit = found.title.partition(",")
            about = f"{found.about} Mean over layers and levels."
            return Measure(f"{title} under {words}{comma}{unit}", about, found.bounds, found.gloss)
    return Measure(name, "A measure without a description here: see `geophone list metrics`.", None)


SPACE = "\N{NO-BREAK SPACE}"
INTERVAL = f"95{SPACE}% interval"


def percent(value: float) -> str:
    """0.1234 as `12.3 %`, which does not break over lines."""
    return f"{100 * value:.1f}{SPACE}%"


def percent_range(low: float | None, high: float | None) -> str:
    """An interval of shares, in percent, for the inside of brackets."""
    return "no interval" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def decimal(value: float) -> str:
    """A number to two decimals, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value to three decimals with its relation sign, or that it is smaller."""
    return f"<{SPACE}0.001" if p < 0.001 else f"={SPACE}{p:.3f}"


def in_255ths(perturbation: str) -> bool:
    """Whether an attack moves single pixels by at most eps (l∞), which is usual to say in 255ths."""
    return "Linf" in perturbation or perturbation.startswith(("FGSM", "RandomSign"))


def level_label(family: str, perturbation: str, level: float | None) -> str:
    """How strong: a radius in l∞ as so many 255ths where it is round in them, else plainly; empty if none."""
    if level is None:
        return ""
    plain, quarters = f"{level:.3g}", round(level * 255 * 4)
    radius = family in ("attack", "noise") and in_255ths(perturbation)
    if radius and not isclose(float(plain), level) and isclose(quarters / 255 / 4, level, rel_tol=1e-4):
        return f"{quarters / 4:g}/255"
    return plain


def condition_label(family: str, perturbation: str, level: float | None) -> str:
    """A perturbation with its level, if it has one, or `clean images`."""
    if family == "clean":
        return "clean images"
    if level is None:
        return perturbation
    severity = "severity " if has_severity(family, perturbation) else ""
    return f"{perturbation} at {severity}{level_label(family, perturbation, level)}"


def has_severity(family: str, perturbation: str) -> bool:
    """Whether it is one of the 19 corruptions, whose levels are severities from 1 to 5."""
    return family == "corruption" and any(type_of(perturbation) in group for group in GROUPS.values())


SOURCES = {
    "preset='cifar10'": "the constants of CIFAR-10-C",
    "preset='tiny_imagenet'": "the constants of Tiny ImageNet-C",
    "preset='imagenet'": "the constants of ImageNet-C",
    "published='cifar10_c'": "the published files of CIFAR-10-C",
    "published='cifar100_c'": "the published files of CIFAR-100-C",
    "published='tiny_imagenet_c'": "the published files of Tiny-ImageNet-C",
    "published='imagenet_c'": "the published files of ImageNet-C",
}
"""What corruptions are made with, for what the table names."""


def radius(perturbation: str, value: float) -> str:
    """A distance in an attack's norm: in 255ths for l∞."""
    return f"{value * 255:.3g}/255" if in_255ths(perturbation) else f"{value:.3g}"


def eot_words(averaged: Mapping[str, int]) -> str:
    """What attacks did about the noise of stochastic networks: empty where there are none.

    Args:
        averaged: For each attack, over how many draws of the noise its gradients were averaged.
    """
    several = sorted({count for count in averaged.values() if count > 1})
    weak = [name for name, count in averaged.items() if count <= 1]
    said = ""
    if several:
        counts = " or ".join(str(count) for count in several)
        said += f" On networks with noise, attacks average over {counts} draws of the network’s noise (EOT)."
    if weak:
        said += (
            f" Not averaged over the noise, and so weak on networks that have it: {', '.join(weak)}. Accuracy under "
            "them is too high."
        )
    return said
