"""Exemplar manifolds: against clouds made by hand, laws of order and of draws, and mutants that break them."""

import polars as pl
import pytest
import torch
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.data import Split
from geophone.metrics.geometry import manifold_geometry
from geophone.models import GaussianResponse, ResponseNoise
from geophone.models.networks import SmallCNN
from geophone.models.run import Subject, opened
from geophone.perturb import LinfPGD, MatchedL2, RandomSign
from geophone.perturb.parse import condition
from geophone.probes import exemplars as manifolds
from geophone.probes.exemplars import MOST_COPIES, PIXELS, exemplar_manifolds
from geophone.train import initialised

SIGN = RandomSign(eps=0.1)
LAYERS = ("relu1", "relu4", "head")
SIZES = {"exemplars": 6, "copies": 8, "features": 50, "n_t": 40}


def images(n=9, seed=0):
    x = 0.2 + 0.6 * torch.rand(n, 1, 10, 10, generator=stream("manifolds", n, seed))
    return Split(x, torch.arange(n) % 3, 7 * torch.arange(n) + 3)


def network(std=None):
    plain = initialised(lambda: SmallCNN(3, (0.5,), (0.25,), 2), 0)
    return plain if std is None else ResponseNoise("relu1", GaussianResponse(std))(plain)


def rows(model=None, data=None, shakes=(SIGN,), **more):
    made = exemplar_manifolds(model or network(), data or images(), shakes, LAYERS, **SIZES | more)
    return made.sort("metric", "perturbation", "level", "depth")


def value(made, metric, layer, perturbation="RandomSign", column="value"):
    (found,) = made.filter(metric=metric, layer=layer, perturbation=perturbation)[column].to_list()
    return found


def test_they_are_those_of_clouds_made_by_hand():
    """The same copies, shaken and analysed here: of pixels no network is asked."""
    made = rows(features=1000)
    split = images().take(6)
    clouds = []
    for image, index in zip(split.x, split.index, strict=True):
        copies = draws(0, "exemplars", "RandomSign", index=MOST_COPIES * index + torch.arange(8))
        x = image.expand(8, -1, -1, -1)
        clouds.append(SIGN(x, torch.zeros(8, dtype=torch.int64), network(), copies).flatten(1))
    found = manifold_geometry(clouds, n_t=40, n_reps=3, seed=0)
    # The same arithmetic on the same numbers.
    for name in ("capacity", "radius", "dimension"):
        assert value(made, f"exemplar_{name}", PIXELS) == pytest.approx(getattr(found, name), rel=1e-12)
    width = float((found.radii * found.dimensions.sqrt()).mean())
    assert value(made, "exemplar_width", PIXELS) == pytest.approx(width, rel=1e-12)
    assert value(made, "exemplar_center_rank", PIXELS) == found.k
    assert value(made, "exemplar_capacity_floor", PIXELS) == 2 / 8
    low, high = (value(made, "exemplar_radius", PIXELS, column=end) for end in ("low", "high"))
    assert high - low == pytest.approx(2 * 1.96 * found.radius_se, rel=1e-3)  # 1.96 to four digits


def test_layers_stand_where_measure_puts_them():
    made = rows()
    depths = dict(made.select("layer", "depth").unique().iter_rows())
    assert depths == {PIXELS: -1, "relu1": 0, "relu4": 1, "head": 2}
    assert set(made["n"]) == {6}
    assert made.filter(layer="relu1")["d"].unique().to_list() == [50]  # of 200
    assert made.filter(layer="head")["d"].unique().to_list() == [3]
    assert set(made.filter(family="clean")["metric"]) == set(made["metric"]) - {"clean_separability"}


def test_the_table_says_how_attacks_averaged_over_the_noise(monkeypatch):
    """Of attacks on networks with noise only, and as many draws as there were."""
    monkeypatch.setattr(manifolds, "_condition", lambda *_, **__: [])  # the geometry is not looked at
    shakes = (SIGN, LinfPGD(eps=0.05, steps=1), MatchedL2(l2=0.1, inner="FGSM(draws=2)"))
    made = {std: rows(network(std), shakes=shakes).filter(metric="eot_draws") for std in (None, 0.5)}
    assert made[None].is_empty()
    assert made[0.5].select("perturbation", "level", "value", "layer", "n").rows() == [
        ("LinfPGD(steps=1)", 0.05, 10.0, None, 6),
        ("MatchedL2(inner='FGSM(draws=2)')", 0.1, 2.0, None, 6),
    ]


@pytest.mark.parametrize("std", [None, 0.5])
def test_the_order_of_the_images_does_not_matter(std):
    """Each image goes through the network with its own copies alone, so not even rounding differs."""
    split = images(6)
    back = split.rows(torch.arange(5, -1, -1))
    attack = LinfPGD(eps=0.05, steps=2)
    first, again = (rows(network(std), part, (SIGN, attack)) for part in (split, back))
    assert first.equals(again)


