"""The published corrupted sets, as small files of the same layouts: right ones, broken ones, missing ones."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.data import cifar10_c, load
from geophone.data.images.corrupted import CIFAR10_CLASSES, CIFAR100_CLASSES

N = 12
SETS = {"cifar10_c": ("CIFAR-10-C", 10), "cifar100_c": ("CIFAR-100-C", 100)}


def images_of(corruption):
    seed = list(corruption.encode())
    return np.random.default_rng(seed).integers(0, 256, (5 * N, 32, 32, 3), dtype=np.uint8)


def clean_labels(classes):
    return np.random.default_rng(classes).integers(0, classes, N)


def write(root, name="cifar10_c", corruptions=("gaussian_noise", "fog"), times=5):
    folder, classes = SETS[name]
    (root / folder).mkdir(parents=True)
    for corruption in corruptions:
        np.save(root / folder / f"{corruption}.npy", images_of(corruption))
    np.save(root / folder / "labels.npy", np.tile(clean_labels(classes), times))
    return root / folder


def check(data, name, corruption, severity):
    rows = images_of(corruption)[(severity - 1) * N : severity * N]
    assert torch.equal(data.test.x, torch.from_numpy(rows).permute(0, 3, 1, 2))
    assert data.test.y.tolist() == clean_labels(SETS[name][1]).tolist()
    assert data.test.index.tolist() == list(range(N))


@pytest.mark.parametrize("times", [1, 5], ids=["labels once", "labels of each severity"])
@pytest.mark.parametrize("name", SETS)
def test_each_severity_is_its_fifth_of_the_rows(tmp_path, name, times):
    write(tmp_path, name, times=times)
    for corruption in ("gaussian_noise", "fog"):
        for severity in (1, 3, 5):
            code = f"{name}(corruption='{corruption}', severity={severity})"
            data = load(code, root=tmp_path)
            check(data, name, corruption, severity)
            assert data.name == code
            assert len(data.classes) == SETS[name][1]
            assert len(data.train) == len(data.val) == 0
            other = "fog" if corruption == "gaussian_noise" else "gaussian_noise"
            for wrong in ((other, severity), (corruption, severity % 5 + 1)):
                with pytest.raises(AssertionError):
                    check(data, name, *wrong)


def test_labels_are_those_of_the_severity(tmp_path):
    folder = write(tmp_path)
    np.save(folder / "labels.npy", np.repeat([4, 3, 2, 1, 0], N))
    assert load("cifar10_c(severity=2)", root=tmp_path).test.y.tolist() == [3] * N


def test_where_a_set_is_found(tmp_path, monkeypatch):
    folder = write(tmp_path / "some")
    check(cifar10_c(tmp_path / "some"), "cifar10_c", "gaussian_noise", 1)
    check(cifar10_c(folder), "cifar10_c", "gaussian_noise", 1)
    shutil.copytree(folder, tmp_path / "renamed")
    check(cifar10_c(str(tmp_path / "renamed")), "cifar10_c", "gaussian_noise", 1)
    for place in (folder, tmp_path / "some"):
        monkeypatch.setenv("GEOPHONE_DATA", str(place))
        check(load("cifar10_c"), "cifar10_c", "gaussian_noise", 1)
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path / "renamed"))
    with pytest.raises(GeophoneError, match="CIFAR-10-C was not found"):
        load("cifar10_c")


@pytest.mark.parametrize(
    ("name", "folder", "record"),
    [
        ("cifar10_c", "CIFAR-10-C", 2535967),
        ("cifar100_c", "CIFAR-100-C", 3555552),
        ("tiny_imagenet_c", "Tiny-ImageNet-C", 2536630),
        ("imagenet_c", "ImageNet-C", 2235448),
    ],
)
def test_a_missing_set_says_where_it_was_looked_for_and_where_it_is(tmp_path, name, folder, record):
    message = f"{folder} was not found: looked for .* in {tmp_path}, .*Zenodo record {record} .*/cache/{folder} or"
    with pytest.raises(GeophoneError, match=message) as caught:
        load(name, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_ten_class_set_is_not_taken_for_the_hundred_class_set(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(GeophoneError, match="CIFAR-100-C was not found"):
        load("cifar100_c", root=folder)


def test_class_names_are_those_of_the_clean_sets():
    assert len(set(CIFAR10_CLASSES)) == 10
    assert len(set(CIFAR100_CLASSES)) == 100
    for names in (CIFAR10_CLASSES, CIFAR100_CLASSES):  # both sets number their classes by the alphabet
        assert list(names) == sorted(names)


def break_arrays(folder, how):
    file, labels = folder / "fog.npy", folder / "labels.npy"
    x = images_of("fog")
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "truncated header":
        file.write_bytes(file.read_bytes()[:30])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "not an npy":
        file.write_text("hello")
    elif how == "an npz":
        np.savez(folder / "fog.npz", x=x)
        (folder / "fog.npz").rename(file)
    elif how == "python objects":
        np.save(file, np.array([{}] * 5, dtype=object), allow_pickle=True)
    elif how == "floats":
        np.save(file, x.astype(np.float32))
    elif how == "channels first":
        np.save(file, x.transpose(0, 3, 1, 2))
    elif how == "no fifths":
        np.save(file, x[:-1])
    elif how == "no images":
        np.save(file, x[:0])
    elif how == "a number":
        np.save(file, np.uint8(3))
    elif how == "labels missing":
        labels.unlink()
    elif how == "labels too few":
        np.save(labels, np.zeros(N - 1, np.int64))
    elif how == "labels in a column":
        np.save(labels, np.zeros((N, 1), np.int64))
    elif how == "labels too high":
        np.save(labels, np.full(N, 10))
    elif how == "float labels":
        np.save(labels, np.zeros(N))
    elif how == "truncated labels":
        labels.write_bytes(labels.read_bytes()[:-8])


BROKEN = {
    "truncated": r"fog.npy is truncated, corrupt",
    "truncated header": r"fog.npy is truncated, corrupt",
    "empty": r"fog.npy is truncated, corrupt",
    "not an npy": r"fog.npy is truncated, corrupt or not an .npy",
    "an npz": r"fog.npy is truncated, corrupt or not an .npy",
    "python objects": r"fog.npy is truncated, corrupt or not an .npy of plain numbers",
    "floats": r"fog.npy holds float32 \[60, 32, 32, 3\]; allowed is uint8 \[5n, 32, 32, 3\]",
    "channels first": r"fog.npy holds uint8 \[60, 3, 32, 32\]; allowed",
    "no fifths": r"fog.npy holds uint8 \[59, 32, 32, 3\]; allowed",
    "no images": r"fog.npy (holds uint8 \[0, 32, 32, 3\]; allowed|is truncated)",
    "a number": r"fog.npy holds uint8 \[\]; allowed",
    "labels missing": r"no file at .*labels.npy",
    "labels too few": r"labels.npy has the shape \[11\], but fog.npy has 12 images .* allowed are 12 or 60 labels",
    "labels in a column": r"labels.npy has the shape \[12, 1\]",
    "labels too high": r"the labels run from 10 to 10; allowed are 0 to 9",
    "float labels": r"the labels are float64; allowed are integers",
    "truncated labels": r"labels.npy is truncated, corrupt",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_arrays_give_one_clear_line(tmp_path, how):
    break_arrays(write(tmp_path), how)
    with pytest.raises(GeophoneError, match=BROKEN[how]) as caught:
        load("cifar10_c(corruption='fog', severity=2)", root=tmp_path)
    assert "\n" not in str(caught.value)


BAD_ARGUMENTS = {
    "corruption='fogg'": r"unknown corruption 'fogg'. Did you mean 'fog'\? Allowed: fog, gaussian_noise. .*CIFAR-10-C",
    "corruption='labels'": "unknown corruption 'labels'",
    "corruption='../CIFAR-10-C/fog'": "unknown corruption",
    "corruption=3": "corruption is 3; allowed is text",
    "severity=0": "severity is 0; allowed are 1, 2, 3, 4 and 5",
    "severity=6": "severity is 6; allowed are 1, 2, 3, 4 and 5",
    "severity='high'": "severity is 'high'; allowed is a whole number",
    "level=2": "unknown argument of cifar10_c 'level'",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_bad_arguments_give_one_clear_line(tmp_path, arguments):
    write(tmp_path)
    with pytest.raises(GeophoneError, match=BAD_ARGUMENTS[arguments]) as caught:
        load(f"cifar10_c({arguments})", root=tmp_path)
    assert "\n" not in str(caught.value)


# --- folders

WNIDS = ("n01440764", "n01443537")
FOLDERS = {"tiny_imagenet_c": "Tiny-ImageNet-C", "imagenet_c": "ImageNet-C"}


def write_folders(root, name, corruptions=("fog", "frost"), severities=(1, 4), size=(8, 8)):
    """Files `<corruption>/<severity>/<wnid>/<i>.JPEG`, in order."""
    files = [
        root / FOLDERS[name] / corruption / str(severity) / wnid / f"{i}.JPEG"
        for corruption in corruptions
        for severity in severities
        for wnid in WNIDS
        for i in range(2)
    ]
    for seed, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return files


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_corruptions_and_severities(tmp_path, name):
    files = write_folders(tmp_path, name)
    code = f"{name}(corruption='frost', severity=4)"
    for root in (tmp_path, tmp_path / FOLDERS[name]):
        data = load(code, root=root)
        expected = np.array([np.asarray(Image.open(file)) for file in files[-4:]])
        assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), expected)
        assert (data.name, data.classes, data.test.y.tolist()) == (code, WNIDS, [0, 0, 1, 1])
        assert data.test.index.tolist() == [0, 1, 2, 3]
        assert len(data.train) == len(data.val) == 0


def test_folders_can_be_resized(tmp_path):
    write_folders(tmp_path, "imagenet_c", size=(12, 9))
    assert load("imagenet_c(corruption='fog', size=7)", root=tmp_path).size == (7, 7)


BAD_FOLDERS = {
    "corruption='frosty'": r"unknown corruption 'frosty'. Did you mean 'frost'\? Allowed: fog, frost",
    "corruption='fog', severity=2": r"no folder at .*ImageNet-C/fog/2",
    "corruption='fog', severity=7": "severity is 7; allowed are 1, 2, 3, 4 and 5",
    "corruption='fog', severity=4": r"no class folders with test images",
}


@pytest.mark.parametrize("arguments", BAD_FOLDERS)
def test_bad_folders_give_one_clear_line(tmp_path, arguments):
    write_folders(tmp_path, "imagenet_c")
    for wnid in WNIDS:
        shutil.rmtree(tmp_path / "ImageNet-C" / "fog" / "4" / wnid)
    with pytest.raises(GeophoneError, match=BAD_FOLDERS[arguments]) as caught:
        load(f"imagenet_c({arguments})", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_sets_are_registered():
    for name in (*SETS, *FOLDERS):
        assert len(DATASETS.summary(name)) > 20
