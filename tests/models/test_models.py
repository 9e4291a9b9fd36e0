"""The networks, and loading what users have."""

import json
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from geophone.core.errors import GeophoneError
from geophone.core.registry import MODELS
from geophone.core.rng import stream
from geophone.models import Normalise, ResNet18, ResNet20, SmallCNN, load_model
from geophone.models.load import save_network
from geophone.models.tap import activation_layers, tap
from geophone.studies.similarity import OF_WIDE
from geophone.testing.contracts import broken_contracts
from geophone.train import initialised


@pytest.mark.parametrize("name", list(MODELS))
def test_contract(name):
    assert broken_contracts("models", name) == []


def test_sizes():
    """ResNet20 has 19 ReLUs and 0.27 M weights on CIFAR (He et al. 2016, table 6); ResNet18 has 17 and 11.17 M."""
    rgb = ((0.5,) * 3, (0.25,) * 3)
    twenty, eighteen = ResNet20(10, *rgb), ResNet18(10, *rgb)
    assert len(activation_layers(twenty)) == 19
    assert len(activation_layers(eighteen)) == 17
    # 1 × 1 projections at the two halvings add 2,752 weights to the paper's parameter-free shortcuts.
    assert sum(p.numel() for p in twenty.parameters()) == 272_474
    assert sum(p.numel() for p in eighteen.parameters()) == 11_173_962
    # A stem of 7 × 7 has 64·3·(49 - 9) weights more, and halves the image.
    large = ResNet18(10, *rgb, stem=7)
    assert sum(p.numel() for p in large.parameters()) == 11_173_962 + 64 * 3 * 40
    assert large.conv1(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 32, 32)
    with pytest.raises(GeophoneError, match="stem=5"):
        ResNet18(10, *rgb, stem=5)


def test_wide_resnet_has_the_eighty_layers_of_the_similarity_study():
    """Stages begin at layers 26 and 51 (specification §1.3); WideResNet-28-10 has 36.5 M weights (the paper's)."""
    rgb = ((0.5,) * 3, (0.25,) * 3)
    with torch.device("meta"):
        ten = MODELS.build("wide_resnet", classes=10, mean=rgb[0], std=rgb[1], width=10)
    assert sum(p.numel() for p in ten.parameters()) == 36_479_194
    narrow = MODELS.build("wide_resnet", classes=10, mean=rgb[0], std=rgb[1], width=2, first=2).eval()
    with tap(narrow, OF_WIDE) as seen:
        narrow(torch.zeros(1, 3, 8, 8))
    assert len(seen) == 80
    stages = [next(i for i, name in enumerate(seen) if name.startswith(f"stage{k}")) for k in (1, 2, 3)]
    assert stages == [1, 26, 51]
    assert list(seen)[:3] == ["conv1", "stage1.0.norm1", "stage1.0.relu1"]
    for wrong in ({"depth": 20}, {"depth": 4}, {"width": 0}):
        with pytest.raises(GeophoneError, match="allowed are"):
            MODELS.build("wide_resnet", classes=10, mean=rgb[0], std=rgb[1], **wrong)


