"""Auto-PGD: the authors' code as oracle, closed forms on linear models, what it costs and what it returns."""

from collections.abc import Callable, Iterator
from typing import Any

import pyautoattack.autopgd_base as authors
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import geophone.perturb.attacks.apgd as module
from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.perturb.attacks.apgd import L1APGD, L2APGD, Climb, LinfAPGD, apgd
from geophone.perturb.attacks.ascent import Ascent, is_fooled
from geophone.perturb.attacks.losses import LOSSES, Loss, margin, scaled_ce
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.testing.perturbation_laws import check_perturbation

KINDS: list[Any] = [LinfAPGD, L2APGD, L1APGD]
EPS = {LINF: 0.05, L2: 0.6, L1: 6.0}
THEIR_NAME = {LINF: "Linf", L2: "L2", L1: "L1"}
NORMS = pytest.mark.parametrize("norm", [LINF, L2, L1], ids=THEIR_NAME.get)


@pytest.mark.parametrize(
    "attack", [LinfAPGD(steps=4), L2APGD(steps=3, targets=2), L1APGD(steps=4), LinfAPGD(steps=2, loss="dlr", draws=2)]
)
def test_all_laws_hold(attack: Any) -> None:
    assert check_perturbation(lambda: attack) == []


# The authors' code as oracle.


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Smooth, so that no two values have the same gradient: which of them an l1 step changes would be rounding's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(4), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(8 * 25, 6)),
        )
        for parameter in layers.parameters():
            parameter.data *= 3  # a curved loss: the step size has to be changed on the way
    return layers.double().eval()


