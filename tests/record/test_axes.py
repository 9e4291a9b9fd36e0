"""Rows of a response are the images, whatever the batch; and a reduction averages the axes that it is meant for."""

import pytest
import torch
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.data import synthetic
from geophone.diagnosis import compare_networks, scan
from geophone.models import SmallCNN, resnet20
from geophone.models.tap import axes_of, flatten, positions, record, spatial_mean, tap, token_mean
from geophone.probes import LayerMap
from geophone.probes.checks import LayerAxes, checks
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.gradients import input_gradients
from geophone.probes.layer_maps import similarity
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.probes.probe import measured
from geophone.train import initialised


@pytest.fixture(scope="module")
def split():
    return synthetic(classes=3, train=10, val=10, test=24, size=8).test


class Tokens(nn.Module):
    """Rows of an image are its tokens; the axes between modules are moved as `order` says."""

    def __init__(self, order=(0, 1, 2), tokens=8):
        super().__init__()
        self.order, self.tokens = order, tokens
        self.embed, self.act, self.head = nn.Linear(64 // tokens, 6), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x.reshape(len(x), self.tokens, -1)).permute(self.order)
        x = self.act(x).permute([self.order.index(i) for i in range(3)])
        return self.head(x.mean(1))


class SequenceFirst(Tokens):
    """`[t, n, d]`, as torch's transformers and recurrent layers have it by default."""

    def __init__(self, tokens=8):
        super().__init__((1, 0, 2), tokens)


class Windows(nn.Module):
    """`[n · windows, d]`, as Swin's attention has it."""

    def __init__(self):
        super().__init__()
        self.embed, self.act, self.head = nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.act(self.embed(x.reshape(-1, 16))).reshape(len(x), 4, 6).mean(1))


