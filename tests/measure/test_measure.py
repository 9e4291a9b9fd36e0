"""One pass for everything: against computing each number on its own, whole and by hand."""

import polars as pl
import pytest
import torch
from torch import nn

from geophone import metrics
from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.core.rng import draws
from geophone.data import Split, synthetic
from geophone.metrics import default_metrics
from geophone.models import SmallCNN
from geophone.models.run import full_precision
from geophone.models.tap import positions, spatial_mean, tap
from geophone.perturb import GaussianNoise, LinfPGD
from geophone.perturb.parse import family_name
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.train import initialised


@pytest.fixture(scope="module")
def setting():
    data = synthetic(classes=3, train=60, val=10, test=90, size=12)
    return initialised(lambda: SmallCNN(3, data.mean, data.std, width=4), 0), data.test


def value(rows, metric, layer=None, perturbation="clean", unit=None):
    found = rows.filter(
        pl.col("metric") == metric,
        pl.col("layer").eq_missing(layer),
        pl.col("perturbation") == perturbation,
        pl.col("unit").eq_missing(unit),
    )
    assert len(found) == 1
    return found["value"][0]


def test_every_number_is_that_of_the_metric_alone(setting):
    """Streamed in batches of 32, against the same metric on all responses at once."""
    model, split = setting
    noise = GaussianNoise(0.2)
    rows = measure(model, split, [noise], batch_size=32, seed=5)
    (batch,) = split.batches(len(split))
    noisy = noise(batch.x, batch.y, model, draws(5, family_name(noise), index=batch.index))
    model.eval()
    with torch.no_grad(), tap(model) as seen:
        logits = model(batch.x)
        clean = dict(seen)
        noisy_logits = model(noisy)
        moved = dict(seen)
    assert value(rows, "accuracy") == pytest.approx(metrics.accuracy(logits, batch.y))
    assert value(rows, "margin", perturbation="GaussianNoise") == pytest.approx(
        metrics.margin(noisy_logits, batch.y), abs=1e-6
    )
    # Responses are float32: a different batch size rounds convolutions differently, by 1e-6 or so of each value.
    for layer in clean:
        a, b, y = clean[layer], moved[layer], batch.y
        for name, wanted in (
            ("class_selectivity", metrics.class_selectivity(a, y).mean()),
            ("participation_ratio", metrics.participation_ratio(a)),
            ("participation_ratio_corrected", metrics.participation_ratio_corrected(a)),
            ("active_fraction", metrics.active_fraction(a).mean()),
        ):
            assert value(rows, name, layer) == pytest.approx(float(wanted), rel=1e-4)
        assert value(rows, "cka", layer, "GaussianNoise") == pytest.approx(metrics.cka(a, b), abs=1e-4)
        assert value(rows, "normalised_distance", layer, "GaussianNoise") == pytest.approx(
            metrics.normalised_distance(a, b), rel=1e-4
        )
        assert value(rows, "class_selectivity", layer, unit=2) == pytest.approx(
            float(metrics.class_selectivity(a, y)[2]), abs=1e-5
        )


def test_batch_size_does_not_matter(setting):
    """In float64, to 1e-8: the statistics merge exactly and the noise is keyed by the image."""
    model, split = setting
    model = initialised(lambda: SmallCNN(3, (0.5,), (0.25,), width=4), 0).double()
    split = Split(split.x.double() / 255, split.y, split.index)
    small, large = (
        measure(model, split, [GaussianNoise(0.1), LinfPGD(eps=0.05, steps=2)], batch_size=size) for size in (7, 90)
    )
    assert small.drop("value", "low", "high").equals(large.drop("value", "low", "high"))
    gap = (small["value"] - large["value"]).abs() / (1 + large["value"].abs())
    assert gap.max() < 1e-6
    assert small["value"].null_count() == large["value"].null_count()


def test_network_selectivity_is_the_mean_over_layers_not_units(setting):
    model, split = setting
    rows = measure(model, split, metrics=["class_selectivity"])
    layers = rows.filter(pl.col("layer").is_not_null(), pl.col("unit").is_null())["value"]
    units = rows.filter(pl.col("unit").is_not_null())["value"]
    network = value(rows, "class_selectivity")
    assert network == pytest.approx(layers.mean())
    assert abs(network - units.mean()) > 1e-4  # the mutant: a flat mean over units


def test_shuffled_labels_are_the_floor(setting):
    """The floor keeps the class sizes, not the classes: below the selectivity of a layer that knows them."""
    model, split = setting
    rows = measure(model, split, metrics=["class_selectivity", "class_selectivity_floor"], seed=1)
    other = measure(model, split, metrics=["class_selectivity_floor"], seed=2)
    assert value(rows, "class_selectivity_floor") < value(rows, "class_selectivity")
    assert value(rows, "class_selectivity_floor") != value(other, "class_selectivity_floor")


def test_undefined_is_null_with_its_reason():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Tanh(), nn.Linear(4, 3))
    split = synthetic(classes=3, train=10, val=10, test=30, size=12).test
    rows = measure(model, split, metrics=["class_selectivity", "participation_ratio"])
    row = rows.filter(pl.col("metric") == "class_selectivity").row(0, named=True)
    assert row["value"] is None
    assert "below 0" in row["note"]
    assert rows.filter(pl.col("metric") == "participation_ratio")["value"].null_count() == 0


def test_clean_levels_move_nothing(setting):
    model, split = setting
    rows = measure(model, split, [GaussianNoise(0.0)])
    for layer in (f"relu{i}" for i in range(1, 7)):
        assert value(rows, "normalised_distance", layer, "GaussianNoise") == 0
        assert value(rows, "cka", layer, "GaussianNoise") == pytest.approx(1, abs=1e-12)
        assert value(rows, "difference_dim_95", layer, "GaussianNoise") == 0


