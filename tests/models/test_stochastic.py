"""Noise in a layer's response: where it is, that gradients pass, that it stays, and that nothing counts it wrongly."""

import copy
import json
import math
import pickle
from importlib import import_module

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.core.registry import MODELS, RECIPES
from geophone.core.rng import draws, stream
from geophone.core.table import frame, read
from geophone.core.types import describe
from geophone.data import synthetic
from geophone.models import GaussianResponse, PoissonLike, ResponseNoise, SmallCNN, frozen, load_model, silenced
from geophone.models.run import seeded
from geophone.models.stochastic import add_noise, is_stochastic, make_noise, noisy_layers, stochastic
from geophone.models.tap import layers_of, tap
from geophone.perturb import FGSM, GaussianNoise, LinfAPGD, LinfAutoAttack, LinfPGD, LinfSquare, MatchedL2
from geophone.perturb.attacks.base import EOT_DRAWS, draws_of, eot_row
from geophone.perturb.attacks.fold import folded
from geophone.perturb.parse import family_name
from geophone.probes import checks
from geophone.probes.curves import eps_curve
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.layer_maps import similarity
from geophone.probes.layers import measure
from geophone.probes.published import published
from geophone.probes.survival import survival
from geophone.report.findings import findings
from geophone.report.page import _attack_words
from geophone.report.words import eot_words
from geophone.study import Job, run_job
from geophone.train import Adversarial, Standard, Stochastic, Training, fit, initialised, robust_accuracy

recording = import_module("geophone.models.run")
X = torch.rand(12, 1, 16, 16, generator=stream("stochastic"))
CPU = torch.device("cpu")
LAYERS = ("normalise", "conv2", "norm3", "relu1", "relu6", "head")
NOISES = (GaussianResponse(0.5), PoissonLike())


def plain(width=4):
    return initialised(lambda: SmallCNN(4, (0.5,), (0.25,), width), 0).eval()


def answers(model, x=X, seed=0):
    """What the network answers from one random state."""
    with seeded(seed, CPU), torch.no_grad():
        return model(x)


def responses(model, layers, x=X, seed=0):
    with seeded(seed, CPU), torch.no_grad(), tap(model, layers, lambda r: r.flatten(1)) as seen:
        model(x)
        return dict(seen)


# ---- the noise -------------------------------------------------------------------------------------------------------


def poisson_like(noise):
    """Mean x, and variance in spikes equal to the mean there: over 200,000 draws of each of 5 values, to five errors.

    The standard error of a mean is s/√n, of a variance s²·√(2/n), here 0.32 % of it.
    """
    n, x = 200_000, torch.tensor([0.0, 0.5, 2.0, 8.0, 30.0], dtype=torch.float64)
    z = torch.randn(n, 5, generator=stream("z"), dtype=torch.float64)
    spikes = 0.35 * noise(x.expand(n, 5), z) + 0.07
    mean = 0.35 * x + 0.07
    assert ((spikes.mean(0) - mean).abs() < 5 * (mean / n).sqrt()).all()
    # 1e-4 is added to the variance: at x = 0 that is 0.14 %, and counted.
    assert ((spikes.var(0) / (mean + 1e-4) - 1).abs() < 5 * math.sqrt(2 / n)).all()


def test_poisson_like_noise_has_the_variance_of_its_mean():
    poisson_like(PoissonLike())


