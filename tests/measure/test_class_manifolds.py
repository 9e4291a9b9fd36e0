"""Class manifolds measured in the pass that measures the rest: the same as if the points were taken out by hand."""

import math

import polars as pl
import pytest
import torch
from torch import nn

from geophone import measure
from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.core.types import Batch
from geophone.data import Split
from geophone.metrics import (
    METRICS_OF_MANIFOLDS,
    ClassPoints,
    Undefined,
    glue_metrics,
    manifold_capacity,
    manifold_radius,
)
from geophone.metrics.geometry import manifold_geometry
from geophone.models.tap import tap
from geophone.probes.projection import RandomProjection

LAYERS = ["0", "2"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 4 * 4, 4)
    ).eval()


def images(per_class=8, classes=4):
    generator = stream("images of class manifolds")
    y = torch.arange(classes).repeat(per_class)
    pattern = torch.rand(classes, 1, 12, 12, generator=generator)
    x = (0.6 * pattern[y] + 0.4 * torch.rand(len(y), 1, 12, 12, generator=generator)).clamp(0, 1)
    return Split(x, y, torch.arange(len(y)))


def rows(batch_size=256, features=50, **more):
    return measure(
        network(),
        images(),
        layers=LAYERS,
        metrics=["accuracy", *METRICS_OF_MANIFOLDS],
        batch_size=batch_size,
        features=features,
        **more,
    )


def value(table, metric, layer, column="value"):
    return table.filter(metric=metric, layer=layer, perturbation="clean")[column].item()


def test_rows_are_those_of_the_points_themselves():
    table, split = rows(), images()
    model = network()
    with tap(model, LAYERS, RandomProjection(50)) as seen, torch.no_grad():
        model(split.x)
        points = dict(seen)
    for layer in LAYERS:
        sample = ClassPoints.of(Batch(points[layer], split.y, split.index))
        wanted = manifold_geometry([sample.x[sample.y == label] for label in range(4)])
        assert value(table, "manifold_capacity", layer) == pytest.approx(wanted.capacity, rel=1e-5)  # float32 responses
        assert value(table, "manifold_radius", layer) == pytest.approx(wanted.radius, rel=1e-5)
        assert value(table, "manifold_dimension", layer) == pytest.approx(wanted.dimension, rel=1e-5)
        assert value(table, "center_correlation", layer) == pytest.approx(wanted.center_correlation, rel=1e-5)
        assert value(table, "manifold_center_rank", layer) == wanted.k
        assert value(table, "manifold_capacity_floor", layer) == wanted.floor == 2 / 8
        half = value(table, "manifold_capacity", layer, "high") - value(table, "manifold_capacity", layer)
        assert half == pytest.approx(1.96 * wanted.capacity_se, rel=1e-4)
    assert value(table, "manifold_capacity", "0", "d") == 50  # 3 x 10 x 10, projected
    assert value(table, "manifold_capacity", "2", "d") == 50  # 4 x 4 x 4 = 64
    assert value(rows(features=70), "manifold_capacity", "2", "d") == 64
    assert value(table, "manifold_capacity", "2", "n") == 32


def test_batches_do_not_matter_and_the_seed_of_the_projection_does():
    one, other = rows(), rows(batch_size=5)
    for layer in LAYERS:
        wanted = value(one, "manifold_capacity", layer)
        # Responses in float32, whose kernels differ with the batch: relative errors of 1e-6, and α is smooth in them.
        assert value(other, "manifold_capacity", layer) == pytest.approx(wanted, rel=1e-4)
    assert value(rows(seed=1), "manifold_capacity", "0") != value(one, "manifold_capacity", "0")


def test_they_are_measured_only_when_named():
    table = measure(network(), images(), layers=LAYERS)
    glue = {one.name for one in glue_metrics.values()}
    assert not (set(METRICS_OF_MANIFOLDS) | glue) & set(table["metric"])
    table = measure(network(), images(), layers=LAYERS, metrics=["accuracy", *sorted(glue)], features=50)
    assert table.filter(pl.col("metric").is_in(glue))["value"].null_count() == 0


def test_fifty_images_of_a_class_are_a_manifold():
    x = torch.randn(130, 6, generator=stream("many"), dtype=torch.float64)
    y = (torch.arange(130) < 70).long()
    sample = ClassPoints.of(Batch(x, y, torch.arange(130)))
    assert sample.y.bincount().tolist() == [50, 50]
    assert sample.geometry.points == (50, 50)


