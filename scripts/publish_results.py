"""Write docs/results/STUDY from a finished study's folder: page, figures, table, verdicts; or judge its table anew.

python scripts/publish_results.py runs/selectivity-small docs/results/selectivity
python scripts/publish_results.py --judge docs/results/selectivity      after the rules of claims have changed
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from geophone.analysis.claims import Claim, Measure, judge, read_claims, write_claims
from geophone.analysis.claims.evidence import student
from geophone.analysis.relate import networks
from geophone.core import table as tables
from geophone.core.errors import GeophoneError
from geophone.report import write_report
from geophone.report.words import measure
from geophone.study import find_study

COLUMNS = (
    *("clean_accuracy", "natural_accuracy", "natural_accuracy_relative", "attack_accuracy"),
    *("class_selectivity", "class_selectivity_floor", "eta_squared", "pca_fraction_95", "two_nn"),
    *("input_gradient_cv_samples", "input_gradient_cv_units"),
    *("manifold_capacity", "manifold_radius", "manifold_dimension", "center_correlation"),
)
SHOWN = ("sweep_", "layer_maps", "manifolds_")
SIGNS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "not decided": "? not decided"}
TABLE, SETTINGS = "table.parquet", ("study.json", "provenance.json")
# Rows that are next to each other and alike compress best.
ORDER = [
    "family",
    "metric",
    "perturbation",
    "level",
    "depth",
    "layer",
    "other_depth",
    "other",
    "model",
    "recipe",
    "seed",
]


def publish(folder: Path, target: Path) -> None:
    """Copy what is to last, and write the page that leads to it.

    Raises:
        GeophoneError: the folder's verdicts are not those of its table by this version's rules.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in SETTINGS:
        shutil.copy(folder / name, target / name)
    made = json.loads((folder / "provenance.json").read_text())
    claims = claims_of(target)
    every = tables.read(folder / "table").filter(pl.col("job").is_in(made["jobs"]))
    write_table(lasting(every, claims), target / TABLE)
    judged = judge(claims, tables.read(target / TABLE))
    known = read_claims(folder)
    if claims and (known is None or not known.equals(judged)):
        raise GeophoneError(
            f"the verdicts in {folder} are not those of its table by this version's rules. Run the study's command "
            "again: it trains nothing that is done, and judges the claims anew."
        )
    write_claims(judged, target)
    shutil.copy(write_report(folder), target / "report.html")
    for figure in sorted((folder / "figures").glob("*.svg")):
        if figure.stem.startswith(SHOWN):
            shutil.copy(figure, target / figure.name)
    write_page(target, judged)


def judge_anew(target: Path) -> None:
    """Judge the table of a published study by the rules and claims of this version, and write its page anew."""
    judged = judge(claims_of(target), tables.read(target / TABLE))
    write_claims(judged, target)
    write_page(target, judged, "Verdicts were judged anew from the table; the report shows those of its own day")


def claims_of(target: Path) -> Sequence[Claim]:
    """The claims of the study whose settings lie in a folder, as this version states them."""
    settings, made = (json.loads((target / name).read_text()) for name in SETTINGS)
    words = shlex.split(made["command"].replace("--set=", "--set ").replace("--seeds=", "--seeds "))
    options = list(pairwise(words))
    switches = dict(value.split("=", 1) for option, value in options if option == "--set")
    seeds = [tuple(int(seed) for seed in value.split(",")) for option, value in options if option == "--seeds"]
    study = find_study(settings["study"], settings["size"], seeds[-1] if seeds else None, switches)[1]
    return getattr(study, "claims", tuple)()


def lasting(table: pl.DataFrame, claims: Sequence[Claim]) -> pl.DataFrame:
    """The rows that are committed: all but those that no claim names and that would make the file large.

    Left out are single units, and measures of layers on perturbed images that compare them with nothing (their
    selectivity and dimensionality by themselves), unless a claim reads the measure.
    """
    read = {found.metric for claim in claims for found in _measures(claim.tests)}
    large = pl.col("layer").is_not_null() & pl.col("other").is_null() & (pl.col("family") != "clean")
    return table.filter(pl.col("unit").is_null() & ~(large & ~pl.col("metric").is_in(sorted(read))).fill_null(False))


