"""JSMA against the paper's search written out: all pairs, one image at a time."""

from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.perturb.attacks.jsma import JSMA, best_pair
from geophone.testing.perturbation_laws import check_perturbation

ROUNDING = 1e-9  # of float64


def network(classes: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 36, 16),
            nn.Tanh(),
            nn.Linear(16, classes),
        )
    layers = layers.double().eval()
    with torch.no_grad():  # so that grey noise is of every class
        layers[-1].bias -= layers(torch.rand(200, 2, 6, 6, generator=stream("bias"), dtype=torch.float64)).mean(0)
    return layers


def batch(model: Any, n: int = 8) -> tuple[Tensor, Tensor, Draws]:
    """Images with values at 0 and 1, labelled as the network has them."""
    x = torch.rand(n, 2, 6, 6, generator=stream("jsma"), dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    with torch.no_grad():
        return x, model(x).argmax(1), draws("jsma", index=torch.arange(n))


def of_the_paper(x: Tensor, label: int, model: Any, gamma: float, theta: float) -> Tensor:
    """One image, all pairs of its values compared; stops once misclassified."""
    logits = model(x[None])[0].detach()
    target = int(logits.index_fill(0, torch.tensor(label), -torch.inf).argmax())
    for _ in range(int(gamma * x.numel() / 2)):
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x).flatten(1)
        if int(model(x[None]).argmax()) != label:
            break
        alpha, beta = jacobian[target], jacobian.sum(0) - jacobian[target]
        best, pair = 0.0, None
        free = [i for i, value in enumerate(x.flatten().tolist()) if (value < 1 if theta > 0 else value > 0)]
        alpha, beta = alpha.tolist(), beta.tolist()
        for p, q in combinations(free, 2):
            a, b = alpha[p] + alpha[q], beta[p] + beta[q]
            opposed = a > 0 > b if theta > 0 else a < 0 < b
            if opposed and -a * b > best:
                best, pair = -a * b, [p, q]
        if pair is None:
            break
        flat = x.flatten().clone()
        flat[pair] += theta
        x = flat.clamp(0, 1).reshape(x.shape)
    return x


@cache
def expected_of(gamma: float, theta: float) -> Tensor:
    model = network()
    x, y, _ = batch(model)
    found = torch.stack([of_the_paper(one, int(label), model, gamma, theta) for one, label in zip(x, y, strict=True)])
    assert (found != x).flatten(1).sum(1).max() > 2  # or too little is compared
    return found


def agrees(attack: Any, gamma: float, theta: float) -> None:
    model = network()
    x, y, rng = batch(model)
    assert (attack(x, y, model, rng) - expected_of(gamma, theta)).abs().max().item() <= ROUNDING


@pytest.mark.parametrize(("gamma", "theta"), [(0.1, 1.0), (0.3, 0.2), (0.2, -1.0)])
def test_it_changes_the_pairs_that_the_paper_changes(gamma: float, theta: float) -> None:
    agrees(JSMA(gamma=gamma, theta=theta), gamma, theta)


@pytest.mark.parametrize("mutant", [JSMA(gamma=0.05), JSMA(theta=0.5), JSMA(theta=-1.0), JSMA(target=0)], ids=repr)
def test_a_mutant_changes_others(mutant: JSMA) -> None:
    with pytest.raises(AssertionError):
        agrees(mutant, 0.1, 1.0)


