"""What every perturbation promises, as checks that run on the package's own and on a plug-in's alike.

A law takes `make`, which makes one perturbation (`lambda: LinfPGD(eps=0.1)`), and raises `AssertionError` saying what
was promised and what happened. `PERTURBATION_LAWS` holds all of them; `check_perturbation` runs them.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError, fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws, draws, stream
from geophone.core.types import Batch, Model, Perturbation, describe
from geophone.perturb import at_level
from geophone.perturb.attacks.norms import norm_of

Make = Callable[[], Perturbation]

_ROUNDING = 1e-9  # of float64: a batched gradient may differ by some 1e-15, and a few steps carry that on


def keeps_shape_and_dtype(make: Make) -> None:
    """The result has x's shape and dtype and no gradient graph: grey and colour, odd sizes, float32 and float64."""
    for shape in ((4, 3, 8, 8), (1, 1, 7, 5)):
        for dtype in (torch.float32, torch.float64):
            batch = _batch(shape, dtype)
            out = _apply(make(), batch, _network(shape[1], dtype))
            _require(
                out.shape == batch.x.shape and out.dtype == dtype,
                f"x is {list(shape)} {dtype}, the result is {list(out.shape)} {out.dtype}",
            )
            _require(not out.requires_grad, "the result carries a gradient graph: detach it")


def stays_in_range(make: Make) -> None:
    """Every value stays in [0, 1], at the strongest default level too."""
    perturbation, batch = make(), _batch()
    for one in (perturbation, at_level(perturbation, max(perturbation.levels))):
        out = _apply(one, batch)
        low, high = out.min().item(), out.max().item()
        _require(low >= 0 and high <= 1, f"{one!r} gives values in [{low}, {high}]: clip to [0, 1]")


def repeats_itself(make: Make) -> None:
    """The same (x, rng) gives the same bits, whatever the global random state."""
    batch = _batch()
    with _global_seed(1):
        first = _apply(make(), batch)
    with _global_seed(2):
        second = _apply(make(), batch)
    _require(torch.equal(first, second), "the same (x, rng) gave two results: draw from `rng` only")


def ignores_batch_size_and_order(make: Make) -> None:
    """An image's result is the same alone, in any batch and in any order.

    To the bit, but for attacks: a batched gradient is rounded differently, so theirs is compared in float64.
    """
    batch = _batch(dtype=torch.float64)
    tolerance = _ROUNDING if make().family == "attack" else 0.0
    whole = _apply(make(), batch)
    for rows in ([4, 0, 2, 5, 1, 3], [3], [1, 2], [0, 5, 4]):
        part = _apply(make(), Batch(batch.x[rows], batch.y[rows], batch.index[rows]))
        gap = (part - whole[rows]).abs().max().item()
        _require(gap <= tolerance, f"images {rows} alone differ by {gap:.2g} from the same in a batch of {len(batch)}")


def draws_for_each_example(make: Make) -> None:
    """What the seed changes, the example's index changes too: no two images share their noise. All noise is random."""
    one = _batch((1, 3, 8, 8))
    copies = Batch(one.x.expand(6, -1, -1, -1).contiguous(), one.y.expand(6).contiguous(), torch.arange(6))
    first, second = _apply(make(), copies), _apply(make(), copies, seed="another")
    seeded = not torch.equal(first, second)
    _require(seeded or make().family != "noise", "another seed gives the same noise: draw from `rng`")
    _require(
        not seeded or not torch.equal(first, first[:1].expand_as(first)),
        "equal images with different indices got the same draws: use `rng.normal(name, *x.shape[1:])`",
    )


def leaves_its_input_alone(make: Make) -> None:
    """X and y are not written to, and the result does not share memory with x (at level 0 neither)."""
    for one in (make(), at_level(make(), 0)):
        batch = _batch()
        x, y = batch.x.clone(), batch.y.clone()
        out = _apply(one, batch)
        _require(torch.equal(batch.x, x) and torch.equal(batch.y, y), f"{one!r} changed its input in place")
        out.fill_(0.5)
        _require(torch.equal(batch.x, x), f"{one!r} returns x's own memory: return a copy")


