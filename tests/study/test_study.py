"""Studies, jobs, and running them: what was finished is never done again, and the table is always the same."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock

from geophone.analysis.claims import Claim, Correlation, Difference, Measure, Selection, judge, read_claims
from geophone.core import table
from geophone.core.checksums import read_json, write_json
from geophone.core.errors import GeophoneError
from geophone.core.registry import STUDIES
from geophone.core.types import describe
from geophone.metrics import default_metrics, metric
from geophone.models import load_model
from geophone.perturb import grid
from geophone.perturb.parse import family_name, fitted, level_of
from geophone.report import write_report
from geophone.stats import Moments
from geophone.studies import Demo, RobustSimilarity, Selectivity
from geophone.studies.selectivity import SelectivityTinyImageNet
from geophone.study import Comparison, Job, LayerMap, find_study, process_executor, run_job, run_study
from geophone.testing.contracts import broken_contracts
from geophone.train import Training

execute, job_module = (import_module(f"geophone.study.{name}") for name in ("execute", "tasks"))

TINY = Job(
    dataset="synthetic(classes=3, size=12, train=96, val=24, test=30)",
    model="small_cnn(width=2)",
    recipe="Standard",
    seed=0,
    training=Training(epochs=2, batch_size=32),
    perturbations=("GaussianNoise", "FGSM(eps=0.1)"),
)


@dataclass(frozen=True)
class Tiny:
    """A study of seconds."""

    question: ClassVar[str] = "Does it run?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None

    def jobs(self):
        return [
            replace(TINY, seed=seed, recipe=r) for seed in self.seeds or (0, 1) for r in ("Standard", "NoiseAugmented")
        ]


@pytest.mark.parametrize("name", list(STUDIES))
def test_contract(name):
    assert broken_contracts("studies", name) == []


def test_every_size_of_the_demo_expands():
    for size, seeds in (("demo", 2), ("small", 5), ("full", 10)):
        jobs = Demo(size=size).jobs()
        assert len(jobs) == 7 * seeds
        for job in jobs:
            job.resolved()
    assert {job.seed for job in Demo(seeds=(7,)).jobs()} == {7}


def test_the_id_is_the_hash_of_the_content():
    assert TINY.id == replace(TINY).id
    others = [
        *(replace(TINY, seed=1), replace(TINY, recipe="NoiseAugmented"), replace(TINY, images=20)),
        *(replace(TINY, training=Training(epochs=3, batch_size=32)), replace(TINY, perturbations=("FGSM",))),
    ]
    assert len({job.id for job in [TINY, *others]}) == 6


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "smal_cnn", "unknown model 'smal_cnn'. Did you mean 'small_cnn'"),
        ("recipe", "Standart", "Did you mean 'Standard'"),
        ("perturbations", ("Gaussian",), "unknown perturbation 'Gaussian'"),
        ("metrics", ("ckaa",), "unknown metric 'ckaa'"),
        ("reduce", "mean", "unknown reduction 'mean'"),
    ],
)
def test_what_is_not_registered_is_found_before_any_work(field, value, message, tmp_path):
    with pytest.raises(GeophoneError, match=message):
        replace(TINY, **{field: value}).resolved()


def test_a_job_writes_its_rows_and_its_network(tmp_path):
    shard = run_job(TINY, tmp_path)
    rows = table.read(tmp_path / "table")
    assert shard == TINY.shard(tmp_path)
    assert set(rows["job"]) == {TINY.id}
    assert rows["perturbation"].drop_nulls().unique().sort().to_list() == ["FGSM", "GaussianNoise", "clean"]
    assert len(rows.filter(pl.col("metric") == "training_loss")) == 2
    measured = rows.filter(pl.col("family").is_not_null())["epoch"].unique().to_list()
    course = rows.filter(pl.col("metric") == "validation_accuracy").sort("epoch")["value"].to_list()
    assert measured == [course.index(max(course)) + 1]
    model = load_model(TINY.folder(tmp_path))
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 12, 12)).shape == (1, 3)
    assert sorted(p.name for p in TINY.folder(tmp_path).iterdir()) == ["job.json", "model.safetensors", "network.json"]


def test_a_job_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    run_job(TINY, tmp_path)
    monkeypatch.setattr(job_module, "fit", None)
    assert run_job(TINY, tmp_path) == TINY.shard(tmp_path)


def test_only_some_images(tmp_path):
    run_job(replace(TINY, images=12), tmp_path)
    rows = table.read(tmp_path / "table")
    assert rows.filter(pl.col("metric") == "accuracy")["n"].unique().to_list() == [12]


def whole(folder, **options):
    return table.read(run_study(Tiny(), folder, name="tiny", threads=1, **options) / "table")


def test_a_study_gives_the_same_table_however_it_runs(tmp_path):
    """In this process, in threads' order of chance, and in two spawned processes."""
    first = whole(tmp_path / "a")
    assert first["job"].n_unique() == 4
    again = whole(tmp_path / "a")
    assert again.equals(first)
    news = []
    with process_executor(2, lambda *what: news.append(what)) as pool:
        assert whole(tmp_path / "b", executor=pool).equals(first)
    ends = {what for what, done, steps in news if done == steps}
    assert {f"{recipe}, seed {seed}: done" for recipe in ("Standard", "NoiseAugmented") for seed in (0, 1)} <= ends
    made = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert made["seeds"] == [0, 1]
    assert made["networks"] == 4
    assert made["question"] == "Does it run?"


