"""Checks that stop a wrong claim: what can be wrong with a measurement, and with the robustness that it shows.

`table_checks` reads the rows of a measurement; the probes here look at the model, and `AttackChecks` attacks it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, check_counts, plain
from geophone.core.rng import draws, key, stream
from geophone.core.types import Batch, Model, unwrapped
from geophone.data import Split, as_split
from geophone.metrics import Undefined
from geophone.models.run import Subject, check_columns, check_labels, logits_of, modules_of, need_labels, opened
from geophone.models.stochastic import Noisy, noisy_layers, refuse_frozen, silenced, why_silent
from geophone.models.tap import (
    PROBED,
    REDUCTIONS,
    WEIGHTED,
    Reduce,
    activation_layers,
    axes_of,
    layers_of,
    positions,
    reduction,
    spatial_mean,
    token_mean,
)
from geophone.perturb.attacks.apgd import LinfAPGD
from geophone.perturb.attacks.ascent import Ascent, classes_of
from geophone.perturb.attacks.base import EOT_DRAWS
from geophone.perturb.attacks.losses import Loss, ce, margin, scaled_ce
from geophone.perturb.attacks.pgd import LinfPGD
from geophone.perturb.attacks.square import LinfSquare
from geophone.probes.judge import PASSES
from geophone.probes.part import Part
from geophone.probes.probe import PROBES, Probe, Row, Step, summed
from geophone.probes.survival import survival

MATERIAL = 0.02
"""The share of images from which an effect matters: two points of robust accuracy, a difference that papers report."""

CHANCE = 0.01
"""How likely chance alone may be to cause an alarm, in the checks that count examples."""

MISSED = 0.01
"""The share of images that a sound white-box attack may miss and a black-box one find.

