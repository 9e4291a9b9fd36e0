"""Manifold capacity, radius and dimension: closed forms, invariances, bounds, and what bad input is told.

Two manifolds whose centres are opposite have exactly the centres that they are given, so closed forms hold as they are.
"""

import math

import pytest
import torch

import geophone
from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.metrics.geometry import ball_capacity, manifold_geometry, point_capacity
from geophone.metrics.geometry.mean_field import MODES

SIGMAS = 4.5
"""Of a standard error, or of two joined: chance exceeds it once in 150,000."""


def opposite(shape):
    """Two manifolds of this shape `[m, d]`, in units of the distance of their centres from 0."""
    m, d = shape.shape
    clouds = torch.zeros(2, m, 2 * d + 1, dtype=torch.float64)
    clouds[0, :, 0], clouds[1, :, 0] = 1, -1
    clouds[0, :, 1 : d + 1], clouds[1, :, d + 1 :] = shape, shape
    return list(clouds)


def segment(radius):
    return opposite(torch.tensor([[radius], [-radius]], dtype=torch.float64))


def circle(radius, points=400):
    angle = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    return opposite(radius * torch.stack([angle.cos(), angle.sin()], dim=1))


def cloudy(p=6, m=12, d=40, seed=0, spread=0.5):
    generator = stream("clouds", p, m, d, seed)
    centers = torch.randn(p, 1, d, generator=generator, dtype=torch.float64)
    return list(centers + spread * torch.randn(p, m, d, generator=generator, dtype=torch.float64))


def near(found, error, wanted):
    return abs(found - wanted) <= SIGMAS * error + 1e-12


# Closed forms.


@pytest.mark.parametrize(("kappa", "wanted"), [(0.0, 2.0), (0.5, 0.9612), (1.0, 0.5196)])
def test_points_have_gardners_capacity(kappa, wanted):
    assert abs(point_capacity(kappa) - wanted) < 5e-5
    found = manifold_geometry(opposite(torch.zeros(1, 1, dtype=torch.float64)), kappa=kappa, n_t=20_000)
    assert near(found.capacity, found.capacity_se, point_capacity(kappa))
    assert (found.radius, found.dimension) == (0, 0)


def test_the_balls_formula_has_its_known_values():
    for d in (1, 5, 10, 50):
        assert abs(ball_capacity(1.0, d) - 2 / (d + 1)) < 1e-9  # its cone is its own dual
        assert abs(ball_capacity(1e7, d) - 1 / (d + 0.5)) < 1e-5
        assert abs(ball_capacity(1e-7, d) - 2) < 1e-4
    assert abs(ball_capacity(0.5, 1) - 1.2576) < 5e-5
    assert abs(ball_capacity(1.0, 1, 0.5) - 0.5879) < 5e-5
    assert abs(ball_capacity(1e-6, 3, 0.5) - point_capacity(0.5)) < 1e-4


@pytest.mark.parametrize(
    ("radius", "kappa", "capacity", "anchor"),
    [(0.5, 0.0, 1.2576, 0.4738), (1.0, 0.0, 1.0, 0.904), (2.0, 0.0, 0.83, 1.695), (1.0, 0.5, 0.5879, None)],
)
def test_segments(radius, kappa, capacity, anchor):
    found = manifold_geometry(segment(radius), kappa=kappa, n_t=20_000)
    assert near(found.capacity, found.capacity_se, capacity)
    assert near(found.capacity, found.capacity_se, ball_capacity(radius, 1, kappa))
    assert abs(found.dimension - 1) < 0.01  # cos is ±1 up to the 1e-12 in the formula and anchors at the middle
    if anchor is not None:
        assert abs(found.radius - anchor) < 0.01  # the specification's value has 3 digits and 2e5 samples


@pytest.mark.parametrize(("radius", "kappa"), [(0.5, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 0.7)])
def test_discs(radius, kappa):
    found = manifold_geometry(circle(radius), kappa=kappa, n_t=4000)
    assert near(found.capacity, found.capacity_se, ball_capacity(radius, 2, kappa))
    assert abs(found.dimension - 2) < 0.02


