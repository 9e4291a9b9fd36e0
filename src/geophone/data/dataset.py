"""Labelled images in memory: one part of a data set, and a data set of three parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from geophone.core.errors import GeophoneError, check_counts
from geophone.core.rng import draws
from geophone.core.types import ROUNDING, UNLABELLED, Batch, Model, device_of

MOST_CLASSES = 1 << 20
"""Labels are below this: fifty times the classes of ImageNet-21k. What is above is no class but an id or a mistake."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, whole, on one device.

    Attributes:
        x: Images `[n, c, h, w]`, uint8, or float32 in [0, 1].
        y: Class labels `[n]`, int64, from 0; all `geophone.core.types.UNLABELLED` (−1) where there are none.
        index: Position of each example in its source (the train part's or the test part's file), `[n]`, int64.
        outputs: How many outputs a network for these labels has. None where labels are what the source says, and any
            network with enough outputs may be meant; a number where they were counted off, as class folders are.
    """

    x: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    index: Int64[Tensor, " n"]
    outputs: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"<Split of {len(self)} images, {_kind(self)}{'' if self.labelled else ', without labels'}>"

    @property
    def labelled(self) -> bool:
        """Whether the images have labels. No images lack none."""
        return len(self.y) == 0 or bool((self.y != UNLABELLED).any())

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), index=self.index.to(device))

    def near(self, model: Model) -> "Split":
        """The same examples on the model's device; as they are where it has no parameters or buffers."""
        return self.to(device_of(model, self.x.device))

    def batches(self, size: int, order: Int[Tensor, " m"] | None = None) -> Iterator[Batch]:
        """The examples in batches of `size` (the last may be smaller), images as float32 in [0, 1].

        Batches are copies: a network that works in place cannot change the data.

        Args:
            size: Examples per batch, at least 1.
            order: Which rows, in which order, `[m]`; all of them in their own order by default.
        """
        check_counts(batch_size=size)
        rows = torch.arange(len(self)) if order is None else order
        for some in rows.to(self.x.device).split(size):
            x = self.x[some]
            yield Batch(divided(x.float(), 255) if x.dtype == torch.uint8 else x, self.y[some], self.index[some])

    def steps(self, batch_size: int) -> int:
        """How many batches of a size the examples make.

        Raises:
            GeophoneError: the size is below 1.
        """
        check_counts(batch_size=batch_size)
        return -(-len(self) // batch_size)

    def batch(self, number: int, size: int) -> Batch:
        """The batch of this number, from 0, of those that `batches(size)` gives."""
        return next(self.rows(torch.arange(len(self))[number * size : (number + 1) * size]).batches(size))

    def rows(self, rows: Int[Tensor, " m"]) -> "Split":
        """The examples at these rows, in this order."""
        rows = rows.to(self.x.device)
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    def take(self, n: int) -> "Split":
        """The first examples of each class, `n` in all, in the order in which they stand; without labels the first.

        Classes have equal shares as far as they go: the remainder of n/k goes to the lowest labels, and what a small
        class lacks to the others. `take(a)` is part of `take(b)` for a < b.

        Raises:
            GeophoneError: there are fewer than `n` examples, or `n` is below 1.
        """
        if not 1 <= n <= len(self):
            raise GeophoneError(f"cannot take {n} examples: allowed are 1 to {len(self)}, which is how many there are.")
        y = _dense(self.y.cpu())
        first = (_rank_in_class(y) * (int(y.max()) + 1) + y).argsort(stable=True)[:n]
        return self.rows(first.sort().values)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: fixed train, validation and test parts of images of one size.

    Networks are chosen on `val`; everything that is reported comes from `test`.

    Attributes:
        name: Its registered name, or the name of its file or folder.
        classes: Class names; a label is a position in them.
        train: Empty where the source has test images only.
        val: Never a part of `test`.
        test: Never empty.
        named: Whether the source says what the classes are; else `classes` only counts up to the largest label.
        left_out: What of the source was not read, in sentences.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    named: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Colour channels c."""
        return self.test.x.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Image height and width (h, w)."""
        return self.test.x.shape[2], self.test.x.shape[3]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean pixel of the train part per channel, on the [0, 1] scale."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation (dividing by the number of pixels) of the train part per channel, on the [0, 1] scale."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if not len(self.train):
            raise GeophoneError(
                f"{self.name} has no training part, so it has no mean or standard deviation to normalise by."
            )
        total = torch.zeros(2, self.channels, dtype=torch.float64)
        for batch in self.train.batches(1024):
            x = batch.x.double()
            total += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).cpu()
        mean, square = total / (len(self.train) * self.size[0] * self.size[1])
        return tuple(mean.tolist()), tuple((square - mean.square()).clamp(min=0).sqrt().tolist())

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data on another device."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