@pytest.mark.parametrize(
    "mutant",
    [
        PoissonLike(level=0.14),
        PoissonLike(scale=0.7),
        lambda x, z: x + z * (x + 0.07 + 1e-4).sqrt(),  # the variance of the response, not of spikes
        lambda x, z: x + z * (0.35 * x + 0.07 + 1e-4),  # a standard deviation equal to the mean
        lambda x, z: x + 0.5 * z,
    ],
)
def test_other_noise_is_not_poisson_like(mutant):
    with pytest.raises(AssertionError):
        poisson_like(mutant)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: GaussianResponse(-1.0), "std must be a number of at least 0"),
        (lambda: GaussianResponse(math.nan), "std must be"),
        (lambda: PoissonLike(level=-0.1), "level must be a number of at least 0"),
        (lambda: PoissonLike(scale=0.0), "scale must be a number above 0"),
        (lambda: make_noise("poisson"), "unknown noise 'poisson'"),
        (lambda: make_noise("neuronal", std=0.1), "neuronal noise has only level, scale"),
        (lambda: make_noise("gaussian", scale=0.1), "gaussian noise has only std"),
        (lambda: Stochastic(std=-0.5), "std must be"),
        (lambda: Stochastic(recipe="Standart"), "unknown recipe"),
    ],
)
def test_what_is_not_allowed(wrong, said):
    with pytest.raises(GeophoneError, match=said):
        wrong()


# ---- where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES, ids=describe)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_answers_with_noise_and_its_own_response_can_be_read(layer, noise):
    model = plain()
    noisy = ResponseNoise(layer, noise)(model)
    clean = responses(model, [layer])[layer]
    found = responses(noisy, [layer, f"{layer}.clean"])
    assert torch.equal(found[f"{layer}.clean"], clean)  # what came before is not touched
    with seeded(0, CPU):
        assert torch.equal(found[layer], noise(clean, torch.randn(shape_of(model, layer)).flatten(1)))
    assert layers_of(noisy) == layers_of(model)
    assert not list(noisy_layers(model))  # the network that was given is as it was
    assert torch.equal(answers(model), answers(plain()))


def shape_of(model, layer):
    shapes = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _x, out: shapes.append(out.shape))
    model(X)
    handle.remove()
    return shapes[0]


def responses_are_noisy_in_every_mode(make):
    """In training and in evaluation alike."""
    for train in (True, False):
        model = make(plain()).train(train)
        assert not torch.equal(answers(model, seed=0), answers(model, seed=1))


def test_noise_is_drawn_in_training_and_in_evaluation():
    responses_are_noisy_in_every_mode(ResponseNoise("relu1", GaussianResponse(0.5)))


class OffInEvaluation(nn.Module):
    """A mutant, and a user's own module that says that it is stochastic."""

    stochastic = True

    def forward(self, x):
        return x + 0.5 * torch.randn_like(x) if self.training else x


def with_mutant(model):
    model.norm1 = nn.Sequential(model.norm1, OffInEvaluation())
    return model


def test_noise_that_is_off_in_evaluation():
    with pytest.raises(AssertionError):
        responses_are_noisy_in_every_mode(with_mutant)


def gradients_pass(noise):
    """∂x'/∂x by autograd and by differences, in float64: they agree to the 1e-6 of central differences."""
    z = torch.randn(20, generator=stream("slope"), dtype=torch.float64)
    x = torch.linspace(0.1, 3, 20, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(noise(x, z).sum(), x)
    with torch.no_grad():
        assert (slope - (noise(x + 1e-5, z) - noise(x - 1e-5, z)) / 2e-5).abs().max() < 1e-6


@pytest.mark.parametrize("noise", NOISES, ids=describe)
def test_gradients_flow_through_the_noise(noise):
    gradients_pass(noise)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda x, z: (x.detach() + 0.5 * z) * (1 + 0 * x),  # no gradient
        lambda x, z: x + z * (0.35 * x.detach() + 0.07).sqrt() / 0.35,  # none through the size of the noise
    ],
)
def test_noise_that_cuts_the_gradient(mutant):
    with pytest.raises(AssertionError):
        gradients_pass(mutant)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_strength_it_is_the_network_itself(layer):
    """Also draw for draw: what comes after in the stream is the same."""
    noisy = ResponseNoise(layer, GaussianResponse(0.0))(plain())
    with seeded(0, CPU):
        assert torch.equal(noisy(X), plain()(X))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_after_a_container_is_after_its_last_module():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(784, 4))
    noisy = ResponseNoise("0", GaussianResponse(0.5))(model)
    assert list(noisy_layers(noisy)) == ["0.1"]
    found = responses(noisy, ["0", "0.1", "0.1.clean"])
    assert torch.equal(found["0"], found["0.1"])
    assert torch.equal(found["0.1.clean"], responses(model, ["0"])["0"])