def test_an_analysis_that_fails_is_not_tried_again(monkeypatch):
    calls = []

    def manifold_geometry(clouds):
        calls.append(1)
        raise GeophoneError("no")

    monkeypatch.setattr("geophone.metrics.manifolds.manifold_geometry", manifold_geometry)
    sample = ClassPoints.of(Batch(torch.randn(8, 3), torch.arange(8) % 2, torch.arange(8)))
    for one in (manifold_capacity, manifold_radius):
        with pytest.raises(Undefined, match="no"):
            one(sample)
    assert len(calls) == 1


def test_perturbed_images_have_manifolds_too():
    table = rows(perturbations="GaussianNoise(std=0.3)")
    noisy = table.filter(pl.col("metric") == "manifold_radius", pl.col("family") == "noise")
    assert noisy["layer"].to_list() == LAYERS
    assert noisy["value"].null_count() == 0


def test_what_has_no_manifolds_is_null_with_the_reason():
    split = images(per_class=1)
    table = measure(network(), split, layers=LAYERS, metrics=["accuracy", "manifold_capacity"])
    row = table.filter(metric="manifold_capacity", layer="2").row(0, named=True)
    assert row["value"] is None
    assert "one image only" in row["note"]
    one_class = Split(split.x[:1].repeat(3, 1, 1, 1), split.y[:1].repeat(3), torch.arange(3))
    note = measure(network(), one_class, layers=["2"], metrics=["accuracy", "manifold_capacity"])["note"].drop_nulls()
    assert "at least two classes" in note.item()


def test_constant_responses_are_undefined():
    x, y = torch.ones(8, 5), torch.arange(8) % 2
    with pytest.raises(Undefined, match="nothing is left of its centre"):
        manifold_capacity(x, y)


def test_plain_tensors():
    x = torch.randn(40, 30, generator=stream("plain"), dtype=torch.float64)
    y = torch.arange(40) % 4
    x = x + 2 * torch.eye(30, dtype=torch.float64)[y]
    assert 0 < manifold_capacity(x, y) < 2
    assert manifold_radius(3 * x, y) == pytest.approx(manifold_radius(x, y), rel=1e-9)


def test_classes_told_apart_together():
    x = torch.randn(40, 30, generator=stream("plain"), dtype=torch.float64)
    y = torch.arange(40) % 4
    x = x + 2 * torch.eye(30, dtype=torch.float64)[y]
    found = {name: glue_metrics[name](x, y) for name in glue_metrics}
    identity = found["utility"] * (1 + found["radius"] ** -2) / found["dimension"]
    assert found["capacity"] == pytest.approx(identity, rel=1e-9)
    points = ClassPoints.of(Batch(x, y, torch.arange(40)))
    low, high = glue_metrics["capacity"].interval(points)
    assert low < found["capacity"] < high
    assert points.glue is points.glue
    with pytest.raises(Undefined, match="one image only"):
        glue_metrics["capacity"](x[:4], y[:4])


def test_a_projection_keeps_distances_and_is_the_same_for_every_batch():
    x = torch.randn(20, 6, 20, 20, generator=stream("responses"), dtype=torch.float64)
    project = RandomProjection(500, seed=3)
    made = project(x)
    assert made.shape == (20, 500)
    torch.testing.assert_close(torch.cat([project(x[:7]), project(x[7:])]), made)
    ratio = torch.pdist(made) / torch.pdist(x.flatten(1))
    # Columns of length 1 keep lengths times √(500/2400); relative errors are 1/√1000, and the largest of 190 within 4.
    assert float((ratio / math.sqrt(500 / 2400) - 1).abs().max()) < 4 / math.sqrt(1000)
    small = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(project(small), small.flatten(1))
    assert not torch.equal(RandomProjection(500, seed=4)(x), made)
    with pytest.raises(GeophoneError, match="features=0"):
        RandomProjection(0)


def test_a_projection_takes_half_precision():
    x = torch.randint(0, 200, (4, 1, 30, 30), generator=stream("bytes")).float()
    project = RandomProjection(100)
    torch.testing.assert_close(project(x.half()), project(x))
    assert len(project._matrices) == 1


def test_mutants_are_found():
    """Averaged over space, labels in another order, another number of points: each gives other numbers."""
    split, model = images(), network()
    with tap(model, ["0"], RandomProjection(50)) as seen, torch.no_grad():
        model(split.x)
        points = seen["0"]
    wanted = value(rows(), "manifold_capacity", "0")
    with tap(model, ["0"]) as seen, torch.no_grad():
        model(split.x)
        averaged = seen["0"]
    for x, y in ((averaged, split.y), (points, split.y.roll(1)[torch.randperm(32, generator=stream("p"))])):
        assert abs(manifold_capacity(x, y) - wanted) > 0.01
    fewer = torch.cat([points[split.y == label][:3] for label in range(4)])
    assert abs(manifold_capacity(fewer, torch.arange(4).repeat_interleave(3)) - wanted) > 0.01
