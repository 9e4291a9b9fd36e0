"""The table is that of the study, not of how many jobs ran beside each other or of how many cores the machine has."""

import json
import os

import pytest

from geophone.cli import main
from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.study import run_study

STUDY = """
from dataclasses import dataclass
from typing import ClassVar
import geophone
from geophone.study import study

@study("threaded")
@dataclass(frozen=True)
class Threaded:
    '''Two networks wide enough that torch splits their sums among threads.'''
    question: ClassVar[str] = "?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    def jobs(self):
        return [
            geophone.Job(
                dataset="synthetic(classes=3, size=16, train=128, val=16, test=16)",
                model="small_cnn(width=8)",
                recipe="Standard",
                seed=seed,
                training=geophone.Training(epochs=1, batch_size=64),
                perturbations=("GaussianNoise(std=0.1)",),
            )
            for seed in (0, 1)
        ]
"""


def outcome(file, out, *options):
    """What a run on a machine of four cores writes: its table, and the threads that it says a job had."""
    codes = []
    main(["run", str(file), "--out", str(out), *options], codes.append)
    assert codes == [0]
    said = [json.loads((out / name).read_text())["threads"] for name in ("study.json", "provenance.json")]
    return table.read(out / "table"), said


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("geophone.report.write_report", lambda folder: folder / "table")
    path = tmp_path / "threaded.py"
    path.write_text(STUDY)
    return path


def test_the_table_does_not_depend_on_workers(file, tmp_path):
    one, threads_of_one = outcome(file, tmp_path / "one", "--workers", "1")
    two, threads_of_two = outcome(file, tmp_path / "two", "--workers", "2")
    assert threads_of_one == threads_of_two == [1, 1]
    assert one.equals(two)


def test_with_the_cores_shared_among_workers_it_would(file, tmp_path):
    """The mutant: cores over workers, as it was once."""
    one, two = (outcome(file, tmp_path / f"{workers}", "--threads", f"{4 // workers}") for workers in (1, 2))
    assert (one[1], two[1]) == ([4, 4], [2, 2])
    assert not one[0].equals(two[0])


def test_a_resumed_study_keeps_its_threads(tmp_path):
    class Nothing:
        question, size, seeds = "?", "demo", None

        def jobs(self):
            return []

    def threads():
        return [json.loads((tmp_path / name).read_text())["threads"] for name in ("study.json", "provenance.json")]

    run_study(Nothing(), tmp_path, threads=2)
    assert threads() == [2, 2]
    run_study(Nothing(), tmp_path)
    assert threads() == [2, 2]
    with pytest.raises(GeophoneError, match="begun with 2 threads a job; 1 would give other numbers. Leave out"):
        run_study(Nothing(), tmp_path, threads=1)