class Doubled(nn.Sequential):
    """A container that does more than run its modules."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_container_with_a_forward_of_its_own_is_refused():
    """After its last module the noise would be doubled; put on itself, its `clean` would be run as a module of it."""
    model = nn.Sequential(Doubled(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Identity(), nn.Flatten())
    with pytest.raises(GeophoneError, match="this Doubled, whose forward is its own.*nn.Identity after it"):
        ResponseNoise("0", GaussianResponse(0.5))(model)
    assert list(noisy_layers(ResponseNoise("1", GaussianResponse(0.5))(model))) == ["1"]


def test_a_module_at_two_places_draws_at_both():
    relu = nn.ReLU()
    noisy = ResponseNoise("0", GaussianResponse(0.5))(nn.Sequential(relu, nn.Flatten(), relu))
    with seeded(0, CPU):
        once = (X + 0.5 * torch.randn(X.shape)).flatten(1)
        twice = once.relu() + 0.5 * torch.randn(once.shape)
    assert torch.equal(answers(noisy), twice)


@pytest.mark.parametrize(
    "wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
def test_wrapped_networks(wrap):
    """Noise is put into the network itself, has its names there, and is frozen to the same draw."""
    noise = ResponseNoise("relu1", GaussianResponse(0.5))
    noisy = noise(plain())
    assert torch.equal(answers(noise(wrap(plain()))), answers(noisy))
    wrapped = wrap(noisy)
    assert list(noisy_layers(wrapped)) == ["relu1"]
    with frozen(noisy, seed=1):
        expected = answers(noisy)
    with frozen(wrapped, seed=1):
        assert torch.equal(answers(noisy), expected)
    inside = nn.Sequential(torch.compile(noisy, backend="eager"))
    assert list(noisy_layers(inside)) == ["0.relu1"]


def test_where_it_can_not_be_put():
    noisy = ResponseNoise("relu1", GaussianResponse(0.5))(plain())
    with pytest.raises(GeophoneError, match="unknown layer 'relu9'. Did you mean 'relu"):
        ResponseNoise("relu9", GaussianResponse(0.5))(plain())
    with pytest.raises(GeophoneError, match=r"has GaussianResponse already|has GaussianResponse\(.*already"):
        ResponseNoise("relu1", PoissonLike())(noisy)
    patched = nn.ReLU()
    patched.forward = torch.relu
    with pytest.raises(GeophoneError, match="nn.Identity after it"):
        add_noise(patched, PoissonLike())
    with pytest.raises(GeophoneError, match="put on a GRU, which gives a tuple"):
        add_noise(nn.GRU(2, 2), PoissonLike())(torch.zeros(1, 1, 2))


# ---- that it stays ---------------------------------------------------------------------------------------------------


def test_copies_pickles_and_weights_keep_it():
    model = plain()
    noisy = ResponseNoise("conv2", PoissonLike())(model)
    for twin in (copy.deepcopy(noisy), pickle.loads(pickle.dumps(noisy))):
        assert torch.equal(answers(twin), answers(noisy))
        assert not torch.equal(answers(twin, seed=1), answers(noisy))
    assert noisy.state_dict().keys() == model.state_dict().keys()
    other = ResponseNoise("conv2", PoissonLike())(initialised(lambda: SmallCNN(4, (0.5,), (0.25,), 4), 1).eval())
    other.load_state_dict(model.state_dict())
    assert torch.equal(answers(other), answers(noisy))
    model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("noise", NOISES, ids=describe)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_faster_copy_has_the_same_noise(layer, noise):
    """Folding a norm into a convolution moves logits by rounding; a noisy one of the two is left as it is."""
    noisy = ResponseNoise(layer, noise)(plain())
    twin = folded(noisy, X)
    assert twin is not noisy
    left = sum(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    assert left == (layer in ("conv2", "norm3"))
    expected = answers(noisy)
    assert (answers(twin) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (answers(twin, seed=1) - expected).abs().max() > 1e-3 * expected.abs().max()


# ---- switches --------------------------------------------------------------------------------------------------------


def test_frozen_noise_is_one_draw_for_every_image_and_pass():
    noisy = ResponseNoise("relu1", GaussianResponse(0.5))(plain())
    both = ["relu1", "relu1.clean"]
    with frozen(noisy):
        first, second = (responses(noisy, both, seed=seed) for seed in (0, 1))
        assert torch.equal(first["relu1"], second["relu1"])
        delta = first["relu1"] - first["relu1.clean"]
        assert (delta - delta[:1]).abs().max() < 1e-5  # rounding of sums of at most 10
        assert abs(float(delta[0].std()) - 0.5) < 0.06  # 1,024 numbers: five standard errors of .011
        with frozen(noisy, seed=1):
            assert not torch.equal(responses(noisy, both)["relu1"], first["relu1"])
        assert torch.equal(responses(noisy, both)["relu1"], first["relu1"])
    assert is_stochastic(noisy)
    fresh = responses(noisy, both)
    delta = fresh["relu1"] - fresh["relu1.clean"]
    with pytest.raises(AssertionError):  # the mutant: fresh noise
        assert (delta - delta[:1]).abs().max() < 1e-5


def test_silenced_noise_is_none():
    noisy = ResponseNoise("relu1", GaussianResponse(0.5))(plain())
    with silenced(noisy):
        assert torch.equal(answers(noisy), answers(plain()))
        assert not is_stochastic(noisy)
    assert is_stochastic(noisy)


DATA = synthetic(test=40)


@pytest.fixture(scope="module")
def trained():
    """A network that was trained with its noise."""
    torch.set_num_threads(1)
    recipe = Stochastic(std=0.5)
    model = recipe.prepare(initialised(lambda: SmallCNN(4, DATA.mean, DATA.std, 4), 0))
    fit(model, DATA, recipe, Training(epochs=2, batch_size=64))
    return model


@pytest.mark.parametrize(
    "number",
    [
        lambda model: survival(model, DATA, "FGSM"),
        lambda model: eps_curve(model, DATA, "FGSM"),
        lambda model: measure(model, DATA, "GaussianNoise(std=0.1)"),
        lambda model: checks.attack_checks(model, DATA),
        lambda model: FGSM()(X, torch.zeros(12).long(), model, draws(0, index=torch.arange(12))),
        lambda model: published(model, "cifar10_c"),
        lambda model: robust_accuracy(model, DATA.test, GaussianNoise(0.1)),
        lambda model: exemplar_manifolds(model, DATA, "RandomSign", exemplars=2, copies=2),
    ],
    ids=["survival", "eps_curve", "measure", "attack_checks", "attack", "published", "validation", "exemplars"],
)
def test_no_robustness_of_frozen_noise(trained, number):
    with frozen(trained), pytest.raises(GeophoneError, match=r"noise is frozen \(relu1\)"):
        number(trained)


def test_a_frozen_network_can_be_looked_at(trained):
    with frozen(trained):
        first, second = (measure(trained, DATA, metrics=["accuracy", "margin"], seed=seed) for seed in (0, 1))
    assert first["value"].to_list() == second["value"].to_list()


# ---- the check -------------------------------------------------------------------------------------------------------


def said(model):
    chosen = {"noise_is_on": checks._ATTACK_CHECKS["noise_is_on"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_ATTACK_CHECKS", chosen)
        (row,) = checks.attack_checks(model, DATA)
    assert row["metric"] == "check.noise_is_on"
    return row["value"], row["note"]


def test_noise_that_is_on(trained):
    value, note = said(trained)
    assert value == 0
    assert "The noise of relu1 is on: accuracy is" in note
    assert "with it and" in note
    assert said(plain()) == (0.0, "The network has no modules of noise.")


def test_noise_that_is_off(trained):
    """vonenet#21: with noise silently off, the numbers were those of the network that has none."""
    with silenced(trained):
        value, note = said(trained)
    assert (value, "relu1 it is silenced" in note) == (1, True)
    value, note = said(ResponseNoise("relu2", GaussianResponse(0.0))(plain()))
    assert (value, "relu2 it is of strength 0" in note) == (1, True)
    value, note = said(with_mutant(plain()))
    assert (value, "Noise does nothing" in note, "norm1.1" in note) == (1, True, True)
    mean = MODELS.build("stochastic", classes=4, mean=DATA.mean, std=DATA.std, noise_std=0)
    assert said(mean)[0] == 1


