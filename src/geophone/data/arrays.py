"""Data sets in one `.npz` file: a user's own, and the one that the package carries."""

import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geophone.data.idx import CLOTHES
from geophone.data.split import ImageData, Split, assemble, make_split
from geophone.errors import GeophoneError
from geophone.registry import DATASETS

MINI = Path(__file__).with_name("fashion_mnist_mini.npz")


@DATASETS.register
def fashion_mnist_mini(root: Path | str | None = None) -> ImageData:
    """A tenth of Fashion-MNIST, in the package: 28×28 grey, 10 classes; 9,000 train, 1,000 validation, 2,000 test.

    Class-balanced: the first 1,000 train and 200 test images of each class; `index` is their place in the full set.

    Args:
        root: Not used: the file is in the package.

    References:
        Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    arrays = read_npz(MINI)
    train, test = (
        make_split(arrays[f"x_{part}"], arrays[f"y_{part}"], str(MINI), arrays[f"index_{part}"], len(CLOTHES))
        for part in ("train", "test")
    )
    return assemble("fashion_mnist_mini", CLOTHES, test, train)


@DATASETS.register
def npz(path: Path | str) -> ImageData:
    """A user's arrays in an `.npz` file: `x_train, y_train, x_test, y_test`, or `x, y`, which are all test.

    `x_val, y_val` are the validation part where there are any; else a tenth of the train part becomes it. `classes`, a
    list of names, is optional. Images are uint8, or floats in [0, 1], of the shape `[n, c, h, w]`, `[n, h, w]` or
    `[n, h, w, c]`; labels are integers from 0.

    Raises:
        GeophoneError: the file is missing, truncated or holds something else.
    """
    path = Path(path).expanduser()
    arrays = read_npz(path)
    names = {key: (f"x_{key}", f"y_{key}") for key in ("train", "val", "test")}
    if "x_test" not in arrays and "x_train" not in arrays:
        names = {"test": ("x", "y")}
    parts: dict[str, Split] = {}
    for part, (x, y) in names.items():
        if x in arrays and y in arrays:
            parts[part] = make_split(arrays[x], arrays[y], f"{path}, {part} part")
    if "test" not in parts:
        raise GeophoneError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; "
            "allowed are x_train, y_train, x_test, y_test (and x_val, y_val), or x, y."
        )
    most = 1 + max(int(part.y.max()) for part in parts.values())
    classes = tuple(str(name) for name in arrays.get("classes", range(most)))
    if len(classes) < most:
        raise GeophoneError(f"{path}: labels go up to {most - 1}, but `classes` has {len(classes)} names.")
    return assemble(path.stem, classes, parts["test"], parts.get("train"), parts.get("val"))


def read_npz(path: Path) -> dict[str, NDArray]:
    """All arrays of an `.npz` file, never unpickling any.

    Raises:
        GeophoneError: the file is missing, truncated, corrupt, or holds Python objects.
    """
    if not path.is_file():
        raise GeophoneError(f"no file at {path}. Give the path of an .npz file.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise GeophoneError(
            f"{path} is truncated, corrupt or not an .npz of plain arrays ({error}). Write or get it again."
        ) from None