On networks without masked gradients Square adds some tenths of a per cent to APGD (arXiv:2003.01690, table 2).
"""

SAME_BATCH = 1e-5
"""How far two passes over the same batch may differ by rounding, relative to the largest logit: some hundred units in
the last place, for kernels that sum in no fixed order."""

OTHER_BATCH = 1e-3
"""The same for passes over other batches: another batch size takes other kernels, whose errors add up over layers."""

_WHITE_STEPS = 25
_QUERIES = 200
_FEW, _MANY = 5, 40  # steps
_FAR, _FAR_STEPS = 0.5, 20
_DRAWS = 5  # gradients that are averaged, for stochastic networks
_ALONE = 16  # images that are also asked for one by one
_GRADIENT = 3  # passes that a gradient costs
_PASSES = {  # forward passes over the images that each check costs, of a network that holds out
    "gradients": 2 * _GRADIENT,
    "noise_is_on": 1,
    "black_box": 2 * _GRADIENT * _WHITE_STEPS + _QUERIES,
    "large_eps": _GRADIENT * _FAR_STEPS,
    "more_steps": _GRADIENT * (_FEW + _MANY),
    "batch_dependence": 2,
}
_ASKED = 2  # passes before the first check
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DROPOUT = nn.modules.dropout._DropoutNd


CHECK_IMAGES = 200
"""How many images `attack_checks` takes at most, and `ModelChecks` five times as many."""


def table_checks(rows: pl.DataFrame, classes: int | None = None) -> Iterator[Row]:
    """What can be wrong with a measurement, as its own rows show it: one row each.

    The value is 1 for a problem, with a sentence for the reader.

    Args:
        rows: The measurement.
        classes: How many classes the data are known to have; None where only labels are known.
    """
    clean = rows.filter(pl.col("family") == "clean", pl.col("unit").is_null())
    n = clean["n"].max()
    made: dict[str, Callable[[], Verdict]] = {
        "chance_accuracy": lambda: _chance(clean),
        "classes": lambda: _classes(clean, classes),
        "dead_layers": lambda: _dead_layers(clean),
        "samples_for_width": lambda: _samples(clean),
    }
    for name, check in made.items():
        yield _row(name, check, int(n) if isinstance(n, int) else 0)


@dataclass(frozen=True)
class Checks(Probe):
    """Checks of a model: their rows are all that they give, in one step."""

    stage: ClassVar[str] = "checks"

    def steps(self, examples: Split) -> int:
        return 1

    def found(self, subject: Subject, examples: Split, done: Callable[[int], None]) -> Iterator[Row]:
        """The rows."""
        raise NotImplementedError

    def begin(self, subject: Subject, examples: Split) -> Step:
        def step(number: int, done: Callable[[int], None]) -> Part:
            rows = list(self.found(subject, examples, done))
            done(len(self.costs(examples)))
            return Part.of(number, {}, {"rows": rows})

        return step

    def rows(self, part: Part) -> Iterator[Row]:
        yield from part.facts["rows"]


@PROBES.register
@dataclass(frozen=True)
class ModelChecks(Checks):
    """Is the model given what it was trained on, and can its layers be seen? Rows `check.image_range` and others."""

    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        return [2.0 * min(len(examples), 5 * CHECK_IMAGES)]

    def found(self, subject: Subject, examples: Split, done: Callable[[int], None]) -> Iterator[Row]:
        made: dict[str, Callable[[], Verdict]] = {
            "image_range": lambda: _range(examples),
            "normalisation_outside": lambda: _normalisation(subject, examples, self.batch_size),
            "activation_modules": lambda: _activations(subject.model),
        }
        for name, check in made.items():
            yield _row(name, check, len(examples))


AVERAGING: tuple[Reduce, ...] = (spatial_mean, positions, token_mean)
"""Reductions that suppose which axis holds the units."""


@PROBES.register
@dataclass(frozen=True)
class LayerAxes(Checks):
    """Does the reduction average the axes that it is meant for? The row `check.layer_axes`.

    `spatial_mean` and `positions` take axis 1 for the units, `token_mean` the last: right for maps of a convolution and
    for tokens, wrong the other way round. How axes are known: `geophone.models.tap.axes_of`.
    """

    layers: tuple[str, ...] | None = None
    reduce: str | Reduce = "spatial_mean"

    def costs(self, examples: Split) -> Sequence[float]:
        return [float(PROBED)]

    def found(self, subject: Subject, examples: Split, done: Callable[[int], None]) -> Iterator[Row]:
        yield _row("layer_axes", lambda: _axes(subject, examples, self.layers, reduction(self.reduce)), len(examples))


def checks(
    model: Model,
    data: Any,
    rows: pl.DataFrame,
    classes: int | None = None,
    layers: Sequence[str] | None = None,
    reduce: Reduce = spatial_mean,
    *,
    batch_size: int = 256,
) -> list[Row]:
    """What can be wrong with a measurement: the rows of `table_checks`, `ModelChecks` and `LayerAxes`.

    Args:
        model: The network that was measured.
        data: What it was measured with.
        rows: The measurement.
        classes: How many classes the data are known to have; None where only labels are known.
        layers: Those that were recorded, as for `measure`.
        reduce: What reduced their responses.
        batch_size: Images per batch.
    """
    examples = as_split(data).near(model)
    probes = ModelChecks(batch_size), LayerAxes(None if layers is None else tuple(layers), reduce)
    with opened((model,), examples) as subject:
        found = [row for probe in probes for row in probe.rows(summed(probe, subject, examples))]
    return [*table_checks(rows, classes), *found]


Verdict = tuple[str | None, str]
"""The sentence for a problem (None when there is none), and the sentence for when all is well."""


def _row(name: str, check: Callable[[], Verdict], n: int) -> dict[str, Any]:
    """A check's row; its value is null, and its note says why, where it can't be run."""
    row = {"metric": f"check.{name}", "n": n}
    try:
        problem, fine = check()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the user's own code fails in any way, such as for the last image left
        reason = plain(str(error).partition("\n")[0]) or type(error).__name__
        return {**row, "value": None, "note": f"{name.replace('_', ' ').capitalize()}: {reason}"}
    return {**row, "value": float(problem is not None), "note": problem or fine}


def _chance(clean: pl.DataFrame) -> Verdict:
    row = clean.filter(pl.col("metric") == "accuracy").row(0, named=True)
    chance = 1 / row["d"]
    found = f"clean accuracy is {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], chance is {chance:.3f}"
    problem = None
    if row["low"] <= chance:
        problem = (
            f"Not above chance: {found}. Check that labels and classes match, that the weights were loaded, and that "
            "the images are scaled as in training."
        )
    return problem, f"Above chance: {found}."


def _classes(clean: pl.DataFrame, classes: int | None) -> Verdict:
    logits = clean.filter(pl.col("metric") == "accuracy").row(0, named=True)["d"]
    if classes is None:
        return None, f"Every label has one of the network's {logits} logits; what the classes are, the data do not say."
    return other_classes(classes, logits), f"The network gives as many logits as the data have classes, {classes}."


def other_classes(classes: int, logits: int) -> str | None:
    """The sentence for a network of another number of logits than the data have classes."""
    if logits == classes:
        return None
    return (
        f"The network gives {logits} logits and the data have {classes} classes: check that label i of the data is "
        "output i of the network."
    )


def _range(split: Split) -> Verdict:
    low, high = (float(v) / (255 if split.x.dtype == torch.uint8 else 1) for v in (split.x.min(), split.x.max()))
    problem = None
    if high - low < 0.5:
        problem = (
            f"The images use only [{low:.3f}, {high:.3f}] of [0, 1]: they may be scaled twice, and then every level "
            "here is too large for them."
        )
    return problem, f"The images fill [{low:.3f}, {high:.3f}] of [0, 1]."


def _normalisation(subject: Subject, split: Split, batch_size: int) -> Verdict:
    """Does the network do better when the images are standardised outside it? Then it expects that."""
    part = split.take(min(len(split), 5 * CHECK_IMAGES))
    subject.reseed("checks", "normalisation")
    x = torch.cat([batch.x for batch in part.batches(batch_size)])
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp(min=1e-6)

    def accuracy(images: torch.Tensor) -> float:
        answers = [logits_of(subject.model, chunk).argmax(1) for chunk in images.split(batch_size)]
        return float((torch.cat(answers) == part.y).double().mean())

    raw = accuracy(x)
    try:
        standardised = accuracy((x - mean) / std)
    except GeophoneError as error:  # a root of what is below 0, an assertion that nothing is
        reason = str(error).partition("\n")[0]
        return None, f"No sign of normalisation outside the network, which can't take standardised images: {reason}"
    found = f"accuracy {raw:.3f} on images in [0, 1], {standardised:.3f} on standardised ones ({len(part)} images)"
    problem = None
    # 0.05 is beyond the 95 % interval of a difference of two shares of 1,000 images (at most 0.044).
    if standardised > raw + 0.05:
        problem = (
            f"The network seems to expect normalised images: {found}. Put the normalisation inside, as its first layer "
            "(geophone.models.Normalise), so that levels and eps mean what they say."
        )
    return problem, f"No sign of normalisation outside the network: {found}."


def _activations(model: Model) -> Verdict:
    names = layers_of(model)
    activations, recorded = len(activation_layers(model)), len(names)
    weighted = sum(isinstance(module, WEIGHTED) for module in unwrapped(model).modules()) - 1
    found = f"{activations} activation modules and {recorded - activations} others for {weighted} weighted layers"
    problem = None
    if activations == 0 or 2 * recorded < weighted:
        problem = (
            f"Layers are missing: by default {found} can be recorded ({', '.join(names[:8]) or 'none'}). A function "
            "such as F.relu is no layer: its output is recorded only as that of the module that calls it. Use nn.ReLU "
            "modules to record each one, or name the modules to record (--layers)."
        )
    return problem, f"Activations can be recorded: {found}."


def _axes(subject: Subject, split: Split, layers: Sequence[str] | None, reduce: Reduce) -> Verdict:
    if reduce not in AVERAGING:
        return None, "The reduction of responses averages no axis, or is one of your own, which is not checked."
    subject.reseed("checks", "axes")
    found = axes_of(subject.model, split.batch(0, PROBED).x, layers)
    maps = {name: axes for name, axes in found.items() if axes.kind == "channels"}
    tokens = {name: axes for name, axes in found.items() if axes.kind in ("features", "unknown")}
    wrong, right, what, other = tokens, maps, "neither [n, d] nor maps [n, c, …] of a convolution", "token_mean"
    if reduce is token_mean:
        wrong, right, what, other = maps, tokens, "maps [n, c, …] of a convolution", "spatial_mean"
    problem = None
    if wrong:
        shapes = [f"{name} [n, {', '.join(map(str, axes.shape[1:]))}]" for name, axes in list(wrong.items())[:5]]
        apart = f" and name them alone (--layers), since {_name(reduce)} suits {len(right)} others" if right else ""
        problem = (
            f"Averaged over the wrong axes: in {len(wrong)} of {len(found)} layers responses are {what} "
            f"({', '.join(shapes)}), and {_name(reduce)} takes their places or tokens for units and averages features. "
            f"Measure these layers with --reduce {other}{apart}."
        )
    return problem, f"{_name(reduce)} suits the axes of all {len(found)} layers."


def _name(reduce: Reduce) -> str:
    return next(name for name, each in REDUCTIONS.items() if each is reduce)


def _dead_layers(clean: pl.DataFrame) -> Verdict:
    rows = clean.filter(pl.col("metric") == "dead_fraction", pl.col("value") >= 0.5).sort("depth")
    problem = None
    if len(rows):
        worst = ", ".join(f"{r['layer']} ({r['value']:.0%} of {r['d']} units)" for r in rows.head(5).to_dicts())
        problem = f"Dead layers: half or more of the units answer the same to every image in {worst}."
    return problem, "No layer has half of its units dead."


def _samples(clean: pl.DataFrame) -> Verdict:
    rows = clean.filter(pl.col("metric") == "participation_ratio", pl.col("n") < 5 * pl.col("d")).sort(
        "d", descending=True
    )
    problem = None
    if len(rows):
        row = rows.row(0, named=True)
        problem = (
            f"Too few images for the width: {row['n']} images for {row['d']} units in {row['layer']} "
            f"({len(rows)} such layers). Dimensions are then biased down (at least 5 images per unit are advised); "
            "trust participation_ratio_corrected and cka, which are corrected for it."
        )
    return problem, "Every layer has at least 5 images per unit."


@PROBES.register
@dataclass(frozen=True)
class AttackChecks(Checks):
    """Can the robustness of this model be believed? Small attacks; see `attack_checks`."""

    stage: ClassVar[str] = "checks by attacks"

    eps: float = 8 / 255
    images: int = CHECK_IMAGES
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_counts(images=self.images, batch_size=self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        return [float(min(len(examples), self.images))] * (_ASKED + sum(_PASSES.values()))

    def check(self, subject: Subject, examples: Split) -> None:
        refuse_frozen(subject.model, "Robustness")
        need_labels(examples, "attack_checks")

    def found(self, subject: Subject, examples: Split, done: Callable[[int], None]) -> Iterator[Row]:
        split = examples.take(min(self.images, len(examples)))
        before, cost = 0, _ASKED

        def step(share: float) -> None:
            done(before + round(share * cost))

        subject.reseed("checks")
        checked = _Checked.of(subject, split, self.eps, self.batch_size, step)
        step(1.0)
        for name, check in _ATTACK_CHECKS.items():
            before, cost = before + cost, _PASSES.get(name, 0)
            subject.reseed("checks", name)
            yield _row(name, partial(check, checked), len(split))
            step(1.0)


def attack_checks(
    model: Model,
    data: Any,
    *,
    eps: float = 8 / 255,
    images: int = CHECK_IMAGES,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Can the robustness of this network be believed? One row for each check, as `checks` gives them.

    Signs of gradients that are masked, of randomness, of noise that is off, of outputs that are no logits and of
    BatchNorm gone wrong; they follow Carlini et al. 2019, arXiv:1902.06705, and Athalye et al. 2018, arXiv:1802.00420.
    A check that can't be run has the value null, and its note says why. What none of them sees may still be wrong.

    Costs 47 forward and backward passes over the images, and up to 70 more and 200 forward passes for those that hold
    out; for a stochastic network five times that. Images are perturbed within [0, 1] only.

    Args:
        model: Images in [0, 1] → logits, in the mode in which it was handed over.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`.
        eps: Radius of the attacks in l∞.
        images: How many images at most, the first of each class.
        batch_size: Images per batch.
        seed: Keys everything random.
        progress: Called with (steps done, steps in all); a step is about one pass over the images.

    Raises:
        GeophoneError: images or labels that can't be used, such as images outside [0, 1], a network without logits
            for them, or one whose noise is frozen.

    >>> [row["note"] for row in attack_checks(model, "fashion_mnist_mini") if row["value"] == 1]
    """
    probe = AttackChecks(eps, images, batch_size)
    examples = as_split(data).near(model)
    with opened((model,), examples, seed) as subject:
        return list(probe.rows(summed(probe, subject, examples, progress=progress)))


