"""The geometry study: what it expands to, that its claims read what its jobs measure, and that a job runs."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from geophone.analysis.claims import Claim, Difference, Measure, Selection, judge
from geophone.analysis.relate import networks as networks_of
from geophone.core import table
from geophone.core.registry import MODELS, RECIPES, parse_call
from geophone.models.tap import layers_of
from geophone.perturb import grid
from geophone.perturb.parse import family_name, level_of
from geophone.probes.exemplars import PIXELS
from geophone.report import write_report
from geophone.report.figures.sweep import _tradeoff, sweep_of
from geophone.report.findings import findings
from geophone.report.sections.manifolds import manifold_figures
from geophone.studies import PopulationGeometry
from geophone.studies.geometry import CLASS_METRICS, one_step
from geophone.study import Job, run_job, run_study
from geophone.testing.contracts import broken_contracts
from geophone.train import Training

EXEMPLAR_METRICS = (
    "exemplar_capacity",
    "exemplar_radius",
    "exemplar_dimension",
    "exemplar_width",
    "clean_separability",
)

TINY = Job(
    dataset="synthetic(classes=3, size=12, train=96, val=24, test=30)",
    model="small_cnn(width=2)",
    recipe="Standard",
    seed=0,
    training=Training(epochs=1, batch_size=32, keep="last"),
    perturbations=("LinfPGD(eps=8/255, steps=1)",),
    layers=("relu1", "head"),
    metrics=("accuracy", *CLASS_METRICS),
    exemplars=("RandomSign(eps=0.1)", one_step("8/255")),
    exemplar_images=6,
    exemplar_copies=8,
    features=40,
)


def networks(study):
    """One job of each network, and its layers as they are recorded."""
    for job in study.jobs():
        if job.seed == study.seen[0]:
            name, given = parse_call(RECIPES.build(job.recipe).network(job.model), "model")
            mean = (0.5,) * (3 if job.dataset == "cifar10" else 1)
            yield job.resolved(), layers_of(MODELS.build(name, classes=10, mean=mean, std=mean, **given), job.layers)


def rows_of(job, layers, rng):
    """Made-up rows for what a job measures."""
    who = {"job": job.id, "dataset": "d", "model": job.model, "recipe": job.recipe, "seed": job.seed}
    shaken, copied = (
        [(p.family, family_name(p), level_of(p)) for t in some for p in grid(t)]
        for some in (job.perturbations, job.exemplars)
    )
    for family, name, level in (("clean", "clean", 0.0), *shaken):
        here = {**who, "family": family, "perturbation": name, "level": level}
        # The standard network keeps half of its accuracy under the second of three attacks.
        value = {"clean": 0.88, "noise": 0.8, "attack": 0.88 - 14.3 * level + 0.05 * rng.random()}[family]
        yield {**here, "metric": "accuracy", "value": max(0.01, value), "low": 0.0, "high": 1.0}
        for depth, layer in enumerate(layers):
            for metric in CLASS_METRICS:
                yield {**here, "layer": layer, "depth": depth, "metric": metric, "value": rng.random()}
    for family, name, level in copied:
        here = {**who, "family": family, "perturbation": name, "level": level}
        for depth, layer in enumerate((PIXELS, *layers), start=-1):
            for metric in EXEMPLAR_METRICS:
                yield {**here, "layer": layer, "depth": depth, "metric": metric, "value": rng.random()}


def made_up(study, seeds=2):
    rng = np.random.default_rng(0)
    shown = {(job.model, job.recipe): layers for job, layers in networks(study)}
    jobs = [job.resolved() for job in study.jobs() if job.seed < seeds]
    return table.frame(row for job in jobs for row in rows_of(job, shown[job.model, job.recipe], rng))


def test_contract():
    assert broken_contracts("studies", "geometry") == []


@pytest.mark.parametrize("size", ["demo", "small", "full"])
def test_it_expands_to_jobs_that_can_run(size):
    study = PopulationGeometry(size=size)
    jobs = study.jobs()
    assert len({job.resolved().id for job in jobs}) == len(jobs)
    for job, layers in networks(study):
        first = job.model == study.setting["model"]
        assert not first or tuple(layers) == study.setting["layers"]
    assert {job.seed for job in PopulationGeometry(size, seeds=(7,)).jobs()} == {7}


@pytest.mark.parametrize("size", ["demo", "small", "full"])
def test_every_name_in_the_claims_is_one_of_the_study(size):
    """Judged by rows of everything that the jobs measure, no claim lacks any; a wrong name would."""
    study = PopulationGeometry(size=size)
    rows = made_up(study)
    lacking = judge(study.claims(), rows).filter(pl.col("note").fill_null("").str.contains("no rows"))
    # Which radius is near half is the data's to say; at `full` the made-up accuracies are near half nowhere.
    assert [note for note in lacking["note"] if "near half" not in note] == []
    wrong = Measure("exemplar_widht", "attack", layers=(0.0, 1.0))
    test = Difference(Selection(wrong, study.setting["adversarial"]), Selection(wrong, "Standard"))
    claim = Claim("x", "y", "z", (("w", test),), model=study.setting["model"])
    assert "no rows" in judge([claim], rows)["note"][0]


@pytest.mark.parametrize("size", ["small", "full"])
def test_claims_read_the_layers_that_they_name(size):
    """A number at each layer tells which layers a measure means: those from the noise on, at it, and after it."""
    study = PopulationGeometry(size=size)
    layers = study.setting["layers"]
    job = study.job("Standard", 0).resolved()
    who = {"job": job.id, "dataset": "d", "model": job.model, "recipe": "Standard", "seed": 0}
    read = {}
    for claim in study.claims():
        for label, test in claim.tests:
            measure = test.a.measure if isinstance(test, Difference) else None
            if measure is None or measure.layers in (None, (0.0, 1.0)):
                continue
            names = (PIXELS, *layers) if "exemplar" in measure.metric or "clean_" in measure.metric else layers
            read[claim.name, label] = _chosen(who, measure, names)
    assert read["noise expands exemplar manifolds", "width, attacked"] == layers[1:]
    assert read["noise enlarges class manifolds", "radius"] == layers[1:]
    assert read["the noisy layer scatters classes", "capacity"] == ("relu1",)
    assert read["after the noise exemplar manifolds are no larger", "capacity"] == layers[2:]


def _chosen(who, measure, names):
    from geophone.analysis.claims.measures import _layers

    rows = table.frame({**who, "layer": name, "depth": depth} for depth, name in enumerate(names))
    return tuple(_layers(rows, *measure.layers))


def test_a_job_measures_both_kinds_of_manifolds(tmp_path):
    rows = table.read(run_job(TINY, tmp_path).parent)
    layers = rows.filter(pl.col("metric") == "exemplar_width")["layer"].unique().to_list()
    assert sorted(layers) == ["head", PIXELS, "relu1"]
    assert rows.filter(pl.col("metric") == "manifold_capacity")["layer"].unique().sort().to_list() == ["head", "relu1"]
    # Layers stand at the same depth in both, whose axis they share.
    depths = rows.filter(pl.col("layer") == "relu1")["depth"].unique().to_list()
    assert depths == [0]
    again = replace(TINY, exemplars=())
    assert again.id != TINY.id


def test_figures_show_the_strength_that_the_claims_are_about():
    study = PopulationGeometry(size="small")
    figures = manifold_figures(findings(made_up(study)))
    lines = {row["series"].partition(" · ")[0] for row in figures["manifolds_class"]["concat"][0]["data"]["values"]}
    assert lines & set(study.sweep()) == {study.noise(study.setting["central"])}


def test_a_mean_over_layers_is_over_the_same_ones_in_every_condition():
    """Copies of clean images are one point before the noise: equal widths in each layer must give equal means."""
    study = PopulationGeometry(size="small")
    rows = made_up(study).filter(pl.col("metric").is_in(["accuracy", "exemplar_width"]))
    place = pl.col("depth").cast(pl.Float64)
    width = pl.col("metric") == "exemplar_width"
    rows = rows.with_columns(value=pl.when(width).then(place).otherwise("value"))
    before = width & (pl.col("family") == "clean") & (pl.col("depth") < 2)
    rows = rows.with_columns(value=pl.when(before).then(None).otherwise("value"))
    (panel,) = (
        rows
        for spec, rows in filter(None, _tradeoff(sweep_of(findings(rows).table)))
        if "width" in str(spec["title"]).lower()
    )
    assert len({round(row["value"], 9) for row in panel}) == 1
    assert "exemplar_width" not in networks_of(rows).columns


def test_figures_of_the_study(tmp_path):
    found = findings(made_up(PopulationGeometry(size="small")))
    figures = manifold_figures(found)
    assert set(figures) == {"manifolds_class", "manifolds_exemplar", "manifolds_overlap"}
    sweep = sweep_of(found.table)
    assert sweep is not None
    assert sweep.values == [0, 0.5, 1, 2, 4, 8, 16]
    lines = {row["series"] for row in figures["manifolds_class"]["concat"][0]["data"]["values"]}
    assert len(lines) == 1 + 1 + 1 + 4  # standard, adversarial, the middle strength and the others


def test_the_smallest_study_runs_and_reports(tmp_path):
    class Small(PopulationGeometry):
        def jobs(self):
            noisy = "Stochastic(std={}, layer='relu1')"
            return [replace(TINY, recipe=r) for r in ("Standard", *(noisy.format(s) for s in (1, 2, 4)))]

    out = run_study(Small(), tmp_path, name="geometry", threads=1)
    page = write_report(out).read_text()
    assert 'id="manifolds"' in page
    assert (out / "figures" / "sweep_tradeoff.svg").is_file()
