"""The script that counts what makes a house crooked sees what it should, and the house is within its limits."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "scripts" / "count_shape.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count_shape", PATH)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


SHAPE = script()
MANY = ", ".join(f"a{i}" for i in range(12))
LONG = "".join(f"    x{i} = {i}\n" for i in range(81))


@pytest.mark.parametrize(
    ("count", "source", "seen"),
    [
        (SHAPE.many_parameters, f"def f({MANY}): pass", True),
        (SHAPE.many_parameters, f"def f(a, *, {MANY}): pass", True),
        (SHAPE.many_parameters, f"def f({MANY[4:]}): pass", False),
        (SHAPE.many_parameters, f"def _f({MANY}): pass", False),
        (SHAPE.many_parameters, f"@cli.command()\ndef f({MANY}): pass", False),
        (SHAPE.many_parameters, f"@MODELS.register\ndef f({MANY}): pass", False),
        (SHAPE.long_functions, f"def f():\n{LONG}", True),
        (SHAPE.long_functions, f"class C:\n  def f(self):\n{LONG}", True),
        (SHAPE.long_functions, f'def f():\n    """{LONG}"""\n    return 1', False),
        (SHAPE.long_functions, f"def cone():\n{LONG}", False),
        (SHAPE.by_name, "x = getattr(a, 'b', None) or hasattr(a, 'c')", True),
        (SHAPE.by_name, "x = a.getattr", False),
        (SHAPE.names_read, "name.startswith('check.')", True),
        (SHAPE.names_read, "pl.col('metric').str.ends_with('_floor')", True),
        (SHAPE.names_read, "name == 'check'", False),
    ],
)
def test_it_sees_what_it_should(count: object, source: str, seen: bool) -> None:
    assert callable(count)
    assert bool(list(count(ast.parse(source)))) == seen


def test_more_than_the_limit_fails_and_so_does_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("getattr(a, 'b')\ngetattr(a, 'c')\n")
    for limit, code in ((1, 1), (2, 0), (3, 1)):
        monkeypatch.setattr(SHAPE, "COUNTS", {"getattr and hasattr": (SHAPE.by_name, ("",), limit)})
        assert SHAPE.main(tmp_path) == code


def test_the_house_is_within_its_limits() -> None:
    assert SHAPE.main() == 0
