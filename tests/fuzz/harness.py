"""Run cases of a format in processes of their own, and say what came of each.

Geophone is imported once, in a process with a single thread. Cases run in forks of that process, with limits of time
and memory for each, so that neither a hang, a crash nor a bomb reaches the others, and no pool of threads is inherited.

    python -m tests.fuzz                       some hundreds of cases of every format
    python -m tests.fuzz npz --cases 10000     many of one; --first 5000 starts there, --jobs 2 uses two cores
    python -m tests.fuzz npz 137               one again, with its traceback; its files are kept

`make test` runs some hundreds of cases a format, `make test-all` 10,000. A case depends on the format's name and
the case's number alone; case 0 is the valid one. Each case must end in

- a right result: `use` returns, and `right` finds nothing wrong with what it returned; or
- one sentence: `use` raises a `GeophoneError` of one line without control characters, of at most 2,000 characters.

Anything else fails: another exception, a signal, the end of the process, a hang, more memory than the format's limit
(also when its error is caught and made into a sentence: sizes are checked before they are allocated), anything printed.

To add a format, put it into a `formats_*.py` that `formats.py` names:

    def _read(case):                                  # the working directory is case.folder
        return load_npz(case.folder / "data.npz")     # a GeophoneError goes on up

    def _right(case, result):                         # only of results: None when right, else what is wrong
        return None if result.x.isfinite().all() else "NaN read"

    register(Format(
        name="npz",
        make=lambda folder: save(folder / "data.npz"),   # valid files, written once
        use=_read,
        right=_right,
        mutators=(any_bytes("*.npz"), any_zip("*.npz", damaged_npy), other_thing()),
    ))

A mutator takes the case, changes its files or its `words` in place with draws of `case.draw` only, and says what it
did; `mutate.py` has those for bytes, zip, JSON, npy, text and command lines. One that knows what must come of its
change puts that into `case.facts` for `right`. A command line is `words=("scan", "model.py:make", …)` with
`use=lambda case: command(case.words)`: exit code 0 or 1 returns, 2 with one line raises, anything else fails.

A mutated file never unpickles, and a case neither reaches a network nor writes outside its folder.
"""

import gc
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from geophone.core.errors import GeophoneError

LONGEST = 2000
"""Characters of a message: a line that a person still reads."""

