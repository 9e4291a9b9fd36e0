"""What the layers of one model, or of two, answer to one batch: Gram matrices, and all inner products of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.types import Model, unwrapped
from geophone.metrics.metric import not_finite
from geophone.models.run import logits_of
from geophone.models.tap import Reduce, check_ran, tap
from geophone.stats.hsic import NOUGHT, centred_gram, norms, own_products, power_of, products, u_centred

LOOKED_AT = 2
"""Batches that a layer's first component is measured on."""


@dataclass(frozen=True)
class Side:
    """The layers of one model, in the order of execution, over all batches.

    Attributes:
        names: Of the layers.
        widths: Units of each.
        stages: The run of layers of one spatial size in which each lies, from 0.
        images: How many were seen.
        bad: Of layers with any, how many images had NaN or infinite responses.
        own: Per batch, the inner product of every layer's Gram matrix with itself, `[b, l]`.
        lengths: Squared distance from their batch's mean of every image's response, `[n, l]`.
        first: Of the batches that were looked at, the first component's share of the variance, `[looked, l]`.
        looked_at: How many images these are.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    stages: tuple[int, ...]
    images: int
    bad: Mapping[str, int] = field(default_factory=dict)
    own: Float[Tensor, "b l"] | None = None
    lengths: Float[Tensor, "n l"] | None = None
    first: Float[Tensor, "looked l"] | None = None
    looked_at: int = 0

    def flaw(self, name: str) -> str:
        """Why a layer has no similarity, whatever the other is; empty if nothing is wrong with it."""
        count = self.bad.get(name, 0)
        return not_finite(count, self.images) if count else ""


@dataclass(frozen=True)
class Sums:
    """What is summed over batches: of every layer of one side with every layer of the other.

    Attributes:
        a: The first side.
        b: The second; the same object where a model is compared with itself.
        sizes: Images of each batch.
        pairs: Per batch, by name: `cross`, inner products of U-centred Gram matrices, `[b, p, q]`; `shuffled`, the same
            with the second side's images in another order; `image_a` and `image_b`, of either side's layers with the
            images themselves, `[b, p]`; `image_shuffled`, of the second's in that other order; `image`, of the images
            with themselves, `[b, 1]`.
    """

    a: Side
    b: Side
    sizes: tuple[int, ...] = ()
    pairs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What the layers of one model answer to one batch.

    Attributes:
        names: Of the layers, in the order of execution.
        widths: Units of each.
        stages: The run of layers of one spatial size in which each lies, from 0.
        bad: Of each layer, how many images have NaN or infinite responses; such a layer's matrix is 0.
        rows: Responses to the images that are kept, by layer, `[m, d]`.
        grams: U-centred Gram matrices, `[l, n, n]`; 0 where only rounding is left. None unless pairs are asked for.
        scale: What they were multiplied by, so that no product leaves the range of float32: powers of two, which round
            nothing and are divided out of every product, `[l]`.
        lengths: Squared distance of every image's response from the mean, `[n, l]`.
        first: The first component's share of the variance, `[1, l]`; None unless it is asked for.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    stages: tuple[int, ...]
    bad: tuple[int, ...]
    rows: dict[str, Tensor]
    grams: Float[Tensor, "l n n"] | None = None
    scale: Float[Tensor, " l"] | None = None
    lengths: Float[Tensor, "n l"] | None = None
    first: Float[Tensor, "1 l"] | None = None


def answers(
    model: Model,
    x: Tensor,
    layers: Sequence[str] | None,
    wanted: Sequence[str],
    reduce: Reduce,
    *,
    kept: Bool[Tensor, " n"] | None = None,
    pairs: bool = True,
    look: bool = False,
) -> Answers:
    """One pass of one batch. Each layer's Gram matrix is taken inside the hook, and its responses are dropped.

    Args:
        model: In eval mode.
        x: The images.
        layers: Names or patterns, as `layers_of` takes them.
        wanted: Those that must run.
        reduce: From a response `[n, ...]` to `[n, d]`.
        kept: Whose responses are kept; None: nobody's.
        pairs: Whether Gram matrices are taken.
        look: Whether the first component is.
    """
    shapes: list[tuple[int, torch.Size]] = []
    rows: list[Tensor] = []
    bad: list[int] = []
    powers: list[int] = []
    keeps = kept is not None and bool(kept.any())

    def taken(response: Tensor) -> Tensor:
        reduced = reduce(response)
        if reduced.dtype in (torch.float16, torch.bfloat16):
            reduced = reduced.float()
        if reduced.ndim != 2 or len(reduced) != len(x):
            raise GeophoneError(
                f"similarity needs one row per image; the reduction gave {list(reduced.shape)} for {len(x)} images."
            )
        made, power = _gram(reduced) if pairs else (reduced[:, :1].clone(), 0)
        shapes.append((reduced.shape[1], response.shape[2:] if response.ndim == 4 else torch.Size()))
        count = 0
        if not bool((made.diagonal() if pairs else reduced.sum(1)).sum().isfinite()):
            count = int((~reduced.isfinite().all(1)).count_nonzero())
            made = torch.zeros_like(made) if count else made  # it gets no value, and leaves the other layers theirs
        bad.append(count)
        powers.append(power)
        if keeps:
            rows.append(torch.zeros_like(reduced[kept]) if count else reduced[kept])
        return made

    with tap(model, layers, taken) as seen:
        logits_of(unwrapped(model), x)
    check_ran(wanted, seen)
    if not seen:
        raise GeophoneError("the network has no layer to compare. Name layers.")
    names = tuple(seen)
    of = len(names)  # the logits were looked at too, and come last
    widths, stages = tuple(width for width, _ in shapes[:of]), _stages([size for _, size in shapes[:of]])
    found = Answers(names, widths, stages, tuple(bad[:of]), dict(zip(names, rows, strict=False)))
    return _scaled(found, torch.stack(list(seen.values())), powers[:of], look) if pairs else found


def _gram(reduced: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n n"], int]:
    """A layer's Gram matrix, and the power of two by which its responses were multiplied first."""
    power = power_of(reduced)
    if power is None:
        return centred_gram(reduced), 0
    return centred_gram(torch.ldexp(reduced, power)), int(power)


