"""PGD over the number of steps."""

import pytest
import torch

from geophone.core.rng import draws, stream
from geophone.models import SmallCNN
from geophone.perturb import LinfPGD, PGDSteps
from geophone.probes.layers import measure
from geophone.train import initialised


def setting() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = initialised(lambda: SmallCNN(3, (0.5,), (0.5,), width=4), 0).eval()
    return model, torch.rand(10, 1, 8, 8, generator=stream("steps")), torch.arange(10) % 3


def test_it_is_pgd_with_its_defaults() -> None:
    model, x, y = setting()
    rng = draws(0, index=torch.arange(10))
    plain = LinfPGD(eps=16 / 255, steps=7, step_size=1e-4, random_start=False)(x, y, model, rng)
    assert torch.equal(PGDSteps(steps=7)(x, y, model, rng), plain)
    assert (plain - x).abs().max() <= 7e-4 + 7 * 2.0**-24  # each step rounds a value in [0, 1] to float32


@pytest.mark.parametrize("random_start", [False, True])
def test_going_on_is_the_same_as_beginning_anew(random_start: bool) -> None:
    model, x, y = setting()
    rng = draws(0, index=torch.arange(10))
    made = {k: PGDSteps(steps=k, step_size=0.01, random_start=random_start) for k in (3, 8)}
    weaker = made[3](x, y, model, rng)
    direct = made[8](x, y, model, rng)
    further = made[8].onward(weaker, made[3], x, y, model, rng)
    assert torch.equal(further, direct)
    # Mutant: all steps again from there, which goes too far.
    assert not torch.equal(made[8](weaker, y, model, rng), direct)


def test_a_table_over_steps_does_not_depend_on_which_others_are_asked_for() -> None:
    model, x, y = setting()
    levels = [PGDSteps(steps=k, step_size=0.01) for k in (2, 6, 9)]
    together = measure(model, (x, y), levels, metrics=["margin"])
    alone = measure(model, (x, y), levels[2:], metrics=["margin"])
    backwards = measure(model, (x, y), levels[::-1], metrics=["margin"])
    for table in (together, backwards):
        rows = table.filter((table["level"] == 9) & (table["family"] == "attack"))
        assert rows["value"].to_list() == alone.filter(alone["family"] == "attack")["value"].to_list()
