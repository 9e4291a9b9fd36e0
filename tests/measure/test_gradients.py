"""Input-unit gradients: against Jacobians of single images, closed forms, and mutants that they reject."""

import copy
from math import sqrt

import polars as pl
import pytest
import torch
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.data import Split
from geophone.models import ResNet20, SmallCNN
from geophone.models.tap import flatten, layers_of, positions
from geophone.probes import gradients
from geophone.probes.gradients import input_gradients
from geophone.stats import UnitMoments
from geophone.testing.statistic_laws import examples, merges_to_the_whole
from geophone.train import initialised

NORM, CV_SAMPLES, CV_UNITS = "input_gradient_norm", "input_gradient_cv_samples", "input_gradient_cv_units"


def images(n, channels=3, size=8, seed=0):
    """Random images, float32 as all are."""
    x = torch.rand(n, channels, size, size, generator=stream("gradients", n, seed))
    return Split(x, torch.arange(n) % 3, torch.arange(n))


def network(make, seed=0):
    """A network in float64, with BatchNorm statistics that are not those of a new one."""
    model = initialised(lambda: make(3, (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)), seed).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            generator = stream("norm", seed, module.num_features)
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model


def small(seed=0):
    return network(lambda *given: SmallCNN(*given, width=2), seed)


def value(rows, metric, layer=None, unit=None, column="value"):
    found = rows.filter(pl.col("metric") == metric, pl.col("layer").eq_missing(layer), pl.col("unit").eq_missing(unit))
    assert len(found) == 1
    return found[column][0]


