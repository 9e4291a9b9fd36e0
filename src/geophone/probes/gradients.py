"""How strongly the input drives each unit: norms of input-unit gradients, and of the input-output Jacobian.

In eval mode the response of one image does not depend on the others, so the gradient of a unit's sum over the batch
holds that unit's gradient for every image: one backward pass for each unit, not for each unit and image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.types import Model, unwrapped
from geophone.data import Split
from geophone.metrics import Undefined
from geophone.metrics.metric import not_finite
from geophone.metrics.outcomes import Z
from geophone.models.run import Subject, logits_of
from geophone.models.tap import Reduce, check_axes, check_ran, layers_of, reduction, spatial_mean, tap
from geophone.perturb.attacks.fold import SAME, folded
from geophone.probes.part import Name, Part
from geophone.probes.probe import PROBES, Probe, Row, Soundness, Step, measured
from geophone.stats import UnitMoments
from geophone.stats.statistic import double

AT_ONCE = 16
"""Units that share a backward pass by default, but for the CPU."""

_NORM, _CV_SAMPLES, _CV_UNITS = "input_gradient_norm", "input_gradient_cv_samples", "input_gradient_cv_units"
_DEAD = "its input gradient is 0 on every image"
_UNITS = 500  # of an ordinary model, whose gradients are taken one by one
_PROBE = 4  # images that a folded network is compared on


@PROBES.register
@dataclass(frozen=True)
class Gradients(Probe):
    """Input gradients of every unit, on clean examples; a step is a batch. See `input_gradients`."""

    stage: ClassVar[str] = "input gradients"

    layers: tuple[str, ...] | None = None
    reduce: str | Reduce = "spatial_mean"
    at_once: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)
        if self.at_once is not None and self.at_once < 1:
            raise GeophoneError(f"at_once={self.at_once}: at least one unit goes into a backward pass.")

    @property
    def kinds(self) -> Sequence[type[Any]]:
        return (UnitMoments, Soundness)

    def steps(self, examples: Split) -> int:
        return examples.steps(self.batch_size)

    def costs(self, examples: Split) -> Sequence[float]:
        return [_UNITS * len(examples) / self.steps(examples)]

    def check(self, subject: Subject, examples: Split) -> None:
        images = self._copies(subject) * min(self.batch_size, len(examples))
        check_axes(unwrapped(subject.model), next(examples.batches(_PROBE)).x, images, self.layers)

    def _copies(self, subject: Subject) -> int:
        return self.at_once if self.at_once is not None else 1 if subject.device.type == "cpu" else AT_ONCE

    def begin(self, subject: Subject, examples: Split) -> Step:
        net, reduce, copies = unwrapped(subject.model), reduction(self.reduce), self._copies(subject)
        wanted = [] if self.layers is None else layers_of(net, self.layers)
        subject.reseed("gradients")
        with _recording_gradients():
            fast = _folded(net, next(examples.batches(_PROBE)).x, self.layers, reduce)

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = examples.batch(number, self.batch_size)
            subject.reseed("gradients", number)
            with _recording_gradients():
                # Each copy of the batch stands for another unit in a backward pass.
                x = batch.x.repeat(copies, *[1] * (batch.x.ndim - 1)).requires_grad_()
                logits, responses = _responses(fast, x, self.layers, reduce)
                check_ran(wanted, responses)
                norms: dict[str | None, Tensor] = {
                    layer: _norms(response, x, copies, f"the layer {layer!r}") for layer, response in responses.items()
                }
                norms[None] = _norms(logits, x, copies, "the network").norm(dim=1, keepdim=True)
            sums: dict[Name, Any] = {}
            for layer, found in norms.items():
                sound = found.isfinite().all(1)
                if layer is not None:
                    sound &= responses[layer][: len(batch)].isfinite().all(1)
                sums["sound", layer] = Soundness(len(batch), (~sound).count_nonzero())
                sums["lengths", layer] = UnitMoments.of(batch.with_x(found))
            done(1)
            return Part.of(number, sums, {"order": list(responses), "classes": logits.shape[1]})

        return step

    def rows(self, part: Part) -> Iterator[Row]:
        total = part.total()
        jacobian = total["lengths", None]
        given = {"family": "clean", "perturbation": "clean", "level": 0.0, "n": jacobian.n}
        flaws: dict[str | None, str] = {}
        for layer in (*part.facts["order"], None):
            if count := int(total["sound", layer].bad):
                flaws[layer] = not_finite(count, jacobian.n, "input gradients")
        by_layer = {layer: total["lengths", layer] for layer in part.facts["order"]}
        for metric in (_NORM, _CV_SAMPLES, _CV_UNITS):
            yield from (given | row for row in _rows(metric, by_layer, flaws))
        yield given | _jacobian_row(jacobian, part.facts["classes"], flaws.get(None))


@checked
def input_gradients(
    model: Model,
    data: Any,
    layers: Sequence[str] | None = None,
    *,
    reduce: Reduce = spatial_mean,
    batch_size: int = 64,
    at_once: int | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Input-unit gradients of every unit and the input-output Jacobian, on clean images; returns rows of the table.

    With the response a_u(x_i) of unit u to image i, reduced to one number, and its gradient's length
    g_ui = ‖∂a_u(x_i)/∂x‖₂ over all pixels and channels of the image, in responses per unit of [0, 1] intensity:

    - `input_gradient_norm`: mean_i g_ui of each unit; mean over the units of a layer; mean over layers.
    - `input_gradient_cv_samples`: std_i g_ui / mean_i g_ui of each unit; mean over units; mean over layers. 0 for a
      unit that is linear in the image, √((1 - p)/p) for one that is linear where it fires, with probability p.
    - `input_gradient_cv_units`: std_u / mean_u of the units' mean_i g_ui in each layer; mean over layers.
    - `jacobian_norm`: mean_i ‖∂ logits(x_i)/∂x‖_F of the network, exact, with the normal 95 % interval of that mean.

    Each is ≥ 0, and std is that of a population (ddof 0); only the interval uses the sample's. A unit whose gradient is
    0 on every image is dead: no value of a layer or of the network counts it, `note` says how many were left out and
    `d` how many were not. A coefficient of variation of one image or one unit is undefined.

    A layer of U units costs U backward passes of each batch through the network up to that layer, and the Jacobian K
    for K logits; all else is one forward pass. Memory is that of a graph of `batch_size · at_once` images. The batch is
    repeated `at_once` times, each copy for a unit of its own: that keeps a GPU busy when the images are few. On a CPU
    it saves nothing. BatchNorm is folded into the convolutions where that changes no recorded response by more than
    1e-5 of the layer's largest.

    The network is in eval mode meanwhile and restored after; TF32 and autocast are off; no gradient of a parameter is
    computed. A network that draws noise has other noise in each copy. A layer some of whose responses or gradients are
    NaN or infinite has no value; the others have theirs.

    Args:
        model: Images in [0, 1] → logits. On the device where it is. An image's logits depend on no other image.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`.
        layers: Module names or shell patterns; default every activation and block output.
        reduce: From a response `[n, ...]` to `[n, d]`, differentiable; default the mean over space.
        batch_size: Images per batch. Results do not depend on it, beyond rounding and a network's own noise.
        at_once: Units per backward pass; default 1 on a CPU and 16 elsewhere. Less of it takes less memory.
        seed: Keys the noise of a network that draws any.
        columns: Values for the table's columns job, dataset, model, recipe, seed and epoch.
        progress: Called with (batches done, batches in all).

    Raises:
        GeophoneError: bad images, unknown layers, or at_once below 1.

    References:
        Leavitt & Morcos 2020 (input-unit gradients and their two variations), arXiv:2010.07693.

    >>> input_gradients(model, "fashion_mnist_mini", ["relu*"]).filter(pl.col("unit").is_null())
    """
    probe = Gradients(None if layers is None else as_tuple(layers), reduce, at_once, batch_size)
    return measured(probe, model, data, seed=seed, columns=columns, progress=progress)