class Stop(BaseException):
    """Like Ctrl-C: not an ordinary error."""


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("wanted"))


@pytest.mark.parametrize("at", [1, 4, 8, 13])
def test_interrupted_in_the_middle_it_ends_the_same(tmp_path, wanted, at):
    calls = []

    def stop(stage, done, steps):
        calls.append(stage)
        if len(calls) == at:
            raise Stop

    with pytest.raises(Stop):
        whole(tmp_path / "b", progress=stop)
    assert whole(tmp_path / "b").equals(wanted)


@dataclass(frozen=True)
class Changed(Tiny):
    """The same study after an edit: another recipe."""

    def jobs(self):
        return [replace(TINY, seed=seed, recipe=r) for seed in (0, 1) for r in ("Standard", "NoiseAugmented(std=0.3)")]


def test_rows_of_an_edited_study_are_left_out_of_its_report(tmp_path):
    whole(tmp_path)
    run_study(Changed(), tmp_path, name="tiny", threads=1)
    assert table.read(tmp_path / "table")["job"].n_unique() == 6
    page = write_report(tmp_path).read_text()
    assert "NoiseAugmented(std=0.3)" in page
    assert '"NoiseAugmented"' not in page


def test_what_is_left_to_defaults_is_part_of_the_id():
    """So a new metric of a plug-in is not missed in a folder where the study was done before."""
    resolved = TINY.resolved()
    assert resolved.metrics == default_metrics()
    assert len(resolved.perturbations) == 5
    assert resolved.resolved() == resolved
    assert replace(TINY, perturbations=("noise", "GaussianNoise(std=0.1)")).resolved().perturbations == tuple(
        dict.fromkeys(describe(p, keep=("std", "width", "amount", "eps")) for p in grid("noise"))
    )

    @metric(Moments)
    def another(moments):
        return 1.0

    assert TINY.resolved().id != resolved.id


@dataclass(frozen=True)
class Compared(Tiny):
    """A study whose networks are set side by side, and which has a claim to judge."""

    def comparisons(self):
        jobs = self.jobs()
        return [Comparison(jobs[0], jobs[1])]

    def claims(self):
        what = Selection(Measure("class_selectivity"), "*alpha=1)"), Selection(Measure("class_selectivity"), "Standard")
        return [Claim("raises", "ours", "Alpha above 0 raises selectivity.", (("SI", Difference(*what)),))]


def test_networks_are_compared_and_claims_judged_when_all_are_trained(tmp_path):
    study, counts = Compared(), []
    run_study(study, tmp_path, finished=lambda done, every: counts.append((done, every)))
    assert counts[-1] == (5, 5)
    first, second = (job.resolved() for job in study.jobs()[:2])
    rows = table.read(tmp_path / "table").filter(pl.col("family") == "networks")
    assert set(rows["job"]) == {first.id}
    assert set(rows["other"]) == {second.label}
    assert set(rows["metric"]) == {"cka", "pwcca"}
    judged = read_claims(tmp_path)
    assert judged["claim"].to_list() == ["raises"]
    assert judged["verdict"].to_list() == ["not decided"]  # two seeds
    assert "Alpha above 0 raises selectivity." in write_report(tmp_path).read_text()
    # Interrupted before the comparison: it alone is done again.
    shard = Comparison(first, second).shard(tmp_path)
    before = shard.read_bytes()
    shard.unlink()
    run_study(study, tmp_path)
    assert shard.read_bytes() == before


