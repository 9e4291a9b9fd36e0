"""Recipes: how a batch becomes a loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geophone.errors import GeophoneError
from geophone.metrics.selectivity import selectivity_of_means
from geophone.perturb import GaussianNoise, LinfPGD
from geophone.record import activation_layers, tap
from geophone.registry import RECIPES
from geophone.rng import Draws


@RECIPES.register
@dataclass(frozen=True)
class Standard:
    """Cross-entropy on clean images."""

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return cross_entropy(model(x), y)


@RECIPES.register
@dataclass(frozen=True)
class SelectivityRegularised:
    """Cross-entropy minus alpha times the mean class selectivity of the batch's responses.

        loss = CE(logits, y) - alpha · (1/L) Σ_l (1/U_l) Σ_{u in l} SI_u

    alpha < 0 discourages selectivity, alpha > 0 promotes it, 0 is `Standard`. Layers are all activation modules (not
    the classifier), units are channels averaged over space; the mean is within layers first, then over layers, so wide
    layers do not dominate. Class means use only the classes that are in the batch; a batch of one class has no such
    term. Whether the second ReLU of a residual block belongs here is an assumption (specification §1).

    References:
        Leavitt & Morcos 2020, arXiv:2003.01262. They published no code.
    """

    alpha: float = 0.0

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Cross-entropy minus alpha times mean selectivity.

        Raises:
            GeophoneError: the network has no activation module, or one whose mean responses are negative.
        """
        if self.alpha == 0:
            return cross_entropy(model(x), y)
        layers = activation_layers(model)
        if not layers:
            raise GeophoneError(
                "SelectivityRegularised needs activation modules such as nn.ReLU; the network has none. "
                "Replace functional activations (F.relu) by modules."
            )
        with tap(model, layers, detach=False) as responses:
            logits = model(x)
        return cross_entropy(logits, y) - self.alpha * mean_selectivity(responses, y)


def mean_selectivity(responses: Mapping[str, Float[Tensor, "n _"]], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean class selectivity of one batch: over units within each layer, then over layers; differentiable, in [0, 1].

    0, without gradient, when the batch has a single class.
    """
    present, row = y.unique(return_inverse=True)
    if len(present) < 2:
        return torch.zeros((), device=y.device)
    count = torch.bincount(row)[:, None]
    layers = []
    for name, response in responses.items():
        x = response.float()
        means = torch.zeros(len(present), x.shape[1], device=x.device).index_add_(0, row, x) / count
        if bool((means < 0).any()):
            raise GeophoneError(f"class selectivity is defined for non-negative responses; layer {name!r} has others.")
        layers.append(selectivity_of_means(means).mean())
    return torch.stack(layers).mean()


@RECIPES.register
@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy on adversarial images: PGD in the l∞ ball, with a random start, against the current network.

    The attack runs in eval mode (batch norm's running statistics), the training step in train mode; the literature does
    both. `step_size` is PGD's default when None.

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 8 / 255
    steps: int = 7
    step_size: float | None = None

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the attacked images."""
        attack = LinfPGD(eps=self.eps, steps=self.steps, step_size=self.step_size)
        return cross_entropy(model(attack(x, y, model, rng)), y)


@RECIPES.register
@dataclass(frozen=True)
class NoiseAugmented:
    """Cross-entropy on images with Gaussian noise of standard deviation `std`, clipped to [0, 1]."""

    std: float = 0.1

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the noisy images."""
        return cross_entropy(model(GaussianNoise(self.std)(x, y, model, rng)), y)
