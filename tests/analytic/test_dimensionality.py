"""Closed forms of dimensionality (specification §10)."""

import math

import pytest
import torch

from geophone.core.rng import stream
from geophone.metrics import (
    Undefined,
    active_fraction,
    dead_fraction,
    difference_dim,
    difference_fraction,
    participation_ratio,
    participation_ratio_corrected,
    pca_dim,
    pca_fraction,
    two_nn,
)
from geophone.metrics.dimensionality import unbiased_traces
from geophone.stats import Moments

N = 600


def with_spectrum(values):
    """Data whose sample covariance has exactly these eigenvalues, in a random basis."""
    d = len(values)
    generator = stream("spectrum", d)
    x = torch.randn(N, d, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(x - x.mean(0))
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return q * torch.tensor(values, dtype=torch.float64).mul(N - 1).sqrt() @ basis.T


def test_geometric_spectrum():
    """Eigenvalues rho^i, d = 64, rho = .8: ceil(ln(1 - .95(1 - rho^d))/ln rho) = 14."""
    rho, d = 0.8, 64
    wanted = math.ceil(math.log(1 - 0.95 * (1 - rho**d)) / math.log(rho))
    assert wanted == 14
    x = with_spectrum([rho**i for i in range(d)])
    assert pca_dim[95](x) == wanted
    assert pca_fraction[95](x) == wanted / d
    assert pca_dim[90](x) < pca_dim[95](x) < pca_dim[99](x)


def test_rank_one_is_one():
    x = torch.randn(50, 1, generator=stream(1), dtype=torch.float64) @ torch.ones(1, 6, dtype=torch.float64) + 5
    assert pca_dim[99](x) == 1
    assert participation_ratio(x) == pytest.approx(1, abs=1e-12)


def test_equal_spectrum():
    """Ten equal eigenvalues: 9, 10 and 10 components hold 90, 95 and 99 %; participation ratio 10."""
    x = with_spectrum([1.0] * 10)
    assert [pca_dim[p](x) for p in (90, 95, 99)] == [9, 10, 10]
    assert participation_ratio(x) == pytest.approx(10, abs=1e-9)


def test_invariances():
    """Rotation, translation and scaling of all data change nothing; k is at most min(n - 1, d)."""
    x = with_spectrum([4.0, 2.0, 1.0, 0.5, 0.1])
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=stream(2), dtype=torch.float64))
    for metric in (pca_dim[95], participation_ratio, participation_ratio_corrected):
        assert metric(3 * x @ q + 7) == pytest.approx(metric(x), rel=1e-9)
    wide = torch.randn(8, 30, generator=stream(3), dtype=torch.float64)
    assert pca_dim[99](wide) <= 7


def test_corrected_participation_ratio_is_not_biased_where_the_plain_one_is():
    """Isotropic Gaussian, d = 100, n = 100: truth 100, plain about 50.

    Mean of 40 draws. One draw's corrected value has a standard deviation of about 2·d/n ≈ 2, their mean 0.3: allow 2.
    """
    draws = [torch.randn(100, 100, generator=stream("pr", i), dtype=torch.float64) for i in range(40)]
    plain = sum(participation_ratio(x) for x in draws) / 40
    corrected = sum(participation_ratio_corrected(x) for x in draws) / 40
    assert corrected == pytest.approx(100, abs=2)
    assert plain < 55  # the mutant that this law must catch is the plain estimator itself


def test_the_traces_are_unbiased_for_any_distribution():
    """Exponential responses with variances 1, 1/2, …, 1/30: means of 400 draws, to four standard errors.

    The mutants are the plug-in values (tr S)² and tr S².
    """
    variances = torch.arange(1, 31, dtype=torch.float64).reciprocal()
    truth = torch.tensor([float(variances.sum() ** 2), float(variances.square().sum())])
    corrected, plain = [], []
    for i in range(400):
        x = -torch.rand(20, 30, generator=stream("exp", i), dtype=torch.float64).log() * variances.sqrt()
        m = Moments.of_rows(x)
        corrected.append(unbiased_traces(m))
        plain.append((float(m.trace / 19) ** 2, float((m.scatter / 19).square().sum())))

    def off(found):
        values = torch.tensor(found)
        return (values.mean(0) - truth).abs() / (values.std(0) / math.sqrt(len(values)))

    assert off(corrected).max() < 4
    assert off(plain).max() > 4