# ---- expectation over transformation ---------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts its passes over the images that are attacked, and keeps what it answers."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes, self.answers = model, 0, []

    def forward(self, x):
        logits = self.model(x)
        if x.requires_grad:
            self.passes += 1
            self.answers.append(logits.detach())
        return logits


class Reseeded(Counted):
    """A mutant whose passes all have the same noise."""

    def forward(self, x):
        torch.manual_seed(0)
        return super().forward(x)


def each_pass_has_noise_of_its_own(kind):
    """FGSM: ten passes over the same images with ten different answers."""
    counted = kind(ResponseNoise("relu1", GaussianResponse(0.5))(plain()))
    counted.register_forward_hook(lambda *_: None)
    FGSM()(X, torch.arange(12) % 4, counted, draws(0, index=torch.arange(12)))
    assert len({tuple(logits.flatten().tolist()) for logits in counted.answers}) == EOT_DRAWS


def test_each_pass_has_noise_of_its_own():
    each_pass_has_noise_of_its_own(Counted)


def test_ten_passes_with_the_same_noise():
    with pytest.raises(AssertionError):
        each_pass_has_noise_of_its_own(Reseeded)


@pytest.mark.parametrize("attack", [FGSM(), LinfPGD(steps=3), LinfAPGD(steps=3)], ids=family_name)
def test_attacks_average_over_the_noise_by_themselves(attack):
    """As many passes as steps on a network without noise; ten times as many with it; as many with draws=1."""
    steps = getattr(attack, "steps", 1)
    quiet = ResponseNoise("relu1", GaussianResponse(0.0))(plain())
    noisy = ResponseNoise("relu1", GaussianResponse(0.5))(plain())
    y, rng = torch.arange(12) % 4, draws(0, index=torch.arange(12))
    for model, one, factor in (
        (plain(), attack, 1),
        (quiet, attack, 1),
        (noisy, attack, EOT_DRAWS),
        (noisy, type(attack)(**({"steps": 3} if steps > 1 else {}), draws=1), 1),
    ):
        counted = Counted(model)
        # A forward hook keeps the network itself in place of its faster copy, so that its passes are counted.
        counted.register_forward_hook(lambda *_: None)
        one(X, y, counted, rng)
        assert counted.passes == factor * steps