@dataclass(frozen=True)
class Mapped(Tiny):
    """A study whose layers are mapped, in all ways."""

    def jobs(self):
        training = Training(epochs=2, batch_size=32, snapshots=(1,), keep="last")
        return [replace(TINY, recipe=r, training=training, perturbations=()) for r in ("Standard", "NoiseAugmented")]

    def comparisons(self):
        one, two = self.jobs()
        common = {"layers": ("relu1", "relu6"), "images": 24, "batch_size": 8}
        return [
            LayerMap(one, **common),
            LayerMap(two, one, beside="Standard", **common),
            LayerMap(one, perturbation="GaussianNoise(std=0.5)", gap=True, **common),
            LayerMap(one, epoch=1, **common),
        ]


def test_layers_are_mapped_when_networks_are_trained(tmp_path):
    study = Mapped()
    run_study(study, tmp_path)
    one, two = (job.resolved() for job in study.jobs())
    rows = table.read(tmp_path / "table").filter(pl.col("family") == "similarity")
    maps = rows.filter(metric="cka_minibatch").group_by("job", "perturbation", "level").len().sort("perturbation")
    assert maps.select("job", "perturbation", "level").rows() == [
        (two.id, "beside Standard", 0.0),
        (one.id, "beside itself earlier", 1.0),
        (one.id, "itself", 0.0),
        (one.id, "under GaussianNoise", 0.5),
        (one.id, "under GaussianNoise, training images", 0.5),
    ]
    assert maps["len"].to_list() == [4] * 5

    def same(perturbation, metric="same_layer_similarity"):
        here = rows.filter(perturbation=perturbation, metric=metric).sort("depth")
        return dict(here.select("layer", "value").iter_rows())

    gap, test, train = (
        same("under GaussianNoise", "train_test_gap"),
        same("under GaussianNoise"),
        same("under GaussianNoise, training images"),
    )
    assert gap == {name: train[name] - test[name] for name in ("relu1", "relu6")}
    # After the first epoch the network was another one; beside itself it is not.
    assert all(value < 1 - 1e-6 for value in same("beside itself earlier").values())
    page = write_report(tmp_path).read_text()
    assert "Layers beside layers" in page
    assert (tmp_path / "figures" / "layer_maps.svg").is_file()


@pytest.mark.parametrize("size", ["demo", "small", "full"])
def test_the_similarity_study_expands_to_what_can_run(size):
    study = RobustSimilarity(size=size)
    jobs = {job.resolved().id for job in study.jobs()}
    assert len(jobs) == len(study.jobs())
    maps = [one.resolved() for one in study.comparisons()]
    assert len({one.id for one in maps}) == len(maps)
    for one in maps:
        assert {job.id for job in (one.first, one.second) if job is not None} <= jobs
        assert one.epoch is None or one.epoch in one.first.training.snapshots
    claims = study.claims()
    assert {claim.source.rpartition("§1.6 ")[2][:2] for claim in claims} >= {"F1", "F2", "F3", "F4", "F5"}
    assert ("F6" in " ".join(claim.source for claim in claims)) == (size != "demo")


def test_every_name_in_the_claims_of_similarity_is_one_of_the_study():
    """Rows of what the maps give: no claim lacks any."""
    study = RobustSimilarity(size="small")
    rng = np.random.default_rng(0)
    made = []
    for one in (m.resolved() for m in study.comparisons() if m.first.seed < 2):
        job = one.first
        level = 0.0 if one.perturbation is None else level_of(grid(one.perturbation)[0])
        here = {"job": job.id, "dataset": "d", "model": job.model, "recipe": job.recipe, "seed": job.seed}
        here |= {"family": "similarity", "perturbation": one.compared, "level": level}
        scalars = ("far_similarity", "effective_layers", "block_contrast", "equal_depth_similarity")
        made += [{**here, "metric": name, "value": rng.random()} for name in scalars]
        for depth, layer in enumerate("abcdef"):
            layered = {**here, "layer": layer, "depth": depth, "value": rng.random()}
            made += [{**layered, "metric": name} for name in ("same_layer_similarity", "train_test_gap")]
    notes = judge(study.claims(), table.frame(made))["note"].drop_nulls().to_list()
    assert not [note for note in notes if "no rows" in note]
    assert all("needs" in note for note in notes)


