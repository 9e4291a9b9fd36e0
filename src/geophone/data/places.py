"""Where data sets are looked for, how their files are read, and how missing ones are fetched."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pooch

from geophone.core.errors import GeophoneError

SYSTEM = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))


def cache() -> Path:
    """The user's own folder for data sets, where downloads go."""
    return Path(pooch.os_cache("geophone"))


def search_path(root: Path | str | None = None) -> list[Path]:
    """The folders to look in, in order: `root`, those of `$GEOPHONE_DATA`, the user's cache, the system's."""
    named = [Path(os.path.expanduser(part)) for part in os.environ.get("GEOPHONE_DATA", "").split(os.pathsep) if part]
    return [*([Path(os.path.expanduser(root))] if root else []), *named, cache(), *SYSTEM]


def candidates(folders: tuple[str, ...], root: Path | str | None) -> Iterator[Path]:
    """Each folder of the search path, first its subfolders of these names and then itself."""
    for base in search_path(root):
        yield from (base / folder for folder in folders)
        yield base


def called(path: Path | str) -> str:
    """A path in a message, its middle left out where it is longer than any line."""
    text = str(path)
    return text if len(text) <= 400 else f"{text[:200]}…{text[-200:]}"


def reason(error: BaseException) -> str:
    """What a library says of a broken file, in a few words of one line."""
    first = str(error).partition("\n")[0][:200]
    return first or type(error).__name__


def read_bytes(path: Path, most: int) -> bytes:
    """A file's bytes, decompressed where its name ends in `.gz`.

    Raises:
        GeophoneError: it is missing, truncated, corrupt, no plain file, or larger than `most` bytes, decompressed.
    """
    try:
        if not os.path.isfile(path):  # reading a pipe would wait for ever
            raise OSError("there is no such file")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise OSError(f"it has more than the {most} bytes that such a file has")
        return content
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise GeophoneError(
            f"{called(path)} is truncated, corrupt or not readable ({reason(error)}). Delete it and get it again."
        ) from None


def fetch(url: str, checksum: str, folder: Path) -> Path:
    """Download one file into a folder, whole and checked or not at all. The only place that touches the network.

    Raises:
        OSError, ValueError: as pooch has them; `obtain` makes one clear message of them.
    """
    downloader = pooch.HTTPDownloader(timeout=10)
    return Path(pooch.retrieve(url, checksum, fname=Path(url).name, path=folder, downloader=downloader))


def obtain(title: str, wanted: str, files: dict[str, str], folder: str, root: Path | str | None) -> Path:
    """Download the files of a data set into the user's cache, and return their folder.

    Args:
        title: The data set's name.
        wanted: What was looked for in vain.
        files: Address to checksum ("md5:…").
        folder: The cache's subfolder for them.
        root: The root that was searched.

    Raises:
        GeophoneError: no network, a wrong checksum, an unwritable cache.
    """
    place = cache() / folder
    for url, checksum in files.items():
        try:
            fetch(url, checksum, place)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
            folders = ", ".join(str(base) for base in search_path(root))
            raise GeophoneError(
                f"{title} was not found: looked for {wanted} in {folders} (and the usual subfolders), and the "
                f"download of {url} failed ({type(error).__name__}). "
                f"Put the files into {place} or a folder that $GEOPHONE_DATA names."
            ) from None
    return place
