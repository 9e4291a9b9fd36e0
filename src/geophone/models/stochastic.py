"""Stochastic networks: noise in the response of a layer, in training and in evaluation.

Noise is drawn from torch's global state, which everything in Geophone that runs a network seeds and puts back. It is
reparameterised, x + s(x)·z with z standard normal, so gradients flow through it. It can be taken out for a while
(`silenced`), or held fixed to look at the network (`frozen`): robustness of a network with frozen noise is that of
another, deterministic network, and is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from math import isfinite
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import MODELS, parse_call
from geophone.core.rng import key, stream
from geophone.core.types import Model, describe, unwrapped

LEVEL, SCALE = 0.07, 0.35
"""Spontaneous response and gain of VOneNet's neuronal noise (arXiv: Dapello et al. 2020)."""

FLOOR = 1e-4
"""What is added to the variance of neuronal noise before its root, whose slope is infinite at 0."""


@dataclass(frozen=True)
class GaussianResponse:
    """Additive Gaussian noise: x + std·z, z standard normal. Independent for each image, unit and place.

    Attributes:
        std: Standard deviation in the units of the response, at least 0; 0 leaves it alone.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "std")

    @property
    def silent(self) -> bool:
        """Whether it changes nothing."""
        return self.std == 0

    def __call__(self, x: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The noisy response, given standard normal numbers."""
        return x + self.std * z