def _scaled(found: Answers, grams: Float[Tensor, "l n n"], powers: Sequence[int], look: bool) -> Answers:
    """With U-centred Gram matrices in a scale in which they are about 1, in place."""
    responses = torch.tensor(powers, dtype=torch.float64, device=grams.device).exp2().square()
    squares = grams.diagonal(dim1=1, dim2=2).double()
    first = None
    if look:
        first = (torch.linalg.eigvalsh(grams)[:, -1].double() / squares.sum(1))[None]
    mean = squares.mean(1)
    scale = torch.where(mean > 0, -mean.log2().round(), 0.0).exp2()
    grams *= scale.to(grams.dtype)[:, None, None]
    before = norms(grams)
    u_centred(grams)
    grams *= (norms(grams) > NOUGHT * before).to(grams.dtype)[:, None, None]
    lengths = (squares / responses[:, None]).T.contiguous()
    return Answers(
        *(found.names, found.widths, found.stages, found.bad, found.rows),
        *(grams, scale * responses, lengths, first),
    )


def inner_products(
    ours: Answers, theirs: Answers, x: Tensor, images: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """All inner products of one batch, as `Sums` names them, with `own_a` and `own_b`; an axis for the batch first.

    Args:
        ours: What the first side answers.
        theirs: What the second does; the same object where a model is compared with itself.
        x: The images.
        images: Whether products with the images themselves are taken.
        generator: Draws the order of the shuffled control.
    """
    assert ours.grams is not None
    assert theirs.grams is not None
    assert ours.scale is not None
    assert theirs.scale is not None
    a, b = ours.scale, theirs.scale
    order = torch.randperm(len(x), generator=generator).to(theirs.grams.device)
    moved = theirs.grams[:, order][:, :, order]
    if theirs is ours:  # exactly symmetric, and each layer is exactly like itself
        cross = own_products(ours.grams)
        own_a = own_b = cross.diagonal()
    else:
        cross, own_a, own_b = products(ours.grams, theirs.grams), norms(ours.grams), norms(theirs.grams)
    found = {
        "cross": cross.double() / (a[:, None] * b),
        "shuffled": products(ours.grams, moved).double() / (a[:, None] * b),
        "own_a": own_a.double() / a.square(),
        "own_b": own_b.double() / b.square(),
    }
    if images:
        own = u_centred(centred_gram(x.flatten(1))[None])
        found |= {
            "image_a": products(ours.grams, own)[:, 0].double() / a,
            "image_b": products(theirs.grams, own)[:, 0].double() / b,
            "image_shuffled": products(moved, own)[:, 0].double() / b,
            "image": norms(own).double(),
        }
    return {name: value[None] for name, value in found.items()}


def _stages(sizes: Sequence[torch.Size]) -> tuple[int, ...]:
    """The run of layers of one spatial size in which each lies; what is no image `[c, h, w]` is of the stage before."""
    made: list[int] = []
    last = sizes[0]
    for size in sizes:
        changed = size.numel() > 1 and size != last
        made.append((made[-1] if made else 0) + changed)
        last = size if size.numel() > 1 else last
    return tuple(made)
