"""CIFAR-10 and CIFAR-100: the original Python archives, packed or unpacked, read without running what is in them."""

import gzip
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.data import places
from geophone.data.dataset import ImageData, Split, assemble, make_split


@dataclass(frozen=True)
class CifarSet:
    """What is fixed about one of the two archives.

    Attributes:
        title: Its name for messages.
        archive: File name of the archive; its folder at the public address is `URL`.
        md5: Of the archive.
        folder: The folder inside it.
        train: Batch files of the train part.
        test: Batch files of the test part.
        labels: Key of the labels in a batch.
        meta: The file of class names.
        names: Key of the class names in it.
        classes: How many there are.
    """

    title: str
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    meta: str
    names: bytes
    classes: int


MOST_BYTES = 1 << 28
"""Of one file: the largest, CIFAR-100's train, has 155,249,918."""
MOST_UNPACKED = 1 << 28
"""Of one archive: all of its files have 186 million."""

_OPCODES = {
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
    *(pickle.BUILD, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.NONE, pickle.NEWTRUE),
    *(pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
}

URL = "https://www.cs.toronto.edu/~kriz/"

CIFAR10 = CifarSet(
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    labels=b"labels",
    meta="batches.meta",
    names=b"label_names",
    classes=10,
)

CIFAR100 = CifarSet(
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    labels=b"fine_labels",
    meta="meta",
    names=b"fine_label_names",
    classes=100,
)


@DATASETS.register
def cifar10(root: Path | str | None = None) -> ImageData:
    """CIFAR-10: 32×32 colour photographs of 10 classes; 45,000 train, 5,000 validation, 10,000 test.

    Args:
        root: Folder with `cifar-10-python.tar.gz` or `cifar-10-batches-py/`, looked in first; then `$GEOPHONE_DATA`,
            the user's cache, the system's folders, the network.

    References:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    return _load("cifar10", CIFAR10, root)


@DATASETS.register
def cifar100(root: Path | str | None = None) -> ImageData:
    """CIFAR-100: 32×32 colour photographs of 100 (fine) classes; 45,000 train, 5,000 validation, 10,000 test.

    Args:
        root: Folder with `cifar-100-python.tar.gz` or `cifar-100-python/`, looked in first; then `$GEOPHONE_DATA`,
            the user's cache, the system's folders, the network.

    References:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    return _load("cifar100", CIFAR100, root)


def _load(name: str, fixed: CifarSet, root: Path | str | None) -> ImageData:
    source, files = _find(fixed, root)
    meta = unpickle(files[fixed.meta], source / fixed.meta)
    try:
        classes = tuple(str(label, "utf-8") for label in meta[fixed.names])
    except (KeyError, TypeError, ValueError):
        raise _broken(source / fixed.meta, f"no list '{fixed.names.decode()}'") from None
    train, test = (_split(fixed, part, files, source) for part in (fixed.train, fixed.test))
    return assemble(name, classes, test, train)


def _find(fixed: CifarSet, root: Path | str | None) -> tuple[Path, dict[str, bytes]]:
    """The first folder or archive on the search path, and the content of its files."""
    wanted = (*fixed.train, *fixed.test, fixed.meta)
    for base in places.candidates((), root):
        for folder in (base / fixed.folder, base):
            if all(os.path.isfile(folder / file) for file in wanted):
                return folder, {file: places.read_bytes(folder / file, MOST_BYTES) for file in wanted}
        if os.path.isfile(base / fixed.archive):
            return base / fixed.archive, read_archive(base / fixed.archive, fixed.folder, wanted)
    looked_for = f"{fixed.archive} or {fixed.folder}/"
    url = URL + fixed.archive
    archive = places.obtain(fixed.title, looked_for, {url: f"md5:{fixed.md5}"}, "", root) / fixed.archive
    return archive, read_archive(archive, fixed.folder, wanted)


def read_archive(path: Path, folder: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The content of files of one folder of a tar.gz, read in one pass; nothing is unpacked to disk.

    Raises:
        GeophoneError: the archive is truncated or corrupt, too large, or lacks a file.
    """
    files = {}
    try:
        with gzip.open(path) as packed:
            stream: Any = _Bounded(packed, MOST_UNPACKED)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    place, _, file = member.name.removeprefix("./").partition("/")
                    if place != folder or file not in wanted or not member.isreg() or member.issparse():
                        continue
                    if member.size > MOST_BYTES:
                        raise OSError(f"{file} has {member.size} bytes, and none of them has more than {MOST_BYTES}")
                    content = archive.extractfile(member)
                    if content:
                        files[file] = content.read()
            while stream.read(1 << 20):  # gzip compares its checksum at the end, which tar does not read
                pass
    except Exception as error:  # a corrupt archive can raise anything
        raise _broken(path, places.reason(error)) from None
    missing = [file for file in wanted if file not in files]
    if missing:
        raise _broken(path, f"{folder}/{missing[0]} is not in it")
    return files


class _Bounded:
    """A stream that may not give more bytes than a bound: a small archive can unpack to any size."""

    def __init__(self, stream: Any, most: int) -> None:
        self.stream, self.left = stream, most

    def read(self, size: int) -> bytes:
        content: bytes = self.stream.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise OSError(f"it unpacks to more than {MOST_UNPACKED} bytes")
        return content


def _split(fixed: CifarSet, part: tuple[str, ...], files: dict[str, bytes], source: Path) -> Split:
    images, labels = [], []
    for file in part:
        batch = unpickle(files[file], source / file)
        try:
            images.append(batch[b"data"].reshape(-1, 3, 32, 32))
            if not all(type(label) is int for label in batch[fixed.labels]):  # a list of lists can be of any size
                raise TypeError
            labels.append(np.array(batch[fixed.labels], np.int64))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            raise _broken(source / file, f"no pixels 'data' or no '{fixed.labels.decode()}'") from None
    where = f"{source}, {' '.join(part)}"
    return make_split(np.concatenate(images), np.concatenate(labels), where, classes=fixed.classes)


def unpickle(data: bytes, path: Path) -> dict[bytes, Any]:
    """A pickled dictionary of Python's plain types and uint8 arrays; nothing else in a pickle is made or run.

    Python 2's strings come as bytes. Arrays are rebuilt from their bytes here: NumPy's own reconstruction would trust
    the pickle's description of memory.

    Raises:
        GeophoneError: the pickle is truncated or corrupt, or names anything but a NumPy array.
    """
    try:
        content = _Unpickler(data, path).load()
        return {key: value.array() if isinstance(value, _Array) else value for key, value in content.items()}
    except GeophoneError:
        raise
    except KeyError:
        raise _broken(path, "it is no dictionary of plain lists and arrays") from None
    except Exception as error:  # a corrupt pickle can raise anything
        raise _broken(path, f"{type(error).__name__}: {places.reason(error)}") from None


class _Unpickler(pickle._Unpickler):  # Python's own; the one in C allocates whatever size a pickle names
    """Knows the three names that NumPy's arrays are pickled under, and stands in for each of them.

    It reads the opcodes of dictionaries, lists, text, bytes, integers and arrays, and dictionaries whose keys are text:
    hashing a tuple of tuples of tuples can take for ever.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(BytesIO(data), encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if f"{module}.{name}" not in _STAND_INS:
            raise GeophoneError(
                f"{self.path} wants to call {module}.{name}, which CIFAR's files never do: it was not run. "
                "Delete the file and get the original."
            )
        return _STAND_INS[f"{module}.{name}"]

    def set_item(self) -> None:
        """SETITEM: the value and the key above a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_text(key)] = value

    def set_items(self) -> None:
        """SETITEMS: all keys and values above the mark."""
        items = self.pop_mark()
        self.stack[-1].update({_text(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def dictionary(self) -> None:
        """DICT: a dictionary of all keys and values above the mark."""
        items = self.pop_mark()
        self.append({_text(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: read for code, read in pickle._Unpickler.dispatch.items() if bytes([code]) in _OPCODES},
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.DICT[0]: dictionary,
    }


def _text(key: Any) -> str | bytes:
    if not isinstance(key, str | bytes):
        raise ValueError(f"a key of the type {type(key).__name__}")
    return key


class _Array:
    """What a pickle says about an array."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _Type) or dtype.code not in (b"u1", b"|u1"):
            raise ValueError("an array of something else than bytes")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


class _Type:
    """What a pickle says about an array's type of number."""

    def __init__(self, code: bytes, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Byte order and alignment, which bytes have none of."""


_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
}


def _broken(path: Path, reason: str) -> GeophoneError:
    return GeophoneError(
        f"{places.called(path)} is truncated, corrupt or not one of CIFAR's files ({reason}). "
        "Delete it and get it again."
    )
