"""Run two commits on this machine and compare their tables row by row.

    python scripts/same_table.py OLD NEW [--keep FOLDER] [--allow WHERE[:TOLERANCE]] [--study demo --study ...]

Each commit is checked out into a folder of its own and runs the studies with this environment's packages, one torch
thread. Rows are matched by what they describe, not by ids: all columns but `job` and the results. Results must be equal
to the bit. `--allow` excepts what a commit means to change: WHERE is COLUMN=PATTERN (a shell pattern), several by ";"
(`--allow "recipe=Stochastic*"`, `--allow "metric=cka_minibatch:1e-6"`); without a tolerance any result will do. Columns
that only the new commit has are left out of the comparison. Exit 1 where rows differ.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[1]
OWN = "scripts/yardstick.py"
IDS = ("job", "task", "beside")  # hashes, of which a commit may make others
RESULTS = ("value", "low", "high", "n", "d", "note")
NUMBERS = ("value", "low", "high")
ALLOWED = re.compile(r"([^=;]+=[^;]+?(?:;[^=;]+=[^;]+?)*)(?::([0-9.e+-]+))?")


@dataclass(frozen=True)
class Allowed:
    """Rows that may differ, and by how much."""

    where: tuple[tuple[str, str], ...]
    tolerance: float

    @classmethod
    def of(cls, text: str) -> "Allowed":
        """`COLUMN=PATTERN;COLUMN=PATTERN:TOLERANCE`."""
        match = ALLOWED.fullmatch(text)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=PATTERN;COLUMN=PATTERN:TOLERANCE")
        pairs = [pair.split("=", 1) for pair in match[1].split(";")]
        return cls(tuple((column.strip(), pattern) for column, pattern in pairs), float(match[2] or inf))

    def holds(self, row: dict[str, object]) -> bool:
        """Whether a row is one of them."""
        return all(fnmatchcase(str(row.get(column)), pattern) for column, pattern in self.where)


def run(commit: str, studies: list[str], into: Path) -> None:
    """Check a commit out and run the studies, where they have not been run."""
    tree = into / "tree"
    if not tree.is_dir():
        subprocess.run(["git", "worktree", "add", "--force", "--detach", tree, commit], cwd=ROOT, check=True)
    if not (tree / OWN).is_file():  # older than the yardstick
        (tree / OWN).write_text((ROOT / OWN).read_text())
    for study in studies:
        out = into / Path(study).stem
        command = [sys.executable, "-m", "geophone", "run", study, "--size", "demo", "--threads", "1", "--out", out]
        print(" ".join(map(str, command)), file=sys.stderr)
        environment = {"PYTHONPATH": str(tree / "src"), "PATH": "/usr/bin:/bin", "HOME": str(into)}
        subprocess.run(command, cwd=tree, env=environment, check=True)


def rows(folder: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A study's table with a number for rows that describe the same."""
    table = pl.concat([pl.read_parquet(shard) for shard in sorted((folder / "table").glob("*.parquet"))])
    key = [name for name in columns or table.columns if name not in (*IDS, *RESULTS)]
    table = table.sort(*key, *RESULTS, nulls_last=True)
    return table.with_columns(copy=pl.int_range(pl.len()).over(key)).select(*key, "copy", *RESULTS)


def compared(old: pl.DataFrame, new: pl.DataFrame, allowed: list[Allowed]) -> list[str]:
    """What differs, a line for each kind of row."""
    key = [name for name in old.columns if name not in RESULTS]
    old, new = old.with_columns(in_old=True), new.with_columns(in_new=True)
    both = old.join(new, on=key, how="full", suffix="_new", coalesce=True, nulls_equal=True)
    differs = pl.any_horizontal(*(pl.col(c).ne_missing(pl.col(f"{c}_new")) for c in RESULTS))
    found: dict[str, list[float]] = {}
    for row in both.filter(differs | pl.col("in_old").is_null() | pl.col("in_new").is_null()).iter_rows(named=True):
        if row["in_old"] is None or row["in_new"] is None:
            what, size = "only in NEW" if row["in_old"] is None else "only in OLD", inf
        else:
            what = "differs"
            pairs = [(row[c], row[f"{c}_new"]) for c in NUMBERS]
            size = max((abs(a - b) if None not in (a, b) else inf for a, b in pairs if a != b), default=inf)
        if any(rule.holds(row) and size <= rule.tolerance for rule in allowed):
            continue
        name = f"{what}: {row['metric']} ({row['recipe']}, {row['family']}, {row['perturbation']})"
        found.setdefault(name, []).append(size)
    return [f"{name}: {len(sizes)} rows, by up to {max(sizes):.3g}" for name, sizes in sorted(found.items())]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--keep", type=Path, help="Folder for checkouts and tables; what is there is not run again.")
    parser.add_argument("--allow", action="append", default=[], type=Allowed.of, metavar="WHERE[:TOLERANCE]")
    parser.add_argument("--study", action="append", dest="studies", help="Default: demo and the yardstick.")
    given = parser.parse_args()
    studies = given.studies or ["demo", OWN]
    folder = given.keep or Path(tempfile.mkdtemp(prefix="same_table-"))
    for name, commit in (("old", given.old), ("new", given.new)):
        run(commit, studies, folder / name)
    bad = 0
    for study in studies:
        stem = Path(study).stem
        old = rows(folder / "old" / stem)
        new = rows(folder / "new" / stem, old.drop("copy").columns)
        lines = compared(old, new, given.allow)
        print(f"{stem}: {len(old)} rows and {len(new)}; " + ("the same" if not lines else f"{len(lines)} kinds differ"))
        print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "")
        bad += bool(lines)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