def test_what_averages():
    assert [draws_of(LinfPGD(draws=k), True) for k in (None, 1, 3)] == [10, 1, 3]
    assert [draws_of(LinfPGD(draws=k), False) for k in (None, 1, 3)] == [1, 1, 3]
    assert draws_of(LinfSquare(), True) == 1
    assert draws_of(LinfAutoAttack(), True) == 1  # Square and FAB can't
    assert draws_of(LinfAutoAttack(version="rand"), True) == 20
    assert [draws_of(MatchedL2(inner=code), True) for code in ("FGSM", "FGSM(draws=3)", "GaussianNoise")] == [10, 3, 1]
    assert eot_row(10)["note"] == "each gradient is the mean over 10 draws of the network's noise"
    assert eot_row(1)["note"] == "not averaged over the network's noise"  # Square has no gradient at all
    for wrong in (0, -1):
        with pytest.raises(GeophoneError, match="draws must be a whole number"):
            LinfPGD(draws=wrong)
    assert describe(LinfPGD(steps=20)) == "LinfPGD(steps=20)"  # as older tables have it


class Undeclared(nn.Module):
    """A user's network with noise that it says nothing of."""

    def __init__(self):
        super().__init__()
        self.model, self.responses = plain(), []

    def forward(self, x):
        noisy = x + 0.1 * torch.randn(x.shape)
        if x.requires_grad:
            self.responses.append(noisy.detach())
        return self.model(noisy)


