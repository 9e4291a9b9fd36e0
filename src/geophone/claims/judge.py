"""Published claims, each with its tests, judged by the table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from geophone.checksums import parquet, read_parquet
from geophone.claims.measures import NoRows
from geophone.claims.rules import CONTRADICTED, NOT_DECIDED, SUPPORTED, Outcome, Rule
from geophone.errors import GeophoneError
from geophone.files import replacing

CLAIM_SCHEMA: dict[str, Any] = {
    "claim": pl.String,
    "part": pl.String,
    "source": pl.String,
    "statement": pl.String,
    "test": pl.String,
    "verdict": pl.String,
    "effect": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "networks": pl.Int64,
    "seeds": pl.Int64,
    "needed": pl.String,
    "differs": pl.String,
    "assumptions": pl.String,
    "note": pl.String,
}
CLAIMS = "claims.parquet"
"""The file of a folder's verdicts."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what would show it in these networks.

    Attributes:
        name: Short and unique.
        source: Paper, arXiv number and place in it.
        statement: The claim in one sentence.
        tests: Pairs of a label and a test. The claim holds if all of them do.
        differs: Where the setting here differs from the paper's.
        assumptions: What was assumed where the paper says nothing.
        dataset: Judge by the networks of this data set; None where the table has one.
        model: Likewise.

    Raises:
        GeophoneError: no test, or two with one label.
    """

    name: str
    source: str
    statement: str
    tests: tuple[tuple[str, Rule], ...]
    differs: str = ""
    assumptions: str = ""
    dataset: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        labels = [label for label, _ in self.tests]
        if not labels or len(set(labels)) < len(labels):
            raise GeophoneError(f"the claim {self.name!r} needs at least one test, and a label of its own for each.")


def judge(claims: Sequence[Claim], table: pl.DataFrame) -> pl.DataFrame:
    """A verdict on each claim: supported, contradicted or not decided.

    A claim of one test has one row. A claim of several has a row with the joint verdict, whose `part` is null, and then
    one for each test: supported if all are, contradicted if any is, else not decided. So a true claim of several parts
    is contradicted by chance more often: at most 2.5 % for each part. Networks without a recipe or seed are left out.
    Each claim is judged by itself, without correction for how many there are.

    Args:
        claims: What to judge, in the order of the result.
        table: The long table.

    Returns:
        The columns of `CLAIM_SCHEMA`. `effect` says what the number is; `needed` what the power calculation asks for;
        `note` why a claim is not decided, and what was left out.

    Raises:
        GeophoneError: two claims of one name.
    """
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise GeophoneError(f"{names.count(name)} claims are named {name!r}. Give each a name of its own.")
    return pl.DataFrame([row for claim in claims for row in _judged(claim, table)], schema=CLAIM_SCHEMA, orient="row")


def _judged(claim: Claim, table: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one claim."""
    for name, value in (("dataset", claim.dataset), ("model", claim.model)):
        if value is not None:
            table = table.filter(pl.col(name) == value)
    table = table.filter(pl.col("recipe").is_not_null() & pl.col("seed").is_not_null())
    common = {key: getattr(claim, key) or None for key in ("source", "statement", "differs", "assumptions")}
    common = {"claim": claim.name, **common}
    problem = _problem(table)
    outcomes = [Outcome(NOT_DECIDED, note=problem) if problem else _outcome(test, table) for _, test in claim.tests]
    parts = [
        {**common, "part": label, "test": str(test), **outcome._asdict()}
        for (label, test), outcome in zip(claim.tests, outcomes, strict=True)
    ]
    if len(parts) == 1:
        yield {**parts[0], "part": None}
    else:
        yield {**common, "verdict": joint([outcome.verdict for outcome in outcomes])}
        yield from parts


def joint(verdicts: Sequence[str]) -> str:
    """The verdict on a claim by those on its parts."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if all(verdict == SUPPORTED for verdict in verdicts) else NOT_DECIDED


def _problem(table: pl.DataFrame) -> str | None:
    """Why no test can be made of these networks."""
    if table.is_empty():
        return "no rows for its data set and model, with recipe and seed"
    for name, plural in (("dataset", "data sets"), ("model", "models")):
        if (many := table[name].n_unique()) > 1:
            return f"mixes {many} {plural}: name one in the claim"
    jobs = table.select("recipe", "seed", "job").unique()
    twice = jobs.filter(pl.struct("recipe", "seed").is_duplicated()).sort("recipe", "seed")
    if len(twice):
        return f"the table has several networks of {twice['recipe'][0]}, seed {twice['seed'][0]}: leave one"
    return None


def _outcome(test: Rule, table: pl.DataFrame) -> Outcome:
    try:
        return test(table)
    except NoRows as missing:
        return Outcome(NOT_DECIDED, note=str(missing))


def write_claims(claims: pl.DataFrame, out: Path) -> Path:
    """Write verdicts to `out/claims.parquet`, whole or not at all, where the report finds them."""
    path = out / CLAIMS
    with replacing(path) as temporary:
        temporary.write_bytes(parquet(claims.select(list(CLAIM_SCHEMA))))
    return path


def read_claims(out: Path) -> pl.DataFrame | None:
    """The verdicts of a folder; None if it has none.

    Raises:
        GeophoneError: the file is corrupt, or has other columns.
    """
    path = out / CLAIMS
    if not path.is_file():
        return None
    claims = read_parquet(path, "Delete it and judge the claims again.")
    if dict(claims.schema) != CLAIM_SCHEMA:
        raise GeophoneError(f"{path} has other columns than this version writes. Judge the claims again.")
    return claims
