"""Attacks of other libraries (foolbox, torchattacks, ART, adv-lib, or any function) as perturbations.

Whatever the library does, the network and the global random state are afterwards as they were, and what it returns is
checked before it is believed.
"""

import importlib
import inspect
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, unknown
from geophone.core.rng import Draws, key
from geophone.core.types import ROUNDING, Model
from geophone.models.run import check_columns, evaluating, seeded
from geophone.models.stochastic import refuse_frozen
from geophone.perturb.attacks.base import UNITS
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.checks import check_batch, check_number

BALLS: dict[str, Norm] = {"linf": LINF, "l2": L2, "l1": L1}

RADII = ("eps", "ε")
"""What libraries call an attack's radius. ART's `epsilon` is an overshoot or a first step."""


@dataclass(frozen=True)
class Tool:
    """A library's attack with its name, which is also how it prints.

    Attributes:
        name: What tables call it, such as `foolbox.LinfPGD(steps=20)`.
        run: From `(network, x, y, eps)` to attacked images, of any array type.
    """

    name: str
    run: Callable[[nn.Module, Tensor, Tensor, float], Any]

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Foreign:
    """An attack of another library as a perturbation; made by `from_foolbox`, `from_torchattacks` and the like.

    The library gets a module that answers with the network's logits in evaluation mode (a stochastic network's noise is
    what its own evaluation mode has) and nothing else of the network; copies of the images; and global random states
    that `rng` fixes, so that a result repeats. Unlike Geophone's own attacks, a foreign one may depend on the batch: on
    which images are in it, and in what order.

    Of what comes back, the shape is checked, that it is finite and in [0, 1] up to rounding, and that it is in the ball
    of radius eps if `ball` says which; it is clipped to both.

    Attributes:
        attack: The library's attack.
        eps: Its radius, in units of images in [0, 1], at least 0; it is handed to the library at each call.
        ball: `linf`, `l2` or `l1`; None where the attack has none, and then nothing is checked.
    """

    attack: Tool
    eps: float = 8 / 255
    ball: str | None = None
    level: ClassVar[str] = "eps"
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    family: ClassVar[str] = "attack"

    def __post_init__(self) -> None:
        check_number(self, "eps", 0.0, 1.0 if self.ball == "linf" else math.inf, UNITS)
        if self.ball is not None and self.ball not in BALLS:
            raise unknown("ball", self.ball, BALLS, "Leave it out for an attack without one.")

    @property
    def norm(self) -> Norm:
        """The norm of the ball; as if it were not there where there is no ball."""
        if self.ball is None:
            raise AttributeError(f"{self.attack.name} has no ball: give ball='linf', 'l2' or 'l1' if it has.")
        return BALLS[self.ball]

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, of the shape and dtype of x.

        Raises:
            GeophoneError: the library returns something else, or images outside [0, 1] or the ball.
        """
        check_batch(x, y, rng)
        if self.eps == 0:
            return x.clone()
        with undisturbed(model, x, rng) as network:
            # Copies, because libraries write to what they get, and inference tensors can't have gradients.
            inputs = x.detach().clone().clamp_(0, 1)
            found = self.attack.run(network, inputs, y.to(torch.int64, copy=True), self.eps)
            return self._checked(found, x)

    def _checked(self, found: Any, x: Tensor) -> Tensor:
        name = self.attack.name
        try:
            found = torch.as_tensor(found).detach().to(x.device, x.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise GeophoneError(
                f"{name} returned {type(found).__name__}, not images: wrap it so that it does."
            ) from error
        if found.shape != x.shape:
            raise GeophoneError(
                f"{name} returned {list(found.shape)} for images {list(x.shape)}: it must keep the shape."
            )
        if not bool(found.isfinite().all()):
            raise GeophoneError(f"{name} returned NaN or infinity. Try smaller steps, or another attack.")
        low, high = (float(edge) for edge in found.aminmax())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise GeophoneError(
                f"{name} returned values in [{low:.4g}, {high:.4g}]: tell it that images are in [0, 1] (`bounds`, "
                "`clip_values` or the like)."
            )
        found = found.clamp(0, 1)
        if self.ball is None:
            return found
        length = self.norm.length(found - x)
        # Each value may be rounded, so the ball is as much larger as a change of every value by that is long.
        slack = float(self.norm.length(torch.full_like(x[:1], ROUNDING)))
        if float(length.max()) > self.eps + slack:
            raise GeophoneError(
                f"{name} moved an image by {float(length.max()):.6g} in {self.ball}, further than eps={self.eps:.6g}: "
                "check how it takes its radius. If it looks for the nearest adversarial example at any distance, give "
                "`from_callable` a function of (model, x, y) that runs it."
            )
        over = (length > self.eps).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(over, self.norm.inside(found, x, self.eps), found)


def from_callable(
    attack: Callable[..., Any], eps: float, *, name: str, ball: str | None = None, **options: Any
) -> Foreign:
    """A function `attack(model, x, y) -> x_adv`, AttackBench's signature, as a perturbation.

    It is given the radius if it has a parameter `eps` or `ε`. If it has none, it is taken to look for the
    nearest adversarial example: the result goes from the image towards what it returns, no further than eps in `ball`.

    Args:
        attack: The function; labels are int64, images in [0, 1].
        eps: The radius.
        name: What tables call it.
        ball: `linf`, `l2` or `l1`, to check (or shorten) what it returns.
        options: Further arguments of the function.

    Raises:
        GeophoneError: the function takes no radius, and there is no ball to shorten in.
    """

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        return attack(network, x, y, **_radius(attack, eps), **options)

    return _foreign(_titled(name, options), run, eps, ball, attack)


def from_foolbox(attack: Any, eps: float, *, ball: str | None = None, **options: Any) -> Foreign:
    """An attack of foolbox: `from_foolbox("LinfPGD", 8/255, steps=20)`, or an attack object.

    Args:
        attack: Its name or class in `foolbox.attacks`, or an object; an object's plain attributes go into its name.
        eps: The radius; minimum-norm attacks are shortened to it, by foolbox.
        ball: As for `Foreign`; by default that of the attack's own distance, if it has one.
        options: Further arguments of the attack's class.

    Raises:
        GeophoneError: foolbox isn't installed, or has no such attack.
    """
    foolbox = _library("foolbox")
    attack = _looked_up(attack, foolbox.attacks, "foolbox")
    if isinstance(attack, type):
        attack = attack(**options)
    elif options:
        raise GeophoneError(
            f"{', '.join(options)}: an attack object has its arguments already; give its class or name."
        )
    else:
        options = {name: value for name, value in vars(attack).items() if isinstance(value, bool | int | float | str)}
    order = getattr(getattr(attack, "distance", None), "p", None)
    if ball is None:
        ball = next((name for name, norm in BALLS.items() if norm.order == order), None)

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        shown = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        return attack(shown, x, y, epsilons=eps)[1]

    return _foreign(_titled(f"foolbox.{type(attack).__name__}", options), run, eps, ball)


def from_torchattacks(attack: Any, eps: float, *, ball: str | None = None, **options: Any) -> Foreign:
    """An attack of torchattacks: `from_torchattacks("PGD", 8/255, ball="linf", steps=20)`.

    Args:
        attack: Its name or class in `torchattacks`, or a function of the network and eps that makes one.
        eps: The radius. An attack that takes none is shortened to it in `ball`, as by `from_callable`.
        ball: As for `Foreign`; needed where the attack takes no radius.
        options: Further arguments of the attack's class.

    Raises:
        GeophoneError: torchattacks isn't installed, or has no such attack; or one without radius comes without ball.
    """
    made = _looked_up(attack, _library("torchattacks"), "torchattacks")

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        return made(network, **_radius(made, eps), **options)(x, y)

    return _foreign(_titled(f"torchattacks.{_name(made)}", options), run, eps, ball, made)


def from_art(attack: Any, eps: float, *, ball: str | None = None, **options: Any) -> Foreign:
    """An attack of the Adversarial Robustness Toolbox: `from_art("FastGradientMethod", 8/255, ball="linf")`.

    ART computes in float32, whatever the images are.

    Args:
        attack: Its name or class in `art.attacks.evasion`, or a function of an estimator and eps that makes one: for
            arguments that go with the radius, such as `lambda estimator, eps: ProjectedGradientDescent(estimator,
            eps=eps, eps_step=eps / 4)`.
        eps: The radius. An attack that takes none is shortened to it in `ball`, as by `from_callable`.
        ball: As for `Foreign`; needed where the attack takes no radius.
        options: Further arguments of the attack's class.

    Raises:
        GeophoneError: ART isn't installed, or has no such attack; or one without radius comes without ball.
    """
    _library("art", "adversarial-robustness-toolbox")
    made = _looked_up(attack, importlib.import_module("art.attacks.evasion"), "art")
    quiet = {"verbose": False} if "verbose" in _parameters(made) and "verbose" not in options else {}

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        estimator = importlib.import_module("art.estimators.classification").PyTorchClassifier(
            network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=network(x[:1]).shape[1],
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.device.type == "cuda" else "cpu",
        )
        one = made(estimator, **_radius(made, eps), **quiet, **options)
        return one.generate(x=x.float().cpu().numpy(), y=y.cpu().numpy())

    return _foreign(_titled(f"art.{_name(made)}", options), run, eps, ball, made)


def from_adv_lib(attack: Any, eps: float, *, ball: str | None = None, **options: Any) -> Foreign:
    """An attack of adv-lib: `from_adv_lib("ddn", 0.5, ball="l2", steps=100)`.

    Most of them look for the nearest adversarial example, and are shortened to eps in `ball`, as by `from_callable`.

    Args:
        attack: Its name in `adv_lib.attacks`, or the function.
        eps: The radius.
        ball: As for `Foreign`; needed where the attack takes no radius.
        options: Further arguments of the function.

    Raises:
        GeophoneError: adv-lib isn't installed, or has no such attack; or one without radius comes without ball.
    """
    if isinstance(attack, str):
        _library("adv_lib", "adv-lib")
        attack = _looked_up(attack, importlib.import_module("adv_lib.attacks"), "adv_lib")
    return from_callable(attack, eps, name=f"adv_lib.{_name(attack)}", ball=ball, **options)


class _Shown(nn.Module):
    """A network as a library sees it: logits of the images' dtype for images of any, and nothing to tamper with."""

    def __init__(self, model: Model, x: Tensor) -> None:
        super().__init__()
        self._answer = (model,)  # in a tuple, so that `train()`, `to()`, `zero_grad()` and hooks don't reach it
        # Libraries ask the first parameter for the device.
        self.place = nn.Parameter(torch.zeros((), dtype=x.dtype, device=x.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = self._answer[0](x.to(self.place.dtype))
        if logits.ndim == 2:
            check_columns(logits)
        return logits.to(self.place.dtype)


@contextmanager
def undisturbed(model: Model, x: Tensor, rng: Draws) -> Iterator[nn.Module]:
    """The network to attack, in evaluation mode, and everything as it was after the block.

    That is all random states, and of the network its modes, its gradients, what learns and its running statistics; not
    its weights, which no attack has a reason to write to. Parameters need no gradient inside, so that a library's
    `backward()` computes none.

    Raises:
        GeophoneError: the network's noise is frozen.
    """
    refuse_frozen(model, "An attack")
    parameters, buffers = (model.parameters(), model.buffers()) if isinstance(model, nn.Module) else ((), ())
    kept = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    statistics = [(buffer, buffer.clone()) for buffer in buffers]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    noise = key("foreign", rng.seed, *rng.index.tolist())
    try:
        with evaluating(model), seeded(noise, x.device), torch.inference_mode(False), torch.enable_grad():
            np.random.seed(noise % 2**32)  # noqa: NPY002
            random.seed(noise)
            for parameter, learns, _ in kept:
                parameter.grad = None
                if learns:
                    parameter.requires_grad_(False)
            yield _Shown(model, x)
    finally:
        for parameter, learns, gradient in kept:
            parameter.requires_grad_(learns)
            parameter.grad = gradient
        for buffer, before in statistics:
            if not torch.equal(buffer, before):
                buffer.copy_(before)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _foreign(
    name: str,
    run: Callable[[nn.Module, Tensor, Tensor, float], Any],
    eps: float,
    ball: str | None,
    takes: Callable[..., Any] | None = None,
) -> Foreign:
    """The perturbation; shortened to eps where `takes`, which makes the attack, takes no radius."""
    if takes is None or _radius(takes, eps):
        return Foreign(Tool(name, run), eps, ball)
    if ball not in BALLS:
        raise GeophoneError(
            f"{name} takes no radius (a parameter {' or '.join(RADII)}): give ball='linf', 'l2' or 'l1', and what it "
            "finds is brought to within eps of the image."
        )
    norm = BALLS[ball]

    def shortened(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Any:
        found = torch.as_tensor(run(network, x.clone(), y, eps)).detach().to(x.device, x.dtype)
        delta = found - x
        length = norm.length(delta).clamp(min=torch.finfo(x.dtype).tiny)
        share = (eps / length).reshape(-1, *[1] * (x.ndim - 1))
        # What is near enough stays as it is, to the bit: it may lie just over the decision boundary.
        return torch.where(share < 1, x + delta * share, found)

    return Foreign(Tool(name, shortened), eps, ball)


def _radius(function: Callable[..., Any], eps: float) -> dict[str, float]:
    """The argument that is the radius, by the function's own name for it; nothing where it takes none."""
    parameters = _parameters(function)
    return next(({name: eps} for name in RADII if name in parameters), {})


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # some built-in functions don't say
        return []


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _titled(name: str, options: dict[str, Any]) -> str:
    """A name with its options, as code; what would print an address in memory is shown by its type."""
    plain = {key: repr(value) for key, value in options.items()}
    parts = [f"{key}={f'{type(options[key]).__name__}' if ' at 0x' in text else text}" for key, text in plain.items()]
    return f"{name}({', '.join(parts)})" if parts else name


def _looked_up(attack: Any, module: Any, library: str) -> Any:
    """The attack of this name, or what was given if it isn't a name."""
    if not isinstance(attack, str):
        return attack
    if attack.startswith("_") or not callable(getattr(module, attack, None)):
        names = [name for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")]
        raise unknown(f"attack of {library}", attack, names)
    return getattr(module, attack)


def _library(name: str, distribution: str | None = None) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GeophoneError(
            f"{name} could not be imported ({error}): install it with `pip install {distribution or name}`."
        ) from None
