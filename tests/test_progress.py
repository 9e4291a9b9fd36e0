"""Progress of several stages is one count, whose total is known at the start and whose steps are weighed by cost."""

import pytest
import torch
from torch import nn

from geophone import scan
from geophone.core.progress import Stage, Stages, Watcher
from geophone.core.rng import draws
from geophone.data import Split
from geophone.diagnosis import attack, compare_networks
from geophone.perturb import FGSM, GaussianNoise, LinfAPGD, LinfAutoAttack, LinfFAB, LinfPGD, LinfSquare, MatchedL2
from geophone.perturb.cost import passes
from geophone.probes import LayerMap, checks


class Told(Watcher):
    """Remembers what it is told."""

    def __init__(self):
        self.steps, self.stages = [], []

    def __call__(self, done, steps):
        self.steps.append((done, steps))

    def stage(self, name):
        self.stages.append((name, len(self.steps)))


def whole(steps):
    """Whether it starts at 0, never goes back, keeps its total and ends at it."""
    done, totals = [d for d, _ in steps], {n for _, n in steps}
    return done[0] == 0 and done == sorted(done) and len(totals) == 1 and done[-1] == totals.pop()


class Stubborn(nn.Module):
    """Answers right whatever is done to the images, so that no attack ends early; counts the images."""

    def __init__(self):
        super().__init__()
        self.relu, self.head, self.seen, self.largest = nn.ReLU(), nn.Linear(36, 2), 0, 0

    def forward(self, x):
        self.seen, self.largest = self.seen + len(x), max(self.largest, len(x))
        return 1e-3 * self.head(self.relu(x).flatten(1)) + torch.tensor([1.0, 0.0])


def images(n):
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return Split(x, torch.zeros(n, dtype=torch.int64), torch.arange(n))


QUICK = {"layers": ["relu"], "curves": "LinfPGD(steps=2)", "batch_size": 8}


def test_stages_are_one_count():
    told = Told()
    stages = Stages(told, [Stage("a", [1, 10], 3), Stage("left out", []), Stage("b", [4.5])])
    step = stages.begin("a")
    for done in range(1, 7):
        step(done, 6)
    step = stages.begin("b")
    step(1, 2)
    stages.end()
    assert [done for done, _ in told.steps] == [0, 1, 11, 12, 22, 23, 33, 33, 35, 38]
    assert {steps for _, steps in told.steps} == {38}
    assert told.stages == [("a", 0), ("b", 7)]
    assert Stages(None, [Stage("a", [1])]).begin("a") is None


def test_a_stage_that_ends_early_or_late_leaves_the_rest_in_its_place():
    told = Told()
    stages = Stages(told, [Stage("a", [2, 2]), Stage("b", [6])])
    stages.begin("a")(7, 5)
    stages.begin("b")
    stages.end()
    assert told.steps == [(0, 10), (4, 10), (4, 10), (10, 10)]


def test_a_scan_tells_the_whole_work_from_the_start():
    told, plain = Told(), []
    scan(Stubborn(), images(20), "GaussianNoise", progress=told, **QUICK)
    assert whole(told.steps)
    names = [name for name, _ in told.stages]
    assert names == ["measuring", "curves over eps", "checks", "checks by attacks", "the page"]
    inside = [b - a for (_, a), (_, b) in zip(told.stages, told.stages[1:], strict=False)]
    assert all(count >= 3 for count in (inside[0], inside[1], inside[3]))  # within the long stages it goes on
    scan(Stubborn(), images(20), "GaussianNoise", checks=False, progress=lambda *at: plain.append(at), **QUICK)
    assert whole(plain)
    assert plain[0][1] < told.steps[0][1] / 2  # less work without them, and it is known before


def test_the_other_verbs_do_too():
    told = Told()
    attack(Stubborn(), images(20), "FGSM, LinfPGD(steps=2)", restarts=2, batch_size=8, progress=told)
    assert whole(told.steps)
    assert len(told.steps) == 1 + 3 * 2 * 2 + 1
    told = Told()
    compare_networks(
        Stubborn(), Stubborn(), images(20), LayerMap(layers=("relu",), batch_size=8), perturb=FGSM(), progress=told
    )
    assert whole(told.steps)
    assert len(told.stages) == 8


def test_checks_by_attacks_take_the_batch_size_and_tell_their_progress():
    model, told = Stubborn(), Told()
    checks.attack_checks(model, images(100), batch_size=40, progress=told)
    assert model.largest == 40
    assert whole([(0, told.steps[0][1]), *told.steps])
    assert len(told.steps) >= 10
    whole_steps = told.steps[-1][1]
    assert 100 * whole_steps == sum(checks.AttackChecks().costs(images(100)))


@pytest.mark.parametrize(
    "attacked",
    [
        *(GaussianNoise(), FGSM(), LinfPGD(steps=20), LinfPGD(steps=5, draws=3), LinfAPGD(steps=20)),
        *(LinfAPGD(steps=10, targets=1), LinfFAB(steps=10, targets=1), LinfSquare(queries=50)),
        *(LinfAutoAttack(steps=10, queries=50), MatchedL2(inner="LinfPGD(steps=20)")),
    ],
    ids=str,
)
def test_what_perturbations_cost_is_about_right(attacked):
    """A gradient is three passes, of which the network sees one; two classes leave one target of nine."""
    model, some = Stubborn().eval(), images(4)
    attacked(some.x, some.y, model, draws(0, index=some.index))
    forward = max(1, model.seen / len(some))
    targets = 9 if isinstance(attacked, LinfAutoAttack) else 1
    assert forward / 2 <= passes(attacked) <= 4 * targets * forward
