"""Dimensions of all points together: closed forms of spectra, and TwoNN as the metric has it."""

import math

import pytest
import torch

from geophone.errors import GeophoneError
from geophone.geometry.dimensions import data_dimensions, two_nn_dimension
from geophone.metrics import participation_ratio, pca_dim, two_nn
from geophone.rng import stream


def with_spectrum(values, n):
    """Points whose sample covariance has exactly these eigenvalues, in a random basis, far from 0."""
    drawn = stream("spectrum", len(values), n)
    x = torch.randn(n, len(values), generator=drawn, dtype=torch.float64)
    u = torch.linalg.qr(x - x.mean(0)).Q
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=drawn, dtype=torch.float64)).Q
    return u * torch.tensor(values, dtype=torch.float64).sqrt() @ basis + 7


def test_equal_spectrum():
    """Ten equal eigenvalues: nine hold 90 % exactly, and no more than that."""
    made = data_dimensions(with_spectrum([1.0] * 10, 60).split([10, 20, 30]))
    assert (made.evd90, made.evd90_published, made.d, made.n) == (9, 9, 10, 60)
    assert made.participation_ratio == pytest.approx(10, rel=1e-12)


def test_geometric_spectrum():
    """λ_i = ρ^i: the sum of k is (1 − ρ^k)/(1 − ρ); PR = (1 − ρ^d)²(1 − ρ²)/((1 − ρ)²(1 − ρ^2d))."""
    rho, d = 0.8, 30
    made = data_dimensions([with_spectrum([rho**i for i in range(d)], 80)])
    needed = math.ceil(math.log(1 - 0.9 * (1 - rho**d)) / math.log(rho))
    assert (made.evd90, made.evd90_published) == (needed, needed - 1)
    wanted = (1 - rho**d) ** 2 * (1 - rho**2) / ((1 - rho) ** 2 * (1 - rho ** (2 * d)))
    assert made.participation_ratio == pytest.approx(wanted, rel=1e-10)
    # Mutants: standard deviations for variances; the mean left in.
    spread = [rho ** (i / 2) for i in range(d)]
    assert sum(spread) ** 2 / sum(s * s for s in spread) != pytest.approx(wanted, rel=0.1)
    x = with_spectrum([rho**i for i in range(d)], 80)
    assert float((x @ x.T).trace() ** 2 / (x @ x.T).square().sum()) != pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("n", "d"), [(30, 9), (9, 30), (12, 12), (2, 5), (5, 1)])
def test_agrees_with_the_metrics_whichever_matrix_is_smaller(n, d):
    x = torch.randn(n, d, generator=stream("x", n, d), dtype=torch.float64)
    made = data_dimensions([x[: n // 2], x[n // 2 :]])
    assert made.participation_ratio == pytest.approx(participation_ratio(x), rel=1e-9)
    assert made.evd90 == pca_dim[90](x)
    assert made.evd90_published in (made.evd90 - 1, made.evd90)


def test_rank_one_is_one():
    line = torch.arange(6.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    made = data_dimensions([line, line])
    assert made.participation_ratio == pytest.approx(1)
    assert (made.evd90, made.evd90_published) == (1, 0)


def test_equal_points_have_none():
    with pytest.raises(GeophoneError, match="equal"):
        data_dimensions([torch.full((4, 3), 0.1), torch.full((2, 3), 0.1)])
    with pytest.raises(GeophoneError, match="NaN"):
        data_dimensions([torch.full((4, 3), math.nan)])


def test_two_nn_is_the_metrics():
    flat = torch.rand(400, 3, generator=stream("flat"), dtype=torch.float64)
    made = two_nn_dimension(flat)
    assert two_nn_dimension(flat[:100]) == two_nn(flat[:100])  # a sample's most of one class
    # 400 points with edges: within 15 %, where one dimension more would be 33 % off.
    assert made == pytest.approx(3, rel=0.15)
    with pytest.raises(GeophoneError, match="20 different"):
        two_nn_dimension(flat[:10].repeat(5, 1))
