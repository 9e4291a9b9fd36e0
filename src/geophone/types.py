"""The words that every room shares: what a batch, a perturbation and a recipe are."""

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.utils.deterministic
from jaxtyping import Float, Int
from torch import Tensor, nn

from geophone.errors import GeophoneError, Unlabelled
from geophone.rng import Draws

Model = nn.Module | Callable[[Tensor], Tensor]

ROUNDING = 1e-6
"""How far images may leave [0, 1] and still count as in it: resizing in float32 does as much."""

SMALL = 512
"""Rows of a matrix up to which linear algebra is not shared between threads."""

UNLABELLED = -1
"""The label of an image that has none. No class bears it, so nothing counts it as a right or a wrong answer."""

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # the variable that cuBLAS reads for its deterministic kernels
_WRITES = (
    "the network writes to the images that it is given (x.sub_(0.5), inplace=True in its first layer and the like), so "
    "whatever looks at them next would see others. Let it work on a copy: x = x.clone() at the top of its forward."
)


@dataclass(frozen=True)
class Batch:
    """A few examples of one stream: images, or the responses of one layer to them.

    Attributes:
        x: What the stream carries, examples first: images `[n, c, h, w]`, responses `[n, d]`, logits `[n, k]`.
        y: Class labels `[n]`, int64; all `UNLABELLED` where there are none. What reads them takes `labels`.
        index: Position of each example in its data set `[n]`, int64. Randomness is keyed by it, so results do not
            depend on batch size or order, but for the noise of a stochastic network.
    """

    x: Tensor
    y: Int[Tensor, " n"]
    index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class labels, of whatever needs them.

        Raises:
            Unlabelled: there are none.
        """
        if len(self.y) and bool((self.y == UNLABELLED).any()):
            raise Unlabelled("needs labels, which these images lack")
        return self.y

    def with_x(self, x: Tensor) -> "Batch":
        """The same examples with something else in `x`."""
        return Batch(x, self.y, self.index)

    def with_rows(self, rows: Tensor) -> "Batch":
        """The same examples with k rows each in `x`, next to each other: labels repeat, indices become k·index + i."""
        k = len(rows) // len(self)
        if k == 1:
            return self.with_x(rows)
        place = torch.arange(k, device=self.index.device)
        return Batch(rows, self.y.repeat_interleave(k), (k * self.index[:, None] + place).flatten())


@dataclass(frozen=True)
class Pair:
    """Two aligned streams: row i of `a` and row i of `b` come from the same example.

    Attributes:
        a: `[n, p]`, by convention the responses to the clean images.
        b: `[n, q]`, by convention the responses to the perturbed ones.
        index: Position of each row in its data set `[n]`, int64; only a statistic that samples rows needs it.
    """

    a: Float[Tensor, "n p"]
    b: Float[Tensor, "n q"]
    index: Int[Tensor, " n"] | None = None

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


class FitsImages:
    """A perturbation that chooses something by the images' shape. To be inherited from: a name promises nothing."""

    def for_images(self, shape: tuple[int, ...]) -> Perturbation:
        """The same with what it chooses for images `[n, c, h, w]` written out, so that a table says what was done."""
        raise NotImplementedError


