"""Published claims, each with its tests, judged by the table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from geophone.analysis.claims.evidence import ALPHA
from geophone.analysis.claims.measures import NoRows
from geophone.analysis.claims.rules import CONTRADICTED, NOT_DECIDED, SUPPORTED, Outcome, Rule
from geophone.analysis.inference import holm
from geophone.core.arguments import check_fields, checked
from geophone.core.checksums import parquet, read_parquet
from geophone.core.errors import GeophoneError
from geophone.core.files import replacing

CLAIM_SCHEMA: dict[str, Any] = {
    "claim": pl.String,
    "part": pl.String,
    "source": pl.String,
    "statement": pl.String,
    "test": pl.String,
    "verdict": pl.String,
    "alone": pl.String,
    "p": pl.Float64,
    "p_holm": pl.Float64,
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
        check_fields(self)
        labels = [label for label, _ in self.tests]
        if not labels or len(set(labels)) < len(labels):
            raise GeophoneError(f"the claim {self.name!r} needs at least one test, and a label of its own for each.")


@checked
def judge(claims: Sequence[Claim], table: pl.DataFrame) -> pl.DataFrame:
    """A verdict on each claim: supported, contradicted or not decided.

    Every test has a two-sided p-value, 0.05 being its level. All tests of all claims that are judged together, such as
    those of a study, are one family, and `p_holm` is Holm's correction of `p` over it: the chance that any verdict of
    them all is false is at most 5 %. Tests without p (too few seeds, no rows) do not count. `verdict` is by `p_holm`;
    `alone` is by `p`, as if the claim had been the only one.

    A claim of one test has one row. A claim of several has a row for itself, whose `part` is null, and then one for
    each test. It is supported if every part is: its p is the largest of theirs. It is contradicted if any part is: its
    p is the smallest among those that speak against it, by Holm's correction over its parts, and for `p_holm` over the
    family. Networks without a recipe or seed are left out.

    Args:
        claims: What to judge, in the order of the result.
        table: The long table.

    Returns:
        The columns of `CLAIM_SCHEMA`. `effect` says what the number is; `needed` what the power calculation asks for;
        `note` why a claim is not decided, and what was left out.

    Raises:
        GeophoneError: two claims of one name.

    References:
        Holm 1979, doi:10.2307/4615733; Berger 1982, Technometrics 24, 295 (a claim that holds if all its parts do).
    """
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise GeophoneError(f"{names.count(name)} claims are named {name!r}. Give each a name of its own.")
    outcomes = [_outcomes(claim, table) for claim in claims]
    corrected = iter(holm([outcome.p for each in outcomes for outcome in each]))
    rows = [
        row
        for claim, each in zip(claims, outcomes, strict=True)
        for row in _rows(claim, each, [next(corrected) for _ in each])
    ]
    return pl.DataFrame(rows, schema=CLAIM_SCHEMA, orient="row")


def _outcomes(claim: Claim, table: pl.DataFrame) -> list[Outcome]:
    """What each test of a claim found."""
    for name, value in (("dataset", claim.dataset), ("model", claim.model)):
        if value is not None:
            table = table.filter(pl.col(name) == value)
    table = table.filter(pl.col("recipe").is_not_null() & pl.col("seed").is_not_null())
    problem = _problem(table)
    return [Outcome(note=problem) if problem else _outcome(test, table) for _, test in claim.tests]


def _rows(claim: Claim, outcomes: Sequence[Outcome], corrected: Sequence[float | None]) -> Iterator[dict[str, Any]]:
    """The rows of one claim."""
    common = {key: getattr(claim, key) or None for key in ("source", "statement", "differs", "assumptions")}
    common = {"claim": claim.name, **common}
    parts = []
    for (label, test), outcome, p_holm in zip(claim.tests, outcomes, corrected, strict=True):
        found = {key: value for key, value in outcome._asdict().items() if key in CLAIM_SCHEMA}
        verdicts = {"verdict": _verdict(p_holm, outcome.side), "alone": outcome.verdict}
        parts.append(
            {**common, "part": label, "test": str(test), **verdicts, "p": outcome.p, "p_holm": p_holm, **found}
        )
    if len(parts) == 1:
        yield {**parts[0], "part": None}
        return
    sides, each = [outcome.side for outcome in outcomes], [outcome.p for outcome in outcomes]
    p, side = joint(each, holm(each), sides)
    p_holm, side_holm = joint(corrected, corrected, sides)
    verdicts = {"verdict": _verdict(p_holm, side_holm), "alone": _verdict(p, side)}
    yield {**common, **verdicts, "p": p, "p_holm": p_holm}
    yield from parts


def _verdict(p: float | None, side: str) -> str:
    return side if p is not None and p < ALPHA else NOT_DECIDED


def joint(
    each: Sequence[float | None], corrected: Sequence[float | None], sides: Sequence[str]
) -> tuple[float | None, str]:
    """The p-value of a claim that holds if all its parts do, and the verdict it is of.

    Args:
        each: The parts' p-values, for the claim: the largest counts, if all parts are on its side.
        corrected: The same, corrected for their number, against it: the smallest counts of those that are not.
        sides: The verdict that each would be.
    """
    against = [p for p, side in zip(corrected, sides, strict=True) if p is not None and side == CONTRADICTED]
    if against:
        return min(against), CONTRADICTED
    known = [p for p in each if p is not None]
    if len(known) < len(each):
        return None, NOT_DECIDED  # a part that can't be judged
    return max(known), SUPPORTED


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
        return Outcome(note=str(missing))


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
        raise GeophoneError(
            f"{path} has other columns than this version writes. Run the study's command again: it trains nothing that "
            "is done, and judges the claims anew."
        )
    return claims