def jacobians(model, split, layer=None):
    """∂(spatial mean of a layer)/∂x, or of the logits, image by image with jacrev: `[n, d, pixels]`.

    The network is a copy whose ReLUs work out of place.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    seen = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    if layer is not None:
        model.get_submodule(layer).register_forward_hook(lambda _m, _x, out: seen.append(out))

    def response(image):
        seen.clear()
        logits = model(image[None])
        return (logits if layer is None else seen[0].flatten(2).mean(2))[0]

    return torch.stack([torch.func.jacrev(response)(image).flatten(1) for image in split.x.double()])


def agrees(rows, model, split, layers):
    """Every row is what the Jacobians of the single images say, to 1e-6 of it.

    Raises:
        AssertionError: one is not.
    """
    network_values = {NORM: [], CV_SAMPLES: [], CV_UNITS: []}
    for layer in layers:
        g = jacobians(model, split, layer).norm(dim=2)
        alive = (g > 0).any(0)
        mean, std = g.mean(0), g.std(0, correction=0)
        for unit in range(g.shape[1]):
            assert value(rows, NORM, layer, unit) == pytest.approx(float(mean[unit]), rel=1e-6)
            if alive[unit]:
                cv = float(std[unit] / mean[unit])
                assert value(rows, CV_SAMPLES, layer, unit) == pytest.approx(cv, rel=1e-6)
        of_layer = {
            NORM: mean[alive].mean(),
            CV_SAMPLES: (std / mean)[alive].mean(),
            CV_UNITS: mean[alive].std(correction=0) / mean[alive].mean(),
        }
        for metric, wanted in of_layer.items():
            assert value(rows, metric, layer) == pytest.approx(float(wanted), rel=1e-6)
            assert value(rows, metric, layer, column="d") == int(alive.sum())
            network_values[metric].append(float(wanted))
    for metric, values in network_values.items():
        assert value(rows, metric) == pytest.approx(sum(values) / len(values), rel=1e-6)
    lengths = jacobians(model, split).flatten(1).norm(dim=1)
    assert value(rows, "jacobian_norm") == pytest.approx(float(lengths.mean()), rel=1e-6)
    half = 1.959963984540054 * float(lengths.std()) / sqrt(len(split))
    assert value(rows, "jacobian_norm", column="high") == pytest.approx(float(lengths.mean()) + half, rel=1e-6)
    assert value(rows, "jacobian_norm", column="low") == pytest.approx(float(lengths.mean()) - half, rel=1e-6)


# Against Jacobians. The networks are float64; gradients are rounded to the images' float32, to 6e-8 of each number.


@pytest.mark.parametrize("at_once", [1, 5])
def test_small_cnn_agrees_with_the_jacobians_of_single_images(at_once):
    model, split = small(), images(7)
    rows = input_gradients(model, split, batch_size=3, at_once=at_once)
    agrees(rows, model, split, layers_of(model))
    assert value(rows, "jacobian_norm", column="d") == 3
    assert value(rows, NORM, "relu4", 0, column="depth") == 3
    assert set(rows["n"]) == {7}
    assert set(zip(rows["family"], rows["perturbation"], rows["level"], strict=True)) == {("clean", "clean", 0.0)}


def test_resnet20_agrees_with_the_jacobians_of_single_images():
    """ReLUs in place after additions, shortcuts, and layers inside blocks."""
    model, split = network(ResNet20), images(3)
    names = layers_of(model)
    chosen = [names[0], names[1], names[-1]]
    agrees(input_gradients(model, split, chosen, at_once=16), model, split, chosen)


def test_a_layer_that_is_overwritten_in_place_keeps_its_own_gradients():
    """The response of `norm2` is overwritten by the ReLU after it; that of `conv2` is not what folding computes."""
    model, split = small(), images(4)
    agrees(input_gradients(model, split, ["conv2", "norm2"]), model, split, ["conv2", "norm2"])


def squared(response, x, copies, where):
    return _real_norms(response, x, copies, where).square()


def of_the_mean_gradient(response, x, copies, where):
    found = [
        torch.autograd.grad(response[:, unit].sum(), x, retain_graph=True)[0].mean(0).norm()
        for unit in range(response.shape[1])
    ]
    return torch.stack(found).expand(len(x), -1)


def of_the_first_channel(response, x, copies, where):
    found = [
        torch.autograd.grad(response[:, unit].sum(), x, retain_graph=True)[0][:, 0].flatten(1).norm(dim=1)
        for unit in range(response.shape[1])
    ]
    return torch.stack(found, dim=1)


def units_swapped(response, x, copies, where):
    return _real_norms(response, x, copies, where).flip(1)


_real_norms = gradients._norms


@pytest.mark.parametrize("mutant", [squared, of_the_mean_gradient, of_the_first_channel, units_swapped])
def test_the_check_rejects_other_definitions(monkeypatch, mutant):
    model, split = small(), images(4)
    monkeypatch.setattr(gradients, "_norms", mutant)
    with pytest.raises(AssertionError):
        agrees(input_gradients(model, split), model, split, layers_of(model))


# Closed forms


class Flat(nn.Flatten):
    """In float64."""

    def forward(self, x):
        return super().forward(x).double()


def linear_network(weight, bias=None, after=nn.Identity):
    """Images [n, 1, 2, 2] → units with these weights `[d, 4]` → the same as logits."""
    layer = nn.Linear(4, len(weight))
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)
    return nn.Sequential(Flat(), layer, after())


def weights(d, seed=0):
    return torch.randn(d, 4, generator=stream("weights", d, seed), dtype=torch.float64)


def test_linear_units_vary_between_units_only():
    w = weights(5)
    rows = input_gradients(linear_network(w), images(9, 1, 2), ["1"])
    length = w.norm(dim=1)
    for unit in range(5):
        assert value(rows, NORM, "1", unit) == pytest.approx(float(length[unit]))
        assert value(rows, CV_SAMPLES, "1", unit) == pytest.approx(0, abs=1e-12)
    assert value(rows, CV_SAMPLES, "1") == pytest.approx(0, abs=1e-12)
    assert value(rows, CV_UNITS, "1") == pytest.approx(float(length.std(correction=0) / length.mean()))


def test_the_jacobian_of_a_linear_network_is_its_weights():
    w = weights(3)
    rows = input_gradients(linear_network(w), images(9, 1, 2), ["1"])
    for column in ("value", "low", "high"):  # every image has the same
        assert value(rows, "jacobian_norm", column=column) == pytest.approx(float(w.norm()))
    assert float(w.norm()) != pytest.approx(float(torch.linalg.matrix_norm(w, 2)))  # not the spectral norm


def fires_on(*counts, n=40):
    """A ReLU unit for each count that fires on as many of the n images, and those images."""
    x = torch.zeros(n, 1, 2, 2)
    for place, count in enumerate(counts):
        x.flatten(1)[:count, place] = 1
    bias = torch.full((len(counts),), -0.5, dtype=torch.float64)
    model = linear_network(torch.eye(4, dtype=torch.float64)[: len(counts)], bias, nn.ReLU)
    return model, Split(x, torch.zeros(n, dtype=torch.int64), torch.arange(n))


def test_a_unit_that_fires_with_probability_p():
    """√((1 - p)/p): 1 for p = 0.5, 2 for 0.2, 4.36 for 0.05; batches of 7 see other shares."""
    model, split = fires_on(20, 8, 2)
    rows = input_gradients(model, split, ["2"], batch_size=7)
    for unit, p in enumerate((0.5, 0.2, 0.05)):
        assert value(rows, NORM, "2", unit) == pytest.approx(p)
        assert value(rows, CV_SAMPLES, "2", unit) == pytest.approx(sqrt((1 - p) / p))


def test_variation_over_samples_ignores_a_units_scale_and_over_units_a_layers():
    """And the norm follows the scale, and rescaling one unit does change the variation over units."""
    plain, split = small(), images(6)
    before = input_gradients(plain, split, ["relu2"])
    one, whole = copy.deepcopy(plain), copy.deepcopy(plain)
    with torch.no_grad():
        for part in (one.norm2.weight[1:2], one.norm2.bias[1:2], whole.norm2.weight, whole.norm2.bias):
            part *= 3.7
    one, whole = (input_gradients(model, split, ["relu2"]) for model in (one, whole))
    for scaled in (one, whole):
        assert value(scaled, NORM, "relu2", 1) == pytest.approx(3.7 * value(before, NORM, "relu2", 1))
        assert value(scaled, CV_SAMPLES, "relu2", 1) == pytest.approx(value(before, CV_SAMPLES, "relu2", 1))
    assert value(whole, CV_UNITS, "relu2") == pytest.approx(value(before, CV_UNITS, "relu2"))
    assert abs(value(one, CV_UNITS, "relu2") / value(before, CV_UNITS, "relu2") - 1) > 0.01


# What has no value


def test_dead_units_are_left_out_and_counted():
    model, split = fires_on(20, 0, 8, 0)
    rows = input_gradients(model, split, ["1", "2"])
    assert value(rows, NORM, "2", 1) == 0
    assert value(rows, CV_SAMPLES, "2", 1) is None
    assert "dead" in value(rows, CV_SAMPLES, "2", 1, column="note")
    assert value(rows, NORM, "2") == pytest.approx((0.5 + 0.2) / 2)
    assert value(rows, CV_SAMPLES, "2") == pytest.approx((1 + 2) / 2)
    assert value(rows, CV_UNITS, "2") == pytest.approx(0.15 / 0.35)
    for metric in (NORM, CV_SAMPLES, CV_UNITS):
        assert value(rows, metric, "2", column="d") == 2
        assert value(rows, metric, "2", column="note") == "2 dead units left out"
        assert value(rows, metric, column="d") == 6
        assert value(rows, metric, column="note") == "mean over 2 layers; 2 dead units left out"
    assert value(rows, NORM, "1", column="note") is None


def test_a_dead_layer_has_no_value_and_says_so():
    model, split = fires_on(0, 0)
    rows = input_gradients(model, split, ["1", "2"])
    for metric in (NORM, CV_SAMPLES, CV_UNITS):
        assert value(rows, metric, "2") is None
        assert value(rows, metric, "2", column="note").startswith("all 2 units are dead")
        assert value(rows, metric) == value(rows, metric, "1")
        assert value(rows, metric, column="note") == "mean over 1 of 2 layers"
    rows = input_gradients(model, split, ["2"])
    assert value(rows, NORM) is None
    assert value(rows, NORM, column="note") == "no layer has a value"


class Blind(nn.Module):
    """Responses that have nothing to do with the images, with weights and without."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.constant = nn.Identity()
        self.outer = nn.Linear(12, 3)

    def forward(self, x):
        self.inner(torch.ones(len(x), 2))
        self.constant(torch.ones(len(x), 2))
        return self.outer(x.flatten(1))