def divided(x: Float[Tensor, "..."], by: int | float) -> Float[Tensor, "..."]:
    """X / by, written to x, rounded correctly on every device.

    On a GPU torch multiplies by a rounded 1/by instead where `by` is a number: k/255 is then off by a unit in the last
    place, and a level truncated from it by a whole one.
    """
    return x.div_(by if x.device.type == "cpu" else torch.full((), by, dtype=x.dtype, device=x.device))


def make_split(
    x: Any, y: Any, where: str, index: Any = None, classes: int | None = None, outputs: int | None = None
) -> Split:
    """A split from a user's tensors or arrays, checked.

    Args:
        x: Images `[n, c, h, w]`, `[n, h, w]` (grey) or `[n, h, w, c]` (recognised where the last axis, and not the
            second, is 1 or 3): uint8, or floats in [0, 1], which become float32; what is at most 1e-6 outside is
            clamped.
        y: Integer labels `[n]`, from 0 and below 2²⁰; None for images without labels.
        where: What they are, for messages ("x.npz, test part").
        index: Position of each example in its source; 0 to n−1 by default.
        classes: How many there are, if known.
        outputs: As in `Split`.

    Raises:
        GeophoneError: anything else than the above.
    """
    x = _tensor(x, f"{where}: the images")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise GeophoneError(
            f"{where}: the images have the shape {list(x.shape)}; "
            "allowed are [n, c, h, w], [n, h, w] (grey) and [n, h, w, c]."
        )
    labelled = y is not None
    y = _tensor(y, f"{where}: the labels") if labelled else torch.full((len(x),), UNLABELLED)
    if y.ndim != 1:
        raise GeophoneError(
            f"{where}: the labels have the shape {list(y.shape)}; allowed is [n], one whole number per image. "
            "Use y.argmax(1) for one-hot labels, y.reshape(-1) for a column."
        )
    if len(x) != len(y):
        raise GeophoneError(f"{where}: {len(x)} images but {len(y)} labels; give one label per image.")
    if not len(x):
        raise GeophoneError(f"{where}: there are no examples; give at least one.")
    if labelled:
        y = _checked_labels(y, where, classes)
    if x.dtype != torch.uint8:
        x = _checked_floats(x, where)
    if index is None:
        index = torch.arange(len(y))
    return Split(x.contiguous(), y.to(x.device), _tensor(index, where).to(x.device, torch.int64), outputs)


def assemble(
    name: str,
    classes: tuple[str, ...],
    test: Split,
    train: Split | None = None,
    val: Split | None = None,
    held_out: int = 0,
    named: bool = True,
    left_out: tuple[str, ...] = (),
) -> ImageData:
    """A data set from its parts. A missing validation part is split off the train part, never off the test part.

    Args:
        name: Of the data set.
        classes: Class names.
        test: The test part.
        train: The train part, if any.
        val: The validation part, if any.
        held_out: How many train examples become the validation part; 0 means a tenth.
        named: As in `ImageData`.
        left_out: As in `ImageData`.

    Raises:
        GeophoneError: the parts' images differ in size, or in kind (uint8 or float).
    """
    empty = test.rows(torch.arange(0))
    train = empty if train is None else train
    if val is None:
        held_out = held_out or (len(train) + 9) // 10
        train, val = hold_out(train, held_out) if len(train) else (train, empty)
    for part, split in (("train", train), ("validation", val)):
        if split.x.shape[1:] != test.x.shape[1:] or split.x.dtype != test.x.dtype:
            raise GeophoneError(
                f"{name}: the {part} images are {_kind(split)}, the test images {_kind(test)}; all parts need the same."
            )
    return ImageData(name, classes, train, val, test, named, left_out)


