"""What a probe is, and the one runner of all probes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from geophone.core import table
from geophone.core.progress import Stage
from geophone.core.registry import PROBES as PROBES
from geophone.core.types import Batch, Model, Pair
from geophone.data import Split, as_split
from geophone.models.run import Subject, opened
from geophone.probes.part import Part
from geophone.stats import total

Row = dict[str, Any]

SAVED_EVERY = 60.0
"""Seconds after which what was done is written down, where a file for it is given."""

Step = Callable[[int, Callable[[int], None]], Part]
"""Does the step of a number, and tells how many of its parts, as `Probe.costs` counts them, are done."""


@dataclass(frozen=True)
class Probe:
    """What is measured of one model, or of two, over examples.

    A frozen dataclass of plain values, registered in `PROBES`. Its work is divided into steps, each of which looks at
    some of the examples under every condition, and is summed up as statistics (`Part`). No result of a step may depend
    on the steps before it: any division of the steps gives the same rows, to the bit.

    Attributes:
        stage: What progress calls it.
        models: Of how many models it is.
        kinds: The statistics that its parts are made of.
    """

    stage: ClassVar[str] = "measuring"
    models: ClassVar[int] = 1

    @property
    def kinds(self) -> Sequence[type[Any]]:
        """The statistics that its parts are made of, besides `Columns`."""
        return ()

    def resolved(self, examples: Split) -> "Probe":
        """The same with what it leaves to defaults, or to the examples, written out."""
        return self

    def steps(self, examples: Split) -> int:
        """How many steps these examples make."""
        raise NotImplementedError

    def costs(self, examples: Split) -> Sequence[float]:
        """What each part of a step costs, in forward passes of one example: what progress counts, in its order."""
        return (1.0,)

    def check(self, subject: Subject, examples: Split) -> None:
        """Raise an error for a subject and examples that the probe is not for, before the first step.

        Raises:
            GeophoneError: they don't fit.
        """

    def begin(self, subject: Subject, examples: Split) -> Step:
        """Get ready; what is returned does one step after the other, in any order.

        Args:
            subject: The model, opened.
            examples: All of the examples, whatever steps are asked for.
        """
        raise NotImplementedError

    def part(self, subject: Subject, examples: Split, steps: range) -> Part:
        """What these steps, at least one, give."""
        step = self.begin(subject, examples)
        return total(step(number, lambda done: None) for number in steps)

    def rows(self, part: Part) -> Iterator[Row]:
        """Rows of the table for all steps. No model is needed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Soundness:
    """Of the examples behind a sum, how many have NaN or infinite responses; a statistic.

    Attributes:
        examples: How many there are; each may have several rows.
        bad: How many of them have a NaN or an infinity, on either side of a pair.
    """

    examples: int
    bad: Int[Tensor, ""]

    @classmethod
    def of(cls, batch: Batch | Pair, examples: int) -> "Soundness":
        """Of one batch of so many examples. Nothing is read back from the device."""
        sides = (batch.a, batch.b) if isinstance(batch, Pair) else (batch.x,)
        rows = torch.stack([~side.isfinite().all(1) for side in sides]).any(0)
        return cls(examples, rows.reshape(examples, -1).any(1).count_nonzero())

    def __add__(self, other: "Soundness") -> "Soundness":
        return Soundness(self.examples + other.examples, self.bad + other.bad)


def stage_of(probe: Probe, examples: Split) -> Stage:
    """What a probe that is resolved tells of its progress, and what that costs."""
    return Stage(probe.stage, tuple(probe.costs(examples)), probe.steps(examples))


def summed(
    probe: Probe,
    subject: Subject,
    examples: Split,
    *,
    progress: Callable[[int, int], None] | None = None,
    kept: Path | None = None,
) -> Part:
    """All steps of a probe on an opened subject.

    Args:
        probe: What is measured; one that is resolved.
        subject: Of what.
        examples: On what, on the subject's device.
        progress: Called with (parts of steps done, in all).
        kept: A file for what was done, written every `SAVED_EVERY` seconds; where it is there, it is gone on from.
    """
    steps, each = probe.steps(examples), len(probe.costs(examples))
    probe.check(subject, examples)
    step = probe.begin(subject, examples)
    part = None if kept is None or not kept.is_file() else Part.load(kept, probe.kinds, subject.device)
    written = time.monotonic()
    for number in range(0 if part is None else part.steps[-1][1], steps):

        def done(parts: int, before: int = number * each) -> None:
            if progress is not None:
                progress(before + parts, steps * each)

        now = step(number, done)
        part = now if part is None else part + now
        if kept is not None and number + 1 < steps and time.monotonic() - written > SAVED_EVERY:
            part.save(kept)
            written = time.monotonic()
    assert part is not None
    return part


def run(
    probe: Probe,
    subject: Subject,
    examples: Split,
    *,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    kept: Path | None = None,
) -> pl.DataFrame:
    """Rows of the table for all steps of a probe: see `summed`; `columns` are values for the table's other columns."""
    probe = probe.resolved(examples)
    part = summed(probe, subject, examples, progress=progress, kept=kept)
    return table.frame({**(columns or {}), **row} for row in probe.rows(part))


def measured(
    probe: Probe,
    models: Model | Sequence[Model],
    data: Any,
    *,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """A probe run on models as they are handed over, and on data as `as_split` takes them."""
    several = tuple(models) if isinstance(models, Sequence) else (models,)
    examples = as_split(data).near(several[0])
    with opened(several, examples, seed) as subject:
        return run(probe, subject, examples, columns=columns, progress=progress)