def measure_averages(run):
    """Over ten draws for each attack that leaves it open, and rows say so, under the name that was given."""
    shakes = "GaussianNoise(std=0.1), FGSM(eps=0.1), FGSM(eps=0.1, draws=1), MatchedL2(inner='FGSM(eps=0.2)', l2=1)"
    model = Undeclared()
    model.register_forward_hook(lambda *_: None)  # attacks then run on it, not on a faster copy
    rows = run(model, DATA.test.take(8), shakes, metrics=["accuracy"])
    said = rows.filter(pl.col("metric") == "eot_draws").select("perturbation", "value").rows()
    assert said == [("FGSM", 10.0), ("FGSM(draws=1)", 1.0), ("MatchedL2(inner='FGSM(eps=0.2)')", 10.0)]
    named = rows["perturbation"].unique(maintain_order=True).to_list()
    assert named == ["clean", "GaussianNoise", *[name for name, _ in said]]
    assert len(model.responses) == 10 + 1 + 10


def test_measure_averages_over_the_noise_of_any_network():
    measure_averages(measure)


def test_measuring_without_asking_twice(monkeypatch):
    """The mutant: only what the network says of itself."""
    monkeypatch.setattr(recording, "asked_twice", lambda *_: (torch.zeros(1, 2), False))
    with pytest.raises(AssertionError):
        measure_averages(measure)


@pytest.mark.parametrize("asks", [True, False], ids=["asked twice", "the mutant: not"])
def test_exemplars_and_similarity_average_over_the_noise_of_any_network(asks, monkeypatch):
    """One step: ten passes for the gradient of each image or batch that is attacked; a row says so."""
    if not asks:
        monkeypatch.setattr(recording, "asked_twice", lambda *_: (torch.zeros(1, 2), False))
    shake = FGSM(eps=0.1)
    for of, attacked in (
        (lambda net: exemplar_manifolds(net, DATA.test, [shake], ["model.head"], exemplars=2, copies=3), 2),
        (lambda net: similarity(net, data=DATA.test.take(8), perturbation=shake, layers=["model.head"]).table, 1),
    ):
        model = Undeclared()
        model.register_forward_hook(lambda *_: None)
        rows = of(model)
        assert len(model.responses) == attacked * (10 if asks else 1)
        said = rows.filter(metric="eot_draws").select("family", "value", "level").rows()
        assert len(said) == asks
        if asks:
            assert said[0][1:] == (10.0, 0.1)
    assert "eot_draws" not in similarity(plain(), data=DATA.test.take(8), perturbation=shake).table["metric"].to_list()


def test_asking_twice_moves_no_draw():
    """Rows of the clean images are those without an attack, whose presence has the network asked."""
    model = Undeclared()
    alone, beside = (measure(model, DATA.test, shakes, metrics=["margin"]) for shakes in ((), "FGSM(eps=0.1)"))
    assert alone.equals(beside.filter(family="clean"))