@dataclass(frozen=True)
class PoissonLike:
    """Noise whose variance is the mean, in units of spikes, as of neurons ("neuronal" noise).

        u = scale·x + level,   u' = u + z·√(max(u, 0) + 1e-4),   x' = (u' - level)/scale

    The mean of x' is x. Its variance is (max(scale·x + level, 0) + 1e-4)/scale²: large where the response is, and the
    larger the smaller the gain. Noise may make a response negative: VOneNet puts a ReLU after it.

    Attributes:
        level: Spontaneous response, in spikes, at least 0.
        scale: Gain, spikes per unit of the response, above 0.

    References:
        Dapello et al. 2020, "Simulating a primary visual cortex at the front of CNNs improves robustness to image
        perturbations", NeurIPS.
    """

    level: float = LEVEL
    scale: float = SCALE
    silent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self, "level")
        _check(self, "scale", positive=True)

    def __call__(self, x: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The noisy response, given standard normal numbers."""
        spikes = self.scale * x + self.level
        return (spikes + z * (spikes.relu() + FLOOR).sqrt() - self.level) / self.scale


Noise = GaussianResponse | PoissonLike

NOISES: dict[str, type[GaussianResponse] | type[PoissonLike]] = {"gaussian": GaussianResponse, "neuronal": PoissonLike}


def make_noise(noise: str, std: float = GaussianResponse.std, level: float = LEVEL, scale: float = SCALE) -> Noise:
    """Noise by its name, "gaussian" or "neuronal".

    Raises:
        GeophoneError: another name, a value that is not allowed, or one that belongs to the other noise.
    """
    if noise not in NOISES:
        raise unknown("noise", str(noise), NOISES)
    kind = NOISES[noise]
    own = {field.name for field in fields(kind)}
    given = {"std": (std, GaussianResponse.std), "level": (level, LEVEL), "scale": (scale, SCALE)}
    foreign = [name for name, (value, default) in given.items() if name not in own and value != default]
    if foreign:
        raise GeophoneError(
            f"noise={noise!r} with {foreign[0]}={given[foreign[0]][0]!r}: {noise} noise has only "
            f"{', '.join(sorted(own))}. Leave {foreign[0]} out."
        )
    return kind(**{name: given[name][0] for name in own})


class Noisy(nn.Module):
    """What a module with noise in its response is besides what it was.

    Its class is a subclass of the one that it had, so that whoever looks for a ReLU or for weights finds them, under
    the same names. Its response is noisy; that of its child `clean` is the response before the noise.
    """

    noise: Noise
    silent: bool
    fixed: int | None

    def disturbed(self, response: object) -> Tensor:
        """The response with noise, unless that is silenced."""
        if not isinstance(response, Tensor):
            kind = type(self).__bases__[1].__name__
            raise GeophoneError(
                f"{describe(self.noise)} was put on a {kind}, which gives a {type(response).__name__}: noise needs a "
                "module whose response is one tensor."
            )
        clean: Tensor = self.get_submodule("clean")(response)
        return clean if self.silent or self.noise.silent else self.noise(clean, self._normal(clean))

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers: fresh ones for each element, or where noise is frozen the same for every image."""
        if self.fixed is None:
            # In the order of the elements, not of memory, so that layouts don't matter.
            return torch.randn(like.shape, dtype=like.dtype, device=like.device)
        z = torch.randn(like.shape[1:], generator=stream(self.fixed))
        return z.to(like.device, like.dtype).expand_as(like)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _rebuilt, (type(self).__bases__[1],), self.__dict__.copy()


@cache
def _noisy(kind: Any) -> Any:
    """The subclass of a class of modules whose response is disturbed."""

    def forward(self: Noisy, *args: Any, **more: Any) -> Tensor:
        return self.disturbed(kind.forward(self, *args, **more))

    # The module's name is kept: by it, blocks of the user's are told from torch's own containers.
    return type(f"Noisy{kind.__name__}", (Noisy, kind), {"forward": forward, "__module__": kind.__module__})


def _rebuilt(kind: Any) -> Any:
    """An empty module for `copy` and `pickle` to fill: they can't find a class that was made while running."""
    made = _noisy(kind)
    return made.__new__(made)


def add_noise(module: nn.Module, noise: Noise) -> nn.Module:
    """Put noise in a module's response, in place, and return it.

    Raises:
        GeophoneError: it has noise already, or can't be changed.
    """
    if isinstance(module, Noisy):
        raise GeophoneError(f"the layer has {describe(module.noise)} already. Put noise after another layer.")
    own = "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule)
    # A container would run `clean` as one of its modules.
    if own or hasattr(module, "clean") or (isinstance(module, nn.Sequential) and len(module)):
        raise GeophoneError(
            f"noise can't be put on this {type(module).__name__}, whose forward is its own, or compiled, or which has "
            "an attribute 'clean'. Put an nn.Identity after it and the noise there."
        )
    module.add_module("clean", nn.Identity())
    noisy: Any = module
    kind: Any = type(module)
    noisy.__class__ = _noisy(kind)
    noisy.noise, noisy.silent, noisy.fixed = noise, False, None
    return module


@dataclass(frozen=True)
class ResponseNoise:
    """Noise in the response of a layer: called with a network, a copy of it that has it.

    Whoever reads that layer, by name or by default, gets the noisy response; `<layer>.clean` is the response before the
    noise. The layer "normalise" of the package's networks is their input, after normalisation. After a container
    (nn.Sequential) means after its last module, which then has the `clean`: `layer2.1.clean`; one whose forward does
    more than to run its modules is refused. A module that is used at several places draws noise at each. Weights keep
    their names, so state dicts load both ways. Noise does not depend on train or eval mode.

    Attributes:
        layer: Name of a module, as `layers_of` and `named_modules` give it.
        noise: `GaussianResponse(std)` or `PoissonLike(level, scale)`.

    >>> noisy = ResponseNoise("relu1", GaussianResponse(0.5))(network)
    """

    layer: str
    noise: Noise

    def __call__(self, model: nn.Module) -> nn.Module:
        """A copy of the network with noise in it, neither compiled nor parallel; the network itself stays as it is.

        Raises:
            GeophoneError: no such layer, it has noise already, or it can't be changed.
        """
        twin = deepcopy(unwrapped(model))
        add_noise(self.module(twin), self.noise)
        return twin

    def module(self, model: nn.Module) -> nn.Module:
        """The module whose response is disturbed.

        Raises:
            GeophoneError: there is no such layer.
        """
        modules = {name: module for name, module in model.named_modules() if name}
        if self.layer not in modules:
            raise unknown("layer", self.layer, modules, "Noise is put after one layer, so patterns don't work here.")
        module = modules[self.layer]
        while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module):
            module = module[-1]
        return module


