"""What the report calls things, and how it writes numbers."""

from dataclasses import dataclass
from math import inf


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
    "class_selectivity": Measure(
        "Class selectivity",
        "Mean over units of (largest class mean − mean of the others)/(their sum). 0: a unit answers alike to all "
        "classes; 1: to one class only. Higher: more class-selective units.",
        gloss="how much units prefer one class",
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


def level_label(family: str, level: float) -> str:
    """How strong: an attack's radius as so many 255ths where it is one, else plainly."""
    in_255 = level * 255
    if family == "attack" and level < 0.2 and abs(2 * in_255 - round(2 * in_255)) < 1e-2 and in_255 > 0.4:
        return f"{in_255:.3g}/255"
    return f"{level:.3g}"


def condition_label(family: str, perturbation: str, level: float) -> str:
    """A perturbation with its level, or `clean images`."""
    return "clean images" if family == "clean" else f"{perturbation} at {level_label(family, level)}"
