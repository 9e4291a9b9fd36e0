"""Recording must give what a layer answered, whatever the network does afterwards."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.core.types import unwrapped
from geophone.data import Split
from geophone.models import ResNet20, SmallCNN
from geophone.models.tap import flatten, layers_of, record, spatial_mean, tap, token_mean
from geophone.train import initialised


def images(n=6, channels=1, size=12, seed=0):
    return torch.rand(n, channels, size, size, generator=stream("images", n, channels, size, seed))


def conv_net(inplace):
    def make():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(400, 3)
        )

    return initialised(make, 0).eval()


@pytest.mark.parametrize("reduce", [spatial_mean, flatten], ids=lambda f: f.__name__)
def test_in_place_relu_does_not_change_what_was_recorded(reduce):
    """One reference's BatchNorm rows were silently those of the ReLU after it."""
    model, x = conv_net(inplace=True), images()
    with torch.no_grad(), tap(model, ["1", "2"], reduce) as seen:
        model(x)
        norm = model[1](model[0](x))
    assert torch.equal(seen["1"], reduce(norm))
    assert torch.equal(seen["2"], reduce(norm.relu()))
    assert bool((seen["1"] < 0).any())


def test_a_hook_that_keeps_a_view_is_the_mutant():
    """The same network, recorded as the reference did it: the BatchNorm rows are the ReLU's."""
    model, x, kept = conv_net(inplace=True), images(), {}
    handle = model[1].register_forward_hook(lambda _m, _i, out: kept.update(norm=out))
    with torch.no_grad():
        model(x)
    handle.remove()
    assert not bool((kept["norm"] < 0).any())


def test_identity_reduction_is_copied():
    """A response that is already [n, d] is not a view of the network's tensor."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    with torch.no_grad(), tap(model, ["1", "2"]) as seen:
        model(images())
    assert bool((seen["1"] < 0).any())
    assert torch.equal(seen["1"].relu(), seen["2"])


class Functional(nn.Module):
    """Functional ReLUs inside a child, and a module that runs twice."""

    class Child(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x):
            return functional.relu(self.conv(x))

    def __init__(self):
        super().__init__()
        self.child = self.Child()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.child(x)
        x = self.mix(self.mix(x))
        return self.head(x.mean((2, 3)))


def test_functional_relu_is_recorded_at_its_parent():
    model, x = Functional().eval(), images()
    with torch.no_grad(), tap(model, ["child", "child.conv"], flatten) as seen:
        model(x)
    assert list(seen) == ["child.conv", "child"]
    assert torch.equal(seen["child"], seen["child.conv"].relu())
    assert bool((seen["child.conv"] < 0).any())


def test_a_module_called_twice_has_two_names():
    model, x = Functional().eval(), images()
    with torch.no_grad(), tap(model, ["mix"], flatten) as seen:
        model(x)
        first = model.mix(model.child(x)).clone()
    assert list(seen) == ["mix", "mix#2", "mix#3"]  # the third call is ours, after the pass
    assert torch.equal(seen["mix"], first.flatten(1))
    assert not torch.equal(seen["mix"], seen["mix#2"])
    with torch.no_grad(), tap(model, ["mix"]) as seen:
        model(x)
        model(x)
    assert list(seen) == ["mix", "mix#2"]  # every pass starts anew


def test_defaults_are_activations_and_blocks_in_order_without_doubles():
    """ResNet20 has 19 ReLUs; every block's output is that of its last ReLU, so it is not recorded again."""
    model = initialised(lambda: ResNet20(10, (0.5,), (0.5,)), 0).eval()
    with torch.no_grad(), tap(model) as seen:
        model(images(2, 1, 16))
    assert list(seen)[:3] == ["relu1", "layer1.0.relu1", "layer1.0.relu2"]
    assert len(seen) == 19
    assert all(name.split(".")[-1].startswith("relu") for name in seen)
    with torch.no_grad(), tap(model, ["layer1.0", "layer1.0.relu2"]) as seen:
        model(images(2, 1, 16))
    assert list(seen) == ["layer1.0.relu2", "layer1.0"]  # named, so both are there
    assert torch.equal(seen["layer1.0"], seen["layer1.0.relu2"])