def noisy_layers(model: Model) -> dict[str, nn.Module]:
    """The modules that draw noise: those of `ResponseNoise`, and a user's own that say `stochastic = True`.

    Names are those in the network itself, also where it is compiled or parallel.
    """
    modules = unwrapped(model).named_modules() if isinstance(model, nn.Module) else ()
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in modules
        if isinstance(module, Noisy) or getattr(module, "stochastic", False) is True
    }


def is_stochastic(model: Model) -> bool:
    """Whether a network has noise that is on: drawn anew at every pass, and of more than no strength."""
    return any(not why_silent(module) for module in noisy_layers(model).values())


def why_silent(module: nn.Module) -> str:
    """Why a module of `noisy_layers` draws no noise; empty where it does."""
    if not isinstance(module, Noisy):
        return ""
    if module.noise.silent:
        return f"of strength 0 ({describe(module.noise, keep=('std',))})"
    if module.silent:
        return "silenced"
    return "" if module.fixed is None else "frozen"


@contextmanager
def silenced(model: Model) -> Iterator[None]:
    """Inside the block the network's noise is off, as if its strength were 0; after it, as before.

    To see what noise does, such as that accuracy changes without it. A user's own module is not reached. A copy of the
    network that is made inside stays silenced.
    """
    with _switched(model, lambda module, _: setattr(module, "silent", True)):
        yield


@contextmanager
def frozen(model: Model, seed: int = 0) -> Iterator[None]:
    """Inside the block each layer's noise is one draw, the same for every image and pass; after it, as before.

    For looking at one deterministic member of the stochastic network, such as for metamers. Attacks and robustness are
    refused meanwhile: they would be those of a network that nobody uses. A user's own module is not reached. A copy of
    the network that is made inside stays frozen.
    """
    with _switched(model, lambda module, name: setattr(module, "fixed", key("frozen noise", seed, name))):
        yield


@contextmanager
def _switched(model: Model, switch: Callable[[Noisy, str], None]) -> Iterator[None]:
    modules = [(name, module) for name, module in noisy_layers(model).items() if isinstance(module, Noisy)]
    before = [(module, module.silent, module.fixed) for _, module in modules]
    try:
        for name, module in modules:
            switch(module, name)
        yield
    finally:
        for module, silent, fixed in before:
            module.silent, module.fixed = silent, fixed


def refuse_frozen(model: Model, what: str) -> None:
    """Raise an error where a network's noise is frozen.

    Args:
        model: The network.
        what: What can't be done with it, such as "robustness".
    """
    own = {name: module for name, module in noisy_layers(model).items() if isinstance(module, Noisy)}
    held = [name for name, module in own.items() if module.fixed is not None]
    if held:
        raise GeophoneError(
            f"{what} of a network whose noise is frozen ({', '.join(held)}) is that of another, deterministic network. "
            "Call it outside of `with frozen(model)`; `silenced(model)` is for the network without noise."
        )


@MODELS.register
def stochastic(
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    of: str = "small_cnn",
    layer: str = "relu1",
    noise: str = "gaussian",
    noise_std: float = GaussianResponse.std,
    level: float = LEVEL,
    scale: float = SCALE,
) -> nn.Module:
    """Another registered network with noise in a layer's response: gaussian (noise_std) or neuronal (level, scale)."""
    name, given = parse_call(of, "model")
    network = MODELS.build(name, **({"classes": classes, "mean": mean, "std": std} | given))
    return ResponseNoise(layer, make_noise(noise, noise_std, level, scale))(network)


def _check(noise: Noise, name: str, positive: bool = False) -> None:
    value = getattr(noise, name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or value < 0 or (positive and value == 0):
        allowed = "above 0" if positive else "of at least 0"
        raise GeophoneError(f"{type(noise).__name__}({name}={value!r}): {name} must be a number {allowed}.")