@pytest.mark.parametrize("m", [2, 5, 20])
def test_a_simplex_of_orthogonal_generators_has_the_floors_capacity(m):
    corners = math.sqrt(m) * (torch.eye(m, dtype=torch.float64) - 1 / m)  # with the ones row: orthogonal generators
    found = manifold_geometry(opposite(corners), n_t=4000)
    assert near(found.capacity, found.capacity_se, 2 / m)  # an orthant's statistical dimension is half of its own
    assert found.floor == 2 / m


def test_many_random_points_come_down_to_the_floor_as_in_the_public_readme():
    """P = 100, M = 50, N = 5000, n_t = 200: capacity .04, radius 1.47, dimension 36.17, correlation .01, K = 1."""
    generator = stream("readme")
    clouds = list(torch.randn(100, 50, 5000, generator=generator, dtype=torch.float32))
    found = manifold_geometry(clouds, mode="reference", n_t=200, n_reps=1)
    assert round(found.capacity, 2) == 0.04
    # Printed digits, and our standard errors on top of rounding: .0014 and .02; theirs are of that size too.
    assert abs(found.radius - 1.47) < 0.005 + SIGMAS * 2**0.5 * found.radius_se
    assert abs(found.dimension - 36.17) < 0.005 + SIGMAS * 2**0.5 * found.dimension_se
    assert round(found.center_correlation, 2) == 0.01
    assert found.k == 1


def test_standard_errors_are_what_repeats_scatter_by():
    clouds = cloudy()
    runs = [manifold_geometry(clouds, n_t=100, seed=seed) for seed in range(60)]
    for name in ("capacity", "radius", "dimension"):
        values = torch.tensor([getattr(run, name) for run in runs])
        stated = sum(getattr(run, f"{name}_se") for run in runs) / len(runs)
        # A standard deviation of 60 values is known to 9 %: three of those and the curvature of 1/x.
        assert 0.7 < float(values.std()) / stated < 1.4, name


def with_a_centre_at_the_mean():
    """Five manifolds about ±e1, ±e2 and exactly 0, symmetric, so that means are exact."""
    bump = torch.tensor([[0.0, 0.0, 0.25], [0.0, 0.0, -0.25]], dtype=torch.float64)
    centers = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]], dtype=torch.float64)
    return [bump + center for center in centers]


def uneven(clouds):
    """The first one's points three times."""
    return [clouds[0].repeat(3, 1), *clouds[1:]]


# Laws, as functions of what is to obey them.


def close(a, b):
    for name in ("capacity", "radius", "dimension", "center_correlation"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-6, atol=1e-9)
    assert a.k == b.k


def close_by_chance(a, b):
    for name in ("capacity", "radius", "dimension"):
        error = math.hypot(getattr(a, f"{name}_se"), getattr(b, f"{name}_se"))
        assert abs(getattr(a, name) - getattr(b, name)) <= SIGMAS * error + 1e-9, name


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, generator=stream("rotation"), dtype=torch.float64))[0]


def translated(clouds):
    shift = 5 * torch.randn(clouds[0].shape[1], generator=stream("shift"), dtype=torch.float64)
    return [cloud + shift for cloud in clouds]


def padded(clouds):
    return [torch.cat([cloud, torch.zeros(len(cloud), 9, dtype=torch.float64)], dim=1) for cloud in clouds]


def with_inner_points(clouds):
    """Two more points each, on both sides of the centre and within the hull."""
    more = []
    for cloud in clouds:
        c = cloud.mean(0)
        step = 0.3 * (cloud[:2].mean(0) - c)
        inner = torch.stack([c + step, c - step * 0.3])
        rest = len(inner) * c - inner.sum(0)
        more.append(torch.cat([cloud, inner, (c + rest)[None]]))
    return more


EXACT = {
    "translation": translated,
    "rotation": lambda clouds: [cloud @ rotation(cloud.shape[1]) for cloud in clouds],
    "scaling": lambda clouds: [7.5 * cloud for cloud in clouds],
    "order of points": lambda clouds: [cloud.flip(0) for cloud in clouds],
    "zero features": padded,
    "every point twice": lambda clouds: [cloud.repeat(2, 1) for cloud in clouds],
    "one manifold's points twice": lambda clouds: [clouds[0].repeat(2, 1), *clouds[1:]],
}