@dataclass(frozen=True)
class _Checked:
    """A network in evaluation mode, and what it answers in two passes over some images.

    Attributes:
        split: The images, on the network's device.
        training: Names of the modules that were handed over in training mode.
        logits: Of the first pass.
        again: Of the second.
        step: Called with the share of a check that is done.
    """

    model: Model
    split: Split
    eps: float
    batch_size: int
    seed: int
    training: set[str]
    logits: Float[Tensor, "n k"]
    again: Float[Tensor, "n k"]
    step: Callable[[float], None]

    @classmethod
    def of(
        cls, subject: Subject, split: Split, eps: float, batch_size: int, step: Callable[[float], None]
    ) -> "_Checked":
        """Ask the network twice."""
        first, second = (_answers(subject.model, split.batches(batch_size)) for _ in range(2))
        check_columns(first)
        check_labels(split, first.shape[1])
        training = set(subject.training[0])
        return cls(subject.model, split, eps, batch_size, subject.seed, training, first, second, step)

    @property
    def stochastic(self) -> bool:
        return _difference(self.logits, self.again) > SAME_BATCH

    @cached_property
    def right(self) -> Split:
        """The images that are classified right."""
        rows = (self.logits.argmax(1) == self.split.y).nonzero()[:, 0]
        if not len(rows):
            raise Undefined("no image is classified right, so there is nothing to attack.")
        return self.split.rows(rows)

    @cached_property
    def gradients(self) -> dict[str, Float[Tensor, " m"]] | str:
        """Largest input gradient of each image that is classified right, by loss; or why there is none."""
        right = self.right
        try:
            return {loss.__name__: self.gradient(right, loss) for loss in (scaled_ce, ce)}
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _answers(self.model, right.batches(self.batch_size))  # raises where gradients aren't what it fails by
            return str(error).partition("\n")[0] or type(error).__name__

    def gradient(self, split: Split, loss: Loss) -> Float[Tensor, " m"]:
        """Largest component of the gradient at each image."""
        ascent = Ascent(self.model, loss, classes=classes_of(split.y))
        with torch.inference_mode(False), torch.enable_grad():
            found = [ascent(batch.x.clone(), batch.y.clone())[2] for batch in split.batches(self.batch_size)]
        return torch.cat([gradient.abs().flatten(1).amax(1) for gradient in found])

    def attackable(self) -> None:
        """Raise `Undefined` where no white-box attack can be run."""
        if isinstance(self.gradients, str):
            raise Undefined("no gradient reaches the images, so no white-box attack can be run.")

    def attacked(self, attack: LinfPGD) -> tuple[Float[Tensor, " m"], int]:
        """Margins of the images that are classified right after an attack at full strength, at most 0; how many fall.

        The margin is positive where the image is misclassified. Attacks that differ in their steps begin at the same
        place.
        """
        margins = []
        for batch in self.right.batches(self.batch_size):
            found = attack(batch.x, batch.y, self.model, draws(self.seed, "checks", index=batch.index))
            passes = [margin(logits_of(self.model, found), batch.y) for _ in range(PASSES if self.stochastic else 1)]
            margins.append(torch.stack(passes).mean(0))
        every = torch.cat(margins)
        return every.clamp(max=0), int((every > 0).sum())


