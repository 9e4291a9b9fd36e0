"""Progress of work in several stages, told as one count of steps whose total is known before the work begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Steps = Callable[[int, int], None]
"""Called with (steps done, steps in all): the second never changes, and the first ends at it."""


class Watcher:
    """Who follows work of several stages: called like any `Steps`, and told the name of each stage as it begins."""

    def __call__(self, done: int, steps: int) -> None:
        """So many steps of all are done."""

    def stage(self, name: str) -> None:
        """The stage of this name begins."""


@dataclass(frozen=True)
class Stage:
    """A part of the work, which reports steps of its own.

    Attributes:
        name: What a reader calls it.
        costs: What its steps cost, in the unit of all stages; the same again in every round.
        rounds: How often.
    """

    name: str
    costs: Sequence[int | float]
    rounds: int = 1

    @property
    def total(self) -> float:
        """What the whole stage costs."""
        return float(sum(self.costs)) * self.rounds

    def after(self, share: int | float) -> float:
        """What it has cost when this share of its steps is done; the share may end within a step."""
        steps, within = divmod(min(1.0, share) * len(self.costs) * self.rounds, 1)
        rounds, step = divmod(int(steps), len(self.costs) or 1)
        begun = self.costs[step] if rounds < self.rounds and self.costs else 0.0
        return float(rounds * sum(self.costs) + sum(self.costs[:step]) + within * begun)


class Stages:
    """Stages one after the other, told to one callable as a single count.

    The steps that a stage reports are weighed by what they cost, so that the time that is left can be told from the
    count alone.
    """

    def __init__(self, told: Steps | None, stages: Sequence[Stage]) -> None:
        self._told, self._stages = told, list(stages)
        self._steps = max(1, round(sum(stage.total for stage in stages)))

    def begin(self, which: str | int) -> Steps | None:
        """What the stage of this name, or at this place, reports to; stages before it count as done."""
        if self._told is None:
            return None
        told = self._told
        named = (i for i, stage in enumerate(self._stages) if stage.name == which)
        place = which if isinstance(which, int) else next(named)
        before = sum(stage.total for stage in self._stages[:place])
        stage = self._stages[place]
        if isinstance(told, Watcher) and (not place or self._stages[place - 1].name != stage.name):
            told.stage(stage.name)
        told(min(self._steps, round(before)), self._steps)

        def step(done: int, steps: int) -> None:
            told(min(self._steps, round(before + stage.after(done / max(1, steps)))), self._steps)

        return step

    def end(self) -> None:
        """All of it is done."""
        if self._told is not None:
            self._told(self._steps, self._steps)
