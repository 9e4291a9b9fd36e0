"""What the verbs write: for one command alone, whole or not at all, checked before the work, nothing after failures."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import geophone
from geophone import cli
from geophone.core import table
from geophone.core.files import reserved
from tests.test_files import no_file_beyond

MODEL = """
import torch
from geophone.models import SmallCNN
def make():
    torch.manual_seed(0)
    return SmallCNN(2, (0.5,), (0.25,), width=1)
def begun():
    raise AssertionError("the work began")
def stopped():
    raise KeyboardInterrupt
def coloured():
    raise RuntimeError("\\x1b[31mred\\x1b[0m and\\nmore")
"""

STUDY = """
from dataclasses import dataclass
from typing import ClassVar
from geophone import Job, Training
from geophone.core.registry import STUDIES

@STUDIES.register
@dataclass(frozen=True)
class Tiny:
    "One job."
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    question: ClassVar[str] = "Does it work?"
    def jobs(self):
        data = "synthetic(classes=2, size=12, train=8, val=8, test=8)"
        return [Job(data, "small_cnn(width=1)", "Standard", 0, Training(epochs=1), metrics=("accuracy",))]
"""

QUICK = {
    "scan": "scan my.py:{} good.npz --perturb RandomSign(eps=0.1) --curves= --no-checks --layers relu1",
    "attack": "attack my.py:{} good.npz --attacks FGSM",
    "compare": "compare my.py:{0} my.py:{0} good.npz --layers relu1",
}
PLACES = {"scan": "made/page.html", "attack": "made/images.parquet", "compare": "made/page.html"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(MODEL)
    (tmp_path / "tiny.py").write_text(STUDY)
    x = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "good.npz", x=x, y=np.arange(8) % 2)
    (tmp_path / "done" / "table").mkdir(parents=True)
    rows = [{"job": "j", "seed": 0, "metric": "accuracy", "value": 0.5, "n": 8, "d": 2}]
    clean = {"family": "clean", "perturbation": "clean", "level": 0.0}
    table.write(table.frame({**clean, **row} for row in rows), tmp_path / "done" / "table" / "a.parquet")
    (tmp_path / "done" / "provenance.json").write_text(json.dumps({"title": "Title"}))
    return tmp_path


def command(capsys, line):
    """Exit code, standard output and standard error of one command."""
    codes = []
    cli.main(line.split(" ") if isinstance(line, str) else line, leave=codes.append)
    out, err = capsys.readouterr()
    return codes[-1], out, err


def refusal(capsys, line):
    """The one line that refuses a command."""
    code, out, err = command(capsys, line)
    lines = [one for one in err.splitlines() if one.startswith("geophone: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert "Traceback" not in err
    assert "\x1b" not in err
    return lines[0]


def everything(place):
    return {
        path.relative_to(place): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
        if "__pycache__" not in str(path)
    }


def written(verb):
    return f"{QUICK[verb].format('make')} --out {PLACES[verb]}"


@pytest.mark.parametrize(
    ("line", "folder", "file"),
    [
        (QUICK["scan"].format("begun") + " --out page.html", "page", None),
        (QUICK["scan"].format("begun") + " --out page.html", None, "page.html"),
        (QUICK["scan"].format("begun") + " --out folder", "folder", None),
        (QUICK["compare"].format("begun") + " --out page.html", "page", None),
        (QUICK["attack"].format("begun") + " --out a.parquet", None, "a.parquet"),
        ("report done", "done", None),
        ("report done --out page.html", None, "page.html"),
        ("run tiny.py:Tiny --out done", "done", None),
    ],
)
def test_a_second_command_is_kept_out(place, capsys, line, folder, file):
    with reserved(folder and place / folder, *([place / file] if file else [])):
        before = everything(place)
        assert "another run is writing" in refusal(capsys, line)
        assert everything(place) == before


def test_two_processes_at_once_do_not_mix(place):
    """One waits in its factory, holding the place; the other is refused; what is there is the first one's."""
    (place / "slow.py").write_text(
        MODEL + "\ndef slow():\n    print('begun', flush=True)\n    open('go').read()\n    return make()\n"
    )
    os.mkfifo(place / "go")
    command = [sys.executable, "-m", "geophone", *written("scan").replace("my.py:make", "slow.py:slow").split(" ")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "begun\n", first.stderr.read()
        second = subprocess.run(
            [sys.executable, "-m", "geophone", *written("compare").split(" ")], capture_output=True, text=True
        )
        assert second.returncode == 2
        assert "another run is writing in made/page" in second.stderr
        (place / "go").write_text("go")
        assert first.wait() == 0, first.stderr.read()
    finally:
        first.kill()
        first.communicate()
    assert json.loads((place / "made" / "page" / "provenance.json").read_text())["title"] == "Scan of slow.py:slow"
    assert not [path for path in everything(place) if path.name.endswith((".lock", ".tmp"))]


@pytest.mark.parametrize("verb", QUICK)
def test_a_failure_leaves_nothing(place, capsys, verb):
    before = everything(place)
    line = written(verb).replace("my.py:make", "my.py:coloured")
    assert "red and" in refusal(capsys, line)
    assert everything(place) == before


@pytest.mark.parametrize("verb", QUICK)
def test_ctrl_c_leaves_nothing_and_says_so(place, capsys, verb):
    before = everything(place)
    code, out, err = command(capsys, written(verb).replace("my.py:make", "my.py:stopped"))
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "geophone: interrupted. Nothing was written; the same command begins anew."
    assert everything(place) == before


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", ["scan", "compare"])
def test_ctrl_c_while_the_page_is_made_leaves_an_earlier_one_as_it_was(place, capsys, verb, monkeypatch):
    assert command(capsys, written(verb))[0] == 0
    before = everything(place)
    monkeypatch.setattr("geophone.report.report_files", stop)
    code, _, err = command(capsys, written(verb))
    assert (code, "Nothing was written" in err) == (130, True)
    assert everything(place) == before


def test_ctrl_c_of_the_other_verbs(place, capsys, monkeypatch):
    before = everything(place)
    monkeypatch.setattr("geophone.report.report_files", stop)
    code, _, err = command(capsys, "report done")
    assert (code, "Nothing was written; the same command begins anew" in err) == (130, True)
    assert everything(place) == before
    monkeypatch.setattr("geophone.study.run_study", stop)
    code, _, err = command(capsys, "run tiny.py:Tiny")
    assert (code, "The same command continues where it stopped." in err) == (130, True)
    monkeypatch.setattr("geophone.cli.Table", stop)
    code, _, err = command(capsys, "list")
    assert (code, err.splitlines()[-1]) == (130, "geophone: interrupted.")


@pytest.mark.parametrize("verb", [*QUICK, "report"])
def test_a_full_disk_is_one_line_and_leaves_nothing(place, capsys, verb):
    line = "report done --out made/page.html" if verb == "report" else written(verb)
    before = everything(place)
    with no_file_beyond(500):
        assert "File too large. Make room" in refusal(capsys, line)
    assert everything(place) == before


@pytest.mark.parametrize("limit", [10, 500])
def test_a_full_disk_ends_a_study_in_one_line(place, capsys, limit):
    with no_file_beyond(limit):
        assert "File too large. Make room" in refusal(capsys, "run tiny.py:Tiny --out study")
    assert not [path for path in everything(place) if path.name.endswith(".tmp")]
    assert (place / "study").exists() == (limit == 500)  # what was done is kept


@pytest.mark.parametrize(
    "out", ["/dev/full", "/dev/null/page.html", "/proc/page.html", "fifo.html", "n" * 252 + ".html"]
)
@pytest.mark.parametrize("verb", ["scan", "compare", "report"])
def test_a_page_that_cannot_be_is_found_before_the_work(place, capsys, monkeypatch, verb, out):
    os.mkfifo(place / "fifo.html")
    monkeypatch.setattr("geophone.report.report_files", lambda *_: pytest.fail("the work began"))
    before = everything(place)
    line = "report done" if verb == "report" else QUICK[verb].format("begun")
    assert refusal(capsys, f"{line} --out {out}")
    assert everything(place) == before


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("images.csv", "ends in .parquet"),
        ("", "ends in .parquet"),
        ("folder.parquet", "it is a folder"),
        ("fifo.parquet", "no ordinary file"),
        ("my.py/images.parquet", "cannot make the folder"),
        ("n" * 249 + ".parquet", "File name too long"),
        ("/proc/images.parquet", "cannot write"),
    ],
)
def test_outcomes_that_cannot_be_written_are_found_before_the_work(place, capsys, out, said):
    os.mkfifo(place / "fifo.parquet")
    (place / "folder.parquet").mkdir()
    before = everything(place)
    line = [*QUICK["attack"].format("begun").split(" "), "--out", out]
    assert said in refusal(capsys, line)
    assert everything(place) == before


