"""Diagnose a network that the user already has: one call, one page."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch

from geophone.core import table
from geophone.core.arguments import as_tuple, checked
from geophone.core.checksums import json_bytes
from geophone.core.defaults import CURVES_OF_A_SCAN, PERTURBATIONS_OF_A_SCAN
from geophone.core.errors import GeophoneError, plain
from geophone.core.files import LOCK, reserved, write_all
from geophone.core.progress import Stage, Stages, Steps
from geophone.core.provenance import FILE, now, provenance
from geophone.core.registry import load_entry_points
from geophone.core.types import Model, Perturbation, device_name, device_of
from geophone.data import ImageData, Split, as_split, load
from geophone.metrics import default_metrics
from geophone.models import load_model
from geophone.models.run import need_labels, opened, usable_device
from geophone.models.tap import Reduce, reduction, spatial_mean
from geophone.probes.checks import AVERAGING, AttackChecks, LayerAxes, ModelChecks, other_classes, table_checks
from geophone.probes.curves import Curves, with_radius
from geophone.probes.judge import named_attacks
from geophone.probes.layer_maps import LayerMap
from geophone.probes.layers import Layers
from geophone.probes.probe import Probe, run, stage_of, summed
from geophone.probes.survival import Robustness, Survival

TABLE = Path("table", "scan.parquet")
"""Where the rows of a scan are, in its folder."""

_WRITING = 0.02  # of the work, for the page
_FILES = frozenset((".htm", ".xhtml", ".pdf", ".png", ".svg", ".parquet", ".csv", ".json", ".md", ".txt", ".npz"))
"""Endings of a file, which a folder is not meant by."""


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        table: Rows as `geophone.core.table` describes them.
        report: The page; None when none was asked for.
    """

    table: pl.DataFrame
    report: Path | None

    @property
    def problems(self) -> list[str]:
        """What looks wrong with the measurement, in sentences."""
        failed = self.table.filter(pl.col("metric").str.starts_with("check.") & (pl.col("value") == 1))
        return failed["note"].to_list()


@checked
def scan(
    model: Model | str | Path,
    data: Any,
    perturb: str | Sequence[Perturbation] = PERTURBATIONS_OF_A_SCAN,
    layers: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    curves: str | Sequence[Perturbation] = CURVES_OF_A_SCAN,
    also: Sequence[str] = (),
    factory: str | None = None,
    images: int | None = None,
    device: str | None = None,
    batch_size: int = 256,
    reduce: Reduce = spatial_mean,
    seed: int = 0,
    name: str | None = None,
    checks: bool = True,
    probes: Sequence[Probe] | None = None,
    progress: Steps | None = None,
) -> Scan:
    """Shake a network and see where it gives: its accuracy under every perturbation, and what happens in each layer.

    Args:
        model: A module, or what `load_model` reads: `file.py:factory`, a weights file with `factory`, a job's folder,
            `timm:NAME`, `torchvision:NAME`.
        data: A data set's name or path (its test images), an `ImageData`, a `Split`, or `(x, y)`.
        perturb: Names, families or calls, as `geophone list perturbations` shows them, or perturbation objects.
        layers: Layer names or shell patterns; default every activation and block output.
        out: Path of the report, such as `report.html`; its table, figures and provenance go to the folder `report/`
            beside it. A path without `.html` is a folder for all of them. None for no files.
        curves: Attacks whose robust accuracy is measured over the radius, whatever radius they name; "" for none.
        also: Names of metrics to measure besides the default ones, such as "manifold_capacity".
        factory: What makes the network when `model` is a weights file.
        images: How many images, class-balanced; default all.
        device: Where to run; default where the network is.
        batch_size: Images per batch.
        reduce: From a response `[n, ...]` to `[n, d]`.
        seed: Keys everything random.
        name: The network's name in table and report; default what `model` says.
        checks: Whether small attacks check that the robustness can be believed (see
            `geophone.probes.checks.attack_checks`), as much work as 550 passes over 200 images. The checks of the
            measurement alone are always made.
        probes: What is measured, in place of what `scan_probes` gives for the arguments above.
        progress: Called with (steps done, steps in all) of the whole scan; a step is about one pass over one image. A
            `geophone.core.progress.Watcher` is also told where a stage begins.

    Raises:
        GeophoneError: what was given cannot be used; the message says what, where and what to do.

    >>> scan(my_model, "fashion_mnist_mini", "GaussianNoise, LinfPGD", out="report.html").problems
    """
    started, clock = now(), time.monotonic()
    with _reserved(out) as (page, folder):
        made, source, split = _opened(model, data, factory, images, device)
        need_labels(split, "scan")
        asked = probes
        if asked is None:
            options: dict[str, Any] = {"curves": curves, "checks": checks, "batch_size": batch_size, "reduce": reduce}
            asked = scan_probes(perturb, layers, also, **options)
        if not asked:
            raise GeophoneError("there are no probes: leave them out for the default, or give at least one.")
        label = plain(name or (str(model) if isinstance(model, str | Path) else type(model).__name__))
        columns = {"job": "scan", "dataset": source.name if isinstance(source, ImageData) else "data", "model": label}
        every = [_Ask((made,), probe, columns) for probe in asked]
        rows, stages = _measured(every, split.near(made), seed, progress)
        found = [*table_checks(rows, _classes(source)), *_left_out(source)]
        rows = rows.vstack(table.frame({**columns, **row} for row in found))
        stages.begin("the page")
        written = _written(rows, folder, page, f"Scan of {label}", made, seed, (started, clock))
        stages.end()
        return written


