"""A toy format, sound, and the same with every kind of fault that the runner must catch."""

import ctypes
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

from geophone.core.errors import GeophoneError
from tests.fuzz.harness import Case, Format
from tests.fuzz.mutate import any_bytes


def _read(case: Case) -> int:
    """A number between 0 and 99 in a text file."""
    try:
        number = int((case.folder / "number.txt").read_bytes().decode("ascii"))
    except ValueError:
        raise GeophoneError("number.txt holds no whole number. Write one.") from None
    if not 0 <= number < 100:
        raise GeophoneError(f"{str(number)[:20]} is not between 0 and 99.")
    return number


def _same(case: Case, result: int) -> str | None:
    text = (case.folder / "number.txt").read_text()
    return None if int(text) == result else f"{result} read from {text!r}"


SOUND = Format(
    name="toy",
    make=lambda folder: (folder / "number.txt").write_text("42"),
    use=_read,
    mutators=(any_bytes(),),
    right=_same,
    seconds=1,
    memory=1 << 28,
    cases=100,
)


def _faulty(name: str, fault: Callable[[Case], object]) -> Format:
    """The toy that has the fault for what differs from its seed."""

    def use(case: Case) -> int:
        if (case.folder / "number.txt").read_bytes() != b"42":
            fault(case)
        return _read(case)

    return replace(SOUND, name=name, use=use)


def _leaps(_: Case) -> None:
    raise KeyError("number")


def _hangs(_: Case) -> None:
    while True:
        pass


def _takes_memory(_: Case) -> None:
    bytearray(1 << 34)


def _swallows(_: Case) -> None:
    try:
        bytearray(1 << 34)
    except MemoryError as error:
        raise GeophoneError(f"number.txt is not readable ({type(error).__name__}).") from error


def _says(text: str) -> Callable[[Case], None]:
    class Raw(GeophoneError):
        def __str__(self) -> str:  # the error itself makes one plain line of what it is given
            return text

    def fault(_: Case) -> None:
        raise Raw

    return fault


MUTANTS = {one.name: one for one in (
    SOUND,
    replace(SOUND, name="toy-wrong", use=lambda case: _read(case) + 1),
    _faulty("toy-traceback", _leaps),
    _faulty("toy-hang", _hangs),
    _faulty("toy-sleep", lambda _: time.sleep(1000)),
    _faulty("toy-memory", _takes_memory),
    _faulty("toy-swallowed-memory", _swallows),
    _faulty("toy-lines", _says("two\nlines")),
    _faulty("toy-colour", _says("\x1b[31mred")),
    _faulty("toy-silent", _says("")),
    _faulty("toy-endless", _says("a" * 10_000)),
    _faulty("toy-leaves", lambda _: sys.exit(2)),
    _faulty("toy-dies", lambda _: os._exit(0)),
    _faulty("toy-crash", lambda _: ctypes.string_at(0)),
    _faulty("toy-prints", lambda _: print("hello")),
    _faulty("toy-warns", lambda _: warnings.warn("hello", stacklevel=1)),
    replace(SOUND, name="toy-mutator", mutators=(lambda case: random.choice([]),)),
)}  # fmt: skip
