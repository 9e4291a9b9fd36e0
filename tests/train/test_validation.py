"""Robust validation accuracy, which epoch is kept, snapshots, what a job writes of them; defaults train as ever."""

from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from math import sqrt
from statistics import NormalDist

import polars as pl
import pytest
import torch
from torch import nn

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS, RECIPES
from geophone.core.rng import draws, stream
from geophone.data import Split, crop_flip, synthetic
from geophone.models import GaussianResponse, SmallCNN, load_model
from geophone.models.run import deterministic
from geophone.models.stochastic import add_noise
from geophone.perturb import FGSM, L2PGD, GaussianNoise, LinfAPGD, LinfPGD
from geophone.probes.checks import AttackChecks
from geophone.study import Job, run_job
from geophone.train import (
    Adversarial,
    Corrupted,
    FastAdversarial,
    Mart,
    Standard,
    Trades,
    Training,
    fit,
    initialised,
    kept,
    robust_accuracy,
    watched,
)
from geophone.train.validation import single_step

loop, job = (import_module(f"geophone.{name}") for name in ("train.loop", "study.tasks"))
SHORT = Training(epochs=3, batch_size=32, lr=0.05)
PGD = "LinfPGD(eps=0.05, steps=3)"


@cache
def data():
    return synthetic(classes=3, train=160, val=40, test=40, size=12)


def without_validation():
    whole = data()
    return type(whole)(whole.name, whole.classes, whole.train, whole.val.rows(torch.arange(0)), whole.test)


