"""The same study on two local Ray workers gives the identical table, and a worker that is killed is tried again."""

import signal
import subprocess
import sys

import pytest

from geophone.core import table

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STUDY = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import geophone
from geophone.study import study

@geophone.RECIPES.register
@dataclass(frozen=True)
class Fatal(geophone.Recipe):
    '''Standard training whose worker is killed in the middle, once: the file at `trap` is removed first.'''
    trap: str = ""
    def loss(self, model, x, y, rng):
        trap = Path(self.trap)
        if self.trap and trap.is_file():
            trap.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return geophone.RECIPES["Standard"]().loss(model, x, y, rng)

@study("rayed")
@dataclass(frozen=True)
class Rayed:
    '''Three small jobs.'''
    question: ClassVar[str] = "?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    def jobs(self):
        return [
            geophone.Job(
                dataset="synthetic(classes=3, size=12, train=128, val=32, test=32)",
                model="small_cnn(width=2)",
                recipe=f"Fatal(trap={TRAP!r})",
                seed=seed,
                training=geophone.Training(epochs=2, batch_size=32),
                perturbations=("GaussianNoise", "FGSM"),
            )
            for seed in (0, 1, 2)
        ]
"""


def run(file, out, *options):
    command = [sys.executable, "-m", "geophone", "run", str(file), "--out", str(out), "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_two_workers_and_a_killed_one(tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    trap = tmp_path / "trap"
    file = tmp_path / "rayed.py"
    file.write_text(f"TRAP = {str(trap)!r}\n{STUDY}")
    assert not trap.exists()
    here = run(file, tmp_path / "here")
    assert here.returncode == 0, here.stderr
    wanted = table.read(tmp_path / "here" / "table")
    assert wanted["job"].n_unique() == 3

    trap.write_text("")
    there = run(file, tmp_path / "there", "--executor", "ray", "--workers", "2")
    assert there.returncode == 0, there.stderr
    assert not trap.exists()  # a worker did fall into it
    assert table.read(tmp_path / "there" / "table").equals(wanted)


def test_without_ray_the_trap_ends_the_run(tmp_path):
    """The mutant: a run in its own process dies of the same trap, and the same command then goes on."""
    trap = tmp_path / "trap"
    file = tmp_path / "rayed.py"
    file.write_text(f"TRAP = {str(trap)!r}\n{STUDY}")
    trap.write_text("")
    assert run(file, tmp_path / "out").returncode == -signal.SIGKILL
    assert run(file, tmp_path / "out").returncode == 0