def is_best(search: Any, d: int, correlation: float) -> None:
    """The pair's product is the largest of all pairs, of free values only; none is claimed where there is none."""
    generator = stream("pairs", d, int(100 * correlation))
    a, noise = torch.randn(2, 40, d, generator=generator, dtype=torch.float64)
    b = correlation * a + (1 - correlation**2) ** 0.5 * noise
    a, b = a * 1e3, b * 1e-3
    free = torch.rand(40, d, generator=generator) < 0.7
    first, second = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
    product = first.clamp(min=0) * second.clamp(min=0) * (free[:, :, None] & free[:, None])
    best = product.diagonal_scatter(torch.zeros(40, d, dtype=torch.float64), dim1=1, dim2=2).flatten(1).amax(1)
    pair, found = search(a, b, free)
    assert torch.equal(found, best > 0)
    pair, rows = pair[found], found.nonzero()[:, 0]
    assert bool((pair[:, 0] != pair[:, 1]).all())
    assert torch.allclose(product[rows, pair[:, 0], pair[:, 1]], best[found], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("d", [2, 3, 5, 40, 300])
@pytest.mark.parametrize("correlation", [-0.8, -0.5, 0.0, 0.5, 0.95, 1.0])
def test_the_best_pair_is_found_without_forming_all(d: int, correlation: float) -> None:
    is_best(best_pair, d, correlation)


def largest_target_gradients(a: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The rule of another library: the two values with the largest gradient of the target."""
    pair = a.masked_fill(~free, -torch.inf).topk(2, dim=1).indices
    return pair, best_pair(a, b, free)[1]


def ignores_what_is_free(a: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    return best_pair(a, b, torch.ones_like(free))


@pytest.mark.parametrize("mutant", [largest_target_gradients, ignores_what_is_free])
def test_a_mutant_pair_is_not_the_best(mutant: Any) -> None:
    with pytest.raises(AssertionError):
        is_best(mutant, 40, 0.5)


def test_no_more_than_the_share_changes_and_solved_images_are_left() -> None:
    model = network()
    x, y, rng = batch(model)
    y[0] = (y[0] + 1) % 5
    for gamma in (0.03, 0.1, 0.3):
        out = JSMA(gamma=gamma)(x, y, model, rng)
        changed = (out != x).flatten(1).sum(1)
        assert int(changed[0]) == 0
        assert changed.max() <= gamma * 72
        wrong = model(out).argmax(1) != y
        longer = JSMA(gamma=2 * gamma)(x, y, model, rng)
        assert torch.equal(longer[wrong], out[wrong])
        assert torch.equal(JSMA(gamma=gamma).fool(x, y, model, rng), out)
    assert bool(wrong.any())


def test_a_tiny_image_may_change_by_one_pair() -> None:
    model = network()
    x, y, rng = batch(model)
    assert (JSMA(gamma=0.001)(x, y, model, rng) != x).flatten(1).sum(1).max() == 2


def test_images_of_the_target_stay_as_they_are() -> None:
    model = network()
    x, y, rng = batch(model, 16)
    target = int(y[0])
    out = JSMA(target=target)(x, y, model, rng)
    assert torch.equal(out[y == target], x[y == target])
    assert not torch.equal(out, x)
    rows = y == target
    assert torch.equal(JSMA(target=target)(x[rows], y[rows], model, rng[rows]), x[rows])


def test_two_classes_are_enough() -> None:
    model = network(2)
    x, y, rng = batch(model)
    assert bool((JSMA(gamma=0.5)(x, y, model, rng) != x).flatten(1).any(1).all())


def test_the_scale_of_the_logits_does_not_matter() -> None:
    """A power of 2 rounds nothing."""
    model = network()
    x, y, rng = batch(model)
    out = [JSMA()(x, y, lambda x, scale=scale: scale * model(x), rng) for scale in (1.0, 128.0, 1 / 128)]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])


def test_memory_does_not_grow_with_the_pairs() -> None:
    """150,528 values have 2·10^10 pairs; one matrix of them would take 90 GB."""
    weight = torch.randn(3, 3 * 224 * 224, generator=stream("large")) / 400
    x = torch.rand(1, 3, 224, 224, generator=stream("picture"))
    logits = x.flatten(1) @ weight.T
    y = logits.argmax(1)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight.T - logits + nn.functional.one_hot(y, 3)

    out = JSMA(gamma=2e-3)(x, y, model, draws("large", index=torch.arange(1)))
    assert int(model(out).argmax()) != int(y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be a number in \[0, 1\]"),
        ({"theta": 2.0}, r"theta must be a number in \[-1, 1\]"),
        ({"target": -1}, "give the number of a class"),
        ({"target": True}, "target is of type bool"),
    ],
)
def test_a_wrong_field_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GeophoneError, match=message):
        JSMA(**fields)


def test_a_network_that_cannot_be_attacked_is_an_error() -> None:
    model = network()
    x, y, rng = batch(model)
    with pytest.raises(GeophoneError, match=r"gave \[8, 5\] for 8 images with labels up to 7"):
        JSMA(target=7)(x, y, model, rng)
    with pytest.raises(GeophoneError, match="passes no gradient on to its input"):
        JSMA()(x, y, lambda x: model(x.detach()).detach(), rng)
    model[-1].weight.data[0, 0] = torch.nan
    with pytest.raises(GeophoneError, match="is NaN or infinite"):
        JSMA()(x, y, model, rng)


@pytest.mark.parametrize("attack", [JSMA(), JSMA(theta=-0.3), JSMA(target=1)], ids=repr)
def test_the_laws_hold(attack: JSMA) -> None:
    assert check_perturbation(lambda: attack) == []
