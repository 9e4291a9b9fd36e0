"""Recipes against an adversary: each attacks the current network, then trains on what the attack found.

All attacks run in evaluation mode (BatchNorm's running statistics) and in full precision, and leave modes, statistics
and gradients of weights as they were; the passes that are trained on run in the mode in which the network was given.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS, RECIPES
from geophone.core.rng import Draws
from geophone.core.types import Averages, Model, Perturbation, Recipe, describe
from geophone.models.run import full_precision
from geophone.perturb import FGSM, L1, L1PGD, L2, L2PGD, LINF, Attack, LinfPGD, Norm, check_number
from geophone.perturb.attacks.ascent import Ascent, classes_of, pgd
from geophone.perturb.attacks.base import UNITS, under_attack
from geophone.perturb.attacks.losses import Loss, ce

NEAR = 0.001
"""Standard deviation of the noise from which TRADES and MART begin their attack, in the units of x."""

BOOST = 1e-4
"""What MART adds to 1 - max p, as its authors do: its logarithm is then at least -9.2."""

_STEPS = 10  # of the attack that judges robustness on validation images
_PGD: dict[Norm, type[Attack]] = {LINF: LinfPGD, L2: L2PGD, L1: L1PGD}


@RECIPES.register
@dataclass(frozen=True)
class Adversarial(Recipe):
    """Cross-entropy on adversarial images: PGD in the l∞ ball, with a random start, against the current network.

    Or any other registered perturbation: `Adversarial(attack='L2PGD(eps=0.5, steps=7)')`. Written without its level, it
    has the one that it has by default.

    Attributes:
        eps: Radius of the l∞ ball, in [0, 1].
        steps: Of PGD, at least 1.
        step_size: PGD's default, 2.5·eps/steps, when None.
        attack: The perturbation as code; eps, steps and step_size are its own then.

    Raises:
        GeophoneError: a value that is not allowed, an unknown attack, or both an attack and eps, steps or step_size.

    References:
        Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 8 / 255
    steps: int = 7
    step_size: float | None = None
    attack: str | None = None

    def __post_init__(self) -> None:
        own = [f.name for f in fields(self) if f.name != "attack" and getattr(self, f.name) != f.default]
        if self.attack is not None and own:
            raise GeophoneError(
                f"{describe(self)}: {', '.join(own)} and an attack contradict each other. Write the numbers inside the "
                "attack's code, as in attack='L2PGD(eps=0.5, steps=7)', or leave the attack out for PGD in l∞."
            )
        _ = self.inner  # what is wrong with it is said here, not after hours

    @property
    def inner(self) -> Perturbation:
        """The attack that it trains against."""
        if self.attack is None:
            return LinfPGD(eps=self.eps, steps=self.steps, step_size=self.step_size)
        made: Perturbation = PERTURBATIONS.build(self.attack)
        return made

    @property
    def threat(self) -> Perturbation:
        """10 steps of PGD in the same ball, where the attack is FGSM or PGD; else the attack."""
        inner: Any = self.inner
        return _PGD[inner.norm](eps=inner.eps) if type(inner) in (FGSM, *_PGD.values()) else inner

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the attacked images; of a network's own noise each step of the attack has one draw."""
        inner: Any = self.inner
        given: Perturbation = inner
        if isinstance(given, Averages) and given.draws is None:
            inner = replace(inner, draws=1)  # training sees many draws anyway: averaging is for measuring
        with full_precision():
            attacked = inner(x, y, model, rng)
        return cross_entropy(model(attacked), y)