def _measures(value: Any) -> Iterator[Measure]:
    """Every measure in the fields of a rule, however deep."""
    if isinstance(value, Measure):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _measures(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _measures(getattr(value, field.name))


def write_table(table: pl.DataFrame, path: Path) -> None:
    """One Parquet file, as small as it goes."""
    rows = table.select(list(tables.SCHEMA)).sort([*ORDER, "job"], nulls_last=False, maintain_order=True)
    rows.write_parquet(path, compression="zstd", compression_level=19, statistics=False)


def write_page(target: Path, claims: pl.DataFrame, remark: str = "") -> None:
    """README.md of a published study, from its table, settings and verdicts alone."""
    made = json.loads((target / "provenance.json").read_text())
    rows = tables.read(target / TABLE)
    lines = [
        f"# {made['title']}",
        "",
        f"{made['question']} Made by `scripts/publish_results.py`; what it means is said in [the notes](notes.md).",
        "",
        f"- Command: `{made['command']}`",
        f"- Begun {made['started'][:10]}; {made['networks']} networks, seeds {', '.join(map(str, made['seeds']))}; "
        f"{made['host']}, {made['device']}, {made['threads']} thread(s) a job",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in made['versions'].items())}",
        "- [The report](report.html), with every figure and number; the figures alone are the `.svg` beside it",
        f"- [The table]({TABLE}), {len(rows):,} rows: all but single units, and measures of layers on perturbed images "
        "that no claim reads. `python scripts/publish_results.py --judge` judges it anew",
        *([f"- {remark}"] if remark else []),
        "",
    ]
    if not claims.is_empty():
        lines += ["## Claims", "", *_verdicts(claims), ""]
    lines += ["## By recipe: mean over seeds ± half the 95 % interval (Student's t)", "", *_recipes(networks(rows)), ""]
    pictures = [figure.name for figure in sorted(target.glob("*.svg"))]
    lines += [part for name in pictures for part in (f"![{name}]({name})", "")]
    (target / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _verdicts(claims: pl.DataFrame) -> list[str]:
    """A row for each claim and each of its parts; verdicts with and without correction for how many there are."""
    tests = claims.filter(pl.col("test").is_not_null())["p"].count()
    lines = [
        f"Verdicts are corrected for {tests} tests (Holm): the chance of any false one is at most 5 %. What each says "
        "by itself stands beside it. How: [statistics](../../statistics.md).",
        "",
        "| claim | verdict | by itself | p | p corrected | found [95 %] | networks | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in claims.to_dicts():
        name = (f"**{row['statement']}**" if row["part"] is None else f"— {row['part']}").replace("|", "\\|")
        found = "" if row["value"] is None else f"{row['value']:.3g}"
        if found and row["low"] is not None:
            found += f" [{row['low']:.3g}, {row['high']:.3g}]"
        effect = f" {row['effect']}" if found and row["effect"] else ""
        p = " | ".join("" if row[key] is None else f"{row[key]:.2g}" for key in ("p", "p_holm"))
        sizes = f"{row['networks'] or ''} | {row['seeds'] or ''}"
        lines.append(f"| {name} | {SIGNS[row['verdict']]} | {SIGNS[row['alone']]} | {p} | {found}{effect} | {sizes} |")
    return lines


def _recipes(wide: pl.DataFrame) -> list[str]:
    """A row for each recipe of each data set and model; these are named where there are several."""
    columns = [name for name in COLUMNS if name in wide.columns]
    varied = [name for name in ("dataset", "model") if wide[name].n_unique() > 1]
    heads = " | ".join([*varied, "recipe", "n", *(measure(name).title for name in columns)])
    lines = [f"| {heads} |", "|---" * (len(columns) + len(varied) + 2) + "|"]
    for (dataset, model, recipe), part in wide.group_by("dataset", "model", "recipe", maintain_order=True):
        who = {"dataset": dataset, "model": model}
        cells = [_mean(part[name].drop_nulls().to_list()) for name in columns]
        lines.append(f"| {' | '.join([*(str(who[name]) for name in varied), str(recipe), str(len(part)), *cells])} |")
    return lines


def _mean(values: Sequence[float]) -> str:
    mean, _, high = student(np.array(values))
    if mean is None:
        return "–"
    return f"{mean:.3f}" if high is None else f"{mean:.3f} ± {high - mean:.3f}"


if __name__ == "__main__":
    if sys.argv[1] == "--judge":
        judge_anew(Path(sys.argv[2]))
    else:
        publish(Path(sys.argv[1]), Path(sys.argv[2]))
