"""The layers of one network, or of two, over the same batches: their Gram matrices and all inner products of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import draws, key, stream
from geophone.core.types import Batch, Perturbation, unwrapped, without_gradients
from geophone.data import Split
from geophone.metrics.metric import OVERFLOW, not_finite
from geophone.models.run import deterministic, evaluating, full_precision, logits_of, seeded
from geophone.models.tap import Reduce, check_ran, layers_of, tap
from geophone.perturb.attacks.base import averaging
from geophone.perturb.parse import family_name
from geophone.stats.hsic import LEAST, NOUGHT, centred_gram, norms, own_products, power_of, products, u_centred

LOOKED_AT = 2
"""Batches that a layer's first component is measured on."""


@dataclass
class Side:
    """The layers of one network, in the order of execution, and what is gathered of them.

    Attributes:
        names: Of the layers.
        widths: Units of each.
        stages: The run of layers of one spatial size in which each lies, from 0.
        rows: Responses to the images that are kept, by layer, a part per batch.
        own: Per batch, the inner product of every layer's Gram matrix with itself.
        lengths: Per batch, squared distance from the mean of every image's response, `[l, n]`.
        first: Per batch that was looked at, the first component's share of the variance, `[l]`.
        images: How many were seen.
        bad: Of layers with any, how many images had NaN or infinite responses.
        beyond: Layers whose responses are so much larger than in the first batch that their squares are infinite.
        powers: Of each layer, the power of two that brings squares of responses into float32's range.
        scale: What each layer's Gram matrices are multiplied by, so that no product leaves the range of float32.
    """

    names: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    own: list[Float[Tensor, " l"]] = field(default_factory=list)
    lengths: list[Float[Tensor, "l n"]] = field(default_factory=list)
    first: list[Float[Tensor, " l"]] = field(default_factory=list)
    images: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    beyond: set[str] = field(default_factory=set)
    powers: list[Tensor | None] = field(default_factory=list)
    scale: Float[Tensor, " l"] | None = None

    def flaw(self, name: str) -> str:
        """Why a layer has no similarity, whatever the other is; empty if nothing is wrong with it."""
        if count := self.bad.get(name, 0):
            return not_finite(count, self.images)
        return f"responses grew from batch to batch until {OVERFLOW}" if name in self.beyond else ""

    def kept(self) -> dict[str, Tensor]:
        """All kept responses of each layer, `[m, d]`."""
        return {name: torch.cat(parts) for name, parts in self.rows.items()}


@dataclass
class Sums:
    """What is summed over batches: of every layer of one side with every layer of the other.

    Attributes:
        a: The first side.
        b: The second; the same object where a network is compared with itself.
        sizes: Images of each batch.
        cross: Per batch, inner products of U-centred Gram matrices, `[p, q]`.
        shuffled: The same with the second side's images in another order.
        image_shuffled: Of the second's, in that other order, with the images themselves.
        image_a: Of the first side's layers with the images themselves, `[p]`.
        image_b: Of the second's.
        image: Of the images with themselves.
    """

    a: Side
    b: Side
    sizes: list[int] = field(default_factory=list)
    cross: list[Float[Tensor, "p q"]] = field(default_factory=list)
    shuffled: list[Float[Tensor, "p q"]] = field(default_factory=list)
    image_shuffled: list[Float[Tensor, " q"]] = field(default_factory=list)
    image_a: list[Float[Tensor, " p"]] = field(default_factory=list)
    image_b: list[Float[Tensor, " q"]] = field(default_factory=list)
    image: list[Float[Tensor, " 1"]] = field(default_factory=list)


def gathered(
    first: nn.Module,
    second: nn.Module | None,
    split: Split,
    *,
    layers: tuple[Sequence[str] | None, Sequence[str] | None],
    perturbation: Perturbation | None,
    noisy: bool,
    reduce: Reduce,
    batch_size: int,
    pairs: bool,
    images: bool,
    keep: Int[Tensor, " m"],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Sums:
    """Run both networks over the images, in batches of an order of their own.

    Args:
        first: One network.
        second: The other; None where there is only the first.
        split: The images, on the networks' device.
        layers: Those of either network, as `layers_of` takes them.
        perturbation: What the second network sees its images under.
        noisy: Whether an attack is to average over the second network's noise.
        reduce: From a response `[n, ...]` to `[n, d]`.
        batch_size: Images per batch; a last batch shorter than half is merged with the one before.
        pairs: Whether inner products are taken; else rows are kept only.
        images: Whether products with the images themselves are taken.
        keep: Indices of the images whose responses are kept.
        seed: Keys the order, the perturbation and the shuffled control.
        progress: Called with (batches done, batches in all).
    """
    order = torch.randperm(len(split), generator=stream(seed, "similarity"))  # files are often sorted by class
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) < max(LEAST, batch_size / 2):
        parts[-2:] = [torch.cat(parts[-2:])]
    sums = Sums(a := Side(), a if second is None else Side())
    other = first if second is None else second
    both = (first, layers[0]), (other, layers[1])
    wanted = [[] if one is None else layers_of(model, one) for model, one in both]
    name = ""
    if perturbation is not None:  # its draws are keyed by its name as it was given
        name, perturbation = family_name(perturbation), averaging(perturbation, noisy)
    with (
        evaluating(first),
        evaluating(other),
        full_precision(),
        deterministic(),
        seeded(key(seed, "network"), split.x.device),
        without_gradients(),
    ):
        for (model, patterns), need in zip(both, wanted, strict=True):  # rows that are tokens are more than these
            some = next(split.rows(parts[0][: LEAST - 1]).batches(LEAST)).x
            _answers(model, some, patterns, need, reduce, Side(), torch.zeros(len(some), dtype=torch.bool), False)
        for done, part in enumerate(parts, start=1):
            batch = next(split.rows(part).batches(len(part)))
            kept = torch.isin(batch.index, keep)
            ours = theirs = _answers(first, batch.x, layers[0], wanted[0], reduce, sums.a, kept, pairs)
            if second is not None:
                x = batch.x
                if perturbation is not None:
                    x = perturbation(batch.x, batch.y, second, draws(seed, name, index=batch.index))
                theirs = _answers(second, x, layers[1], wanted[1], reduce, sums.b, kept, pairs)
            if pairs:
                _summed(sums, ours, theirs, batch, images, stream(seed, "shuffled rows", done))
            if progress is not None:
                progress(done, len(parts))
    return sums