@pytest.mark.parametrize("law", EXACT)
def test_invariances(law):
    clouds = cloudy()
    close(manifold_geometry(clouds, n_t=50), manifold_geometry(EXACT[law](clouds), n_t=50))


def test_the_order_of_manifolds_and_points_within_the_hull_change_nothing_but_the_draw():
    clouds = cloudy()
    found = manifold_geometry(clouds, n_t=2000)
    close_by_chance(found, manifold_geometry(clouds[::-1], n_t=2000))
    close_by_chance(found, manifold_geometry(with_inner_points(clouds), n_t=2000))


def z_scored(clouds):
    """Mutant: every feature is scaled by its own spread."""
    std = torch.cat(clouds).std(0).clamp(min=1e-9)
    return manifold_geometry([cloud / std for cloud in clouds], n_t=50)


def not_centred(clouds):
    """Mutant: no common mean is taken off, since every manifold has an opposite one."""
    return manifold_geometry([*clouds, *(-cloud for cloud in clouds)], n_t=50)


def first_ten(clouds):
    """Mutant: the first ten points of each."""
    return manifold_geometry([cloud[:10] for cloud in clouds], n_t=50)


def by_points(clouds):
    """Mutant: the dimensions are counted by the points, and the mean is that of all points."""
    return manifold_geometry(clouds, n_t=50, mode="reference")


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        ("rotation", z_scored),
        ("translation", not_centred),
        ("order of points", first_ten),
        ("every point twice", by_points),
        ("one manifold's points twice", by_points),
    ],
)
def test_mutants_break_a_law(law, mutant):
    clouds = cloudy()
    with pytest.raises(AssertionError):
        close(mutant(clouds), mutant(EXACT[law](clouds)))


def test_features_on_other_scales_are_another_geometry():
    clouds = cloudy()
    stretched = [cloud * torch.logspace(0, 3, cloud.shape[1], dtype=torch.float64) for cloud in clouds]
    assert abs(manifold_geometry(stretched).capacity / manifold_geometry(clouds).capacity - 1) > 0.05


@pytest.mark.parametrize(("m", "d"), [(2, 30), (5, 3), (12, 40), (60, 8)])
def test_bounds(m, d):
    found = manifold_geometry(cloudy(p=5, m=m, d=d, seed=m), n_t=2000)
    affine = min(m - 1, d)
    # 1/α is the mean of 2,000 squared lengths up to χ² of affine + 1 degrees of freedom: sd at most about √(2 (a + 1)).
    error = SIGMAS * math.sqrt(2 * (affine + 1) / 2000)
    assert bool((1 / found.capacities >= 0.5 - error).all())
    assert bool((1 / found.capacities <= affine + 0.5 + error).all())
    assert bool((found.dimensions <= affine + 1e-9).all())
    assert 0 <= found.center_correlation <= 1


def test_more_points_never_raise_capacity_about_the_same_centre():
    shape = torch.randn(6, 10, generator=stream("shape"), dtype=torch.float64)
    shape = shape - shape.mean(0)
    few = manifold_geometry(opposite(shape), n_t=4000)
    many = manifold_geometry(opposite(torch.cat([shape, 1.5 * shape])), n_t=4000)
    assert many.capacity < few.capacity + SIGMAS * math.hypot(few.capacity_se, many.capacity_se)


