"""AutoAttack: the authors' robust accuracy on a trained network, and how its members work together."""

import functools
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.data import load
from geophone.perturb.attacks.apgd import L1APGD, L2APGD, LinfAPGD
from geophone.perturb.attacks.ascent import is_fooled
from geophone.perturb.attacks.base import Attack
from geophone.perturb.attacks.carlini_wagner import L2FMN, CarliniWagner
from geophone.perturb.attacks.ensemble import L1AutoAttack, L2AutoAttack, LinfAutoAttack
from geophone.perturb.attacks.fab import L1FAB, L2FAB, LinfFAB
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import L2
from geophone.perturb.attacks.square import L1Square, L2Square, LinfSquare
from geophone.testing.perturbation_laws import check_perturbation

KINDS: list[Any] = [LinfAutoAttack, L2AutoAttack, L1AutoAttack]
EPS = {LinfAutoAttack: 0.03, L2AutoAttack: 0.4, L1AutoAttack: 3.0}
SMALL = {"steps": 10, "queries": 30}
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(
    "attack",
    [
        LinfAutoAttack(steps=1, queries=2),
        L2AutoAttack(steps=2, queries=2, version="rand", draws=2),
        L1AutoAttack(steps=1, queries=2),
    ],
)
def test_all_laws_hold(attack: Any) -> None:
    assert check_perturbation(lambda: attack) == []


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network that tells most pieces of clothing, after three seconds."""
    torch.set_num_threads(1)  # this runs before the fixture that does it
    train = load("fashion_mnist_mini").train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 10)),
        )
    for rate in (0.1, 0.05, 0.01):
        for batch in train.batches(64):
            gradients = torch.autograd.grad(cross_entropy(layers(batch.x), batch.y), list(layers.parameters()))
            for parameter, gradient in zip(layers.parameters(), gradients, strict=True):
                parameter.data -= rate * gradient
    return layers.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(network: nn.Module) -> tuple[Tensor, Tensor, Draws]:
    """Test images that the network gets right."""
    images = next(load("fashion_mnist_mini").test.batches(70))
    right = network(images.x).argmax(1) == images.y
    assert right.float().mean() > 0.7
    return images.x[right], images.y[right], draws("autoattack", index=images.index[right])


def robust(images: Tensor, y: Tensor, model: Any) -> float:
    return (model(images).argmax(1) == y).float().mean().item()


# Beside the authors' code.


@functools.cache
def of_the_authors(kind: Any, network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Their standard version with as few steps and queries."""
    name, steps, eps = kind.__name__[:-10], SMALL["steps"], EPS[kind]
    ensemble = pyautoattack.AutoAttack(network, norm=name, eps=eps, seed=0, version="standard")
    multiple = {"use_largereps": True} if name == "L1" else {}
    common: dict[str, Any] = {"norm": name, "eps": eps, "device": "cpu"}
    ensemble.apgd = APGDAttack(network, n_iter=steps, n_restarts=5 if multiple else 1, **common, **multiple)
    ensemble.apgd_targeted = APGDAttack_targeted(
        network, n_iter=steps, n_target_classes=5 if multiple else 9, **common, **multiple
    )
    ensemble.fab = FABAttack_PT(network, n_iter=steps, **common)
    ensemble.fab.n_target_classes = 9
    ensemble.square = SquareAttack(network, n_queries=SMALL["queries"], p_init=0.8, resc_schedule=False, **common)
    with torch.random.fork_rng(devices=[]):
        found, _ = ensemble.run_standard_evaluation(x, y)
    return robust(found, y, network)


def is_as_strong_as_the_authors(kind: Any, attack: Any, network: nn.Module, batch: Any) -> None:
    """At most one image of some 55 more survives."""
    x, y, rng = batch
    theirs = of_the_authors(kind, network, x, y)
    assert 0.15 < theirs < 0.7
    assert robust(attack.fool(x, y, network, rng), y, network) <= theirs + 1.01 / len(x)