@pytest.mark.parametrize(
    ("verb", "out"),
    [("scan", "page.pdf"), ("scan", "good.npz"), ("compare", "page.htm"), ("report", "page"), ("report", "")],
)
def test_a_page_ends_in_html(place, capsys, verb, out):
    line = "report done" if verb == "report" else QUICK[verb].format("begun")
    assert "ends in .html" in refusal(capsys, [*line.split(" "), "--out", out])


@pytest.mark.parametrize("verb", [*QUICK, "report"])
def test_a_folder_that_may_not_be_written(place, capsys, monkeypatch, verb):
    """Whoever runs this: root may write anywhere."""
    before = everything(place)
    monkeypatch.setattr(os, "access", lambda *_: False)
    line = "report done" if verb == "report" else QUICK[verb].format("begun")
    out = "closed/x.parquet" if verb == "attack" else "closed/x.html"
    assert "permission denied" in refusal(capsys, f"{line} --out {out}")
    assert everything(place) == before


SEEDS = ["9" * 30, "0,-" + "9" * 30, str(2**63), "9" * 5000]


@pytest.mark.parametrize("seeds", SEEDS, ids=len)
def test_seeds_that_no_table_can_keep(place, capsys, seeds):
    message = refusal(capsys, f"run tiny.py:Tiny --seeds {seeds}")
    assert "seed" in message
    assert len(message) < 300


