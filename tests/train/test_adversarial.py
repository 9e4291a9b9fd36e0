"""Adversarial recipes against their definitions written out image by image, closed forms, laws; each with mutants."""

from dataclasses import dataclass
from functools import cache
from math import log

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.registry import RECIPES
from geophone.core.rng import Draws, draws, stream
from geophone.core.types import describe
from geophone.data import synthetic
from geophone.models import SmallCNN
from geophone.perturb import FGSM, L1, L1PGD, L2, L2APGD, L2PGD, LINF, GaussianNoise, LinfPGD, at_level, grid
from geophone.train import (
    Adversarial,
    Corrupted,
    FastAdversarial,
    Mart,
    NoiseAugmented,
    Standard,
    Trades,
    Training,
    fit,
    initialised,
)

EPS = 0.1
BALLS = [
    (Adversarial(eps=EPS, steps=3), LINF, EPS),
    (Adversarial(attack="L2PGD(eps=0.7, steps=3)"), L2, 0.7),
    (Adversarial(attack="L1PGD(eps=6, steps=3)"), L1, 6.0),
    (FastAdversarial(eps=EPS), LINF, EPS),
    (Trades(eps=EPS, steps=3), LINF, EPS),
    (Mart(eps=EPS, steps=3), LINF, EPS),
]
EVERY = [*(recipe for recipe, _, _ in BALLS), Corrupted("gaussian_noise, contrast(severity=4), LinfPGD(eps=0.1)")]
PASSES = [1, 1, 1, 1, 2, 2, 1]


def named(one):
    return describe(one) if hasattr(one, "loss") else str(one)


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def setting(n=12, classes=4, dtype=torch.float64):
    """In float64, so that two orders of summation agree to 1e-9. Some values at 0 and 1, where attacks are clipped."""
    model = initialised(lambda: SmallCNN(classes, (0.5,), (0.5,), width=4), 0).to(dtype)
    x = (torch.rand(n, 1, 12, 12, generator=stream("adversarial", n)) * 1.2 - 0.1).clamp(0, 1).to(dtype)
    with torch.no_grad():  # statistics of these images, so that answers differ between them
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(x)
        model.head.weight.mul_(4)
    return model.eval(), x, torch.arange(n) % classes, draws(0, "recipe", index=torch.arange(n))


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# Definitions, one image at a time


def probabilities(logits):
    """Softmax of one row, in numpy."""
    e = np.exp(logits - logits.max())
    return e / e.sum()


def divergence(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def trades_of(clean, moved, y, beta, swap=False):
    """The loss of each image from its two rows of logits, in numpy."""
    p, q = probabilities(clean), probabilities(moved)
    return -log(p[y]) + beta * (divergence(q, p) if swap else divergence(p, q))


def mart_of(clean, moved, y, beta, swap=False, weight="clean", boost=True):
    p, q = probabilities(clean), probabilities(moved)
    other = max(q[k] for k in range(len(q)) if k != y)
    bce = -log(q[y]) - (log(1.0001 - other) if boost else 0)
    factor = {"clean": 1 - p[y], "none": 1, "moved": 1 - q[y]}[weight]
    return bce + beta * (divergence(q, p) if swap else divergence(p, q)) * factor


def climb(model, x, start, loss, eps, steps, step_size):
    """Signed steps from `start`, one image, with torch's own losses."""
    moved = start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(moved)), moved)
        moved = torch.minimum(torch.maximum(moved + step_size * gradient.sign(), x - eps), x + eps).clamp(0, 1)
    return moved.detach()


def nearby(model, x, y, rng, eps, steps, mart=False, noise=0.001, step_size=None):
    out = []
    for i in range(len(x)):
        one, z = x[i : i + 1], rng[i : i + 1].normal("start", *x.shape[1:]).to(x.dtype)
        start = torch.minimum(torch.maximum(one + noise * z, one - eps), one + eps).clamp(0, 1)
        target = model(one).softmax(1).detach()

        def kl(logits, target=target):
            return nn.functional.kl_div(logits.log_softmax(1), target, reduction="sum")

        def ce(logits, label=y[i : i + 1]):
            return cross_entropy(logits, label)

        out.append(climb(model, one, start, ce if mart else kl, eps, steps, step_size or 2.5 * eps / steps))
    return torch.cat(out)


