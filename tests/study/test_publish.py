"""What is committed of a study: its table, from which alone it can be judged anew, verdicts, and a page by recipe."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from geophone.analysis.claims import Claim, Difference, Measure, Selection, judge, read_claims, write_claims
from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.studies import RobustSimilarity

spec = spec_from_file_location("publish_results", Path(__file__).parents[2] / "scripts" / "publish_results.py")
assert spec is not None
assert spec.loader is not None
publishing = module_from_spec(spec)
spec.loader.exec_module(publishing)

STUDY = RobustSimilarity(size="small")
SCALARS = ("far_similarity", "effective_layers", "block_contrast", "equal_depth_similarity")


def made_up() -> pl.DataFrame:
    """Rows of a study of three models: what its maps give, accuracies, and what is left out of the committed table."""
    rng = np.random.default_rng(0)
    rows = []
    for job in STUDY.jobs():
        who = {"job": job.id, "dataset": "d", "model": job.model, "recipe": job.recipe, "seed": job.seed}
        wide = 0.1 * ("wide" in job.model)
        clean = {**who, "family": "clean", "perturbation": "clean", "level": 0.0}
        rows.append({**clean, "metric": "accuracy", "value": 0.9 - wide + 0.01 * rng.random()})
        rows += [{**clean, "layer": "a", "depth": 0, "metric": "s", "unit": u, "value": rng.random()} for u in range(3)]
        under = {**who, "family": "noise", "perturbation": "N", "level": 1.0, "layer": "a", "depth": 0}
        rows.append({**under, "metric": "s", "value": rng.random()})
        rows.append({**under, "metric": "cka", "other": "clean", "value": rng.random()})
    for one in STUDY.comparisons():
        job, level = one.first, 1.0 if one.perturbation else 0.0
        here = {"job": job.id, "dataset": "d", "model": job.model, "recipe": job.recipe, "seed": job.seed}
        here |= {"family": "similarity", "perturbation": one.compared, "level": level}
        robust = 0.2 * (job.recipe != "Standard")
        rows += [{**here, "metric": name, "value": robust + 0.01 * rng.random()} for name in SCALARS]
        for depth, layer in enumerate("abcdef"):
            layered = {**here, "layer": layer, "depth": depth, "value": robust + 0.01 * rng.random()}
            rows += [{**layered, "metric": name} for name in ("same_layer_similarity", "train_test_gap")]
    return table.frame(rows)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return made_up()


@pytest.fixture
def folder(tmp_path: Path, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished study's folder; its report is another test's."""
    run = tmp_path / "run"
    table.write(rows, run / "table" / "all.parquet")
    (run / "study.json").write_text(json.dumps({"study": "similarity", "size": "small"}))
    provenance = {
        "title": "Study similarity, size small",
        "question": "Do they?",
        "command": "geophone run similarity --size small",
        "versions": {"geophone": "0"},
        "seeds": sorted({job.seed for job in STUDY.jobs()}),
        "jobs": [job.id for job in STUDY.jobs()],
        **{"started": "2026-01-01", "networks": 80, "host": "h", "device": "cpu", "threads": 1},
    }
    (run / "provenance.json").write_text(json.dumps(provenance))
    write_claims(judge(STUDY.claims(), table.read(run / "table")), run)
    page = run / "report.html"
    page.write_text("report")
    monkeypatch.setattr(publishing, "write_report", lambda _: page)
    return run


def test_a_published_table_gives_the_same_verdicts_alone(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs"
    publishing.publish(folder, target)
    verdicts = read_claims(target)
    assert verdicts is not None
    assert verdicts.equals(read_claims(folder))
    assert {"supported", "not decided"} <= set(verdicts["verdict"])
    (target / "claims.parquet").unlink()
    for path in (folder / "table").iterdir():
        path.unlink()
    publishing.judge_anew(target)
    again = read_claims(target)
    assert again is not None
    assert again.equals(verdicts)
    page = (target / "README.md").read_text()
    assert "judged anew" in page
    assert "| p | p corrected |" in page


def test_the_committed_table_has_all_but_units_and_what_no_claim_reads(folder: Path, tmp_path: Path) -> None:
    publishing.publish(folder, tmp_path / "docs")
    kept = table.read(tmp_path / "docs" / "table.parquet")
    every = table.read(folder / "table")
    gone = every.join(
        kept, on=["job", "family", "perturbation", "layer", "metric", "unit"], how="anti", nulls_equal=True
    )
    assert set(gone.select("metric", pl.col("unit").is_null()).unique().rows()) == {("s", True), ("s", False)}
    assert len(kept) + len(gone) == len(every)
    (claim, *_) = STUDY.claims()
    reads_s = Selection(Measure("s", "noise", layers=(0.0, 1.0)), "Standard")
    asked = Claim("x", "s", "s", (("part", Difference(reads_s)),))
    assert "s" in publishing.lasting(every, [claim, asked]).filter(family="noise")["metric"].to_list()


def test_recipes_of_different_models_are_not_pooled(folder: Path, tmp_path: Path) -> None:
    """Half of the standard networks are of another model, which is a tenth less accurate."""
    publishing.publish(folder, tmp_path / "docs")
    lines = (tmp_path / "docs" / "README.md").read_text().splitlines()
    found = {}
    for line in lines[lines.index(next(one for one in lines if one.startswith("| model | recipe"))) + 2 :]:
        if not line.startswith("|"):
            break
        model, recipe, n, accuracy, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found[model, recipe] = int(n), float(accuracy.split()[0])
    standard = {model: value for (model, recipe), value in found.items() if recipe == "Standard"}
    assert len(standard) == 3
    assert standard["small_cnn"] == (10, pytest.approx(0.905, abs=0.003))
    assert all(value == (5, pytest.approx(0.805, abs=0.003)) for model, value in standard.items() if "wide" in model)


def test_one_model_needs_no_column(folder: Path) -> None:
    wide = publishing.networks(table.read(folder / "table").filter(pl.col("model") == "small_cnn"))
    assert publishing._recipes(wide)[0].startswith("| recipe | n | Clean accuracy")


def test_verdicts_of_other_rules_are_not_published(folder: Path, tmp_path: Path) -> None:
    verdicts = read_claims(folder)
    assert verdicts is not None
    write_claims(verdicts.with_columns(verdict=pl.lit("supported")), folder)
    with pytest.raises(GeophoneError, match="not those of its table by this version's rules"):
        publishing.publish(folder, tmp_path / "docs")


def test_a_study_with_seeds_and_switches_of_its_own_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"study": "selectivity", "size": "small"}))
    command = "geophone run selectivity --size small --seeds=3,4 --set reduce=positions"
    (tmp_path / "provenance.json").write_text(json.dumps({"command": command}))
    (claim, *_) = (c for c in publishing.claims_of(tmp_path) if c.name == "lower selectivity, more clean dimensions")
    assert "its place in an image" in claim.assumptions
    assert "2 seeds" in claim.differs
