"""What `as_split` takes, and the one clear line for each thing that it does not."""

from typing import Any

import numpy as np
import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.data import Split, as_split, load

X = torch.arange(6 * 3 * 4 * 5).remainder(256).to(torch.uint8).reshape(6, 3, 4, 5)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X.permute(0, 2, 3, 1), Y.to(torch.int32)),
        (X.permute(0, 2, 3, 1).numpy(), Y.numpy().astype(np.uint8)),
        (X.numpy(), Y.tolist()),
        (X.numpy(), Y.numpy().astype(">i4")),
        (X.numpy(), Y.numpy().astype(np.uint16)),
    ],
    ids=[
        "tensors",
        "arrays",
        "channels last",
        "channels-last arrays",
        "list of labels",
        "big-endian labels",
        "uint16 labels",
    ],
)
def test_uint8_pairs(x, y):
    split = as_split((x, y), classes=3)
    assert torch.equal(split.x, X)
    assert split.x.is_contiguous()
    assert torch.equal(split.y, Y)
    assert split.y.dtype == torch.int64
    assert split.index.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_in_the_unit_interval_become_float32(dtype):
    x = (X.double() / 255).to(dtype)
    split = as_split((x, Y))
    assert split.x.dtype == torch.float32
    assert torch.equal(split.x, x.float())


def test_grey_images_need_no_channel_axis():
    assert torch.equal(as_split((X[:, 0], Y)).x, X[:, :1])


def test_a_tensor_that_requires_a_gradient_is_detached():
    assert not as_split((torch.full((6, 1, 2, 2), 0.5, requires_grad=True), Y)).x.requires_grad


def test_data_sets_give_their_test_part():
    data = load("synthetic(classes=3, test=9)")
    for given in (data, data.test, "synthetic(classes=3, test=9)"):
        split = as_split(given, classes=3)
        assert torch.equal(split.x, data.test.x)
        assert torch.equal(split.index, data.test.index)