def fast(model, x, y, rng, eps, alpha, start=True, project=True):
    out = []
    for i in range(len(x)):
        one = x[i : i + 1]
        u = rng[i : i + 1].uniform("start", *x.shape[1:]).to(x.dtype)
        begin = (one + eps * (2 * u - 1) * start).clamp(0, 1)

        def ce(logits, label=y[i : i + 1]):
            return cross_entropy(logits, label)

        out.append(climb(model, one, begin, ce, eps if project else 1, 1, alpha))
    return torch.cat(out)


def mean_of(definition, model, x, moved, y, beta, **how):
    with torch.no_grad():
        clean, after = model(x).numpy(), model(moved).numpy()
    return np.mean([definition(clean[i], after[i], int(y[i]), beta, **how) for i in range(len(x))])


@pytest.mark.parametrize("step_size", [None, 0.03])
def test_trades_is_its_definition(step_size):
    model, x, y, rng = setting()
    recipe = Trades(eps=EPS, beta=3.0, steps=4, step_size=step_size)
    moved = nearby(model, x, y, rng, EPS, 4, step_size=step_size)
    loss = recipe.loss(model, x, y, rng)
    assert loss.item() == pytest.approx(mean_of(trades_of, model, x, moved, y, 3.0), abs=1e-9)
    swapped = mean_of(trades_of, model, x, moved, y, 3.0, swap=True)
    still = mean_of(trades_of, model, x, nearby(model, x, y, rng, EPS, 4, noise=0), y, 3.0)
    on_labels = mean_of(trades_of, model, x, nearby(model, x, y, rng, EPS, 4, mart=True), y, 3.0)
    assert all(abs(loss.item() - mutant) > 1e-5 for mutant in (swapped, still, on_labels))

    def written(clean, after):
        p, q = clean.softmax(1), after.softmax(1)
        return cross_entropy(model(x), y) + 3 * (p * (p.log() - q.log())).sum(1).mean()

    found = gradients(model, loss)
    # 1e-9 relative: sums of float64 in another order. The mutant holds the clean prediction constant.
    assert torch.allclose(found, gradients(model, written(model(x), model(moved))), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, gradients(model, written(model(x).detach(), model(moved))), rtol=1e-4, atol=1e-4)


def test_mart_is_its_definition():
    model, x, y, rng = setting()
    moved = nearby(model, x, y, rng, EPS, 4, mart=True)
    loss = Mart(eps=EPS, beta=2.0, steps=4).loss(model, x, y, rng)
    assert loss.item() == pytest.approx(mean_of(mart_of, model, x, moved, y, 2.0), abs=1e-9)
    mutants = ({"swap": True}, {"weight": "none"}, {"weight": "moved"}, {"boost": False})
    assert all(abs(loss.item() - mean_of(mart_of, model, x, moved, y, 2.0, **how)) > 1e-5 for how in mutants)
    at_x = mean_of(mart_of, model, x, nearby(model, x, y, rng, EPS, 4, mart=True, noise=0), y, 2.0)
    on_divergence = mean_of(mart_of, model, x, nearby(model, x, y, rng, EPS, 4), y, 2.0)
    assert abs(loss.item() - on_divergence) > 1e-5
    assert loss.item() != at_x

    def written(hold):
        p, q = model(x).softmax(1), model(moved).softmax(1)
        true, other = q.gather(1, y[:, None])[:, 0], q.scatter(1, y[:, None], 0).amax(1)
        unsure = 1 - p.gather(1, y[:, None])[:, 0]
        kl = (p * (p.log() - q.log())).sum(1)
        return (-true.log() - (1.0001 - other).log() + 2 * kl * (unsure.detach() if hold else unsure)).mean()

    found = gradients(model, loss)
    assert torch.allclose(found, gradients(model, written(False)), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, gradients(model, written(True)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.05])
def test_fast_adversarial_is_its_definition(alpha):
    model, x, y, rng = setting()
    step = alpha or 1.25 * EPS
    loss = FastAdversarial(eps=EPS, alpha=alpha).loss(model, x, y, rng).item()

    def wanted(**how):
        return cross_entropy(model(fast(model, x, y, rng, EPS, step, **how)), y).item()

    assert loss == pytest.approx(wanted(), abs=1e-9)
    assert abs(loss - wanted(start=False)) > 1e-5
    assert abs(loss - wanted(project=False)) > 1e-5
    assert abs(loss - cross_entropy(model(fast(model, x, y, rng, EPS, 2 * step)), y).item()) > 1e-5


