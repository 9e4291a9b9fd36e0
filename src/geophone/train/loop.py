"""The training loop: one function for every recipe, to be read from top to bottom."""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geophone.core.arguments import check_fields, checked
from geophone.core.checksums import BLANK, is_sealed, is_whole, read_checked, sealed
from geophone.core.errors import GeophoneError, check_is, reason_of, short, unknown
from geophone.core.files import replacing
from geophone.core.registry import PERTURBATIONS, RECIPES
from geophone.core.rng import draws, key, stream
from geophone.core.types import Recipe, describe, device_of
from geophone.data import ImageData, crop_flip
from geophone.models.run import check_attacked, deterministic, evaluating, seeded
from geophone.stats import Outcomes, total
from geophone.train.validation import KEPT, Shaken, kept, robust_accuracy, single_step

LATER = (
    *(("keep", "best"), ("validate", None), ("snapshots", ())),
    *(("exemplars", ()), ("exemplar_images", 50), ("exemplar_copies", 50), ("features", 2000)),
)
"""What `Training` and jobs learnt after jobs and states had been written without it, and its defaults."""


@dataclass(frozen=True)
class Training:
    """How long and how fast to train: SGD with Nesterov momentum, and a schedule of the learning rate.

    The rate rises linearly over the first `warmup` share of the steps. Then it falls to 0 along a half cosine, or, with
    `milestones`, is multiplied by 0.1 at the end of each of these epochs.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step; the last, shorter batch of an epoch is left out.
        lr: Largest learning rate.
        momentum: Of SGD.
        weight_decay: On all parameters.
        warmup: Share of all steps, in [0, 1).
        milestones: Epochs after which the rate falls tenfold.
        crop: Padding in pixels for random crops; 0 for none.
        flip: Whether to mirror images at random.
        keep: Which epoch's network stays, on validation images: "best", the highest clean accuracy; "robust", the
            highest robust accuracy; "last", the last epoch. Of equally good epochs the first.
        validate: A perturbation as code, such as 'LinfPGD(eps=8/255, steps=10)': robust accuracy under it is recorded
            after each epoch. Default none; where `keep` or the recipe needs one, the recipe's own threat model.
        snapshots: Epochs after which the network is handed out, from 1.

    Raises:
        GeophoneError: a value that makes no sense, such as no epochs.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    milestones: tuple[int, ...] = ()
    crop: int = 0
    flip: bool = False
    keep: str = "best"
    validate: str | None = None
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (self.lr > 0, "above 0"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "crop": (self.crop >= 0, "at least 0"),
            "snapshots": (all(1 <= e <= self.epochs for e in self.snapshots), f"epochs from 1 to {self.epochs}"),
        }
        for name, (holds, what) in allowed.items():
            if not holds:
                raise GeophoneError(f"Training({name}={getattr(self, name)}): allowed is {what}.")
        if self.keep not in KEPT:
            raise unknown("epoch to keep", self.keep, KEPT)
        if self.validate is not None:
            PERTURBATIONS.build(self.validate)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of one step out of `steps`."""
        done = step / steps
        if done < self.warmup:
            return self.lr * (step + 1) / (self.warmup * steps + 1)
        if self.milestones:
            return self.lr * 0.1 ** sum(done * self.epochs >= epoch for epoch in self.milestones)
        return self.lr * 0.5 * (1 + cos(pi * (done - self.warmup) / (1 - self.warmup)))


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose initial weights depend on the seed only; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "weights"))
        return make()


