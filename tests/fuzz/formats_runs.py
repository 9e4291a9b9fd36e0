"""What a study leaves in its folder: shards, verdicts, networks, states of trainings, and the JSON files beside them.

Where only bytes were damaged, the values are those that were written or the file is refused: nobody notices a number
that rotted. Where a file was written anew with other contents, what is read has the right form.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor, nn

from geophone.analysis.claims import read_claims, write_claims
from geophone.analysis.claims.judge import CLAIM_SCHEMA, CLAIMS
from geophone.core import table
from geophone.core.provenance import FILE, now, write_provenance
from geophone.data import ImageData, synthetic
from geophone.models.load import CARD, WEIGHTS, load_model, save_network
from geophone.models.networks import small_cnn
from geophone.models.run import seeded
from geophone.report import _read_provenance
from geophone.report.page import _provenance
from geophone.study import run_study
from geophone.train import Standard, Training, fit
from tests.fuzz.harness import Case, Format, Mutator, register
from tests.fuzz.mutate import TEXTS, any_bytes, any_json, any_zip, chosen, other_thing

WRITTEN_ANEW = "written anew"
"""The fact of a case in which a file has other contents, not only damage."""


def anew(mutator: Mutator) -> Mutator:
    """A mutator that writes a file anew, with other contents that may be in order."""

    def mutating(case: Case) -> str:
        case.facts[WRITTEN_ANEW] = True
        return mutator(case)

    return mutating


# --- tables ----------------------------------------------------------------------------------------------------------
def _rows() -> pl.DataFrame:
    """A shard of some hundred rows with everything in it."""
    return table.frame(
        {
            **{"job": "0f" * 8, "dataset": "synthetic", "model": "small_cnn", "recipe": "Standard", "seed": 0},
            **{"family": "noise", "perturbation": "GaussianNoise", "level": level / 10, "epoch": 2},
            **{"layer": f"relu{depth}", "depth": depth, "metric": "participation_ratio", "n": 60, "d": 8},
            "value": None if depth == 3 else 1 / (1 + depth + level),
            **({"low": 0.1, "high": 0.9} if level else {}),
            "note": "20 of 60 examples — too few" if depth == 3 else None,
        }
        for level in range(12)
        for depth in range(12)
    )


def _verdicts() -> pl.DataFrame:
    filled = {pl.String: "alpha below 0", pl.Float64: 0.25, pl.Int64: 5, pl.Boolean: True}
    names = {name: [filled[kind], None, filled[kind]] for name, kind in CLAIM_SCHEMA.items()}
    return pl.DataFrame(names, schema=CLAIM_SCHEMA)


def _columns(pattern: str) -> Mutator:
    """A Parquet file with columns gone, more, of other names, types or values, and no rows or very many."""

    def mutator(case: Case) -> str:
        path, draw = chosen(case, pattern), case.draw
        frame = _verdicts() if path.name == CLAIMS else _rows()
        name = draw.choice(frame.columns)
        what = draw.choice(("drop", "rename", "more", "cast", "cast", "number", "text", "no rows", "nested", "nothing"))
        if what == "drop":
            frame = frame.drop(name)
        elif what == "rename":
            frame = frame.rename({name: draw.choice((*TEXTS[:12], name.upper()))})
        elif what == "more":
            frame = frame.with_columns(more=pl.lit(draw.choice(TEXTS)))
        elif what == "cast":
            kind = draw.choice((pl.String, pl.Float32, pl.Float64, pl.Int8, pl.UInt64, pl.Boolean, pl.Binary, pl.Null))
            frame = frame.with_columns(pl.lit(None).cast(kind).alias(name))
        elif what == "number":
            number = draw.choice((float("nan"), float("inf"), -float("inf"), 1e300, -0.0, 5e-324))
            names = [one for one, kind in frame.schema.items() if kind == pl.Float64]
            frame = frame.with_columns(pl.lit(number).alias(draw.choice(names or frame.columns)))
        elif what == "text":
            names = [one for one, kind in frame.schema.items() if kind == pl.String]
            frame = frame.with_columns(pl.lit(draw.choice(TEXTS)).alias(draw.choice(names)))
        elif what == "no rows":
            frame = frame.clear()
        elif what == "nested":
            frame = frame.with_columns(pl.concat_list(pl.col(name)).alias(name))
        else:
            frame = pl.DataFrame()
        how = draw.choice(("zstd", "uncompressed", "snappy", "gzip", "lz4"))
        if path.is_dir():
            return "nothing: a folder is in the way"
        path.unlink(missing_ok=True)
        frame.write_parquet(path, compression=how)
        return f"{what} of {name}, {how}"

    return anew(mutator)


def _table(schema: dict[str, Any], wanted: Callable[[], pl.DataFrame]) -> Callable[[Case, Any], str | None]:
    def right(case: Case, found: pl.DataFrame | None) -> str | None:
        if found is None:
            return None if not (case.folder / CLAIMS).is_file() else "no verdicts read from a file that is there"
        if dict(found.schema) != schema:
            return "other columns than a table's"
        numbers = found.select(pl.col(pl.Float64) if schema == table.SCHEMA else [])
        if any((numbers[name].is_nan() | numbers[name].is_infinite()).any() for name in numbers.columns):
            return "NaN or infinite values"
        if case.facts.get(WRITTEN_ANEW):
            return None
        return None if found.equals(wanted()) else "other values than were written"

    return right


def _sorted_rows() -> pl.DataFrame:
    return _rows().sort(table.KEYS, nulls_last=False, maintain_order=True)


register(
    Format(
        name="shard",
        make=lambda folder: table.write(_rows(), folder / "table" / "0.parquet"),
        use=lambda case: table.read(case.folder / "table"),
        right=_table(table.SCHEMA, _sorted_rows),
        mutators=(*(any_bytes("*.parquet"),) * 4, other_thing("*.parquet"), _columns("*.parquet")),
    )
)

register(
    Format(
        name="claims-file",
        make=lambda folder: write_claims(_verdicts(), folder),
        use=lambda case: read_claims(case.folder),
        right=_table(CLAIM_SCHEMA, _verdicts),
        mutators=(*(any_bytes(CLAIMS),) * 4, other_thing(CLAIMS), _columns(CLAIMS)),
    )
)


# --- networks --------------------------------------------------------------------------------------------------------
ARGUMENTS = {"classes": 3, "mean": [0.5], "std": [0.25], "width": 2}


def _network() -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return small_cnn(**ARGUMENTS).eval()


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(found: nn.Module, wanted: nn.Module) -> str | None:
    mine, theirs = found.state_dict(), wanted.state_dict()
    if set(mine) != set(theirs):
        return "another network"
    other = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    return f"other values in {other[0]}" if other else None


register(
    Format(
        name="job-folder",
        make=lambda folder: save_network(_network(), folder / "job", "small_cnn", ARGUMENTS),
        use=lambda case: load_model(case.folder / "job"),
        right=lambda case, model: _same(model, _network()),
        mutators=(
            *(any_bytes(WEIGHTS),) * 3,
            *(any_bytes(CARD),) * 2,
            *(any_json(CARD),) * 3,
            other_thing("job/*"),
        ),
    )
)


# --- states of trainings ---------------------------------------------------------------------------------------------
STATE = "training.pt"
TRAINING = Training(epochs=1, batch_size=8)


@cache
def _images() -> ImageData:
    return synthetic(classes=3, size=8, train=16, val=6, test=6)


def _trained(checkpoint: Path) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A network whose training goes on from the checkpoint; as it is whole, nothing is left to do."""
    model = _network()
    history = fit(model, _images(), Standard(), TRAINING, checkpoint=checkpoint)
    return model, history