class Recurrent(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.lstm, self.head = nn.LSTM(8, 5, batch_first=batch_first), nn.Linear(5, 3)

    def forward(self, x):
        rows = x[:, 0] if self.batch_first else x[:, 0].transpose(0, 1)
        return self.head(self.lstm(rows)[0].mean(1 if self.batch_first else 0))


TAKERS = {
    "record": lambda net, split, layers, size: list(record(net, split.batches(size), layers)),
    "measure": lambda net, split, layers, size: measure(net, split, (), layers, ["cka"], batch_size=size),
    "compare": lambda net, split, layers, size: compare(net, net, split, layers=layers, batch_size=size),
    "similarity": lambda net, split, layers, size: similarity(net, None, split, layers=layers, batch_size=size),
    "input_gradients": lambda net, split, layers, size: input_gradients(net, split, layers, batch_size=size),
    "exemplar_manifolds": lambda net, split, layers, size: exemplar_manifolds(
        net, split, (), layers, exemplars=2, copies=size, n_t=5
    ),
}


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize(
    ("make", "layer"),
    [(SequenceFirst, "act"), (Windows, "act"), (lambda: Recurrent(False), "lstm"), (lambda: SequenceFirst(4), "act")],
    ids=["sequence", "windows", "lstm", "sequence4"],
)
def test_a_layer_whose_rows_are_not_the_images_is_refused(take, make, layer, size, split):
    """Also where there happen to be as many as images in every batch: 24 images in batches of 8 or 4."""
    with pytest.raises(GeophoneError, match=rf"layer '{layer}' gives \[\d+, .* first axis must be the \d images"):
        TAKERS[take](initialised(make, 0), split, [layer], size)


@pytest.mark.parametrize("n", [2, 3])
def test_batches_as_small_as_those_that_are_asked_first(n, split):
    part = split.rows(torch.arange(2 * n))
    for tokens in (2, 4):
        with pytest.raises(GeophoneError, match="first axis"):
            measure(initialised(lambda tokens=tokens: SequenceFirst(tokens), 0), part, (), ["act"], batch_size=n)


def axes_check(model, split, layers=None, reduce=spatial_mean):
    probe = LayerAxes(None if layers is None else tuple(layers), reduce)
    return measured(probe, model, split).row(0, named=True)


def test_one_image_and_single_images_are_enough(split):
    net = initialised(lambda: SmallCNN(3, (0.5,), (0.5,), width=2), 0)
    one = split.rows(torch.tensor([0]))
    assert len(next(record(net.eval(), one.batches(9)))["relu1"]) == 1
    for n in (1, 2, 3):
        assert len(list(record(net, split.rows(torch.arange(6)).batches(n)))) == 6 // n


def test_the_other_orders_are_taken(split):
    for net, layer in ((Tokens(), "act"), (Tokens((0, 2, 1)), "act"), (Recurrent(True), "lstm")):
        assert len(measure(net, split, (), [layer], ["participation_ratio"], batch_size=8)) > 0


def test_a_reduction_that_mixes_images_is_refused(split):
    net = initialised(lambda: SmallCNN(3, (0.5,), (0.5,), width=2), 0).eval()
    for wrong, said in (
        (lambda r: r.flatten(1).T[:100], r"gave \[100, 8\] for 8 images"),
        (lambda r: r.mean(), r"gave \[\]"),
        (lambda r: r.flatten(1)[:5], r"gave \[5, 128\] for 8 images"),
        (lambda r: r.shape, "gave a Size"),
    ):
        with pytest.raises(GeophoneError, match=rf"layer 'relu1': the reduction {said}"):
            list(record(net, split.batches(8), ["relu1"], wrong))


class Gives(nn.Module):
    """A block whose output is packed in some container."""

    class Block(nn.Module):
        def __init__(self, pack):
            super().__init__()
            self.conv, self.act, self.pack = nn.Conv2d(1, 4, 3), nn.ReLU(), pack

        def forward(self, x):
            return self.pack(self.act(self.conv(x)) + 1)

    def __init__(self, pack, unpack):
        super().__init__()
        self.block, self.head, self.unpack = self.Block(pack), nn.Linear(4, 3), unpack

    def forward(self, x):
        return self.head(self.unpack(self.block(x)).mean((2, 3)))


def test_containers(split):
    """A tuple's first part and the one tensor of a mapping are responses; all else is an error where it is named."""
    for pack, unpack, taken in (
        (lambda y: (y, None), lambda out: out[0], True),
        (lambda y: [y], lambda out: out[0], True),
        (lambda y: {"out": y, "aux": None}, lambda out: out["out"], True),
        (lambda y: {"a": y, "b": y}, lambda out: out["a"], False),
        (lambda y: ("no tensor", y), lambda out: out[1], False),
        (lambda y: ((y,),), lambda out: out[0][0], False),
        (lambda y: lambda: y, lambda out: out(), False),
    ):
        net = initialised(lambda pack=pack, unpack=unpack: Gives(pack, unpack), 0).eval()
        names = list(next(record(net, split.batches(8))))
        assert names == ["block.act", *(["block"] if taken else []), "logits"]
        if not taken:
            with pytest.raises(GeophoneError, match="layer 'block' gives a .*, not a tensor. Tap a module inside it"):
                list(record(net, split.batches(8), ["block"]))


def test_tensors_of_other_kinds(split):
    net = initialised(lambda: Gives(lambda y: y.to_sparse(), lambda out: out.to_dense()), 0).eval()
    with pytest.raises(GeophoneError, match="layer 'block' gives a sparse"):
        list(record(net, split.batches(8)))
    spikes = initialised(lambda: Gives(lambda y: y > 1, lambda out: out.float()), 0).eval()
    found = next(record(spikes, split.batches(8), ["block", "block.act"], flatten))
    assert torch.equal(found["block"].x, (found["block.act"].x > 0).double())


class Patches(nn.Module):
    """A small transformer: patches by a convolution, then blocks of the user's own over tokens."""

    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.norm, self.up, self.act, self.down = (
                nn.LayerNorm(d),
                nn.Linear(d, 2 * d),
                nn.GELU(),
                nn.Linear(2 * d, d),
            )

        def forward(self, x):
            return x + self.down(self.act(self.up(self.norm(x))))

    class Embed(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.proj = nn.Conv2d(1, d, 2, 2)

        def forward(self, x):
            return self.proj(x).flatten(2).transpose(1, 2)

    def __init__(self, d=16):
        super().__init__()
        self.embed, self.block, self.head = self.Embed(d), self.Block(d), nn.Linear(d, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


class ConvNeXt(nn.Module):
    """Features last inside a block, channels first outside, and 8 × 8 places."""

    class Block(Patches.Block):
        def __init__(self, d):
            super().__init__(d)
            self.depthwise = nn.Conv2d(d, d, 3, padding=1, groups=d)

        def forward(self, x):
            y = self.depthwise(x).permute(0, 2, 3, 1)
            return x + self.down(self.act(self.up(self.norm(y)))).permute(0, 3, 1, 2)

    def __init__(self, d=6):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(1, d, 1), self.Block(d), nn.Linear(d, 3)

    def forward(self, x):
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Dense(nn.Module):
    """Maps concatenated, with as many channels in the last as places in a row, and squeeze-and-excite."""

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv, self.act = nn.Conv2d(c, 8, 3, padding=1), nn.ReLU()
            self.squeeze, self.gate = nn.Linear(c + 8, c + 8), nn.Sigmoid()

        def forward(self, x):
            y = torch.cat([x, self.act(self.conv(x))], 1)
            return y * self.gate(self.squeeze(y.mean((2, 3))))[:, :, None, None]

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = self.Block(1), self.Block(9), nn.Linear(17, 3)

    def forward(self, x):
        return self.head(self.two(self.one(x)).mean((2, 3)))


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.head = nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x[:, 0]))).mean(2))


