"""The one error that users meet, and how its message is made.

Every message says what was wrong, where, what is allowed, and what to do about it.
"""

import difflib
import re
from collections.abc import Iterable
from numbers import Integral
from typing import Any

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class GeophoneError(ValueError):
    """Bad input. The message is one line, as `plain` makes it; the command line prints it and exits with 2."""

    def __init__(self, message: str = "") -> None:
        super().__init__(plain(message))


def plain(text: str) -> str:
    """What a library, or the user's code, says of itself as one line: no colours, no control characters.

    Bytes of a file's name that are no text are written out, so that the line can be printed anywhere.
    """
    lines = _ESCAPES.sub("", text).encode("utf-8", "backslashreplace").decode().splitlines()
    return " ".join(line for line in (_CONTROLS.sub(" ", line).strip() for line in lines) if line)


class Unlabelled(GeophoneError):
    """Something needs labels, and the images have none."""


def unknown(kind: str, name: str, allowed: Iterable[str], remedy: str = "") -> GeophoneError:
    """The error for a name that is not among the allowed ones, with the nearest that is.

    Args:
        kind: What the name should have been, in the user's words ("layer", "perturbation").
        name: What was given.
        allowed: The names that would have been right.
        remedy: One more sentence on what to do.
    """
    names = list(allowed)
    near = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)  # quadratic in the length
    shown = ", ".join(names[:24]) + (f", … ({len(names)} in all)" if len(names) > 24 else "")
    hint = f" Did you mean {near[0]!r}?" if near else ""
    tail = f" {remedy}" if remedy else ""
    return GeophoneError(f"unknown {kind} {short(name)}.{hint} Allowed: {shown or 'none'}.{tail}")


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise an error for a number that is not whole or below the least; None is left out.

    Raises:
        GeophoneError: there is one.
    """
    for name, count in counts.items():
        if count is not None and (count is True or not isinstance(count, Integral) or count < least):
            raise GeophoneError(f"{name}={count!r}: give a whole number of at least {least}.")


def check_is(kind: type | tuple[type, ...], wanted: str, **given: Any) -> None:
    """Raise an error for what is of another kind than it should be.

    Args:
        kind: As `isinstance` takes it.
        wanted: What to give instead, in the user's words.
        **given: Arguments by name.

    Raises:
        GeophoneError: there is one.
    """
    for name, value in given.items():
        if isinstance(value, type) or not isinstance(value, kind):
            raise misfit(name, value, wanted)


def misfit(name: str, value: Any, wanted: str) -> GeophoneError:
    """The error for a value of another kind than it should be."""
    said = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
    return GeophoneError(f"{name} is {said}: give {wanted}.")


def short(value: object, longest: int = 200) -> str:
    """A value as code, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


def reason_of(error: BaseException) -> str:
    """An error of other code, the user's or a library's, in a few words of one line."""
    if isinstance(error, SystemExit):
        return "it ends the process (sys.exit)"
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "it takes more memory than there is"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
