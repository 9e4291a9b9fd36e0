"""Two networks of a study side by side: how alike their layers answer to the same images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from geophone import table
from geophone.data import load
from geophone.measure import compare
from geophone.models import load_model
from geophone.record import REDUCTIONS
from geophone.study.job import Job, Progress, identity


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