@pytest.mark.parametrize("kappa", [0.0, 0.8])
def test_capacity_radius_and_dimension_are_those_of_the_anchors(kappa):
    """From the weights alone, for given t, in the published basis: the formulas as they are written."""
    clouds = cloudy(p=7, m=9, d=30)
    samples = [torch.randn(10, 40, generator=stream("t", i), dtype=torch.float64) for i in range(7)]
    none = torch.zeros(30, 0, dtype=torch.float64)
    found = manifold_geometry(clouds, mode="reference", kappa=kappa, anchors=True, basis=none, samples=samples)
    middle = torch.cat(clouds).mean(0)
    for i, (cloud, t, weights) in enumerate(zip(clouds, samples, found.weights, strict=True)):
        torch.testing.assert_close(weights.sum(1), torch.ones(40, dtype=torch.float64))
        assert float(weights.min()) >= 0
        center = cloud.mean(0) - middle
        shape = ((cloud - cloud.mean(0)) / center.norm()).T
        s = torch.cat([torch.linalg.qr(shape).R, torch.ones(1, 9, dtype=torch.float64)])
        anchor = s @ weights.T
        inverse = ((t * anchor).sum(0) + kappa).clamp(min=0) ** 2 / anchor.square().sum(0)
        assert float(found.capacities[i]) == pytest.approx(1 / float(inverse.mean()), rel=1e-9)
        # The anchor is where t's projection points: t less its multiple keeps the margin to every point.
        step = anchor * (((t * anchor).sum(0) + kappa).clamp(min=0) / anchor.square().sum(0))
        assert float((s.T @ (t - step)).max()) <= -kappa + 1e-9
        far = (anchor[:-1] - anchor[:-1].mean(1, keepdim=True)).square().sum(0).mean().sqrt()
        assert float(found.radii[i]) == pytest.approx(float(far), rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(t[:-1], anchor[:-1], dim=0).mean()
        assert float(found.dimensions[i]) == pytest.approx(9 * float(cosine) ** 2, rel=1e-9)
    assert found.kkt_residual < 1e-12


@pytest.mark.parametrize("strength", [1.0, 30.0, 1000.0])
def test_what_lies_along_the_removed_directions_changes_nothing(strength):
    """Rounding of what is taken away is no dimension of what is left: the rank of D must not grow with it."""
    d, k = 10, 2
    basis = torch.linalg.qr(torch.randn(d, k, generator=stream("basis"), dtype=torch.float64))[0]
    clouds = cloudy(p=8, m=50, d=d)
    along = [torch.randn(50, k, generator=stream("along", i), dtype=torch.float64) @ basis.T for i in range(8)]
    more = [cloud + strength * (a - a.mean(0)) for cloud, a in zip(clouds, along, strict=True)]
    plain, found = (manifold_geometry(which, basis=basis, n_t=50) for which in (clouds, more))
    for name in ("capacity", "radius", "dimension"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-6)


# Modes, projection, sizes.


@pytest.mark.parametrize("mode", ["default", "reference"])
def test_unequal_sizes_few_features_and_repeated_points(mode):
    clouds = cloudy(p=8, m=20, d=6)
    clouds[0] = clouds[0][:7]
    clouds[1] = clouds[1][:3].repeat(5, 1)
    found = manifold_geometry(clouds, mode=mode)
    assert found.points == (7, 15, 20, 20, 20, 20, 20, 20)
    assert found.floor == pytest.approx(2 / (sum(found.points) / 8))
    assert found.kkt_residual < 1e-9
    assert 0 < found.capacity < 2


def test_two_manifolds_are_enough_but_not_for_the_published_code():
    assert manifold_geometry(cloudy(p=2)).k == 0
    with pytest.raises(GeophoneError, match="mode='default'"):
        manifold_geometry(cloudy(p=2), mode="reference")


def test_one_feature_is_enough_for_two_manifolds():
    found = manifold_geometry([[[1.0], [1.2]], [[-1.0], [-1.3]]])
    assert found.k == 0
    assert 0 < found.capacity < 2


def test_projection_keeps_what_it_says_and_little_changes():
    clouds = cloudy(p=10, m=10, d=600)
    whole = manifold_geometry(clouds, n_t=1000)
    found = manifold_geometry(clouds, n_t=1000, max_features=300)
    assert (found.features, found.ambient) == (300, 600)
    assert "300 features (of 600)" in str(found)
    assert abs(found.capacity / whole.capacity - 1) < 0.1  # distances are kept to 1/√600, 4 %
    assert manifold_geometry(clouds, n_t=10, max_features=5000).features == 600


def test_one_seed_one_result_and_the_floor_beside_the_capacity():
    clouds = cloudy()
    a, b, c = (manifold_geometry(clouds, seed=seed, n_t=20) for seed in (1, 1, 2))
    assert (a.capacity, a.radius) == (b.capacity, b.radius)
    assert a.capacity != c.capacity
    assert str(a).startswith(f"capacity {a.capacity:.4f} ± {a.capacity_se:.4f} (floor {2 / 12:.4f})")
    assert geophone.manifold_geometry is manifold_geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifolds": cloudy()[:1]}, "1 manifolds: at least 2"),
        ({"manifolds": [torch.ones(3), torch.ones(3)]}, "shape"),
        ({"manifolds": [torch.ones(3, 2), torch.ones(3, 4)]}, "has 4 features, manifold 0 2"),
        ({"manifolds": [torch.ones(3, 2), torch.full((3, 2), float("nan"))]}, "manifold 1 has NaN"),
        ({"manifolds": [torch.ones(0, 2), torch.ones(3, 2)]}, "manifold 0 has the shape"),
        ({"manifolds": [torch.ones(3, 2), torch.ones(3, 2)]}, "nothing is left of its centre"),
        ({"kappa": -0.1}, "kappa=-0.1"),
        ({"kappa": float("nan")}, "kappa=nan"),
        ({"n_t": 1}, "n_t=1"),
        ({"n_t": True}, "n_t is of type bool"),
        ({"n_reps": 0}, "n_reps=0"),
        ({"manifolds": [[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]]]}, "manifold 0"),
        ({"manifolds": [torch.full((5, 3), 0.1, dtype=torch.float64)] * 4}, "nothing is left of its centre"),
        ({"manifolds": with_a_centre_at_the_mean()}, "manifold 4: nothing is left of its centre"),
        # The mean of all points is another where sizes differ, but directions are fitted about that of the centres.
        ({"manifolds": uneven(with_a_centre_at_the_mean()), "mode": "reference"}, "manifold 4: nothing is left"),
        ({"basis": torch.eye(40, 2).T}, "orthonormal columns"),
        ({"basis": 3 * torch.eye(40, 2)}, "orthonormal columns"),
        ({"samples": [torch.ones(3, 5)] * 5}, "samples of 5 manifolds"),
        ({"samples": [torch.full((12, 5), float("nan"))] * 6}, "NaN"),
        ({"max_features": 0}, "max_features=0"),
        ({"mode": "refrence"}, "reference"),
        ({"samples": [torch.ones(3, 5)] * 6}, "samples of manifold 0"),
    ],
)
def test_bad_input_is_told_apart(change, message):
    arguments = {"manifolds": cloudy(), **change}
    with pytest.raises(GeophoneError, match=message):
        manifold_geometry(arguments.pop("manifolds"), **arguments)


