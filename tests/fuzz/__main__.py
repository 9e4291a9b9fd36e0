"""`python -m tests.fuzz FORMAT CASE`: one case anew, its files kept. Without CASE: many. `--serve`: for the tests."""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before the imports: their pools of threads would not survive a fork.
for pool in ("OMP", "MKL", "OPENBLAS", "NUMBA", "POLARS_MAX", "RAYON"):
    os.environ[f"{pool}_{'THREADS' if pool == 'POLARS_MAX' else 'NUM_THREADS'}"] = "1"
os.environ["_RJEM_MALLOC_CONF"] = "background_thread:false"  # the allocator inside polars

import torch

from tests.fuzz.formats import FORMATS
from tests.fuzz.harness import Format, mutated, prepared, run
from tests.fuzz.mutants import MUTANTS

ALL = FORMATS | MUTANTS


def summary(one: Format, first: int, count: int, jobs: int) -> dict[str, Any]:
    """How many cases were right, refused and failed; of each kind of failure, the first."""
    counts: Counter[str] = Counter()
    failures: dict[str, dict[str, Any]] = {}
    for outcome in run(one, range(first, first + count), jobs):
        counts[outcome.kind] += 1
        if outcome.kind == "failed":
            key = f"{outcome.text.partition(':')[0]:.60} {outcome.where}"
            known = failures.setdefault(key, {**asdict(outcome), "times": 0})
            known["times"] += 1
    return {"format": one.name, **counts, "failures": list(failures.values())}


def replay(one: Format, number: int) -> None:
    """One case alone, with its files kept."""
    root = Path(tempfile.mkdtemp(prefix=f"fuzz-{one.name}-{number}-"))
    case = mutated(one, number, root / "case", prepared(one, root / "seed"))
    print(f"files in {case.folder}\nwords   {case.words!r:.2000}\ndone    {case.done}")
    (outcome,) = run(one, [number])
    print(f"{outcome.trace}\n{outcome.kind}: {outcome.text}\n{outcome.where}")


def serve() -> None:
    """Lines of `[format, first, count, jobs]` in, lines of summaries out."""
    for line in sys.stdin:
        name, *numbers = json.loads(line)
        print(json.dumps(summary(ALL[name], *numbers)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("format", nargs="*", help="a format, or all")
    parser.add_argument("case", nargs="?", type=int, help="one case, to replay")
    parser.add_argument("--cases", type=int, help="how many, from the first")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--serve", action="store_true")
    words = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    if words.serve:
        serve()
        return
    names, case = words.format, words.case
    if names and names[-1].isdigit():
        *names, last = names
        case = int(last)
    for name in names or list(FORMATS):
        if case is not None:
            replay(ALL[name], case)
            continue
        found = summary(ALL[name], words.first, words.cases or ALL[name].cases, words.jobs)
        failures = found.pop("failures")
        print(found, flush=True)
        for one in failures:
            print(f"  {name} {one['number']} ({one['times']} such): {one['text']:.400}")
            print(f"    {one['where']}\n    {one['done']}")


main()
