"""The runner finds what is planted, and nothing where nothing is."""

import pytest

from tests.fuzz.mutants import MUTANTS

SAYS = {
    "toy-wrong": "wrong result",
    "toy-traceback": "KeyError",
    "toy-hang": "hang",
    "toy-sleep": "hang",
    "toy-memory": "MemoryError",
    "toy-swallowed-memory": "memory ran out",
    "toy-lines": "several lines",
    "toy-colour": "control characters",
    "toy-silent": "empty message",
    "toy-endless": "10000 characters",
    "toy-leaves": "SystemExit",
    "toy-dies": "without an answer",
    "toy-crash": "killed by signal 11",
    "toy-prints": "printed",
    "toy-warns": "printed",
    "toy-mutator": "mutator raised",
}


def test_the_sound_toy_passes(fuzz):
    found = fuzz("toy", 0, 100)
    assert found["failures"] == []
    assert found["right"] > 5
    assert found["refused"] > 5
    assert set(SAYS) | {"toy"} == set(MUTANTS)


@pytest.mark.parametrize("name", SAYS)
def test_a_planted_fault_is_found(name, fuzz):
    found = fuzz(name, 0, 3)
    assert any(SAYS[name] in one["text"] for one in found["failures"])
    assert (min(one["number"] for one in found["failures"]) == 0) == (name == "toy-wrong")


def test_a_case_is_the_same_every_time(fuzz):
    all_at_once = fuzz("toy-traceback", 0, 12)
    one = fuzz("toy-traceback", 11, 1)
    assert one["failures"][0]["done"] == fuzz("toy-traceback", 11, 1)["failures"][0]["done"]
    assert all_at_once["failed"] == sum(fuzz("toy-traceback", i, 1).get("failed", 0) for i in range(12))
