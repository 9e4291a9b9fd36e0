"""What the README and the docs say is true."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from geophone.core.registry import REGISTRIES
from geophone.study import find_study
from geophone.testing.contracts import broken_contracts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

LINKS = sorted(set(re.findall(r"\]\(((?!http)[\w./]+)\)", README)))


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    """As printed, on fewer images."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    code = code.replace('geophone.load("fashion_mnist_mini")', "small()")

    def small():
        import geophone

        data = geophone.load("fashion_mnist_mini")
        return type(data)(data.name, data.classes, data.train, data.val, data.test.take(40))

    exec(code, {"small": small})
    out = capsys.readouterr().out
    assert "shape: (6, 2)" in out
    assert "relu6" in out
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("robustness", ("fog", "all of them")),
        ("selectivity", ("is negative", "eta_squared", "relu6")),
        ("similarity", ("far_similarity", "relu6")),
        ("stochastic", ("(10, 1)", "relu1.clean")),
        ("geometry", ("floor 0.0500", "GaussianNoise", "its copies have one")),
    ],
)
def test_the_examples_of_the_docs_run(page, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    exec(code.replace("take(100)", "take(20)"), {})
    out = capsys.readouterr().out
    assert all(words in out for words in said)


def test_the_catalogue_is_current():
    spec = spec_from_file_location("make_catalogue", ROOT / "scripts" / "make_catalogue.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.catalogue(), "run: python scripts/make_catalogue.py"


def test_names_in_the_readme_exist():
    section = README.split("## What is in")[1].split("##")[0]
    known = {name for registry in REGISTRIES.values() for name in registry}
    named = set(re.findall(r"`([A-Z]\w+)", section))
    assert named
    assert named <= known


@pytest.mark.parametrize("target", LINKS)
def test_links_in_the_readme_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_example_study_keeps_its_contract():
    name, _ = find_study(str(ROOT / "examples" / "my_study.py"), "demo", None)
    assert broken_contracts("studies", name) == []


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
