"""The activation stream: what every layer answers, reduced inside the hook, nothing kept.

A hook that keeps the tensor it is given keeps a view that a later in-place ReLU overwrites. Here the response is
reduced or copied inside the hook, before anything else runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from geophone.data import Split
from geophone.errors import GeophoneError, check_counts, unknown
from geophone.geometry.clouds import projection
from geophone.models.stochastic import is_stochastic
from geophone.rng import stream
from geophone.types import Batch, Model, deterministic, device_of, evaluating, full_precision, passed, seeded
from geophone.types import unwrapped as unwrapped

Reduce = Callable[[Tensor], Tensor]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardsigmoid, nn.Threshold),
)
WEIGHTED: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def spatial_mean(response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """A unit is a channel: average over every axis after the second. `[n, c, h, w]` → `[n, c]`; `[n, d]` stays."""
    return response.flatten(2).mean(2) if response.ndim > 2 else response


def token_mean(response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """A unit is a feature of the last axis (transformers, channels-last): average over all axes between."""
    return response.flatten(1, -2).mean(1) if response.ndim > 2 else response


def flatten(response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Every position of every channel is a unit of its own. Statistics then need (c·h·w)² numbers."""
    return response.flatten(1)


def positions(response: Float[Tensor, "n ..."]) -> Float[Tensor, "m d"]:
    """A unit is a channel, and an image gives a row for each of up to 8 places: `[n, c, h, w]` → `[8n, c]`.

    The places are the same for all images and perturbations of a layer, spread over it by a hash of its size. `[n, d]`
    stays. What was summed over rows then counts rows, of which those of one image are not independent.
    """
    if response.ndim <= 2:
        return response
    flat = response.flatten(2)
    size = flat.shape[2]
    if size > PLACES:
        chosen = torch.randperm(size, generator=stream("positions", size))[:PLACES].sort().values
        flat = flat[:, :, chosen.to(flat.device)]
    return flat.transpose(1, 2).flatten(0, 1)


ASKED_TWICE = 32
"""Images on which two passes are compared."""

PLACES = 8
"""At how many places of an image `positions` reads a layer."""


