"""Progress on standard error: bars on a terminal, lines in a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich import progress as rich_progress
from rich.console import Console

from geophone.core.errors import plain
from geophone.core.progress import Watcher


class _Bar(Watcher):
    """A bar on a terminal, with the time that is left of all stages."""

    def __init__(self, bars: rich_progress.Progress, what: str) -> None:
        self._bars, self._what = bars, what
        self._task = bars.add_task(what, total=None)

    def stage(self, name: str) -> None:
        self._bars.update(self._task, description=f"{self._what}: {name}")

    def __call__(self, done: int, steps: int) -> None:
        self._bars.update(self._task, completed=done, total=steps)


class _Lines(Watcher):
    """A line for each stage, where nobody looks at a bar."""

    def __init__(self, what: str) -> None:
        self._what, self._name, self._new, self._began = what, "", True, time.monotonic()

    def stage(self, name: str) -> None:
        self._name, self._new = f": {plain(name)}", True

    def __call__(self, done: int, steps: int) -> None:
        if self._new:
            self._new = False
            click.echo(f"{self._what}{self._name}{_so_far(done / steps, self._began)}", err=True)


def _so_far(share: float, began: float) -> str:
    """How much is done and how long the rest takes, if it goes on as it went."""
    if share <= 0:
        return ""
    took = time.monotonic() - began
    return f" ({share:.0%} done after {_clock(took)}, about {_clock(took / share - took)} left)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def followed(what: str) -> Iterator[Watcher]:
    """Progress on standard error: a bar on a terminal, a line a stage in a file."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    with _bars(rich_progress.TaskProgressColumn()) as bars:
        yield _Bar(bars, what)


class Study:
    """Progress of a study: its jobs, and the stages of those that run."""

    def __init__(self, name: str, bars: rich_progress.Progress | None) -> None:
        self._name, self._bars, self._began = name, bars, time.monotonic()
        self._jobs, self._done, self._done_before = 0, 0, 0
        self._shares: dict[str, float] = {}
        self._stages: dict[str, str] = {}
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._all = bars.add_task(name, total=None) if bars else None

    def watch(self, what: str, done: int, steps: int) -> None:
        """A job's news: see `geophone.study.tasks.Progress`."""
        job, _, stage = what.rpartition(": ")
        ended = stage == "done"
        if self._bars is None and not ended and self._stages.get(job) != stage:
            click.echo(f"{self._name}: {plain(what)}", err=True)
        self._stages[job] = stage
        self._shares[job] = done / max(1, steps)
        if ended:
            del self._shares[job], self._stages[job]
        if self._bars is not None:
            if job not in self._tasks:
                self._tasks[job] = self._bars.add_task(what)
            self._bars.update(self._tasks[job], description=what, completed=done, total=steps)
            if ended:
                self._bars.remove_task(self._tasks.pop(job))
        self._update()

    def finished(self, done: int, jobs: int) -> None:
        """So many of the jobs are done."""
        if not self._jobs:
            self._jobs, self._done_before = jobs, done
        self._done = done
        if self._bars is None:
            fresh = jobs - self._done_before
            so_far = _so_far((done - self._done_before) / fresh, self._began) if fresh else ""
            click.echo(f"{self._name}: {done} of {jobs} jobs{so_far}", err=True)
        self._update()

    def report(self) -> None:
        """The report is being written."""
        if self._bars is None:
            click.echo(f"{self._name}: the report", err=True)
        else:
            self._bars.add_task("writing the report", total=None)

    def _update(self) -> None:
        if self._bars is not None and self._all is not None and self._jobs:
            share = min(self._jobs, self._done + sum(self._shares.values()))
            self._bars.update(self._all, completed=share, total=self._jobs)


@contextmanager
def followed_study(name: str) -> Iterator[Study]:
    """Progress of a study on standard error: bars on a terminal; in a file a line a stage of a job, and a job."""
    if not sys.stderr.isatty():
        yield Study(name, None)
        return
    with _bars(rich_progress.MofNCompleteColumn()) as bars:
        yield Study(name, bars)


@contextmanager
def _bars(count: rich_progress.ProgressColumn) -> Iterator[rich_progress.Progress]:
    """Progress bars with the remaining time, on standard error."""
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        count,
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
    )
    # The time that is left is told from all of the work so far: its stages are weighed, and no moment stands for all.
    whole = float(7 * 24 * 3600)
    with rich_progress.Progress(*columns, console=Console(stderr=True), speed_estimate_period=whole) as bars:
        yield bars
