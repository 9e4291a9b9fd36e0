"""Networks of a study side by side: how alike their layers answer to the same images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from geophone.core import table
from geophone.core.registry import PERTURBATIONS
from geophone.data import Split, load
from geophone.models import load_model
from geophone.models.tap import REDUCTIONS
from geophone.perturb.parse import family_name, level_of
from geophone.probes.layer_maps import SAME_LAYER, similarity
from geophone.probes.pairs import compare
from geophone.study.tasks import Job, Progress, identity, snapshot_folder


@dataclass(frozen=True)
class Comparison:
    """How alike two jobs' networks are, layer by layer, on the first job's test images.

    Attributes:
        first: Whose rows these become.
        second: The network that it is compared with, which stands in the column `other`.
        metrics: Names of metrics that compare.
    """

    first: Job
    second: Job
    metrics: tuple[str, ...] = ("cka", "pwcca")

    @property
    def label(self) -> str:
        """What a progress bar or an error calls it."""
        return f"{self.first.label} beside {self.second.label}"

    @property
    def id(self) -> str:
        """The hash of its content, both jobs' included."""
        return identity(self)

    def shard(self, out: Path) -> Path:
        """The file of its rows."""
        return out / "table" / f"{self.id}.parquet"

    def resolved(self) -> "Comparison":
        """The same of the resolved jobs."""
        return Comparison(self.first.resolved(), self.second.resolved(), self.metrics)

    def run(self, out: Path, device: str = "cpu", progress: Progress | None = None) -> Path:
        """Load both networks, which must be trained, and compare them; the path of the rows."""
        shard, job = self.shard(out), self.first
        if shard.is_file():
            return shard
        ours, theirs = (load_model(one.folder(out)).to(torch.device(device)) for one in (job, self.second))
        data = load(job.dataset)
        rows = compare(
            ours,
            theirs,
            job.shown(data),
            self.metrics,
            job.layers,
            batch_size=job.batch_size,
            reduce=REDUCTIONS[job.reduce],
            seed=job.seed,
            columns={
                **job.columns(data),
                "perturbation": f"beside {self.second.recipe}",
                "other": self.second.label,
            },
        )
        table.write(rows, shard)
        if progress is not None:
            progress(f"{self.label}: done", 1, 1)
        return shard


TRAIN_TEST_GAP = "train_test_gap"
"""Similarity of a layer's clean and perturbed responses on training images, less that on test images."""


@dataclass(frozen=True)
class LayerMap:
    """All layers of a job's network beside all layers of another, of itself, of itself under a perturbation or earlier.

    Attributes:
        first: Whose rows these become.
        second: The other network; None: the first itself.
        beside: What the second network is, as the table's column `perturbation` says it after "beside".
        perturbation: What the second side sees its images under, as code.
        epoch: The second network is the first after this epoch, one of its training's snapshots.
        gap: Whether the same is done on training images, and `train_test_gap` is measured.
        layers: Names or patterns; default as for `similarity`.
        images: How many images, class-balanced.
        batch_size: Images per batch.
    """

    first: Job
    second: Job | None = None
    beside: str = ""
    perturbation: str | None = None
    epoch: int | None = None
    gap: bool = False
    layers: tuple[str, ...] | None = None
    images: int = 512
    batch_size: int = 64

    @property
    def label(self) -> str:
        """What a progress bar or an error calls it."""
        return f"{self.first.label} {self.compared}"

    @property
    def compared(self) -> str:
        """With what the first network is compared."""
        if self.perturbation is not None:
            return f"under {family_name(PERTURBATIONS.build(self.perturbation))}"
        if self.epoch is not None:
            return "beside itself earlier"
        return f"beside {self.beside}" if self.second is not None else "itself"

    @property
    def id(self) -> str:
        """The hash of its content, the jobs' included."""
        return identity(self)

    def shard(self, out: Path) -> Path:
        """The file of its rows."""
        return out / "table" / f"{self.id}.parquet"

    def resolved(self) -> "LayerMap":
        """The same of the resolved jobs."""
        return replace(
            self, first=self.first.resolved(), second=None if self.second is None else self.second.resolved()
        )

    def run(self, out: Path, device: str = "cpu", progress: Progress | None = None) -> Path:
        """Load the networks, which must be trained, and compare them; the path of the rows."""
        shard, job = self.shard(out), self.first
        if shard.is_file():
            return shard
        place = torch.device(device)
        ours = load_model(job.folder(out)).to(place)
        theirs = None
        if self.second is not None:
            theirs = load_model(self.second.folder(out)).to(place)
        elif self.epoch is not None:
            theirs = load_model(snapshot_folder(job.folder(out), self.epoch)).to(place)
        data = load(job.dataset)
        shaken = None if self.perturbation is None else PERTURBATIONS.build(self.perturbation)
        level = float(self.epoch) if self.epoch is not None else 0.0 if shaken is None else level_of(shaken)
        common: dict[str, Any] = {**job.columns(data), "perturbation": self.compared, "level": level}

        def rows(part: Split, compared: str) -> pl.DataFrame:
            return similarity(
                *(ours, theirs, part.take(min(self.images, len(part)))),
                layers=self.layers,
                perturbation=shaken,
                batch_size=self.batch_size,
                seed=job.seed,
                columns=common | {"perturbation": compared},
            ).table

        made = rows(data.test, self.compared)
        if self.gap:
            made = pl.concat([made, seen := rows(data.train, f"{self.compared}, training images"), _gap(made, seen)])
        table.write(made, shard)
        if progress is not None:
            progress(f"{self.label}: done", 1, 1)
        return shard


def _gap(test: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Rows of `train_test_gap`, by layer."""
    here, there = (part.filter(pl.col("metric") == SAME_LAYER) for part in (test, train))
    other = here.select("layer").join(there.select("layer", "value"), on="layer", how="left", maintain_order="left")
    return here.with_columns(
        metric=pl.lit(TRAIN_TEST_GAP),
        value=other["value"] - here["value"],
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
    )