def test_mart_of_two_sure_answers():
    """p = (1, 0) clean and (0, 1) attacked, y = 0: -log q_y - log 1e-4, no divergence counted, for p_y = 1."""

    class Turning(nn.Module):
        """Sure of class 0 at the clean images, which are 0.5, and of class 1 elsewhere."""

        def forward(self, x):
            away = (x - 0.5).abs().mean((1, 2, 3)) / 0.1
            return torch.stack([20 - 40 * away, 40 * away - 20], 1)

    x, rng = torch.full((3, 1, 4, 4), 0.5).double(), draws(0, "sure", index=torch.arange(3))
    loss = Mart(eps=0.1, beta=5.0).loss(Turning(), x, torch.zeros(3, dtype=torch.int64), rng)
    # q_y = e^-40, so -log q_y = 40; 1 - p_y(x) = e^-40, against a divergence of 40. 1 + 1e-4 - 1 is 1e-4 to 1e-12.
    assert loss.item() == pytest.approx(40 - log(1e-4), abs=1e-8)


# Closed forms


def test_without_its_weight_trades_is_cross_entropy():
    model, x, y, rng = setting(dtype=torch.float32)
    for mode in (True, False):
        model.train(mode)
        plain, ours = (recipe.loss(model, x, y, rng) for recipe in (Standard(), Trades(eps=EPS, beta=0.0, steps=2)))
        assert torch.equal(plain, ours)
        # In the sum of gradients 0 · KL adds zeros.
        assert torch.equal(gradients(model, plain), gradients(model, ours))


def test_in_a_ball_of_radius_0_nothing_is_attacked():
    model, x, y, rng = setting(dtype=torch.float32)
    for mode in (True, False):
        model.train(mode)
        plain = Standard().loss(model, x, y, rng)
        for recipe in (Trades(eps=0.0), FastAdversarial(eps=0.0), Adversarial(eps=0.0)):
            assert torch.equal(recipe.loss(model, x, y, rng), plain)
        p = model(x).softmax(1).double()
        boost = -(1.0001 - p.scatter(1, y[:, None], 0).amax(1)).log().mean()
        assert Mart(eps=0.0).loss(model, x, y, rng).item() == pytest.approx((plain + boost).item(), abs=1e-6)
        assert not torch.equal(Trades(eps=0.01, steps=1).loss(model, x, y, rng), plain)


def test_a_loss_grows_with_its_weight_and_is_linear_in_it():
    model, x, y, rng = setting()
    for recipe in (Trades, Mart):
        a, b, c = (recipe(eps=EPS, beta=beta, steps=2).loss(model, x, y, rng).item() for beta in (0.0, 1.0, 2.0))
        assert c - b == pytest.approx(b - a, abs=1e-12)
        assert b > a


def test_an_attack_as_code_is_that_attack():
    model, x, y, rng = setting()
    for recipe, attack in (
        (Adversarial(eps=EPS, steps=3), LinfPGD(eps=EPS, steps=3)),
        (Adversarial(attack="L2PGD(eps=0.5, steps=3)"), L2PGD(eps=0.5, steps=3)),
        (Adversarial(attack="L1PGD(steps=2)"), L1PGD(steps=2)),
        (Adversarial(attack="GaussianNoise(std=0.2)"), GaussianNoise(0.2)),
    ):
        loss = recipe.loss(model, x, y, rng)
        assert torch.equal(loss, cross_entropy(model(attack(x, y, model, rng)), y))
        assert not torch.equal(loss, cross_entropy(model(at_level(attack, 0.3)(x, y, model, rng)), y))
        assert RECIPES.build(describe(recipe)) == recipe


def test_own_threat_models():
    """10 steps of PGD where the attack is FGSM or PGD: what a single step can't see is not to choose epochs."""
    for recipe, threat in (
        (Adversarial(eps=0.2, steps=3), LinfPGD(eps=0.2)),
        (Adversarial(attack="FGSM(eps=0.2)"), LinfPGD(eps=0.2)),
        (Adversarial(attack="L2PGD(eps=0.2, steps=1)"), L2PGD(eps=0.2)),
        (Adversarial(attack="L1PGD"), L1PGD()),
        (Adversarial(attack="L2APGD(eps=0.3)"), L2APGD(eps=0.3)),
        *((recipe(eps=0.2), LinfPGD(eps=0.2)) for recipe in (FastAdversarial, Trades, Mart)),
    ):
        assert recipe.threat == threat
    assert LinfPGD().steps == 10
    assert FGSM(eps=0.2) != LinfPGD(eps=0.2)