def leaves_the_model_alone(make: Make) -> None:
    """No parameter gradient is left, nothing is frozen or thawed, and no weight or BatchNorm statistic has moved."""
    network = _network()
    parameters = dict(network.named_parameters())
    parameters["0.weight"].requires_grad_(False)
    parameters["0.bias"].grad = torch.full_like(parameters["0.bias"], 3.0)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _apply(make(), _batch(), network)
    for name, parameter in parameters.items():
        left = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
        kept = left == (3.0 if name == "0.bias" else 0.0)
        _require(
            kept, f"the gradient of parameter {name} was changed: use torch.autograd.grad(loss, x), not .backward()"
        )
        _require(parameter.requires_grad == (name != "0.weight"), f"requires_grad of {name} was changed")
    for name, tensor in network.state_dict().items():
        _require(torch.equal(tensor, state[name]), f"{name} of the model was changed: evaluate it in evaluation mode")


def restores_training_flags(make: Make) -> None:
    """Each module's `training` is as it was, a frozen BatchNorm's too, and also when the model fails."""
    for failing in (False, True):
        network = _network(failing=failing)
        before = [module.training for module in network.modules()]
        with suppress(_ModelFailed):
            _apply(make(), _batch(), network)
        after = [module.training for module in network.modules()]
        when = " when the model raises" if failing else ""
        _require(
            before == after, f"training flags were {before}, and are {after}{when}: save and restore each module's"
        )


def evaluates_the_model(make: Make) -> None:
    """A model in training mode is perturbed as one in evaluation mode: dropout and batch statistics play no part."""
    training, evaluating = _network(), _network().eval()
    same = torch.equal(_apply(make(), _batch(), training), _apply(make(), _batch(), evaluating))
    _require(same, "the result depends on the model's training mode: put it in evaluation mode meanwhile")


def leaves_global_randomness_alone(make: Make) -> None:
    """The global random states of torch and numpy are as they were.

    That of Python's `random` isn't looked at, because run-time type checkers draw from it.
    """
    with _global_seed(1):
        before = _global_random_state()
        _apply(make(), _batch())
        after = _global_random_state()
    for name, was, now in zip(("torch", "numpy"), before, after, strict=True):
        _require(was == now, f"the global random state of {name} has moved: draw from `rng` only")


def works_where_gradients_are_off(make: Make) -> None:
    """Inside `torch.no_grad()` and `torch.inference_mode()` the result is the same, and gradients stay off after it."""
    network, expected = _network(), _apply(make(), _batch(), _network())
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            out = _apply(make(), _batch(), network)
            _require(not torch.is_grad_enabled(), f"gradients are on after a call inside torch.{off.__name__}()")
        _require(torch.equal(out, expected), f"the result differs inside torch.{off.__name__}()")


def takes_a_plain_function(make: Make) -> None:
    """A model may be a function from images to logits."""
    network, batch = _network(dtype=torch.float64).eval(), _batch(dtype=torch.float64)
    function: Model = lambda x: network(x)  # noqa: E731
    # An attack may make a module faster in a way that rounds differently.
    gap = (_apply(make(), batch, function) - _apply(make(), batch, network)).abs().max().item()
    tolerance = _ROUNDING if make().family == "attack" else 0.0
    _require(gap <= tolerance, f"the result differs by {gap:.2g} when the model is wrapped in a function")


def stays_in_its_ball(make: Make) -> None:
    """Where the class names a `norm`, no image moves further than the level in it at any default level."""
    perturbation, batch = make(), _batch(dtype=torch.float64)
    norm = norm_of(perturbation)
    if norm is None:
        return
    for level in perturbation.levels:
        delta = _apply(at_level(perturbation, level), batch) - batch.x
        length = torch.linalg.vector_norm(delta.flatten(1), norm.order, dim=1).max().item()
        _require(
            length <= level * (1 + _ROUNDING),
            f"an image moved by {length:.6g} in the {norm.order:g}-norm at level {level:.6g}: project on the ball",
        )


def level_zero_changes_nothing(make: Make) -> None:
    """At level 0 the result is x, to the bit."""
    batch, identity = _batch(), at_level(make(), 0)
    _require(torch.equal(_apply(identity, batch), batch.x), f"{identity!r} changes the images")