def hold_out(split: Split, n: int) -> tuple[Split, Split]:
    """Split `n` examples off, stratified by class; both parts keep the order. What goes where is fixed for ever.

    Each class gives its share n·n_c/N, rounded by largest remainder so that the shares add up to `n`; within a class
    the examples with the smallest hash of their index go.

    Returns:
        What stays, and the `n` examples held out.
    """
    if not 1 <= n < len(split):
        raise GeophoneError(
            f"cannot hold {n} of {len(split)} train examples out for validation; give more, or a validation part."
        )
    y = _dense(split.y.cpu())
    share = y.bincount() * n
    quota = share // len(y)
    largest = (share % len(y)).argsort(descending=True, stable=True)
    quota[largest[: n - int(quota.sum())]] += 1
    order = draws("validation", index=split.index.cpu()).uniform("order").argsort(stable=True)
    held = torch.empty(len(y), dtype=torch.bool)
    held[order] = _rank_in_class(y[order]) < quota[y[order]]
    return split.rows((~held).nonzero()[:, 0]), split.rows(held.nonzero()[:, 0])


def _dense(y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Labels numbered anew without gaps, in the same order: what follows counts up to the largest."""
    return y.unique(return_inverse=True)[1]


def _rank_in_class(y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many earlier examples each example's class has."""
    count = y.bincount()
    by_class = y.argsort(stable=True)
    rank = torch.empty_like(y)
    rank[by_class] = torch.arange(len(y)) - (count.cumsum(0) - count)[y[by_class]]
    return rank


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_quantized:
            kind = "quantised" if values.is_quantized else str(values.layout).removeprefix("torch.")
            raise GeophoneError(f"{what} are a {kind} tensor; allowed are dense ones: x.dequantize() or x.to_dense().")
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError:
        raise GeophoneError(f"{what} are lists of different lengths; allowed are tensors and arrays.") from None
    except (TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise GeophoneError(f"{what} are no numbers ({reason}); allowed are tensors and arrays.") from None
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:  # torch has no long double
        raise GeophoneError(f"{what} are of the type {array.dtype}; allowed are numbers of at most 64 bits.")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _checked_labels(y: Tensor, where: str, classes: int | None) -> Tensor:
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise GeophoneError(
            f"{where}: the labels are {_name(y)}; allowed are integers. Use y.long() if they are whole numbers."
        )
    y = y.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= (MOST_CLASSES if classes is None else classes):
        allowed = f"0 and up, below {MOST_CLASSES}" if classes is None else f"0 to {classes - 1}, for {classes} classes"
        raise GeophoneError(f"{where}: the labels run from {low} to {high}; allowed are {allowed}.")
    return y


def _checked_floats(x: Tensor, where: str) -> Tensor:
    if not x.dtype.is_floating_point:
        raise GeophoneError(f"{where}: the images are {_name(x)}; allowed are uint8 from 0 to 255 or floats in [0, 1].")
    x = x.float()
    bad = ~x.isfinite().all(3).all(2).all(1)
    if bad.any():
        raise GeophoneError(f"{where}: image {int(bad.nonzero()[0])} holds NaN or infinite pixels; allowed is [0, 1].")
    low, high = float(x.min()), float(x.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise GeophoneError(
            f"{where}: the images run from {low:.9g} to {high:.9g}, allowed is [0, 1] (or uint8): divide by 255, "
            "and put any normalisation inside the model as its first layer."
        )
    return x.clamp(0, 1) if low < 0 or high > 1 else x


def _kind(split: Split) -> str:
    return f"{_name(split.x)} {list(split.x.shape[1:])}"


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