_ALLOCATION = re.compile(r"can't allocate memory|unable to allocate|MemoryError|not enough memory", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KEEPERS = {"polars-ooc-clea"}
"""Threads that libraries start when they are imported, and that nobody waits for."""
_PATIENCE = 12  # seconds of wall time for each second of processor time: neighbours use the cores too


@dataclass
class Case:
    """One case: files in a folder of its own, words, and the draws that change both.

    Attributes:
        number: With the format's name, all that the case depends on.
        folder: A copy of the valid files; the working directory while the case is used.
        seed: The valid files themselves. Not to be written to.
        words: A call's text or a command line; the format's own at first.
        draw: Everything random.
        done: What the mutators say that they did.
        facts: Whatever a mutator tells `right`.
    """

    number: int
    folder: Path
    seed: Path
    words: list[str]
    draw: random.Random
    done: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


Mutator = Callable[[Case], str]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is read or called, valid seeds of it, ways to damage them, and what a right result is.

    Attributes:
        name: Of letters, digits and `-`.
        use: Reads the case as a user would, and returns what came out. Imports of geophone go inside it or at the top.
        mutators: Each changes the case's files or words in place and says what it did.
        make: Writes the valid files into a folder, once.
        words: The valid words, if any.
        right: What is wrong with a result, in words; None when it is right.
        seconds: Processor time of a case.
        memory: Bytes that a case may take beyond what the imports did.
        cases: How many cases `make test` runs.
        many: How many `make test-all` runs.
        quiet: Whether anything printed, a warning for one, is a failure.
        row: How many cases one process runs, if none fails.
    """

    name: str
    use: Callable[[Case], Any]
    mutators: Sequence[Mutator]
    make: Callable[[Path], object] = lambda folder: None
    words: tuple[str, ...] = ()
    right: Callable[[Case, Any], str | None] = lambda case, result: None
    seconds: int = 5
    memory: int = 1 << 30
    cases: int = 300
    many: int = 10_000
    quiet: bool = True
    row: int = 25


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        number: The case.
        kind: "right", "refused" (one sentence) or "failed".
        text: The sentence, or what failed.
        where: The innermost lines of geophone in the traceback, innermost last.
        done: What the mutators did.
        trace: The traceback.
    """

    number: int
    kind: str
    text: str
    where: str = ""
    done: tuple[str, ...] = ()
    trace: str = ""


class Wrong(Exception):
    """Raised inside `use`: not what a user should see."""


FORMATS: dict[str, Format] = {}


def register(one: Format) -> Format:
    """Add a format to those that are tested."""
    if one.name in FORMATS:
        raise ValueError(f"two formats {one.name!r}")
    FORMATS[one.name] = one
    return one


def command(words: Sequence[str]) -> tuple[int, str]:
    """Geophone's command line, inside a case: its exit code, 0 or 1, and what it printed on standard output.

    Raises:
        GeophoneError: it refused, with exit code 2 and one line on standard error.
        Wrong: anything else.
    """
    from geophone.cli import main

    class Left(BaseException):
        pass

    def leave(code: int) -> NoReturn:
        raise Left(code)

    code = -1
    try:
        main(list(words), leave)
    except Left as left:
        code = left.args[0]
    said, complained = _printed(1), _printed(2)
    if code in (0, 1):
        if "Traceback" in complained:
            raise Wrong(f"exit {code} with a traceback: {complained}")
        return code, said
    lines = [line for line in complained.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("geophone: ")]
    if code != 2 or len(own) != 1 or lines[-1] is not own[0] or any("Traceback" in line for line in lines):
        raise Wrong(f"exit {code} with {complained!r}, not 2 with one line")
    raise GeophoneError(own[0].removeprefix("geophone: "))


def threads_alive() -> set[str]:
    """Names of this process's threads besides the first."""
    own = os.getpid()
    return {
        Path(f"/proc/self/task/{one}/comm").read_text().strip()
        for one in os.listdir("/proc/self/task")
        if int(one) != own
    }


def prepared(one: Format, folder: Path) -> Path:
    """The valid files of a format, written in a process of its own (whatever threads writing them starts)."""
    folder.mkdir(parents=True)
    child = os.fork()
    if not child:
        _finish(lambda: one.make(folder))
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{one.name}: its valid files could not be made.")
    return folder


def mutated(one: Format, number: int, folder: Path, seed: Path) -> Case:
    """A case: number 0 is the valid one, others have one to three mutations."""
    shutil.copytree(seed, folder, symlinks=True)
    case = Case(number, folder, seed, list(one.words), random.Random(f"{one.name}/{number}"))
    for mutator in case.draw.choices(one.mutators, k=case.draw.choice((1, 1, 1, 2, 3))) if number else ():
        case.done.append(mutator(case))
    return case


def run(one: Format, numbers: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """The outcomes of these cases, as they come.

    A fork of all that is imported costs more than most cases, so that a process runs some cases in a row, until one
    fails. What fails after others is tried again alone; where it then holds, what was left behind is the failure.
    """
    pools = threads_alive() - _KEEPERS
    if pools:
        raise RuntimeError(f"threads are alive, {sorted(pools)}: what is forked now could wait for them for ever.")
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name)
        seed = prepared(one, root / "seed")
        each = list(numbers)
        waiting = [each[i : i + one.row] for i in range(0, len(each), one.row)][::-1]
        doubted: dict[int, Outcome] = {}
        running: dict[int, _Child] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                child = _Child(one, waiting.pop(), root, seed)
                running[child.pipe] = child
            ready, _, _ = select.select(list(running), [], [], 0.5)
            for pipe, child in list(running.items()):
                if not (child.read() if pipe in ready else child.is_late()):
                    continue
                del running[pipe]
                outcomes = child.outcomes()
                left = child.numbers[len(outcomes) :]
                if left:
                    waiting.append(left)
                for outcome in outcomes:
                    before = doubted.pop(outcome.number, None)
                    if outcome.kind == "failed" and outcome.number != child.numbers[0]:
                        doubted[outcome.number] = outcome
                        waiting.append([outcome.number])
                    elif before and outcome.kind != "failed":
                        yield replace(before, text=f"only after the cases before it, in one process: {before.text}")
                    else:
                        yield outcome


class _Child:
    """A process that runs some cases in a row."""

    def __init__(self, one: Format, numbers: list[int], root: Path, seed: Path) -> None:
        self.one, self.numbers, self.root = one, numbers, root
        self.pipe, answer = os.pipe()
        self.answer = b""
        self.until = time.monotonic() + one.seconds * _PATIENCE
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            _finish(lambda: _run_cases(one, numbers, root, seed, answer))
        os.close(answer)

    def read(self) -> bool:
        """Take what it says; whether that was all."""
        part = os.read(self.pipe, 1 << 16)
        self.answer += part
        self.until = time.monotonic() + self.one.seconds * _PATIENCE
        return not part

    def is_late(self) -> bool:
        """Whether it has said nothing for too long."""
        return time.monotonic() > self.until

    def outcomes(self) -> list[Outcome]:
        """Of the cases up to the first that failed; ends the process and whatever it started."""
        late = self.is_late()
        os.close(self.pipe)
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        found, open_case = [], {"done": ()}
        for line in self.answer.splitlines(keepends=True):
            said = json.loads(line) if line.endswith(b"\n") else {}
            open_case |= {"done": tuple(said.pop("done"))} if "done" in said else {}
            if "kind" in said:
                found.append(Outcome(self.numbers[len(found)], **said, **open_case))
                open_case = {"done": ()}
        if len(found) < len(self.numbers) and not (found and found[-1].kind == "failed"):
            found.append(Outcome(self.numbers[len(found)], "failed", _end(self.one, late, status), **open_case))
        for number in self.numbers[: len(found)]:
            shutil.rmtree(self.root / f"case-{number}", ignore_errors=True)
        return found


def _end(one: Format, late: bool, status: int) -> str:
    if late:
        return f"hang: no answer after {one.seconds * _PATIENCE} s"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"hang: more than {one.seconds} s" if number == signal.SIGXCPU else f"killed by signal {number}"
    return f"the process ended with status {os.WEXITSTATUS(status)} and without an answer"


def _run_cases(one: Format, numbers: Iterable[int], root: Path, seed: Path, answer: int) -> None:
    os.setpgid(0, 0)
    for descriptor in (1, 2):
        os.dup2(os.memfd_create("said"), descriptor)
    socket.socket.connect = _no_network  # type: ignore[method-assign]
    for number in numbers:
        try:
            case = mutated(one, number, root / f"case-{number}", seed)
        except Exception as error:
            _send(answer, {"kind": "failed", "text": f"a mutator raised: {error!r}", "trace": traceback.format_exc()})
            return
        _send(answer, {"done": case.done})
        _printed(1), _printed(2)  # by the mutators
        os.chdir(case.folder)
        os.environ.update(HOME=str(case.folder), XDG_CACHE_HOME=str(case.folder))
        found = judged(one, case)
        _send(answer, found)
        os.chdir(root)
        shutil.rmtree(case.folder, ignore_errors=True)
        if found["kind"] == "failed":
            return


def _finish(body: Callable[[], object]) -> NoReturn:
    """Do it in this forked process and end it, without what the parent would do at its end."""
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def judged(one: Format, case: Case) -> dict[str, str]:
    """Use a case within its limits, and say what came of it."""
    with_limits(one)
    try:
        try:
            result = one.use(case)
            wrong = one.right(case, result)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        found = {"kind": "failed", "text": f"wrong result: {wrong}"} if wrong else {"kind": "right", "text": ""}
    except GeophoneError as error:
        wrong = _unfit(str(error))
        found = {"kind": "failed" if wrong else "refused", "text": f"{wrong}: {error!r}" if wrong else str(error)}
        found |= {"where": _where(error), "trace": traceback.format_exc()} if wrong else {}
    except BaseException as error:
        found = {"kind": "failed", "text": f"{type(error).__name__}: {error}", "where": _where(error)}
        found["trace"] = traceback.format_exc()
    said = _printed(1) + _printed(2)
    if said and one.quiet and found["kind"] != "failed":
        found = {"kind": "failed", "text": f"printed {said!r}"}
    return {key: value[:3000] if key != "trace" else value[-6000:] for key, value in found.items()}


def with_limits(one: Format) -> None:
    """Limit this process."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + one.memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
    # A plain kill: this is a fork, so a handler of the parent's would run here too.
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + one.seconds, resource.RLIM_INFINITY))


def _unfit(message: str) -> str | None:
    """What is wrong with an error's message."""
    if not message.strip():
        return "an empty message"
    if _CONTROL.search(message):
        return "a message of several lines, or with control characters"
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters"
    if "Traceback" in message:
        return "a traceback in a message"
    if _ALLOCATION.search(message):
        return "memory ran out before the size was checked"
    return None


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}geophone{os.sep}" in f.filename]
    return " > ".join(f"{Path(f.filename).name}:{f.name}" for f in frames[-3:])


def _printed(descriptor: int) -> str:
    """What was printed on this descriptor of the case, which is then empty."""
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, min(size, 1 << 20), 0).decode(errors="replace")
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return text


def _no_network(*_: object) -> NoReturn:
    raise ConnectionRefusedError("a case has no network")


def _send(pipe: int, what: dict[str, Any]) -> None:
    left = json.dumps(what).encode() + b"\n"
    while left:
        left = left[os.write(pipe, left) :]
