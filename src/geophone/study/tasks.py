"""A job: train one network, shake it, and append its rows to the table. Its id is the hash of its content."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from geophone.core import table
from geophone.core.arguments import check_fields
from geophone.core.errors import check_counts, unknown
from geophone.core.files import make_folder, write_text
from geophone.core.progress import Stage, Stages, Watcher
from geophone.core.registry import METRICS, MODELS, RECIPES, parse_call
from geophone.core.types import Perturbation, Recipe, describe
from geophone.data import ImageData, Split, load
from geophone.metrics import default_metrics
from geophone.models.load import save_network
from geophone.models.run import opened
from geophone.models.tap import REDUCTIONS
from geophone.perturb import grid
from geophone.perturb.cost import passes
from geophone.perturb.parse import family_name
from geophone.probes.checks import AttackChecks, LayerAxes
from geophone.probes.curves import Curves, with_radius
from geophone.probes.exemplars import Exemplars
from geophone.probes.gradients import Gradients
from geophone.probes.layers import Layers
from geophone.probes.probe import Probe, run, stage_of
from geophone.train import Training, catastrophic_overfitting, fit, initialised, kept, watched
from geophone.train.loop import content
from geophone.train.validation import single_step

VERSION = 1
"""Part of every job's id: raised when the same job would give other rows."""

CHECKPOINT = "training.pt"
"""The state of a job's training, in its folder until its rows are written."""

Progress = Callable[[str, int, int], None]
"""Called with what is going on ("RECIPE, seed N: training"), steps of the job done and steps in all.

A step is about one pass of one image through the network.
"""