def test_survival_averages_over_the_noise_of_any_network(trained):
    """Also of one that says nothing of it, since it asks twice; and it is said how often."""
    attacks = [LinfPGD(steps=1), LinfPGD(steps=1, draws=2)]
    for model in (trained, Undeclared()):
        found = survival(model, DATA.test.take(8), attacks, passes=2)
        assert found.draws == (10, 2)
        assert found.attacks == ("LinfPGD(steps=1)", "LinfPGD(steps=1, draws=2)")
    assert survival(plain(), DATA.test.take(8), attacks).draws == (1, 2)
    rows = list(eps_curve(trained, DATA.test.take(8), LinfPGD(steps=1), 0.1, passes=2).rows())
    assert [row["value"] for row in rows if row["metric"] == "eot_draws"] == [10]
    assert all(row["metric"] != "eot_draws" for row in eps_curve(plain(), DATA.test.take(8), FGSM(), 0.1).rows())


def test_the_table_says_how_gradients_were_averaged(trained):
    shakes = "GaussianNoise(std=0.1), FGSM(eps=0.1), LinfPGD(eps=0.1, steps=1, draws=1)"
    rows = measure(trained, DATA.test.take(20), shakes, metrics=["accuracy"])
    said = rows.filter(pl.col("metric") == "eot_draws").select("perturbation", "level", "value").rows()
    assert said == [("FGSM", 0.1, 10.0), ("LinfPGD(steps=1, draws=1)", 0.1, 1.0)]
    without = measure(plain(), DATA.test.take(20), shakes, metrics=["accuracy"])
    assert "eot_draws" not in without["metric"].to_list()


def test_the_report_says_it(trained):
    """Which attacks averaged, which did not, and nothing of networks without noise."""
    shakes = "FGSM(eps=0.1), LinfPGD(eps=0.1, steps=1, draws=1)"
    noisy, quiet = (
        measure(model, DATA.test.take(20), shakes, metrics=["accuracy", "cka"]) for model in (trained, plain())
    )
    found = findings(noisy)
    said = _attack_words(found)
    assert "attacks average over 10 draws of the network’s noise (EOT)" in said
    assert "Not averaged over the noise, and so weak on networks that have it: LinfPGD(steps=1, draws=1)." in said
    assert "eot_draws" not in found.summary["metric"].to_list()
    assert "noise" not in _attack_words(findings(quiet))
    assert "not averaged" not in eot_words({"FGSM": 10}).lower()
    # An attack that only shook exemplars has no accuracy to speak of.
    exemplars = {"job": "network", "family": "attack", "perturbation": "LinfPGD(steps=2)", "level": 0.1, **eot_row(5)}
    assert findings(noisy.vstack(frame([exemplars]))).averaged == found.averaged


# ---- the recipe ------------------------------------------------------------------------------------------------------


def weights_after(recipe, epochs=1):
    model = recipe.prepare(initialised(lambda: SmallCNN(4, DATA.mean, DATA.std, 2), 0))
    history = fit(model, DATA, recipe, Training(epochs=epochs, batch_size=64))
    return history, model.state_dict()


