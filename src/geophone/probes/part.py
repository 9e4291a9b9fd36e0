"""What a probe sums up: statistics by key, in blocks of steps that merge in one fixed order, and as plain tensors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from geophone.core.checksums import BLANK, KEY, read_checked, sealed
from geophone.core.errors import GeophoneError
from geophone.core.files import replacing

CHUNK = 32
"""Steps that are summed one after the other; chunks are then summed in pairs, pairs of pairs and so on."""

REMEDY = "Delete it, and run the same command again."

Block = tuple[int, int]
"""Steps from the first to before the second."""

Name = tuple[str | int | bool | None, ...]
"""What a sum is of; each probe has keys of its own."""


@dataclass(frozen=True)
class Columns:
    """Columns of examples, in the order of steps: a statistic whose `+` appends.

    Attributes:
        columns: Tensors by name, examples along the first axis.
    """

    columns: dict[str, Tensor]

    def __add__(self, other: "Columns") -> "Columns":
        return Columns({name: torch.cat([column, other.columns[name]]) for name, column in self.columns.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]


@dataclass(frozen=True)
class Part:
    """What some steps of a probe gave.

    Floating-point sums depend on their order. Here it is fixed: steps are added from the left inside chunks of `CHUNK`
    steps that begin at multiples of it, chunks in pairs. Whatever parts the steps came in and in whatever order they
    are merged, `total` forms the same sums, equal to the bit. What can't be added yet is kept beside it: at most one
    block a step of the chunks that are not complete, and one for each power of two of the others.

    Attributes:
        blocks: By block of steps, by key, a statistic.
        facts: What holds for every part, as plain values: the order of layers, whether the model has noise, …
    """

    blocks: Mapping[Block, Mapping[Name, Any]]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, step: int, sums: Mapping[Name, Any], facts: Mapping[str, Any]) -> "Part":
        """What one step gave."""
        return cls({(step, step + 1): dict(sums)}, json.loads(json.dumps(facts)))

    def __add__(self, other: "Part") -> "Part":
        """Both parts together.

        Raises:
            GeophoneError: they overlap, or are of different measurements.
        """
        if wrong := [name for name in {**self.facts, **other.facts} if self.facts.get(name) != other.facts.get(name)]:
            raise GeophoneError(
                f"the parts are of different measurements, or the model ran other layers for some examples than for "
                f"others: {', '.join(wrong)} differ."
            )
        if overlap := _overlap((*self.blocks, *other.blocks)):
            raise GeophoneError(f"the parts overlap at step {overlap[0]}: merge each step once.")
        return Part(_merged({**self.blocks, **other.blocks}), self.facts)

    @property
    def steps(self) -> tuple[Block, ...]:
        """The runs of steps that are in it."""
        runs: list[Block] = []
        for start, stop in sorted(self.blocks):
            if runs and runs[-1][1] == start:
                runs[-1] = runs[-1][0], stop
            else:
                runs.append((start, stop))
        return tuple(runs)

    def total(self) -> dict[Name, Any]:
        """The sums over all steps.

        Raises:
            GeophoneError: some are missing, as far as can be told.
        """
        if len(self.steps) != 1 or self.steps[0][0]:
            raise GeophoneError(f"steps are missing: there are {self.steps}.")
        made: dict[Name, Any] = {}
        for block in sorted(self.blocks):
            made = _sum(made, self.blocks[block])
        return made

    def save(self, path: Path) -> None:
        """Write it as safetensors with a checksum, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        index: list[Any] = []
        for block, sums in self.blocks.items():
            for key, statistic in sums.items():
                place = str(len(index))
                state = dict(_tensors(statistic))
                index.append([block, key, name_of(type(statistic)), list(state)])  # safetensors keeps no order
                tensors |= {f"{place}/{name}": tensor for name, tensor in state.items()}
        about = {KEY: BLANK, "index": json.dumps(index), "facts": json.dumps(self.facts)}
        with replacing(path) as temporary:
            temporary.write_bytes(sealed(save(tensors, about)))

    @classmethod
    def load(cls, path: Path, kinds: Sequence[type[Any]], device: torch.device | str = "cpu") -> "Part":
        """Read it back, equal to the bit.

        Args:
            path: The file.
            kinds: The statistics that may be in it, besides `Columns`.
            device: Where its tensors are put.

        Raises:
            GeophoneError: it is not what was written, or has other statistics.
        """
        by_name = {name_of(kind): kind for kind in (*kinds, Columns)}
        data = read_checked(path, REMEDY)
        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(data[8 : 8 + length])["__metadata__"]
            index, facts = json.loads(about["index"]), json.loads(about["facts"])
            tensors = load(data)
            blocks: dict[Block, dict[Name, Any]] = {}
            for place, (block, key, kind, names) in enumerate(index):
                state = {name: tensors[f"{place}/{name}"].to(device) for name in names}
                blocks.setdefault(tuple(block), {})[tuple(key)] = _statistic(by_name[kind], state)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise GeophoneError(f"{path} is no part of a measurement ({error}). {REMEDY}") from None
        return cls(blocks, facts)