class GoesOn:
    """A perturbation that can start from what the same at a lower level gave. To be inherited from, like the others."""

    def onward(self, found: Tensor, weaker: Any, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """What calling it gives, from what `weaker`, the same at a level no higher, found."""
        raise NotImplementedError


class StopsEarly:
    """An attack that can leave each example once it is fooled."""

    def fool(self, x: Tensor, y: Tensor, model: Model, rng: Draws) -> Tensor:
        """Attacked images, each left as it is once it fools the network."""
        raise NotImplementedError


class Averages:
    """An attack with a field `draws`: over how many draws of a network's noise each gradient is averaged, None to leave
    it open.
    """

    draws: int | None


class TakesSteps:
    """An attack with a field `steps`, of which fewer make a weaker and cheaper attack of the same radius."""

    steps: int


class Ensemble:
    """An attack that runs others one after the other."""

    def members(self) -> tuple[Any, ...]:
        """The attacks, in the order in which they are run."""
        raise NotImplementedError


class Scales:
    """A perturbation that scales another, which its field `inner` has as code."""

    inner: str


@runtime_checkable
class Recipe(Protocol):
    """How a batch becomes a loss. The training loop never changes.

    A recipe that trains another network than the one it is given (`Stochastic`) also has `prepare(model)`, that
    network; `network(code)`, the code that registers it; and `check_network(model)`, an error for one that isn't it.
    """

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
    return perturbation.for_images(tuple(shape)) if isinstance(perturbation, FitsImages) else perturbation


def level_of(perturbation: Perturbation) -> float:
    """How strong a perturbation is: the value of the field that its class calls its level."""
    return float(getattr(perturbation, perturbation.level))


def family_name(perturbation: Perturbation) -> str:
    """A perturbation's name without its level, as the table has it: `LinfPGD(steps=20)`."""
    return describe(perturbation, omit=(perturbation.level,))


def device_of(model: Model, without: torch.device | None = None) -> torch.device:
    """The device of a model's first parameter or buffer; where it has none, `without` (default the CPU).

    Such a model, as a plain function is, takes images where they are.
    """
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return without or torch.device("cpu")


def device_name(device: str) -> str:
    """What a reader calls a device: the kind of GPU or of processor, where the machine tells."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device


def unwrapped(model: Model) -> nn.Module:
    """The module to tap and to run: a compiled one ignores hooks that come after it was compiled.

    Raises:
        GeophoneError: the model is no module.
    """
    if not isinstance(model, nn.Module):
        raise GeophoneError(f"recording needs a torch.nn.Module, not {type(model).__name__}: wrap the function in one.")
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, nn.DataParallel) else inner


def usable_device(name: str) -> torch.device:
    """A device by its name, such as "cpu", "cuda" or "cuda:1".

    Raises:
        GeophoneError: no such kind of device, or none here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without data, as meta is, has no answer
    except Exception as error:  # each kind of device is missing in a way of its own
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
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    # Torch has old switches, and from 2.9 new ones, by kind of kernel. The old can't be read where the new contradict
    # them, and are left alone there; else both are set, so that whoever reads either (torch.compile does) still can.
    before: list[tuple[Any, str, Any]] = []
    for switch in (matmul, cudnn):
        with suppress(RuntimeError):
            before.append((switch, "allow_tf32", switch.allow_tf32))
    if hasattr(matmul, "fp32_precision"):
        before += [(kind, "fp32_precision", kind.fp32_precision) for kind in (matmul, cudnn.conv, cudnn.rnn)]
    try:
        for switch, name, _ in before:
            setattr(switch, name, False if name == "allow_tf32" else "ieee")
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for switch, name, value in before:
            setattr(switch, name, value)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels inside the block, where there are any; the global switches are as they were after it.

    Where there is none, as for a sum of float32 along the way on a GPU (which l1 attacks need), the other kernel runs
    without torch's warning: nobody here asked for the mode that it is about.

    Torch's filling of uninitialised memory, a debugging aid that this mode turns on, stays off: it costs a pass over
    every new tensor and changes no result of code that reads only what it wrote.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


@contextmanager
def one_thread(largest: int) -> Iterator[None]:
    """One thread of torch's inside the block, if its matrices have at most `SMALL` rows; as many as before after it.

    For loops over small matrices: threads that wait for one another take longer than the work, by up to 40 times where
    eigenvectors are computed.
    """
    before = torch.get_num_threads()
    if largest > SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_gradients() -> Iterator[None]:
    """No gradients inside the block, nor inference mode, in which torch doesn't count what is written to a tensor."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """The buffers of modules in training mode are after the block as they were before it.

    A pass in training mode writes BatchNorm's running statistics; to look at a network must not change it.
    """
    parts = [module for module in model.modules() if module.training]
    before = [
        (part, name, buffer, buffer.clone())
        for part in parts
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, value in before:
                if not torch.equal(buffer, value):  # torch doesn't count what BatchNorm writes
                    buffer.copy_(value)
                part._buffers[name] = buffer  # a module may have put another in its place


class Snapshot:
    """A tensor as it is now, to ask later whether another is the same object and nothing was written to it since.

    The same object is not the same value: an in-place operation keeps the one and changes the other. Torch counts what
    is written to a tensor, but for inference tensors, of which a copy is kept: there, writing what was there before
    isn't seen.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._version = None if x.is_inference() else x._version
        self._copy = x.detach().clone() if x.is_inference() else None

    def holds(self, x: object) -> bool:
        """Whether x is that tensor, with the value that it had."""
        if x is not self._x:
            return False
        return self._x._version == self._version if self._copy is None else torch.equal(self._x, self._copy)


def check_columns(logits: Float[Tensor, "n k"]) -> None:
    """Raise an error for logits of one column: with one class, nothing is ever misclassified."""
    if logits.shape[1] < 2:
        raise GeophoneError(
            f"the network gives logits {list(logits.shape)}, one column, so that no image can be misclassified. Give "
            "two: for a logit z of class 1 against 0, torch.cat([torch.zeros_like(z), z], dim=1)."
        )


def passed(model: Model, x: Tensor) -> Any:
    """What the model answers to images that are used again after it, of whatever type.

    Raises:
        GeophoneError: it writes to them.
    """
    if x.is_inference():  # such a tensor doesn't count what is written to it
        return model(x.clone())
    version = x._version
    try:
        answer = model(x)
    except RuntimeError as error:
        if "leaf Variable that requires grad" in str(error):
            raise GeophoneError(_WRITES) from error
        raise
    # What has a history was made for this call only.
    if x.is_leaf and x._version != version:
        raise GeophoneError(_WRITES)
    return answer
