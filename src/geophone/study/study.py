"""What a study is, and the studies of the package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from geophone.core.defaults import SIZES
from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import STUDIES, load_file
from geophone.study.tasks import Job, Progress


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass of plain values that makes rows of the table; done when the file of its rows exists."""

    @property
    def label(self) -> str:
        """What a progress bar or an error calls it."""
        ...

    def shard(self, out: Path) -> Path:
        """The file of its rows."""
        ...

    def run(self, out: Path, device: str = "cpu", progress: Progress | None = None) -> Path:
        """Do it, or return at once when it is done; the path of its rows."""
        ...


@runtime_checkable
class Study(Protocol):
    """A frozen dataclass with the fields `size` and `seeds` that expands to jobs.

    `question` is what it answers, in one sentence; it heads the report. Two methods are optional: `comparisons()` gives
    the pairs of its networks to set side by side, and `claims()` what was published about them, to be judged.
    """

    question: ClassVar[str]
    size: str
    seeds: tuple[int, ...] | None

    def jobs(self) -> Sequence[Job]:
        """The jobs, in the order in which they run."""
        ...


C = TypeVar("C", bound=Callable[..., Any])


def study(name: str) -> Callable[[C], C]:
    """Decorator: register a study under a name for `geophone run NAME`."""

    def register(cls: C) -> C:
        STUDIES.add(name, cls)
        return cls

    return register


def find_study(
    text: str, size: str, seeds: tuple[int, ...] | None, switches: Mapping[str, str] | None = None
) -> tuple[str, Study]:
    """A study's name and the study: a registered one, or the one that a Python file registers.

    `switches` are values for its other fields, such as `{"reduce": "positions"}`.

    Raises:
        GeophoneError: unknown study or size, no study in the file, or several.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    file, _, name = text.partition(".py:")
    if name or text.endswith(".py"):
        path = Path(text if text.endswith(".py") else f"{file}.py")
        before = set(STUDIES)
        load_file(path, "study")
        own = [known for known in STUDIES if known not in before or STUDIES.origin(known) == path.name]
        if not own:
            raise GeophoneError(f"{path} registers no study. Decorate a frozen dataclass with @study('name').")
        if not name and len(own) > 1:
            raise GeophoneError(f"{path} has several studies: {', '.join(own)}. Choose one as {path}:{own[0]}.")
        text = name or own[0]
    cls = STUDIES[text]
    known_fields = [one.name for one in fields(cls) if one.name not in ("size", "seeds")] if is_dataclass(cls) else []
    for name in switches or {}:
        if name not in known_fields:
            raise unknown(f"switch of the study {text}", name, known_fields)
    try:
        made: Study = cls(size=size, seeds=seeds, **(switches or {}))
    except TypeError as error:
        raise GeophoneError(f"the study {text} needs the fields `size` and `seeds`: {error}.") from error
    return text, made


@dataclass(frozen=True)
class Sized:
    """A study whose sizes are settings.

    Attributes:
        size: `demo`, `small` or `full`.
        seeds: Default those of the size.
    """

    settings: ClassVar[dict[str, dict[str, Any]]] = {}
    size: str = "demo"
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size not in self.settings:
            raise unknown("size", self.size, self.settings)

    @property
    def setting(self) -> dict[str, Any]:
        """What the size decides."""
        return self.settings[self.size]

    @property
    def seen(self) -> tuple[int, ...]:
        """The seeds."""
        return self.seeds if self.seeds is not None else tuple(range(self.setting["seeds"]))