def test_every_registered_metric_makes_rows(setting):
    model, split = setting
    perturbations = [GaussianNoise(), LinfPGD(eps=0.1, steps=2)]
    rows = measure(model, split.take(30), perturbations, metrics=list(METRICS), columns={"job": "j", "seed": 3})
    assert set(rows["metric"]) == set(METRICS)
    assert default_metrics() == tuple(name for name in METRICS if METRICS[name].when != "asked")
    only_clean = {name for name in METRICS if METRICS[name].when == "clean"}
    assert only_clean == set(rows["metric"]) - set(rows.filter(pl.col("family") != "clean")["metric"])
    assert set(rows["job"]) == {"j"}
    assert (
        rows.filter(pl.col("metric") == "accuracy")
        .select((pl.col("low") <= pl.col("value")) & (pl.col("value") <= pl.col("high")))
        .to_series()
        .all()
    )
    assert rows.filter(pl.col("layer") == "relu4")["depth"].unique().to_list() == [3]


def test_the_network_is_left_as_it_was(setting):
    model, split = setting
    model.train()
    model.norm1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    measure(model, split, [LinfPGD(eps=0.1, steps=2)])
    assert model.training
    assert not model.norm1.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    model.eval()


def test_tf32_and_autocast_are_off_and_restored():
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.is_autocast_enabled("cpu")
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_condition_is_measured_once(setting):
    model, split = setting
    rows = measure(model, split, [GaussianNoise(0.1), GaussianNoise(0.1)], metrics=["accuracy"])
    assert rows["perturbation"].to_list() == ["clean", "GaussianNoise"]
    assert measure(model, split, "GaussianNoise(std=0.1)", metrics=["accuracy"]).equals(rows)


def test_progress_counts_to_the_end(setting):
    model, split = setting
    seen = []
    measure(model, split, [GaussianNoise()], batch_size=40, progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_other_reductions(setting):
    model, split = setting
    rows = measure(model, split, layers=["relu6"], metrics=["participation_ratio"], reduce=lambda r: r.flatten(1))
    assert rows["d"].to_list() == [16 * 9]
    assert measure(model, split, layers=["relu6"], metrics=["participation_ratio"], reduce=spatial_mean)["d"][0] == 16


def test_errors(setting):
    model, split = setting
    with pytest.raises(GeophoneError, match="label 2 is out of range: the network gives 2 logits"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), split, layers=[])
    with pytest.raises(GeophoneError, match="unknown metric 'ckaa'"):
        measure(model, split, metrics=["ckaa"])
    with pytest.raises(GeophoneError, match="unknown layer"):
        measure(model, split, layers=["relu9"])
    aux = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    aux.unused = nn.Linear(2, 2)
    aux.forward = lambda x: aux[1](aux[0](x))
    with pytest.raises(GeophoneError, match="'unused' never ran"):
        measure(aux, split, layers=["unused"])
    with pytest.raises(GeophoneError, match=r"\[0, 1\]"):
        measure(model, (split.x.float(), split.y))


def test_places_of_images_are_rows(setting):
    """Eight rows an image, the same places clean and perturbed; labels go along."""
    model, split = setting
    part = split.take(30)
    rows = measure(model, part, [GaussianNoise(0.0)], metrics=["class_selectivity", "cka"], reduce=positions)
    with torch.no_grad(), tap(model, ["relu1"], lambda r: r.flatten(1)) as seen:
        model(part.x / 255 if part.x.dtype == torch.uint8 else part.x)
    wide = seen["relu1"].reshape(30, 4, -1)
    assert set(rows.filter(pl.col("layer") == "relu1")["n"]) == {8 * 30}
    assert value(rows, "cka", "relu1", "GaussianNoise") == pytest.approx(1, abs=1e-12)
    rows = positions(wide.reshape(30, 4, 12, -1))
    # Each row is a place of the image that it should be of.
    image = torch.arange(30).repeat_interleave(8)
    assert all((row == wide[i].T).all(1).any() for i, row in zip(image, rows, strict=True))
    assert torch.equal(positions(torch.ones(3, 4)), torch.ones(3, 4))
    # Mutant: rows and columns swapped, which mixes images.
    mixed = wide[:, :, :8].reshape(-1, 4)
    assert not all((row == wide[i].T).all(1).any() for i, row in zip(image, mixed, strict=True))


def test_two_networks_are_compared_layer_by_layer(setting):
    model, split = setting
    part = split.take(60)
    other = initialised(lambda: SmallCNN(3, (0.5,), (0.5,), width=4), 1)
    same = compare(model, model, part)
    rows = compare(model, other, part, columns={"job": "a", "other": "b"})
    assert rows["layer"].unique().sort().to_list() == [f"relu{i}" for i in range(1, 7)]
    assert set(rows["other"]) == {"b"}
    assert set(rows["family"]) == {"networks"}
    assert same.filter(pl.col("metric") == "cka")["value"].to_list() == pytest.approx([1.0] * 6, abs=1e-9)
    assert same.filter(pl.col("metric") == "pwcca")["value"].to_list() == pytest.approx([1.0] * 6, abs=1e-6)
    assert rows["value"].max() < 1
    with pytest.raises(GeophoneError, match="does not compare"):
        compare(model, other, part, ["accuracy"])
    with pytest.raises(GeophoneError, match="same name in both"):
        compare(model, nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 3)), part)