def _gradients(checked: _Checked) -> Verdict:
    right = len(checked.right)
    found = checked.gradients
    if isinstance(found, str):
        return (
            f"No gradient reaches the images, so white-box numbers say nothing about this network and a black-box "
            f"attack (LinfSquare) is what is left: {found}"
        ), ""
    bad = {name: int((~size.isfinite()).sum()) for name, size in found.items()}
    # Below this the smaller components of a gradient underflow, and with them their signs.
    faint = {name: int((size <= _faintest(size.dtype)).sum()) for name, size in found.items()}
    shares = f"{faint['scaled_ce']} with the scale-free loss, {faint['ce']} with plain cross-entropy"
    summary = f"of {right} images that are classified right, the gradient is zero or underflows in {shares}"
    if sum(bad.values()):
        worst = max(bad.values())
        return f"Broken gradients: NaN or infinite in {worst} of {right} images. Attacks by gradients can't be run.", ""
    if faint["scaled_ce"] > MATERIAL * right:
        return (
            f"Masked gradients: {summary}. White-box attacks are blind there, and the robust accuracy they show is too "
            "high: look for rounding, thresholds or saturation, and trust a black-box attack (LinfSquare) only."
        ), ""
    if faint["ce"] > MATERIAL * right:
        return (
            f"Plain cross-entropy is blind: {summary}. The logits are so large that it underflows: attacks with "
            "loss='ce', and those of other libraries, show too high a robust accuracy. Geophone's default losses are "
            "scale-free."
        ), ""
    return None, f"Gradients reach the images: {summary}."


