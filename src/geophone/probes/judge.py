"""Asking a model what it answers under attack: nothing is taken on an attack's word.

A fresh forward pass judges every example that an attack returns; of a stochastic model, many of them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.rng import draws
from geophone.core.types import Averages, Batch, Ensemble, Model, Perturbation, StopsEarly, describe
from geophone.data import Split
from geophone.metrics import share_interval
from geophone.models.run import Subject, check_columns, check_labels, logits_of, need_labels
from geophone.models.stochastic import refuse_frozen
from geophone.perturb import L2, Attack
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import norm_of
from geophone.perturb.parse import family_name, named_perturbations

PASSES = 50
"""How many fresh passes judge an example of a stochastic network."""


@dataclass(frozen=True)
class Judge:
    """A model, how often it must be asked before its answer counts, and whether it answers at random."""

    model: Model
    passes: int
    classes: int
    stochastic: bool

    @classmethod
    def of(cls, subject: Subject, passes: int | None) -> "Judge":
        """By what the subject answers; by default 1 pass, or `PASSES` for a stochastic model."""
        stochastic = subject.stochastic()
        return cls(subject.model, passes or (PASSES if stochastic else 1), subject.answers().shape[1], stochastic)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Share of passes that are right, and mean margin, `[n]` each."""
        right = total = torch.zeros(len(y), dtype=torch.float32, device=x.device)
        for _ in range(self.passes):
            logits = logits_of(self.model, x)
            right = right + (logits.argmax(1) == y).float()
            total = total - margin(logits, y).float()
        return right / self.passes, total / self.passes


def check_robustness(subject: Subject, examples: Split) -> None:
    """Whether a subject's robustness can be measured on these examples.

    Raises:
        GeophoneError: its noise is frozen, it has one logit, or the labels are missing or not its outputs.
    """
    refuse_frozen(subject.model, "Robustness")
    first = subject.answers()
    check_columns(first)
    need_labels(examples, "an attack")
    check_labels(examples, first.shape[1])


def named_attacks(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """The attacks that were given, or named in a text; none for an empty one."""
    if isinstance(attacks, str) and not attacks.strip():
        return []
    return named_perturbations(attacks, levels=False)


def warn_of_noise(judge: Judge, attacks: Sequence[Perturbation]) -> None:
    """Say which attacks cannot average over a stochastic network's noise."""
    weak = {type(one).__name__: None for one in attacks if isinstance(one, Attack) and not isinstance(one, Averages)}
    if judge.stochastic and weak:
        warnings.warn(
            f"The network answers at random, and {', '.join(weak)} can't average over its noise: the robust accuracy "
            "that it shows is too high. Use attacks with draws=20, such as LinfAPGD, or version='rand' of AutoAttack.",
            stacklevel=3,
        )


def attacked(judge: Judge, batch: Batch, rows: Tensor, attack: Perturbation, restart: int, seed: int) -> Tensor:
    """What the attack returns for these rows of the batch; as cheaply as a network without randomness allows."""
    run = attack.fool if judge.passes == 1 and isinstance(attack, StopsEarly) else attack
    rng = draws(seed, family_name(attack), restart, index=batch.index[rows])
    return run(batch.x[rows], batch.y[rows], judge.model, rng)


def members(attacks: str | Perturbation | Sequence[Perturbation | str]) -> list[Perturbation]:
    """What `survival` runs for these attacks, in its order: an ensemble's members in its place, each once."""
    found: list[Perturbation] = []
    for attack in named_attacks(attacks):
        found += attack.members() if isinstance(attack, Ensemble) else [attack]
    return list(dict.fromkeys(found))


def survive(
    judge: Judge,
    batch: Batch,
    attacks: Sequence[Perturbation],
    restarts: int,
    every: bool,
    seed: int,
    reseed: Callable[..., None],
    step: Callable[[int], None] = lambda tried: None,
) -> tuple[Tensor, ...]:
    """Which examples of one batch survive which attacks.

    Args:
        judge: Asks the model.
        batch: The examples.
        attacks: What they are attacked with.
        restarts: How often by each.
        every: Whether an example is attacked by all attacks, or by none after one that fools it for good.
        seed: Keys the attacks' randomness.
        reseed: Sets the model's own, by what is done next.
        step: Called with the number of tries that are done.

    Returns:
         rate, margin, distance `[n, attacks, restarts]`, judged `[n, attacks]`, union and clean `[n]`.
    """
    x, y = batch.x, batch.y
    reseed("clean")
    clean, _ = judge(x, y)
    right = clean > 0
    shape = (len(y), len(attacks), restarts)
    rate, margins, distance = (torch.full(shape, math.nan, dtype=torch.float32, device=x.device) for _ in range(3))
    all_rows = torch.arange(len(y), device=x.device)
    # The worst candidates so far, and how often they are got right: of each attack, and in the last place of all.
    worst = [(clean.clone(), x.clone()) for _ in range(len(attacks) + 1)]
    for a, attack in enumerate(attacks):
        for r in range(restarts):
            # Another restart, or another attack unless every one is asked for, cannot do worse than never right.
            standing = right & (worst[a if every else -1][0] > 0)
            rows = all_rows[standing]
            if not len(rows):
                step(a * restarts + r + 1)
                continue
            reseed("attack", describe(attack), r)
            found = attacked(judge, batch, rows, attack, r, seed)
            rate[rows, a, r], margins[rows, a, r] = judge(found, y[rows])
            distance[rows, a, r] = (norm_of(attack) or L2).length(found - x[rows]).float()
            for least, image in (worst[a], worst[-1]):
                lower = rate[rows, a, r] < least[rows]
                image[rows[lower]] = found[lower]
                least[rows[lower]] = rate[rows, a, r][lower]
            step(a * restarts + r + 1)
    judged = []
    for least, image in worst:
        reseed("judged")
        judged.append(least if judge.passes == 1 else judge(image, y)[0])
    table_ = torch.stack(judged[:-1], dim=1)
    if not every:
        table_[right[:, None] & rate.isnan().all(2)] = math.nan
    return rate, margins, distance, table_, judged[-1], clean


def accuracy_of(right: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """Mean and its interval."""
    return share_interval(right.double().numpy())