OUT_OF_RANGE = [
    *(
        f"scan my.py:begun good.npz --{name} {value}"
        for name in ("batch-size", "images")
        for value in ("0", "-1", "9" * 30, "x")
    ),
    *(f"scan my.py:begun good.npz --seed {value}" for value in ("9" * 30, "1.5", "")),
    *(f"compare my.py:begun my.py:begun good.npz --points {value}" for value in ("3", "9" * 30)),
    *(f"attack my.py:begun good.npz --restarts {value}" for value in ("0", "9" * 12)),
    *(f"run tiny.py:Tiny --{name} {value}" for name in ("threads", "workers") for value in ("0", "1000000", "9" * 30)),
]


@pytest.mark.parametrize("line", OUT_OF_RANGE)
def test_numbers_out_of_range(place, capsys, line):
    assert "Invalid value" in refusal(capsys, line)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "tpu", "", "cuda:-1", "9" * 30, "cpu:x", "mps", "hpu"])
@pytest.mark.parametrize("verb", QUICK)
def test_devices_that_are_not_there(place, capsys, device, verb):
    assert "device" in refusal(capsys, [*written(verb).split(" "), "--device", device])


def test_bytes_that_are_no_text_can_be_names(place, capsys):
    name = os.fsdecode(b"\xff.py")
    (place / name).write_text(MODEL)
    line = written("scan").replace("my.py", name).replace("made/page", os.fsdecode(b"made/\xfe"))
    code, out, err = command(capsys, line)
    assert code == 0, err
    out.encode()
    written_there = (place / os.fsdecode(b"made/\xfe") / "table" / "scan.parquet").read_bytes()
    assert pl.read_parquet(written_there)["model"][0] == r"\udcff.py:make"


def test_strict_exits_with_1_when_a_check_fails(place, capsys):
    """Eight images are too few for the width: a warning, and with --strict exit 1, the page written all the same."""
    line = written("scan")
    code, out, err = command(capsys, line)
    assert code == 0
    assert "warning: " in err
    shutil.rmtree(place / "made")
    strict = command(capsys, f"{line} --strict")
    assert (strict[0], strict[1]) == (1, out)
    assert (place / out.strip()).is_file()
    _, out, _ = command(capsys, "scan --help")
    assert "Exit codes: 0" in out
    assert "--strict" in out


def test_strict_says_nothing_where_all_is_well(place, capsys, monkeypatch):
    monkeypatch.setattr(geophone.Scan, "problems", [])
    assert command(capsys, f"{written('scan')} --strict")[0] == 0


def test_checks_by_attacks_can_be_left_out(place, capsys):
    assert command(capsys, written("scan"))[0] == 0
    rows = table.read(place / "made" / "page" / "table").filter(pl.col("metric").str.starts_with("check."))
    names = set(rows["metric"].str.strip_prefix("check."))
    assert names == {
        *("chance_accuracy", "classes", "image_range", "normalisation_outside", "activation_modules"),
        *("dead_layers", "samples_for_width", "layer_axes"),
    }


def test_in_a_file_progress_is_a_line_a_stage(place, capsys):
    _, _, err = command(capsys, written("scan").replace(" --no-checks", "").replace("--curves=", "--curves=FGSM"))
    lines = [line for line in err.splitlines() if line.startswith("scanning: ")]
    stages = ["measuring", "curves over eps", "checks", "checks by attacks", "the page"]
    assert [line.removeprefix("scanning: ").partition(" (")[0] for line in lines] == stages
    assert all("% done after" in line and "left)" in line for line in lines[1:])
    assert "\x1b" not in err


def test_standard_output_that_is_full(place):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "geophone", "list", "data"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (found.returncode, found.stderr) == (2, "geophone: standard output: No space left on device.\n")
