"""Where results come from: written beside every table, shown in every report."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from geophone.files import write_text

FILE = "provenance.json"
_PACKAGES = ("geophone", "torch", "numpy", "scipy", "polars", "altair", "vl-convert-python", "ray")


def write_provenance(
    out: Path,
    *,
    title: str,
    seconds: float,
    started: datetime,
    device: str,
    threads: int,
    seeds: Sequence[int] = (),
    jobs: Sequence[str] = (),
    resumed: bool = False,
    study: str | None = None,
    question: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `provenance.json`: versions, command, seeds, device, duration.

    Args:
        out: Folder of the table.
        title: What the report is called.
        seconds: This session's time. With `resumed`, what earlier sessions took that ended is added to it.
        started: When this session began; with `resumed`, that of the first one is kept.
        device: Where the networks ran.
        threads: Torch threads.
        seeds: The seeds.
        jobs: Ids of the jobs whose rows are meant; rows of others in the folder are left out of the report.
        resumed: Whether earlier sessions in this folder count.
        study: The study's name.
        question: What it answers.
        notes: Sentences for the reader.
    """
    path = out / FILE
    earlier = _earlier(path) if resumed else {}
    written: dict[str, Any] = {
        "title": title,
        "question": question,
        "study": study,
        "command": command(),
        "versions": {"python": platform.python_version(), **_versions()},
        "seeds": list(seeds),
        "device": _device_name(device),
        "threads": threads,
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": earlier.get("started", started.isoformat(timespec="seconds")),
        "seconds": round(earlier.get("seconds", 0.0) + seconds, 1),
        "networks": len(jobs) or 1,
        "jobs": list(jobs),
        "notes": list(notes),
    }
    write_text(path, json.dumps(written, indent=2))


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def command() -> str:
    """The command line of this process."""
    name = Path(sys.argv[0]).name
    return shlex.join([*(("python", "-m", "geophone") if name == "__main__.py" else (name,)), *sys.argv[1:]])


def _earlier(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return made if isinstance(made, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device
