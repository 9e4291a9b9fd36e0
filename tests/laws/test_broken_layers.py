"""A layer that is not finite while the logits are: it has no value, says how many examples, and spoils no other."""

import math

import polars as pl
import pytest
from torch import nn

from geophone.core.registry import METRICS
from geophone.data import synthetic
from geophone.metrics import METRICS_OF_MANIFOLDS
from geophone.perturb import GaussianNoise
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.gradients import input_gradients
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.train import initialised

COUNT = "{bad} of {n} examples have NaN or infinite responses"


class Side(nn.Module):
    """A layer beside the way to the logits, that gives what it is told to for some images."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.darkest = 0.0

    def forward(self, x):
        given = x.clone()
        given[x.flatten(1).mean(1) <= self.darkest] = self.value
        return given


class Branched(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.conv, self.relu, self.side = nn.Conv2d(1, 4, 3), nn.ReLU(), Side(value)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.side(x)
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    return synthetic(classes=3, train=6, val=3, test=60, size=8).test


def branched(value, images, bad=2):
    model = initialised(lambda: Branched(value), 0)
    x = next(iter(images.batches(len(images)))).x
    order = [-math.inf, *x.flatten(1).mean(1).sort().values.tolist(), math.inf]
    model.side.darkest = (order[bad] + order[bad + 1]) / 2 if 0 < bad < len(x) else order[bad + 1]
    return model


NAMES = [name for name in METRICS if METRICS.origin(name) == "geophone"]
GLUE = [name for name in NAMES if name.startswith("glue")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_metric_of_a_pass(value, images):
    """All registered metrics but most of GLUE's, which read one analysis."""
    names = [name for name in NAMES if name not in GLUE[1:]]
    options = {"layers": ["relu", "side"], "metrics": names, "batch_size": 16}
    broken = measure(branched(value, images), images, [GaussianNoise(0.001)], **options)
    of_side = broken.filter(pl.col("layer") == "side")
    here = [name for name in names if METRICS[name].reads not in ("logits", "images")]
    assert set(of_side["metric"]) == set(here)
    assert of_side["value"].null_count() == len(of_side)
    clean = of_side.filter(pl.col("perturbation") == "clean")
    assert clean["note"].unique().to_list() == [COUNT.format(bad=2, n=60)]
    assert of_side["note"].str.contains("of 60 examples have NaN or infinite responses").all()
    assert of_side["unit"].null_count() == len(of_side)  # not a row for each unit too
    # The other layer, and the network but for means over layers, are those of a network whose side layer is sound.
    sound = measure(branched(0.0, images), images, [GaussianNoise(0.001)], **options)
    assert not sound.filter(pl.col("layer") == "side")["note"].fill_null("").str.contains("NaN").any()
    kept = ~pl.col("note").fill_null("").str.starts_with("mean over")
    others = [rows.filter((pl.col("layer") != "side").fill_null(True) & kept) for rows in (sound, broken)]
    assert others[0].equals(others[1])
    assert broken.filter(pl.col("value").is_null() & pl.col("note").is_null()).is_empty()
    selectivity = broken.filter(pl.col("note").fill_null("") == "mean over 1 of 2 layers")
    assert "active_fraction" in selectivity["metric"].to_list()


def test_two_networks(images):
    rows = compare(branched(0.0, images), branched(math.nan, images), images, layers=["relu", "side"])
    assert rows.filter(pl.col("layer") == "side")["note"].unique().to_list() == [COUNT.format(bad=2, n=60)]
    assert rows.filter(pl.col("layer") == "relu")["value"].null_count() == 0


def test_input_gradients(images):
    broken, sound = (input_gradients(branched(v, images), images, ["relu", "side"]) for v in (math.nan, 0.0))
    of_side = broken.filter(pl.col("layer") == "side")
    assert of_side["value"].null_count() == len(of_side) == 3
    assert of_side["note"].unique().to_list() == ["2 of 60 examples have NaN or infinite input gradients"]
    for metric in ("input_gradient_norm", "jacobian_norm"):
        of = (pl.col("metric") == metric) & ((pl.col("layer") == "relu") | (pl.col("metric") == "jacobian_norm"))
        assert broken.filter(of).equals(sound.filter(of))


def test_exemplar_manifolds(images):
    options = {"perturbations": [GaussianNoise(0.1)], "layers": ["relu", "side"], "exemplars": 6, "copies": 5}
    model = branched(math.nan, images, bad=60)
    broken, sound = (exemplar_manifolds(m, images, n_reps=2, **options) for m in (model, branched(0.0, images, bad=1)))
    of_side = broken.filter(pl.col("layer") == "side", pl.col("metric") != "exemplar_capacity_floor")
    assert of_side["value"].null_count() == len(of_side)
    assert of_side["note"].str.contains(r"\d of 6 examples have NaN or infinite responses").all()
    others = [rows.filter(pl.col("layer") != "side") for rows in (broken, sound)]
    assert others[0].equals(others[1])


def test_names():
    assert set(METRICS_OF_MANIFOLDS) < set(NAMES)
