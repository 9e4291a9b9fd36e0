"""Checksums inside the files that Geophone writes, so that a damaged one is noticed when it is read.

A file carries the text `geophone.sha256=` and 64 hexadecimal digits where its format has room for a text: the SHA-256
of the whole file with zeros in place of those digits. That is one file, so it is replaced whole or not at all, and
what the digits mean does not depend on the version of the library that reads it. Files of earlier versions carry none
and are read as they are, and so is a JSON file whose "checksum" was taken out by whoever edited it.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from geophone.core.errors import GeophoneError
from geophone.core.files import replacing

LABEL = "geophone.sha256="
BLANK = f"{LABEL}{'0' * 64}"
"""What a writer puts into its file, for `sealed` to fill in."""

KEY = "checksum"
"""Under which name the text stands in a file's metadata."""

LARGEST_JSON = 64 << 20
"""Bytes of a JSON file that is read at all: those of the largest studies have some hundred kilobytes."""

_FOREIGN = {"ARROW:schema", "pandas"}  # what other writers of Parquet put into its metadata

_SEAL = re.compile(re.escape(LABEL.encode()) + rb"([0-9a-f]{64})")


def sealed(data: bytes) -> bytes:
    """The file's bytes with their checksum in place of the one `BLANK` in them."""
    if data.count(BLANK.encode()) != 1:
        raise ValueError(f"a file needs {BLANK!r} exactly once to be sealed")
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(BLANK.encode(), f"{LABEL}{digest}".encode())


def is_sealed(data: bytes) -> bool:
    """Whether the bytes carry a checksum."""
    return _SEAL.search(data) is not None


def is_whole(data: bytes) -> bool:
    """Whether the bytes are what was written: False where a checksum says otherwise; True where there is none."""
    found = list(_SEAL.finditer(data))
    if not found:
        return True
    # A text of the user's may hold what looks like one: the file's own is the one that fits.
    digests = (
        (hashlib.sha256(data[: seal.start(1)] + b"0" * 64 + data[seal.end(1) :]).hexdigest(), seal) for seal in found
    )
    return any(digest.encode() == seal[1] for digest, seal in digests)


def read_checked(path: Path, remedy: str) -> bytes:
    """The bytes of a file that are what was written.

    Raises:
        GeophoneError: it can't be read, or its checksum does not fit.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise GeophoneError(f"{path} is not a file. {remedy}")
        data = path.read_bytes()
    except OSError as error:
        raise GeophoneError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    if not is_whole(data):
        raise GeophoneError(f"{path} is corrupt (its contents do not fit its checksum). {remedy}")
    return data


def parquet(frame: pl.DataFrame) -> bytes:
    """A data frame as a Parquet file with its checksum."""
    made = io.BytesIO()
    frame.write_parquet(made, compression="zstd", metadata={KEY: BLANK})
    return sealed(made.getvalue())


def read_parquet(path: Path, remedy: str) -> pl.DataFrame:
    """A data frame that `parquet` or an earlier version wrote.

    Raises:
        GeophoneError: it can't be read, or its checksum does not fit.
    """
    data = read_checked(path, remedy)
    try:
        frame = pl.read_parquet(data, use_pyarrow=False)
        if not is_sealed(data) and pl.read_parquet_metadata(io.BytesIO(data)).keys() - _FOREIGN:
            raise ValueError("its checksum is damaged")
        return frame
    except (Exception, pl.exceptions.PanicException) as error:  # polars fails on broken files in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GeophoneError(f"{path} is corrupt ({reason}). {remedy}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON with its checksum, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """An object as a JSON file with its checksum."""
    # First, so that no cut takes it away and leaves an object whose other values are changed.
    return sealed(json.dumps({KEY: BLANK, **content}, indent=2).encode())


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """An object that `write_json` or an earlier version wrote.

    Raises:
        GeophoneError: it can't be read, is no object, or its checksum does not fit.
    """
    if path.is_file() and path.stat().st_size > LARGEST_JSON:
        raise GeophoneError(f"{path} is not readable: it is too large. {remedy}")
    data = read_checked(path, remedy)
    try:
        made = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise GeophoneError(f"{path} is not readable: it is no JSON. {remedy}") from None
    if not isinstance(made, dict):
        raise GeophoneError(f"{path} is not readable: it is no JSON object. {remedy}")
    if made.pop(KEY, None) is not None and not is_sealed(data):
        raise GeophoneError(f"{path} is not readable: its checksum is damaged. {remedy}")
    return made