def test_a_layer_that_does_not_see_the_images_is_dead():
    split = images(4, 3, 2)
    rows = input_gradients(Blind(), split, ["inner", "constant"])
    for layer in ("inner", "constant"):
        assert "dead" in value(rows, NORM, layer, column="note")
    assert value(rows, "jacobian_norm") > 0


def test_one_image_and_one_unit_have_no_spread():
    rows = input_gradients(linear_network(weights(3)), images(1, 1, 2), ["1"])
    assert value(rows, NORM, "1") > 0
    for unit in (0, None):
        assert value(rows, CV_SAMPLES, "1", unit) is None
        assert value(rows, CV_SAMPLES, "1", unit, column="note") == "one image has no spread"
    assert value(rows, "jacobian_norm", column="low") is None
    model, split = fires_on(20, 0)
    rows = input_gradients(model, split, ["2"])
    assert value(rows, CV_UNITS, "2") is None
    assert value(rows, CV_UNITS, "2", column="note") == "one unit has no spread"


def same(one, two, rel):
    columns = ["value", "low", "high"]
    assert one.drop(columns).equals(two.drop(columns))
    for column in columns:
        assert one[column].is_null().equals(two[column].is_null())
        assert one[column].drop_nulls().to_list() == pytest.approx(two[column].drop_nulls().to_list(), rel=rel, abs=0)