def test_normalise_is_inside():
    x = torch.rand(2, 3, 4, 4, generator=stream("x"))
    layer = Normalise((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    assert torch.allclose(layer(x)[:, 2], (x[:, 2] - 0.3) / 2)
    assert "normalise.mean" in SmallCNN(2, (0.5,), (0.5,)).state_dict()


def test_initial_weights_depend_on_the_seed_alone():
    def weights(seed):
        return initialised(lambda: SmallCNN(3, (0.5,), (0.5,)), seed).conv1.weight

    before = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def saved(tmp_path):
    model = initialised(lambda: SmallCNN(4, (0.5,), (0.5,)), 3).eval()
    save_network(model, tmp_path / "job", "small_cnn", {"classes": 4, "mean": [0.5], "std": [0.5]})
    file = tmp_path / "mine.py"
    file.write_text(
        "from geophone.models import SmallCNN\ndef make(): return SmallCNN(4, (0.5,), (0.5,))\nnot_one = 3\n"
        "def fails(): return 1 / 0\ndef wants(x): return x\n"
    )
    return model, tmp_path, f"{file}:make"


def same(a, b):
    x = torch.rand(3, 1, 12, 12, generator=stream("same"))
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def test_job_folder(saved):
    model, folder, _ = saved
    assert same(load_model(folder / "job"), model)
    assert not load_model(folder / "job").training


def test_weights_files_and_prefixes(saved):
    model, folder, factory = saved
    state = model.state_dict()
    torch.save(state, folder / "plain.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "wrapped.pth")
    save_file(state, folder / "w.safetensors")
    for name in ("plain.pt", "wrapped.pth", "w.safetensors"):
        assert same(load_model(folder / name, factory), model)
    assert same(load_model(folder / "plain.pt", "small_cnn"), model)  # its shape is read off the weights
    assert same(load_model(folder / "plain.pt", "small_cnn(width=8)"), model)


def test_a_model_file_may_import_its_neighbour(tmp_path):
    (tmp_path / "my_neighbour_blocks.py").write_text("from geophone.models import SmallCNN as Net\n")
    (tmp_path / "mynet.py").write_text(
        "from my_neighbour_blocks import Net\ndef make(): return Net(4, (0.5,), (0.5,))\n"
    )
    assert isinstance(load_model(f"{tmp_path / 'mynet.py'}:make"), SmallCNN)


def test_python_file(saved):
    _, _, factory = saved
    assert isinstance(load_model(factory), SmallCNN)
    module = nn.Identity()
    assert load_model(module) is module


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_nothing_is_unpickled(saved):
    _, folder, factory = saved
    (folder / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"a": Malicious()}, folder / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(GeophoneError, match="not a readable file of weights"):
            load_model(folder / name, factory)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s["conv1.weight"].fill_(torch.nan), "'conv1.weight' has NaN"),
        (lambda s: s.pop("head.bias"), "'head.bias' is missing"),
        (lambda s: s.update(stranger=torch.ones(1)), "'stranger' is not in the network"),
    ],
)
def test_weights_that_do_not_fit(saved, break_it, message):
    model, folder, factory = saved
    state = {k: v.clone() for k, v in model.state_dict().items()}
    break_it(state)
    torch.save(state, folder / "bad.pt")
    with pytest.raises(GeophoneError, match=message):
        load_model(folder / "bad.pt", factory)


def test_bad_sources(saved):
    _, folder, factory = saved
    (folder / "text.pt").write_text("hello")
    (folder / "empty").mkdir()
    file = factory.rpartition(":")[0]
    for source, made_by, message in (
        (folder / "none.pt", factory, "no model at"),
        (folder / "text.pt", factory, "not a readable file of weights"),
        (folder / "text.pt", None, "holds weights only"),
        (folder / "empty", None, "not a finished job's folder"),
        (file, None, "name the function"),
        (f"{file}:fails", None, "fails failed: ZeroDivisionError"),
        (f"{file}:wants", None, "must be callable without arguments"),
        (f"{file}:other", None, "has no function 'other'"),
        (f"{file}:not_one", None, "has no function 'not_one'"),
        (f"{folder}/absent.py:make", None, "no model file at"),
    ):
        with pytest.raises(GeophoneError, match=message):
            load_model(source, made_by)
    (folder / "job" / "network.json").write_text(json.dumps({"model": "nothing"}))
    with pytest.raises(GeophoneError, match="not readable"):
        load_model(folder / "job")


def test_zoo_adapters_put_the_normalisation_inside(monkeypatch):
    """With stand-ins for the packages: their real imports fail beside the CPU build of torch that tests run on."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    net.pretrained_cfg = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
    timm = types.SimpleNamespace(create_model=lambda name, pretrained: net)
    vision = types.SimpleNamespace(models=types.SimpleNamespace(get_model=lambda name, weights: net))
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    x = torch.rand(2, 3, 2, 2, generator=stream("zoo"))
    with torch.no_grad():
        assert torch.allclose(load_model("timm:anything")(x), net((x - 0.4) / 0.2), atol=1e-6)
        assert load_model("torchvision:anything").normalise.mean.flatten().tolist() == pytest.approx(
            [0.485, 0.456, 0.406]
        )


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(GeophoneError, match=r"pip install 'geophone\[torchvision\]'"):
        load_model("torchvision:resnet18")
