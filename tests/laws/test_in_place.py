"""The same tensor object is not the same value: a network written in place is measured as the one written without."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geophone.data import synthetic
from geophone.models import run
from geophone.models.tap import flatten, record, tap
from geophone.perturb.attacks.fold import folded
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.gradients import input_gradients
from geophone.probes.layer_maps import similarity
from geophone.probes.layers import measure
from geophone.train import initialised
from geophone.train.recipes import SelectivityRegularised


class ConvBN(nn.Module):
    """A unit as many networks have it: its output goes into an activation outside."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out)

    def forward(self, x):
        return self.norm(self.conv(x))


class Net(nn.Module):
    """Two units of the user's own and a head; `body` says what happens in between, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace
        self.first, self.second, self.head = ConvBN(1, 4), ConvBN(4, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class ActivationsOutside(Net):
    def body(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


class ResidualSum(Net):
    def body(self, x):
        shortcut = self.relu(self.first(x))
        y = self.second(shortcut)
        if self.inplace:
            y += shortcut
        else:
            y = y + shortcut
        return self.relu(y)


class ResidualBlock(Net):
    """The block's output is that of a unit inside it, to which the shortcut was added."""

    class Block(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.unit, self.inplace = ConvBN(4, 4), inplace

        def forward(self, x):
            y = self.unit(x)
            return y.add_(x) if self.inplace else y + x

    def __init__(self, inplace):
        super().__init__(inplace)
        self.second = nn.Sequential(self.Block(inplace), nn.Dropout(0.5, inplace=inplace), self.Block(inplace))

    def body(self, x):
        return self.second(self.relu(self.first(x)))


class Functions(Net):
    def body(self, x):
        x = self.first(x)
        x = F.relu_(x) if self.inplace else F.relu(x)
        return F.hardtanh_(self.second(x)) if self.inplace else F.hardtanh(self.second(x))


class FunctionsInside(Net):
    """A block whose output is that of a unit inside it, under a function."""

    class Block(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.unit, self.inplace = ConvBN(4, 4), inplace

        def forward(self, x):
            y = self.unit(x)
            return F.leaky_relu_(y, 0.2) if self.inplace else F.leaky_relu(y, 0.2)

    def __init__(self, inplace):
        super().__init__(inplace)
        self.second = self.Block(inplace)

    def body(self, x):
        return self.second(self.relu(self.first(x)))


class Twice(Net):
    """One activation module, twice in a row and again."""

    def __init__(self, inplace):
        super().__init__(inplace)
        self.relu = nn.Hardtanh(inplace=inplace)

    def body(self, x):
        return self.relu(self.second(self.relu(self.relu(self.first(x)))))


class ViewsAndNothing(Net):
    """Modules that hand on what they are given, views, and writing through a view."""

    def __init__(self, inplace):
        super().__init__(inplace)
        self.same = nn.Sequential(nn.Identity(), nn.Dropout(inplace=inplace))
        self.keep = nn.Parameter(torch.tensor([True, False, True, True])[:, None, None], requires_grad=False)

    def body(self, x):
        x = self.same(self.first(x))
        if self.inplace:
            x.flatten(2)[:, 1] = 0
        else:
            x = torch.where(self.keep, x, 0)
        return self.second(self.same(self.relu(x)))


class Scaled(Net):
    def body(self, x):
        x, gate = self.first(x), torch.tensor(0.5)
        x = x.mul_(gate) if self.inplace else x * gate
        y = self.second(self.relu(x))
        return torch.clamp(y, min=0.1, out=y) if self.inplace and not y.requires_grad else y.clamp(min=0.1)


class NormAfterActivation(Net):
    """BatchNorm takes the very tensor that the convolution gave, after something was written to it: no fold."""

    class Unit(ConvBN):
        def forward(self, x):
            y = self.conv(x)
            return self.norm(F.relu_(y) if self.inplace else F.relu(y))

    def __init__(self, inplace):
        super().__init__(inplace)
        self.second = self.Unit(4, 4)
        self.second.inplace = inplace

    def body(self, x):
        return self.second(self.relu(self.first(x)))


class LogitsInPlace(Net):
    """The network's output is a unit's, to which something was added: the unit's output is a layer, the logits none."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x.mean((2, 3)))

    def __init__(self, inplace):
        super().__init__(inplace)
        self.second = self.Head()

    def forward(self, x):
        y = self.second(self.relu(self.first(x)))
        return y.sub_(0.5) if self.inplace else y - 0.5


def plain(inplace):
    """torch's own modules only; not ELU, whose gradient torch rounds otherwise where it is in place."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(inplace), nn.Conv2d(4, 4, 3), nn.LeakyReLU(inplace=inplace)),
        *(nn.Dropout(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


FAMILY = (
    *(ActivationsOutside, ResidualSum, ResidualBlock, Functions, FunctionsInside, Twice, ViewsAndNothing, Scaled),
    *(NormAfterActivation, LogitsInPlace, plain),
)


@pytest.fixture(scope="module")
def split():
    return synthetic(classes=3, train=10, val=10, test=24, size=8).test


def pair(make):
    """The network twice, with the same weights and BatchNorm statistics that are not those of the start."""
    nets = [initialised(lambda inplace=inplace: make(inplace), 0).eval() for inplace in (False, True)]
    for net in nets:
        for i, module in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            module.running_mean += 0.05 * i
            module.running_var *= 1.5
    return nets


def recorded(net, split):
    return [
        {name: responses.x.clone() for name, responses in batch.items()}
        for batch in record(net, split.batches(10), reduce=flatten)
    ]


def measurements(net, split):
    """All five tables of a network."""
    yield measure(net, split, "GaussianNoise(std=0.1), FGSM(eps=0.1)", batch_size=10)
    yield similarity(net, None, split, ["cka_minibatch", "cka"], batch_size=8, points=12).table
    yield input_gradients(net, split, batch_size=10)
    yield exemplar_manifolds(net, split, "GaussianNoise(std=0.1)", exemplars=3, copies=5, n_t=10, n_reps=1)


def alike(make, split):
    """The law: the same layers, and the same numbers to the bit."""
    ours, theirs = pair(make)
    for a, b in zip(recorded(ours, split), recorded(theirs, split), strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", FAMILY, ids=lambda f: f.__name__)
def test_in_place_networks_have_the_layers_and_rows_of_their_twins(make, split):
    alike(make, split)
    for a, b in zip(*(measurements(net, split) for net in pair(make)), strict=True):
        assert a.equals(b)


@pytest.mark.parametrize("make", FAMILY, ids=lambda f: f.__name__)
def test_in_inference_mode_too(make, split):
    """Tensors made there have no count of what is written to them."""
    wanted = recorded(pair(make)[1], split)
    with torch.inference_mode():
        found = recorded(pair(make)[1], split)
        alike(make, split)
    for a, b in zip(wanted, found, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_recorded_is_what_ran(split):
    """Every activation of units written in place, and what is added to a block's output."""
    with torch.no_grad(), tap(pair(ActivationsOutside)[1]) as seen:
        pair(ActivationsOutside)[1](split.x[:2].float())
    assert list(seen) == []  # of another network
    for make, names in (
        (ActivationsOutside, ["first", "relu", "second", "relu#2"]),
        (ResidualBlock, ["first", "relu", "second.0.unit", "second.0", "second.2.unit", "second.2"]),
        (Twice, ["first", "relu", "relu#2", "second", "relu#3"]),
    ):
        assert list(recorded(pair(make)[1], split)[0])[:-1] == names


def test_the_same_object_for_the_same_value_is_the_mutant(split, monkeypatch):
    monkeypatch.setattr(run.Snapshot, "holds", lambda self, x: x is self._x)
    caught = []
    for make in FAMILY:
        try:
            alike(make, split)
        except AssertionError:
            caught.append(make)
    assert {ActivationsOutside, ResidualBlock, FunctionsInside, Twice, LogitsInPlace} <= set(caught)


def test_batch_norm_is_not_folded_over_what_was_written_to_its_input(split):
    """And what else can be folded still is."""
    x = split.x[:4].float() / 255
    for net in pair(NormAfterActivation):
        twin = folded(net, x)
        assert twin is not net
        assert isinstance(twin.first.norm, nn.Identity)
        assert isinstance(twin.second.norm, nn.BatchNorm2d)


def test_the_regulariser_leaves_out_the_logits_alone(split):
    """Its blocks too are told from the logits by value: not by the object to which something was added."""
    recipe = SelectivityRegularised(alpha=1.0, granularity="blocks")
    x = split.x[:6].float() / 255
    layers = [list(recipe.responses(net, x)[1]) for net in pair(LogitsInPlace)]
    assert layers == [["first", "second"]] * 2


def test_a_snapshot():
    x = torch.zeros(2)
    seen = run.Snapshot(x)
    assert seen.holds(x)
    assert not seen.holds(torch.zeros(2))
    x.view(1, 2).add_(0)  # through a view, and even if nothing changes: another response
    assert not seen.holds(x)
    with torch.inference_mode():
        x = torch.zeros(2)
        seen = run.Snapshot(x)
        assert seen.holds(x)
        x.add_(1)
        assert not seen.holds(x)