@RECIPES.register
@dataclass(frozen=True)
class FastAdversarial(Recipe):
    """Cross-entropy on images after a single signed step from a uniform start in the l∞ ball.

        x' = clip(P(x + δ + alpha·sign(∇ CE(f(x + δ), y)))),   δ uniform on [-eps, eps]

    with P the projection on the ball and x + δ clipped to [0, 1] too. The authors take the step in train mode.

    Such training can overfit catastrophically: within an epoch the network learns to fool the single step and falls to
    any attack of several. So it is watched: where there are validation images, `fit` records robust accuracy under
    several steps and under one after each epoch, for `catastrophic_overfitting` to judge.

    Attributes:
        eps: Radius, in [0, 1].
        alpha: Length of the step; 1.25·eps when None.

    Raises:
        GeophoneError: a value that is not allowed.

    References:
        Wong, Rice & Kolter 2020, arXiv:2001.03994.
    """

    eps: float = 8 / 255
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0, UNITS)
        if self.alpha is not None:
            check_number(self, "alpha", 0.0)

    @property
    def single_step(self) -> bool:
        """One step, from a random start."""
        return True

    @property
    def threat(self) -> Perturbation:
        """10 steps of PGD in the same ball."""
        return LinfPGD(eps=self.eps, steps=_STEPS)

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the attacked images."""
        alpha = 1.25 * self.eps if self.alpha is None else self.alpha
        with full_precision():
            attacked = LinfPGD(eps=self.eps, steps=1, step_size=alpha, loss="ce", draws=1)(x, y, model, rng)
        return cross_entropy(model(attacked), y)


@dataclass(frozen=True)
class _FromNearby(Recipe):
    """What TRADES and MART share: the ball, and PGD that begins beside the image."""

    eps: float = 8 / 255
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0, UNITS)
        check_number(self, "beta", 0.0)
        check_number(self, "steps", 1.0)
        if self.step_size is not None:
            check_number(self, "step_size", 0.0)

    @property
    def threat(self) -> Perturbation:
        """10 steps of PGD in the same ball."""
        return LinfPGD(eps=self.eps, steps=_STEPS)

    def _attacked(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: Draws, climbed: Callable[[Model, Tensor], Loss]
    ) -> Tensor:
        """The images that PGD finds, given what it climbs for a network and clean images."""

        def search(x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
            start = LINF.inside(x + NEAR * rng.normal("start", *x.shape[1:]).to(x.dtype), x, self.eps)
            step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
            ascent = Ascent(model, climbed(model, x), classes=classes_of(y))
            found = pgd(ascent, x, y, start, norm=LINF, eps=self.eps, steps=self.steps, step_size=step_size)
            ascent.check()
            return found

        with full_precision():
            return under_attack(search, x, y, model, rng)


@RECIPES.register
@dataclass(frozen=True)
class Trades(_FromNearby):
    """Cross-entropy on clean images plus how far an attack can move the prediction (TRADES).

        loss = CE(f(x), y) + beta · KL(p(x) || p(x')),   means over the images

    x' maximises that divergence in the l∞ ball: PGD from x + 0.001·z, z standard normal, which is projected and clipped
    too. Gradients flow through both predictions. Two passes, so batch norm normalises clean and attacked images each by
    themselves, and its running statistics are moved by both.

    Attributes:
        eps: Radius, in [0, 1].
        beta: Weight of the divergence, 1/λ in the paper; at least 0.
        steps: Of PGD, at least 1.
        step_size: 2.5·eps/steps when None, which is a quarter of eps; the authors' is 0.007 for eps = 0.031.

    Raises:
        GeophoneError: a value that is not allowed.

    References:
        Zhang et al. 2019, arXiv:1901.08573.
    """

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the clean images, plus `beta` times the mean divergence, in nats."""

        def climbed(network: Model, clean: Tensor) -> Loss:
            with torch.no_grad():
                logits = network(clean)
            return lambda moved, _: kl(logits, moved)

        attacked = self._attacked(model, x, y, rng, climbed)
        logits = model(x)
        return cross_entropy(logits, y) + self.beta * kl(logits, model(attacked)).mean()


@RECIPES.register
@dataclass(frozen=True)
class Mart(_FromNearby):
    """Boosted cross-entropy on attacked images plus a divergence that counts most where the network errs (MART).

        loss = mean of   -log p_y(x') - log(1 + 1e-4 - max_{k≠y} p_k(x')) + beta · KL(p(x) || p(x')) · (1 - p_y(x))

    x' maximises cross-entropy in the l∞ ball, by PGD as in `Trades`. The 1e-4 is the authors'; theirs of 1e-12 inside
    other logarithms, and of 1e-7 in the last factor, are not needed here. Gradients flow through all factors. Two
    passes, clean and attacked, as in `Trades`.

    Attributes:
        eps: Radius, in [0, 1].
        beta: Weight of the divergence, λ in the paper; at least 0.
        steps: Of PGD, at least 1.
        step_size: 2.5·eps/steps when None, which is a quarter of eps; the authors' is 0.007 for eps = 0.031.

    Raises:
        GeophoneError: a value that is not allowed.

    References:
        Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples", ICLR,
        OpenReview rklOg6EFwS.
    """

    beta: float = 5.0

    def loss(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], rng: Draws
    ) -> Float[Tensor, ""]:
        """The mean over the images, in nats."""
        attacked = self._attacked(model, x, y, rng, lambda *_: ce)
        logits = model(x)
        moved = model(attacked)
        log_p, log_q, label = _log_softmax(logits), _log_softmax(moved), y[:, None]
        other = log_q.scatter(1, label, -torch.inf).amax(1).exp()
        boosted = -log_q.gather(1, label)[:, 0] - (1 + BOOST - other).log()
        unsure = -log_p.gather(1, label)[:, 0].expm1()  # 1 - p_y(x)
        return (boosted + self.beta * kl(logits, moved) * unsure).mean()


def kl(logits: Float[Tensor, "n k"], moved: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(p || q) = Σ_k p_k log(p_k / q_k) in nats, p the softmax of `logits` and q that of `moved`; at least 0."""
    log_p, log_q = _log_softmax(logits), _log_softmax(moved)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _log_softmax(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """In float32 at least: differences of bfloat16's logarithms are mostly rounding."""
    return logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
