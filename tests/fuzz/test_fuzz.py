"""Any file, any argument: a right result or one sentence. See `harness.py`."""

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.harness import Format


def _check(found: dict, cases: int) -> None:
    shown = [
        f"{found['format']} {one['number']} ({one['times']} such): {one['text']:.500}\n"
        f"  in {one['where']}\n  after {one['done']}\n"
        f"  again: python -m tests.fuzz {found['format']} {one['number']}"
        for one in found["failures"]
    ]
    assert not shown, "\n".join(shown)
    assert sum(found.get(kind, 0) for kind in ("right", "refused")) == cases
    assert found.get("right"), "nothing is ever read: the cases test no more than the first check"


@pytest.mark.parametrize("one", FORMATS.values(), ids=list(FORMATS))
def test_some_hundreds(one: Format, fuzz):
    _check(fuzz(one.name, 0, one.cases), one.cases)


@pytest.mark.slow
@pytest.mark.parametrize("one", FORMATS.values(), ids=list(FORMATS))
def test_ten_thousand(one: Format, fuzz):
    _check(fuzz(one.name, 0, one.many), one.many)
