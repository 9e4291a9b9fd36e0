"""Writing files so that a reader never sees half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geophone.errors import GeophoneError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    The data are flushed to the disk before the rename, so a power cut leaves the old file or the new one. When the
    block raises, the temporary file is removed and `path` is as it was.

    Raises:
        GeophoneError: the folder can't be made or written.
    """
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=folder)
    except OSError as error:
        raise GeophoneError(
            f"cannot write in {folder}: {error.strerror}. Choose a folder that you may write to."
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush(folder)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents; one clear error when that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GeophoneError(
            f"cannot make the folder {folder}: {error.strerror}. Choose one that you may write to."
        ) from None
    if not os.access(folder, os.W_OK):
        raise GeophoneError(f"cannot write in {folder}: permission denied. Choose a folder that you may write to.")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