def make(seed=0):
    return initialised(lambda: SmallCNN(3, (0.5,), (0.25,), width=4), seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


# What was there before


@pytest.mark.parametrize("text", ["Standard", "Adversarial(eps=0.05, steps=3)", "NoiseAugmented", "AugMix"])
def test_defaults_train_as_ever(text):
    """To the bit as the loop written out, which knows of none of the options here."""
    recipe = RECIPES.build(text)
    ours, plain = make(), make().to(memory_format=torch.channels_last)
    training = replace(SHORT, keep="last")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    with deterministic():
        for epoch in range(3):
            plain.train()
            order = torch.randperm(160, generator=stream(7, "order", epoch))
            for i, batch in enumerate(data().train.batches(32, order)):
                rng = draws(7, "train", epoch, index=batch.index)
                optimizer.param_groups[0]["lr"] = training.rate(5 * epoch + i, 15)
                optimizer.zero_grad()
                x = crop_flip(batch.x, rng.child("augment"), 0, False).contiguous(memory_format=torch.channels_last)
                recipe.loss(plain, x, batch.y, rng).backward()
                optimizer.step()
    history = fit(ours, data(), recipe, training, seed=7)
    assert torch.equal(weights(ours), weights(plain))
    assert [set(record) for record in history] == [{"epoch", "loss", "accuracy"}] * 3
    best = make()
    assert fit(best, data(), recipe, SHORT, seed=7) == history


def test_watching_changes_nothing():
    """Robust accuracies and snapshots are read off the same training."""
    plain, watching = make(), make()
    history = fit(plain, data(), Standard(), SHORT, seed=7)
    training = replace(SHORT, validate=PGD, snapshots=(1,))
    seen = fit(watching, data(), Standard(), training, seed=7, snapshot=lambda *_: None)
    assert torch.equal(weights(watching), weights(plain))
    assert [{key: record[key] for key in ("epoch", "loss", "accuracy")} for record in seen] == history


def test_jobs_and_states_of_before_hold(tmp_path):
    """Their ids and what a state is for, as they were when `Training` had no `keep`."""
    assert Job("synthetic", "small_cnn", "Standard", 0, Training()).id == "619e39177baee4bb"
    other = Job("synthetic", "small_cnn", "Adversarial(eps=0.1)", 3, Training(epochs=2, milestones=(1,)))
    assert other.id == "5e2f00b8d9b10acd"
    trainings = [replace(Training(), **new) for new in ({"keep": "last"}, {"validate": PGD}, {"snapshots": (1,)})]
    ids = {Job("synthetic", "small_cnn", "Standard", 0, training).id for training in trainings}
    assert len(ids | {"619e39177baee4bb"}) == 4
    fit(make(), data(), Standard(), replace(SHORT, epochs=1), checkpoint=tmp_path / "t.pt")
    purpose = torch.load(tmp_path / "t.pt", weights_only=True)["purpose"]
    assert purpose == (
        "Standard {'epochs': 1, 'batch_size': 32, 'lr': 0.05, 'momentum': 0.9, 'weight_decay': 0.0005, 'warmup': 0.1, "
        "'milestones': (), 'crop': 0, 'flip': False} seed 0"
    )
    assert "keep" in asdict(SHORT)


# Robust accuracy


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above 1/2: robust at eps exactly where |mean - 1/2| > eps, in closed form."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        away = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-away, away], 1)


def greys():
    """Grey images of levels 0.30, 0.34, …, 0.70 but 0.5, with labels that are right for all but the last two."""
    levels = torch.tensor([0.30, 0.34, 0.38, 0.42, 0.46, 0.54, 0.58, 0.62, 0.66, 0.70])
    y = (levels > 0.5).long()
    y[-2:] = 0
    return Split(levels[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), y, torch.arange(10))


@dataclass(frozen=True)
class Whiten:
    """A perturbation that makes wrong images right: those of label 0 black, the others white."""

    def __call__(self, x, y, model, rng):
        return y.to(x.dtype)[:, None, None, None].expand_as(x).clone()


@pytest.mark.parametrize(("eps", "held"), [(0.0, 8), (0.03, 8), (0.05, 6), (0.1, 4), (0.15, 2), (0.3, 0)])
def test_robust_accuracy_in_closed_form(eps, held):
    for attack in (LinfPGD(eps=eps), FGSM(eps=eps), LinfAPGD(eps=eps, steps=3)):
        assert robust_accuracy(Threshold(), greys(), attack, batch_size=3) == held / 10


class NoisyThreshold(Threshold):
    """Of an image of 16 pixels the mean has noise of σ = 0.05."""

    def __init__(self):
        super().__init__()
        self.noise = add_noise(nn.Identity(), GaussianResponse(0.2))

    def forward(self, x):
        return super().forward(self.noise(x))


def of_full_strength(accuracy):
    """Mean 0.56 and eps = 0.1: right clean with Φ(0.06/σ), and once more at 0.46, judged afresh, with Φ(-0.04/σ).

    Of 600 images, to four standard errors.
    """
    split = Split(torch.full((600, 1, 4, 4), 0.56), torch.ones(600, dtype=torch.int64), torch.arange(600))
    phi = NormalDist(sigma=0.05).cdf
    share = phi(0.06) * phi(-0.04)
    found = accuracy(NoisyThreshold(), split, LinfPGD(eps=0.1, steps=10, draws=1))
    assert abs(found - share) < 4 * sqrt(share * (1 - share) / 600)


def test_stochastic_networks_are_attacked_at_full_strength():
    of_full_strength(robust_accuracy)


def test_a_lucky_pass_is_no_success():
    """The mutant leaves an image at the first noisy pass that is fooled."""
    with pytest.raises(AssertionError):
        of_full_strength(lambda model, split, attack: robust_accuracy(model, split, attack.fool))


def test_what_is_wrong_is_not_robust():
    """The mutant counts what is right under the perturbation, whatever it was before."""
    split, model = greys(), Threshold()
    assert robust_accuracy(model, split, Whiten()) == 0.8
    mutant = (model(Whiten()(split.x, split.y, model, None)).argmax(1) == split.y).double().mean()
    assert mutant == 1


def test_robust_accuracy_repeats_and_leaves_no_trace():
    """In any batches, and another seed is another draw; modes, gradients and the global random state stay."""
    model, split, noise = Threshold().train(), greys(), GaussianNoise(0.3)
    before = torch.get_rng_state()
    values = [robust_accuracy(model, split, noise, batch_size=size, seed=0) for size in (1, 3, 10, 10)]
    assert len(set(values)) == 1
    assert len({robust_accuracy(model, split, noise, seed=seed) for seed in range(8)}) > 1
    robust_accuracy(model, split, LinfPGD(eps=0.1))
    assert model.training
    assert model.scale.grad is None
    assert torch.equal(before, torch.get_rng_state())


def test_the_single_step_of_an_attack():
    assert single_step(LinfPGD(eps=0.2)) == single_step(LinfAPGD(eps=0.2)) == FGSM(eps=0.2)
    for other in (L2PGD(eps=0.2), FGSM(eps=0.2), GaussianNoise(0.2), Corrupted(), None):
        assert single_step(other) is None


# Which epoch stays


def test_kept():
    history = [
        {"epoch": 1, "accuracy": 0.5, "robust": 0.4},
        {"epoch": 2, "accuracy": 0.9, "robust": 0.1},
        {"epoch": 3, "accuracy": 0.9, "robust": 0.4},
    ]
    assert [kept(history, keep)["epoch"] for keep in ("best", "robust", "last")] == [2, 1, 3]
    assert kept(history)["epoch"] == 2


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("robust", 1), ("last", 3)])
def test_the_network_of_the_kept_epoch_comes_back(monkeypatch, keep, epoch):
    """With scripted accuracies; the others' weights, the mutants, are not it."""
    seen, clean, robust = [], iter([0.5, 0.9, 0.7]), iter([0.4, 0.3, 0.3, 0.1, 0.1, 0.2])  # robust and fgsm in turn

    def accuracy(model, *_):
        seen.append(weights(model).clone())
        return next(clean)

    monkeypatch.setattr(loop, "_accuracy", accuracy)
    seeds = []
    monkeypatch.setattr(loop, "robust_accuracy", lambda *_, seed, **__: seeds.append(seed) or next(robust))
    model = make()
    history = fit(model, data(), Standard(), replace(SHORT, keep=keep, validate=PGD), seed=4)
    assert [torch.equal(weights(model), one) for one in seen] == [i == epoch for i in (1, 2, 3)]
    assert [(record["robust"], record["fgsm"]) for record in history] == [(0.4, 0.3), (0.3, 0.1), (0.1, 0.2)]
    assert kept(history, keep)["epoch"] == epoch
    assert seeds == [4] * 6  # the same draws in every epoch