@pytest.mark.parametrize("given", [{"batch_size": 3}, {"at_once": 2}, {"at_once": 4, "batch_size": 5}, {"at_once": 50}])
def test_batch_size_and_grouping_do_not_matter(given):
    """Groups that fill up and that do not, and more than a layer has units."""
    model, split = small(), images(11)
    same(input_gradients(model, split), input_gradients(model, split, **given), 1e-6)


def test_one_backward_pass_for_each_group_of_units_and_none_for_each_image(monkeypatch):
    model, split = small(), images(10)
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    input_gradients(model, split, at_once=1)
    assert len(calls) == 2 + 4 + 4 + 8 + 8 + 8 + 3
    calls.clear()
    input_gradients(model, split, at_once=3)
    assert len(calls) == 1 + 2 + 2 + 3 + 3 + 3 + 1


def test_folding_batch_norm_changes_nothing_but_rounding(monkeypatch):
    """In float32, where the folded copy is used; a unit at its threshold may fall on the other side in one image."""
    model, split = small().float(), images(8)
    used = []
    real = gradients._folded
    monkeypatch.setattr(gradients, "_folded", lambda net, *args: used.append(real(net, *args)) or used[-1])
    fast = input_gradients(model, split)
    overwritten = input_gradients(model, split, ["conv1"])
    assert used[0] is not model
    assert used[1] is model  # folding changes what a convolution answers
    monkeypatch.setattr(gradients, "_folded", lambda net, *_: net)
    same(fast, input_gradients(model, split), 1e-4)
    same(overwritten, input_gradients(model, split, ["conv1"]), 1e-12)


def test_units_of_other_reductions():
    """With `flatten` every place is a unit."""
    model, split = small(), images(2)
    rows = input_gradients(model, split, ["relu6"], reduce=flatten, at_once=4)
    assert value(rows, NORM, "relu6", 31) is not None
    with pytest.raises(GeophoneError, match="reduce it"):
        input_gradients(model, split, ["relu1"], reduce=positions)


