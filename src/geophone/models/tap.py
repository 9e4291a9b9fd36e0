"""The activation stream: what every layer answers, reduced inside the hook, nothing kept.

A hook that keeps the tensor it is given keeps a view that a later in-place ReLU overwrites. Here the response is
reduced or copied inside the hook, before anything else runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, unknown
from geophone.core.rng import stream
from geophone.core.types import Batch, Model, device_of, unwrapped, without_gradients
from geophone.models.run import (
    Snapshot,
    checked_logits,
    keeping_buffers,
    logits_of,
    seeded,
)

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


PROBED = 3
"""Images that a layer's axes are known by: see `check_axes`."""

PLACES = 8
"""At how many places of an image `positions` reads a layer."""


REDUCTIONS: dict[str, Reduce] = {f.__name__: f for f in (spatial_mean, token_mean, flatten, positions)}


def reduction(given: str | Reduce) -> Reduce:
    """A reduction by its name, or as it is.

    Raises:
        GeophoneError: no such name.
    """
    if not isinstance(given, str):
        return given
    if given not in REDUCTIONS:
        raise unknown("reduction", given, REDUCTIONS)
    return REDUCTIONS[given]


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


@checked
@contextmanager
def tap(
    model: Model, layers: Sequence[str] | None = None, reduce: Reduce = spatial_mean, detach: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, every pass of `unwrapped(model)` fills the dictionary anew: layer → reduced response `[n, d]`.

    Layers appear in the order of execution. A module that runs several times in one pass has one name for each:
    `relu`, `relu#2`, … With the default layers, a block whose output is that of its last activation is left out, and so
    is one whose output is the network's own (the logits), or no tensor. What an in-place operation (`y += x`, `nn.ReLU`
    with inplace=True) made of a recorded tensor is another response and is recorded too.

    Args:
        model: The network.
        layers: As in `layers_of`.
        reduce: From a response `[n, ...]` to `[n, d]` or `[k·n, d]`.
        detach: Whether to cut the responses off the graph; recipes that put a loss on them do not.

    Raises:
        GeophoneError: a response whose first axis isn't the n examples of the pass, or that is no dense real tensor; or
            a reduction that gives something else.
    """
    names = layers_of(model, layers)
    seen: dict[str, Tensor] = {}
    last: list[Snapshot] = []
    examples: list[int] = []
    root = unwrapped(model)

    def clear(_module: nn.Module, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        seen.clear()
        last.clear()
        examples[:] = [len(x) for x in (*given, *named.values()) if isinstance(x, Tensor) and x.ndim][:1]

    def drop_the_logits(_module: nn.Module, _inputs: object, output: object) -> None:
        if layers is None and last and last[0].holds(output):
            seen.popitem()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            response = _tensor(output)
            if layers is None and (response is None or (last and last[0].holds(response))):
                return
            response = _checked(response, output, name, examples)
            if layers is None:
                last[:] = [Snapshot(response)]
            reduced = _reduced(reduce, response.detach() if detach else response, name, examples)
            if reduced.untyped_storage().data_ptr() == response.untyped_storage().data_ptr():
                reduced = reduced.clone()
            seen[_call_name(name, seen)] = reduced

        return hook

    modules = dict(root.named_modules())
    handles = [root.register_forward_pre_hook(clear, with_kwargs=True)]
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


def _tensor(output: object) -> Tensor | None:
    """A module's response: its output, the first part of a tuple or list, or the one tensor of a mapping; else None."""
    if isinstance(output, Mapping):
        parts = [part for part in output.values() if isinstance(part, Tensor)]
        return parts[0] if len(parts) == 1 else None
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _checked(response: Tensor | None, output: object, name: str, examples: Sequence[int]) -> Tensor:
    """The response, if its rows are the examples of the pass."""
    if response is None:
        kind = f"{type(output).__name__} of {len(output)}" if isinstance(output, Mapping) else type(output).__name__
        raise GeophoneError(f"layer {name!r} gives a {kind}, not a tensor. Tap a module inside it.")
    if response.layout is not torch.strided or response.is_nested or response.is_quantized or response.is_complex():
        raise GeophoneError(
            f"layer {name!r} gives a sparse, nested, quantised or complex tensor; responses are dense and real. Tap "
            "another module (--layers)."
        )
    if response.ndim == 0 or (examples and len(response) != examples[0]):
        n = examples[0] if examples else "n"
        raise GeophoneError(
            f"layer {name!r} gives {list(response.shape)} for {n} images: its first axis must be the {n} images, or "
            "those of different images are mixed (sequence-first layers, windows and patches in the first axis). Leave "
            "it out (--layers), or let the module give the images first."
        )
    return response