def _randomness(checked: _Checked) -> Verdict:
    changed = int((checked.logits.argmax(1) != checked.again.argmax(1)).sum())
    found = (
        f"between two passes logits differ by {_difference(checked.logits, checked.again):.2g} of the largest one, "
        f"and {changed} of {len(checked.split)} predictions"
    )
    if checked.stochastic:
        averaging = (
            f"Attacks with draws (LinfPGD, LinfAPGD and their like) average over {EOT_DRAWS} draws of its noise (EOT) "
            "unless they say otherwise; in AutoAttack write version='rand'."
            if noisy_layers(checked.model)
            else "Attack it with averaged gradients (draws=10 or more in LinfPGD, LinfAPGD and their like, and in "
            "AutoAttack version='rand'); if the module that draws says stochastic = True, they do so by themselves."
        )
        return (
            f"The network is stochastic: {found}. Accuracies and responses in the table are of one draw. {averaging} "
            "Attacks without draws, such as Square and FAB, are weak here. Survival and curves over eps judge an "
            f"example by {PASSES} passes."
        ), ""
    modules = modules_of(checked.model)
    kept = [name for name in modules if name in checked.training and isinstance(modules[name], _DROPOUT)]
    if kept and "" not in checked.training:
        return (
            f"Dropout was handed over switched on in a network in evaluation mode ({_listed(kept)}), as for Monte "
            "Carlo dropout, and is off while Geophone measures: the numbers are those of the network without it. To "
            "keep it on, call torch.nn.functional.dropout(x, p, training=True)."
        ), ""
    return None, f"No randomness: {found}."