@checked
def scan_probes(
    perturb: str | Sequence[Perturbation | str] = PERTURBATIONS_OF_A_SCAN,
    layers: Sequence[str] | None = None,
    also: Sequence[str] = (),
    *,
    curves: str | Sequence[Perturbation | str] = CURVES_OF_A_SCAN,
    checks: bool = True,
    batch_size: int = 256,
    reduce: str | Reduce = "spatial_mean",
) -> list[Probe]:
    """What `scan` measures, as probes, with what is left to defaults written out: print it, change it, pass it on.

    Args:
        perturb: As for `scan`.
        layers: As for `scan`.
        also: As for `scan`.
        curves: As for `scan`.
        checks: As for `scan`.
        batch_size: Examples per batch.
        reduce: As for `scan`.

    >>> scan(my_model, "fashion_mnist_mini", probes=[*scan_probes("noise"), Gradients()])
    """
    named = None if layers is None else tuple(layers)
    metrics = tuple(dict.fromkeys((*default_metrics(), *also)))
    drawn = tuple(with_radius(curves))
    return [
        Layers(as_tuple(perturb), named, metrics, reduce, batch_size=batch_size),
        *([Curves(drawn, batch_size=batch_size)] if drawn else []),
        ModelChecks(batch_size),
        LayerAxes(named, reduce),
        *([AttackChecks(batch_size=batch_size)] if checks else []),
    ]


@dataclass(frozen=True)
class _Ask:
    """A probe, of which models, in whose name.

    Attributes:
        models: One or two.
        probe: What is measured of them.
        columns: Whose rows these are; they go before what the probe says.
        name: What progress calls it; by default what the probe says.
    """

    models: tuple[Model, ...]
    probe: Probe
    columns: Mapping[str, Any]
    name: str = ""


def _measured(asked: Sequence[_Ask], examples: Split, seed: int, progress: Steps | None) -> tuple[pl.DataFrame, Stages]:
    """Rows of all probes, each of models that are opened for it; and what goes on telling the progress."""
    asked = [replace(one, probe=one.probe.resolved(examples)) for one in asked]
    work = [stage_of(one.probe, examples) for one in asked]
    work = [replace(stage, name=one.name or stage.name) for stage, one in zip(work, asked, strict=True)]
    stages = Stages(progress, [*work, Stage("the page", [_WRITING * sum(stage.total for stage in work)])])
    parts = []
    for place, one in enumerate(asked):
        with opened(one.models, examples, seed) as subject:
            rows = run(one.probe, subject, examples, progress=stages.begin(place))
        parts.append(table.labelled(rows, one.columns))
    return pl.concat(parts), stages