def test_the_most_robust_epoch_is_measured_on_the_validation_images():
    """History and weights agree: the kept network has its record's robust accuracy, and no record has more."""
    model = make()
    training = replace(SHORT, epochs=4, keep="robust", validate=PGD)
    history = fit(model, data(), Adversarial(eps=0.05, steps=2), training, seed=2)
    attack = PERTURBATIONS.build(PGD)
    best = max(record["robust"] for record in history)
    assert robust_accuracy(model, data().val, attack, seed=2) == kept(history, "robust")["robust"] == best
    assert all(record["robust"] <= record["accuracy"] for record in history)
    assert all({"robust", "fgsm"} <= set(record) for record in history)


@pytest.mark.parametrize("steps", [5, 7])
def test_an_interrupted_training_keeps_the_same_epoch(tmp_path, steps):
    training = replace(SHORT, keep="robust", validate=PGD)
    whole = make()
    history = fit(whole, data(), Standard(), training, seed=3)

    def stop(done, _):
        if done == steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make(), data(), Standard(), training, seed=3, checkpoint=tmp_path / "t.pt", progress=stop)
    resumed = make()
    assert fit(resumed, data(), Standard(), training, seed=3, checkpoint=tmp_path / "t.pt") == history
    assert torch.equal(weights(whole), weights(resumed))


def test_what_is_watched():
    """Nothing by default; what is asked for; else the recipe's threat model, where it is needed."""
    robust = Training(keep="robust")
    adversarial = (Adversarial(eps=0.1), Trades(eps=0.1), Mart(eps=0.1), FastAdversarial(eps=0.1))
    for recipe in (Standard(), Corrupted(), *adversarial[:3]):
        assert watched(recipe, Training()) is None
    assert watched(FastAdversarial(eps=0.1), Training()) == LinfPGD(eps=0.1)
    for recipe in adversarial:
        assert watched(recipe, robust) == LinfPGD(eps=0.1)
        assert watched(recipe, Training(validate="L2PGD(eps=0.3)")) == L2PGD(eps=0.3)
        assert watched(recipe, replace(robust, validate="L2PGD(eps=0.3)")) == L2PGD(eps=0.3)
    assert watched(Corrupted("fog"), robust) == Corrupted("fog")


