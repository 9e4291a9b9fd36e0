"""Recipes: how a batch becomes a loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import RECIPES
from geophone.core.rng import Draws
from geophone.core.types import Model, Recipe, describe, unwrapped
from geophone.metrics.selectivity import selectivity_of_means
from geophone.models.run import Snapshot, full_precision
from geophone.models.stochastic import LEVEL, SCALE, GaussianResponse, Noisy, ResponseNoise, make_noise
from geophone.models.tap import ACTIVATIONS, WEIGHTED, activation_layers, layers_of, tap
from geophone.perturb import GaussianNoise, grid
from geophone.train.augmix import augmixed, jensen_shannon


@RECIPES.register
@dataclass(frozen=True)
class Standard(Recipe):
    """Cross-entropy on clean images."""

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return cross_entropy(model(x), y)


@RECIPES.register
@dataclass(frozen=True)
class SelectivityRegularised(Recipe):
    """Cross-entropy minus alpha times the mean class selectivity of the batch's responses.

        loss = CE(logits, y) - alpha · (1/L) Σ_l (1/U_l) Σ_{u in l} SI_u

    alpha < 0 discourages selectivity, alpha > 0 promotes it, 0 is `Standard`. Units are channels averaged over space;
    the mean is within layers first, then over layers, so wide layers do not dominate. The network's own output is never
    a layer. Class means use only the classes that are in the batch; a batch of one class has no such term. Whether the
    second ReLU of a residual block belongs here is an assumption (specification §1).

    Attributes:
        alpha: Strength and direction.
        first: Only the first so many layers, in the order of execution; default all.
        last: Only the last so many layers.
        granularity: "activations": every activation module is a layer. "blocks": every block is, and nothing else, a
            block being a module of the user's own with weighted modules inside, as for recording.

    Raises:
        GeophoneError: another granularity, `first` or `last` below 1, or both.

    References:
        Leavitt & Morcos 2020, arXiv:2003.01262. They published no code.
    """

    alpha: float = 0.0
    first: int | None = None
    last: int | None = None
    granularity: str = "activations"

    def __post_init__(self) -> None:
        if self.granularity not in ("activations", "blocks"):
            raise unknown("granularity", self.granularity, ("activations", "blocks"))
        if self.first is not None and self.last is not None:
            raise GeophoneError(f"{describe(self)}: give first or last, not both.")
        for name, count in (("first", self.first), ("last", self.last)):
            if count is not None and count < 1:
                raise GeophoneError(f"{describe(self)}: {name} is a number of layers, from 1. Leave it out for all.")

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Cross-entropy minus alpha times mean selectivity.

        Raises:
            GeophoneError: the network has no such layers, fewer than `first` or `last`, or one whose mean responses are
                negative.
        """
        if self.alpha == 0:
            return cross_entropy(model(x), y)
        logits, responses = self.responses(model, x)
        return cross_entropy(logits, y) - self.alpha * mean_selectivity(responses, y)

    def responses(
        self, model: nn.Module, x: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n k"], dict[str, Float[Tensor, "n _"]]]:
        """The logits, and what the regularised layers answer, in the order of execution."""
        names = activation_layers(model)
        if self.granularity == "blocks":
            modules = dict(unwrapped(model).named_modules())
            names = [name for name in layers_of(model) if not isinstance(modules[name], (*ACTIVATIONS, *WEIGHTED))]
        outputs: list[Snapshot] = []

        def mean(response: Tensor) -> Tensor:
            outputs.append(Snapshot(response))
            return _spatial_mean(response)

        with tap(model, names, mean, detach=False) as seen:
            logits = model(x)
        inner = [name for name, output in zip(seen, outputs, strict=True) if not output.holds(logits)]
        asked = self.first or self.last or 1
        if len(inner) < asked:
            raise GeophoneError(
                f"{describe(self)}: the network has {len(inner)} {self.granularity} to regularise, {asked} are needed. "
                "Activations are modules such as nn.ReLU, not functions (F.relu); blocks are modules of your own with "
                "weighted modules inside."
            )
        chosen = inner[: self.first] if self.last is None else inner[-self.last :]
        return logits, {name: seen[name] for name in chosen}


def mean_selectivity(responses: Mapping[str, Float[Tensor, "n _"]], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean class selectivity of one batch: over units within each layer, then over layers; differentiable, in [0, 1].

    0, without gradient, when the batch has a single class.

    Raises:
        GeophoneError: a layer has negative mean responses.
    """
    present, row, count = y.unique(return_inverse=True, return_counts=True)
    if len(present) < 2:
        return torch.zeros((), device=y.device)
    units = [response.shape[1] for response in responses.values()]
    # Many layers are small: all of them at once, in one product.
    with full_precision():
        means = (one_hot(row, len(present)) / count).T @ torch.cat([x.float() for x in responses.values()], 1)
    if bool((means < 0).any()):
        bad = next(name for name, part in zip(responses, means.split(units, 1), strict=True) if (part < 0).any())
        raise GeophoneError(f"class selectivity is defined for non-negative responses; layer {bad!r} has others.")
    share = torch.tensor([1 / (len(units) * width) for width in units], device=y.device)
    each = torch.tensor(units, device=y.device)
    return (selectivity_of_means(means) * share.repeat_interleave(each, output_size=sum(units))).sum()


def _spatial_mean(response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """As `record.spatial_mean` to rounding. Backward, a mean makes a copy as large as the response, a sum a view."""
    if response.ndim <= 2:
        return response
    return response.sum(tuple(range(2, response.ndim)), dtype=torch.float32) / response.shape[2:].numel()


@RECIPES.register
@dataclass(frozen=True)
class NoiseAugmented(Recipe):
    """Cross-entropy on images with Gaussian noise of standard deviation `std`, clipped to [0, 1]."""

    std: float = 0.1

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the noisy images."""
        return cross_entropy(model(GaussianNoise(self.std)(x, y, model, rng)), y)


@RECIPES.register
@dataclass(frozen=True)
class Corrupted(Recipe):
    """Cross-entropy on corrupted images: each goes through one of several corruptions or noises, drawn for it alone.

    The draw is uniform and keyed by the image, so it does not depend on the batch. A name without its level stands for
    all its levels, a family such as "corruption" for everything that is registered in it, a plug-in's too. Level 0
    leaves an image as it is: "GaussianNoise(std=0.2), GaussianNoise(std=0)" is noise for half of the images. An attack
    may be among them. A step costs at least one call for each of those that were drawn.

    Training on a corruption helps little against others, so measure on what it was not trained on.

    Attributes:
        by: Registered perturbations as code, separated by commas.

    Raises:
        GeophoneError: a perturbation is unknown.

    References:
        Geirhos et al. 2018, arXiv:1808.08750; Rusak et al. 2020, arXiv:2001.06057.
    """

    by: str = "gaussian_noise"

    def __post_init__(self) -> None:
        grid(self.by)

    @property
    def threat(self) -> "Corrupted":
        """The corruptions that it trains on."""
        return self

    def __call__(
        self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], model: Model, rng: Draws
    ) -> Float[Tensor, "n c h w"]:
        """The corrupted images."""
        every = grid(self.by)
        which = rng.child("choice").bits("which") % len(every)
        counts = one_hot(which, len(every)).sum(0).tolist()  # asked of the device once
        out = torch.empty_like(x)
        for perturbation, rows in zip(every, which.argsort(stable=True).split(counts), strict=True):
            if len(rows):
                out[rows] = perturbation(x[rows], y[rows], model, rng[rows])
        return out

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the corrupted images."""
        with full_precision():
            corrupted = self(x, y, model, rng)
        return cross_entropy(model(corrupted), y)


@RECIPES.register
@dataclass(frozen=True)
class AugMix(Recipe):
    """Cross-entropy on clean images plus the divergence of predictions on them and on two AugMix versions.

        loss = CE(f(x), y) + jsd · JSD(f(x); f(x'); f(x''))

    x' and x'' are mixtures of x with chains of simple operations (autocontrast, equalise, posterise, solarise, rotate,
    shear, translate: none is a corruption of CIFAR-10-C). One forward pass on all three, so batch norm sees them
    together; on one core a step of the small CNN costs 3.8 of `Standard`'s. The largest level of each operation,
    bilinear interpolation and black filling are our assumptions. See `geophone.train.augmix`.

    Attributes:
        width: Chains that are mixed.
        depth: Operations in a chain; 0 draws 1, 2 or 3 for each.
        severity: Largest level of an operation, 1 to 10.
        jsd: Weight of the divergence.

    Raises:
        GeophoneError: a value that is not allowed.

    References:
        Hendrycks et al. 2020, arXiv:1912.02781.
    """

    width: int = 3
    depth: int = 0
    severity: int = 3
    jsd: float = 12.0

    def __post_init__(self) -> None:
        allowed = {
            "width": (self.width >= 1, "at least 1"),
            "depth": (self.depth >= 0, "at least 0"),
            "severity": (1 <= self.severity <= 10, "1 to 10"),
            "jsd": (self.jsd > 0, "above 0"),
        }
        for name, (holds, what) in allowed.items():
            if not holds:
                raise GeophoneError(f"AugMix({name}={getattr(self, name)}): allowed is {what}.")

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the clean images, plus `jsd` times the mean Jensen-Shannon divergence, in nats."""
        mixed = augmixed(x, rng, 2, self.width, self.depth, self.severity)
        logits = model(torch.cat([x, *mixed])).unflatten(0, (3, len(x)))
        return cross_entropy(logits[0], y) + self.jsd * jensen_shannon(logits)


@RECIPES.register
@dataclass(frozen=True)
class Stochastic(Recipe):
    """Another recipe, on a network that is given noise in the response of one layer and keeps it.

    A job puts the noise in (`network`); elsewhere `prepare` does, before `fit`. Weights begin as those of the network
    without noise do, and std = 0 is the other recipe exactly. Of an adversarial recipe, each step of its attack has one
    draw of the noise.

    Attributes:
        layer: Name of the layer whose response is disturbed; "normalise" for the input.
        noise: "gaussian" (`GaussianResponse`) or "neuronal" (`PoissonLike`).
        std: Standard deviation of Gaussian noise, in the units of the response.
        level: Spontaneous response of neuronal noise, in spikes.
        scale: Its gain: the larger, the less noise.
        recipe: The other recipe, as code.

    Raises:
        GeophoneError: a value that is not allowed, or that belongs to the other noise; an unknown recipe.

    References:
        Dapello et al. 2020 and 2021, as of `geophone.models.ResponseNoise`.
    """

    layer: str = "relu1"
    noise: str = "gaussian"
    std: float = GaussianResponse.std
    level: float = LEVEL
    scale: float = SCALE
    recipe: str = "Standard"

    def __post_init__(self) -> None:
        _ = self.disturbance, self.inner

    @property
    def disturbance(self) -> ResponseNoise:
        """What is put into the network."""
        return ResponseNoise(self.layer, make_noise(self.noise, self.std, self.level, self.scale))

    @property
    def inner(self) -> Any:
        """The other recipe."""
        return RECIPES.build(self.recipe)

    @property
    def threat(self) -> Any:
        """The other recipe's."""
        return self.inner.threat

    @property
    def single_step(self) -> bool:
        """The other recipe's."""
        return bool(self.inner.single_step)

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the noise in it: what is trained."""
        return self.disturbance(self.inner.prepare(model))

    def network(self, code: str) -> str:
        """The code of the registered network that is trained, from that of the one without noise."""
        inner = self.inner.network(code)
        numbers = f"noise_std={self.std!r}, level={self.level!r}, scale={self.scale!r}"
        return f"stochastic(of={inner!r}, layer={self.layer!r}, noise={self.noise!r}, {numbers})"

    def check_network(self, model: nn.Module) -> None:
        """Raise an error for a network without the noise: it would be trained, and measured, as if it had it."""
        module = self.disturbance.module(unwrapped(model))
        if not isinstance(module, Noisy) or module.noise != self.disturbance.noise:
            raise GeophoneError(
                f"{describe(self)} trains a network with noise after {self.layer!r}, and this one has none, or other: "
                "train recipe.prepare(model)."
            )

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """The other recipe's loss."""
        loss: Tensor = self.inner.loss(model, x, y, rng)
        return loss
