"""NumPy's formats, read from files that may be broken or hostile: sizes are checked before anything is allocated."""

import math
import os
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geophone.core.errors import GeophoneError
from geophone.data.places import called, reason

HEADER = 10_000
"""Bytes of a header that are read: NumPy's own bound, which keeps deep nests from its parser."""

MOST_PACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1_033, zipfile.ZIP_BZIP2: 50_000, zipfile.ZIP_LZMA: 10_000}
"""How many bytes a byte of an archive can become, by its compression; an entry that claims more is broken."""


def read_npz(path: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """Arrays of an `.npz` file, never unpickling any, and the names of all that it holds.

    An array is read after its declared shape was found to be the size of its entry, and that possible for the bytes
    that the archive has for it.

    Args:
        path: The file.
        wanted: Names of the arrays to read, if they are there; default all.

    Raises:
        GeophoneError: the file is missing, truncated, corrupt, or holds Python objects.
    """
    if not os.path.isfile(path):
        raise GeophoneError(f"no file at {called(path)}. Give the path of an .npz file.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            most = os.path.getsize(path)
            return {
                name: _read_entry(archive, entry, most)
                for name, entry in entries.items()
                if wanted is None or name in wanted
            }, list(entries)
    except Exception as error:  # a corrupt archive or header can raise anything, a deep one RecursionError
        raise GeophoneError(
            f"{called(path)} is truncated, corrupt or not an .npz of plain arrays ({reason(error)}). "
            "Write or get it again."
        ) from None


def map_npy(path: Path) -> NDArray[np.generic]:
    """An `.npy` file as an array whose rows are read when they are used.

    Raises:
        GeophoneError: the file is missing, truncated, corrupt, or holds Python objects.
    """
    if not os.path.isfile(path):
        raise GeophoneError(f"no file at {called(path)}. It belongs to the set: get it from the same archive.")
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = read_header(file)
            start = file.tell()
        _check_size(shape, dtype, os.path.getsize(path) - start)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
    except Exception as error:  # a corrupt header can raise anything, a deep one RecursionError
        raise GeophoneError(
            f"{called(path)} is truncated, corrupt or not an .npy of plain numbers ({reason(error)}). Get it again."
        ) from None


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether columns come first, and type of number of an `.npy` stream, which is left at its values.

    Raises:
        ValueError: there is none, or it is of Python objects; whatever else NumPy's parser raises.
    """
    version = np.lib.format.read_magic(file)
    if version > (2, 0):
        raise ValueError("it is of a version for arrays with named fields")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of Python 2 are read with a warning
        try:
            shape, fortran, dtype = read(file, max_header_size=HEADER)
        except (MemoryError, RecursionError):  # Python's parser on a deep nest
            raise ValueError("its header is nested too deep") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    if min(shape, default=0) < 0:
        raise ValueError(f"its header says that it has the shape {list(shape)}")
    return shape, fortran, dtype


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> NDArray[np.generic]:
    """One array of an archive of `most` bytes."""
    packed = min(entry.compress_size, most)
    if entry.file_size > MOST_PACKED.get(entry.compress_type, 1) * packed + HEADER:
        raise ValueError(f"{entry.filename} claims {entry.file_size} bytes, of {packed} packed ones")
    with archive.open(entry) as file:
        shape, fortran, dtype = read_header(file)
        left = entry.file_size - file.tell()
        content = file.read(_check_size(shape, dtype, left))
        while file.read(1 << 20):  # to the end, where the checksum is compared
            pass
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


def _check_size(shape: tuple[int, ...], dtype: np.dtype[np.generic], bytes_there: int) -> int:
    """How many bytes the values take, which must be there."""
    needed = math.prod(shape) * dtype.itemsize
    if needed > bytes_there:
        raise ValueError(f"its header says {dtype} {list(shape)}, {needed} bytes, and it has {bytes_there}")
    return needed
