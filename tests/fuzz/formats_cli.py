"""Command lines: any argument of any verb. What is refused leaves nothing behind, and what is done leaves no lock."""

import json
import os
from pathlib import Path

import numpy as np

from geophone import report
from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.probes.checks import AttackChecks
from tests.fuzz.harness import Case, Format, Wrong, command, register
from tests.fuzz.mutate import NUMBERS, TEXTS, any_argument, any_word, other_value

_MODEL = """
import torch
from geophone.models import SmallCNN
def make():
    torch.manual_seed(0)
    return SmallCNN(2, (0.5,), (0.25,), width=1)
"""

_STUDY = """
from dataclasses import dataclass
from typing import ClassVar
from geophone.core.registry import STUDIES

@STUDIES.register
@dataclass(frozen=True)
class Nothing:
    "No jobs."
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    many: bool = False
    question: ClassVar[str] = "Are its arguments read?"
    def jobs(self):
        return []
"""

_HOSTILE = (
    *(
        *TEXTS,
        *(str(number) for number in NUMBERS),
        "9" * 30,
        "-" + "9" * 30,
        "n" * 255,
        "n" * 251 + ".html",
        "ä" * 130,
    ),
    *(
        "\udcff",
        "\udcff.html",
        "fifo",
        "fifo.html",
        "fifo.parquet",
        "folder",
        "folder.html",
        "folder.parquet",
        "link.html",
    ),
    *("good.npz", "my.py/x.html", "my.py/x.parquet", "/dev/full", "/dev/fd/1", "/proc/x.html", "/proc/x.parquet", "."),
    *("made/" * 300 + "x.html", "deep/er/x.html", "x.pdf", "x.HTML", ".html", ".parquet", "x.parquet/", "--", "-h"),
)
"""Values that no option expects, and names that a file should not have, or only just."""

_NUMBER = ("1", "2", "7", "256", "0", "2147483647")
_SEED = ("0", "1", "-1", str(2**63 - 1), str(2**63))
_DEVICE = ("cpu", "cpu:0", "meta", "cuda", "cuda:0", "cuda:99", "mps", "hpu", "xla", "CPU", "cpu:x")
_COMMON = {
    "--images": _NUMBER,
    "--batch-size": _NUMBER,
    "--seed": _SEED,
    "--device": _DEVICE,
    "--factory": ("my.py:make", "small_cnn", "small_cnn(width=2)"),
    "--plugin": ("my.py", "study.py", "absent.py"),
}
_PAGE = ("page.html", "folder_of_pages", "deep/er/page.html", "made/page.HTML")
_LAYERS = ("relu1", "relu*", "relu1,relu2", "*", "head", "relu1,", ",", "[", "a*b")
_REDUCE = ("spatial_mean", "positions", "token_mean", "mean")
_SHAKES = ("GaussianNoise", "noise", "FGSM(eps=0.1)", "FGSM,", ",", "all()", "noise()", "fog(severity=9)")


def _seeds(folder: Path) -> None:
    (folder / "my.py").write_text(_MODEL)
    (folder / "study.py").write_text(_STUDY)
    x = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 12), dtype=np.uint8)
    np.savez(folder / "good.npz", x=x, y=np.arange(8) % 2)
    for name in ("folder", "folder.html", "folder.parquet"):
        (folder / name).mkdir()
        (folder / name / "mine").write_text("")
    (folder / "done").mkdir()
    row = {"family": "clean", "perturbation": "clean", "level": 0.0, "job": "j", "seed": 0, "n": 8, "d": 2}
    table.write(table.frame([{**row, "metric": "accuracy", "value": 0.5}]), folder / "done" / "table" / "a.parquet")
    (folder / "done" / "provenance.json").write_text(json.dumps({"title": "Title"}))


def _everything() -> set[Path]:
    return {path for path in Path().rglob("*") if "__pycache__" not in path.parts}


