"""Where results come from: written beside every table, shown in every report."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geophone.files import write_text

FILE = "provenance.json"
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
    write_text(path, as_json(provenance(**what, earlier=_earlier(path) if resumed else None)))


def as_json(made: Mapping[str, Any]) -> str:
    """How provenance is written."""
    return json.dumps(made, indent=2)


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
        FileNotFoundError: there is none.
        ValueError: it can't be read, or an entry is of another kind; the message says what.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(made, dict) or not made.get("title"):
        raise ValueError('it has no "title"')
    for name, kind in _KINDS.items():
        value = made.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f'its "{name}" is {str(value)[:40]!r}')
    if not math.isfinite(made.get("seconds") or 0.0):
        raise ValueError('its "seconds" are not finite')
    if not all(isinstance(job, str) for job in made.get("jobs") or ()):
        raise ValueError('its "jobs" are not all names')
    return made


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return read_provenance(path)
    except (OSError, ValueError):
        return {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