# What is left alone


def test_the_network_is_left_as_it_was_and_its_parameters_get_no_gradient():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    model[0].bias.requires_grad_(False)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    assert True in modes
    assert False in modes
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _: pytest.fail("the gradient of a parameter was computed"))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    split, state = images(4), torch.random.get_rng_state()
    before = split.x.clone()
    rows = input_gradients(model, split)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(split.x, before)
    assert value(rows, NORM, "1") > 0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(off):
    model, split = small(), images(3)
    wanted = input_gradients(model, split, ["relu1"])
    with off():
        assert input_gradients(model, split, ["relu1"]).equals(wanted)
        assert not torch.is_grad_enabled()


def test_a_network_that_overwrites_its_input_is_measured():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 3))
    rows = input_gradients(model, images(3, 1, 2), ["2"])
    assert value(rows, "jacobian_norm") == pytest.approx(float(model[2].weight.detach().norm()))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.relu(x.flatten(1) - torch.rand(len(x), 4)))


def test_a_stochastic_network_is_repeated_by_its_seed():
    model, split = Noisy(), images(20, 1, 2)
    first, again, other = (input_gradients(model, split, ["relu"], seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_columns_and_progress():
    seen = []
    rows = input_gradients(
        *(small(), images(5), ["relu1"]),
        batch_size=2,
        columns={"job": "j", "seed": 3},
        progress=lambda *a: seen.append(a),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert set(rows["job"]) == {"j"}
    assert set(rows["seed"]) == {3}


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head((self.relu(x) + x.sqrt()).flatten(1))


def test_bad_input_is_named():
    with pytest.raises(GeophoneError, match="at_once=0"):
        input_gradients(small(), images(2), at_once=0)
    with pytest.raises(GeophoneError, match="layer"):
        input_gradients(small(), images(2), ["nothing"])
    black = Split(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    rows = input_gradients(Root(), black, ["relu"])
    (jacobian,) = rows.filter(pl.col("metric") == "jacobian_norm").iter_rows(named=True)
    assert jacobian["value"] is None
    assert jacobian["note"] == "2 of 2 examples have NaN or infinite input gradients"
    # The layer is sound: its gradient is 0 on black images, which it says.
    assert "NaN" not in " ".join(rows.filter(pl.col("layer") == "relu")["note"].drop_nulls())


# The statistic


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_unit_moments_merge_exactly(offset):
    order = torch.randperm(40, generator=stream("order"))
    for cuts in ((1, 39), (7, 20, 13), (10, 10, 10, 10)):
        merges_to_the_whole(UnitMoments, examples("responses", 40, 3, offset=offset), order.split(list(cuts)))


def test_unit_moments_are_the_mean_and_the_population_variance():
    data = examples("responses", 30, 4)
    found = UnitMoments.of(data)
    assert (found.n, found.d) == (30, 4)
    assert torch.allclose(found.mean, data.x.mean(0))
    assert torch.allclose(found.square / found.n, data.x.var(0, correction=0))


class ForgetsTheShift(UnitMoments):
    @classmethod
    def of(cls, batch):
        real = UnitMoments.of(batch)
        return cls(real.n, real.mean, real.square)

    def __add__(self, other):
        both = super().__add__(other)
        return ForgetsTheShift(both.n, both.mean, self.square + other.square)


class AveragesTheMeans(ForgetsTheShift):
    def __add__(self, other):
        both = UnitMoments.__add__(self, other)
        return AveragesTheMeans(both.n, (self.mean + other.mean) / 2, both.square)


@pytest.mark.parametrize("mutant", [ForgetsTheShift, AveragesTheMeans])
def test_a_wrong_merge_is_caught(mutant):
    with pytest.raises(AssertionError, match="not a merge"):
        merges_to_the_whole(mutant, examples("responses", 30, 3), torch.arange(30).split([7, 23]))
