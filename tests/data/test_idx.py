"""MNIST and Fashion-MNIST: small files of the real format, found, checked and refused; the real ones where they are."""

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.data import load, places
from geophone.data.images import idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def to_idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def arrays_of(seed):
    rng = np.random.default_rng(seed)
    y_train, y_test = np.arange(60) % 10, np.arange(20) % 10
    return [rng.integers(0, 256, (60, 28, 28)), y_train, rng.integers(0, 256, (20, 28, 28)), np.roll(y_test, seed)]


def write(folder, arrays, gz):
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(idx.FILES, arrays, strict=True):
        data = to_idx(array)
        if gz:
            (folder / f"{file}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / file).write_bytes(data)


@pytest.fixture
def small(monkeypatch):
    """Both sets with 60 + 20 images of this test's own, held to their checksums."""
    arrays = {"mnist": arrays_of(0), "fashion_mnist": arrays_of(1)}
    for name, some in arrays.items():
        sums = tuple(hashlib.sha256(to_idx(array)).hexdigest() for array in some)
        monkeypatch.setitem(idx.SETS, name, replace(idx.SETS[name], sha256=sums, held_out=10))
    return arrays


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("mnist", folder) for folder in (".", "MNIST/raw", "package/data", "mnist")),
        *(("fashion_mnist", folder) for folder in (".", "FashionMNIST/raw", "fashion-mnist")),
    ],
)
def test_the_four_files_are_found_and_read(small, tmp_path, name, folder, gz):
    write(tmp_path / folder, small[name], gz)
    data = load(name, root=tmp_path)
    x_train, y_train, x_test, y_test = small[name]
    assert (data.name, len(data.classes), data.size, data.channels) == (name, 10, (28, 28), 1)
    assert (len(data.train), len(data.val), len(data.test)) == (50, 10, 20)
    assert np.array_equal(data.test.x[:, 0].numpy(), x_test)
    assert np.array_equal(data.test.y.numpy(), y_test)
    for part in (data.train, data.val):
        assert np.array_equal(part.x[:, 0].numpy(), x_train[part.index])
        assert np.array_equal(part.y.numpy(), y_train[part.index])
    assert data.val.y.bincount().tolist() == [1] * 10


def test_the_search_path_goes_from_root_to_environment_to_cache_to_system(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOPHONE_DATA", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    monkeypatch.setattr(places, "SYSTEM", (tmp_path / "system",))
    names = [folder.name for folder in places.search_path(tmp_path / "root")]
    assert names == ["root", "a", "b", "cache", "system"]
    assert [folder.name for folder in places.search_path()] == names[1:]


@pytest.mark.parametrize("where", ["environment", "cache", "system"])
def test_each_place_is_looked_in(small, monkeypatch, tmp_path, where):
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path / "environment"))
    monkeypatch.setattr(places, "SYSTEM", (tmp_path / "system",))
    write(tmp_path / where / "mnist", small["mnist"], gz=True)
    assert len(load("mnist").test) == 20


def test_the_other_set_of_the_same_file_names_is_passed_over(small, tmp_path, monkeypatch):
    write(tmp_path / "one", small["fashion_mnist"], gz=True)
    write(tmp_path / "two", small["mnist"], gz=True)
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path / "two"))
    assert np.array_equal(load("mnist", root=tmp_path / "one").test.x[:, 0].numpy(), small["mnist"][2])


def test_other_content_is_refused(small, tmp_path):
    write(tmp_path, small["mnist"], gz=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(to_idx(255 - small["mnist"][0])))
    with pytest.raises(GeophoneError, match=r"train-images.* is not the file of MNIST: .*SHA-256.* Delete it"):
        load("mnist", root=tmp_path)


BREAK = {
    "truncated gzip": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not gzip": lambda path: path.write_bytes(b"<html>404</html>"),
    "flipped bits": lambda path: path.write_bytes(path.read_bytes()[:40] + b"\xff" * 30 + path.read_bytes()[70:]),
    "empty": lambda path: path.write_bytes(b""),
    "truncated inside": lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])),
    "only a header": lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")),
    "floats": lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0")),
}


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_broken_file_gives_one_clear_line(small, tmp_path, how, file):
    write(tmp_path, small["mnist"], gz=True)
    BREAK[how](tmp_path / file)
    with pytest.raises(GeophoneError, match=rf"{file} is .* get it again") as caught:
        load("mnist", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_offline_the_message_says_what_where_and_where_to(tmp_path):
    with pytest.raises(GeophoneError) as caught:
        load("fashion_mnist", root=tmp_path / "mine")
    message = str(caught.value)
    for part in ("Fashion-MNIST", *idx.FILES, "mine", "cache/fashion-mnist", "$GEOPHONE_DATA", "https://", "OSError"):
        assert part in message
    assert "\n" not in message


def test_a_download_goes_into_the_cache_and_is_read(small, tmp_path, monkeypatch):
    asked = []

    def fetch(url, checksum, folder):
        asked.append((url.rsplit("/", 1)[1], checksum))
        write(folder, small["mnist"], gz=True)
        return folder

    monkeypatch.setattr(places, "fetch", fetch)
    assert len(load("mnist").test) == 20
    assert [name for name, _ in asked] == [f"{file}.gz" for file in idx.FILES]
    assert all(checksum.startswith("md5:") and len(checksum) == 36 for _, checksum in asked)
    asked.clear()
    load("mnist")
    assert asked == []


def test_a_wrong_checksum_on_the_way_is_the_same_clear_error(monkeypatch):
    def fetch(url, checksum, folder):
        raise ValueError("MD5 hash of downloaded file does not match the known hash")

    monkeypatch.setattr(places, "fetch", fetch)
    with pytest.raises(GeophoneError, match=r"MNIST was not found.*\(ValueError\)"):
        load("mnist")


# --- the real set, where Debian's package is installed


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = load("fashion_mnist", root=DEBIAN)
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.val.y.bincount().tolist() == [500] * 10
    whole = torch.cat([data.train.x, data.val.x]).double() / 255
    assert (round(float(whole.mean()), 4), round(float(whole.std()), 4)) == (0.2860, 0.3530)  # as published


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\x08\x04" + (2**16).to_bytes(4, "big") * 4,  # the product wraps around to 0 in 64 bits
        b"\0\0\x08\xff" + bytes(4 * 255),
        b"\0\0\x08\x00",
        b"\0\0\x08\x05" + bytes(20),
        b"\0\0\x08",
        b"",
    ],
)
def test_a_header_that_no_array_has(tmp_path, header):
    with pytest.raises(GeophoneError, match="is not a whole idx file of bytes"):
        idx.read_idx(header, tmp_path / "x")


def test_a_file_that_unpacks_to_more_than_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MOST_BYTES", 1 << 20)
    path = tmp_path / f"{idx.FILES[0]}.gz"
    path.write_bytes(gzip.compress(bytes(1 << 21)))
    with pytest.raises(GeophoneError, match="has more than the 1048576 bytes that such a file has"):
        idx.read_checked(path, "", "MNIST")
