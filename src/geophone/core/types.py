"""The words that every room shares: what a batch, a perturbation and a recipe are."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.utils.deterministic
from jaxtyping import Float, Int
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, Unlabelled
from geophone.core.rng import Draws

Model = nn.Module | Callable[[Tensor], Tensor]

ROUNDING = 1e-6
"""How far images may leave [0, 1] and still count as in it: resizing in float32 does as much."""

SMALL = 512
"""Rows of a matrix up to which linear algebra is not shared between threads."""

UNLABELLED = -1
"""The label of an image that has none. No class bears it, so nothing counts it as a right or a wrong answer."""


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


class Recipe:
    """How a batch becomes a loss: a frozen dataclass that inherits this. The training loop never changes.

    A recipe that trains another network than the one it is given, as `Stochastic` does, says which (`prepare`), by
    which code a job registers it (`network`), and refuses to train one that isn't it (`check_network`).
    """

    @property
    def threat(self) -> Any:
        """The perturbation that it trains against; None for none."""
        return None

    @property
    def single_step(self) -> bool:
        """Whether it trains by attacks of one step, and so is watched for catastrophic overfitting."""
        return False

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network that it trains: a copy that is changed, or the network itself."""
        return model

    def network(self, code: str) -> str:
        """The code of the registered network that it trains, from that of the one it is given."""
        return code

    def check_network(self, model: nn.Module) -> None:
        """Raise an error for a network that it does not train.

        Raises:
            GeophoneError: it is one.
        """

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, rng: Draws) -> Tensor:
        """A scalar to minimise."""
        raise NotImplementedError


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