def test_difference_of_nothing_has_no_dimension():
    x = torch.randn(40, 6, generator=stream(4), dtype=torch.float64)
    assert difference_dim[95](x, x) == 0
    assert difference_dim[95](x, x + 0.25) == 0  # a constant shift has no centred variance
    assert difference_fraction[99](x, x + 0.25) == 0
    # Brightness through a linear layer in float32: the same shift for all images, but for rounding of the responses.
    generator = stream("linear")
    images, weights = torch.rand(500, 784, generator=generator), torch.randn(784, 32, generator=generator) / 28
    for shift in (0.002, 0.2):
        assert difference_dim[95](images @ weights, (images + shift) @ weights) == 0
    noisy = images + 0.01 * torch.randn(500, 784, generator=generator)
    assert difference_dim[95](images @ weights, noisy @ weights) > 20


def test_difference_of_noise_through_a_linear_layer():
    """Isotropic noise before W: the difference has the spectrum of WW', so rank W dimensions; signs do not matter."""
    generator = stream(5)
    w = torch.randn(12, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 20, generator=generator).double()
    x = torch.randn(500, 12, generator=generator, dtype=torch.float64)
    noisy = x + 0.1 * torch.randn(500, 12, generator=generator, dtype=torch.float64)
    assert difference_dim[99](x @ w, noisy @ w) <= 3
    assert difference_dim[99](x @ w, noisy @ w) == difference_dim[99](noisy @ w, x @ w)


def test_undefined_is_said():
    constant = torch.full((10, 3), 2.0)
    assert pca_dim[95](constant) == 0
    for metric in (participation_ratio, participation_ratio_corrected):
        with pytest.raises(Undefined, match="do not vary"):
            metric(constant)
    with pytest.raises(Undefined, match="at least 4"):
        participation_ratio_corrected(torch.randn(3, 2, generator=stream(6)))
    with pytest.raises(Undefined, match="at least 3 images"):
        pca_dim[95](torch.ones(1, 2))


def test_activity():
    x = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 3.0], [0.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
    assert active_fraction(x).tolist() == [0.0, 0.5, 1.0]
    assert dead_fraction(x) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("d", "wanted"), [(1, 1.02), (2, 2.01), (5, 4.77), (10, 8.95)])
def test_two_nn_of_cubes(d, wanted):
    """Uniform on a d-cube, turned into 64 dimensions and curled up a little.

    The specification's values are the maximum likelihood estimate's at N = 4000. With N points its standard error is
    d/√N; the fit's is about a half larger, so 4 of those. Principal components see more dimensions than there are.
    """
    generator = stream("cube", d)
    n = 2000
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q[:d]
    x = x @ turn
    labels = torch.arange(n) % 20
    assert two_nn(x, labels) == pytest.approx(wanted, abs=6 * wanted / math.sqrt(n) + 0.02 * wanted)
    assert two_nn(3 * x + 1, labels) == pytest.approx(two_nn(x, labels), rel=1e-9)


def test_two_nn_follows_a_curve_that_principal_components_do_not():
    angle = 6 * torch.rand(1000, generator=stream("curve"), dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (3 * angle).sin()], dim=1)
    assert two_nn(x, torch.arange(1000) % 10) < 1.3
    assert pca_dim[95](x) == 4


def test_two_nn_counts_equal_points_once_and_says_when_there_are_too_few():
    x = torch.randn(60, 3, generator=stream("twice"), dtype=torch.float64)
    y = torch.zeros(60, dtype=torch.int64)
    twice = torch.cat([x[:40], x[:40]])
    assert two_nn(twice, torch.zeros(80, dtype=torch.int64)) == two_nn(x[:40], y[:40])
    with pytest.raises(Undefined, match="20 different"):
        two_nn(torch.zeros(100, 4), torch.zeros(100, dtype=torch.int64))
