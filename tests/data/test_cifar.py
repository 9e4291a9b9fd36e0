"""CIFAR's archives: files in the form that Python 2 wrote them, packed and unpacked, broken and malicious."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from geophone.core.errors import GeophoneError
from geophone.data import load, places
from geophone.data.images import cifar


def python2(thing):
    """Opcodes of Python 2's cPickle, protocol 2, as CIFAR's files have them (its str is bytes to Python 3)."""
    if isinstance(thing, bytes):
        if len(thing) < 256:
            return b"U" + bytes([len(thing)]) + thing
        return b"T" + struct.pack("<i", len(thing)) + thing
    if isinstance(thing, int):
        return b"J" + struct.pack("<i", thing)
    if isinstance(thing, list):
        return b"](" + b"".join(python2(item) for item in thing) + b"e"
    if isinstance(thing, dict):
        return b"}(" + b"".join(python2(key) + python2(value) for key, value in thing.items()) + b"u"
    if isinstance(thing, np.ndarray):
        shape = b"(" + b"".join(python2(n) for n in thing.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n(" + python2(b"u1") + python2(0) + python2(1) + b"tR"
            b"(" + python2(3) + python2(b"|") + b"NNN" + python2(-1) + python2(-1) + python2(0) + b"tb"
        )
        fortran = not thing.flags.c_contiguous
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + python2(0) + b"t" + python2(b"b") + b"tR"
            b"(" + python2(1) + shape + dtype + (b"\x88" if fortran else b"\x89") + python2(thing.tobytes("A")) + b"tb"
        )
    raise TypeError(thing)


def dumps(thing):
    return b"\x80\x02" + python2(thing) + b"."


def batch(n, classes, seed, labels):
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"a batch",
        labels: [int(i) % classes for i in range(n)],
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        b"filenames": [b"%d.png" % i for i in range(n)],
    }


CONTENT = {
    "cifar10": {
        **{f"data_batch_{i}": batch(20, 10, i, b"labels") for i in range(1, 6)},
        "test_batch": batch(30, 10, 6, b"labels"),
        "batches.meta": {b"num_cases_per_batch": 20, b"label_names": [b"class %d" % i for i in range(10)]},
    },
    "cifar100": {
        "train": batch(200, 100, 7, b"fine_labels"),
        "test": batch(100, 100, 8, b"fine_labels"),
        "meta": {b"fine_label_names": [b"class %d" % i for i in range(100)]},
    },
}
FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVE = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def write_folder(root, name, **other):
    folder = root / FOLDER[name]
    folder.mkdir(parents=True)
    for file, content in CONTENT[name].items():
        (folder / file).write_bytes(other.get(file, dumps(content)))


def write_archive(root, name, leave_out=()):
    path = root / ARCHIVE[name]
    with tarfile.open(path, "w:gz") as archive:
        for file, content in CONTENT[name].items():
            data = dumps(content)
            member = tarfile.TarInfo(f"{FOLDER[name]}/{file}")
            member.size = len(data)
            if file not in leave_out:
                archive.addfile(member, io.BytesIO(data))
    return path


def check(data, name):
    content = CONTENT[name]
    labels = b"labels" if name == "cifar10" else b"fine_labels"
    train = [content[file] for file in content if "meta" not in file and "test" not in file]
    test = content["test_batch" if name == "cifar10" else "test"]
    pixels = np.concatenate([part[b"data"] for part in train])
    classes = np.concatenate([part[labels] for part in train])
    assert data.classes == tuple(f"class {i}" for i in range(len(data.classes)))
    assert (data.channels, data.size, len(data.val)) == (3, (32, 32), len(pixels) // 10)
    assert len(data.train) + len(data.val) == len(pixels)
    for part in (data.train, data.val):
        assert np.array_equal(part.x.flatten(1).numpy(), pixels[part.index])
        assert np.array_equal(part.y.numpy(), classes[part.index])
    # a row is the red plane, then the green, then the blue, each row by row
    assert np.array_equal(data.test.x[3, 1, 2].numpy(), test[b"data"][3, 1024 + 64 : 1024 + 96])
    assert np.array_equal(data.test.y.numpy(), test[labels])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_unpacked_folder(tmp_path, name):
    write_folder(tmp_path, name)
    check(load(name, root=tmp_path), name)
    check(load(name, root=tmp_path / FOLDER[name]), name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive(tmp_path, name):
    write_archive(tmp_path, name)
    check(load(name, root=tmp_path), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE[name]], "nothing may be unpacked"


def test_a_download_is_the_archive_in_the_cache(tmp_path, monkeypatch):
    def fetch(url, checksum, folder):
        assert (url.rsplit("/", 1)[1], checksum) == (ARCHIVE["cifar10"], "md5:c58f30108f718f92721af3b95e74349a")
        folder.mkdir(parents=True)
        return write_archive(folder, "cifar10")

    monkeypatch.setattr(places, "fetch", fetch)
    check(load("cifar10"), "cifar10")


def test_the_test_s_pickles_are_what_pickle_reads():
    read = pickle.loads(dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 300]}), encoding="bytes")
    assert read[b"labels"] == [1, 300]
    assert np.array_equal(read[b"data"], np.zeros((2, 3), np.uint8))


def test_arrays_stored_by_columns_are_read_by_columns(tmp_path):
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert np.array_equal(cifar.unpickle(dumps({b"data": array}), tmp_path)[b"data"], array)


# --- malice and damage


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    attack = pickle.dumps({"data": Malicious(tmp_path / "owned")}, protocol=protocol)
    write_folder(tmp_path, "cifar10", test_batch=attack)
    with pytest.raises(
        GeophoneError, match=r"test_batch wants to call posix.mkdir, which CIFAR's files never do: it was not run"
    ):
        load("cifar10", root=tmp_path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(attack)
    assert (tmp_path / "owned").exists(), "the attack must be a real one"


@pytest.mark.parametrize("name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"os\nsystem"])
def test_no_other_name_is_looked_up(tmp_path, name):
    with pytest.raises(GeophoneError, match="it was not run"):
        cifar.unpickle(b"\x80\x02c" + name + b"\n(U\x011tR.", tmp_path)


WHOLE = dumps(CONTENT["cifar10"]["test_batch"])
BROKEN = {
    "truncated": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "not a pickle": b"<html>404</html>",
    "no dictionary": dumps([1, 2]),
    "no labels": dumps({b"data": CONTENT["cifar10"]["test_batch"][b"data"]}),
    "no pixels": dumps({b"labels": [1]}),
    "pixels of another size": dumps({b"labels": [1], b"data": np.zeros((1, 100), np.uint8)}),
    "an array of other numbers": WHOLE.replace(b"U\x02u1", b"U\x02i1"),
    "a label too high": dumps({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}),
    "too few labels": dumps({b"labels": [1, 2], b"data": np.zeros((3, 3072), np.uint8)}),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_batch_gives_one_clear_line(tmp_path, how):
    write_folder(tmp_path, "cifar10", test_batch=BROKEN[how])
    with pytest.raises(GeophoneError, match="test_batch") as caught:
        load("cifar10", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_class_names_that_are_missing(tmp_path):
    write_folder(tmp_path, "cifar10", **{"batches.meta": dumps({b"other": 1})})
    with pytest.raises(GeophoneError, match=r"batches.meta is .*no list 'label_names'"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_archive_gives_one_clear_line(tmp_path, kept):
    path = write_archive(tmp_path, "cifar10")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(GeophoneError, match=r"cifar-10-python.tar.gz is truncated, corrupt or .* get it again"):
        load("cifar10", root=tmp_path)


def test_an_archive_with_flipped_bits(tmp_path):
    path = write_archive(tmp_path, "cifar10")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(GeophoneError, match=r"cifar-10-python.tar.gz"):
        load("cifar10", root=tmp_path)


def test_an_archive_that_lacks_a_file(tmp_path):
    write_archive(tmp_path, "cifar10", leave_out=["data_batch_3"])
    with pytest.raises(GeophoneError, match=r"cifar-10-batches-py/data_batch_3 is not in it"):
        load("cifar10", root=tmp_path)


def test_offline_the_message_says_what_and_where_to(tmp_path):
    with pytest.raises(GeophoneError, match=r"CIFAR-100 .* cifar-100-python.tar.gz or cifar-100-python/ .*cache"):
        load("cifar100", root=tmp_path)


def nest(depth=60):
    """A tuple of tuples of tuples …, each ten times the same: a few bytes that nobody can walk through."""
    made = (0,) * 10
    for _ in range(depth):
        made = (made,) * 10
    return pickle.dumps(made, 2)[2:-1]


HURTFUL = {
    "more bytes than there are": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
    "an array of bytes of any size": b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".",
    "a key that takes for ever to hash": b"\x80\x02}" + nest() + b"K\x01s.",
    "keys that take for ever to hash": b"\x80\x02}(" + nest() + b"K\x01u.",
    "a whole number of many digits": b"I" + b"9" * 10_000 + b"\n.",
    "no dictionary": b"\x80\x02](K\x01e.",
}


def test_a_place_far_out_in_a_pickle_s_memo_costs_nothing(tmp_path):
    """Python's reader in C makes room for all places before it."""
    assert cifar.unpickle(b"\x80\x02}r\xfe\xff\xff\x7f.", tmp_path) == {}


@pytest.mark.parametrize("how", HURTFUL)
def test_a_pickle_that_was_written_to_hurt(tmp_path, how):
    with pytest.raises(GeophoneError, match="is truncated, corrupt or not one of CIFAR's files"):
        cifar.unpickle(HURTFUL[how], tmp_path)


def test_labels_that_are_lists_of_lists_are_not_walked(tmp_path):
    write_folder(tmp_path, "cifar10")
    path = tmp_path / FOLDER["cifar10"] / "test_batch"
    path.write_bytes(b"\x80\x02}(" + python2(b"data") + python2(np.zeros((1, 3072), np.uint8)) + python2(b"labels"))
    path.write_bytes(path.read_bytes() + b"]" + nest() + b"au.")
    with pytest.raises(GeophoneError, match="no pixels 'data' or no 'labels'"):
        load(f"cifar10(root={str(tmp_path)!r})")


def test_an_archive_that_unpacks_to_more_than_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MOST_UNPACKED", 1 << 16)
    write_archive(tmp_path, "cifar10")
    with pytest.raises(GeophoneError, match="it unpacks to more than 65536 bytes"):
        load(f"cifar10(root={str(tmp_path)!r})")