@checked
def attack(
    model: Model | str | Path,
    data: Any,
    attacks: str | Sequence[Perturbation],
    *,
    restarts: int = 1,
    every: bool = True,
    factory: str | None = None,
    images: int | None = None,
    device: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Steps | None = None,
) -> Survival:
    """Which images of a network survive which attacks: `survival` for whatever `scan` takes as network and data.

    `problems` of what it returns says where the data have other classes than the network, and what was not read.

    Args:
        model: As for `scan`.
        data: As for `scan`.
        attacks: Names, families or calls, or perturbation objects; an ensemble is run as its members.
        restarts: As for `survival`.
        every: As for `survival`.
        factory: As for `scan`.
        images: As for `scan`.
        device: As for `scan`.
        batch_size: Images per batch.
        seed: Keys everything random.
        progress: As for `scan`.

    Raises:
        GeophoneError: what was given cannot be used; the message says what, where and what to do.

    >>> attack("my.py:model", "fashion_mnist_mini", "LinfAutoAttack(eps=8/255)").accuracy()
    """
    made, source, split = _opened(model, data, factory, images, device)
    probe = Robustness(tuple(named_attacks(attacks)), restarts, every, batch_size=batch_size)
    examples = split.near(made)
    stages = Stages(progress, [replace(stage_of(probe, examples), name="attacking")])
    with opened((made,), examples, seed) as subject:
        found = probe.result(summed(probe, subject, examples, progress=stages.begin(0)))
    stages.end()
    problems = [row["note"] for row in _left_out(source)]
    classes = _classes(source)
    if classes is not None and (other := other_classes(classes, found.classes)):
        problems.append(other)
    return replace(found, problems=tuple(problems))


@checked
def compare_networks(
    first: Model | str | Path,
    second: Model | str | Path,
    data: Any,
    layer_map: LayerMap | None = None,
    out: str | Path | None = None,
    *,
    perturb: str | Perturbation | None = None,
    factory: str | None = None,
    images: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Steps | None = None,
) -> Scan:
    """Two networks side by side: all layers of each with all of its own and of the other's, and a page of heat maps.

    Args:
        first: As for `scan`.
        second: As for `scan`.
        data: As for `scan`.
        layer_map: Measures, layers and the like, as `similarity` explains them, such as `LayerMap(("cka",))`. By
            default minibatch CKA of all layers. Measures such as CCA need a mean over space,
            `reduce="spatial_mean"`, to have fewer units than images. Its perturbation is left out.
        out: As for `scan`.
        perturb: One perturbation, as code or an object: both networks are then also compared with themselves under it.
        factory: What makes a network that is given as a weights file.
        images: How many images, class-balanced; default all.
        device: Where to run; default where the networks are.
        seed: Keys everything random.
        progress: As for `scan`.

    Raises:
        GeophoneError: what was given cannot be used; the message says what, where and what to do.

    >>> compare_networks("plain.py:model", "robust.py:model", "fashion_mnist_mini", out="compared.html").report
    """
    started, clock = now(), time.monotonic()
    with _reserved(out) as (page, folder):
        ours, source, split = _opened(first, data, factory, images, device)
        theirs, _, _ = _opened(second, source, factory, images, device or str(device_of(ours)))
        names = _labels(first, second)
        dataset = source.name if isinstance(source, ImageData) else "data"
        layer_map = layer_map or LayerMap()
        layers = layer_map.layers
        jobs = [{"job": f"scan {i}", "dataset": dataset, "model": label} for i, label in enumerate(names, start=1)]
        asked: list[_Ask] = []
        for model, own, columns in zip((ours, theirs), (layers, layer_map.others or layers), jobs, strict=True):
            label = columns["model"]
            right = Layers(layers=own, metrics=("accuracy",), batch_size=layer_map.batch_size)
            asked.append(_Ask((model,), right, columns, f"{label}: accuracy"))
            if reduction(layer_map.reduce) in AVERAGING:
                asked.append(_Ask((model,), LayerAxes(own, layer_map.reduce), columns))
            for each in (None, perturb)[: 1 + (perturb is not None)]:
                probe = replace(layer_map, layers=own, others=None, perturbation=each)
                asked.append(_Ask((model,), probe, columns, f"{label}: {_told(each)}"))
        both = replace(layer_map, perturbation=None)
        beside = {**jobs[0], "perturbation": f"beside {names[1]}"}
        asked.append(_Ask((ours, theirs), both, beside, "one beside the other"))
        rows, stages = _measured(asked, split.near(ours), seed, progress)
        rows = table.frame({**jobs[0], **row} for row in _left_out(source)).vstack(rows)
        stages.begin("the page")
        title = f"{names[0]} beside {names[1]}"
        written = _written(rows, folder, page, title, ours, seed, (started, clock))
        stages.end()
        return written