def _right_state(case: Case, result: tuple[nn.Module, list[dict[str, Any]]]) -> str | None:
    model, history = result
    if not all(isinstance(record, dict) and {"epoch", "loss", "accuracy"} <= set(record) for record in history):
        return f"a history {history!r:.80}"
    if case.facts.get(WRITTEN_ANEW):
        return None
    wanted, course = _trained(case.seed / STATE)
    return _same(model, wanted) or (None if history == course else "another history")


register(
    Format(
        name="training-state",
        make=lambda folder: _trained(folder / STATE),
        use=lambda case: _trained(case.folder / STATE),
        right=_right_state,
        mutators=(*(any_bytes(STATE),) * 4, other_thing(STATE), anew(any_zip(STATE))),
        seconds=20,
        cases=60,
    )
)


# --- JSON ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Nothing:
    """A study without jobs: what is left is what it says of its folder."""

    question: ClassVar[str] = "Is the folder mine?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None

    def jobs(self) -> list[Any]:
        return []


def _study(case: Case) -> dict[str, Any]:
    run_study(_Nothing(), case.folder / "run", name="nothing")
    return {name: json.loads((case.folder / "run" / name).read_text()) for name in ("study.json", FILE)}


def _right_study(case: Case, found: dict[str, Any]) -> str | None:
    known, made = found["study.json"], found[FILE]
    if [known[key] for key in ("study", "size", "device", "threads")] != ["nothing", "demo", "cpu", 1]:
        return None if case.facts.get(WRITTEN_ANEW) else f"another study was settled: {known}"
    if type(made["seconds"]) is not float or not 0 <= made["seconds"] < 1e9 or not isinstance(made["started"], str):
        return f"a provenance of {made['seconds']!r:.50} seconds since {made['started']!r:.50}"
    return None


def _made_study(folder: Path) -> None:
    run_study(_Nothing(), folder / "run", name="nothing")


register(
    Format(
        name="study-folder",
        make=_made_study,
        use=_study,
        right=_right_study,
        mutators=(
            *(any_bytes("run/*.json"),) * 2,
            *(anew(any_json("run/*.json")),) * 3,
            other_thing("run/*"),
        ),
    )
)


def _made_provenance(folder: Path) -> None:
    sys.argv = ["geophone", "run", "nothing"]  # it is written down, and cases depend on nothing but their number
    write_provenance(
        folder,
        title="Study nothing, size demo",
        question="Why?",
        study="nothing",
        seconds=61.5,
        started=now(),
        device="cpu",
        threads=1,
        seeds=[0, 1],
        jobs=["0f" * 8, "1f" * 8],
        notes=["failed: one"],
    )


def _shown(case: Case) -> dict[str, Any]:
    """The provenance as the report reads it, filters its table by it, and shows it."""
    made = _read_provenance(case.folder / FILE)
    if made.get("jobs"):
        _rows().filter(pl.col("job").is_in(made["jobs"]))
    _provenance(made)
    return made


def _right_provenance(case: Case, made: dict[str, Any]) -> str | None:
    written = json.loads((case.seed / FILE).read_text())
    if case.facts.get(WRITTEN_ANEW):
        return None if isinstance(made["title"], str) else "a title that is no text"
    other = [key for key in written if key in made and made[key] != written[key]]
    return f"another {other[0]}" if other else None


register(
    Format(
        name="provenance",
        make=_made_provenance,
        use=_shown,
        right=_right_provenance,
        mutators=(*(any_bytes(FILE),) * 2, *(anew(any_json(FILE)),) * 4, other_thing(FILE)),
    )
)
