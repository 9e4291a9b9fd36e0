"""Data sets in one `.npz` file: a user's own, and the one that the package carries."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS
from geophone.data.dataset import MOST_CLASSES, ImageData, Split, assemble, make_split
from geophone.data.images.idx import CLOTHES
from geophone.data.npy import read_npz

MINI = Path(__file__).with_name("fashion_mnist_mini.npz")
PARTS = ("", "_train", "_val", "_test")
"""How names of arrays end: of a file that is all test, then of one in parts."""


@DATASETS.register
def fashion_mnist_mini(root: Path | str | None = None) -> ImageData:
    """A tenth of Fashion-MNIST, in the package: 28×28 grey, 10 classes; 9,000 train, 1,000 validation, 2,000 test.

    Class-balanced: the first 1,000 train and 200 test images of each class; `index` is their place in the full set.

    Args:
        root: Not used: the file is in the package.

    References:
        Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    arrays, _ = read_npz(MINI)
    train, test = (
        make_split(arrays[f"x_{part}"], arrays[f"y_{part}"], str(MINI), arrays[f"index_{part}"], len(CLOTHES))
        for part in ("train", "test")
    )
    return assemble("fashion_mnist_mini", CLOTHES, test, train)


@DATASETS.register
def npz(path: Path | str) -> ImageData:
    """A user's arrays in an `.npz` file: `x_train, y_train, x_test, y_test`, or `x, y`, which are all test.

    `x_val, y_val` are the validation part where there are any; else a tenth of the train part becomes it. `classes`, a
    list of names, is optional, and so are the labels of the test part. Images are uint8, or floats in [0, 1], of the
    shape `[n, c, h, w]`, `[n, h, w]` or `[n, h, w, c]`; labels are integers from 0.

    Raises:
        GeophoneError: the file is missing, truncated or holds something else.
    """
    path = Path(os.path.expanduser(path))
    arrays, there = read_npz(path, {"classes", *(f"{kind}{part}" for part in PARTS for kind in "xy")})
    names = {part[1:]: part for part in PARTS[1:]}
    if "x_test" not in arrays and "x_train" not in arrays:
        names = {"test": ""}
    if f"x{names['test']}" not in arrays:
        raise GeophoneError(
            f"{path} holds {', '.join(there[:24]) or 'nothing'}; "
            "allowed are x_train, y_train, x_test, y_test (and x_val, y_val), or x, y."
        )
    parts: dict[str, Split] = {}
    for part, suffix in names.items():
        x, y = arrays.get(f"x{suffix}"), arrays.get(f"y{suffix}")
        if y is None and x is not None and part != "test":
            raise GeophoneError(f"{path}: x{suffix} has no y{suffix}; only the test part may be without labels.")
        if x is None and y is not None:
            raise GeophoneError(f"{path}: y{suffix} has no x{suffix}; give the images that the labels are of.")
        if x is not None:
            parts[part] = make_split(x, y, f"{path}, {part} part")
    most = 1 + max(int(part.y.max()) for part in parts.values())
    classes = _classes(arrays["classes"], path) if "classes" in arrays else tuple(str(label) for label in range(most))
    if len(classes) < most:
        raise GeophoneError(f"{path}: labels go up to {most - 1}, but `classes` has {len(classes)} names.")
    parts_of_it = parts["test"], parts.get("train"), parts.get("val")
    return assemble(path.stem, classes, *parts_of_it, named="classes" in arrays)


def _classes(names: NDArray[np.generic], path: Path) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "USiu" or len(names) > MOST_CLASSES:
        raise GeophoneError(
            f"{path}: `classes` is {names.dtype} {list(names.shape)}; allowed is [k], a name for each class."
        )
    return tuple(str(name, "utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