@dataclass(frozen=True)
class RandomProjection:
    """Every position of every channel, and where these are more than `features`, so many random mixtures of them.

    The matrix is Gaussian with columns of length 1, and the same for all layers of one size: distances keep their
    proportions to about 1/√(2 features). `[n, c, h, w]` → `[n, min(c·h·w, features)]`. Memory O(c·h·w · features) for
    each size, three times that while it is drawn.

    Attributes:
        features: At most so many units.
        seed: Keys the matrix.
    """

    features: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(features=self.features)

    @cached_property
    def _matrices(self) -> dict[tuple[object, ...], Tensor]:
        """Those in use, which live as long as this."""
        return {}

    def __call__(self, response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Responses in at most `features` units; in float32 at least."""
        flat = response.flatten(1)
        flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        d = flat.shape[1]
        if d <= self.features:
            return flat
        which = (d, flat.dtype, flat.device)
        if which not in self._matrices:
            self._matrices[which] = projection(d, self.features, self.seed).to(flat.device, flat.dtype)
        return flat @ self._matrices[which]


REDUCTIONS: dict[str, Reduce] = {f.__name__: f for f in (spatial_mean, token_mean, flatten, positions)}


def layers_of(model: Model, patterns: Sequence[str] | None = None) -> list[str]:
    """Names of the modules to tap, in the order of registration.

    Args:
        model: The network.
        patterns: Module names or shell patterns (`layer*.relu*`; `*` also matches dots). Default: every activation
            module and every block, a block being a module of the user's own with weighted modules inside, other than
            the whole network; where there is neither, every convolution and linear layer but the last.

    Raises:
        GeophoneError: a pattern that matches no module, or a TorchScript module, which runs no hooks.
    """
    if isinstance(unwrapped(model), torch.jit.ScriptModule):
        raise GeophoneError(
            "a TorchScript module can be attacked, but its layers don't show their responses: give the Python code of "
            "the network."
        )
    modules = {name: module for name, module in unwrapped(model).named_modules() if name}
    if patterns is None:
        found = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS) or _is_block(module)]
        if found:
            return found
        return [name for name, module in modules.items() if isinstance(module, WEIGHTED)][:-1]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in modules if name == pattern or fnmatchcase(name, pattern)]
        if not matched:
            raise unknown("layer", pattern, modules, "Shell patterns such as 'layer*.relu*' work too.")
        chosen.update(matched)
    return [name for name in modules if name in chosen]


def activation_layers(model: Model) -> list[str]:
    """Names of the activation modules, in the order of registration."""
    return [name for name, module in unwrapped(model).named_modules() if isinstance(module, ACTIVATIONS)]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is a user's own (none of torch's) with weighted modules inside."""
    inside = [child for child in module.modules() if child is not module]
    return not type(module).__module__.startswith("torch.nn.") and any(isinstance(child, WEIGHTED) for child in inside)


@contextmanager
def tap(
    model: Model, layers: Sequence[str] | None = None, reduce: Reduce = spatial_mean, detach: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, every pass of `unwrapped(model)` fills the dictionary anew: layer → reduced response `[n, d]`.

    Layers appear in the order of execution. A module that runs several times in one pass has one name for each:
    `relu`, `relu#2`, … With the default layers, a block whose output is that of its last activation is left out, and so
    is one whose output is the network's own (the logits).

    Args:
        model: The network.
        layers: As in `layers_of`.
        reduce: From a response `[n, ...]` to `[n, d]`.
        detach: Whether to cut the responses off the graph; recipes that put a loss on them do not.
    """
    names = layers_of(model, layers)
    seen: dict[str, Tensor] = {}
    last: list[Tensor] = []
    root = unwrapped(model)

    def clear(*_: object) -> None:
        seen.clear()
        last.clear()

    def drop_the_logits(_module: nn.Module, _inputs: object, output: object) -> None:
        if layers is None and last and last[0] is output:
            seen.popitem()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            response = _tensor(output, name)
            if layers is None and last and last[0] is response:
                return
            last[:] = [response]
            reduced = reduce(response.detach() if detach else response)
            if reduced.ndim != 2:
                raise GeophoneError(f"layer {name!r}: the reduction gave {list(reduced.shape)}, not [n, d].")
            if reduced.untyped_storage().data_ptr() == response.untyped_storage().data_ptr():
                reduced = reduced.clone()
            seen[_call_name(name, seen)] = reduced

        return hook

    modules = dict(root.named_modules())
    handles = [root.register_forward_pre_hook(clear)]
    try:
        handles.extend(modules[name].register_forward_hook(hook_of(name)) for name in names)
        handles.append(root.register_forward_hook(drop_the_logits))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        last.clear()


def _call_name(name: str, seen: dict[str, Tensor]) -> str:
    call = 1
    while (name if call == 1 else f"{name}#{call}") in seen:
        call += 1
    return name if call == 1 else f"{name}#{call}"


def _tensor(output: object, name: str) -> Tensor:
    """A module's response: its output, or the first part of a tuple or list (attention layers, recurrent layers)."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise GeophoneError(f"layer {name!r} gives a {type(output).__name__}, not a tensor. Tap a module inside it.")
    return output


def record(
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Sequence[str] | None = None,
    reduce: Reduce = spatial_mean,
) -> Iterator[dict[str, Batch]]:
    """Run the network over batches of images and yield what every layer answers, one batch at a time.

    Each item maps a layer's name to a `Batch` of responses `[n, d]` with the same labels and indices; the key "logits"
    holds the network's own output. Nothing is kept: memory is that of one batch. The network is used in the mode it is
    in; no gradients are recorded.

    Args:
        model: Any module from images in [0, 1] to logits.
        batches: Batches of images.
        layers: Names or shell patterns; default every activation and block output. See `layers_of`.
        reduce: From a response `[n, ...]` to `[n, d]` or `[k·n, d]`: one of `REDUCTIONS`, or a function.

    Raises:
        GeophoneError: unknown layer, a chosen layer that never ran, or a network that does not give logits `[n, k]`.

    >>> for batch in record(model, data.test.batches(256), ["layer*.relu*"]):
    ...     print({name: tuple(responses.x.shape) for name, responses in batch.items()})
    """
    model = unwrapped(model)
    device = device_of(model)
    wanted = [] if layers is None else layers_of(model, layers)
    with tap(model, layers, reduce) as seen, torch.no_grad():
        for batch in batches:
            logits = logits_of(model, batch.x.to(device))
            check_ran(wanted, seen)
            yield {name: batch.with_rows(x) for name, x in (*seen.items(), ("logits", logits))}


def logits_of(model: Model, x: Tensor) -> Float[Tensor, "n k"]:
    """The network's answer, checked to be logits `[n, k]`.

    Raises:
        GeophoneError: not a tensor of that shape, or NaN or infinite values in it; or the network writes to x.
    """
    try:
        logits = passed(model, x)
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


def answers_at_random(model: Model, split: Split) -> bool:
    """Whether a network has noise: its modules say so, or it answers twice in different ways. Moves no other draw."""
    net = unwrapped(model)
    with evaluating(net), full_precision(), deterministic(), seeded(0, split.x.device), torch.no_grad():
        return is_stochastic(net) or asked_twice(net, split)[1]


def check_labels(y: Int[Tensor, " n"], logits: Float[Tensor, "m k"]) -> None:
    """Raise an error for a label that the network has no logit for."""
    if int(y.max()) >= logits.shape[1]:
        raise GeophoneError(
            f"label {int(y.max())} is out of range: the network gives {logits.shape[1]} logits, so labels run from 0 "
            f"to {logits.shape[1] - 1}. Check that the data set is the one the network was trained for."
        )


def check_ran(wanted: Sequence[str], seen: Mapping[str, Tensor]) -> None:
    """Raise an error for a layer that was asked for and has no response."""
    silent = [name for name in wanted if name not in seen]
    if silent:
        raise GeophoneError(f"the layer {silent[0]!r} never ran in the forward pass. Choose another layer.")


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
