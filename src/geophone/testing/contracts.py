"""The contract of each kind of thing, as checks that run on the package's own and on a plug-in's alike.

`broken_contracts(kind, name)` runs them on a registered thing and returns one line for each promise that is not kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.core.registry import RECIPES, REGISTRIES
from geophone.core.rng import draws, stream
from geophone.core.types import Pair, describe
from geophone.data import ImageData, Split
from geophone.metrics import Metric, Undefined
from geophone.models.run import opened
from geophone.probes import Probe
from geophone.stats import total
from geophone.study import Job, Study
from geophone.testing.perturbation_laws import check_perturbation
from geophone.testing.statistic_laws import examples, merges_to_the_whole
from geophone.train import initialised

Law = Callable[[str, Any], None]


def broken_contracts(kind: str, name: str) -> list[str]:
    """Run the contract of a kind ("metrics", "perturbations", …) on a registered thing; what is broken, a line each."""
    thing = REGISTRIES[kind][name]
    if kind == "perturbations":
        return check_perturbation(thing)
    broken = []
    for law in LAWS[kind]:
        try:
            law(name, thing)
        except Exception as error:  # a plug-in may fail in any way
            label = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            broken.append(f"{law.__name__}: {label}{error}")
    return broken


def has_a_summary(name: str, thing: Any) -> None:
    """The docstring's first line, which `geophone list` shows, says what it is."""
    text = thing.doc if isinstance(thing, Metric) else (thing.__doc__ or "")
    _require(text.strip() != "" and not text.startswith(f"{name}("), "write a docstring: its first line is listed")


def statistic_merges(name: str, thing: Metric) -> None:
    """Its statistic does not depend on how the examples were split or ordered."""
    for n, seed in ((12, 0), (31, 1)):
        data = examples(thing.reads, n, 4, seed, offset=float(seed))
        order = torch.randperm(n, generator=stream("order", seed))
        merges_to_the_whole(thing.statistic, data, [order[:5], order[5:6], order[6:]])


def gives_numbers(name: str, thing: Metric) -> None:
    """One finite number, or one per unit, and the same each time; inside its interval where it has one."""
    statistic = thing.statistic.of(examples(thing.reads, 200, 6))
    value = thing.compute(statistic)
    again = thing.compute(statistic)
    if thing.per_unit:
        _require(isinstance(value, Tensor) and value.shape == (6,), "a per_unit metric returns a tensor [d]")
        _require(bool(value.isfinite().all()) and torch.equal(value, again), "values must be finite and repeat")
        return
    _require(isinstance(value, float | int), f"returns a number, not {type(value).__name__}; or set per_unit=True")
    _require(isfinite(value) and value == again, f"values must be finite and repeat: {value}, {again}")
    if thing.interval is not None:
        low, high = thing.interval(statistic)
        _require(low <= value <= high, f"the value {value} is outside its interval [{low}, {high}]")


def undefined_is_said(name: str, thing: Metric) -> None:
    """On one example, or on responses that are all the same, it gives a finite number or raises `Undefined`."""
    single = examples(thing.reads, 1, 3)
    same = examples(thing.reads, 8, 3)
    for tensor in (same.a, same.b) if isinstance(same, Pair) else (same.x,):
        tensor[:] = 1.0
    for data in (single, same):
        try:
            value = torch.as_tensor(thing.compute(thing.statistic.of(data)))
        except Undefined:
            continue
        _require(
            bool(value.isfinite().all()), f"gives {value.tolist()} where it is undefined: raise geophone.Undefined"
        )


def is_frozen_code(name: str, thing: Any) -> None:
    """A frozen dataclass whose fields all have defaults, that prints itself as the code that makes it."""
    _require(is_dataclass(thing), "must be a frozen dataclass")
    _require(thing.__dataclass_params__.frozen, "write @dataclass(frozen=True)")
    made = thing()
    _require(hash(made) == hash(thing()), "must be hashable: fields are plain values")
    if name in RECIPES:
        _require(RECIPES.build(describe(made)) == made, f"{describe(made)} does not make it again")


def loss_trains(name: str, thing: Any) -> None:
    """The loss is a finite scalar with gradients for the weights, and the same for the same (x, y, rng)."""
    x = torch.rand(8, 1, 8, 8, generator=stream("contract", "images"))
    y = torch.arange(8) % 3
    kept = x.clone()
    losses = []
    for _ in range(2):
        model = initialised(_network, 0).train()
        loss = thing().loss(model, x, y, draws(0, "contract", index=torch.arange(8)))
        _require(loss.shape == () and bool(loss.isfinite()), "the loss is a finite scalar")
        _require(model.training, "the network must be left in train mode")
        losses.append(float(loss.detach()))
    _require(losses[0] == losses[1], f"the same (x, y, rng) gave {losses[0]} and {losses[1]}: draw from `rng` only")
    _require(torch.equal(x, kept), "the images were changed in place")
    loss.backward()
    _require(any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()), "no gradient for any weight")


