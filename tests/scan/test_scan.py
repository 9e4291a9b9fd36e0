"""Scanning: the checks see what is wrong with a measurement, and say nothing where all is well."""

import json

import polars as pl
import pytest
import torch
from torch import nn

import geophone
from geophone.core.errors import GeophoneError
from geophone.data import ImageData, Split, synthetic
from geophone.diagnosis import scan
from geophone.models import Normalise, SmallCNN
from geophone.train import Standard, Training, fit, initialised


@pytest.fixture(scope="module")
def data():
    return synthetic(classes=3, train=384, val=60, test=240, size=12)


@pytest.fixture(scope="module")
def good(data):
    model = initialised(lambda: SmallCNN(3, data.mean, data.std, width=4), 0)
    fit(model, data, Standard(), Training(epochs=4, batch_size=32))
    return model


def failed(found):
    checks = found.table.filter(pl.col("metric").str.starts_with("check."))
    assert len(checks) == 17
    assert checks["note"].null_count() == 0
    return set(checks.filter(pl.col("value") == 1)["metric"].str.replace("check.", "", literal=True))


def shake(model, data, **options):
    return scan(model, data, "GaussianNoise(std=0.1)", **{"curves": "", **options})


def test_a_sound_network_has_no_problems(good, data):
    found = shake(good, data)
    assert failed(found) == set()
    assert found.problems == []
    assert found.report is None


def test_chance_accuracy(data):
    model = initialised(lambda: SmallCNN(3, data.mean, data.std, width=4), 1)
    nn.init.zeros_(model.head.weight)
    assert failed(shake(model.eval(), data)) == {"chance_accuracy", "gradients"}


def test_images_scaled_twice(good, data):
    x = data.test.x.float() / 255 / 255
    assert "image_range" in failed(shake(good, (x, data.test.y)))


def test_normalisation_outside_the_network(good, data):
    """The same network with its normalisation taken out: it then expects standardised images."""
    outside = nn.Sequential(*list(good.children())[1:])
    found = shake(outside, data)
    assert "normalisation_outside" in failed(found)
    assert any("Put the normalisation inside" in problem for problem in found.problems)


def test_functional_activations(data):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.normalise = Normalise(data.mean, data.std)
            self.hidden, self.head = nn.Linear(144, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.relu(self.hidden(self.normalise(x).flatten(1))))

    assert "activation_modules" in failed(shake(initialised(Net, 0), data))


def test_classes_that_do_not_match(data):
    model = initialised(lambda: SmallCNN(10, data.mean, data.std, width=4), 1)
    assert "classes" in failed(shake(model, data))


def test_a_folder_that_is_somebody_elses_is_refused(good, data, tmp_path):
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "image.png").write_text("")
    with pytest.raises(GeophoneError, match="is no scan's"):
        shake(good, data, out=tmp_path / "png.html")
    assert [p.name for p in tmp_path.rglob("*")] == ["png", "image.png"]


def test_dead_layers(data):
    model = initialised(lambda: SmallCNN(3, data.mean, data.std, width=4), 2)
    nn.init.constant_(model.norm3.bias, -100.0)
    found = shake(model, data)
    assert "dead_layers" in failed(found)
    assert any("relu3" in problem for problem in found.problems)


def test_too_few_images_for_the_width(good, data):
    assert "samples_for_width" in failed(shake(good, data, images=60))  # 16 units want 80


def test_the_page_and_its_files(good, data, tmp_path):
    found = geophone.scan(
        good, data, "GaussianNoise, FGSM(eps=0.1)", ["relu1", "relu6"], tmp_path / "page.html", images=90, name="my net"
    )
    assert found.report == tmp_path / "page.html"
    page = found.report.read_text()
    assert "my net" in page
    assert set(found.table["layer"].drop_nulls()) == {"relu1", "relu6"}
    assert found.table.filter(pl.col("metric") == "accuracy")["n"].unique().to_list() == [90]
    made = json.loads((tmp_path / "page" / "provenance.json").read_text())
    assert made["title"] == "Scan of my net"
    assert (tmp_path / "page" / "table" / "scan.parquet").is_file()


def test_a_folder_for_everything_and_its_own_time(good, data, tmp_path):
    for _ in range(2):
        found = shake(good, data, out=tmp_path / "results")
    assert found.report == tmp_path / "results" / "report.html"
    seconds = json.loads((tmp_path / "results" / "provenance.json").read_text())["seconds"]
    assert seconds < 60


def test_mixed_networks_are_flagged(data):
    """One ReLU module, three convolutions with functional ones: most of the network would go unseen."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(4))
            self.relu, self.head = nn.ReLU(), nn.Linear(144, 3)

        def forward(self, x):
            for conv in self.convs:
                x = torch.relu(conv(x))
            return self.head(self.relu(x).flatten(1))

    assert "activation_modules" in failed(shake(initialised(Net, 0), data))


def test_what_can_be_scanned(good, data):
    both = [shake(good, d).table.drop("dataset") for d in (data, data.test)]
    # Only the whole data set says what its classes are.
    says = pl.col("metric") == "check.classes"
    assert both[0].filter(~says).equals(both[1].filter(~says))
    assert [rows.filter(says)["value"].item() for rows in both] == [0.0, 0.0]
    floats = Split(data.test.x.float() / 255, data.test.y, data.test.index)
    assert (
        shake(good, floats)
        .table.filter(pl.col("metric") == "accuracy")
        .equals(shake(good, (data.test.x, data.test.y)).table.filter(pl.col("metric") == "accuracy"))
    )
    assert isinstance(data, ImageData)


def test_errors(good, data, tmp_path):
    for x in (data.test.x.float(), data.test.x.float() / 127.5 - 1):
        with pytest.raises(GeophoneError, match=r"\[0, 1\]"):
            shake(good, (x, data.test.y))
    with pytest.raises(GeophoneError, match="out of range"):
        shake(good, (data.test.x, data.test.y + 5))
    with pytest.raises(GeophoneError, match="unknown layer 'relu7'"):
        shake(good, data, layers=["relu7"], out=tmp_path / "r.html")
    assert not list(tmp_path.rglob("*.html"))


def test_more_metrics_are_measured_when_they_are_named(good, data):
    found = shake(good, data, also=["manifold_capacity", "accuracy"], images=60)
    rows = found.table.filter(metric="manifold_capacity")
    assert rows["layer"].unique(maintain_order=True).to_list() == [f"relu{i}" for i in range(1, 7)]
    assert rows["perturbation"].unique(maintain_order=True).to_list() == ["clean", "GaussianNoise"]
    assert found.table.filter(metric="accuracy", perturbation="clean").height == 1
    with pytest.raises(GeophoneError, match="manifold_capacity"):
        shake(good, data, also=["manifold_capasity"])
