"""Checks of attacks: each sees what is wrong with a network built to fail it, and none cries out over sound ones."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.data import ImageData, Split, fashion_mnist_mini
from geophone.models import SmallCNN
from geophone.probes import checks
from geophone.probes.layers import measure
from geophone.train import Standard, Training, fit, initialised

NAMES = (
    *("gradients", "randomness", "probabilities", "black_box", "large_eps", "more_steps"),
    *("batch_norm_mode", "batch_dependence"),
)


@pytest.fixture(scope="session")
def data():
    """Clothes of half the size, which makes the attacks fast."""

    def half(split):
        return Split(split.x[:, :, ::2, ::2].contiguous(), split.y, split.index)

    full = fashion_mnist_mini()
    return ImageData(full.name, full.classes, half(full.train), half(full.val.take(200)), half(full.test))


def trained(data, epochs):
    network = initialised(lambda: SmallCNN(10, data.mean, data.std, width=4), 0)
    fit(network, data, Standard(), Training(epochs=epochs))
    network.zero_grad(set_to_none=True)
    return network


@pytest.fixture(scope="session")
def sound(data):
    """An ordinary small network, trained for some seconds."""
    torch.set_num_threads(1)
    return trained(data, epochs=2)


class Built(nn.Module):
    """A network with something done to its images or its logits."""

    def __init__(self, network, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


def verdicts(model, data, images=60, names=NAMES, **options):
    """Values and notes by name; of some checks only, where the others would take long and say nothing new."""
    chosen = {name: checks._ATTACK_CHECKS[name] for name in names}
    with patch.object(checks, "_ATTACK_CHECKS", chosen):
        rows = checks.attack_checks(model, data, images=images, **options)
    assert [row["metric"] for row in rows] == [f"check.{name}" for name in names]
    assert all(row["note"] and row["n"] == images for row in rows)
    table.frame(rows)
    found = dict(zip(names, rows, strict=True))
    return {name: row["value"] for name, row in found.items()}, {name: row["note"] for name, row in found.items()}


def value(name, model, data):
    """What one check alone says."""
    return verdicts(model, data, names=[name])[0][name]


@pytest.mark.parametrize("eps", [2 / 255, 32 / 255])
def test_an_ordinary_network_passes_all_checks(sound, data, eps):
    assert verdicts(sound, data, images=100, eps=eps)[0] == dict.fromkeys(NAMES, 0.0)


def test_an_ordinary_network_for_whole_images_passes_all_checks():
    full = fashion_mnist_mini()
    less = ImageData(full.name, full.classes, full.train.take(3000), full.val.take(200), full.test)
    assert verdicts(trained(less, epochs=2), less, images=200)[0] == dict.fromkeys(NAMES, 0.0)


def test_harmless_changes_of_scale_and_form_pass(sound, data):
    """Tiny logits and log-probabilities are as good as logits; a plain function has no modules to look at."""
    names = ("gradients", "probabilities", "large_eps", "more_steps", "batch_dependence")
    assert set(verdicts(Built(sound, after=lambda z: z * 1e-6), data, names=names)[0].values()) == {0.0}
    values, notes = verdicts(Built(sound, after=lambda z: z.log_softmax(1)), data, names=names)
    assert set(values.values()) == {0.0}
    assert "log-probabilities" in notes["probabilities"]
    values, notes = verdicts(lambda x: sound(x), data, names=("gradients", "large_eps", "batch_norm_mode"))
    assert values == {"gradients": 0.0, "large_eps": 0.0, "batch_norm_mode": None}
    assert "plain function" in notes["batch_norm_mode"]


def test_gradients_that_underflow_in_plain_cross_entropy(sound, data):
    """Logits × 1000: only the plain loss is blind, and the attacks here are not hurt."""
    values, notes = verdicts(Built(sound, after=lambda z: z * 1000), data)
    assert {name for name in NAMES if values[name]} == {"gradients"}
    assert "Plain cross-entropy is blind" in notes["gradients"]
    assert "in 0 with the scale-free loss" in notes["gradients"]


def test_gradients_that_rounding_makes_zero(sound, data):
    """Images rounded to 4 bits: torch's rounding has a gradient, which is zero."""
    values, notes = verdicts(Built(sound, before=lambda x: (x * 15).round() / 15), data)
    assert values["gradients"] == values["large_eps"] == 1
    assert "Masked gradients" in notes["gradients"]


@pytest.mark.parametrize(
    "blocking",
    [
        lambda x: x.detach(),
        lambda x: (x * 255).to(torch.uint8).float() / 255,
        lambda x: torch.from_numpy(x.numpy().copy()),
    ],
    ids=["detached", "bytes", "numpy"],
)
def test_gradients_that_are_blocked(sound, data, blocking):
    names = ("gradients", "black_box", "large_eps", "more_steps")
    values, notes = verdicts(Built(sound, before=blocking), data, names=names)
    assert values["gradients"] == 1
    assert "white-box numbers say nothing" in notes["gradients"]
    assert "LinfSquare" in notes["gradients"]
    for name in names[1:]:
        assert values[name] is None
        assert "no gradient reaches the images" in notes[name]


