"""Dimensions of all points together: closed forms of spectra, and TwoNN as the metric has it."""

import math

import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics import participation_ratio, pca_dim, two_nn
from geophone.metrics.geometry.dimensions import _by_differences, data_dimensions, two_nearest, two_nn_dimension


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


@pytest.mark.parametrize(("n", "d"), [(30, 9), (9, 30), (12, 12), (3, 5), (5, 1)])
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
    assert two_nn(flat) == made  # all points, however many
    # 400 points with edges: within 15 %, where one dimension more would be 33 % off.
    assert made == pytest.approx(3, rel=0.15)
    with pytest.raises(GeophoneError, match="20 different"):
        two_nn_dimension(flat[:10].repeat(5, 1))


def test_two_nn_of_many_points_scatters_as_all_of_them_should():
    """Of 2000 points in the plane the estimates' spread is about 1.5 · 2/√2000 = .07; of 100 of them it would be .3."""
    draw = stream("planes")
    found = torch.tensor([two_nn(torch.randn(2000, 2, generator=draw, dtype=torch.float64)) for _ in range(10)])
    assert float(found.std()) < 0.14
    assert float(found.mean()) == pytest.approx(2, abs=0.1)


def clouds_that_are_hard():
    draw = stream("hard")
    x = torch.randn(400, 20, generator=draw, dtype=torch.float64)
    small = torch.randn(400, 20, generator=draw, dtype=torch.float64)
    yield "plain", x
    yield "far from the origin", x + 1e6
    yield "twins at 1e-9", torch.cat([x, x + 1e-9 * small])
    # More near-duplicates than candidates: the products tell nothing of them.
    yield "clusters at 1e-12", torch.cat([x[:20].repeat(20, 1) + 1e-12 * small, x])


@pytest.mark.parametrize(("name", "x"), list(clouds_that_are_hard()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_two_nearest_are_those_by_differences(name, x, monkeypatch):
    wanted = _by_differences(x, x)
    monkeypatch.setattr("geophone.metrics.geometry.dimensions.BLOCK", 100 * len(x))  # several blocks
    got = two_nearest(x)
    # Two ways of summing 20 squares: 1e-15, and float64's own rounding of points 1e6 away cancels in neither.
    assert torch.allclose(got, wanted, rtol=1e-12, atol=0)
    # The mutant that believes the products: it is off where points are near each other.
    if "1e" in name:
        products = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").topk(3, largest=False).values[:, 1:]
        assert not torch.allclose(products, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-34, 1e34, 2.0**700])
def test_two_nn_does_not_depend_on_scale(scale):
    flat = torch.rand(200, 3, generator=stream("flat"), dtype=torch.float64)
    assert two_nn_dimension(scale * flat) == pytest.approx(two_nn_dimension(flat), rel=1e-9)