def test_without_strength_the_recipe_is_the_other_one():
    model = initialised(lambda: SmallCNN(4, DATA.mean, DATA.std, 2), 0)
    history = fit(model, DATA, Standard(), Training(epochs=1, batch_size=64))
    found, weights = weights_after(Stochastic(std=0.0))
    assert found == history
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_training_with_noise_repeats_and_leaves_the_global_state():
    """Also the validation accuracy, which decides which epoch is kept."""
    before = torch.random.get_rng_state()
    first, second = (weights_after(Stochastic(std=1.0), epochs=2) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[0] != weights_after(Stochastic(std=0.9), epochs=2)[0]


class OwnStream(nn.Module):
    """A mutant: noise from a generator that no seed reaches."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)


def interrupted_it_ends_the_same(make, folder):
    """Stopped in the second epoch, which begins anew from the state after the first, by a process with other draws."""

    def trained(model, **more):
        return fit(model, DATA, Standard(), Training(epochs=2, batch_size=64), **more), model.state_dict()

    def stop(done, steps):
        if done == steps - 1:
            raise KeyboardInterrupt

    history, weights = trained(make())
    with pytest.raises(KeyboardInterrupt):
        trained(make(), checkpoint=folder / "t.pt", progress=stop)
    with seeded(7, CPU):
        again, resumed = trained(make(), checkpoint=folder / "t.pt")
    assert again == history
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_an_interrupted_stochastic_training_ends_the_same(tmp_path):
    network = initialised(lambda: SmallCNN(4, DATA.mean, DATA.std, 2), 0)
    interrupted_it_ends_the_same(lambda: ResponseNoise("relu1", GaussianResponse(1.0))(network), tmp_path)
    with pytest.raises(AssertionError):
        interrupted_it_ends_the_same(lambda: nn.Sequential(OwnStream(), copy.deepcopy(network)), tmp_path / "mutant")


def test_a_network_without_the_noise_is_not_trained():
    recipe = Stochastic(std=0.5)
    for model in (plain(), Stochastic(std=0.4).prepare(plain())):
        with pytest.raises(GeophoneError, match=r"train recipe.prepare\(model\)"):
            fit(model, DATA, recipe, Training(epochs=1))


def test_adversarial_training_of_a_stochastic_network_has_one_draw_a_step():
    recipe = Stochastic(recipe="Adversarial(eps=0.1, steps=2)")
    assert recipe.threat == Adversarial(eps=0.1, steps=2).threat
    counted = Counted(recipe.prepare(plain()))
    counted.register_forward_hook(lambda *_: None)
    recipe.loss(counted, X, torch.arange(12) % 4, draws(0, index=torch.arange(12))).backward()
    assert counted.passes == 2


def test_a_job_puts_the_noise_in_and_its_folder_has_it(tmp_path):
    code = "Stochastic(layer='relu2', std=0.7, recipe='NoiseAugmented(std=0.2)')"
    job = Job(
        dataset="synthetic(classes=3, size=12, train=96, val=24, test=30)",
        model="small_cnn(width=2)",
        recipe=code,
        seed=0,
        training=Training(epochs=1, batch_size=32),
        perturbations=("FGSM(eps=0.1)",),
        metrics=("accuracy",),
    ).resolved()
    rows = read(run_job(job, tmp_path))
    assert rows["recipe"].unique().to_list() == [code]
    assert rows["model"].unique().to_list() == ["small_cnn(width=2)"]
    assert rows.filter(pl.col("metric") == "eot_draws")["value"].to_list() == [10.0]
    assert rows.filter(pl.col("metric") == "check.noise_is_on")["value"].to_list() == [0.0]
    card = json.loads((job.folder(tmp_path) / "network.json").read_text())
    assert card["model"] == "stochastic"
    assert card["arguments"]["of"] == "small_cnn(width=2)"
    model = load_model(job.folder(tmp_path))
    assert isinstance(model, SmallCNN)
    assert model.relu2.noise == GaussianResponse(0.7)
    saved = load_file(job.folder(tmp_path) / "model.safetensors")
    assert saved.keys() == SmallCNN(3, (0.5,), (0.5,), 2).state_dict().keys()


def test_noise_on_noise_and_the_registered_network():
    recipe = Stochastic(layer="relu2", recipe="Stochastic(layer='relu1', noise='neuronal')")
    assert list(noisy_layers(recipe.prepare(plain()))) == ["relu1", "relu2"]
    made = MODELS.build(recipe.network("small_cnn(width=4)"), classes=4, mean=(0.5,), std=(0.25,))
    assert {name: part.noise for name, part in noisy_layers(made).items()} == {
        "relu1": PoissonLike(),
        "relu2": GaussianResponse(0.5),
    }
    assert RECIPES.build(describe(recipe)) == recipe
    same = initialised(lambda: stochastic(4, (0.5,), (0.25,), of="small_cnn(width=4)"), 0).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in plain().state_dict().items())