@dataclass(frozen=True)
class Job:
    """Everything that decides a network's rows of the table, as plain values.

    Attributes:
        dataset: A registered data set or a path.
        model: A registered network as code, such as `small_cnn(width=8)`.
        recipe: A registered recipe as code, such as `SelectivityRegularised(alpha=-1)`.
        seed: Keys everything random.
        training: Length and schedule.
        perturbations: Registered perturbations as code; without its level, one stands for all its default levels.
        layers: Names or patterns of the layers to record; default every activation and block output.
        metrics: Names of metrics; default those of `default_metrics`.
        reduce: How a response becomes one number per unit.
        images: How many test images to measure, class-balanced; default all.
        batch_size: Images per batch while measuring.
        curves: Attacks as code whose robust accuracy is measured over the radius; theirs is left out.
        gradients: On how many of the test images the gradients of all units are measured; 0 for none.
        exemplars: Registered perturbations as code that exemplar manifolds are made with; none for no such manifolds.
        exemplar_images: Of how many of the test images.
        exemplar_copies: How many copies of each.
        features: To how many dimensions manifolds are projected, of classes and of exemplars.
    """

    dataset: str
    model: str
    recipe: str
    seed: int
    training: Training
    perturbations: tuple[str, ...] = ()
    layers: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    reduce: str = "spatial_mean"
    images: int | None = None
    batch_size: int = 256
    curves: tuple[str, ...] = ()
    gradients: int = 0
    exemplars: tuple[str, ...] = ()
    exemplar_images: int = 50
    exemplar_copies: int = 50
    features: int = 2000

    def __post_init__(self) -> None:
        check_fields(self)
        check_counts(images=self.images, batch_size=self.batch_size)

    @property
    def label(self) -> str:
        """What a progress bar or an error calls it."""
        return f"{self.recipe}, seed {self.seed}"

    @property
    def id(self) -> str:
        """The hash of the job's content: 16 hexadecimal digits."""
        return identity(self)

    def shard(self, out: Path) -> Path:
        """The file of the job's rows. The job is done when it exists."""
        return out / "table" / f"{self.id}.parquet"

    def folder(self, out: Path) -> Path:
        """Where the job's network is; `load_model` and `geophone scan` read it."""
        return out / "jobs" / self.id

    def resolved(self) -> "Job":
        """The same job with what is left to defaults written out: every perturbation and level, every metric.

        So its id changes when a plug-in adds a metric. What is not registered is found here, before hours are lost.

        Raises:
            GeophoneError: an unknown model, recipe, perturbation, metric or reduction, or no attack to keep by.
        """
        MODELS[parse_call(self.model, "model")[0]]
        watched(RECIPES.build(self.recipe), self.training)
        metrics = default_metrics() if self.metrics is None else self.metrics
        for name in metrics:
            METRICS[name]
        if self.reduce not in REDUCTIONS:
            raise unknown("reduction", self.reduce, REDUCTIONS)
        # With its level, even the default one: a text without a level stands for all of them.
        shakes, copied = (
            tuple(dict.fromkeys(describe(p, keep=(p.level,)) for text in texts for p in grid(text)))
            for texts in (self.perturbations, self.exemplars)
        )
        named = dict.fromkeys(family_name(p) for text in self.curves for p in with_radius(text))
        return replace(self, perturbations=shakes, metrics=metrics, curves=tuple(named), exemplars=copied)

    def shown(self, data: ImageData) -> Split:
        """The test images that are measured."""
        return data.test if self.images is None else data.test.take(self.images)

    def probes(self, data: ImageData) -> list[tuple[Probe, Split]]:
        """What is measured of the network, and on which images."""
        images = self.shown(data)
        drawn = tuple(p for text in self.perturbations for p in grid(text))
        radii = tuple(p for text in self.curves for p in with_radius(text))
        asked: list[tuple[Probe, Split]] = [
            (Layers(drawn, self.layers, self.metrics, self.reduce, self.features, self.batch_size), images)
        ]
        if radii:
            asked.append((Curves(radii, batch_size=self.batch_size), images))
        if self.gradients:
            # A unit's gradient is that of one number an image, so places of images are not told apart here.
            reduce = "spatial_mean" if self.reduce == "positions" else self.reduce
            asked.append((Gradients(self.layers, reduce), data.test.take(self.gradients)))
        if self.exemplars:
            copied = tuple(p for text in self.exemplars for p in grid(text))
            sizes = self.exemplar_images, self.exemplar_copies, self.features
            asked.append((Exemplars(copied, self.layers, *sizes), data.test))
        asked.append((LayerAxes(self.layers, self.reduce), images))
        asked.append((AttackChecks(batch_size=self.batch_size), images))
        return asked

    def columns(self, data: ImageData) -> dict[str, Any]:
        """Whose rows they are, as the table says it."""
        return {
            "job": self.id,
            "dataset": data.name,
            "model": self.model,
            "recipe": self.recipe,
            "seed": self.seed,
        }

    def run(self, out: Path, device: str = "cpu", progress: Progress | None = None) -> Path:
        """Do the job: see `run_job`."""
        return run_job(self, out, device, progress)


def snapshot_folder(folder: Path, epoch: int) -> Path:
    """Where the network of a job's folder is as it was after an epoch, if that is one of its training's snapshots."""
    return folder / f"epoch-{epoch:04d}"