def test_gradients_that_are_not_numbers(sound, data):
    """The root of 0 has an infinite slope, and times 0 it is NaN."""
    network = Built(sound, before=lambda x: x + 0 * (x - x).sqrt())
    values, notes = verdicts(network, data, names=("gradients", "more_steps"))
    assert values["gradients"] == 1
    assert "NaN or infinite" in notes["gradients"]
    assert values["more_steps"] is None


def test_randomness(sound, data):
    """Dropout that is always on; companions in a batch can't be judged then."""
    network = Built(sound, before=lambda x: dropout(x, 0.2, training=True))
    values, notes = verdicts(network, data, images=16)
    assert values["randomness"] == 1
    assert "draws=10" in notes["randomness"]
    assert values["batch_dependence"] is None
    assert {name for name in NAMES if values[name]} == {"randomness"}


def test_no_black_box_verdict_on_a_stochastic_network(sound, data):
    """Square leaves an image at its first lucky pass, so noise hides what it would show: nothing can be said."""
    noisy = Built(sound, before=lambda x: x + 0.1 * torch.randn_like(x))
    values, notes = verdicts(noisy, data, images=16, names=["black_box", "randomness"])
    assert values == {"black_box": None, "randomness": 1}
    assert "stochastic" in notes["black_box"]
    assert "version='rand'" in notes["randomness"]


def measured(model, data):
    """Values and notes of the checks of a measurement."""
    split = data.test.take(60)
    rows = measure(model, split, metrics=["accuracy"])
    found = {row["metric"].removeprefix("check."): row for row in checks.checks(model, split, rows)}
    table.frame(found.values())
    return {name: row["value"] for name, row in found.items()}, {name: row["note"] for name, row in found.items()}


def in_the_unit_interval(x):
    assert x.min() >= 0
    return x


@pytest.mark.parametrize("before", [lambda x: x**0.45, in_the_unit_interval], ids=["gamma", "assertion"])
def test_a_network_for_images_in_the_unit_interval_only(sound, data, before):
    """What standardising outside it breaks is no sign that it expects that, and ends nothing."""
    values, notes = measured(Built(sound, before=before), data)
    assert values["normalisation_outside"] == 0
    assert "can't take standardised images" in notes["normalisation_outside"]
    assert len(values) == 8


def test_a_check_of_a_measurement_that_fails_ends_no_other(sound, data):
    split = data.test.take(60)
    rows = measure(sound, split, metrics=["accuracy"])
    with patch.object(checks, "activation_layers", side_effect=RuntimeError("no such module\nand more")):
        found = {row["metric"]: row for row in checks.checks(sound, split, rows)}
    assert found["check.activation_modules"]["value"] is None
    assert found["check.activation_modules"]["note"] == "Activation modules: no such module"
    assert len(found) == 8