def _reduced(reduce: Reduce, response: Tensor, name: str, examples: Sequence[int]) -> Tensor:
    """What the reduction makes of a response, checked to be `[n, d]` or `[k·n, d]`."""
    floating = response.is_floating_point()
    reduced = reduce(response if floating else response.double())  # spikes and codes: whole numbers, exactly
    if not isinstance(reduced, Tensor) or reduced.ndim != 2:
        given = list(reduced.shape) if isinstance(reduced, Tensor) else f"a {type(reduced).__name__}"
        raise GeophoneError(f"layer {name!r}: the reduction gave {given}, not [n, d].")
    n = examples[0] if examples else len(response)
    if n and (len(reduced) == 0 or len(reduced) % n):
        raise GeophoneError(
            f"layer {name!r}: the reduction gave {list(reduced.shape)} for {n} images, not [{n}, d] or [k·{n}, d]."
        )
    return reduced


def check_axes(model: Model, x: Tensor, n: int, layers: Sequence[str] | None = None) -> None:
    """Raise an error for a layer whose first axis isn't the examples, even where it is as long as a batch by chance.

    A layer `[t, n, d]` has n rows where t is n. So the network is asked for 2 of the images too, or 3 where batches are
    of 2: an axis that isn't the examples can't have both lengths. Moves no draw and leaves buffers as they are.

    Args:
        model: The network.
        x: Some images, one at least.
        n: The length of the batches that are to come.
        layers: As in `layers_of`.
    """
    net = unwrapped(model)
    some = x[torch.arange(2 if n != 2 else 3, device=x.device) % len(x)]
    with seeded(0, x.device), keeping_buffers(net), without_gradients(), tap(net, layers, _nothing):
        checked_logits(net, some, net)  # which it may write to: nobody looks at them again


def _nothing(response: Tensor) -> Tensor:
    return response.new_empty(len(response), 0)


@dataclass(frozen=True)
class Axes:
    """How a layer's response is laid out.

    Attributes:
        shape: Of the response.
        kind: "units" `[n, d]`; "channels" `[n, c, …]`, as convolutions give; "features" `[n, …, d]`, as a linear layer
            or a LayerNorm gives that works on every token or place; "unknown".
    """

    shape: tuple[int, ...]
    kind: str


_CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_FEATURES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase)


def axes_of(model: Model, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Axes]:
    """How every layer's response is laid out, from one pass over some images.

    Known by the module that ran last before the layer's response was there and says by its kind where its units are:
    convolutions, BatchNorm and GroupNorm in axis 1, linear layers, LayerNorm, embeddings, attention and recurrent
    layers in the last. A response of 3 axes has channels only where such a module gave them in 3 axes; one of more axes
    has features where a linear layer's units are not in its axis 1. What functions (F.conv2d) did isn't seen.
    """
    net = unwrapped(model)
    declared: list[tuple[bool, int, int]] = []  # whether units are in axis 1, how many, of how many axes

    def declare(module: nn.Module, _inputs: object, output: object) -> None:
        response = _tensor(output)
        if response is None or response.ndim < 3:
            return
        first = isinstance(module, _CHANNELS)
        whole = isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1
        if not whole:
            declared[:] = [(first, response.shape[1 if first else -1], response.ndim)]

    found: list[Axes] = []

    def look(response: Tensor) -> Tensor:
        found.append(Axes(tuple(response.shape), _kind(tuple(response.shape), declared[0] if declared else None)))
        return _nothing(response)

    parts = [module for module in net.modules() if isinstance(module, (*_CHANNELS, *_FEATURES))]
    handles = [module.register_forward_hook(declare) for module in parts]
    try:
        with tap(net, layers, look) as seen:
            logits_of(net, x)
        return dict(zip(seen, found, strict=False))  # the logits were looked at too, and come last
    finally:
        for handle in handles:
            handle.remove()