def _used(case: Case) -> tuple[int, str]:
    """The command, without the figures and the attacks that no argument is about, which take most of the time."""
    for name in ("fifo", "fifo.html", "fifo.parquet"):
        os.mkfifo(name)
    os.symlink("/dev/null", "link.html")
    report._figures = lambda found: {}
    AttackChecks.found = lambda *_: iter(())
    if case.words[:1] == ["run"]:
        report.write_report = lambda folder: folder / "report.html"
    before = _everything()
    try:
        found = command(case.words)
    except GeophoneError as error:
        if more := _everything() - before:
            raise Wrong(f"it refused ({error}) and left {sorted(map(str, more))[:5]}") from error
        raise
    left = [str(path) for path in _everything() - before if path.name.endswith((".lock", ".tmp"))]
    if left:
        raise Wrong(f"it is done and left {left}")
    return found


def _right(case: Case, found: tuple[int, str]) -> str | None:
    code, said = found
    if code and "--strict" not in case.words:
        return f"exit {code} without --strict"
    return None if said.strip() else "nothing is said"


def _verb(line: str, options: dict[str, tuple[str, ...]], cases: int) -> None:
    words = tuple(line.split(" "))
    any_option = other_value(options, _HOSTILE)
    register(
        Format(
            name=f"cli-{words[0]}",
            words=words,
            make=_seeds,
            use=_used,
            right=_right,
            mutators=(any_option, any_option, any_argument, any_word(range(1, len(words)))),
            quiet=False,
            cases=cases,
            many=2000,
            seconds=20,
        )
    )


_verb(
    "scan my.py:make good.npz --perturb RandomSign(eps=0.1) --curves= --layers relu1 --no-checks",
    {
        **_COMMON,
        "--out": _PAGE,
        "--layers": _LAYERS,
        "--perturb": _SHAKES,
        "--curves": ("", "FGSM", "fog", "FGSM,FGSM"),
        "--also": ("participation_ratio", "accuracy", ",", "absent"),
        "--reduce": _REDUCE,
    },
    40,
)
_verb(
    "attack my.py:make good.npz --attacks FGSM",
    {
        **_COMMON,
        "--out": ("x.parquet", "deep/er/x.parquet", "x.csv"),
        "--attacks": ("FGSM", "LinfPGD(steps=1)", "noise", "", "LinfPGD(steps=0)"),
        "--restarts": ("1", "2", "0", "10001"),
    },
    60,
)
_verb(
    "compare my.py:make my.py:make good.npz --layers relu1",
    {
        **_COMMON,
        "--out": _PAGE,
        "--layers": _LAYERS,
        "--others": _LAYERS,
        "--measures": ("cka", "cka_minibatch,cka", "accuracy", ",", "pwcca"),
        "--perturb": _SHAKES,
        "--points": ("4", "3", "1000"),
        "--reduce": _REDUCE,
    },
    40,
)
_verb(
    "run study.py:Nothing --out out",
    {
        "--out": ("out", "deep/er/out", "folder", "done"),
        "--size": ("demo", "small", "paper", "tiny"),
        "--seeds": ("0", "0,1,2", "1,1", "-1", ",", "", "0,", *_SEED, "9" * 5000),
        "--set": ("many=True", "many=", "=", "many=yes", "seeds=1", "size=small", "question=x"),
        "--executor": ("process", "threads"),
        "--workers": ("1", "2", "0", "4097", "1000000"),
        "--threads": ("1", "2", "0", "257", "100000"),
        "--device": _DEVICE,
        "--plugin": ("my.py", "study.py", "absent.py"),
    },
    160,
)
_verb("report done", {"--out": ("page.html", "deep/er/page.html", "done/report.html", "done", "done/table/a.html")}, 60)
_verb("list perturbations", {"--plugin": ("my.py", "study.py", "absent.py", "folder", "good.npz", "fifo")}, 120)