@pytest.fixture(scope="module")
def batch(network: nn.Module) -> tuple[Tensor, Tensor, Draws]:
    """Images with values at 0 and 1, and labels that the network gets right."""
    x = torch.rand(10, 3, 10, 10, generator=stream("apgd"), dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    return x, network(x).argmax(1), draws("apgd", index=torch.arange(10))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The authors' code keeps its records in the default dtype, and projects in float32 in l1."""
    monkeypatch.setattr(authors, "L1_projection", bisected)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bisected(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """From delta to the nearest perturbation in the l1 ball and the box, by bisection on its threshold."""
    room = torch.where(delta > 0, 1 - x, x)

    def shrunk(threshold: Tensor) -> Tensor:
        return (delta.abs() - threshold).clamp(min=0).minimum(room)

    low = torch.zeros(len(x), 1, 1, 1)
    high = torch.where(shrunk(low).sum((1, 2, 3), keepdim=True) > eps, delta.abs().amax((1, 2, 3), keepdim=True), 0)
    for _ in range(50):
        middle = (low + high) / 2
        over = shrunk(middle).sum((1, 2, 3), keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return shrunk(high) * delta.sign() - delta


def starts(norm: Norm, x: Tensor, rng: Draws, eps: float) -> Tensor:
    return norm.inside(x + eps * norm.uniform(rng, x), x, eps)


def agrees(
    loss: str,
    norm: Norm,
    network: nn.Module,
    batch: tuple[Tensor, Tensor, Draws],
    steps: int,
    patch: pytest.MonkeyPatch,
    fair: bool = True,
) -> None:
    """The same highest point, loss and verdict as the authors' code from the same start, with their own losses.

    Their code compares the loss after the first step with 0, not with the loss at the start; a loss less what it is at
    the start has the same gradient, and makes the comparison fair.
    """
    x, y, rng = batch
    # Once the label is third the ratio is 1, and its gradient is what rounding leaves: a small eps, and a look at it.
    eps = 0.3 * EPS[norm] if loss == "dlr" else EPS[norm]
    start = starts(norm, x, rng, eps)
    determined = torch.ones_like(y, dtype=torch.bool)

    def watched(x: Tensor) -> Tensor:
        logits = network(x)
        if loss == "dlr" and len(x) == len(y):
            determined.logical_and_((logits.topk(2).indices == y[:, None]).any(1))
        return logits

    target = None
    theirs = authors.APGDAttack(watched, n_iter=steps, norm=THEIR_NAME[norm], eps=eps, loss="dlr")
    if loss == "ce":
        climbed: Callable[..., Tensor] = lambda logits, y: cross_entropy(logits, y, reduction="none")  # noqa: E731
    elif loss == "dlr":
        climbed = theirs.dlr_loss
    else:
        target = network(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        theirs.y_target = target
        climbed = lambda logits, y: authors.APGDAttack_targeted.dlr_loss_targeted(theirs, logits, y)  # noqa: E731
    before = climbed(network(start), y).detach() if fair else 0
    theirs.dlr_loss = lambda logits, y: climbed(logits, y) - before
    theirs.init_hyperparam(x)
    with patch.context() as patched:
        # Their l1 run begins as ours only from its own start, which it draws and projects; in the ball it stays. And it
        # counts as changed what rounding leaves.
        patched.setattr(torch, "randn", lambda *shape, **options: start - x)
        patched.setattr(authors, "L0_norm", lambda delta: (delta.abs() > 1e-6 * eps).flatten(1).sum(1))
        given = {} if norm is L1 else {"x_init": start}
        highest, right, highest_loss, _ = theirs.attack_single_run(x, y, **given)

    ascent = Ascent(network, LOSSES.get(loss, margin))
    ours = apgd(ascent, x, y, start, norm=norm, eps=eps, steps=steps, target=target)
    assert determined.sum() >= len(x) / 2
    # Rounding in float64 is near 1e-12 after so many steps; any other rule or constant moves points by whole steps.
    assert (ours.highest - highest)[determined].abs().max().item() <= 1e-6
    assert torch.equal(ours.fooled, ~right)
    assert (climbed(network(ours.highest), y) - before - highest_loss)[determined].abs().max().item() <= 1e-6


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("loss", "steps"), [("ce", 7), ("ce", 50), ("dlr", 30), ("targeted", 30)])
@NORMS
def test_it_is_the_authors(
    norm: Norm, loss: str, steps: int, network: nn.Module, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agrees(loss, norm, network, batch, steps, monkeypatch)


@pytest.mark.usefixtures("in_float64")
def test_the_first_step_is_compared_with_the_start(
    network: nn.Module, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors' comparison with 0 halves the step size too early where the loss begins below 0."""
    with pytest.raises(AssertionError):
        agrees("dlr", LINF, network, batch, 20, monkeypatch, fair=False)


def _halves_always(run: Any) -> None:
    run.step_size = run.step_size / 2


def _keeps_its_gradient(run: Any, where: Tensor) -> None:
    run.at = torch.where(module._wide(where, run.x), run.highest, run.at)


def _begins_with_eps(run: Any) -> None:
    _BEGIN(run)
    run.step_size = run.step_size / 2


_BEGIN = module._Run.begin

MISTAKES = {
    "no momentum": (module, "MOMENTUM", 0.0),
    "as much momentum as gradient": (module, "MOMENTUM", 0.5),
    "half of the steps must raise the loss": (module, "RISES", 0.5),
    "does not go back": (module._Run, "go_back", lambda run, where: None),
    "goes back without the gradient": (module._Run, "go_back", _keeps_its_gradient),
    "halves always": (module._Run, "check", _halves_always),
    "begins with a step of eps": (module._Run, "begin", _begins_with_eps),
}
L1_MISTAKES = {
    "twice as sparse": (module, "SPARSER", 3.0),
    "does not go back": (module._Run, "go_back", lambda run, where: None),
    "goes back without the gradient": (module._Run, "go_back", _keeps_its_gradient),
    "never becomes sparser": (module._SparseRun, "check", lambda run: None),
    "dense steps": (module, "_SparseRun", module._Run),
}


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("norm", "mistake"),
    [(norm, m) for norm in (LINF, L2) for m in MISTAKES.values()] + [(L1, m) for m in L1_MISTAKES.values()],
    ids=[f"{n}: {m}" for n in ("linf", "l2") for m in MISTAKES] + [f"l1: {m}" for m in L1_MISTAKES],
)
def test_a_mutant_is_not(
    norm: Norm, mistake: tuple[Any, str, Any], network: nn.Module, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*mistake)
    with pytest.raises(AssertionError):
        agrees("ce", norm, network, batch, 50 if norm is L1 else 25, monkeypatch)


# Closed forms.


def linear(d: int, classes: int = 2) -> nn.Linear:
    model = nn.utils.skip_init(nn.Linear, d, classes, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=stream("linear", parameter.ndim), dtype=torch.float64)
    return model


def grey(d: int = 12, n: int = 8) -> tuple[Tensor, Tensor, Draws]:
    """Images far enough inside [0, 1] that eps ≤ 0.2 clips nothing, their labels, and draws."""
    x = 0.4 + 0.2 * torch.rand(n, d, generator=stream("grey"), dtype=torch.float64)
    return x, torch.arange(n) % 2, draws("attack", index=torch.arange(n))


@pytest.mark.parametrize("settings", [{"loss": loss} for loss in ("ce", "scaled_ce", "margin")] + [{"targets": 9}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_margin_rises_by_eps_times_the_dual_norm(kind: Any, settings: dict[str, Any]) -> None:
    """In l∞ by eps·‖w‖₁, in l2 by eps·‖w‖₂; in l1 nearly by eps·max |w|, since its sparsest step changes two values.

    The signs of l∞ make it exact. In l2 the gradient of a linear margin is w everywhere, and a step of 2·eps along it
    from a random start leaves an angle that each further step shrinks.
    """
    (x, y, rng), model = grey(), linear(12)
    w = (model.weight[1] - model.weight[0]).detach()
    moved = kind(eps=0.1, steps=60, **settings)(x, y, model, rng)
    rise = (margin(model(moved), y) - margin(model(x), y)) / 0.1
    if kind is L1APGD:
        first, second = w.abs().topk(2).values
        assert (rise <= first + 1e-9).all()
        assert (rise >= second).all()
    else:
        norm = torch.linalg.vector_norm(w, 1 if kind is LinfAPGD else 2)
        assert torch.allclose(rise, norm.expand(8), rtol=0, atol=1e-12 if kind is LinfAPGD else 1e-9)


def test_an_l1_budget_that_the_box_limits_goes_to_the_next_largest_weights() -> None:
    """The best perturbation fills values in the order of |w|, each as far as [0, 1] allows, until eps is spent."""
    (x, y, rng), model = grey(d=300), linear(300)
    w = (model.weight[1] - model.weight[0]).detach()
    towards = w * (1 - 2 * y[:, None])
    room = torch.where(towards > 0, 1 - x, x)
    order = w.abs().argsort(descending=True)
    before = room[:, order].cumsum(1) - room[:, order]
    best = ((12.0 - before).clamp(min=0).minimum(room[:, order]) * w.abs()[order]).sum(1)
    moved = L1APGD(eps=12.0, steps=100)(x, y, model, rng)
    rise = margin(model(moved), y) - margin(model(x), y)
    assert (rise <= best + 1e-9).all()
    assert (rise >= 0.98 * best).all()


# Costs.


class Counted(torch.autograd.Function):
    """The identity, which counts the images whose gradient passes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.counts[1] += len(gradient)
        return gradient, None


def counting(model: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """A plain function, which is neither folded nor probed, and how many images went forward and back."""
    counts = [0, 0]

    def counted(x: Tensor) -> Tensor:
        counts[0] += len(x)
        return model(Counted.apply(x, counts))  # type: ignore[no-untyped-call]

    return counted, counts


@pytest.mark.parametrize(
    ("attack", "forward", "backward"),
    [
        (LinfAPGD(steps=1), 2, 1),
        (LinfAPGD(steps=9), 10, 9),
        (L2APGD(steps=9), 10, 9),
        (L1APGD(steps=3), 4, 3),
        (L1APGD(steps=9), 12, 9),
        (LinfAPGD(steps=9, draws=4), 40, 36),
        (LinfAPGD(steps=9, targets=3), 31, 27),
        (LinfAPGD(steps=9, targets=100), 51, 45),
        (L2APGD(steps=9, targets=3, draws=2), 62, 54),
    ],
    ids=repr,
)
def test_what_it_costs(attack: Any, forward: int, backward: int, network: nn.Module, batch: Any) -> None:
    """Steps + 1 forward and steps backward passes for each image and draw; the 6 classes leave 5 targets."""
    x, y, rng = batch
    model, counts = counting(network)
    attack(x, y, model, rng)
    assert counts == [forward * len(x), backward * len(x)]


@pytest.mark.parametrize(("kind", "targets"), [(LinfAPGD, 0), (L2APGD, 2), (L1APGD, 0)])
def test_solved_examples_cost_nothing_and_the_verdicts_are_the_same(
    kind: Any, targets: int, network: nn.Module, batch: Any
) -> None:
    """An example's cost in a batch is what it costs alone, so nothing is spent on it once it is fooled."""
    x, y, rng = batch
    attack = kind(eps=EPS[kind.norm] / 4, steps=7, targets=targets)
    (whole, cost), (stopping, spent) = counting(network), counting(network)
    full = attack(x, y, whole, rng)
    early = attack.fool(x, y, stopping, rng)
    assert spent[0] < cost[0]
    fooled = is_fooled(network(full), y)
    assert 0 < fooled.sum() < len(x)  # else the rest shows nothing
    assert torch.equal(is_fooled(network(early), y), fooled)
    assert torch.allclose(early[~fooled], full[~fooled], rtol=0, atol=1e-9)
    alone = [0, 0]
    for row in range(len(x)):
        one, counts = counting(network)
        attack.fool(x[row : row + 1], y[row : row + 1], one, rng[torch.tensor([row])])
        alone = [alone[0] + counts[0], alone[1] + counts[1]]
    assert spent == alone


def test_an_example_is_left_at_the_first_iterate_that_fools(network: nn.Module, batch: Any) -> None:
    x, y, rng = batch
    seen: list[Tensor] = []

    def recording(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return network(x)

    attack = LinfAPGD(eps=0.02, steps=10)
    attack(x, y, recording, rng)
    early = attack.fool(x, y, network, rng)
    fooled = torch.stack([is_fooled(network(iterate), y) for iterate in seen])
    for row in range(len(x)):
        first = int(fooled[:, row].int().argmax()) if bool(fooled[:, row].any()) else None
        if first is not None:
            assert torch.allclose(early[row], seen[first][row], rtol=0, atol=1e-9)


# What is returned.


def returned_is_best(result: Callable[[Climb], Tensor], network: nn.Module, batch: Any, loss: Loss) -> None:
    """The iterate with the largest margin where one fooled the network, else the one with the highest loss."""
    x, y, rng = batch
    seen: list[Tensor] = []

    def recording(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return network(x)

    eps = EPS[LINF] / 4
    start = starts(LINF, x, rng, eps)
    found = result(apgd(Ascent(recording, loss), x, y, start, norm=LINF, eps=eps, steps=12))
    assert len(seen) == 13
    logits = torch.stack([network(iterate) for iterate in seen]).detach()
    margins, losses = (torch.stack([f(z, y) for z in logits]) for f in (margin, loss))
    fooled = torch.stack([is_fooled(z, y) for z in logits]).any(0)
    assert 0 < fooled.sum() < len(x)
    place = torch.where(fooled, margins.argmax(0), losses.argmax(0))
    assert torch.equal(found, torch.stack(seen)[place, torch.arange(len(x))])


def test_the_result_is_the_worst_that_was_seen(network: nn.Module, batch: Any) -> None:
    returned_is_best(Climb.found, network, batch, scaled_ce)


@pytest.mark.parametrize("mutant", [lambda climb: climb.highest, lambda climb: climb.furthest])
def test_neither_loss_nor_margin_alone_says_which(mutant: Any, network: nn.Module, batch: Any) -> None:
    """With a loss that is not the margin's: of an exotic kind, so that a few images tell them apart."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return scaled_ce(logits, y) + logits.sin().sum(1)

    returned_is_best(Climb.found, network, batch, loss)
    with pytest.raises(AssertionError):
        returned_is_best(mutant, network, batch, loss)


# Targets, scale, stochastic networks.


def test_more_targets_do_no_less() -> None:
    """Targets are tried in order, and each example keeps its worst: no margin falls when a target is added."""
    (x, y, rng), model = grey(n=16), linear(12, 6)
    margins = [margin(model(LinfAPGD(eps=0.2, steps=5, targets=t)(x, y, model, rng)), y) for t in (1, 2, 5)]
    assert (margins[0] <= margins[1]).all()
    assert (margins[1] <= margins[2]).all()
    assert (margins[0] < margins[2]).any()


def test_a_target_beyond_the_likeliest_class_is_found() -> None:
    """The likeliest wrong class can't be reached, since nothing changes its logit; the next one can."""

    def model(x: Tensor) -> Tensor:
        still = torch.ones_like(x[:, 0])
        return torch.stack([still, 0.9 * still, 2 * x[:, 0] - 0.2, -still, -2 * still], dim=1)

    x, y, rng = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64), draws("t", index=torch.arange(3))
    fooled = [is_fooled(model(LinfAPGD(eps=0.3, steps=5, targets=t)(x, y, model, rng)), y) for t in (1, 2)]
    assert not fooled[0].any()
    assert fooled[1].all()


@pytest.mark.parametrize("settings", [{"targets": 9}, {"loss": "dlr"}, {"loss": "scaled_ce"}], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_two_classes_are_enough(kind: Any, settings: Any) -> None:
    """The loss's own form is constant or undefined there; the margin is climbed to the bit as if it were asked for."""
    (x, y, rng), model = grey(), linear(12)
    moved = kind(eps=0.1, steps=9, **settings)(x, y, model, rng)
    if "targets" in settings:
        rng = rng.child("target", 0)
    assert torch.equal(moved, kind(eps=0.1, steps=9, loss="margin")(x, y, model, rng))


@pytest.mark.parametrize("classes", [3, 4])
def test_targets_need_no_fourth_class(classes: int) -> None:
    (x, y, rng), model = grey(), linear(12, classes)
    moved = LinfAPGD(eps=0.1, steps=9, targets=9)(x, y, model, rng)
    assert (margin(model(moved), y) > margin(model(x), y)).all()


@pytest.mark.parametrize("settings", [{"loss": loss} for loss in LOSSES] + [{"targets": 3}], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_times_128_give_the_same_images(kind: Any, settings: Any, network: nn.Module, batch: Any) -> None:
    """To the bit, in float32, where a power of two rounds nothing; plain cross-entropy is the mutant."""
    x, y, rng = batch
    single = network.float()
    try:
        attack = kind(eps=EPS[kind.norm], steps=5, **settings)
        plain, scaled = (attack(x.float(), y, lambda x, s=s: s * single(x), rng) for s in (1, 128))
    finally:
        network.double()
    assert torch.equal(plain, scaled) == (settings != {"loss": "ce"})


def test_draws_are_averaged() -> None:
    """A network that is one of two linear ones in turn: 2 draws step along the mean of their gradients."""
    (x, y, rng), (one, other) = grey(), (linear(12), linear(12))
    other.weight.data = 3 * other.weight.data.flip(1)
    weight = one.weight + other.weight
    towards = ((weight[1] - weight[0]) * (1 - 2 * y[:, None])).sign()

    def moved(count: int) -> Tensor:
        turns = [one, other]

        def model(x: Tensor) -> Tensor:
            turns.reverse()
            return turns[0](x)

        return LinfAPGD(eps=0.1, steps=10, loss="margin", draws=count)(x, y, model, rng)

    assert torch.allclose(moved(2), x + 0.1 * towards, rtol=0, atol=1e-12)
    assert not torch.allclose(moved(1), x + 0.1 * towards, rtol=0, atol=1e-12)


def test_restarts_are_different_runs(network: nn.Module, batch: Any) -> None:
    x, y, rng = batch
    first, second = (LinfAPGD(steps=3)(x, y, network, rng.child("restart", i)) for i in range(2))
    assert not torch.equal(first, second)


# Errors.


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("targets", -1), ("draws", 0), ("eps", -0.1), ("eps", 8.0)])
def test_fields_out_of_range_are_errors(field: str, value: float) -> None:
    with pytest.raises(GeophoneError, match=rf"LinfAPGD\({field}="):
        LinfAPGD(**{field: value})


def test_an_unknown_loss_is_an_error() -> None:
    with pytest.raises(GeophoneError, match="scaled_ce"):
        LinfAPGD(loss="cross_entropy")


@pytest.mark.parametrize("settings", [{}, {"targets": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_that_cannot_be_climbed_are_errors(kind: Any, settings: Any) -> None:
    (x, y, rng), model = grey(), linear(12, 5)
    with pytest.raises(GeophoneError, match=r"passes no gradient on to its input.*Square"):
        kind(steps=2, **settings)(x, y, lambda x: model(x.detach()), rng)
    model.weight.data[0, 0] = torch.nan
    with pytest.raises(GeophoneError, match="NaN or infinite"):
        kind(steps=2, **settings)(x, y, model, rng)
