"""Write docs/results/STUDY from a finished study's folder: page, figures, a table by recipe, and the verdicts.

python scripts/publish_results.py runs/selectivity-small docs/results/selectivity
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from geophone import table as tables
from geophone.claims import read_claims
from geophone.claims.rules import student
from geophone.relate import networks
from geophone.report import write_report
from geophone.report.words import measure

COLUMNS = (
    *("clean_accuracy", "natural_accuracy", "natural_accuracy_relative", "attack_accuracy"),
    *("class_selectivity", "class_selectivity_floor", "eta_squared", "pca_fraction_95", "two_nn"),
    *("input_gradient_cv_samples", "input_gradient_cv_units"),
    *("manifold_capacity", "manifold_radius", "manifold_dimension", "center_correlation"),
)
SHOWN = ("sweep_", "layer_maps", "manifolds_")
SIGNS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "not decided": "? not decided"}


def publish(folder: Path, target: Path) -> None:
    """Copy what is to last, and write the page that leads to it."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(write_report(folder), target / "report.html")
    for figure in sorted((folder / "figures").glob("*.svg")):
        if figure.stem.startswith(SHOWN):
            shutil.copy(figure, target / figure.name)
    made = json.loads((folder / "provenance.json").read_text())
    rows = tables.read(folder / "table").filter(pl.col("job").is_in(made["jobs"]))
    wide = networks(rows)
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
        "",
    ]
    claims = read_claims(folder)
    if claims is not None:
        lines += ["## Claims", "", *_verdicts(claims), ""]
    lines += ["## By recipe: mean over seeds ± half the 95 % interval (Student's t)", "", *_recipes(wide), ""]
    pictures = [figure.name for figure in sorted(target.glob("*.svg"))]
    lines += [part for name in pictures for part in (f"![{name}]({name})", "")]
    (target / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _verdicts(claims: pl.DataFrame) -> list[str]:
    lines = ["| claim | verdict | found [95 %] | networks | seeds |", "|---|---|---|---|---|"]
    for row in claims.to_dicts():
        name = (f"**{row['statement']}**" if row["part"] is None else f"— {row['part']}").replace("|", "\\|")
        found = "" if row["value"] is None else f"{row['value']:.3g}"
        if found and row["low"] is not None:
            found += f" [{row['low']:.3g}, {row['high']:.3g}]"
        effect = f" {row['effect']}" if found and row["effect"] else ""
        sizes = (row["networks"] or "", row["seeds"] or "")
        lines.append(f"| {name} | {SIGNS[row['verdict']]} | {found}{effect} | {sizes[0]} | {sizes[1]} |")
    return lines


def _recipes(wide: pl.DataFrame) -> list[str]:
    columns = [name for name in COLUMNS if name in wide.columns]
    heads = " | ".join(measure(name).title for name in columns)
    lines = [f"| recipe | n | {heads} |", "|---" * (len(columns) + 2) + "|"]
    for (recipe,), part in wide.group_by("recipe", maintain_order=True):
        cells = " | ".join(_mean(part[name].drop_nulls().to_list()) for name in columns)
        lines.append(f"| {recipe} | {len(part)} | {cells} |")
    return lines


def _mean(values: Sequence[float]) -> str:
    mean, _, high = student(np.array(values))
    if mean is None:
        return "–"
    return f"{mean:.3f}" if high is None else f"{mean:.3f} ± {high - mean:.3f}"


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
