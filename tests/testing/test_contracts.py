"""The package's own things keep their contracts, a plug-in that breaks one is caught, and the command says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from geophone.core.registry import DATASETS, METRICS, PROBES, load_plugin
from geophone.testing.contracts import LAWS, broken_contracts, registered_by

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin.py"


@pytest.mark.parametrize("name", list(METRICS))
def test_metrics(name):
    assert broken_contracts("metrics", name) == []


@pytest.mark.parametrize("name", ["fashion_mnist_mini", "synthetic"])
def test_data(name):
    assert name in DATASETS
    assert broken_contracts("data", name) == []


def test_the_example_plugin_keeps_its_contracts():
    load_plugin(EXAMPLE)
    found = list(registered_by("plugin.py"))
    assert found == [("recipes", "LabelSmoothing"), ("perturbations", "Fade"), ("metrics", "total_variance")]
    for kind, name in found:
        assert broken_contracts(kind, name) == []


@pytest.mark.parametrize(
    "name", [name for name in PROBES if name not in ("Robustness", "Curves", "Exemplars", "AttackChecks")]
)
def test_probes(name):
    """The others, at their defaults, take minutes; tests/laws/test_probes.py has all of them at smaller ones."""
    assert broken_contracts("probes", name) == []


HEAD = """
from dataclasses import dataclass, replace
from typing import ClassVar
import random, torch
from torch import nn
from geophone import *
from geophone.data import synthetic
from geophone.stats import Moments, ClassMeans
from geophone.study import study
"""

MUTANTS = {
    ("metrics", "has_a_summary"): "@metric(Moments)\ndef bad(m): return 1.0",
    ("metrics", "statistic_merges"): (
        "class Odd(Moments):\n  def __add__(self, other): return self\n@metric(Odd)\ndef bad(m):\n  'x'\n  return 1.0"
    ),
    ("metrics", "gives_numbers"): "@metric(Moments, per_unit=True)\ndef bad(m):\n  'x'\n  return 1.0",
    ("metrics", "undefined_is_said"): "@metric(Moments)\ndef bad(m):\n  'x'\n  return float(m.trace / (m.n - 1))",
    ("recipes", "has_a_summary"): (
        "@RECIPES.register\n@dataclass(frozen=True)\nclass bad(Recipe):\n  def loss(self, model, x, y, rng): return model(x).mean()"
    ),
    ("recipes", "is_frozen_code"): (
        "@RECIPES.register\n@dataclass\nclass bad(Recipe):\n  'x'\n  def loss(self, model, x, y, rng): return model(x).square().mean()"
    ),
    ("recipes", "loss_trains"): (
        "@RECIPES.register\n@dataclass(frozen=True)\nclass bad(Recipe):\n  'x'\n"
        "  def loss(self, model, x, y, rng): return model(x).square().mean() * random.random()"
    ),
    (
        "models",
        "has_a_summary",
    ): "@MODELS.register\ndef bad(classes, mean, std): return MODELS['small_cnn'](classes, mean, std)",
    ("models", "gives_logits"): (
        "@MODELS.register\ndef bad(classes, mean, std):\n  'x'\n  return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))"
    ),
    ("studies", "has_a_summary"): (
        "@study('bad')\n@dataclass(frozen=True)\nclass bad:\n  question: ClassVar[str] = '?'\n  size: str = 'demo'\n"
        "  seeds: tuple | None = None\n  def jobs(self): return [Job('synthetic', 'small_cnn', 'Standard', 0, Training())]"
    ),
    ("studies", "is_frozen_code"): (
        "@study('bad')\n@dataclass\nclass bad:\n  'x'\n  question: ClassVar[str] = '?'\n  size: str = 'demo'\n"
        "  seeds: tuple | None = None\n  def jobs(self): return [Job('synthetic', 'small_cnn', 'Standard', 0, Training())]"
    ),
    ("studies", "is_a_study"): (
        "@study('bad')\n@dataclass(frozen=True)\nclass bad:\n  'x'\n  question: ClassVar[str] = '?'\n  size: str = 'demo'\n"
        "  seeds: tuple | None = None\n  def jobs(self): return [Job('synthetic', 'small_cnn', 'Standard', 0, Training())] * 2"
    ),
    ("probes", "has_a_summary"): "@PROBES.register\n@dataclass(frozen=True)\nclass bad(Probe): pass",
    ("probes", "is_frozen_code"): "@PROBES.register\n@dataclass(frozen=True)\nclass bad(Probe):\n  'x'\n  n: int",
    ("probes", "divides"): (
        "from geophone.probes.part import Columns, Part\n@PROBES.register\n@dataclass(frozen=True)\nclass bad(Probe):\n  'x'\n"
        "  def steps(self, examples): return 3\n  def begin(self, subject, examples):\n    seen = []\n"
        "    def step(number, done):\n      seen.append(number)\n"
        "      return Part.of(number, {('x',): Columns({'x': torch.tensor([len(seen)])})}, {})\n    return step\n"
        "  def rows(self, part): yield {'metric': 'x', 'value': float(part.total()['x',]['x'].max())}"
    ),
    ("data", "has_a_summary"): "@DATASETS.register\ndef bad(root=None): return synthetic()",
    ("data", "loads_if_there"): (
        "@DATASETS.register\ndef bad(root=None):\n  'x'\n  data = synthetic()\n  return replace(data, val=data.train)"
    ),
}


def test_every_law_has_a_mutant():
    assert set(MUTANTS) == {(kind, law.__name__) for kind, laws in LAWS.items() for law in laws}


@pytest.mark.parametrize(("kind", "law"), list(MUTANTS), ids=lambda v: v)
def test_a_broken_contract_is_caught(kind, law, tmp_path):
    file = tmp_path / f"{kind}_{law}.py"
    file.write_text(HEAD + MUTANTS[kind, law])
    load_plugin(file)
    assert any(line.startswith(f"{law}:") for line in broken_contracts(kind, "bad"))


def check(file):
    return subprocess.run([sys.executable, "-m", "geophone.testing", str(file)], capture_output=True, text=True)


def test_the_command(tmp_path):
    good = check(EXAMPLE)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.endswith("3 passed, 0 failed\n")
    bad = tmp_path / "bad.py"
    bad.write_text(HEAD + MUTANTS["metrics", "undefined_is_said"])
    found = check(bad)
    assert found.returncode == 1
    assert "FAILED metrics: bad" in found.stdout
    assert "undefined_is_said" in found.stdout
    (tmp_path / "empty.py").write_text("")
    for file, message in ((tmp_path / "empty.py", "registers nothing"), (tmp_path / "no.py", "no plug-in file")):
        found = check(file)
        assert found.returncode == 2
        assert message in found.stderr