@pytest.mark.parametrize("mode", MODES)
def test_more_points_than_features_are_as_in_more_features(mode):
    """By the features' Gram matrix, or by the points'."""
    clouds = [torch.randn(30, 5, generator=stream("low", i), dtype=torch.float64) + 3 * i**0.5 for i in range(6)]
    clouds = [
        cloud + torch.randn(5, generator=stream("centre", i), dtype=torch.float64) for i, cloud in enumerate(clouds)
    ]
    wide = [torch.nn.functional.pad(cloud, (0, 40)) for cloud in clouds]
    few, many = (manifold_geometry(x, mode=mode, n_t=50, seed=1) for x in (clouds, wide))
    if mode == "default":
        close(few, many)
    else:  # D = min(d, m), so t has more coordinates: the law is the same, but for D
        assert few.capacity == pytest.approx(many.capacity, abs=5 * math.hypot(few.capacity_se, many.capacity_se))


def test_a_centre_that_is_next_to_nothing_beside_its_manifold_is_refused():
    shape = torch.randn(9, 5, generator=stream("shape"), dtype=torch.float64)
    clouds = [shape - shape.mean(0) + 1e-8, shape - shape.mean(0) - 1e-8]
    with pytest.raises(GeophoneError, match="nothing is left of its centre"):
        manifold_geometry(clouds)


def test_responses_with_a_history_and_whole_numbers_are_taken():
    clouds = [cloud.requires_grad_() for cloud in cloudy()]
    assert manifold_geometry(clouds, n_t=20).capacity == manifold_geometry(cloudy(), n_t=20).capacity
    whole = [(10 * cloud.detach()).round().int() for cloud in clouds]
    assert manifold_geometry(whole, n_t=20).capacity > 0


def test_a_projection_to_more_features_than_there_are():
    from geophone.metrics.geometry.clouds import projection

    with pytest.raises(GeophoneError, match="gives 1 to 5 of them"):
        projection(5, 6, 0)