def _kind(shape: tuple[int, ...], declared: tuple[bool, int, int] | None) -> str:
    if len(shape) <= 2:
        return "units"
    few = len(shape) == 3
    if declared is None:
        return "unknown" if few else "channels"
    first, units, axes = declared
    if first:
        if shape[1] == units and (len(shape) == axes or shape[-1] != units):
            return "channels"
        if few and shape[-1] == units:  # patches, flattened and moved to the front
            return "features"
        return "unknown" if few and axes != 3 else "channels"  # concatenated maps have more channels than the last
    if few or shape[1] != units:
        return "features" if shape[-1] == units else "unknown"
    return "channels"  # a linear layer between two permutations, as ConvNeXt's


@checked
def record(
    model: nn.Module,
    batches: Any,
    layers: Sequence[str] | None = None,
    reduce: Reduce = spatial_mean,
) -> Iterator[dict[str, Batch]]:
    """Run the network over batches of images and yield what every layer answers, one batch at a time.

    Each item maps a layer's name to a `Batch` of responses `[n, d]` with the same labels and indices; the key "logits"
    holds the network's own output. Nothing is kept: memory is that of one batch. The network is used in the mode it is
    in; no gradients are recorded. Hooks and switches are there during each pass only, so that streams can be zipped,
    left before their end, or have the network trained or attacked between two batches; and a network in training mode
    keeps BatchNorm's running statistics as they are. Before the first batch 2 images go through alone: see
    `check_axes`.

    Args:
        model: Any module from images in [0, 1] to logits.
        batches: Batches of images, as `data.test.batches(256)` gives them; or what gives pairs of images and labels in
            a fixed order, such as a DataLoader that does not shuffle. `index` then counts the images.
        layers: Names or shell patterns; default every activation and block output. See `layers_of`.
        reduce: From a response `[n, ...]` to `[n, d]` or `[k·n, d]`: one of `REDUCTIONS`, or a function.

    Raises:
        GeophoneError: unknown layer, a chosen layer that never ran or whose first axis is not the images, something
            else than batches, or a network that does not give logits `[n, k]`.

    >>> for batch in record(model, data.test.batches(256), ["layer*.relu*"]):
    ...     print({name: tuple(responses.x.shape) for name, responses in batch.items()})
    """
    model = unwrapped(model)
    wanted = [] if layers is None else layers_of(model, layers)
    started = False
    for batch in _batches(batches):
        x = batch.x.to(device_of(model, batch.x.device))
        if not started:
            check_axes(model, x, len(x), layers)
            started = True
        # Closed before the yield: what a generator holds open there leaks into its caller.
        with keeping_buffers(model), tap(model, layers, reduce) as seen, without_gradients():
            logits = logits_of(model, x)
            check_ran(wanted, seen)
            answers = {name: batch.with_rows(rows) for name, rows in (*seen.items(), ("logits", logits))}
        yield answers


def _batches(given: object) -> Iterator[Batch]:
    """Batches as they are, or made from pairs of images and labels.

    Raises:
        GeophoneError: neither, or pairs of a loader that shuffles, whose images can't be told apart afterwards.
    """
    ways = "Give data.test.batches(256), or a DataLoader of (images, labels) that does not shuffle"
    if not isinstance(given, Iterable):
        raise GeophoneError(f"recording needs batches of images, not a {type(given).__name__}. {ways}.")
    count = 0
    for item in given:
        if isinstance(item, Batch):
            yield item
            continue
        x, y = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.shape == x.shape[:1] and len(x)):
            raise GeophoneError(f"recording needs batches of images with labels; it was given {_said(item)}. {ways}.")
        if isinstance(given, DataLoader) and not _in_order(given):
            raise GeophoneError(f"the loader's order is its own, so rows could not be told apart. {ways}.")
        yield Batch(x, y.long(), count + torch.arange(len(x), device=y.device))
        count += len(x)


def _in_order(loader: Any) -> bool:
    """Whether a loader gives the same items in the same order each time, as far as can be told."""
    if isinstance(loader.dataset, IterableDataset):
        return True
    return isinstance(loader.sampler, SequentialSampler) and type(loader.batch_sampler) in (BatchSampler, type(None))


def _said(item: object) -> str:
    """What something is, for errors."""
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {', '.join(map(_said, item[:4])) or 'nothing'}"
    return f"a tensor {list(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"


def check_ran(wanted: Sequence[str], seen: Mapping[str, Tensor]) -> None:
    """Raise an error for a layer that was asked for and has no response."""
    silent = [name for name in wanted if name not in seen]
    if silent:
        raise GeophoneError(f"the layer {silent[0]!r} never ran in the forward pass. Choose another layer.")
