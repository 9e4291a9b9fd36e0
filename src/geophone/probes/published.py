"""A network on the published corrupted test sets, as rows of the table."""

from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from geophone.analysis.scores import SEVERITIES, STANDARD
from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import METRICS
from geophone.core.rng import Draws
from geophone.core.types import Model, Perturbation
from geophone.data import Split, as_split, load
from geophone.models.stochastic import refuse_frozen
from geophone.probes.layers import measure

SETS = ("cifar10_c", "cifar100_c", "tiny_imagenet_c", "imagenet_c")


@checked
def published(
    model: Model,
    data: str = "cifar10_c",
    corruptions: Sequence[str] = STANDARD,
    severities: Sequence[int] = SEVERITIES,
    *,
    clean: Any = None,
    images: int | None = None,
    root: Path | str | None = None,
    classes: Path | str | Sequence[str] | None = None,
    metrics: Sequence[str] = ("accuracy", "margin", "loss"),
    columns: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> pl.DataFrame:
    """Measure a network on the files of a published corrupted set; returns rows of the table (`geophone.core.table`).

    Rows are as those of `measure` under a perturbation: family `corruption`, perturbation `fog(published='cifar10_c')`,
    level the severity. `geophone.analysis.scores.scores` takes them as they are.

    Without `clean` there are rows of the corrupted images only, and one file is in memory at a time. With `clean`, each
    corrupted image stands for the clean one of the same index, and there are rows of the clean images too and whatever
    compares with them. The severities of a corruption are then in memory together (CIFAR: 150 MB), and the clean images
    go through the network once for each corruption.

    Args:
        model: Images in [0, 1] → logits. On the device where it is.
        data: `cifar10_c`, `cifar100_c`, `tiny_imagenet_c` or `imagenet_c`.
        corruptions: Names of its files or folders; default the 15 standard ones, and `STANDARD + EXTRA` are all 19.
        severities: Of 1 to 5.
        clean: The test images that the set was made of, as anything that `as_split` takes, with their positions in the
            set as `index`: for `cifar10_c` it is "cifar10". With a part of them, only the same part is measured.
        images: How many images, class-balanced; default all.
        root: Folder in which the set is looked for first.
        classes: Of Tiny-ImageNet-C and ImageNet-C, where the network's outputs are not the folders in their sorted
            order: as for `imagefolder`.
        metrics: Names of metrics; default those of the whole network.
        columns: Values for the table's columns; `dataset` is `data` unless it is given here.
        progress: Called with (files done, files in all).
        options: The rest of what `measure` takes: `layers`, of which none is recorded unless a metric asks for it,
            `batch_size`, `reduce`, `seed`.

    Raises:
        GeophoneError: an unknown set, files that are missing or broken, clean images that are not those of the set, a
            metric that needs them when there are none, or a network whose noise is frozen.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261.

    >>> published(model, "cifar10_c", clean="cifar10", images=1000)
    """
    if data not in SETS:
        raise unknown("published set", data, SETS)
    if not corruptions or not severities:
        raise GeophoneError(f"nothing to measure on {data}: name at least one corruption and one severity.")
    refuse_frozen(model, "Robustness")
    reads = {name: METRICS[name].reads for name in metrics}
    pairs = [name for name, what in reads.items() if what == "pair"]
    if pairs and clean is None:
        raise GeophoneError(f"the metric {pairs[0]!r} compares with clean images: give them as `clean`.")
    if set(reads.values()) == {"logits"}:
        options["layers"] = ()
    given = {"metrics": metrics, "columns": {"dataset": data, **(columns or {})}, **options}
    base = None if clean is None else _part(as_split(clean), images)
    found: list[pl.DataFrame] = []
    for place, corruption in enumerate(corruptions):
        files = (
            (severity, load(_code(data, corruption, severity, classes), root=root).test) for severity in severities
        )
        if base is None:
            named = f"{corruption}(published={data!r})"
            found += [_alone(model, named, severity, _part(file, images), given) for severity, file in files]
        else:
            stored = [_stored(data, corruption, s, _matched(file, base, data)) for s, file in files]
            rows = measure(model, base, stored, **given)
            found.append(rows.filter(pl.col("family") != "clean") if place else rows)
        if progress is not None:
            progress((place + 1) * len(severities), len(corruptions) * len(severities))
    return pl.concat(found)


def _alone(model: Model, named: str, severity: int, file: Split, given: dict[str, Any]) -> pl.DataFrame:
    """Rows of one file without its clean images: measured as if it were clean, and named as what it is."""
    rows = measure(model, file, (), **given).filter(pl.col("unit").is_null())
    where = {"family": "corruption", "perturbation": named, "level": float(severity)}
    return rows.with_columns(pl.lit(value).alias(column) for column, value in where.items())


def _part(split: Split, images: int | None) -> Split:
    return split if images is None else split.take(images)


def _code(data: str, corruption: str, severity: int, classes: Path | str | Sequence[str] | None) -> str:
    named = str(classes) if isinstance(classes, Path) else classes
    more = "" if named is None else f", classes={named!r}"
    return f"{data}(corruption={corruption!r}, severity={severity}{more})"


def _matched(file: Split, base: Split, data: str) -> Split:
    """Those images of the file that have the indices of the base, in its order."""
    index = base.index.to(file.y.device)
    if int(index.max()) >= len(file):
        raise GeophoneError(
            f"the clean images have indices up to {int(index.max())}, but {data} has {len(file)} images. Give the test "
            "images that the set was made of."
        )
    rows = file.rows(index)
    if rows.x.shape != base.x.shape or not torch.equal(rows.y, base.y.to(rows.y.device)):
        raise GeophoneError(
            f"the clean images are not those of {data}: their labels or sizes differ at the same index. Give the test "
            "images that the set was made of, in their own order."
        )
    return rows


def _stored(data: str, corruption: str, severity: int, split: Split) -> Perturbation:
    """A file in the place of a perturbation: it answers with its own images of the same indices.

    Its class bears the corruption's name, so that `measure` names it in the table as it names a computed corruption.
    """
    place = {index: row for row, index in enumerate(split.index.tolist())}

    def images(_self: object, x: Tensor, _y: Tensor, _model: Model, rng: Draws) -> Tensor:
        rows = torch.tensor([place[index] for index in rng.index.tolist()], dtype=torch.int64)
        return next(split.rows(rows).batches(len(rows))).x.to(x)

    namespace = {"__call__": images, "level": "severity", "levels": SEVERITIES, "family": "corruption"}
    made = make_dataclass(corruption, [("published", str), ("severity", int)], namespace=namespace, frozen=True)
    return made(data, severity)