def test_checks_of_a_stochastic_network_repeat_and_leave_the_global_state(sound, data):
    noisy = Built(sound, before=lambda x: x + 0.3 * torch.randn_like(x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        first = measured(noisy, data)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(2)
        assert measured(noisy, data) == first


def test_dropout_left_on_in_a_network_in_evaluation_mode(sound, data):
    """Monte Carlo dropout is off while Geophone measures; dropout in evaluation mode is nobody's problem."""
    network = nn.Sequential(nn.Dropout(0.2), sound).eval()
    assert value("randomness", network, data) == 0
    network[0].train()
    values, notes = verdicts(network, data, names=("randomness", "batch_norm_mode", "batch_dependence"))
    assert values == {"randomness": 1.0, "batch_norm_mode": 0.0, "batch_dependence": 0.0}
    assert "Monte Carlo" in notes["randomness"]
    assert network[0].training


def test_probabilities(sound, data):
    assert value("probabilities", Built(sound, after=lambda z: z.softmax(1)), data) == 1
    assert value("probabilities", Built(sound, after=lambda z: z.softmax(1).half().float()), data) == 1
    assert value("probabilities", Built(sound, after=lambda z: z - z.mean(1, keepdim=True) + 0.1), data) == 0


def test_a_black_box_attack_that_beats_the_white_box_one(sound, data):
    """A ripple of 1 in 255 whose slope is 25 and turns at each step: gradients are there, large and meaningless."""
    network = Built(sound, before=lambda x: x + 0.004 * (6283 * x).sin())
    values, notes = verdicts(network, data, images=120, names=("gradients", "black_box"))
    assert values["gradients"] == 0
    assert values["black_box"] == 1
    assert "Gradients are masked" in notes["black_box"]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_gradients_that_point_the_wrong_way(sound, data):
    """Accuracy stays at any eps, and each step makes the attack weaker."""
    values, notes = verdicts(Built(sound, before=_Turned.apply), data)
    assert values["gradients"] == 0
    assert values["large_eps"] == values["more_steps"] == 1
    assert "plain grey" in notes["large_eps"]
    assert "Gradients point the wrong way" in notes["more_steps"]


def test_batch_norm_that_uses_the_batch(sound, data):
    network = nn.Sequential(sound, nn.BatchNorm1d(10, track_running_stats=False)).eval()
    values, notes = verdicts(network, data)
    assert values["batch_norm_mode"] == values["batch_dependence"] == 1
    assert "(1)" in notes["batch_norm_mode"]


def test_batch_norm_that_was_handed_over_in_training_mode(sound, data):
    modes = {module: module.training for module in sound.modules()}
    sound.norm2.train()
    try:
        values, notes = verdicts(sound, data, names=("randomness", "batch_norm_mode", "batch_dependence"))
        assert sound.norm2.training
        assert not sound.norm1.training
    finally:
        for module, mode in modes.items():
            module.training = mode
    assert values == {"randomness": 0.0, "batch_norm_mode": 1.0, "batch_dependence": 0.0}
    assert "(norm2)" in notes["batch_norm_mode"]


def test_predictions_that_depend_on_the_batch(sound, data):
    names = ("batch_norm_mode", "batch_dependence")
    values, notes = verdicts(Built(sound, after=lambda z: z - z.mean(0)), data, names=names)
    assert values == {"batch_norm_mode": 0.0, "batch_dependence": 1.0}
    assert "depend on the batch" in notes["batch_dependence"]


def crowd(least):
    def check(x):
        if len(x) < least:
            raise ValueError(f"{least} images are expected")
        return x

    return check


def test_a_network_that_takes_no_image_alone(sound, data):
    values, notes = verdicts(Built(sound, before=crowd(2)), data, names=["batch_dependence"])
    assert values["batch_dependence"] == 1
    assert "2 images are expected" in notes["batch_dependence"]


def test_a_network_that_takes_no_fewer_images_can_not_be_checked(sound, data):
    """Which is not mistaken for gradients that are blocked."""
    values, notes = verdicts(Built(sound, before=crowd(60)), data)
    missing = {"gradients", "black_box", "large_eps", "more_steps", "batch_dependence"}
    assert {name for name in NAMES if values[name] is None} == missing
    assert all("60 images are expected" in notes[name] for name in missing)


def test_a_network_that_is_always_wrong_has_nothing_to_attack(sound, data):
    y = sound(next(data.test.take(40).batches(40)).x).argmax(1)
    split = Split(data.test.take(40).x, (y + 1) % 10, data.test.take(40).index)
    values, notes = verdicts(sound, split, images=40)
    for name in ("gradients", "black_box", "large_eps", "more_steps"):
        assert values[name] is None
        assert "no image is classified right" in notes[name]


def test_images_outside_the_unit_interval_never_reach_the_network(sound, data):
    """Neither from the data, which is refused, nor from an attack."""
    outside = Split(data.test.x[:20].float() / 127.5 - 1, data.test.y[:20], data.test.index[:20])
    with pytest.raises(GeophoneError, match=r"run from -1 to 1, allowed is \[0, 1\].* normalisation inside the model"):
        checks.attack_checks(sound, outside)
    seen = []

    def watched(x):
        seen.append([float(edge) for edge in x.detach().aminmax()])
        return x

    checks.attack_checks(Built(sound, before=watched), data, images=20)
    assert min(low for low, _ in seen) >= 0
    assert max(high for _, high in seen) <= 1
    assert len(seen) > 50


def test_labels_that_the_network_has_no_logits_for(sound, data):
    with pytest.raises(GeophoneError, match="label 9 is out of range"):
        checks.attack_checks(Built(sound, after=lambda z: z[:, :5]), data, images=10)


def test_the_network_and_the_global_state_stay_as_they_were(sound, data):
    weights = {name: value.clone() for name, value in sound.state_dict().items()}
    modes = [module.training for module in sound.modules()]
    state = torch.random.get_rng_state()
    first, second = (checks.attack_checks(sound, data, images=10) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in sound.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in sound.state_dict().items())
    assert all(parameter.grad is None for parameter in sound.parameters())
    assert torch.is_grad_enabled()


def test_batches_and_inference_mode_change_nothing_but_rounding(sound, data):
    names = [name for name in NAMES if name != "black_box"]
    whole = verdicts(sound, data, images=16, names=names)[0]
    with torch.inference_mode():
        assert verdicts(sound, data, images=16, batch_size=8, names=names)[0] == whole