def _noise_is_on(checked: _Checked) -> Verdict:
    """A network that is meant to be stochastic and isn't has the robustness of another one (dicarlolab/vonenet#21)."""
    layers = noisy_layers(checked.model)
    if not layers:
        return None, "The network has no modules of noise."
    silent = {name: why for name, module in layers.items() if (why := why_silent(module))}
    if silent:
        reasons = ", ".join(f"in {name} it is {why}" for name, why in silent.items())
        return f"Noise is off: {reasons}. The numbers are those of a network without that noise.", ""
    names = _listed(list(layers))
    if not checked.stochastic:
        return (
            f"Noise does nothing: the network has modules of noise ({names}) and answers the same in two passes. The "
            "numbers are those of a network without noise: look for noise that is drawn in training mode only."
        ), ""
    found = f"The noise of {names} is on: accuracy is {_correct(checked, checked.logits)} with it"
    if not any(isinstance(module, Noisy) for module in layers.values()):
        return None, f"{found}."
    with silenced(checked.model):
        without = _answers(checked.model, checked.split.batches(checked.batch_size))
    return None, f"{found} and {_correct(checked, without)} without."


def _correct(checked: _Checked, logits: Float[Tensor, "n k"]) -> str:
    return f"{float((logits.argmax(1) == checked.split.y).double().mean()):.3f}"


