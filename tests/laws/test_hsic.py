"""Gram matrices of all layers at once against the written definition, and what the estimators promise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from geophone.core.rng import stream
from geophone.stats import hsic


def responses(n: int, d: int, name: str = "x", mean: float = 3.0) -> Tensor:
    """Like a ReLU's: correlated, not negative, with a mean far above the spread."""
    x = torch.randn(n, 5, generator=stream(name)) @ torch.randn(5, d, generator=stream(name, "mix"))
    return (x + 0.3 * torch.randn(n, d, generator=stream(name, "own")) + mean).relu()


def song(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC times n(n − 3), as Song et al. 2012 write it, in float64."""
    n = len(x)
    k, m = ((z.double() @ z.double().T).numpy() for z in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    return float(
        np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    )


def by_grams(x: Tensor, y: Tensor) -> float:
    a, b = (hsic.u_centred(hsic.centred_gram(z)[None]) for z in (x, y))
    return float(hsic.products(a, b))


@pytest.mark.parametrize(("n", "p", "q"), [(5, 3, 7), (40, 12, 30), (97, 300, 41), (256, 500, 20)])
def test_products_of_grams_are_songs_estimator(n: int, p: int, q: int) -> None:
    """Float32 rounds each of the p terms of a Gram entry by 2⁻²⁴ of it; sums of n² such entries average that out."""
    x, y = responses(n, p), responses(n, q, "y")
    scale = (song(x, x) * song(y, y)) ** 0.5
    assert abs(by_grams(x, y) - song(x, y)) <= 1e-6 * scale


def uncentred(x: Tensor, y: Tensor) -> float:
    a, b = (hsic.u_centred((z @ z.T)[None].clone()) for z in (x, y))
    return float(hsic.products(a, b))


def test_a_large_mean_changes_nothing_and_would_without_centring() -> None:
    """A bias of 3000 rounds float32 responses by up to 1e-4, at random, with a spread of about 2."""
    x, y = responses(40, 200).double(), responses(40, 100, "y").double()
    scale = (song(x, x) * song(y, y)) ** 0.5
    moved = [(z + 3000).float() for z in (x, y)]
    assert abs(by_grams(*moved) - song(x, y)) <= 5e-5 * scale
    assert abs(uncentred(*moved) - song(x, y)) > 5e-3 * scale  # what every public tool does


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("n", "tile"), [(30, 8), (30, 64), (7, 2)])
def test_tiles_and_features_give_the_same_as_one_matrix(n: int, tile: int, debiased: bool) -> None:
    ours = [hsic.centred(responses(n, d, f"a{d}").double()) for d in (3, 20, 50)]
    theirs = [hsic.centred(responses(n, d, f"b{d}").double()) for d in (4, 33)]

    def whole(x: Tensor, y: Tensor) -> float:
        return song(x, y) if debiased else float((x @ x.T * (y @ y.T)).sum())

    expected = torch.tensor([[whole(x, y) for y in theirs] for x in ours], dtype=torch.float64)
    own = torch.tensor([whole(x, x) for x in ours], dtype=torch.float64)
    for made in (hsic._in_samples(ours, theirs, debiased, tile), hsic._in_features(ours, theirs, debiased)):
        # Rounding of sums of n² float64 terms.
        torch.testing.assert_close(made[0], expected, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(made[1], own, rtol=1e-10, atol=1e-9)
    itself = hsic._in_samples(ours, None, debiased, tile)
    assert torch.equal(itself[0], itself[0].T)
    torch.testing.assert_close(itself[0].diagonal(), itself[1], rtol=1e-12, atol=0)


def test_the_cheaper_space_is_taken() -> None:
    assert hsic._by_samples(100, [5000] * 3, [5000] * 3)
    assert not hsic._by_samples(10_000, [64] * 3, [64] * 3)


def test_constant_rows_are_exact_zeros() -> None:
    x = torch.full((20, 6), 0.1) + torch.randn(20, 6, generator=stream("tiny")) * 1e-9
    assert torch.equal(hsic.centred_gram(x), torch.zeros(20, 20))
    assert torch.equal(hsic.centred(x), torch.zeros(20, 6))
    assert hsic.centred_gram(x * torch.tensor([1, 1, 1, 1, 1, 1.1])).abs().sum() == 0
    small = responses(20, 6, mean=0.0) * 1e-12  # small is not constant
    assert hsic.centred_gram(small).abs().sum() > 0


def unbiased_over_batches(estimator: Callable[[Tensor, Tensor], float], size: int) -> float:
    """CKA of dependent responses by batches of a size."""
    x = torch.randn(4096, 64, generator=stream("wide"))
    y = (x @ torch.randn(64, 64, generator=stream("map"))).relu()
    parts = list(zip(x.split(size), y.split(size), strict=True))
    cross, own_x, own_y = (
        sum(estimator(a, b) for a, b in some)
        for some in zip(*[((a, b), (a, a), (b, b)) for a, b in parts], strict=True)
    )
    return float(cross / (own_x * own_y) ** 0.5)


def biased(x: Tensor, y: Tensor) -> float:
    return float((hsic.centred_gram(x) * hsic.centred_gram(y)).sum())


def test_batches_of_any_size_have_one_limit_and_biased_ones_have_not() -> None:
    """Unbiased estimates of 4,096 rows differ between sizes by chance, a few thousandths; biased ones by their bias."""
    sizes = (16, 64, 256, 1024)
    fair = [unbiased_over_batches(by_grams, size) for size in sizes]
    assert max(fair) - min(fair) < 0.02
    unfair = [unbiased_over_batches(biased, size) for size in sizes]
    assert max(unfair) - min(unfair) > 0.2
    assert unfair == sorted(unfair, reverse=True)
