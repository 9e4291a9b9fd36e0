"""Running a model for measurement: modes, precision, seeds, logits, and what is checked of them."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
import torch.utils.deterministic
from jaxtyping import Float
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, Unlabelled
from geophone.core.rng import key
from geophone.core.types import Model, unwrapped, without_gradients
from geophone.data import Split
from geophone.models.stochastic import is_stochastic

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # the variable that cuBLAS reads for its deterministic kernels


_WRITES = (
    "the network writes to the images that it is given (x.sub_(0.5), inplace=True in its first layer and the like), so "
    "whatever looks at them next would see others. Let it work on a copy: x = x.clone() at the top of its forward."
)


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


ASKED_TWICE = 32


"""Images on which two passes are compared."""


def logits_of(model: Model, x: Tensor) -> Float[Tensor, "n k"]:
    """The network's answer, checked to be logits `[n, k]`.

    Raises:
        GeophoneError: not a tensor of that shape, or NaN or infinite values in it; or the network writes to x.
    """
    return checked_logits(model, x, lambda images: passed(model, images))


def checked_logits(model: Model, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """What `ask` gives for the images, checked to be logits of the network."""
    try:
        logits = ask(x)
    except (GeophoneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's own code fails in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GeophoneError(f"the network cannot take images of shape {list(x.shape)}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise GeophoneError(
            f"the network must give logits [n, k] for images {list(x.shape)}; it gave {given}. One that gives more, or "
            "an object with .logits, goes into a module whose forward returns the logits alone."
        )
    if not bool(logits.isfinite().all()):
        culprit = first_bad_weight(model)
        where = f": its weight {culprit!r} has NaN or infinite values" if culprit else ""
        raise GeophoneError(f"the network's logits have NaN or infinite values{where}. Load a sound checkpoint.")
    return logits


def asked_twice(model: Model, split: Split) -> tuple[Float[Tensor, "n k"], bool]:
    """Logits for the first 32 images, and whether the network answers the same otherwise when it is asked again.

    To tell a network with noise of its own from others, whatever makes the noise.

    Raises:
        GeophoneError: as of `logits_of`.
    """
    some = next(split.rows(torch.arange(min(ASKED_TWICE, len(split)))).batches(ASKED_TWICE))
    first, second = logits_of(model, some.x), logits_of(model, some.x)
    return first, not torch.equal(first, second)


def check_labels(split: Split, k: int) -> None:
    """Whether label i can mean output i of a network of k outputs; images without labels pass.

    More outputs than labels are no fault in themselves: a part of a data set has no example of some classes.

    Raises:
        GeophoneError: a label that the network has no output for; or labels that were counted off, as class folders
            are in alphabetical order, where the network has another number of outputs.
    """
    if not len(split) or not split.labelled:
        return
    highest = int(split.y.max())
    if highest >= k:
        raise GeophoneError(
            f"label {highest} is out of range: the network gives {k} logits, so labels run from 0 to {k - 1}. Check "
            "that the data set is the one the network was trained for."
        )
    if split.outputs is not None and split.outputs != k:
        raise GeophoneError(
            f"the data have {split.outputs} class folders, numbered in alphabetical order, and the network gives {k} "
            "logits: which folder is which output can't be told. Name the outputs in their order in a file (ImageNet's "
            "imagenet_class_index.json or LOC_synset_mapping.txt, or one name a line): imagefolder(path='…', "
            "classes='names.txt')."
        )


def need_labels(split: Split, what: str) -> None:
    """Raise an error for images without labels, in the name of what can't do without.

    Raises:
        Unlabelled: they have none.
    """
    if not split.labelled:
        raise Unlabelled(
            f"{what} needs labels, which these images lack. Give them with the images: a pair (x, y), y beside x in "
            "the .npz, or a folder for each class."
        )


def check_attacked(model: Model, split: Split, what: str) -> None:
    """Whether a network can be attacked with, or trained on, these labels: they are there, and mean its outputs.

    Args:
        model: Asked once, about one image.
        split: The images, on its device.
        what: Needs the labels, in the user's words.

    Raises:
        GeophoneError: as `need_labels`, `check_labels`, `check_columns` and `logits_of`.
    """
    need_labels(split, what)
    if len(split):
        first = split.x[:1].float() / (255 if split.x.dtype == torch.uint8 else 1)
        with evaluating(model), full_precision(), deterministic(), seeded(0, first.device), torch.no_grad():
            logits = logits_of(model, first)
        check_columns(logits)
        check_labels(split, logits.shape[1])


def first_bad_weight(model: Model) -> str | None:
    """Name of the first parameter with a NaN or an infinity, or buffer with a NaN or +∞: one with −∞ is a mask."""
    if isinstance(model, nn.Module):
        for name, tensor in model.named_parameters():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return name
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and bool((buffer.isnan() | buffer.isposinf()).any()):
                return name
    return None


class Subject:
    """The models under measurement, opened once: see `opened`.

    Attributes:
        models: In eval mode; one, or two that are compared.
        examples: What stochastic models are told from others by: the first 32.
        device: Where the models and the examples are.
        seed: Keys everything random.
        training: Of each model, the names of the modules that were handed over in training mode.
    """

    def __init__(self, models: Sequence[Model], examples: Split, seed: int) -> None:
        self.models, self.examples, self.seed = tuple(models), examples, seed
        self.device = examples.x.device
        self.training = tuple(
            frozenset(name for name, module in modules_of(model).items() if module.training) for model in models
        )
        self._answers: dict[int, tuple[Float[Tensor, "n k"], bool]] = {}

    @property
    def model(self) -> Model:
        """The first model."""
        return self.models[0]

    def answers(self, which: int = 0) -> Float[Tensor, "n k"]:
        """A model's logits for the first 32 examples."""
        return self._asked(which)[0]

    def stochastic(self, which: int = 0) -> bool:
        """Whether a model has noise: its modules say so, or two passes over the first 32 examples differ.

        It is asked when this is first called, under a seed of its own.
        """
        return self._asked(which)[1]

    def reseed(self, *what: object) -> None:
        """Set the global generators, from which models draw their noise, by what is done next.

        So noise depends on this alone, not on what was measured before or besides.
        """
        reseed(key(self.seed, *what), self.device)

    def _asked(self, which: int) -> tuple[Float[Tensor, "n k"], bool]:
        if which not in self._answers:
            with seeded(0, self.device):
                first, differs = asked_twice(self.models[which], self.examples)
            model = self.models[which]  # a plain function says nothing of itself
            says_so = isinstance(model, nn.Module) and is_stochastic(unwrapped(model))
            self._answers[which] = first, differs or says_so
        return self._answers[which]


@contextmanager
def opened(models: Sequence[Model], examples: Split, seed: int = 0) -> Iterator[Subject]:
    """Models opened for measurement, and as they were after it.

    Every module is in eval mode; autocast and TF32 are off, kernels deterministic where there are any; no gradients are
    recorded; the global random states are put back at the end.

    Args:
        models: One, or two to compare, on the device of the examples.
        examples: Some of what they are measured on, at least one.
        seed: Keys everything random.
    """
    subject = Subject(models, examples, seed)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for context in (full_precision(), deterministic(), seeded(0, subject.device), without_gradients()):
            stack.enter_context(context)
        yield subject


def modules_of(model: Model) -> dict[str, nn.Module]:
    """The modules of a model by name; none of a plain function."""
    return dict(model.named_modules()) if isinstance(model, nn.Module) else {}
