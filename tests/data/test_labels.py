"""Labels that mean the network's outputs, labels that cannot, and images that have none: one answer in every verb."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import nn

from geophone.cli import main
from geophone.core.errors import GeophoneError, Unlabelled
from geophone.core.types import UNLABELLED
from geophone.data import ImageData, as_split, imagefolder, load
from geophone.data.names import output_names
from geophone.diagnosis import attack, compare_networks, scan
from geophone.metrics import class_selectivity, eta_squared, participation_ratio
from geophone.models.tap import record
from geophone.probes.curves import eps_curve
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.layer_maps import similarity
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.probes.survival import survival
from geophone.train import Standard, Training, fit

N = 12
WNIDS = tuple(f"n{i:08}" for i in range(0, 40, 2))
WORDS = tuple(f"thing {i}, Res {i}" for i in range(len(WNIDS)))


class Net(nn.Module):
    """A small network of k outputs."""

    def __init__(self, k: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden, self.relu, self.head = nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, k)
        for weight in self.parameters():
            nn.init.normal_(weight, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.hidden(x.mean(1).flatten(1))))


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), np.uint8)).save(path)


def folders(root, names, each=3, parts=(".",)):
    for part in parts:
        for place, name in enumerate(names):
            for i in range(each):
                picture(root / part / name / f"{i}.png", 100 * place + i)
    return root


def images(n=N):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


VERBS = {
    "measure": lambda net, data: measure(net, data, metrics=["accuracy"]),
    "measure of a layer": lambda net, data: measure(net, data, metrics=["class_selectivity"], batch_size=5),
    "survival": lambda net, data: survival(net, data, "FGSM(eps=0.1)"),
    "eps_curve": lambda net, data: eps_curve(net, data, "FGSM"),
    "attack": lambda net, data: attack(net, data, "FGSM(eps=0.1)"),
    "scan": lambda net, data: scan(net, data, "GaussianNoise(std=0.1)", curves=""),
    "compare_networks": lambda net, data: compare_networks(net, net, data, perturb="FGSM(eps=0.1)"),
    "similarity under an attack": lambda net, data: similarity(net, None, data, perturbation="FGSM(eps=0.1)"),
    "exemplars under an attack": lambda net, data: exemplar_manifolds(
        net, data, "LinfPGD(eps=0.1, steps=1)", exemplars=4, copies=4, n_t=20, n_reps=1
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_class_folders_of_another_number_than_the_outputs_are_refused(tmp_path, verb):
    """Eight folders and a thousand logits: no accuracy of 0.0000, and no number at all."""
    data = imagefolder(folders(tmp_path, [f"class {c}" for c in "abcdefgh"], each=2))
    assert data.test.outputs == 8
    with pytest.raises(GeophoneError, match=r"8 class folders.* the network gives 1000 logits.*classes='names.txt'"):
        VERBS[verb](Net(1000), data)


@pytest.mark.parametrize("verb", VERBS)
def test_a_label_without_an_output_is_refused(verb):
    y = torch.arange(N) % 3 + 2
    y[-1] = 7  # in the last batch
    with pytest.raises(GeophoneError, match="label 7 is out of range: the network gives 5 logits"):
        VERBS[verb](Net(5), (images(), y))


def test_training_refuses_the_same(tmp_path):
    data = imagefolder(folders(tmp_path, "abc", each=6, parts=("train", "test")))
    training = Training(epochs=1, batch_size=5)
    for k, message in ((2, "label 2 is out of range"), (4, "3 class folders.* gives 4 logits")):
        with pytest.raises(GeophoneError, match=message):
            fit(Net(k), data, Standard(), training)
    unlabelled = ImageData("x", ("a",), as_split(images()), as_split(images()), as_split(images()))
    with pytest.raises(Unlabelled, match="training needs labels"):
        fit(Net(3), unlabelled, Standard(), training)
    net, before = Net(3), torch.random.get_rng_state()
    assert len(fit(net, data, Standard(), training)) == 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_correct_labels_whose_largest_is_below_the_last_output_are_no_problem(tmp_path):
    """Of 1,000 outputs the data have labels up to 986: a tensor, and an .npz that names no classes."""
    y = (torch.arange(N) * 37) % 987
    y[0] = 986
    np.savez(tmp_path / "mine.npz", x=images().numpy(), y=y.numpy())
    for data in ((images(), y), load(tmp_path / "mine.npz")):
        found = scan(Net(1000), data, "GaussianNoise(std=0.1)", curves="")
        row = found.table.filter(pl.col("metric") == "check.classes")
        assert row["value"].item() == 0, row["note"].item()


def test_classes_that_the_data_name_are_compared_in_every_verb(tmp_path):
    names = np.array(["a", "b", "c"])
    np.savez(tmp_path / "mine.npz", x=images().numpy(), y=np.arange(N) % 3, classes=names)
    data = load(tmp_path / "mine.npz")
    found = attack(Net(5), data, "FGSM(eps=0.1)")
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "The network gives 5 logits and the data have 3 classes"
    ]
    assert attack(Net(3), data, "FGSM(eps=0.1)").problems == ()


# --- which folder is which output


def write_names(root, kind):
    if kind == "synset mapping":
        file = root / "LOC_synset_mapping.txt"
        file.write_text("".join(f"{key} {words}\n" for key, words in zip(WNIDS, WORDS, strict=True)))
    elif kind == "class index":
        file = root / "imagenet_class_index.json"
        pairs = {str(i): [key, words.split(",")[0]] for i, (key, words) in enumerate(zip(WNIDS, WORDS, strict=True))}
        file.write_text(json.dumps(pairs))
    elif kind == "wnids":
        file = root / "wnids.txt"
        file.write_text("\n".join(WNIDS))
        (root / "words.txt").write_text("".join(f"{key}\t{w}\n" for key, w in zip(WNIDS, WORDS, strict=True)))
    elif kind == "lines":
        file = root / "names.txt"
        file.write_text("\n".join(words.split(",")[0] for words in WORDS))
    elif kind == "name to output":
        file = root / "labels.json"
        file.write_text(json.dumps({key: i for i, key in enumerate(WNIDS)}))
    else:
        file = root / "list.json"
        file.write_text(json.dumps(list(WNIDS)))
    return file


BY_WNID = ("synset mapping", "class index", "wnids", "name to output", "list")
BY_WORD = ("synset mapping", "class index", "wnids", "lines")


@pytest.mark.parametrize(("kind", "called"), [*((k, "wnid") for k in BY_WNID), *((k, "word") for k in BY_WORD)])
def test_a_file_of_names_says_which_output_a_folder_is(tmp_path, kind, called):
    outputs = [11, 2, 17]
    names = [WNIDS[i] if called == "wnid" else f"thing {i}" for i in outputs]
    root = folders(tmp_path / "pictures", names, each=2)
    data = imagefolder(root, classes=write_names(tmp_path, kind))
    expected = [outputs[names.index(name)] for name in sorted(names) for _ in range(2)]
    assert data.test.y.tolist() == expected
    assert data.test.outputs == len(data.classes) == len(WNIDS)
    assert survival(Net(len(WNIDS)), data, "FGSM(eps=0.1)").classes == len(WNIDS)
    with pytest.raises(GeophoneError, match="20 class folders"):
        survival(Net(1000), data, "FGSM(eps=0.1)")


def test_names_in_code(tmp_path):
    root = folders(tmp_path, ("bee", "ant"))
    data = load(f"imagefolder(path={str(root)!r}, classes=['wasp', 'bee', 'ant'])")
    assert (data.classes, data.test.y.tolist()) == (("wasp", "bee", "ant"), [2, 2, 2, 1, 1, 1])


BAD_NAMES = {
    "no such file": (None, "no file at .*names.txt"),
    "empty": ("", "names 0 outputs"),
    "not all folders": ("ant\nwasp", "unknown class 'bee'"),
    "one name of two outputs": ("ant\nbee\nbee", r"'bee' is the name of the outputs \[1, 2\]"),
    "two folders of one output": ('[["ant", "bee"]]', "two class folders are names of one output"),
    "broken JSON": ('{"0": ', "no sound JSON"),
    "deep JSON": ("[" * 100_000, "no sound JSON"),
    "numbers": ("[1, 2]", "holds 1, which is no name"),
    "holes": ('{"0": "ant", "2": "bee"}', "does not name the output 1"),
    "bytes": (b"\xff\xfe\x00", "no text in UTF-8"),
}


@pytest.mark.parametrize("how", BAD_NAMES)
def test_bad_files_of_names_give_one_clear_line(tmp_path, how):
    content, message = BAD_NAMES[how]
    root, file = folders(tmp_path / "pictures", ("ant", "bee")), tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GeophoneError, match=message) as caught:
        imagefolder(root, classes=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [3, [], [1, 2], {"a": 1}])
def test_names_that_are_none(given):
    with pytest.raises(GeophoneError, match="allowed are a file of names or a list"):
        output_names(given)


# --- no labels at all


def without_labels(tmp_path):
    """The same images as a tensor, an array, an .npz and a folder."""
    x = (images() * 255).to(torch.uint8)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    for i, image in enumerate(x):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "folder" / f"{i:02}.png")
    return {"tensor": x, "array": x.numpy(), "npz": tmp_path / "x.npz", "folder": str(tmp_path / "folder")}


@pytest.mark.parametrize("kind", ["tensor", "array", "npz", "folder"])
def test_images_alone_are_enough_for_what_needs_no_labels(tmp_path, kind):
    given = without_labels(tmp_path)
    data, net, net2 = given[kind], Net(3), Net(4)
    split = as_split(data)
    assert not split.labelled
    assert "without labels" in repr(split)
    assert set(split.y.tolist()) == {UNLABELLED}
    assert split.take(5).index.tolist() == [0, 1, 2, 3, 4]
    labelled = (given["tensor"], torch.arange(N) % 3)

    some = ["participation_ratio", "cka", "class_selectivity", "accuracy"]
    rows = measure(net, data, "GaussianNoise(std=0.1)", metrics=some, batch_size=5)
    same = measure(net, labelled, "GaussianNoise(std=0.1)", metrics=some, batch_size=5)
    free = pl.col("metric").is_in(["participation_ratio", "cka"])
    assert rows.filter(free).equals(same.filter(free))
    needy = rows.filter(~free)
    assert len(needy) == 4
    assert needy["value"].null_count() == 4
    assert set(needy["note"]) == {"needs labels, which these images lack"}

    for call in (
        lambda data: similarity(net, net2, data).table,
        lambda data: similarity(net, None, data, perturbation="GaussianNoise(std=0.1)").table,
        lambda data: compare(net, net, data, ["cka"]),
        lambda data: exemplar_manifolds(net, data, "GaussianNoise(std=0.1)", exemplars=4, copies=4, n_t=20, n_reps=1),
    ):
        assert call(data).equals(call(labelled))
    assert len(next(record(net, split.batches(5)))["relu"]) == 5
    found = compare_networks(net, net2, data, out=tmp_path / "compared.html")
    accuracy = found.table.filter(pl.col("metric") == "accuracy")
    assert accuracy["value"].null_count() == len(accuracy) == 2
    assert found.report is not None


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "measure" not in verb])
def test_what_needs_labels_says_so(verb):
    with pytest.raises(Unlabelled, match="needs labels, which these images lack. Give them with the images"):
        VERBS[verb](Net(3), images())


def test_an_attack_in_a_measurement_needs_labels():
    with pytest.raises(Unlabelled, match="FGSM needs labels"):
        measure(Net(3), images(), "FGSM(eps=0.1)", metrics=["cka"])


def test_metrics_of_plain_points_need_labels_or_not():
    """No label is made up: what needs them says so."""
    x = images().flatten(1)
    assert participation_ratio(x) > 0
    for metric in (class_selectivity, eta_squared):
        with pytest.raises(Unlabelled, match="needs labels"):
            metric(x)


def test_labels_that_are_half_there_are_refused():
    y = torch.arange(N) % 3
    y[3] = UNLABELLED
    with pytest.raises(GeophoneError, match="labels run from -1 to 2"):
        as_split((images(), y))


def test_large_labels_allocate_nothing():
    """Classes are counted by how many there are, not by how high their labels go."""
    y = torch.tensor([0, 1_000_000, 5, 1_000_000] * 3)
    assert as_split((images(), y)).take(6).y.tolist() == [0, 1_000_000, 5, 1_000_000, 0, 5]
    with pytest.raises(GeophoneError, match="below 1048576"):
        as_split((images(), y * 2))


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.hidden, self.relu, self.head = nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, k)

    def forward(self, x):
        return self.head(self.relu(self.hidden(x.mean(1).flatten(1))))

def thousand():
    return Net(1000)

def twenty():
    return Net(20)
"""


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    """Eight class folders and a thousand logits: exit code 2, not an accuracy of 0.0000."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    folders(tmp_path / "pictures", WNIDS[:8], each=1)
    (tmp_path / "pictures" / WNIDS[0] / "notes.txt").write_text("text")
    names = write_names(tmp_path, "synset mapping")
    codes = []
    main(["attack", "net.py:thousand", "pictures", "--attacks", "FGSM(eps=0.1)"], codes.append)
    printed = capsys.readouterr()
    assert codes == [2]
    assert printed.out == ""
    assert "8 class folders" in printed.err.splitlines()[-1]
    main(
        ["attack", "net.py:twenty", f"imagefolder(path='pictures', classes='{names.name}')", "--attacks", "FGSM"],
        codes.append,
    )
    printed = capsys.readouterr()
    assert codes == [2, 0]
    assert "warning: pictures has 1 file that Pillow does not read" in printed.err
