"""The words that every room shares: what a batch, a perturbation and a recipe are."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.utils.deterministic
from jaxtyping import Float, Int
from torch import Tensor, nn

from geophone.errors import GeophoneError
from geophone.rng import Draws

Model = nn.Module | Callable[[Tensor], Tensor]

ROUNDING = 1e-6
"""How far images may leave [0, 1] and still count as in it: resizing in float32 does as much."""


@dataclass(frozen=True)
class Batch:
    """A few examples of one stream: images, or the responses of one layer to them.

    Attributes:
        x: What the stream carries, examples first: images `[n, c, h, w]`, responses `[n, d]`, logits `[n, k]`.
        y: Class labels `[n]`, int64.
        index: Position of each example in its data set `[n]`, int64. Randomness is keyed by it, so results do not
            depend on batch size or order.
    """

    x: Tensor
    y: Int[Tensor, " n"]
    index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def with_x(self, x: Tensor) -> "Batch":
        """The same examples with something else in `x`."""
        return Batch(x, self.y, self.index)


@dataclass(frozen=True)
class Pair:
    """Two aligned streams: row i of `a` and row i of `b` come from the same example.

    Attributes:
        a: `[n, p]`, by convention the responses to the clean images.
        b: `[n, q]`, by convention the responses to the perturbed ones.
    """

    a: Float[Tensor, "n p"]
    b: Float[Tensor, "n q"]

    def __len__(self) -> int:
        return len(self.a)


@runtime_checkable
class Perturbation(Protocol):
    """Noise, corruption and attack are one thing: a frozen dataclass, hyper-parameters as fields, data in the call.

    The class attribute `level` names the field that says how strong it is, and `levels` are its default strengths.
    """

    level: ClassVar[str]
    levels: ClassVar[tuple[float, ...]]
    family: ClassVar[str]

    def __call__(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Perturbed images: same shape, in [0, 1]; the same `(x, rng)` always gives the same result."""
        ...


@runtime_checkable
class Recipe(Protocol):
    """How a batch becomes a loss. The training loop never changes."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, rng: Draws) -> Tensor:
        """A scalar to minimise."""
        ...


def describe(thing: Any, omit: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> str:
    """A dataclass as the shortest code that makes it: fields at their defaults are left out, but for those in `keep`.

    >>> describe(LinfPGD(eps=0.1, steps=20))
    'LinfPGD(eps=0.1, steps=20)'
    """
    parts = []
    for field in fields(thing):
        value = getattr(thing, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name not in omit and (value != default or field.name in keep):
            whole = isinstance(value, float) and value.is_integer()
            parts.append(f"{field.name}={int(value) if whole else value!r}")
    return f"{type(thing).__name__}({', '.join(parts)})" if parts else type(thing).__name__


def fitted(perturbation: Perturbation, shape: tuple[int, ...]) -> Perturbation:
    """The perturbation with what it chooses by the images' shape written out, so that a table says what was done."""
    choose = getattr(perturbation, "for_images", None)
    return choose(tuple(shape)) if choose else perturbation


def level_of(perturbation: Perturbation) -> float:
    """How strong a perturbation is: the value of the field that its class calls its level."""
    return float(getattr(perturbation, perturbation.level))


def family_name(perturbation: Perturbation) -> str:
    """A perturbation's name without its level, as the table has it: `LinfPGD(steps=20)`."""
    return describe(perturbation, omit=(perturbation.level,))


def device_of(model: Model) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU for a plain function."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def usable_device(name: str) -> torch.device:
    """A device by its name, such as "cpu", "cuda" or "cuda:1".

    Raises:
        GeophoneError: no such kind of device, or none here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise GeophoneError(
            f"the device {name!r} cannot be used here ({reason}). Use cpu, or a device that is there."
        ) from None
    return device


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Every module of the model in evaluation mode inside the block, and as it was after it.

    Flags are set one by one, so that frozen BatchNorm layers stay frozen and an overridden `train()` isn't called.
    A plain function has no mode.
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global random state of the CPU and of this device set by `seed` inside the block, and as it was after it.

    For networks that draw noise of their own. Nothing of Geophone's draws from the global state.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        reseed(seed, device)
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Set the global random state of the CPU and of this device: only inside `seeded`, which puts it back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast and TF32 off inside the block, as they were after it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels inside the block, where there are any; the global switches are as they were after it.

    Torch's filling of uninitialised memory, a debugging aid that this mode turns on, stays off: it costs a pass over
    every new tensor and changes no result of code that reads only what it wrote.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