def content(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `asdict`: all but what is in `LATER`, at its default, so that older ids and states hold."""
    return {name: value for name, value in pairs if (name, value) not in LATER}


def watched(recipe: Recipe, training: Training) -> Shaken | None:
    """Under what robust validation accuracy is recorded after each epoch: None for nothing.

    `training.validate`; else the recipe's own `threat`, where it is single-step or the most robust epoch is kept.

    Raises:
        GeophoneError: the most robust epoch is to be kept, and nobody says against what.
    """
    if training.validate is not None:
        given: Shaken = PERTURBATIONS.build(training.validate)
        return given
    threat: Shaken | None = recipe.threat
    if training.keep == "robust" and threat is None:
        raise GeophoneError(
            f"Training(keep='robust') with {describe(recipe)}, which trains against nothing: say against what robust "
            "accuracy is to be measured, as in validate='LinfPGD(eps=8/255, steps=10)'."
        )
    return threat if training.keep == "robust" or recipe.single_step else None


def _recipe(given: Recipe | str) -> Recipe:
    made: Recipe = RECIPES.build(given) if isinstance(given, str) else given
    check_is(Recipe, "a recipe as an object, such as Standard(), or as text", recipe=made)
    return made


@checked
def fit(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe | str,
    training: Training = Training(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    snapshot: Callable[[int, nn.Module], None] | None = None,
) -> list[dict[str, int | float]]:
    """Train a network in place and leave it, in evaluation mode, at the epoch that `training.keep` names.

    Without validation images it stays at the last epoch. Deterministic for one seed on one kind of device and number of
    threads. On CUDA the training step runs under bfloat16 autocast.

    Args:
        model: Trained in place, on the device where it is.
        data: Training and validation images.
        recipe: How a batch becomes a loss: an object, or the code that makes a registered one, as "Standard".
        training: Length and schedule.
        seed: Keys the order of the images, the augmentation and the recipe's randomness.
        checkpoint: A file for the state after each epoch. When it is there already, training goes on from it.
        progress: Called with (steps done, steps in all).
        snapshot: Called with (epoch, network) after each epoch of `training.snapshots`, before the state is written: a
            training that was interrupted has called it for every one of them by its end, for some perhaps twice. The
            network goes on training, so it must be copied or written at once.

    Returns:
        One record per epoch: `epoch` (from 1), mean training `loss`, validation `accuracy`. Where robustness is watched
        (see `watched`) also `robust`, the share of validation images right both clean and perturbed, and, where that is
        an attack in the l∞ ball, `fgsm`, the same under one step of its radius.

    Raises:
        GeophoneError: no training images, labels that they lack or that the network has no output for, no validation
            images where robust accuracy on them is asked for, nothing to measure it by, a network with one logit or
            that the recipe is not for, a loss that is not finite, or a checkpoint of something else.
    """
    recipe = _recipe(recipe)
    device = device_of(model)
    data = data.to(device)
    per_epoch = len(data.train) // training.batch_size
    if per_epoch == 0:
        raise GeophoneError(
            f"{data.name} has {len(data.train)} training images, fewer than one batch of {training.batch_size}. "
            "Give more images or a smaller batch_size."
        )
    recipe.check_network(model)
    check_attacked(model, data.train, "training")
    shaken = watched(recipe, training)
    if not len(data.val) and (training.keep == "robust" or training.validate is not None):
        raise GeophoneError(
            f"{data.name} has no validation images to measure robust accuracy on: give some, or leave out "
            "keep='robust' and validate."
        )
    steps = per_epoch * training.epochs
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    purpose = f"{describe(recipe)} {asdict(training, dict_factory=content)} seed {seed}"
    history: list[dict[str, int | float]] = []
    best: dict[str, Any] = {"weights": {}}
    if checkpoint is not None and checkpoint.is_file():
        history, best = _resume(checkpoint, purpose, model, optimizer, device)

    with deterministic():
        for epoch in range(len(history), training.epochs):
            with _own_randomness(device, key(seed, "epoch", epoch)):
                model.train()
                order = torch.randperm(len(data.train), generator=stream(seed, "order", epoch)).to(device)
                order = order[: per_epoch * training.batch_size]
                losses = []
                for i, batch in enumerate(data.train.batches(training.batch_size, order)):
                    step = epoch * per_epoch + i
                    rng = draws(seed, "train", epoch, index=batch.index)
                    x = crop_flip(batch.x, rng.child("augment"), training.crop, training.flip)
                    x = x.contiguous(memory_format=torch.channels_last)
                    for group in optimizer.param_groups:
                        group["lr"] = training.rate(step, steps)
                    optimizer.zero_grad()
                    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                        loss = recipe.loss(model, x, batch.y, rng)
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
                    if progress is not None:
                        progress(step + 1, steps)
            mean_loss = float(torch.stack(losses).double().mean())
            if not isfinite(mean_loss):
                raise GeophoneError(
                    f"training with {describe(recipe)} diverged in epoch {epoch + 1}: the loss is {mean_loss}. "
                    f"Lower the learning rate ({training.lr})."
                )
            with seeded(key(seed, "validation", epoch), device):  # of a stochastic network
                accuracy = _accuracy(model, data, training.batch_size)
            history.append({"epoch": epoch + 1, "loss": mean_loss, "accuracy": accuracy})
            if shaken is not None and len(data.val):
                for name, perturbation in (("robust", shaken), ("fgsm", single_step(shaken))):
                    if perturbation is not None:
                        history[-1][name] = robust_accuracy(
                            model, data.val, perturbation, batch_size=2 * training.batch_size, seed=seed
                        )
            if kept(history, training.keep if len(data.val) else "last") is history[-1]:
                best = {"weights": {k: v.clone() for k, v in model.state_dict().items()}}
            if snapshot is not None and epoch + 1 in training.snapshots:
                with evaluating(model):
                    snapshot(epoch + 1, model)
            if checkpoint is not None:
                _save(checkpoint, purpose, model, optimizer, history, best)
    model.load_state_dict(best["weights"])
    model.eval()
    return history


def _accuracy(model: nn.Module, data: ImageData, batch_size: int) -> float:
    """Share of the validation images classified right; 0 when there are none."""
    if len(data.val) == 0:
        return 0.0
    with evaluating(model), torch.no_grad():
        outcomes = total(Outcomes.of(batch.with_x(model(batch.x))) for batch in data.val.batches(2 * batch_size))
    return float(outcomes.correct.sum()) / outcomes.n


def _save(
    path: Path,
    purpose: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[Any],
    best: dict[str, Any],
) -> None:
    state = {"purpose": purpose, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    made = io.BytesIO()
    torch.save({**state, "history": history, "best": best}, made)
    with replacing(path) as temporary:
        temporary.write_bytes(sealed(made.getvalue() + BLANK.encode()))


def _resume(
    path: Path, purpose: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[list[Any], dict[str, Any]]:
    again = "Delete it to start anew."
    data = read_checked(path, again)
    if not _sums_hold(data):
        raise GeophoneError(f"{path} is corrupt (its contents do not fit their checksums). {again}")
    try:
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        known, history, best = state["purpose"], state["history"], state["best"]
        if known == purpose:
            model.load_state_dict(best["weights"])  # fails here and not after hours
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            _check_history(history)
    except Exception as error:  # a broken file fails in many ways
        raise GeophoneError(f"{path} is not a readable training state ({reason_of(error)}). {again}") from None
    if known != purpose:
        raise GeophoneError(f"{path} is the state of another training ({short(known)}). {again}")
    return history, best


def _check_history(history: Any) -> None:
    """Raise an error for what is not one record after the other, as `fit` makes them."""
    for place, record in enumerate(history):
        numbers = [record["epoch"], record["loss"], record["accuracy"]]
        if record["epoch"] != place + 1 or not all(type(number) in (int, float) for number in numbers):
            raise ValueError(f"its record of epoch {place + 1} is {short(record)}")


def checkpoint_is_whole(path: Path) -> bool:
    """Whether the state of a training is what was written; of earlier versions', whether its own checks hold."""
    try:
        return _sums_hold(path.read_bytes())
    except OSError:
        return False


def _sums_hold(data: bytes) -> bool:
    if is_sealed(data):
        return is_whole(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    except Exception:  # of zipfile and its decompressors: a broken file fails in many ways
        return False


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """A global random state of its own inside the block, for layers such as dropout that draw from it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
