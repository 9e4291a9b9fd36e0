"""The command line as a user meets it. Bad input: one line on standard error, exit code 2, nothing half-written."""

import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from geophone.cli import cli, main
from geophone.core import table
from geophone.core.registry import REGISTRIES

MODEL = """
import torch
from geophone.models import SmallCNN
def make():
    torch.manual_seed(0)
    return SmallCNN(4, (0.5,), (0.25,), width=2)
class Blocks(torch.nn.Module):
    def forward(self, x):
        return x.detach().flatten(1)[:, :4] * torch.ones(4, requires_grad=True)
def blocks():
    return Blocks()
def broken():
    model = make()
    torch.nn.init.constant_(model.conv2.weight, float("nan"))
    return model
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path / "nothing"))
    (tmp_path / "my.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 1, 12, 12), dtype=np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "good.npz", x=x, y=y)
    np.savez(tmp_path / "wide.npz", x=x.astype(np.float32), y=y)
    np.savez(tmp_path / "labels.npz", x=x, y=y + 3)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:800])
    return tmp_path


def geophone(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    codes = []
    main(list(arguments), leave=codes.append)
    out, err = capsys.readouterr()
    return codes[-1], out, err


def test_scan_writes_a_page(place, capsys):
    code, out, err = geophone(
        capsys, "scan", "my.py:make", "good.npz", "--perturb", "GaussianNoise(std=0.1)", "--layers", "relu1,relu5"
    )
    assert code == 0
    assert out.strip().endswith("report.html")
    assert "warning: Not above chance" in err
    rows = table.read(place / "report" / "table")
    assert rows["layer"].drop_nulls().unique().sort().to_list() == ["relu1", "relu5"]
    code, out, _ = geophone(capsys, "report", "report", "--out", "again.html")
    assert code == 0
    assert (place / "again.html").read_text() == (place / "report.html").read_text()


@pytest.mark.parametrize("kind", [None, *REGISTRIES])
def test_list_shows_every_name(kind, capsys):
    code, out, _ = geophone(capsys, "list", *([kind] if kind else []))
    assert code == 0
    for registry in [REGISTRIES[kind]] if kind else REGISTRIES.values():
        for name in registry:
            assert name in out
            assert registry.summary(name).split()[0] in out


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from geophone import PERTURBATIONS, metric
from geophone.stats import Moments

@metric(Moments)
def my_metric(m):
    "One, whatever the data."
    return 1.0

@PERTURBATIONS.register
@dataclass(frozen=True)
class MyShake:
    "Mirror from left to right."
    amount: float = 1.0
    level: ClassVar[str] = "amount"
    levels: ClassVar[tuple[float, ...]] = (1.0,)
    family: ClassVar[str] = "corruption"
    def __call__(self, x, y, model, rng):
        return x.flip(3)
"""


def test_a_plugin_shows_up_in_list_help_and_report(place, capsys):
    (place / "plug.py").write_text(PLUGIN)
    code, out, _ = geophone(capsys, "list", "--plugin", "plug.py", "metrics")
    assert code == 0
    assert "my_metric" in out
    assert "plug.py" in out
    code, out, _ = geophone(capsys, "scan", "--plugin", "plug.py", "--help")
    assert code == 0
    assert "MyShake" in out
    assert "Mirror from left to right" in out
    code, out, err = geophone(
        capsys, "scan", "my.py:make", "good.npz", "--plugin", "plug.py", "--perturb", "MyShake", "--layers", "relu2"
    )
    assert code == 0, err
    page = (place / "report.html").read_text()
    assert "my_metric" in page
    assert "MyShake" in page


def test_attack_counts_what_survives(place, capsys):
    arguments = ("my.py:make", "good.npz", "--attacks", "LinfPGD(eps=0.1, steps=3), LinfSquare(eps=0.1, queries=5)")
    code, out, err = geophone(capsys, "attack", *arguments, "--restarts", "2", "--out", "images.parquet")
    assert code == 0, err
    assert "all of them" in out
    frame = pl.read_parquet(place / "images.parquet")
    assert len(frame) == 40 * 2 * 2
    assert frame["attack"].n_unique() == 2


@pytest.mark.parametrize("command", [(), ("run",), ("scan",), ("attack",), ("compare",), ("list",), ("report",)])
def test_help(command, capsys):
    code, out, _ = geophone(capsys, *command, "--help")
    assert code == 0
    assert out.startswith("Usage: geophone")
    assert max(len(line) for line in out.splitlines()) <= 110
    assert set(cli.commands) == {"run", "scan", "attack", "compare", "list", "report"}


def test_compare_writes_heat_maps(place, capsys):
    arguments = ("my.py:make", "my.py:make", "good.npz", "--layers", "relu1,relu5", "--batch-size", "20")
    code, out, err = geophone(capsys, "compare", *arguments, "--perturb", "LinfPGD(eps=8/255, steps=2)")
    assert code == 0, err
    assert out.strip().endswith("compared.html")
    page = (place / "compared.html").read_text()
    assert "Layers beside layers" in page
    assert (place / "compared" / "figures" / "layer_maps.svg").is_file()
    rows = table.read(place / "compared" / "table").filter(pl.col("metric") == "cka_minibatch")
    pairs = rows.group_by("model", "perturbation").len().sort("model", "perturbation").rows()
    assert pairs == [
        ("my.py:make (1)", "beside my.py:make (2)", 4),
        ("my.py:make (1)", "itself", 4),
        ("my.py:make (1)", "itself under LinfPGD(steps=2)", 4),
        ("my.py:make (2)", "itself", 4),
        ("my.py:make (2)", "itself under LinfPGD(steps=2)", 4),
    ]


