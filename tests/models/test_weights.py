"""What a weights file or a model's file may hold: the right network, or one sentence."""

import argparse
import math
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from geophone.core import registry
from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS, MODELS, PERTURBATIONS, RECIPES, parse_call
from geophone.core.rng import stream
from geophone.data import as_split
from geophone.diagnosis import attack, scan
from geophone.models import load_model
from geophone.models.run import first_bad_weight, logits_of
from geophone.models.tap import layers_of, record

MAKER = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(3, 2)
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    def forward(self, x):
        return self.head(self.relu(self.norm(self.conv(x))).mean((2, 3)))
make = Net
ready = Net()
"""


@pytest.fixture
def made(tmp_path):
    """The factory, and a sound state of its network."""
    (tmp_path / "net.py").write_text(MAKER)
    factory = f"{tmp_path / 'net.py'}:make"
    return tmp_path, factory, {key: value.clone() for key, value in load_model(factory).state_dict().items()}


def _nested(value):
    with warnings.catch_warnings(action="ignore"):  # of a prototype
        return torch.nested.nested_tensor([value[0], value[1]])


def _loads(folder, factory, content, state):
    torch.save(content, folder / "w.pt")
    own = load_model(folder / "w.pt", factory).state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


def test_layouts_of_checkpoints(made):
    folder, factory, state = made
    for name in ("net", "model_state", "ema", "module", "generator"):
        assert _loads(folder, factory, {name: state, "epoch": 3}, state)
    other = {key: value + 1 for key, value in state.items()}
    assert _loads(folder, factory, {"ema": other, "model": state}, state)
    assert _loads(
        folder, factory, {"state": {"model": state}, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, state
    )
    assert _loads(folder, factory, {f"module.backbone.{key}": value for key, value in state.items()}, state)
    with pytest.raises(GeophoneError, match="several dictionaries of tensors: 'a', 'b'"):
        _loads(folder, factory, {"a": state, "b": other}, state)


def test_values_that_are_kept(made):
    """Rounding to the network's float type, the mask's infinity, a count that is missing."""
    folder, factory, state = made
    assert _loads(folder, factory, {key: value.double() for key, value in state.items()}, state)
    less = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert _loads(folder, factory, less, less)
    assert state["mask"][1] == -math.inf
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(halves, folder / "h.pt")
    assert torch.equal(load_model(folder / "h.pt", factory).conv.weight, halves["conv.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.mul(100).to(torch.int64), "int64 where the network has float32"),
        (lambda w: w.mul(100).to(torch.int8), "int8 where the network has float32"),
        (lambda w: w.to(torch.float8_e4m3fn), "float8_e4m3fn where the network has float32"),
        (lambda w: w.to(torch.complex64), "complex64 where the network has float32"),
        (lambda w: w.to_sparse(), "is sparse, nested or quantised"),
        (lambda w: w.to("meta"), r"without numbers \(meta\)"),
        (lambda w: torch.full_like(w, 1e300, dtype=torch.float64), "can't hold its values"),
        (lambda w: torch.full_like(w, -math.inf), "NaN or infinite"),
        (lambda w: torch.zeros(1).expand(1 << 40), "missing or has another shape"),
        (lambda w: _nested(w), "missing or has another shape"),
    ],
)
def test_values_that_would_change_are_refused(made, change, message):
    folder, factory, state = made
    state["conv.weight"] = change(state["conv.weight"])
    with pytest.raises(GeophoneError, match=f"'conv.weight' .*{message}"):
        _loads(folder, factory, state, {})


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_statistics_are_no_masks(made, value):
    folder, factory, state = made
    state["norm.running_mean"].fill_(value)
    with pytest.raises(GeophoneError, match="'norm.running_mean' has NaN or infinite"):
        _loads(folder, factory, state, {})


def test_names_that_are_no_text(made):
    folder, factory, state = made
    with pytest.raises(GeophoneError, match="no state dict of tensors"):
        _loads(folder, factory, {7: state["conv.weight"], None: state["conv.bias"]}, {})


@pytest.mark.parametrize(
    "thing", [np.float64(0.5), argparse.Namespace(lr=1), nn.Linear(2, 2)], ids=lambda t: type(t).__name__
)
def test_objects_beside_the_weights(made, thing):
    folder, factory, state = made
    with pytest.raises(GeophoneError, match="never unpickled here.*weights_only=False"):
        _loads(folder, factory, {"state_dict": state, "extra": thing}, {})


def test_a_flipped_bit_is_found(made):
    folder, factory, state = made
    path = folder / "w.pt"
    torch.save(state, path)
    with zipfile.ZipFile(path) as file:
        place = max(file.infolist(), key=lambda part: part.file_size).header_offset + 128
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(GeophoneError, match=r"w\.pt is damaged"):
        load_model(path, factory)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(3)", "it ends the process"),
        ("def make(): raise SystemExit", "it ends the process"),
        ("def make(): return dict", "returned the class dict"),
        ("def make(): return make()", "RecursionError"),
        ("def __getattr__(name): raise ValueError(name)", "make failed: ValueError"),
        ("from torch import nn\nclass make(nn.Module):\n    def __init__(self): pass", "make failed: AttributeError"),
        ("def make(): raise RuntimeError('one\\ntwo')", "RuntimeError: one$"),
    ],
)
def test_a_file_that_fails(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(GeophoneError, match=message):
        load_model(f"{tmp_path / 'mine.py'}:make")


def test_files_with_odd_names(tmp_path):
    (tmp_path / "random.py").write_text(MAKER)
    assert load_model(f"{tmp_path / 'random.py'}:ready").training is False
    assert hasattr(__import__("random"), "shuffle")
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    for source in ("a" * 300, "a\0b", f"{'a' * 300}.py:make", f"{tmp_path}/loop.py:make", "a" * 5000):
        with pytest.raises(GeophoneError, match=r"no model (file )?at"):
            load_model(source)


def test_networks_without_numbers(made):
    folder, _, state = made
    torch.save(state, folder / "w.pt")
    for code in ("make = nn.LazyLinear(2)", "with torch.device('meta'): make = nn.Linear(2, 2)"):
        (folder / "odd.py").write_text(f"import torch\nfrom torch import nn\n{code}")
        with pytest.raises(GeophoneError, match="has no numbers to replace"):
            load_model(folder / "w.pt", f"{folder / 'odd.py'}:make")
        del registry._loaded[(folder / "odd.py").resolve()]


class _Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.head, self.answer = nn.Linear(4, 3), answer

    def forward(self, x):
        return self.answer(self.head(x.flatten(1)))


@pytest.mark.parametrize("answer", [lambda y: (y, y), lambda y: {"logits": y}, lambda y: argparse.Namespace(logits=y)])
def test_one_rule_for_outputs(answer):
    """Whatever the verb: logits alone, or a sentence that says what to do."""
    model = _Answers(answer).eval()
    x, y = torch.rand(8, 1, 2, 2, generator=stream("outputs")), torch.arange(8) % 3
    for verb in (
        lambda: scan(model, (x, y), "GaussianNoise(std=0.1)", curves=""),
        lambda: attack(model, (x, y), "LinfPGD(steps=1)"),
        lambda: logits_of(model, x),
    ):
        with pytest.raises(GeophoneError, match=r"forward returns the logits alone"):
            verb()


def test_torchscript_can_be_attacked_and_not_recorded():
    with warnings.catch_warnings(action="ignore"):  # deprecated, and what users still have
        scripted = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), torch.rand(2, 1, 2, 2))
    x, y = torch.rand(8, 1, 2, 2, generator=stream("script")), torch.arange(8) % 3
    assert len(attack(scripted, (x, y), "LinfPGD(steps=1)").frame()) >= 8
    for verb in (lambda: layers_of(scripted), lambda: next(record(scripted, as_split((x, y)).batches(8)))):
        with pytest.raises(GeophoneError, match="TorchScript"):
            verb()


def test_a_mask_is_not_blamed():
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([-math.inf]))
    assert first_bad_weight(net) is None
    net.register_buffer("mean", torch.tensor([math.inf]))
    assert first_bad_weight(net) == "mean"


@pytest.mark.parametrize(
    "value",
    [
        *("'a'*1000000000", "1000000000*[0]"),
        *("'a'*10**9", "10**9*'a'", "[0]*10**9", "9**9**9", "10**400", "1e999", "1e308*10"),
        *("'a'*2", "True*2", "1j", "b'a'", "{1}"),
        "...",
        *("-" * 900 + "1", "(" * 300 + "1" + ")" * 300, "9" * 900, "9" * 5000, "'" + "a" * 2000 + "'"),
    ],
    ids=lambda v: v[:12],
)  # fmt: skip
def test_literals_stay_small(value):
    with pytest.raises(GeophoneError, match="cannot read the thing") as caught:
        parse_call(f"X(a={value})", "thing")
    assert len(str(caught.value)) < 500


def test_arguments_are_of_the_types_that_signatures_name():
    more = {"models": {"classes": 3, "mean": (0.5,), "std": (0.5,)}}
    for things, text in (
        (PERTURBATIONS, "LinfPGD(loss=3)"),
        (PERTURBATIONS, "LinfPGD(eps=[0.1])"),
        (RECIPES, "SelectivityRegularised(alpha='a')"),
        (RECIPES, "SelectivityRegularised(granularity={'a': 1})"),
        (MODELS, "small_cnn(width='a')"),
        (MODELS, "small_cnn(width=0)"),
        (MODELS, "small_cnn(width=1000000000)"),
        (MODELS, "vone_cnn(noise_std=None)"),
        (DATASETS, "synthetic(classes=(1,))"),
        (DATASETS, "synthetic(noise='a')"),
    ):
        with pytest.raises(GeophoneError) as caught:
            things.build(text, **more.get(things.plural, {}))
        assert len(str(caught.value)) < 500
    assert PERTURBATIONS.build("LinfPGD(steps=20.0)") == PERTURBATIONS.build("LinfPGD(steps=20)")