def responses(shake, seed=0, times=1):
    """As often one after the other, on one opened network."""
    project = manifolds.RandomProjection(50, 0)
    batch, name = next(images().batches(1)), condition(shake)["perturbation"]
    with opened((network(0.5),), images(), seed) as subject:
        made = [manifolds._copies(subject, batch, shake, name, 8, LAYERS, project)["relu1"] for _ in range(times)]
    return made[-1]


def does_not_depend_on_what_went_before(shake):
    assert torch.equal(responses(shake), responses(shake, times=2))


@pytest.mark.parametrize("shake", [None, SIGN, LinfPGD(eps=0.05, steps=1)])
def test_an_image_is_shaken_alike_whatever_went_before(shake, monkeypatch):
    with torch.random.fork_rng():
        does_not_depend_on_what_went_before(shake)
        # The mutant: noise of the network that is not set for each image.
        monkeypatch.setattr(Subject, "reseed", lambda *_: None)
        with pytest.raises(AssertionError):
            does_not_depend_on_what_went_before(shake)


def test_clean_copies_of_a_deterministic_network_are_a_point():
    made = rows()
    clean = made.filter(pl.col("family") == "clean", pl.col("metric") != "exemplar_capacity_floor")
    assert clean["value"].null_count() == len(clean) > 0
    assert clean["note"].str.contains("one and the same response").all()
    # A point can still be told from a cloud.
    assert 0.5 <= value(made, "clean_separability", PIXELS) <= 1


def test_noise_in_the_network_makes_clouds_from_its_layer_on():
    made = rows(network(0.5), shakes=(RandomSign(eps=0.0),))
    assert value(made, "exemplar_radius", PIXELS, "clean") is None
    for layer in LAYERS:
        assert value(made, "exemplar_radius", layer, "clean") > 0
    # Shaken by nothing, copies differ from clean ones in their noise only, and are told apart by chance: of 6 exemplars
    # with 16 held-out points each, the share has a standard deviation of 0.05, and layers go together.
    found = [value(made, "clean_separability", layer) for layer in LAYERS]
    assert abs(sum(found) / 3 - 0.5) < 0.2
    assert "one and the same" in value(made, "clean_separability", PIXELS, column="note")


def test_clean_and_shaken_copies_have_noise_of_their_own():
    with torch.random.fork_rng():
        clean, shaken = responses(None), responses(RandomSign(eps=0.0))
        assert not torch.equal(clean, shaken)
        assert torch.equal(shaken, responses(RandomSign(eps=0.0)))
        assert not torch.equal(shaken, responses(RandomSign(eps=0.0), seed=1))


def test_copies_that_share_a_draw_are_a_point(monkeypatch):
    """The mutant: draws keyed by the image alone. Of it nothing is measured, so it can't pass for a small manifold."""

    def shared(*names, index):
        return Draws(draws(*names, index=index).seed, index // MOST_COPIES)

    assert value(rows(), "exemplar_radius", PIXELS) > 0
    monkeypatch.setattr(manifolds, "draws", shared)
    made = rows()
    assert value(made, "exemplar_radius", PIXELS) is None
    assert "one and the same" in value(made, "exemplar_radius", PIXELS, column="note")


def test_more_noise_makes_wider_manifolds_that_overlap_more():
    attack = LinfPGD(eps=0.05, steps=1, step_size=0.05)
    made = {std: rows(network(std), shakes=(attack,), copies=20) for std in (0.1, 3.0)}
    name = "LinfPGD(steps=1, step_size=0.05)"
    width, apart = (
        {std: value(found, metric, "relu1", name) for std, found in made.items()}
        for metric in ("exemplar_width", "clean_separability")
    )
    assert width[3.0] > 2 * width[0.1]
    assert apart[3.0] < apart[0.1]


def test_levels_share_draws():
    made = rows(shakes=(RandomSign(eps=0.05), RandomSign(eps=0.1)))
    small, large = made.filter(metric="exemplar_radius", layer=PIXELS, family="noise").sort("level")["value"].to_list()
    # Of the same signs, with nothing clipped, twice the size is twice the radius: the centres hardly move. They are
    # means of 8 copies, so each moves by 0.1/√8 = 0.04 in a value that differs by 0.17 between images.
    assert large == pytest.approx(2 * small, rel=0.25)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exemplars": 1}, "at least 2 of each"),
        ({"copies": 1}, "at least 2 of each"),
        ({"exemplars": 10}, "10 exemplars of 9 images"),
    ],
)
def test_too_few_is_said(more, message):
    with pytest.raises(GeophoneError, match=message):
        rows(**more)


def test_the_network_and_the_global_state_are_as_they_were():
    model = network(0.5).train()
    state = torch.random.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows(model, shakes=(SIGN, LinfPGD(eps=0.05, steps=1)))
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.ReLU))
