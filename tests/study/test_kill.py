"""kill -9 at any moment loses at most the unfinished job: the same command ends with the same table."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from geophone.core import table

STUDY = """
from dataclasses import dataclass
from typing import ClassVar
import geophone
from geophone.study import study

@study("killed")
@dataclass(frozen=True)
class Killed:
    '''Three networks, each of a few seconds.'''
    question: ClassVar[str] = "?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    def jobs(self):
        return [
            geophone.Job(
                dataset="synthetic(classes=3, size=16, train=512, val=64, test=64)",
                model="small_cnn(width=4)",
                recipe=recipe,
                seed=0,
                training=geophone.Training(epochs=6, batch_size=16),
                perturbations=("GaussianNoise", "LinfPGD(steps=10)"),
            )
            for recipe in ("Standard", "SelectivityRegularised(alpha=1)", "NoiseAugmented")
        ]
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments(tmp_path, workers):
    """Twenty with jobs in the command's own process; ten with jobs in two other processes, which must end with it.

    The moments are spread over the whole of an uninterrupted run, its start and its report included. Each kill is
    followed by the same command, which is killed in turn. The moments come from a fixed seed, so that a failure can be
    repeated.
    """
    file = tmp_path / "killed.py"
    file.write_text(STUDY)

    def start(out):
        command = [sys.executable, "-m", "geophone", "run", str(file), "--out", str(out), "--threads", "1"]
        command += ["--workers", str(workers)]
        return subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    clock = time.monotonic()
    run = start(tmp_path / "whole")
    _, errors = run.communicate()
    whole = time.monotonic() - clock
    assert run.returncode == 0, errors
    wanted = table.read(tmp_path / "whole" / "table")

    chance = random.Random(20)
    kills, ended = 0, 0
    while kills < 20 // workers:
        out = tmp_path / f"killed{ended}"
        run = start(out)
        try:
            run.wait(timeout=chance.uniform(0.1, 1.0) * whole)
            assert run.returncode == 0, run.stderr.read()
            assert table.read(out / "table").equals(wanted)
            ended += 1  # it had become short enough to end: begin another
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            kills += 1
        finally:
            run.communicate()
    out = tmp_path / f"killed{ended}"
    run = start(out)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert table.read(out / "table").equals(wanted)
    assert not list(out.rglob("*.tmp"))