def levels_grow_stronger(make: Make) -> None:
    """The default levels increase from above 0; each changes the images, the last one more than the first.

    Unless the class says `monotone = False`: some published severities go one way first and then the other.
    """
    perturbation, batch = make(), _batch(dtype=torch.float64)
    levels = list(perturbation.levels)
    _require(bool(levels) and levels[0] > 0, f"default levels {levels}: give at least one, above 0")
    _require(all(a < b for a, b in pairwise(levels)), f"default levels {levels} must increase")
    moved = [(_apply(at_level(perturbation, level), batch) - batch.x).abs().mean().item() for level in levels]
    _require(min(moved) > 0, f"mean changes at levels {levels} are {moved}: each level must change the images")
    ordered = len(levels) > 1 and getattr(perturbation, "monotone", True)
    _require(not ordered or moved[0] < moved[-1], f"the strongest of {levels} moves images less than the weakest")


def is_plain_data(make: Make) -> None:
    """A frozen, hashable dataclass with a default for every field, whose text is the code that makes it."""
    perturbation: Any = make()
    name = type(perturbation).__name__
    _require(isinstance(perturbation, Perturbation), f"{name} lacks `level`, `levels`, `family` or a call")
    _require(is_dataclass(perturbation), f"{name} is not a dataclass: decorate it with @dataclass(frozen=True)")
    _require(
        perturbation.level in [f.name for f in fields(perturbation)], f"{name} has no field {perturbation.level!r}"
    )
    _require(make() == perturbation, f"two {name} of the same fields must be equal")
    try:
        hash(perturbation)
    except TypeError as error:
        raise AssertionError(f"{name} can't be hashed ({error}): freeze it, and use tuples for lists") from None
    try:
        setattr(perturbation, perturbation.level, 0)
        raise AssertionError(f"{name} can be changed after it is made: @dataclass(frozen=True)")
    except FrozenInstanceError:
        pass
    _require(PERTURBATIONS[name] is type(perturbation), f"{name} is registered as something else")
    for text in (repr(perturbation), describe(perturbation)):
        _require(PERTURBATIONS.build(text) == perturbation, f"{text} does not make {perturbation!r} again")
    PERTURBATIONS.build(name)


PERTURBATION_LAWS: tuple[Callable[[Make], None], ...] = (
    is_plain_data,
    keeps_shape_and_dtype,
    stays_in_range,
    level_zero_changes_nothing,
    levels_grow_stronger,
    stays_in_its_ball,
    repeats_itself,
    draws_for_each_example,
    ignores_batch_size_and_order,
    leaves_its_input_alone,
    leaves_the_model_alone,
    restores_training_flags,
    evaluates_the_model,
    takes_a_plain_function,
    works_where_gradients_are_off,
    leaves_global_randomness_alone,
)


def check_perturbation(make: Make) -> list[str]:
    """Run every law; one line, `law: what was broken`, for each that doesn't hold."""
    broken = []
    for law in PERTURBATION_LAWS:
        try:
            law(make)
        except Exception as error:  # a plug-in may fail in any way
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            broken.append(f"{law.__name__}: {kind}{error}")
    return broken


class _ModelFailed(Exception):
    """What the failing model raises."""


class _Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise _ModelFailed


def _network(channels: int = 3, dtype: torch.dtype = torch.float32, failing: bool = False) -> nn.Sequential:
    """A small network in training mode, with dropout and one BatchNorm that is frozen: the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            _Failing() if failing else nn.Linear(32, 5),
        )
    network[1].eval()
    return network.to(dtype)


def _batch(shape: tuple[int, ...] = (6, 3, 8, 8), dtype: torch.dtype = torch.float32) -> Batch:
    """Random images, some of whose values are 0 and 1, with indices that are not their positions."""
    generator = stream("laws", *shape)
    x = torch.rand(shape, generator=generator, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    y = torch.randint(5, (shape[0],), generator=generator)
    return Batch(x.to(dtype), y, torch.arange(shape[0]) * 7 + 100)


def _apply(perturbation: Perturbation, batch: Batch, model: Model | None = None, seed: str = "laws") -> Tensor:
    if model is None:
        model = _network(batch.x.shape[1], batch.x.dtype)
    rng: Draws = draws(seed, index=batch.index)
    return perturbation(batch.x, batch.y, model, rng)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global random states that a perturbation might use by mistake; they are put back after the block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _global_random_state() -> tuple[str, str]:
    return str(torch.get_rng_state().tolist()), str(np.random.get_state())  # noqa: NPY002


def _require(held: bool, what: str) -> None:
    if not held:
        raise AssertionError(what)
