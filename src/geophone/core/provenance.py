"""Where results come from: written beside every table, shown in every report."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geophone.core.checksums import read_json, write_json
from geophone.core.errors import GeophoneError, short

FILE = "provenance.json"
LONGEST = 1e10
"""Seconds that no study takes: three hundred years."""
_AGAIN = "Run the same command again to write it anew."
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("title", "question", "study", "command", "device", "host", "started"), str),
    **dict.fromkeys(("seeds", "jobs", "notes"), list),
    **dict.fromkeys(("seconds", "threads", "networks"), (int, float)),
    "versions": dict,
}
_PACKAGES = ("geophone", "torch", "numpy", "scipy", "polars", "altair", "vl-convert-python", "ray")


def write_provenance(out: Path, *, resumed: bool = False, **what: Any) -> None:
    """Write `provenance.json` into the folder of a table; with `resumed`, earlier sessions there count.

    Args:
        out: The folder.
        resumed: Whether the time that earlier sessions took, which ended, is added, and the first one's start kept.
        what: As for `provenance`.
    """
    path = out / FILE
    write_json(path, provenance(**what, earlier=_earlier(path) if resumed else None))


def provenance(
    *,
    title: str,
    seconds: float,
    started: datetime,
    device: str,
    threads: int,
    seeds: Sequence[int] = (),
    jobs: Sequence[str] = (),
    study: str | None = None,
    question: str | None = None,
    notes: Sequence[str] = (),
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Where results come from: versions, command, seeds, device, duration.

    Args:
        title: What the report is called.
        seconds: This session's time.
        started: When this session began.
        device: Where the networks ran, as `device_name` calls it.
        threads: Torch threads.
        seeds: The seeds.
        jobs: Ids of the jobs whose rows are meant; rows of others in the folder are left out of the report.
        resumed: Whether earlier sessions in this folder count.
        study: The study's name.
        question: What it answers.
        notes: Sentences for the reader.
        earlier: What earlier sessions wrote, if they count: their time is added, and the start of the first one kept.
    """
    before = earlier or {}
    return {
        "title": title,
        "question": question,
        "study": study,
        "command": command(),
        "versions": {"python": platform.python_version(), **_versions()},
        "seeds": list(seeds),
        "device": device,
        "threads": threads,
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": before.get("started") or started.isoformat(timespec="seconds"),
        "seconds": round((before.get("seconds") or 0.0) + seconds, 1),
        "networks": len(jobs) or 1,
        "jobs": list(jobs),
        "notes": list(notes),
    }


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def command() -> str:
    """The command line of this process; bytes that are no text are written out."""
    name = Path(sys.argv[0]).name
    parts = [*(("python", "-m", "geophone") if name == "__main__.py" else (name,)), *sys.argv[1:]]
    return shlex.join(parts).encode("utf-8", "backslashreplace").decode()


def read_provenance(path: Path) -> dict[str, Any]:
    """What `write_provenance` wrote, each entry of its kind.

    Raises:
        GeophoneError: there is none, it can't be read or is damaged, or an entry is of another kind.
    """
    made = read_json(path, _AGAIN)
    if wrong := _wrong(made):
        raise GeophoneError(f"{path} can't be read ({wrong}). {_AGAIN}")
    return made


def _wrong(made: Mapping[str, Any]) -> str | None:
    """What in it is not as `provenance` makes it."""
    if not made.get("title"):
        return 'it has no "title"'
    for name, kind in _KINDS.items():
        value = made.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return f'its "{name}" is {short(value, 40)}'
    seconds = made.get("seconds") or 0
    if not 0 <= seconds < LONGEST:  # NaN is neither
        return f'its "seconds" are {short(seconds, 40)}'
    if not all(isinstance(job, str) for job in made.get("jobs") or ()):
        return 'its "jobs" are not all names'
    return None


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return read_provenance(path)
    except GeophoneError:
        return {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