def _answers(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None,
    wanted: Sequence[str],
    reduce: Reduce,
    side: Side,
    kept: Tensor,
    pairs: bool,
) -> Float[Tensor, "l n n"]:
    """U-centred Gram matrices of every layer's responses; the rest goes to the side."""
    shapes: list[tuple[int, torch.Size]] = []
    rows: list[Tensor] = []
    bad: list[tuple[int, bool]] = []  # how many images are, and whether squares of sound ones are
    keeps = bool(kept.any())

    def taken(response: Tensor) -> Tensor:
        reduced = reduce(response)
        if reduced.dtype in (torch.float16, torch.bfloat16):
            reduced = reduced.float()
        if reduced.ndim != 2 or len(reduced) != len(x):
            raise GeophoneError(
                f"similarity needs one row per image; the reduction gave {list(reduced.shape)} for {len(x)} images."
            )
        made = _gram(side, len(shapes), reduced) if pairs else reduced[:, :1].clone()
        shapes.append((reduced.shape[1], response.shape[2:] if response.ndim == 4 else torch.Size()))
        count, sound = 0, bool((made.diagonal() if pairs else reduced.sum(1)).sum().isfinite())
        if not sound:
            count = int((~reduced.isfinite().all(1)).count_nonzero())
            made = torch.zeros_like(made)  # it gets no value, and leaves the other layers theirs
        bad.append((count, pairs and not sound and not count))
        if keeps:
            rows.append(torch.zeros_like(reduced[kept]) if count else reduced[kept])
        return made

    with tap(model, layers, taken) as seen:
        logits_of(unwrapped(model), x)
    check_ran(wanted, seen)
    if not seen:
        raise GeophoneError("the network has no layer to compare. Name layers.")
    names = tuple(seen)
    side.images += len(x)
    if side.names and names != side.names:
        raise GeophoneError("the network ran other layers for this batch than for the one before.")
    if not side.names:
        side.names, side.widths = names, tuple(width for width, _ in shapes[: len(names)])
        side.stages = _stages([size for _, size in shapes[: len(names)]])
    for name, (count, over) in zip(names, bad, strict=False):
        if count:
            side.bad[name] = side.bad.get(name, 0) + count
        if over:
            side.beyond.add(name)
    if keeps:
        for name, row in zip(names, rows, strict=False):
            side.rows.setdefault(name, []).append(row)
    return _scaled_and_centred(side, torch.stack(list(seen.values()))) if pairs else x.new_empty(0, 0, 0)


def _scaled_and_centred(side: Side, grams: Float[Tensor, "l n n"]) -> Float[Tensor, "l n n"]:
    """U-centred Gram matrices in the side's scale, in place; 0 where only rounding is left."""
    squares = grams.diagonal(dim1=1, dim2=2).double()
    side.lengths.append(squares.clone())
    if len(side.first) < LOOKED_AT:
        largest = torch.linalg.eigvalsh(grams)[:, -1].double()
        side.first.append(largest / squares.sum(1))
    if side.scale is None:
        mean = squares.mean(1)
        side.scale = torch.where(mean > 0, 1 / mean, 1.0).to(grams.dtype)
    grams *= side.scale[:, None, None]
    before = norms(grams)
    u_centred(grams)
    grams *= (norms(grams) > NOUGHT * before).to(grams.dtype)[:, None, None]
    return grams


def _gram(side: Side, place: int, reduced: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """A layer's Gram matrix, in the power of two that its first batch asks for."""
    if place == len(side.powers):
        side.powers.append(power_of(reduced))
    power = side.powers[place]
    return centred_gram(reduced if power is None else torch.ldexp(reduced, power))


def _summed(sums: Sums, ours: Tensor, theirs: Tensor, batch: Batch, images: bool, generator: torch.Generator) -> None:
    """Add the inner products of one batch."""
    order = torch.randperm(len(batch), generator=generator).to(theirs.device)
    sums.sizes.append(len(batch))
    if sums.b is sums.a:  # exactly symmetric, and each layer is exactly like itself
        sums.cross.append(own_products(ours))
        sums.a.own.append(sums.cross[-1].diagonal())
    else:
        sums.cross.append(products(ours, theirs))
        sums.a.own.append(norms(ours))
        sums.b.own.append(norms(theirs))
    moved = theirs[:, order][:, :, order]
    sums.shuffled.append(products(ours, moved))
    if images:
        own = u_centred(centred_gram(batch.x.flatten(1))[None])
        sums.image_a.append(products(ours, own)[:, 0])
        sums.image_b.append(products(theirs, own)[:, 0])
        sums.image_shuffled.append(products(moved, own)[:, 0])
        sums.image.append(norms(own))


def _stages(sizes: Sequence[torch.Size]) -> tuple[int, ...]:
    """The run of layers of one spatial size in which each lies; what is no image `[c, h, w]` is of the stage before."""
    made: list[int] = []
    last = sizes[0]
    for size in sizes:
        changed = size.numel() > 1 and size != last
        made.append((made[-1] if made else 0) + changed)
        last = size if size.numel() > 1 else last
    return tuple(made)