def _told(perturbation: str | Perturbation | None) -> str:
    """What a reader calls a comparison of a network with itself."""
    return "its layers" if perturbation is None else "its layers when shaken"


def _written(
    rows: pl.DataFrame,
    folder: Path | None,
    page: Path | None,
    title: str,
    model: Model,
    seed: int,
    began: tuple[datetime, float],
) -> Scan:
    """The rows with their page, and both on disk where a folder is given."""
    from geophone.report import report_files  # with what draws

    if folder is None or page is None:
        return Scan(rows, None)
    said = provenance(
        title=title,
        seconds=time.monotonic() - began[1],
        started=began[0],
        device=device_name(str(device_of(model))),
        threads=torch.get_num_threads(),
        seeds=[seed],
    )
    write_all(
        {
            folder / TABLE: table.as_bytes(rows),
            folder / FILE: json_bytes(said),
            **report_files(table.in_order(rows), said, folder, page),
        }
    )
    return Scan(rows, page)


def _classes(source: Any) -> int | None:
    """How many classes the data are known to have."""
    return len(source.classes) if isinstance(source, ImageData) and source.named else None


def _left_out(source: Any) -> list[dict[str, Any]]:
    """The row that says what of the data was not read, where something was not."""
    if not isinstance(source, ImageData) or not source.left_out:
        return []
    return [{"metric": "check.left_out", "value": 1.0, "note": " ".join(source.left_out), "n": len(source.test)}]


def _labels(*models: Model | str | Path) -> list[str]:
    """What the table calls each network: what was given for it, numbered where two are the same."""
    names = [plain(str(model)) if isinstance(model, str | Path) else type(model).__name__ for model in models]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _opened(
    model: Model | str | Path, data: Any, factory: str | None, images: int | None, device: str | None
) -> tuple[Model, Any, Split]:
    """The network where it is to run, the data as they were given or loaded, and the images to use."""
    load_entry_points()
    source = load(data) if isinstance(data, str | Path) else data
    shape: dict[str, Any] = {}
    if isinstance(source, ImageData) and len(source.train):
        shape = {"classes": len(source.classes), "mean": source.mean, "std": source.std}
    made: Model = load_model(model, factory, **shape) if isinstance(model, str | Path) else model
    if device is not None and isinstance(made, torch.nn.Module):
        made = made.to(usable_device(device))
    split = as_split(source)
    return made, source, split if images is None else split.take(images)


@contextmanager
def _reserved(out: str | Path | None) -> Iterator[tuple[Path | None, Path | None]]:
    """The page, and the folder of what it is made from, for this command alone until it ends; none for no `out`.

    The folder may be an earlier scan's, but nobody else's.
    """
    if out is None:
        yield None, None
        return
    path = Path(out)
    ending = path.suffix.lower()
    if ending in _FILES:
        raise GeophoneError(f"--out {path}: give a file that ends in .html, or a folder.")
    page, folder = (path, path.with_suffix("")) if ending == ".html" else (path / "report.html", path)
    if os.path.isdir(folder) and not (folder / TABLE).is_file() and any(_others(folder)):  # a name may be no name
        raise GeophoneError(f"the folder {folder} is there and is no scan's. Choose another --out, or empty it.")
    with reserved(folder, page):
        yield page, folder


def _others(folder: Path) -> Iterator[Path]:
    """What is in a folder, but for what a command that was killed left there."""
    yield from (one for one in folder.iterdir() if one.name != LOCK and not one.match(".*.tmp"))