@pytest.mark.parametrize("cls", [Selectivity, SelectivityTinyImageNet])
@pytest.mark.parametrize("size", ["demo", "small", "full"])
def test_the_selectivity_study_expands_to_jobs_that_can_run(cls, size):
    study = cls(size=size)
    every = study.jobs()
    assert len({job.id for job in every}) == len(every) == len(study.recipes()) * study.setting["seeds"]
    jobs = [job.resolved() for job in every[: len(study.recipes())]]
    assert {job.seed for job in jobs} == {0}
    assert len(study.comparisons()) == (len(study.sweep()) - 1) * study.setting["seeds"] + study.setting["seeds"] - 1
    named = {job.recipe for job in jobs}
    for claim in study.claims():
        for _, rule in claim.tests:
            assert str(rule)
            for recipe in getattr(rule, "recipes", None) or getattr(rule, "candidates", None) or ():
                assert recipe in named
    assert (len(study.sweep()) == 23) == (study == Selectivity("full"))


def test_every_name_in_the_claims_is_one_of_the_study(tmp_path):
    """Judged by a table with rows of everything that the jobs measure, no claim lacks any; a wrong name would."""
    study = Selectivity(size="small")
    rows = pl.concat([rows_of(job.resolved()) for job in study.jobs() if job.seed == 0])
    notes = judge(study.claims(), rows)
    lacking = notes.filter(pl.col("note").fill_null("").str.contains("no rows"))
    assert lacking["note"].to_list() == []
    wrong = replace(study.claims()[0], tests=(("x", Correlation(Measure("class_selectivty"), Measure("accuracy"), 1)),))
    assert "no rows" in judge([wrong], rows)["note"][0]


def rows_of(job):
    """Made-up rows for what a job measures."""
    rng = np.random.default_rng(int(job.id, 16))
    who = {"job": job.id, "dataset": "d", "model": "m", "recipe": job.recipe, "seed": job.seed}
    conditions = [("clean", "clean", 0.0)]
    for text in job.perturbations:
        (one,) = grid(text)
        conditions.append((one.family, family_name(fitted(one, (1, 1, 28, 28))), level_of(one)))
    gradients = ("input_gradient_cv_samples", "input_gradient_cv_units", "jacobian_norm")
    made = []
    for family, name, level in conditions:
        here = {**who, "family": family, "perturbation": name, "level": level}
        accuracy = 0.44 if family == "attack" else 0.88
        made.append({**here, "metric": "accuracy", "value": accuracy + 0.01 * rng.random()})
        if family == "clean":
            made += [{**here, "metric": m, "value": rng.random()} for m in ("class_selectivity", *gradients)]
        named = ("pca_fraction_95", "two_nn") if family == "clean" else ("difference_fraction_95",)
        for depth in range(6):
            layer = {**here, "layer": f"relu{depth}", "depth": depth}
            made += [{**layer, "metric": m, "value": rng.random()} for m in named]
    for attack in job.curves:
        here = {**who, "family": "attack", "perturbation": attack, "metric": "half_accuracy_eps"}
        made.append({**here, "value": rng.random()})
    return table.frame(made)


@pytest.mark.parametrize("switch", [{"reduce": "positions"}, {}])
def test_a_job_of_the_study_runs_under_every_switch(switch, tmp_path):
    job = Selectivity(**switch).jobs()[1]
    small = replace(TINY, reduce=job.reduce, recipe=job.recipe, perturbations=("PGDSteps(steps=2)",), gradients=6)
    rows = table.read(run_job(small, tmp_path))
    assert set(rows.filter(metric="input_gradient_norm")["layer"].drop_nulls()) == {f"relu{i}" for i in range(1, 7)}