# Laws


@dataclass
class Pass:
    x: torch.Tensor
    training: bool
    dtype: torch.dtype


def watched_network(dtype=torch.float32):
    """A network in train mode, and the list of the passes through it, its faster copies' included."""
    log = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = initialised(lambda: SmallCNN(4, (0.5,), (0.5,), width=4), 0)

        def forward(self, x):
            out = self.inner(x)
            log.append(Pass(x.detach().clone(), self.training, out.dtype))
            return out

    return Watched().to(dtype).train(), log


@pytest.mark.parametrize(
    ("recipe", "norm", "eps"), BALLS, ids=lambda one: describe(one) if hasattr(one, "loss") else ""
)
def test_attacked_images_are_in_the_ball_and_in_range(recipe, norm, eps):
    model, log = watched_network()
    _, x, y, rng = setting(dtype=torch.float32)
    recipe.loss(model, x, y, rng)
    moved = [one.x for one in log if one.training][-1]
    length = norm.length(moved - x)
    # Float32 sums of 144 values: 1e-5 relative is generous.
    assert length.max() <= eps * (1 + 1e-5)
    assert length.min() > eps / 4
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (norm.length(x + (moved - x) * 1.01 - x) > eps * (1 + 1e-5)).any() or isinstance(recipe, Trades | Mart)


@pytest.mark.parametrize(("recipe", "passes"), list(zip(EVERY, PASSES, strict=True)), ids=named)
def test_attacks_evaluate_and_leave_no_trace(recipe, passes):
    """Train-mode passes are those of the loss alone; BatchNorm counts them; flags and gradients stay."""
    model, log = watched_network()
    _, x, y, rng = setting(dtype=torch.float32)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()  # frozen, and to stay so
    flags = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = torch.get_rng_state()
    loss = recipe.loss(model, x, y, rng)
    assert [module.training for module in model.modules()] == flags
    assert all(bool((parameter.grad == 3).all()) for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(one.training for one in log) == passes
    assert [int(norm.num_batches_tracked) for norm in norms] == [0] + [passes] * (len(norms) - 1)
    loss.backward()
    assert any(bool((parameter.grad != 3).any()) for parameter in model.parameters())


def test_clean_and_attacked_images_are_normalised_apart():
    """The first pass of two is on the clean images; together, the mutant, batch norm would see another mean."""
    for recipe in (Trades(eps=EPS, steps=2), Mart(eps=EPS, steps=2)):
        model, log = watched_network()
        twin, _ = watched_network()
        _, x, y, rng = setting(dtype=torch.float32)
        recipe.loss(model, x, y, rng)
        clean, moved = [one.x for one in log if one.training]
        assert torch.equal(clean, x)
        twin(clean)
        twin(moved)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
        )
        other, _ = watched_network()
        other(torch.cat([clean, moved]))
        assert not torch.equal(other.inner.norm1.running_mean, model.inner.norm1.running_mean)


@pytest.mark.parametrize("recipe", EVERY, ids=named)
def test_the_loss_of_a_batch_is_the_mean_of_its_images(recipe):
    """Each alone, in any order, where statistics are not the batch's; keyed by position, the mutant, it is not."""
    model, x, y, rng = setting(n=6)
    whole = recipe.loss(model, x, y, rng).item()
    order = [3, 0, 5, 1, 4, 2]
    parts = [recipe.loss(model, x[i : i + 1], y[i : i + 1], rng[i : i + 1]).item() for i in order]
    assert np.mean(parts) == pytest.approx(whole, abs=1e-9)
    by_position = [recipe.loss(model, x[i : i + 1], y[i : i + 1], rng[:1]).item() for i in order]
    assert abs(np.mean(by_position) - whole) > 1e-9
    assert recipe.loss(model, x, y, rng).item() == whole
    assert recipe.loss(model, x, y, Draws(7, rng.index)).item() != whole


