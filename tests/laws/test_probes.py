"""Laws of every registered probe: rows do not depend on how its steps were divided, nor on what else is measured."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.data import Split
from geophone.models.run import Subject, opened
from geophone.models.stochastic import GaussianResponse, add_noise
from geophone.perturb import GaussianNoise, LinfPGD, PGDSteps, RandomSign
from geophone.probes import grams, part
from geophone.probes.checks import AttackChecks, LayerAxes, ModelChecks
from geophone.probes.curves import Curves
from geophone.probes.exemplars import Exemplars
from geophone.probes.gradients import Gradients
from geophone.probes.layer_maps import LayerMap
from geophone.probes.layers import Layers
from geophone.probes.pairs import Pairs
from geophone.probes.part import Part
from geophone.probes.probe import PROBES, Probe
from geophone.probes.survival import Robustness

N = 26
PGD = LinfPGD(eps=0.1, steps=2)
SHAKEN = (
    GaussianNoise(0.1),
    GaussianNoise(0.3),
    PGD,
    PGDSteps(steps=2, step_size=0.02),
    PGDSteps(steps=4, step_size=0.02),
)
"""Two levels of noise; an attack; and an attack whose longer run goes on from the shorter."""
METRICS = "accuracy", "class_selectivity", "class_selectivity_floor", "participation_ratio", "cka", "pwcca", "two_nn"

EXAMPLES: dict[str, Probe] = {
    "Layers": Layers(SHAKEN, metrics=(*METRICS, "manifold_capacity", "perturbation_l2"), batch_size=4),
    "Pairs": Pairs(batch_size=4),
    "Robustness": Robustness((PGD, RandomSign(eps=0.1)), restarts=2, passes=3, batch_size=4),
    "Curves": Curves((PGD,), eps=(0.05, 0.1), passes=3, batch_size=4),
    "Gradients": Gradients(batch_size=4),
    "Exemplars": Exemplars((RandomSign(eps=0.1), PGD), exemplars=4, copies=4, features=20, n_t=6, n_reps=1),
    "LayerMap": LayerMap(("cka_minibatch", "cka_minibatch_deconfounded", "cka"), batch_size=4, points=20),
    "ModelChecks": ModelChecks(),
    "LayerAxes": LayerAxes(),
    "AttackChecks": AttackChecks(images=3),
}
DIVISIBLE = [name for name in EXAMPLES if name not in ("ModelChecks", "LayerAxes", "AttackChecks")]


def net(std: float | None = None, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.ReLU() if std is None else add_noise(nn.ReLU(), GaussianResponse(std))
        return nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), first, nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(36, 3)),
        )


def images(n: int = N) -> Split:
    """Batches differ tenfold in contrast, so that a scale taken from one of them shows."""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    contrast = torch.linspace(0.1, 1, n)[:, None, None, None]
    return Split(0.5 + contrast * (x - 0.5), torch.arange(n) % 3, torch.arange(n))


def models(name: str, std: float | None) -> list[nn.Module]:
    return [net(std), net(std, 1)] if name == "Pairs" else [net(std)]


def rows(probe: Probe, made: Part) -> pl.DataFrame:
    return table.frame(probe.rows(made))


@cache
def whole(name: str, probe: Probe, std: float | None, chunk: int = part.CHUNK) -> pl.DataFrame:
    split = images()
    probe = probe.resolved(split)
    with opened(models(name, std), split) as subject:
        return rows(probe, probe.part(subject, split, range(probe.steps(split))))


def ranges(steps: int, seed: int) -> list[range]:
    cuts = sorted(Random(seed).sample(range(1, steps), min(3, steps - 1)))
    return [range(a, b) for a, b in zip([0, *cuts], [*cuts, steps], strict=True)]


def divided(
    name: str,
    probe: Probe,
    std: float | None,
    folder: Path,
    seed: int = 0,
    part_of: Callable[[Probe, Subject, Split, range], Part] = lambda probe, *rest: probe.part(*rest),
) -> pl.DataFrame:
    """In ranges, each on a subject opened anew, saved, read back, and merged in an order of chance."""
    split, parts = images(), []
    probe = probe.resolved(split)
    for place, some in enumerate(ranges(probe.steps(split), seed)):
        with opened(models(name, std), split) as subject:
            part_of(probe, subject, split, some).save(folder / f"{place}.safetensors")
        parts.append(Part.load(folder / f"{place}.safetensors", probe.kinds))
    Random(seed).shuffle(parts)
    merged = parts[0]
    for more in parts[1:]:
        merged = merged + more
    return rows(probe, merged)


def test_every_probe_is_here() -> None:
    assert set(EXAMPLES) == set(PROBES)


@pytest.fixture(params=[2, 32], ids="chunks of {}".format)
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "CHUNK", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("std", [None, 0.3])
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_any_division_gives_the_same_rows(name: str, std: float | None, tmp_path: Path) -> None:
    expected = whole(name, EXAMPLES[name], std, part.CHUNK)
    assert len(expected)
    assert divided(name, EXAMPLES[name], std, tmp_path).equals(expected)


def cut(probe: Probe, subject: Subject, split: Split, some: range) -> Part:
    """The mutant: the data are cut, in place of a range of steps over all of them."""
    size: int = getattr(probe, "batch_size")  # noqa: B009
    few = split.rows(torch.arange(some.start * size, min(some.stop * size, len(split))))
    made = probe.part(subject, few, range(probe.steps(few)))
    return Part({(a + some.start, b + some.start): sums for (a, b), sums in made.blocks.items()}, made.facts)


def test_cut_data_are_found_out(tmp_path: Path) -> None:
    """Labels are shuffled among the examples of the part alone."""
    probe = replace(EXAMPLES["Layers"], metrics=("class_selectivity_floor",), perturbations=())
    expected = whole("Layers", probe, None)
    facts = {"examples": N, "order": ["1", "3"]}
    split, parts = images(), []
    with opened([net()], split) as subject:
        parts = [cut(probe.resolved(split), subject, split, some) for some in ranges(7, 0)]
    made = parts[0]
    for more in parts[1:]:
        made = made + replace(more, facts={**more.facts, "examples": made.facts["examples"]})
    assert {**made.facts, **facts}["order"] == made.facts["order"]
    assert not rows(probe, made).equals(expected)


@pytest.mark.parametrize("name", DIVISIBLE)
def test_noise_that_is_seeded_once_is_found_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(name, EXAMPLES[name], 0.3)
    monkeypatch.setattr(Subject, "reseed", lambda *_: None)
    assert not divided(name, EXAMPLES[name], 0.3, tmp_path).equals(expected)


def test_a_scale_of_the_first_batch_seen_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole("LayerMap", EXAMPLES["LayerMap"], None)
    real = grams._scaled
    first: dict[int, Any] = {}

    def scaled(found: Any, responses: Any, powers: Any, look: bool) -> Any:
        made = real(found, responses, powers, look)
        scale = first.setdefault(0, made.scale)
        return replace(
            made, grams=made.grams * (scale / made.scale).float()[:, None, None], scale=torch.ones_like(scale)
        )

    monkeypatch.setattr(grams, "_scaled", scaled)

    def anew(probe: Probe, *rest: Any) -> Part:
        first.clear()
        return probe.part(*rest)

    assert not divided("LayerMap", EXAMPLES["LayerMap"], None, tmp_path, part_of=anew).equals(expected)


# What else is measured


def less() -> Iterator[tuple[str, Probe, pl.Expr]]:
    """A probe that measures less, and which rows of the whole it has to give."""
    layers = EXAMPLES["Layers"]
    assert isinstance(layers, Layers)
    for place, one in enumerate(SHAKEN):
        left = (*SHAKEN[:place], *SHAKEN[place + 1 :])
        named = pl.col("perturbation") == repr(one).partition("(")[0]
        gone = (named | pl.col("perturbation").str.starts_with(repr(one).partition("(")[0])) & (
            pl.col("level") == float(getattr(one, one.level))
        )
        yield f"without {one}", replace(layers, perturbations=left), ~gone
    for metric in METRICS:
        yield (
            f"without {metric}",
            replace(layers, metrics=tuple(m for m in layers.metrics or () if m != metric)),
            pl.col("metric") != metric,
        )
    kept = pl.col("layer").is_null() & pl.col("note").str.starts_with("mean over").not_() | (pl.col("layer") == "3")
    yield "without a layer", replace(layers, layers=("3",)), pl.col("layer").is_null() | (pl.col("layer") == "3") & kept


@pytest.mark.parametrize("std", [None, 0.3])
@pytest.mark.parametrize(("probe", "kept"), [pytest.param(p, k, id=i) for i, p, k in less()])
def test_what_else_is_measured_does_not_matter(probe: Probe, kept: pl.Expr, std: float | None) -> None:
    same = ["family", "perturbation", "level", "layer", "metric", "unit", "value", "low", "high", "n", "d"]
    # Means over layers are over those that there are.
    own = pl.col("note").fill_null("").str.starts_with("mean over").not_()
    expected = whole("Layers", EXAMPLES["Layers"], std).filter(kept, own).select(same)
    got = whole("Layers", probe, std).filter(own).select(same)
    assert got.sort(same).equals(expected.sort(same))


@pytest.mark.parametrize("std", [None, 0.3])
def test_another_attack_does_not_matter(std: float | None) -> None:
    one = whole("Robustness", replace(EXAMPLES["Robustness"], attacks=(PGD,)), std)
    both = whole("Robustness", EXAMPLES["Robustness"], std)
    own = pl.col("perturbation").str.starts_with("LinfPGD")
    assert one.filter(own).equals(both.filter(own))
    curve = whole("Curves", replace(EXAMPLES["Curves"], attacks=(PGD, LinfPGD(eps=0.1, steps=1))), std)
    assert curve.filter(pl.col("perturbation") == "LinfPGD(steps=2)").equals(whole("Curves", EXAMPLES["Curves"], std))


# Parts


def made(*steps: int) -> Part:
    parts = [Part.of(step, {("x",): part.Columns({"x": torch.tensor([float(step)])})}, {"a": (1, 2)}) for step in steps]
    total = parts[0]
    for more in parts[1:]:
        total = total + more
    return total


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeophoneError, match="overlap at step 1"):
        made(0, 1) + made(1, 2)
    with pytest.raises(GeophoneError, match="of different measurements.*: a differ"):
        made(0) + Part.of(1, {}, {"a": 3})
    with pytest.raises(GeophoneError, match=r"steps are missing: there are \(\(0, 1\), \(2, 3\)\)"):
        made(0, 2).total()
    with pytest.raises(GeophoneError, match="steps are missing"):
        made(1, 2).total()
    path = tmp_path / "part.safetensors"
    made(3, 0, 2, 1).save(path)
    assert Part.load(path, ()).total()["x",]["x"].tolist() == [0, 1, 2, 3]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(GeophoneError, match="corrupt"):
        Part.load(path, ())
    path.write_bytes(b"no part")
    with pytest.raises(GeophoneError, match="no part of a measurement"):
        Part.load(path, ())


def test_what_is_kept_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that can be added are: of 2 steps a chunk, 13 steps in order are runs of 8, 4 and 1."""
    monkeypatch.setattr(part, "CHUNK", 2)
    assert sorted(made(*range(13)).blocks) == [(0, 8), (8, 12), (12, 13)]
    assert sorted(made(*reversed(range(13))).blocks) == [(0, 8), (8, 12), (12, 13)]
    assert sorted(made(1, 2, 3).blocks) == [(1, 2), (2, 4)]
