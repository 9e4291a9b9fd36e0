"""Writing files so that a reader never sees half of one, and two commands never mix theirs."""

import glob
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from geophone.core.errors import GeophoneError

LOCK = ".lock"
"""The file in a folder that is locked while a command writes there."""

_ROOMY = 200  # bytes of a name that leave room for an ending; file systems take 255
_PROBE = 1 << 20  # bytes: more than a file system keeps back


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    The data are flushed to the disk before the rename, so a power cut leaves the old file or the new one. When the
    block raises, the temporary file is removed, with the folders that were made for it, and `path` is as it was.

    Raises:
        GeophoneError: the folder can't be made or written, or the disk is full or fails.
    """
    with ExitStack() as undo:
        temporary = _temporary(path, undo)
        with _explained(path, temporary):
            yield temporary
            _finish(temporary)
            temporary.replace(path)
            _flush(path.parent)
        undo.pop_all()


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files whole, and all of them or none: no file is replaced before each of them is on the disk.

    Raises:
        GeophoneError: as of `replacing`.
    """
    with ExitStack() as undo:
        ready = {}
        for path, content in files.items():
            ready[path] = _temporary(path, undo)
            with _explained(path, ready[path]):
                ready[path].write_bytes(content)
                _finish(ready[path])
        for path, temporary in ready.items():
            with _explained(path, temporary):
                temporary.replace(path)
        undo.pop_all()
    for folder in {path.parent for path in files}:
        _flush(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents; one clear error when that is not allowed."""
    _made(folder)
    return folder


@contextmanager
def reserved(folder: Path | None, *files: Path) -> Iterator[None]:
    """Keep a folder and files for one command: made where they are missing, checked and locked before its work.

    What a command that was killed left half-written there is cleared away. When the block raises, the folders that
    were made here are removed again if they are empty.

    Args:
        folder: Where the command writes files of any name.
        files: Files that it writes elsewhere.

    Raises:
        GeophoneError: a folder can't be made or written, a name can't be a file's, or another command writes there.
    """
    with ExitStack() as undo, ExitStack() as held:
        if folder is not None:
            _try(folder / LOCK, undo)
            held.enter_context(_locked(folder / LOCK, f"in {folder}"))
            for part in (folder, folder / "table", folder / "figures"):
                clear(part)
        for file in files:
            _try(file, undo)
            _check_file(file)
            held.enter_context(_locked(file.with_name(f"{_hidden(file)}{LOCK}"), str(file)))
            clear(file.parent, _hidden(file))
        yield
        undo.pop_all()


def clear(folder: Path, start: str = ".") -> None:
    """Remove the temporary files that killed commands left in a folder."""
    for leftover in folder.glob(f"{glob.escape(start)}*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def _locked(lock: Path, where: str) -> Iterator[None]:
    """A lock that nobody else has, on a file that is removed with it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise GeophoneError(f"another run is writing {where}. Wait for it, or choose another --out.") from None
    except (OSError, NotImplementedError) as error:
        raise GeophoneError(
            f"cannot write {where}: {_reason(error)}. Choose a folder that you may write to, on another disk."
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        held.release()


def _check_file(path: Path) -> None:
    """Raise an error for a name that a file can't have, or that is something else's."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise GeophoneError(f"cannot write {path}: {_reason(error)}. Choose another name.") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise GeophoneError(f"cannot write {path}: it is {what}. Choose another name.")


def _temporary(path: Path, undo: ExitStack) -> Path:
    """An empty file beside `path`, whose folder is made; `undo` removes what was made."""
    _make(path.parent, undo)
    try:
        handle, name = tempfile.mkstemp(prefix=f"{_hidden(path)}.", suffix=".tmp", dir=path.parent)
    except (OSError, ValueError) as error:
        raise GeophoneError(
            f"cannot write in {path.parent}: {_reason(error)}. Choose a folder that you may write to."
        ) from None
    os.close(handle)
    undo.callback(Path(name).unlink, missing_ok=True)
    return Path(name)


def _try(path: Path, undo: ExitStack) -> None:
    """Make the folder of `path` and write in it, where permissions don't tell whether that can be done."""
    with ExitStack() as tried:
        _temporary(path, tried)
    _make(path.parent, undo)


def _hidden(path: Path) -> str:
    """How the names of a file's lock and temporary files begin; the longest names leave no room for more letters."""
    name = path.name
    if len(os.fsencode(name)) > _ROOMY:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"
    return f".{name}"


def _make(folder: Path, undo: ExitStack) -> None:
    for made in _made(folder):
        undo.callback(_remove_empty, made)


def _made(folder: Path) -> list[Path]:
    """Make a folder and its parents; those that were missing, the outermost first."""
    missing: list[Path] = []
    try:
        missing += [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        for one in missing:
            _remove_empty(one)
        raise GeophoneError(
            f"cannot make the folder {folder}: {_reason(error)}. Choose one that you may write to."
        ) from None
    if not os.access(folder, os.W_OK):
        for one in missing:
            _remove_empty(one)
        raise GeophoneError(f"cannot write in {folder}: permission denied. Choose a folder that you may write to.")
    return missing[::-1]


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """An error that says which file couldn't be written where the disk is why."""
    try:
        yield
    except GeophoneError:
        raise
    except Exception as error:
        reason = _reason(error) if isinstance(error, OSError) else _trouble(error, temporary)
        if reason is None:
            raise
        raise GeophoneError(
            f"cannot write {path}: {reason}. Make room, or write elsewhere; what was there is as it was."
        ) from error


def _trouble(error: Exception, temporary: Path) -> str | None:
    """What the disk has against a file that a library failed to write; None where it has nothing.

    Polars and safetensors give the system's number in their message. Torch says nothing of the disk: so write on.
    """
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(number[1]))
    try:
        with temporary.open("ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as trouble:
        return _reason(trouble)
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _finish(temporary: Path) -> None:
    _flush(temporary)
    temporary.chmod(0o644)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
