"""Data by name or path."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import DATASETS
from geophone.data.arrays import npz
from geophone.data.dataset import ImageData, Split, make_split
from geophone.data.images.folders import imagefolder
from geophone.data.places import called


@checked
def load(name_or_path: str | Path, *, root: Path | str | None = None) -> ImageData:
    """A data set by its registered name, as code such as `synthetic(classes=10)`, or by the path of a file or folder.

    A string that is a registered name goes before a file of that name; `./mnist` or a `Path` is always a path.

    Args:
        name_or_path: `geophone list data` shows the names. A path is an `.npz` file (see `npz`) or a folder of images
            (see `imagefolder`).
        root: Folder in which a named data set is looked for first, before `$GEOPHONE_DATA`, the user's cache and the
            system's folders.

    Raises:
        GeophoneError: no such name or path, arguments of another type, or files that are missing or broken.
    """
    if isinstance(name_or_path, str) and name_or_path.partition("(")[0].strip() in DATASETS:
        return DATASETS.build(name_or_path) if root is None else DATASETS.build(name_or_path, root=root)
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path and os.path.isdir(path):
        return imagefolder(path)
    if path.suffix == ".npz":
        return npz(path)
    if name_or_path and os.path.exists(path):
        raise GeophoneError(
            f"{called(path)} is neither an .npz file nor a folder of images; give one of these, or a name."
        )
    raise unknown(
        "data set", called(name_or_path), DATASETS, "Or give the path of an .npz file or of a folder of images."
    )


def as_split(data: Any, classes: int | None = None) -> Split:
    """Checked examples from whatever a user has.

    Args:
        data: A split; a data set, or the name or path of one (its test part); a pair of images and labels, tensors
            or arrays: uint8 or floats in [0, 1], `[n, c, h, w]`, `[n, h, w]` or `[n, h, w, c]`, and integers `[n]`;
            or images alone, whose labels are then absent.
        classes: How many classes the network has, if known: labels must be below.

    Raises:
        GeophoneError: something else, images outside [0, 1], NaN, labels that are not integers or out of range, lengths
            that differ, no examples.
    """
    if isinstance(data, str | Path):
        data = load(data)
    if isinstance(data, ImageData):
        return _checked(data.test, f"{data.name}, test part", classes)
    if isinstance(data, Split):
        return _checked(data, "the split", classes)
    if isinstance(data, tuple | list) and len(data) == 2:
        x, y = data
        return make_split(x, y, "the data", classes=classes)
    if isinstance(data, Tensor | np.ndarray):
        return make_split(data, None, "the data")
    raise GeophoneError(
        f"data of the type {type(data).__name__} can't be read; "
        "allowed are a data set's name or path, an ImageData, a Split, a pair (images, labels), or images."
    )


def _checked(split: Split, where: str, classes: int | None) -> Split:
    y = split.y if split.labelled else None
    return make_split(split.x, y, where, split.index, classes, split.outputs)