@EACH
def test_it_is_as_strong_as_the_authors(kind: Any, network: nn.Module, batch: Any) -> None:
    is_as_strong_as_the_authors(kind, kind(EPS[kind], **SMALL), network, batch)


@pytest.mark.parametrize(
    "weak",
    [
        LinfAutoAttack(0.8 * EPS[LinfAutoAttack], **SMALL),
        *(kind.square(EPS[kind], queries=SMALL["queries"]) for kind in KINDS),
    ],
)
def test_a_mutant_is_not(weak: Any, network: nn.Module, batch: Any) -> None:
    """A radius a fifth too small (a tenth costs one image more or less, by the processor), or Square alone."""
    kind = next(kind for kind in KINDS if kind.norm is weak.norm)
    with pytest.raises(AssertionError):
        is_as_strong_as_the_authors(kind, weak, network, batch)


# Members.


@pytest.mark.parametrize(
    ("kind", "apgd", "fab", "square"),
    [
        (LinfAutoAttack, LinfAPGD, LinfFAB, LinfSquare),
        (L2AutoAttack, L2APGD, L2FAB, L2Square),
        (L1AutoAttack, L1APGD, L1FAB, L1Square),
    ],
)
def test_members_are_those_of_the_paper(kind: Any, apgd: Any, fab: Any, square: Any) -> None:
    assert kind(eps=0.3).members() == (
        apgd(0.3, steps=100),
        apgd(0.3, steps=100, targets=9),
        fab(0.3, steps=100, targets=9),
        square(0.3, queries=5000),
    )
    assert kind(eps=0.3, version="rand").members() == (
        apgd(0.3, steps=100, draws=20),
        apgd(0.3, steps=100, draws=20, loss="dlr"),
    )


class Scripted(Attack):
    """Moves all values of some examples, named by their place in the data set, by as much as it is told."""

    norm = LinfAutoAttack.norm

    def __init__(self, moves: dict[int, float], seen: list[list[int]]) -> None:
        object.__setattr__(self, "moves", moves)
        object.__setattr__(self, "seen", seen)

    def search(self, x: Tensor, y: Tensor, model: Any, rng: Draws, stop: bool) -> Tensor:
        self.seen.append(rng.index.tolist())
        return x + torch.tensor([self.moves.get(row, 0.0) for row in rng.index.tolist()])[:, None]