def corrupt_shard(place):
    (place / "done" / "table").mkdir(parents=True)
    (place / "done" / "table" / "a.parquet").write_bytes(b"PAR1 half")
    (place / "done" / "provenance.json").write_text('{"title": "x"}')


def cut_gzip(place):
    folder = place / "nothing"
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(os.urandom(1000))[:500])


def corrupt_npy(place):
    (place / "c").mkdir()
    (place / "c" / "fog.npy").write_bytes(b"\x93NUMPY\x01\x00garbage")
    np.save(place / "c" / "labels.npy", np.zeros(5, dtype=np.uint8))


def nothing(place):
    pass


BAD = {
    "missing model": (nothing, "scan absent.pt good.npz", "no model at 'absent.pt'"),
    "missing data": (nothing, "scan my.py:make absent.npz", "absent.npz"),
    "wrong layer": (nothing, "scan my.py:make good.npz --layers relu9", "unknown layer 'relu9'. Did you mean"),
    "wrong perturbation": (nothing, "scan my.py:make good.npz --perturb Gausian", "unknown perturbation 'Gausian'"),
    "bad perturbation": (nothing, "scan my.py:make good.npz --perturb GaussianNoise(std=-1)", "std"),
    "wrong image shape": (nothing, "scan my.py:make fashion_mnist_mini --images 20 --layers relu1,x", "unknown layer"),
    "truncated npz": (nothing, "scan my.py:make cut.npz", "cut.npz"),
    "truncated archive": (cut_gzip, "scan my.py:make fashion_mnist", "ubyte.gz"),
    "NaN weights": (nothing, "scan my.py:broken good.npz", "'conv2.weight' has NaN"),
    "labels out of range": (nothing, "scan my.py:make labels.npz", "label 6 is out of range"),
    "images in [0, 255]": (nothing, "scan my.py:make wide.npz", "[0, 1]"),
    "corrupt shard": (corrupt_shard, "report done", "a.parquet is corrupt"),
    "no table": (nothing, "report absent", "absent"),
    "unwritable folder": (nothing, "scan my.py:make good.npz --out my.py/report.html", "cannot make the folder"),
    "unwritable study": (nothing, "run demo --out my.py/out", "cannot make the folder"),
    "wrong study": (nothing, "run demoo", "unknown study 'demoo'. Did you mean 'demo'"),
    "wrong size": (nothing, "run demo --size tiny", "unknown size 'tiny'"),
    "wrong switch": (nothing, "run selectivity --set reduce", "cannot read --set 'reduce'"),
    "unknown switch": (nothing, "run demo --set reduce=positions", "unknown switch of the study demo 'reduce'"),
    "wrong seeds": (nothing, "run demo --seeds a,b", "cannot read the seeds 'a,b'"),
    "wrong kind": (nothing, "list model", "unknown kind 'model'. Did you mean 'models'"),
    "missing plug-in": (nothing, "list --plugin absent.py", "no plug-in file at"),
    "missing factory": (nothing, "scan good.npz good.npz", "--factory"),
    "wrong device": (nothing, "scan my.py:make good.npz --device tpu9", "tpu9"),
    "severity 7": (
        nothing,
        "scan my.py:make good.npz --perturb fog(severity=7)",
        "severity must be a whole number in [0, 5]",
    ),
    "negative eps": (nothing, "scan my.py:make good.npz --perturb LinfAPGD(eps=-1)", "eps must be a number in [0, 1]"),
    "no gradients": (nothing, "attack my.py:blocks good.npz --attacks LinfPGD", "passes no gradient on to its input"),
    "a curve without a radius": (nothing, "scan my.py:make good.npz --curves fog", "has no radius eps"),
    "outcomes elsewhere": (nothing, "attack my.py:make good.npz --out images.csv", "ends in .parquet"),
    "corrupt npy": (
        corrupt_npy,
        "scan my.py:make cifar10_c(root='c',corruption='fog')",
        "fog.npy is truncated, corrupt",
    ),
    "unknown measure": (nothing, "compare my.py:make my.py:make good.npz --measures ckaa", "measure of similarity"),
    "many perturbations": (
        nothing,
        "compare my.py:make my.py:make good.npz --perturb noise",
        "is not one perturbation",
    ),
    "too few images": (nothing, "compare my.py:make my.py:make good.npz --images 3", "at least 4 images"),
    "too many images": (nothing, "scan my.py:make good.npz --images 1000", "1000"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_clear_line(case, place, capsys):
    prepare, command, message = BAD[case]
    prepare(place)
    before = sorted(place.rglob("*"))
    code, out, err = geophone(capsys, *command.split(" "))
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("geophone: ")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err
    left = [p for p in sorted(place.rglob("*")) if p not in before and p.is_file() and "__pycache__" not in str(p)]
    assert left == []


def test_missing_arguments_are_clicks_own_error(capsys):
    code, _, err = geophone(capsys, "scan")
    assert code == 2
    assert "Missing argument 'MODEL'" in err


def test_the_installed_command_and_ctrl_c(place):
    command = shutil.which("geophone", path=os.path.dirname(sys.executable)) or "geophone"
    found = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert found.stdout.startswith("geophone, version 0.1.0")
    (place / "stop.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    stopped = subprocess.run([command, "scan", "stop.py:make", "good.npz"], capture_output=True, text=True)
    assert stopped.returncode == 130
    assert "Nothing was written; the same command begins anew." in stopped.stderr
    assert torch.__version__
