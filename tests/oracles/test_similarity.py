"""Linear CKA with the unbiased HSIC, against Song et al.'s formula written out on n × n Grams, and its laws."""

import math

import pytest
import torch

from geophone.core.rng import stream
from geophone.core.types import Pair
from geophone.metrics import Undefined, cka, normalised_distance, pwcca
from geophone.stats import CrossMoments, total


def hsic(k, m):
    """The unbiased estimator, Song et al. 2012, on Grams with their diagonals set to 0."""
    n = len(k)
    k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
    cross = k @ m
    return (cross.trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross.sum()) / (n * (n - 3))


def oracle(a, b):
    k, m = a @ a.T, b @ b.T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def biased(a, b):
    """The mutant: plug-in CKA."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def pair(n, p, q, seed=0, noise=1.0):
    generator = stream("cka", n, p, q, seed)
    a = torch.randn(n, p, generator=generator, dtype=torch.float64)
    w = torch.randn(p, q, generator=generator, dtype=torch.float64) / math.sqrt(p)
    return a, (a @ w).relu() + noise * torch.randn(n, q, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("n", "p", "q"), [(4, 3, 2), (20, 5, 8), (64, 100, 30), (300, 8, 8)])
def test_equals_the_written_definition(n, p, q):
    a, b = pair(n, p, q)
    if n > 4:
        assert cka(a, b) == pytest.approx(oracle(a, b), abs=1e-10)
    assert abs(biased(a, b) - oracle(a, b)) > 1e-3


@pytest.mark.parametrize("bias", [30.0, 1000.0])
def test_a_bias_changes_nothing(bias):
    """Adding a constant to every unit, float32 responses included: five of five public tools fail at +30."""
    a, b = pair(256, 16, 16)
    assert cka(a + bias, b) == pytest.approx(cka(a, b), abs=1e-9)
    # float32 rounds the shifted responses by bias · 6e-8; that is noise of relative size 6e-5 at +1000.
    assert cka((a + bias).float(), b.float()) == pytest.approx(cka(a, b), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_rotation_and_scale_change_nothing(scale):
    a, b = pair(128, 10, 12)
    q, _ = torch.linalg.qr(torch.randn(10, 10, generator=stream("q"), dtype=torch.float64))
    assert cka(scale * a @ q, b) == pytest.approx(cka(a, b), abs=1e-9)
    assert cka(b, a) == pytest.approx(cka(a, b), abs=1e-12)
    assert cka(a, a) == pytest.approx(1, abs=1e-12)
    assert cka(scale * a, scale * a) == pytest.approx(1, abs=1e-12)


def test_any_split_is_exact():
    a, b = pair(200, 6, 9)
    parts = [CrossMoments.of(Pair(a[i:j], b[i:j])) for i, j in ((0, 1), (1, 4), (4, 150), (150, 200))]
    assert cka(total(parts)) == pytest.approx(oracle(a, b), abs=1e-10)


def test_independent_noise_is_near_zero():
    """n = 64, d = 512: |mean| below three standard errors, where the biased estimator says about 0.9."""
    found, plug_in = [], []
    for seed in range(30):
        generator = stream("noise", seed)
        a = torch.randn(64, 512, generator=generator, dtype=torch.float64)
        b = torch.randn(64, 512, generator=generator, dtype=torch.float64)
        found.append(cka(a, b))
        plug_in.append(biased(a, b))
    values = torch.tensor(found)
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(30)
    assert min(plug_in) > 0.85


def test_undefined_is_said():
    a, b = pair(20, 4, 4)
    with pytest.raises(Undefined, match="do not vary"):
        cka(a, torch.ones_like(b))
    with pytest.raises(Undefined, match="at least 4"):
        cka(a[:3], b[:3])


def test_normalised_distance():
    """0 for no move; scaling by s moves by |s - 1| times a closed form; unrelated responses give about 1."""
    generator = stream("distance")
    a = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    a = a - a.mean(0)
    assert normalised_distance(a, a) == 0
    wanted = 0.5 * math.sqrt((4000 - 1) / (2 * 4000))
    assert normalised_distance(a, 1.5 * a) == pytest.approx(wanted, abs=1e-12)
    other = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    # |b - a|² is chi² with 8 degrees over 4000 images: known to 0.8 %, its root to 0.4 %; allow three of these.
    assert normalised_distance(a, other) == pytest.approx(1, abs=0.015)
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    assert normalised_distance(7 * a @ q + 3, 7 * other @ q + 3) == pytest.approx(
        normalised_distance(a, other), abs=1e-9
    )
    with pytest.raises(Undefined, match="do not vary"):
        normalised_distance(torch.ones(5, 2), torch.zeros(5, 2))


def pwcca_by_variates(a, b, weighted=True):
    """From the data themselves: orthonormal bases by QR, principal angles by SVD, weights from the variates."""
    a, b = a - a.mean(0), b - b.mean(0)
    basis_a, basis_b = torch.linalg.qr(a).Q, torch.linalg.qr(b).Q
    u, rho, _ = torch.linalg.svd(basis_a.T @ basis_b, full_matrices=False)
    variates = basis_a @ u
    weights = (variates.T @ a).abs().sum(1) if weighted else torch.ones_like(rho)
    return float(weights @ rho / weights.sum())


@pytest.mark.parametrize(("n", "p", "q"), [(40, 3, 5), (200, 12, 6), (500, 8, 8)])
def test_pwcca_equals_its_definition(n, p, q):
    a, b = pair(n, p, q)
    a = a * torch.linspace(0.1, 3, p, dtype=torch.float64)
    assert pwcca(a, b) == pytest.approx(pwcca_by_variates(a, b), abs=1e-9)
    # Mutant: the plain mean of the canonical correlations.
    assert pwcca(a, b) != pytest.approx(pwcca_by_variates(a, b, weighted=False), abs=1e-4)


def test_pwcca_laws():
    a, b = pair(300, 6, 6)
    mix = torch.randn(6, 6, generator=stream("mix"), dtype=torch.float64)
    assert pwcca(a, a @ mix + 7) == pytest.approx(1, abs=1e-9)
    assert pwcca(a, b @ mix - 3) == pytest.approx(pwcca(a, b), abs=1e-9)
    assert pwcca(5 * a + 1, b) == pytest.approx(pwcca(a, b), abs=1e-9)
    # Not symmetric: directions count by how much of the first side lies along them.
    stretched = a * torch.tensor([10.0, 1, 1, 1, 1, 0.1]).double()
    assert pwcca(stretched, b) != pytest.approx(pwcca(b, stretched), abs=1e-3)
    # A dead unit, or two that are the same, add no direction.
    more = torch.cat([b, torch.zeros(300, 1).double(), b[:, :1]], dim=1)
    assert pwcca(a, more) == pytest.approx(pwcca(a, b), abs=1e-6)


def test_pwcca_of_unrelated_responses_is_what_chance_gives():
    """Singular values of d × d noise of variance 1/n average 0.85·√(d/n) (8/3π, of the quarter circle to 2√(d/n))."""
    generator = stream("unrelated")
    found = [
        pwcca(torch.randn(1000, 20, generator=generator).double(), torch.randn(1000, 20, generator=generator).double())
        for _ in range(10)
    ]
    assert sum(found) / 10 == pytest.approx(8 / (3 * math.pi) * math.sqrt(20 / 1000), abs=0.01)


def test_pwcca_undefined_is_said():
    a, b = pair(10, 9, 9)
    with pytest.raises(Undefined, match="more images than units"):
        pwcca(a, b)
    with pytest.raises(Undefined, match="do not vary"):
        pwcca(a, torch.ones(10, 2).double())
