"""What is imported when: the command answers without torch, and heavy libraries wait until something uses them."""

import subprocess
import sys

import pytest

PUBLIC = "import geophone; [getattr(geophone, name) for name in geophone.__all__ if name != 'write_report']"
"""The report draws when it is imported; nothing else does."""


def loaded(code: str, *words: str) -> set[str]:
    """The modules of a new process at its end."""
    said = "import sys, atexit; atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr)); "
    done = subprocess.run([sys.executable, "-c", said + code, *words], capture_output=True, text=True, check=False)
    assert "geophone" in done.stderr.split(), done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("word", ["--version", "--help", "-h"])
def test_the_command_answers_without_torch(word: str) -> None:
    heavy = {"torch", "numpy", "scipy", "polars", "altair", "vl_convert", "numba", "PIL", "pooch"}
    assert not heavy & loaded("from geophone.cli import main; main()", word)


def test_the_package_imports_nothing_by_itself() -> None:
    assert not {"torch", "numpy", "polars", "scipy"} & loaded("import geophone")


def test_what_is_public_is_there_without_what_it_may_never_use() -> None:
    modules = loaded(f"{PUBLIC}; [len(r) for r in (geophone.METRICS, geophone.PERTURBATIONS, geophone.PROBES)]")
    assert "torch" in modules
    heavy = {
        "scipy.stats",
        "scipy.optimize",
        "scipy.special",
        "altair",
        "vl_convert",
        "numba",
        "torch._inductor",
        "ray",
    }
    assert not heavy & modules


def test_an_import_at_the_top_would_be_seen() -> None:
    """The mutants."""
    assert "torch" in loaded("import torch; from geophone.cli import main; main()", "--version")
    assert "scipy.stats" in loaded(f"{PUBLIC}; import scipy.stats")


def test_registries_are_complete_whoever_asks_first() -> None:
    for registry, name in (("METRICS", "cka"), ("PERTURBATIONS", "fog"), ("PROBES", "Layers"), ("STUDIES", "demo")):
        code = f"from geophone.core.registry import {registry} as r; assert {name!r} in r and len(r) > 3"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
