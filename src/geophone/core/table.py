"""The one table: long, typed, append-only. Everything that Geophone finds out is a row of it.

    job, dataset, model, recipe, seed, epoch | family, perturbation, level | layer, depth, other, other_depth
    | metric, unit | value, low, high, n, d | note

- `perturbation` is "clean" with level 0 for the unperturbed images; `family` is clean, noise, corruption or attack.
- `layer` is null for what belongs to the whole network; `depth` is the layer's place in the order of execution, from 0.
- `other` names the second stream of a comparison: "clean" where responses to perturbed images are compared to clean.
  Where all layers are compared with all, it is a layer of the second stream, and `other_depth` its place there.
- `unit` is null unless the value belongs to one unit (channel) of the layer.
- `low` and `high` bound a 95 % interval where the metric has one.
- `n` examples and `d` units went into the value: half of these estimators are biased in n/d.
- An undefined value is null, never 0, and `note` says why.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from geophone.core.checksums import parquet, read_parquet
from geophone.core.errors import GeophoneError
from geophone.core.files import replacing

EOT = "eot_draws"
"""The metric that says over how many draws of a network's noise an attack averaged each gradient."""

NAN = "came out as NaN"
"""The note of a value that was computed and is none, where no better reason was given."""

SCHEMA: dict[str, Any] = {
    "job": pl.String,
    "dataset": pl.String,
    "model": pl.String,
    "recipe": pl.String,
    "seed": pl.Int64,
    "epoch": pl.Int64,
    "family": pl.String,
    "perturbation": pl.String,
    "level": pl.Float64,
    "layer": pl.String,
    "depth": pl.Int64,
    "other": pl.String,
    "other_depth": pl.Int64,
    "metric": pl.String,
    "unit": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "d": pl.Int64,
    "note": pl.String,
}

KEYS = [
    *("job", "dataset", "model", "recipe", "seed", "epoch", "family", "perturbation", "level"),
    *("depth", "layer", "other_depth", "other", "metric", "unit"),
]


def frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a table: missing columns are null, NaN becomes null and says so, infinities are an error.

    Raises:
        GeophoneError: a value is infinite.
    """
    made = pl.DataFrame(list(rows), schema=SCHEMA, orient="row", strict=True)
    made = made.with_columns(
        pl.col("value", "low", "high").fill_nan(None),
        note=pl.when(pl.col("value").is_nan() & pl.col("note").is_null()).then(pl.lit(NAN)).otherwise("note"),
    )
    infinite = made.filter(pl.any_horizontal(pl.col("value", "low", "high").is_infinite()))
    if len(infinite):
        raise GeophoneError(f"the metric {infinite['metric'][0]!r} is infinite. It should raise geophone.Undefined.")
    return made


def labelled(table: pl.DataFrame, columns: Mapping[str, Any]) -> pl.DataFrame:
    """The same rows with these values in these columns."""
    return table.with_columns(pl.lit(value, SCHEMA[name]).alias(name) for name, value in columns.items())


def empty() -> pl.DataFrame:
    """A table without rows."""
    return pl.DataFrame(schema=SCHEMA)


def write(table: pl.DataFrame, path: Path) -> None:
    """Write one shard, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(as_bytes(table))


def as_bytes(table: pl.DataFrame) -> bytes:
    """A shard as it is written."""
    return parquet(table.select(list(SCHEMA)))


def read(path: Path) -> pl.DataFrame:
    """Read a table: one Parquet file, or every `*.parquet` shard of a folder, in the order of `KEYS`.

    Raises:
        GeophoneError: nothing is there, a shard is corrupt or not what was written, or it has other columns.
    """
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not shards or not all(shard.is_file() for shard in shards):
        raise GeophoneError(f"no table at {path}. A study or scan writes one; `geophone run demo` makes an example.")
    return in_order(pl.concat([_read_shard(shard) for shard in shards]))


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """The rows in the order in which a table is read."""
    return table.sort(KEYS, nulls_last=False, maintain_order=True)


def is_whole(path: Path) -> bool:
    """Whether a shard is what was written."""
    try:
        _read_shard(path)
    except GeophoneError:
        return False
    return True


def _read_shard(path: Path) -> pl.DataFrame:
    shard = read_parquet(path, "Delete it and run the same command again.")
    if "other_depth" not in shard.columns:  # written before all layers were compared with all
        shard = shard.with_columns(other_depth=pl.lit(None, pl.Int64))
        shard = shard.select([name for name in dict.fromkeys((*SCHEMA, *shard.columns)) if name in shard.columns])
    if dict(shard.schema) != SCHEMA:
        wrong = sorted(set(shard.columns) ^ set(SCHEMA)) or "types"
        raise GeophoneError(
            f"the table shard {path} has other columns than this version writes ({wrong}). Run the study anew."
        )
    numbers = shard.select("level", "value", "low", "high")
    if not numbers.select(pl.all_horizontal(pl.all().is_finite().all(ignore_nulls=True))).item():
        raise GeophoneError(f"the table shard {path} has NaN or infinite values. Run the study anew.")
    return shard