def name_of(kind: type[Any]) -> str:
    """A statistic's name in a file."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _overlap(blocks: Sequence[Block]) -> list[int]:
    order = sorted(blocks)
    return [after[0] for before, after in pairwise(order) if after[0] < before[1]]


def _sum(a: Mapping[Name, Any], b: Mapping[Name, Any]) -> dict[Name, Any]:
    """Sums by key; what only one side has is kept."""
    return {key: a[key] + b[key] if key in a and key in b else a[key] if key in a else b[key] for key in {**a, **b}}


def _merged(blocks: Mapping[Block, Mapping[Name, Any]]) -> dict[Block, Mapping[Name, Any]]:
    """What can be added, added: first inside chunks from the left, then whole chunks in pairs."""
    made: dict[Block, Mapping[Name, Any]] = {}
    for block in sorted(blocks):
        start, stop = block
        before = next(reversed(made), None)
        begun = before is not None and before[1] == start and before[0] % CHUNK == 0 and stop - start == 1
        if begun and before is not None and before[1] - before[0] < CHUNK:
            made[before[0], stop] = _sum(made.pop(before), blocks[block])
        else:
            made[block] = blocks[block]
        _pair(made)
    return made


def _pair(made: dict[Block, Mapping[Name, Any]]) -> None:
    """The last two blocks added, and again, while they are the halves of a run of chunks."""
    while len(made) > 1:
        (a, b), (c, d) = list(made)[-2:]
        size = b - a
        if b != c or d - c != size or size % CHUNK or a % (2 * size):
            return
        made[a, d] = _sum(made.pop((a, b)), made.pop((c, d)))


def _tensors(statistic: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A statistic's state as tensors by field; those inside it by dotted names."""
    if isinstance(statistic, Columns):
        yield from ((f"{prefix}{name}", _plain(column)) for name, column in statistic.columns.items())
        return
    for field in fields(statistic):
        value = getattr(statistic, field.name)
        if is_dataclass(value):
            yield from _tensors(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _plain(torch.as_tensor(value))


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _statistic(kind: type[Any], flat: Mapping[str, Tensor]) -> Any:
    """A statistic of these tensors."""
    if kind is Columns:
        return Columns(dict(flat))
    made = {}
    for field in fields(kind):
        inside = f"{field.name}."
        if field.name in flat:
            tensor = flat[field.name]
            made[field.name] = int(tensor) if field.type is int else tensor
        else:
            inner = {name.removeprefix(inside): tensor for name, tensor in flat.items() if name.startswith(inside)}
            made[field.name] = _statistic(field.type, inner)  # type: ignore[arg-type]
    return kind(**made)