def test_corruptions_can_choose_the_epoch():
    history = fit(make(), data(), Corrupted("GaussianNoise(std=0.2)"), replace(SHORT, keep="robust"), seed=2)
    assert all("robust" in record and "fgsm" not in record for record in history)


def test_errors():
    for wrong, message in (
        ({"keep": "worst"}, "unknown epoch to keep 'worst'.*best, robust, last"),
        ({"validate": "LinfPDG"}, "Did you mean 'LinfPGD'"),
        ({"snapshots": (0,)}, r"snapshots=\(0,\).*epochs from 1 to 10"),
        ({"snapshots": (3, 11)}, "epochs from 1 to 10"),
    ):
        with pytest.raises(GeophoneError, match=message):
            Training(**wrong)
    with pytest.raises(GeophoneError, match=r"keep='robust'\) with Standard.*validate='LinfPGD"):
        fit(make(), data(), Standard(), replace(SHORT, keep="robust"))
    with pytest.raises(GeophoneError, match="keep='robust'"):
        Job("synthetic", "small_cnn", "Standard", 0, Training(keep="robust")).resolved()
    for training in (replace(SHORT, keep="robust"), replace(SHORT, validate=PGD)):
        with pytest.raises(GeophoneError, match="has no validation images to measure robust accuracy on"):
            fit(make(), without_validation(), Adversarial(), training)
    with pytest.raises(GeophoneError, match="no images to measure robust accuracy on"):
        robust_accuracy(make(), without_validation().val, LinfPGD())
    fine = fit(make(), without_validation(), FastAdversarial(), replace(SHORT, epochs=1))
    assert set(fine[0]) == {"epoch", "loss", "accuracy"}


# Snapshots


def test_a_snapshot_is_the_network_after_that_epoch():
    """That of training which ends there, at the same rates; the mutant is the next epoch's."""
    steady = replace(SHORT, warmup=0.0, milestones=(99,), keep="last")
    ends = {}
    for epochs in (1, 2, 3):
        ends[epochs] = make()
        fit(ends[epochs], data(), Standard(), replace(steady, epochs=epochs), seed=5)
    seen = {}

    def snapshot(epoch, network):
        seen[epoch] = weights(network).clone()
        assert not network.training

    fit(make(), data(), Standard(), replace(steady, snapshots=(1, 3)), seed=5, snapshot=snapshot)
    assert list(seen) == [1, 3]
    assert torch.equal(seen[1], weights(ends[1]))
    assert torch.equal(seen[3], weights(ends[3]))
    assert not torch.equal(seen[1], weights(ends[2]))


JOB = Job(
    dataset="synthetic(classes=3, size=12, train=96, val=24, test=12)",
    model="small_cnn(width=2)",
    recipe="FastAdversarial(eps=0.05)",
    seed=0,
    training=Training(epochs=3, batch_size=32, snapshots=(1, 2, 3)),
    metrics=("accuracy",),
)


@pytest.fixture
def unchecked(monkeypatch):
    """Jobs without the checks by attacks, which take most of the time and are no part of this."""
    monkeypatch.setattr(AttackChecks, "found", lambda *_: iter(()))