KINDS = {
    "transformer": (Patches, {"embed": "features", "block.act": "features", "block": "features"}),
    "as many tokens as features": (lambda: Patches(16), {"embed": "features", "block.act": "features"}),
    "features before tokens": (lambda: Tokens((0, 2, 1)), {"act": "unknown"}),
    "channels last inside": (ConvNeXt, {"block.act": "features", "block": "channels"}),
    "dense": (Dense, {"one.act": "channels", "one.gate": "units", "one": "channels", "two": "channels"}),
    "waves": (Waves, {"act": "channels"}),
    "cnn": (lambda: SmallCNN(3, (0.5,), (0.5,), width=2), {f"relu{i}": "channels" for i in range(1, 7)}),
    "vectors": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)), {"2": "units"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_axes_are_known_by_the_modules_that_made_them(kind, split):
    make, wanted = KINDS[kind]
    net = initialised(make, 0).eval()
    with torch.no_grad():
        found = axes_of(net, split.x[:3].float() / 255)
    assert {name: axes.kind for name, axes in found.items() if name in wanted} == wanted
    assert not any(module._forward_hooks for module in net.modules())
    with torch.no_grad(), tap(net, reduce=flatten) as seen:
        net(split.x[:3].float() / 255)
    assert list(found) == list(seen)


def test_every_residual_layer_is_a_map(split):
    net = initialised(lambda: resnet20(3, (0.5,), (0.5,)), 0).eval()
    assert {axes.kind for axes in axes_of(net, split.x[:2].float() / 255).values()} == {"channels"}


def test_the_check(split):
    """It names the reduction that suits, either way round, and says nothing where all is well."""
    vit, cnn, mixed = (initialised(KINDS[kind][0], 0) for kind in ("transformer", "cnn", "channels last inside"))
    for net, reduce, wrong, other, apart in (
        (vit, spatial_mean, 3, "token_mean", False),
        (vit, positions, 3, "token_mean", False),
        (vit, token_mean, 0, "", False),
        (cnn, spatial_mean, 0, "", False),
        (cnn, token_mean, 6, "spatial_mean", False),
        (mixed, spatial_mean, 1, "token_mean", True),
        (mixed, token_mean, 1, "spatial_mean", True),
        (vit, flatten, 0, "", False),
    ):
        row = axes_check(net, split, None, reduce)
        assert row["metric"] == "check.layer_axes"
        assert row["value"] == float(wrong > 0), row["note"]
        if wrong:
            assert f"in {wrong} of " in row["note"]
            assert f"--reduce {other}" in row["note"]
            assert ("name them alone (--layers)" in row["note"]) == apart
    assert "embed [n, 16, 16], block.act [n, 16, 32]" in axes_check(vit, split)["note"]
    assert axes_check(vit, split, ["head"])["value"] == 0
    rows = measure(vit, split, metrics=["accuracy", "participation_ratio", "dead_fraction"])
    (row,) = [row for row in checks(vit, split, rows) if row["metric"] == "check.layer_axes"]
    assert row["value"] == 1


def test_the_page_says_so(tmp_path, split):
    net = initialised(Patches, 0)
    sides = compare_networks(net, net, split, LayerMap(reduce=spatial_mean), tmp_path / "sides.html")
    found = scan(net, split, "GaussianNoise(std=0.1)", out=tmp_path / "scan.html", curves="")
    for page in (sides.report, found.report):
        assert "Measure these layers with --reduce token_mean" in page.read_text()
    assert any(problem.startswith("Averaged over the wrong axes: in 3 of 3 layers") for problem in found.problems)