def gives_logits(name: str, thing: Any) -> None:
    """Called with classes, mean and std, it makes a network from images of any size and channels to logits."""
    for channels, size, classes in ((1, 28, 10), (3, 32, 7)):
        model = thing(classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels)
        _require(isinstance(model, nn.Module), "returns a torch.nn.Module")
        model.eval()
        with torch.no_grad():
            logits = model(torch.rand(2, channels, size, size, generator=stream("contract", size)))
        _require(logits.shape == (2, classes), f"logits of shape {list(logits.shape)}, not [2, {classes}]")
        _require(bool(logits.isfinite().all()), "logits must be finite")


def is_a_study(name: str, thing: Any) -> None:
    """Every size expands to jobs of registered things, each of them once, the same each time."""
    made = thing(size="demo", seeds=(0, 1))
    _require(isinstance(made, Study), "needs the fields size and seeds, a `question` and a method `jobs`")
    jobs = list(made.jobs())
    _require(bool(jobs) and all(isinstance(job, Job) for job in jobs), "jobs() gives at least one Job")
    _require(len({job.id for job in jobs}) == len(jobs), "two jobs are the same")
    _require(
        [job.id for job in thing(size="demo", seeds=(0, 1)).jobs()] == [job.id for job in jobs], "jobs() must repeat"
    )
    for job in jobs:
        job.resolved()


def loads_if_there(name: str, thing: Any) -> None:
    """When its files are here, it gives an `ImageData` whose parts do not overlap."""
    try:
        data = thing()
    except (GeophoneError, TypeError):
        return
    _require(isinstance(data, ImageData), f"returns geophone.ImageData, not {type(data).__name__}")
    labels = torch.cat([part.y for part in (data.train, data.val, data.test)])
    _require(int(labels.min()) >= 0 and int(labels.max()) < len(data.classes), "labels out of the range of `classes`")
    known = {image.numpy().tobytes() for image in data.train.x}
    shared = sum(image.numpy().tobytes() in known for image in data.val.x)
    # Real sets hold a few images twice; a tenth of them cannot be chance.
    _require(shared <= len(data.val) / 10, f"{shared} of {len(data.val)} validation images are training images too")


def divides(name: str, thing: Any) -> None:
    """Its rows do not depend on how its steps were divided, nor on the order in which the parts are merged."""
    made = thing()
    if "batch_size" in {field.name for field in fields(made)}:
        made = replace(made, batch_size=4)
    x = torch.rand(12, 1, 8, 8, generator=stream("contract", "images"))
    split = Split(x, torch.arange(12) % 3, torch.arange(12))
    probe = made.resolved(split)
    models = [initialised(_network, seed) for seed in range(probe.models)]
    with opened(models, split) as subject:
        steps = probe.steps(split)
        probe.check(subject, split)
        whole = probe.part(subject, split, range(steps))
        parts = [probe.part(subject, split, range(step, step + 1)) for step in reversed(range(steps))]
    _require(isinstance(made, Probe), "must inherit geophone.Probe")
    rows = [table.frame(probe.rows(part)) for part in (whole, total(parts))]
    _require(len(rows[0]) > 0, "gives no rows")
    _require(rows[0].equals(rows[1]), "other rows when its steps are done apart: a step looks at nothing before it")


LAWS: dict[str, tuple[Law, ...]] = {
    "metrics": (has_a_summary, statistic_merges, gives_numbers, undefined_is_said),
    "recipes": (has_a_summary, is_frozen_code, loss_trains),
    "models": (has_a_summary, gives_logits),
    "studies": (has_a_summary, is_frozen_code, is_a_study),
    "data": (has_a_summary, loads_if_there),
    "probes": (has_a_summary, is_frozen_code, divides),
}


def registered_by(origin: str) -> Iterator[tuple[str, str]]:
    """Kind and name of everything that a plug-in registered."""
    for kind, registry in REGISTRIES.items():
        yield from ((kind, name) for name in registry if registry.origin(name) == origin)


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def _require(held: bool, what: str) -> None:
    if not held:
        raise AssertionError(what)