@pytest.mark.parametrize("recipe", EVERY, ids=named)
def test_attacks_are_in_full_precision_under_autocast(recipe):
    """What is trained on is in half precision, what the attack sees is not."""
    model, log = watched_network()
    _, x, y, rng = setting(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = recipe.loss(model, x, y, rng)
        assert torch.is_autocast_enabled("cpu")
    assert {one.dtype for one in log if one.training} == {torch.bfloat16}
    assert {one.dtype for one in log if not one.training} == {torch.float32}
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_attacks_raise_what_they_climb():
    """More than noise of the same size does, which is what an attack down the slope could not."""
    model, x, y, rng = setting()
    noisy = x + EPS * rng.normal("other", *x.shape[1:]).sign().double()
    with torch.no_grad():
        plain = Standard().loss(model, noisy.clamp(0, 1), y, rng)
    for recipe in (FastAdversarial(eps=EPS), Adversarial(eps=EPS), Mart(eps=EPS, beta=0.0)):
        assert recipe.loss(model, x, y, rng) > plain


# Corruptions


def test_one_corruption_is_that_corruption_and_level_0_is_none():
    model, x, y, rng = setting(dtype=torch.float32)
    one = Corrupted("GaussianNoise(std=0.2)").loss(model, x, y, rng)
    assert torch.equal(one, NoiseAugmented(0.2).loss(model, x, y, rng))
    none = Corrupted("GaussianNoise(std=0), fog(severity=0)").loss(model, x, y, rng)
    assert torch.equal(none, Standard().loss(model, x, y, rng))


def test_each_image_goes_through_one_of_them_drawn_evenly():
    model, *_ = setting(dtype=torch.float32)
    n, by = 600, "GaussianNoise(std=0.2), contrast(severity=3), SaltAndPepper(amount=0.1)"
    x, y = torch.rand(n, 1, 6, 6, generator=stream("many")), torch.zeros(n, dtype=torch.int64)
    rng = draws(0, "corrupted", index=torch.arange(n))
    out = Corrupted(by)(x, y, model, rng)
    each = torch.stack([p(x, y, model, rng) for p in grid(by)])
    same = (each == out).all((2, 3, 4))
    assert bool((same.sum(0) == 1).all())
    # A share of 1/3 of 600 has a standard error of 0.019.
    assert (same.double().mean(1) - 1 / 3).abs().max() < 5 * 0.0193
    assert len(grid(Corrupted().by)) == 5


def test_every_corruption_and_noise_can_be_trained_on():
    model, x, y, rng = setting(n=130, dtype=torch.float32)
    assert bool(Corrupted("corruption, noise").loss(model, x, y, rng).isfinite())


# Errors and a whole training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adversarial(eps=0.1, attack="L2PGD"), r"eps and an attack contradict.*inside the attack's code"),
        (lambda: Adversarial(steps=3, step_size=0.1, attack="L2PGD"), "steps, step_size and an attack contradict"),
        (lambda: Adversarial(attack="L2PDG"), "Did you mean 'L2PGD'"),
        (lambda: Adversarial(attack="L2PGD(eps=)"), "cannot read the perturbation"),
        (lambda: Adversarial(eps=8.0), "eps must be a number in"),
        (lambda: FastAdversarial(eps=8.0), "8/255, not 8"),
        (lambda: FastAdversarial(alpha=-1.0), "alpha must be a number of at least 0"),
        (lambda: Trades(eps=8.0), "8/255, not 8"),
        (lambda: Trades(beta=-1.0), "beta must be a number of at least 0"),
        (lambda: Mart(steps=0), "steps must be a whole number of at least 1"),
        (lambda: Mart(step_size=-1.0), "step_size must be a number of at least 0"),
        (lambda: Corrupted("fogg"), "Did you mean 'fog'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(GeophoneError, match=message):
        make()


def test_published_defaults():
    assert (Trades().beta, Trades().steps, Mart().beta, Mart().steps) == (6, 10, 5, 10)
    assert Trades().eps == Mart().eps == FastAdversarial().eps == 8 / 255


@cache
def data():
    return synthetic(classes=3, train=96, val=24, test=30, size=12)


@pytest.mark.parametrize(
    "recipe",
    [
        Adversarial(attack="L2PGD(eps=0.3, steps=2)"),
        Adversarial(attack="L1PGD(eps=2, steps=2)"),
        FastAdversarial(eps=0.05),
        Trades(eps=0.05, steps=2),
        Mart(eps=0.05, steps=2),
        Corrupted("gaussian_noise, fog"),
    ],
    ids=named,
)
def test_it_trains(recipe):
    def network():
        return initialised(lambda: SmallCNN(3, (0.5,), (0.25,), width=4), 0)

    first, second = network(), network()
    short = Training(epochs=3, batch_size=32, lr=0.05)
    history = fit(first, data(), recipe, short, seed=1)
    assert fit(second, data(), recipe, short, seed=1) == history
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert history[-1]["loss"] < history[0]["loss"]