def test_switches_of_the_selectivity_study():
    blocks = Selectivity(size="full", granularity="blocks", reduce="positions")
    job = blocks.jobs()[0].resolved()
    assert job.reduce == "positions"
    assert job.layers == ("layer?.?",)
    assert "granularity='blocks'" in job.recipe
    assert job.recipe in blocks.sweep()
    by_text = find_study("selectivity", "full", None, {"granularity": "blocks", "reduce": "positions"})
    assert by_text == ("selectivity", blocks)
    with pytest.raises(GeophoneError, match=r"unknown switch of the study selectivity 'layers'.*reduce, granularity"):
        find_study("selectivity", "full", None, {"layers": "blocks"})
    for wrong in ({"granularity": "units"}, {"reduce": "mean"}, {"size": "tiny"}):
        with pytest.raises(GeophoneError, match="unknown"):
            Selectivity(**wrong)


def test_a_failed_job_does_not_stop_the_others(tmp_path, monkeypatch):
    real = Job.run

    def sometimes(job, *rest):
        if job.seed == 0 and job.recipe == "Standard":
            raise GeophoneError("the disk is full")
        return real(job, *rest)

    monkeypatch.setattr(Job, "run", sometimes)
    with pytest.raises(GeophoneError, match="1 of 4 jobs failed. Standard, seed 0: the disk is full"):
        whole(tmp_path)
    assert table.read(tmp_path / "table")["job"].n_unique() == 3
    with ThreadPoolExecutor(1) as pool, pytest.raises(GeophoneError, match="1 of 4 jobs failed"):
        whole(tmp_path, executor=pool)
    monkeypatch.undo()
    assert whole(tmp_path)["job"].n_unique() == 4


def test_a_folder_belongs_to_one_study_and_one_run(tmp_path):
    whole(tmp_path)
    with pytest.raises(GeophoneError, match="holds the study tiny at size demo, not other"):
        run_study(Tiny(), tmp_path, name="other")
    with pytest.raises(GeophoneError, match="the device 'tpu' cannot be used"):
        run_study(Tiny(), tmp_path, name="tiny", device="tpu")
    with pytest.raises(GeophoneError, match="the device 'meta' cannot be used"):
        run_study(Tiny(), tmp_path, name="tiny", device="meta")
    begun = (tmp_path / "study.json").read_text()
    write_json(tmp_path / "study.json", {**read_json(tmp_path / "study.json", ""), "device": "cuda"})
    with pytest.raises(GeophoneError, match="begun on cuda"):
        run_study(Tiny(), tmp_path, name="tiny")
    (tmp_path / "study.json").write_text(begun)
    with pytest.raises(GeophoneError, match="begun with 1 threads"):
        run_study(Tiny(), tmp_path, name="tiny", threads=2)
    with FileLock(tmp_path / ".lock"), pytest.raises(GeophoneError, match="another run is writing"):
        whole(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(GeophoneError, match="study.json is not readable"):
        whole(tmp_path)


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / ".x.parquet.abc.tmp").write_text("half")
    whole(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


STUDY_FILE = """
from dataclasses import dataclass
from typing import ClassVar
import geophone
from geophone.study import study

@study("mine")
@dataclass(frozen=True)
class Mine:
    '''A study of my own.'''
    question: ClassVar[str] = "?"
    size: str = "demo"
    seeds: tuple[int, ...] | None = None
    def jobs(self):
        return [geophone.Job("synthetic", "small_cnn", "Standard", 0, geophone.Training(epochs=1))]
"""


def test_a_users_own_study(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(STUDY_FILE)
    name, made = find_study(str(file), "demo", None)
    assert name == "mine"
    assert len(made.jobs()) == 1
    assert find_study(f"{file}:mine", "demo", (1,))[1].seeds == (1,)
    assert broken_contracts("studies", "mine") == []
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for text, size, message in (
        (str(empty), "demo", "registers no study"),
        ("demoo", "demo", "unknown study 'demoo'. Did you mean 'demo'"),
        ("demo", "huge", "unknown size 'huge'"),
        (str(tmp_path / "absent.py"), "demo", "no study file"),
    ):
        with pytest.raises(GeophoneError, match=message):
            find_study(text, size, None)


def test_a_default_level_that_is_named_stays_one_level():
    job = Job("synthetic", "small_cnn", "Standard", 0, Training(), ("fog(severity=3)", "LinfPGD(eps=8/255)"))
    assert [len(grid(text)) for text in job.resolved().perturbations] == [1, 1]
    assert job.resolved().resolved() == job.resolved()
