"""The training loop: deterministic, resumable, honest about its checkpoint."""

from importlib import import_module

import pytest
import torch
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.data import synthetic
from geophone.models import SmallCNN
from geophone.train import NoiseAugmented, Standard, Training, fit, initialised

SHORT = Training(epochs=3, batch_size=32, lr=0.05)


def data():
    return synthetic(classes=3, train=160, val=40, test=40, size=12)


def make(seed=0):
    return initialised(lambda: SmallCNN(3, (0.5,), (0.25,), width=4), seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def test_it_learns_and_repeats_to_the_bit():
    first, second = make(), make()
    history = fit(first, data(), NoiseAugmented(0.1), SHORT, seed=1)
    assert fit(second, data(), NoiseAugmented(0.1), SHORT, seed=1) == history
    assert torch.equal(weights(first), weights(second))
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    other = make()
    fit(other, data(), NoiseAugmented(0.1), SHORT, seed=2)
    assert not torch.equal(weights(first), weights(other))
    assert not first.training


class Stop(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 5, 7, 10])
def test_an_interrupted_training_ends_the_same(tmp_path, steps):
    """5 steps an epoch: stopped in the first epoch, at its end, in the second, at its end."""
    whole = make()
    history = fit(whole, data(), Standard(), SHORT, seed=3)

    def stop(done, _):
        if done == steps:
            raise Stop

    with pytest.raises(Stop):
        fit(make(), data(), Standard(), SHORT, seed=3, checkpoint=tmp_path / "t.pt", progress=stop)
    resumed = make(seed=99)  # what it begins with does not matter once there is a state
    if steps <= 5:
        resumed = make()
    assert fit(resumed, data(), Standard(), SHORT, seed=3, checkpoint=tmp_path / "t.pt") == history
    assert torch.equal(weights(whole), weights(resumed))


def test_the_best_epoch_on_validation_is_kept(monkeypatch):
    """With a scripted validation accuracy, the network of the first best epoch comes back."""
    loop = import_module("geophone.train.loop")
    seen, script = [], iter([0.5, 0.9, 0.9])

    def accuracy(model, *_):
        seen.append(weights(model).clone())
        return next(script)

    monkeypatch.setattr(loop, "_accuracy", accuracy)
    model = make()
    fit(model, data(), Standard(), SHORT, seed=4)
    assert torch.equal(weights(model), seen[1])
    assert not torch.equal(weights(model), seen[2])


def test_without_validation_images_the_last_epoch_is_kept():
    whole = data()
    none = type(whole)(whole.name, whole.classes, whole.train, whole.val.rows(torch.arange(0)), whole.test)
    model = make()
    history = fit(model, none, Standard(), SHORT, seed=5)
    assert [record["accuracy"] for record in history] == [0, 0, 0]


def test_global_switches_are_restored():
    before = torch.random.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    fit(make(), data(), Standard(), Training(epochs=1, batch_size=32), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.are_deterministic_algorithms_enabled() == before[1]


def test_schedule():
    """Linear rise, then a half cosine to 0; or a tenth at each milestone."""
    plain = Training(epochs=10, lr=0.1, warmup=0.1)
    rates = [plain.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 11)
    assert max(rates) == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert rates[99] < 1e-4
    steps = Training(epochs=200, lr=0.1, warmup=0.0, milestones=(100, 150))
    assert [steps.rate(s, 200) for s in (0, 99, 100, 150, 199)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])


def test_errors(tmp_path):
    with pytest.raises(GeophoneError, match="fewer than one batch of 512"):
        fit(make(), data(), Standard(), Training(batch_size=512))
    with pytest.raises(GeophoneError, match=r"diverged in epoch 1.*Lower the learning rate"):
        fit(make(), data(), Standard(), Training(epochs=1, batch_size=32, lr=1e20, warmup=0.0))
    (tmp_path / "broken.pt").write_bytes(b"half a file")
    with pytest.raises(GeophoneError, match=r"broken\.pt is corrupt"):
        fit(make(), data(), Standard(), SHORT, checkpoint=tmp_path / "broken.pt")
    fit(make(), data(), Standard(), SHORT, seed=1, checkpoint=tmp_path / "t.pt")
    with pytest.raises(GeophoneError, match="state of another training"):
        fit(make(), data(), Standard(), SHORT, seed=2, checkpoint=tmp_path / "t.pt")


def test_dropout_is_deterministic_and_resumes(tmp_path):
    """Layers that draw from the global random state have one of their own in each epoch."""

    def network():
        return initialised(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)), 0)

    history = fit(network(), data(), Standard(), SHORT, seed=3)
    torch.rand(7)
    assert fit(network(), data(), Standard(), SHORT, seed=3) == history

    def stop(done, _):
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        fit(network(), data(), Standard(), SHORT, seed=3, checkpoint=tmp_path / "t.pt", progress=stop)
    assert fit(network(), data(), Standard(), SHORT, seed=3, checkpoint=tmp_path / "t.pt") == history


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"warmup": 1.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(GeophoneError, match=f"Training\\({next(iter(wrong))}="):
        Training(**wrong)


def test_without_momentum():
    assert len(fit(make(), data(), Standard(), Training(epochs=1, batch_size=32, momentum=0.0))) == 1