def _probabilities(checked: _Checked) -> Verdict:
    logits = checked.logits.double()
    # Not by chance in logits of even one image; half precision rounds a sum of probabilities by 1e-3 at most.
    if _sums_to_one(logits) and float(logits.min()) >= 0:
        return (
            "The network gives probabilities, not logits: losses apply a softmax to them, so gradients vanish where "
            "the network is confident and robust accuracy looks too high. Take out its last softmax."
        ), ""
    if logits.max() <= SAME_BATCH and _sums_to_one(logits.exp()):
        return None, "The network gives log-probabilities, which are as good as logits: margins and losses are equal."
    return None, "The network gives logits, not probabilities."


def _black_box(checked: _Checked) -> Verdict:
    checked.attackable()
    if checked.stochastic:
        raise Undefined(
            "the network is stochastic: LinfSquare keeps the luckiest of its noisy answers, and would miss what an "
            "attack by averaged gradients finds."
        )
    # With two losses: each alone misses some images of sound networks (0.5 % of an undertrained one's).
    white = [LinfAPGD(eps=checked.eps, steps=_WHITE_STEPS, loss=loss) for loss in ("scaled_ce", "margin")]
    black = LinfSquare(eps=checked.eps, queries=_QUERIES)
    found = survival(
        *(checked.model, checked.split, [*white, black]),
        every=False,
        batch_size=checked.batch_size,
        seed=checked.seed,
        progress=lambda done, steps: checked.step(done / steps),
    )
    held = found.rate[:, :-1, 0].nan_to_num(math.inf).amin(1)
    beaten = int((found.rate[:, -1, 0] < held).sum())  # each 0 or 1; NaN, which is less than nothing, where not run
    attacked = len(checked.right)
    summary = (
        f"LinfSquare, which sees only logits, fools {beaten} of {attacked} images at eps = {checked.eps:.3g} that "
        "LinfAPGD can't, with either of two losses"
    )
    if beaten > MATERIAL * attacked and _by_chance(beaten, attacked, MISSED) < CHANCE:
        return (
            f"A black-box attack beats the white-box one: {summary}. Gradients are masked, and robust accuracy under "
            "white-box attacks is too high. Judge by both together, with more queries and restarts."
        ), ""
    return None, f"No black-box attack beats the white-box one: {summary}."


def _large_eps(checked: _Checked) -> Verdict:
    checked.attackable()
    # From the image itself: at this radius noise fools most networks, and would stand in for gradients that don't.
    averaged = _DRAWS if checked.stochastic else 1
    attack = LinfPGD(eps=_FAR, steps=_FAR_STEPS, random_start=False, draws=averaged)
    found = survival(
        checked.model, checked.split, [attack], batch_size=checked.batch_size, seed=key(checked.seed, "far")
    )
    value, low, high = found.accuracy()
    # Every image can be made the same grey one, which has one answer: right for the largest class at most.
    chance = float(checked.split.y.cpu().bincount().max()) / len(checked.split)
    summary = f"accuracy under LinfPGD at eps = {_FAR} is {value:.3f} [{low:.3f}, {high:.3f}]"
    if low > chance:
        return (
            f"Accuracy does not fall: {summary}, though every image can be made plain grey there, which leaves "
            f"{chance:.3f}. The attack fails, and so it may at small eps: gradients are masked."
        ), ""
    return None, f"Accuracy falls as eps grows: {summary}."