def test_each_member_gets_what_is_left_and_the_first_success_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits (0, mean - 0.5) and label 0, images of .4 are fooled by more than .1, and nearer by less."""
    seen: list[list[int]] = []
    script = ({10: 0.15, 11: 0.02}, {10: 0.3, 11: 0.05, 12: 0.11}, {11: 0.03})
    monkeypatch.setattr(LinfAutoAttack, "members", lambda self: tuple(Scripted(moves, seen) for moves in script))
    x, y = torch.full((3, 4), 0.4), torch.zeros(3, dtype=torch.int64)

    def model(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x.mean(1) - 0.5], dim=1)

    out = LinfAutoAttack(eps=0.3)(x, y, model, draws("aa", index=torch.tensor([10, 11, 12])))
    assert seen == [[10, 11, 12], [11, 12], [11]]
    # The first that fooled example 10, the worst of example 11's failures, the second attack's success with 12.
    assert torch.allclose(out, x + torch.tensor([0.15, 0.05, 0.11])[:, None])


def test_members_one_by_one_leave_what_the_ensemble_leaves(network: nn.Module, batch: Any) -> None:
    """Robust accuracy may be counted member by member: an AND over what each leaves standing."""
    x, y, rng = (part[:30] for part in batch)
    attack = LinfAutoAttack(0.03, steps=6, queries=20)
    fooled = is_fooled(network(attack.fool(x, y, network, rng)), y)
    union = torch.zeros_like(fooled)
    for number, member in enumerate(attack.members()):
        union |= is_fooled(network(member.fool(x, y, network, rng.child("member", number))), y)
    assert (fooled & ~union).sum() == 0
    assert (union & ~fooled).sum() <= 1  # an example's own trajectory, rounded otherwise in a smaller batch


# Scale, few classes, stochastic networks.


@EACH
def test_logits_times_128_give_the_same_robust_accuracy(kind: Any, network: nn.Module, batch: Any) -> None:
    """And the same images to the bit, in float32: every member is scale-free, and a power of two rounds nothing."""
    x, y, rng = (part[:12] for part in batch)
    attack = kind(EPS[kind], steps=5, queries=20)
    plain, scaled = (attack.fool(x, y, lambda x, s=s: s * network(x), rng) for s in (1, 128))
    assert torch.equal(plain, scaled)


@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("classes", [2, 3])
@EACH
def test_two_classes_are_enough(kind: Any, classes: int, version: str) -> None:
    """The authors' code can't: its losses need 3 classes and 4, and its targets 10."""
    x = 0.4 + 0.2 * torch.rand(12, 1, 4, 4, generator=stream("few"))
    weight, y = torch.randn(classes, 16, generator=stream("weight")), torch.arange(12) % classes

    def model(x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ weight.T

    eps = {LinfAutoAttack: 0.1, L2AutoAttack: 0.4, L1AutoAttack: 1.5}[kind]
    attack = kind(eps, version=version, steps=10, queries=10, draws=2)
    moved = attack(x, y, model, draws("few", index=torch.arange(12)))
    assert (margin(model(moved), y) > margin(model(x), y)).all()
    assert is_fooled(model(moved), y).sum() > is_fooled(model(x), y).sum()


def test_the_rand_version_judges_by_its_draws(network: nn.Module, batch: Any) -> None:
    """A network with noise: what the ensemble calls fooled is fooled in most passes, not in a lucky one."""
    x, y, rng = (part[:40] for part in batch)

    def noisy(x: Tensor) -> Tensor:
        return network(x + 0.1 * torch.randn_like(x))

    attack = LinfAutoAttack(0.03, version="rand", steps=10, draws=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = attack.fool(x, y, noisy, rng)
        rates = [torch.stack([noisy(z).argmax(1) == y for _ in range(50)]).float().mean(0) for z in (x, found)]
    moved = (found != x).flatten(1).any(1)
    assert moved.all()
    assert rates[1].mean() < rates[0].mean() - 0.2
    undecided = ((rates[1] > 0.25) & (rates[1] < 0.75)).float().mean()
    assert undecided < 0.5


# Errors.


@EACH
def test_fields_out_of_range_are_errors(kind: Any) -> None:
    for field in ("steps", "queries", "draws"):
        with pytest.raises(GeophoneError, match=rf"{kind.__name__}\({field}=0"):
            kind(**{field: 0})
    with pytest.raises(GeophoneError, match=r"standard.*rand"):
        kind(version="plus")


# The nearest example, on the same network.


def is_as_near_as_fmn(attack: CarliniWagner, network: nn.Module, batch: Any) -> None:
    """All images are fooled, the median ratio of distances is at most 1.02, and as many hold at half the distance."""
    x, y, rng = batch
    length = [L2.length(one.nearest(x, y, network, rng) - x) for one in (attack, L2FMN())]
    assert bool((length[0] > 0).all())
    assert (length[0] / length[1]).median().item() <= 1.02
    eps = length[1].median().item()
    assert abs((length[0] > eps).float().mean() - 0.5).item() <= 2.01 / len(x)


def test_carlini_wagner_is_as_near_as_fmn(network: nn.Module, batch: Any) -> None:
    is_as_near_as_fmn(CarliniWagner(), network, batch)


@pytest.mark.parametrize(
    "mutant",
    [CarliniWagner(relative=False, steps=200, searches=5, step_size=0.01, c=1.0), CarliniWagner(steps=20)],
    ids=repr,
)
def test_a_mutant_of_it_is_further(mutant: CarliniWagner, network: nn.Module, batch: Any) -> None:
    with pytest.raises(AssertionError):
        is_as_near_as_fmn(mutant, network, batch)