@pytest.mark.parametrize("moment", ["in epoch 2", "writing epoch 2", "after epoch 2"])
def test_an_interrupted_job_has_all_its_snapshots(tmp_path, monkeypatch, unchecked, moment):
    """Stopped in training (3 steps an epoch), while a snapshot is written, and before the state that knows of it."""
    run_job(JOB, tmp_path / "whole")

    def save(network, folder, *rest):
        if moment == "writing epoch 2" and folder.name == "epoch-0002":
            raise KeyboardInterrupt
        wrote(network, folder, *rest)
        if moment == "after epoch 2" and folder.name == "epoch-0002":
            raise KeyboardInterrupt

    trained = []

    def progress(what, done, __):
        if what.endswith("training") and done:
            trained.append(done)
        if moment == "in epoch 2" and len(trained) == 5:
            raise KeyboardInterrupt

    wrote = job.save_network
    with monkeypatch.context() as patch:
        patch.setattr(job, "save_network", save)
        with pytest.raises(KeyboardInterrupt):
            run_job(JOB, tmp_path / "cut", progress=progress)
    run_job(JOB, tmp_path / "cut")
    whole, cut = (JOB.folder(tmp_path / name) for name in ("whole", "cut"))
    names = ["epoch-0001", "epoch-0002", "epoch-0003", "job.json", "model.safetensors", "network.json"]
    assert sorted(path.name for path in cut.iterdir()) == names
    for name in names[:3]:
        assert torch.equal(weights(load_model(whole / name)), weights(load_model(cut / name)))
    assert not torch.equal(weights(load_model(cut / names[0])), weights(load_model(cut / names[1])))
    assert table.read(tmp_path / "cut" / "table").equals(table.read(tmp_path / "whole" / "table"))


# What a job writes


def rows_of(what, out):
    return table.read(run_job(what, out)).filter(pl.col("family").is_null())


def test_the_course_has_robust_accuracy_and_the_verdict(tmp_path, unchecked):
    rows = rows_of(replace(JOB, training=replace(JOB.training, keep="robust")), tmp_path)
    assert rows["metric"].value_counts(sort=True).sort("metric").rows() == [
        ("check.catastrophic_overfitting", 1),
        ("check.layer_axes", 1),
        ("training_loss", 3),
        ("validation_accuracy", 3),
        ("validation_fgsm_accuracy", 3),
        ("validation_robust_accuracy", 3),
    ]
    robust = rows.filter(metric="validation_robust_accuracy").sort("epoch")
    assert robust["note"].unique().to_list() == ["right clean and under LinfPGD(eps=0.05)"]
    assert robust["n"].to_list() == [24] * 3
    verdict = rows.filter(metric="check.catastrophic_overfitting")
    assert verdict.select("value", "epoch", "n", "note").rows() == [
        (0.0, 3, 24, "No catastrophic overfitting in 3 epochs.")
    ]
    measured = table.read(tmp_path / "table").filter(pl.col("family") == "clean")["epoch"].unique().to_list()
    values = robust["value"].to_list()
    assert measured == [values.index(max(values)) + 1]


def test_the_verdict_names_the_epoch(tmp_path, monkeypatch, unchecked):
    """With a scripted course; and none is given on what is not trained against an attack in the l∞ ball."""
    robust, fgsm = (0.4, 0.6, 0.1), (0.5, 0.7, 0.8)
    script = [{"epoch": i + 1, "loss": 1.0, "accuracy": 0.9, "robust": robust[i], "fgsm": fgsm[i]} for i in range(3)]

    def scripted(*args, **options):
        fit(*args, **options)
        return script

    monkeypatch.setattr(job, "fit", scripted)
    verdict = rows_of(JOB, tmp_path / "a").filter(metric="check.catastrophic_overfitting")
    note = "Catastrophic overfitting in epoch 3: robust validation accuracy fell from 0.600 to 0.100, while under FGSM "
    assert verdict.select("value", "note").rows() == [(1.0, f"{note}it is 0.800.")]
    standard = rows_of(replace(JOB, recipe="Standard", training=replace(JOB.training, validate=PGD)), tmp_path / "b")
    assert "validation_robust_accuracy" in standard["metric"].to_list()
    assert "check.catastrophic_overfitting" not in standard["metric"].to_list()


def test_a_job_without_any_of_it_has_the_course_it_had(tmp_path, unchecked):
    rows = rows_of(replace(JOB, recipe="Standard", training=replace(JOB.training, snapshots=())), tmp_path)
    assert sorted(rows["metric"].unique().to_list()) == ["check.layer_axes", "training_loss", "validation_accuracy"]
    assert rows["note"].null_count() == 6  # the check says what it saw
    assert len(rows) == 7