@contextmanager
def _recording_gradients() -> Iterator[None]:
    """Gradients are recorded inside the block, whatever the caller turned off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _responses(
    net: nn.Module, x: Tensor, layers: Sequence[str] | None, reduce: Reduce
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and responses with their graph. The network gets a copy of x, a leaf that it may not overwrite."""
    with tap(net, layers, reduce, detach=False) as seen:
        return logits_of(net, x.clone()), dict(seen)


def _folded(net: nn.Module, x: Tensor, layers: Sequence[str] | None, reduce: Reduce) -> nn.Module:
    """The network with BatchNorm folded, if every recorded response to these images stays the same; else itself."""
    twin = unwrapped(folded(net, x))
    if twin is net:
        return net
    with torch.no_grad():
        (_, wanted), (_, got) = _responses(net, x, layers, reduce), _responses(twin, x, layers, reduce)
    same = list(got) == list(wanted) and all(
        torch.allclose(got[layer], response, rtol=0, atol=SAME * float(response.abs().max()))
        for layer, response in wanted.items()
    )
    return twin if same else net


def _norms(response: Tensor, x: Tensor, copies: int, where: str) -> Float[Tensor, "n d"]:
    """Length of the gradient of each unit's response to each image, in float64.

    Args:
        response: `[copies · n, d]`, of a graph that starts at x.
        x: The images, `copies` times.
        copies: How many units go into one backward pass.
        where: What the response belongs to, for errors.
    """
    n, d = len(x) // copies, response.shape[1]
    if len(response) != len(x):
        raise GeophoneError(f"{where} gives {len(response)} rows for {len(x)} images: reduce it to [n, d].")
    if not response.requires_grad:  # it has nothing to do with the images
        return torch.zeros(n, d, dtype=torch.float64, device=x.device)
    found = []
    for units in torch.arange(d, device=x.device).split(copies):
        chosen = torch.zeros(copies, n, d, dtype=response.dtype, device=x.device)
        chosen[torch.arange(len(units), device=x.device), :, units] = 1
        (gradient,) = torch.autograd.grad(response, x, chosen.flatten(0, 1), retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        found.append(double(gradient).flatten(1).norm(dim=1).unflatten(0, (copies, n))[: len(units)])
    return torch.cat(found).T


def _rows(metric: str, sums: Mapping[str, UnitMoments], flaws: Mapping[str | None, str]) -> Iterator[dict[str, Any]]:
    """Rows of one metric: the units and the whole of each layer, then the network."""
    values: list[float] = []
    used = dead = 0
    for depth, (layer, moments) in enumerate(sums.items()):
        row = {"metric": metric, "layer": layer, "depth": depth}
        if layer in flaws:
            yield row | {"d": moments.d, "note": flaws[layer]}
            continue
        if metric != _CV_UNITS:
            yield from (row | unit for unit in _unit_rows(metric, moments))
        alive = int((moments.mean > 0).sum())
        try:
            value = _layer_value(metric, moments)
        except Undefined as reason:
            yield row | {"d": alive, "note": str(reason)}
            continue
        yield row | {"value": value, "d": alive, "note": _left_out(moments.d - alive) or None}
        values.append(value)
        used, dead = used + alive, dead + moments.d - alive
    if not values:
        yield {"metric": metric, "d": 0, "note": "no layer has a value"}
        return
    of = "" if len(values) == len(sums) else f" of {len(sums)}"
    note = "; ".join(filter(None, (f"mean over {len(values)}{of} layers", _left_out(dead))))
    yield {"metric": metric, "value": sum(values) / len(values), "d": used, "note": note}


def _unit_rows(metric: str, moments: UnitMoments) -> Iterator[dict[str, Any]]:
    values = moments.mean if metric == _NORM else _variation(moments)
    reason = "one image has no spread" if moments.n < 2 else f"dead: {_DEAD}"
    for unit, value in enumerate(values.tolist()):
        yield {"unit": unit, "value": value, "d": moments.d, "note": reason if isnan(value) else None}


def _layer_value(metric: str, moments: UnitMoments) -> float:
    """The layer's value, over the units that are not dead.

    Raises:
        Undefined: all are dead, or there is but one image or unit.
    """
    alive = moments.mean > 0
    if not bool(alive.any()):
        raise Undefined(f"all {moments.d} units are dead: {_DEAD}")
    if metric == _NORM:
        return float(moments.mean[alive].mean())
    if metric == _CV_SAMPLES:
        if moments.n < 2:
            raise Undefined("one image has no spread")
        return float(_variation(moments)[alive].mean())
    if int(alive.sum()) < 2:
        raise Undefined("one unit has no spread")
    means = moments.mean[alive]
    return float(means.std(correction=0) / means.mean())


def _variation(moments: UnitMoments) -> Float[Tensor, " d"]:
    """Coefficient of variation over images of each unit; NaN where it is dead, and of one image."""
    variance = moments.square / moments.n if moments.n > 1 else torch.full_like(moments.square, nan)
    return variance.sqrt() / moments.mean


def _left_out(dead: int) -> str:
    return f"{dead} dead unit{'s' if dead > 1 else ''} left out" if dead else ""


def _jacobian_row(lengths: UnitMoments, classes: int, flaw: str | None) -> dict[str, Any]:
    if flaw is not None:
        return {"metric": "jacobian_norm", "d": classes, "note": flaw}
    value = float(lengths.mean)
    row = {"metric": "jacobian_norm", "value": value, "d": classes}
    if lengths.n < 2:
        return row | {"note": "one image has no interval"}
    half = Z * sqrt(float(lengths.square) / (lengths.n - 1) / lengths.n)
    return row | {"low": max(0.0, value - half), "high": value + half}