def _more_steps(checked: _Checked) -> Verdict:
    checked.attackable()
    averaged = _DRAWS if checked.stochastic else 1
    (few, fell), (many, fall) = (
        checked.attacked(LinfPGD(eps=checked.eps, steps=steps, loss="margin", draws=averaged))
        for steps in (_FEW, _MANY)
    )
    change, rounding = many - few, SAME_BATCH * float(checked.logits.abs().max())
    weaker, stronger = int((change < -rounding).sum()), int((change > rounding).sum())
    summary = (
        f"LinfPGD(eps={checked.eps:.3g}) with {_MANY} steps in place of {_FEW} brings {stronger} of {len(change)} "
        f"images nearer to a mistake and {weaker} further from one; {fell} are fooled with {_FEW}, {fall} with {_MANY}"
    )
    # On a sound network most change for the better; twice as many for the worse is no matter of tuning.
    if weaker > max(2 * stronger, MATERIAL * len(change)) and _by_chance(weaker, weaker + stronger, 0.5) < CHANCE:
        return (
            f"More steps make the attack weaker: {summary}. Gradients point the wrong way, and robust accuracy under "
            "white-box attacks says little."
        ), ""
    return None, f"More steps do not weaken the attack: {summary}."


def _batch_norm_mode(checked: _Checked) -> Verdict:
    modules = modules_of(checked.model)
    if not modules:
        raise Undefined("the network is a plain function, whose modules can't be seen.")
    norms = {name: module for name, module in modules.items() if isinstance(module, _BATCH_NORM)}
    of_batch = [name for name, module in norms.items() if module.running_mean is None]
    if of_batch:
        return (
            f"BatchNorm uses the statistics of each batch, also in evaluation mode ({_listed(of_batch)}): an image's "
            "prediction depends on its companions, and adversarial examples with them. Set track_running_stats=True."
        ), ""
    training = [name for name in norms if name in checked.training]
    if training:
        return (
            f"The network was handed over with BatchNorm in training mode ({_listed(training)}). It is measured in "
            "evaluation mode, as whoever uses it should run it: what was measured elsewhere without .eval() is about "
            "another network."
        ), ""
    return None, f"{len(norms)} BatchNorm modules, all in evaluation mode." if norms else "There is no BatchNorm."


def _batch_dependence(checked: _Checked) -> Verdict:
    if checked.stochastic:
        raise Undefined("the network is stochastic, which hides whether companions in a batch matter.")
    split, n = checked.split, len(checked.split)
    order = torch.randperm(n, generator=stream(checked.seed, "companions")).to(split.x.device)
    mixed = _answers(checked.model, split.batches(min(checked.batch_size, max(2, n // 3)), order))
    probe = order[:_ALONE]
    try:
        alone = _answers(checked.model, split.batches(1, probe))
    except GeophoneError as error:
        return f"Predictions depend on the batch: an image can be classified among others but not alone: {error}", ""
    answers = checked.logits[order]
    differ = max(_difference(answers, mixed), _difference(answers[: len(probe)], alone))
    changed = int((answers.argmax(1) != mixed.argmax(1)).sum())
    found = (
        f"among other images, or alone, an image's logits differ by {differ:.2g} of the largest one, and {changed} of "
        f"{n} predictions"
    )
    if differ > OTHER_BATCH:
        return (
            f"Predictions depend on the batch: {found}. Accuracies then depend on the batch size and the order of the "
            "images, and adversarial examples work only among their companions. Look for BatchNorm in training mode or "
            "other statistics over the batch."
        ), ""
    return None, f"Predictions do not depend on the batch: {found}."


_ATTACK_CHECKS: dict[str, Callable[[_Checked], Verdict]] = {
    check.__name__[1:]: check
    for check in (
        *(_gradients, _randomness, _noise_is_on, _probabilities, _black_box, _large_eps, _more_steps),
        *(_batch_norm_mode, _batch_dependence),
    )
}


def _answers(model: Model, batches: Iterator[Batch]) -> Float[Tensor, "n k"]:
    return torch.cat([logits_of(model, batch.x) for batch in batches])


def _difference(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> float:
    """The largest difference between two passes' logits, relative to the largest of them."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))


def _sums_to_one(values: Float[Tensor, "n k"]) -> bool:
    return values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() <= 1e-3).all())


def _faintest(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return info.tiny / info.eps


def _by_chance(k: int, n: int, p: float) -> float:
    """Probability of k or more of n where each has probability p."""
    from scipy.stats import binom

    return float(binom.sf(k - 1, n, p))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