def test_block_outputs_that_are_their_own_are_recorded():
    """A block that adds after its activation: its output is a residual sum of its own."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.act = nn.GELU()

        def forward(self, x):
            return x + self.act(self.conv(x))

    model = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad(), tap(model) as seen:
        model(images())
    assert list(seen) == ["0.act", "0", "1.act", "1"]
    assert layers_of(model) == ["0", "0.act", "1", "1.act"]


def test_without_activation_modules():
    """Blocks of the user's own, whose output comes after their functional ReLU; else weighted layers but the last."""
    assert layers_of(Functional()) == ["child"]
    assert layers_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 5), nn.Linear(5, 2))) == ["0", "2"]


def test_the_logits_are_no_layer():
    """A network wrapped for its normalisation, as timm's are: the inner network's output is not recorded."""
    model = nn.Sequential(nn.Identity(), Functional())
    with torch.no_grad(), tap(model) as seen:
        model(images())
    assert list(seen) == ["1.child"]
    assert "1" in layers_of(model)
    with torch.no_grad(), tap(model, ["1"]) as seen:
        model(images())
    assert list(seen) == ["1"]  # named, so it is there


def test_patterns_and_unknown_names():
    model = ResNet20(10, (0.5,), (0.5,))
    assert layers_of(model, ["layer*.relu2"]) == [f"layer{i}.{j}.relu2" for i in (1, 2, 3) for j in range(3)]
    with pytest.raises(GeophoneError, match=r"unknown layer 'layer1.0.rleu1'. Did you mean 'layer1.0.relu1'"):
        layers_of(model, ["layer1.0.rleu1"])


def test_a_layer_that_never_runs_is_an_error():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(144, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x.flatten(1))

    split = Split((images() * 255).to(torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with pytest.raises(GeophoneError, match="'unused' never ran"):
        list(record(Skips(), split.batches(4), ["unused"]))


def test_record_streams_batches_with_labels_and_logits():
    model = initialised(lambda: SmallCNN(3, (0.5,), (0.5,)), 0).eval()
    split = Split((images(10) * 255).to(torch.uint8), torch.arange(10) % 3, torch.arange(10) + 40)
    got = list(record(model, split.batches(4), ["relu*"]))
    assert [len(batch["logits"]) for batch in got] == [4, 4, 2]
    assert list(got[0]) == [f"relu{i}" for i in range(1, 7)] + ["logits"]
    assert torch.equal(torch.cat([batch["relu3"].index for batch in got]), split.index)
    assert got[0]["relu6"].x.shape == (4, 32)
    assert not got[0]["relu6"].x.requires_grad


def test_hooks_are_removed_even_after_an_error():
    model = conv_net(inplace=False)
    with pytest.raises(RuntimeError, match="boom"), tap(model):
        raise RuntimeError("boom")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_pass_when_asked():
    model, x = conv_net(inplace=True), images()
    with tap(model, ["2"], detach=False) as seen:
        model(x)
    seen["2"].sum().backward()
    assert model[0].weight.grad is not None
    with tap(model, ["2"]) as seen:
        model(x)
    assert not seen["2"].requires_grad


def test_compiled_and_wrapped_networks_are_tapped_inside():
    """A compiled network ignores later hooks, so the module inside it is run."""
    model = conv_net(inplace=True)
    compiled = torch.compile(model, backend="eager")
    split = Split((images() * 255).to(torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with torch.no_grad():
        compiled(images())
    for wrapped in (compiled, nn.DataParallel(model)):
        assert list(next(record(wrapped, split.batches(6), ["2"]))) == ["2", "logits"]
    assert unwrapped(compiled) is model
    with pytest.raises(GeophoneError, match="needs a torch.nn.Module"):
        unwrapped(lambda x: x)


def test_reductions():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert spatial_mean(x).tolist() == [[5.5, 17.5]]
    assert token_mean(x).tolist() == [[10.0, 11.0, 12.0, 13.0]]
    assert flatten(x).shape == (1, 24)
    assert spatial_mean(x[:, :, 0, 0]) is not None
    assert token_mean(x[0, :, :, 0]).shape == (2, 3)


def test_a_network_without_logits_is_refused():
    split = Split((images() * 255).to(torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with pytest.raises(GeophoneError, match=r"must give logits \[n, k\]"):
        list(record(nn.Conv2d(1, 2, 3), split.batches(4), []))
    for fussy in (nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), nn.Sequential(nn.Flatten(), nn.BatchNorm2d(1))):
        with pytest.raises(GeophoneError, match="cannot take images of shape"):
            list(record(fussy, split.batches(4), []))


def test_nan_weights_are_named():
    model = conv_net(inplace=True)
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    split = Split((images() * 255).to(torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with pytest.raises(GeophoneError, match=r"its weight '4.weight' has NaN"):
        list(record(model, split.batches(4)))