FLOAT = X.float() / 255
HOLED = FLOAT.clone()
HOLED[4, 0, 0, 0] = torch.nan
BAD = {
    "0 to 255": (
        (X.float(), Y),
        r"run from 0 to 255, allowed is \[0, 1\] \(or uint8\): divide by 255, and put any normalisation inside",
    ),
    "normalised": ((FLOAT * 4 - 2, Y), r"allowed is \[0, 1\] .* normalisation inside the model as its first layer"),
    "a little above 1": ((FLOAT * 1.001, Y), r"run from 0 to 1.001\d+, allowed is \[0, 1\]"),
    "a hair above 1": ((FLOAT + 2e-6, Y), r"run from \S+e-06 to 1.00000\d+, allowed is \[0, 1\]"),
    "a hair below 0": ((FLOAT.double() - 2e-6, Y), r"run from -[12].\d+e-06 to .*, allowed is \[0, 1\]"),
    "NaN": ((HOLED, Y), "image 4 holds NaN or infinite"),
    "infinite": ((FLOAT + torch.inf, Y), "image 0 holds NaN or infinite"),
    "int64 pixels": ((X.long(), Y), "images are int64; allowed are uint8"),
    "complex pixels": ((FLOAT.numpy() * 1j, Y), "of the type complex64; allowed are numbers"),
    "two axes": ((X[:, 0, 0], Y), r"shape \[6, 5\]"),
    "no pixels": ((X[:, :, :0], Y), r"shape \[6, 3, 0, 5\]"),
    "fewer labels": ((X, Y[:5]), "6 images but 5 labels"),
    "none": ((X[:0], Y[:0]), "no examples"),
    "negative label": ((X, Y - 1), "labels run from -1 to 1"),
    "label too high": ((X, Y + 1), "labels run from 1 to 3; allowed are 0 to 2, for 3 classes"),
    "float labels": ((X, Y.double()), "labels are float64; allowed are integers"),
    "boolean labels": ((X, Y > 0), "labels are bool; allowed are integers"),
    "one-hot labels": ((X, torch.eye(3, dtype=torch.int64)[Y]), r"shape \[6, 3\].*argmax"),
    "names as labels": ((X, ["a"] * 6), "labels are of the type <U1; allowed are numbers"),
    "ragged labels": ((X, [[0], [1, 2]]), "labels are lists of different lengths"),
    "something else": (7, "type int can't be read"),
    "a triple": ((X, Y, Y), "type tuple can't be read"),
    "a split of labels too high": (Split(X, Y + 9, Y), "labels run from 9 to 11; allowed are 0 to 2"),
    "a split of wrong pixels": (Split(X.float(), Y, Y), "run from 0 to 255"),
    "an unknown name": ("fashion_mnist_mimi", "Did you mean 'fashion_mnist_mini'"),
    "a missing file": ("nowhere/x.npz", "no file at nowhere/x.npz"),
    "an argument that is not there": ("synthetic(colour=3)", "unknown argument of synthetic 'colour'"),
    "a nonsensical argument": ("synthetic(classes=1)", "synthetic needs classes ≥ 2"),
    "text for a number": ("synthetic(size='a')", r"synthetic\(size='a'\): size is 'a'; allowed is a whole number"),
    "a fraction for a count": ("synthetic(test=2.5)", "test is 2.5; allowed is a whole number"),
    "nothing for a number": ("synthetic(noise=None)", "noise is None; allowed is a number"),
    "truth for a number": ("synthetic(seed=True)", "seed is True; allowed is a whole number"),
    "a list for a number": ("synthetic(size=[8, 8])", r"size is \[8, 8\]; allowed is a whole number"),
    "a number for a path": ("npz(path=3)", "path is 3; allowed is a path or text"),
    "a number for a root": ("mnist(root=3)", "root is 3; allowed is a path or text or None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_give_one_clear_line(name):
    given, message = BAD[name]
    with pytest.raises(GeophoneError, match=message) as caught:
        as_split(given, classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_a_rounding_step_outside_are_clamped(dtype):
    x = FLOAT.to(dtype)
    x[0, 0, 0, :3] = torch.tensor([-9e-7, 1 + 9e-7, 0.25], dtype=dtype)
    before = x.clone()
    split = as_split((x, Y))
    assert split.x[0, 0, 0, :3].tolist() == [0, 1, 0.25]
    assert torch.equal(split.x[1:], FLOAT[1:])
    assert torch.equal(x, before)


def test_types_that_are_not_plain_are_the_data_sets_own_affair():
    def made(sizes: list[int], anything: Any, bare=3, noise: float = 0.1):
        return load(f"synthetic(size={sizes[0]}, noise={noise}, test={bare})")

    with DATASETS.restored():
        DATASETS.add("made", made)
        assert load("made(sizes=[8], anything='a', bare=5, noise=1)").size == (8, 8)
        with pytest.raises(GeophoneError, match="noise is 'a'; allowed is a number"):
            load("made(sizes=[8], anything=(1,), noise='a')")


def test_without_a_number_of_classes_any_label_from_zero_is_right():
    assert as_split((X, Y + 100)).y.max() == 102
    with pytest.raises(GeophoneError, match="allowed are 0 and up"):
        as_split((X, Y - 1))


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "images.csv"
    path.write_text("1,2")
    with pytest.raises(GeophoneError, match=r"neither an .npz file nor a folder of images"):
        load(path)


def test_a_path_object_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GeophoneError, match="unknown data set"):
        load(tmp_path / "mnist")


def test_every_data_set_is_registered_and_says_what_it_is():
    names = ["fashion_mnist_mini", "fashion_mnist", "mnist", "cifar10", "cifar100", "synthetic", "imagefolder", "npz"]
    assert set(names) <= set(DATASETS)
    assert all(len(DATASETS.summary(name)) > 20 for name in names)


# --- the made-up set


def nearest_mean_accuracy(data, y):
    train = data.train.x.flatten(1).double()
    means = torch.stack([train[y == c].mean(0) for c in range(len(data.classes))])
    guess = torch.cdist(data.test.x.flatten(1).double(), means).argmin(1)
    return float((guess == data.test.y).double().mean())


@pytest.mark.parametrize(("classes", "channels", "size"), [(2, 1, 8), (4, 3, 16), (10, 1, 28)])
def test_synthetic_classes_can_be_told_apart(classes, channels, size):
    data = load(f"synthetic(classes={classes}, channels={channels}, size={size})")
    assert (data.channels, data.size, len(data.classes)) == (channels, (size, size), classes)
    assert nearest_mean_accuracy(data, data.train.y) > 0.95
    assert nearest_mean_accuracy(data, (data.train.y + 1) % classes) < 0.05, "other labels must be told from these"


def test_synthetic_is_seeded():
    a, b, c = load("synthetic"), load("synthetic"), load("synthetic(seed=1)")
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.train.x, c.train.x)
    assert not torch.equal(a.train.x[:128], a.val.x)
    assert torch.equal(load("synthetic(train=100)").train.x, a.train.x[:100])