def identity(task: Any) -> str:
    """The hash of a frozen dataclass's content: 16 hexadecimal digits."""
    text = json.dumps({"version": VERSION, **asdict(task, dict_factory=content)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_job(job: Job, out: Path, device: str = "cpu", progress: Progress | None = None) -> Path:
    """Do one job, or return at once when it is done; the path of its rows.

    A job that was interrupted goes on after its last finished epoch.
    """
    shard = job.shard(out)
    if shard.is_file() and table.is_whole(shard):
        return shard
    folder = make_folder(job.folder(out))
    write_text(folder / "job.json", json.dumps({"id": job.id, **asdict(job)}, indent=2))

    data = load(job.dataset).to(torch.device(device))
    recipe = RECIPES.build(job.recipe)
    asked = [(probe.resolved(examples), examples) for probe, examples in job.probes(data)]
    stages = Stages(None if progress is None else _Told(job.label, progress), _stages(job, data, recipe, asked))
    name, given = parse_call(recipe.network(job.model), "model")
    arguments = {"classes": len(data.classes), "mean": data.mean, "std": data.std, **given}
    model = initialised(lambda: MODELS.build(name, **arguments), job.seed).to(device)
    checkpoint = folder / CHECKPOINT
    history = fit(
        *(model, data, recipe, job.training),
        seed=job.seed,
        checkpoint=checkpoint,
        progress=stages.begin("training"),
        snapshot=lambda epoch, network: save_network(network, snapshot_folder(folder, epoch), name, arguments),
    )
    save_network(model, folder, name, arguments)
    best = kept(history, job.training.keep if len(data.val) else "last")
    columns = job.columns(data)
    measured = {**columns, "epoch": int(best["epoch"])}
    rows = []
    for place, (probe, examples) in enumerate(asked, start=1):
        examples = examples.near(model)
        with opened((model,), examples, job.seed) as subject:
            rows.append(run(probe, subject, examples, columns=measured, progress=stages.begin(place)))
    course = table.frame({**columns, **row} for row in _course(history, recipe, job.training, data))
    table.write(pl.concat([*rows, course]), shard)
    checkpoint.unlink(missing_ok=True)
    if finished := stages.begin("done"):
        finished(1, 1)
    return shard


class _Told(Watcher):
    """The stages of a job, told with its label."""

    def __init__(self, label: str, progress: Progress) -> None:
        self._label, self._progress, self._name = label, progress, ""

    def stage(self, name: str) -> None:
        self._name = name

    def __call__(self, done: int, steps: int) -> None:
        self._progress(f"{self._label}: {self._name}", done, steps)


def _stages(job: Job, data: ImageData, recipe: Recipe, asked: Sequence[tuple[Probe, Split]]) -> list[Stage]:
    """What a job does, by what it costs: about how many passes of one image through the network."""
    threat: Perturbation | None = recipe.threat
    step = 3 + (0 if threat is None else passes(threat))  # forward and backward
    training = Stage("training", [len(data.train) * step], job.training.epochs)
    return [training, *(stage_of(probe, examples) for probe, examples in asked), Stage("done", [0])]


def _course(
    history: Sequence[Mapping[str, int | float]], recipe: Recipe, training: Training, data: ImageData
) -> Iterator[dict[str, Any]]:
    """What `fit` recorded after each epoch; for attacks in the l∞ ball, whether that overfitted catastrophically."""
    shaken = watched(recipe, training)
    under = None if shaken is None else f"right clean and under {describe(shaken)}"
    for record in history:
        for metric, key, n, note in (
            ("training_loss", "loss", len(data.train), None),
            ("validation_accuracy", "accuracy", len(data.val), None),
            ("validation_robust_accuracy", "robust", len(data.val), under),
            ("validation_fgsm_accuracy", "fgsm", len(data.val), "right clean and under FGSM of the same radius"),
        ):
            if key in record:
                value = record[key]
                yield {"epoch": int(record["epoch"]), "metric": metric, "value": value, "n": n, "note": note}
    if "fgsm" not in history[-1] or single_step(recipe.threat) is None:
        return
    epoch = catastrophic_overfitting(history, chance=float(data.val.y.bincount().max()) / len(data.val))
    if epoch is None:
        note = f"No catastrophic overfitting in {len(history)} epochs."
    else:
        now = history[epoch - 1]
        before = max(record["robust"] for record in history[: epoch - 1])
        note = (
            f"Catastrophic overfitting in epoch {epoch}: robust validation accuracy fell from {before:.3f} to "
            f"{now['robust']:.3f}, while under FGSM it is {now['fgsm']:.3f}."
        )
    yield {
        "epoch": len(history),
        "metric": "check.catastrophic_overfitting",
        "value": float(epoch is not None),
        "n": len(data.val),
        "note": note,
    }
