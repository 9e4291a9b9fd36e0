"""Make the subset of Fashion-MNIST that the package carries, byte for byte.

    python scripts/make_fashion_mnist_mini.py [SOURCE] [TARGET]

SOURCE is a folder with the four files of Fashion-MNIST (default: where Debian's dataset-fashion-mnist puts them),
TARGET the .npz to write (default: the package's). The first 1,000 train and 200 test images of each class are taken,
in source order; the file's SHA-256 is written beside it.
"""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geophone.core.files import replacing, write_text
from geophone.data.arrays import MINI
from geophone.data.dataset import make_split
from geophone.data.images.idx import FILES, SETS, read_checked

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def make(source: Path, target: Path) -> str:
    """Write the subset and its checksum; return the checksum."""
    arrays: dict[str, NDArray] = {}
    for part, first, n in (("train", 0, 10_000), ("test", 2, 2_000)):
        x, y = (
            read_checked(source / f"{FILES[i]}.gz", SETS["fashion_mnist"].sha256[i], "Fashion-MNIST")
            for i in (first, first + 1)
        )
        split = make_split(x, y, part).take(n)
        arrays[f"x_{part}"] = split.x[:, 0].numpy()
        arrays[f"y_{part}"] = split.y.numpy().astype(np.uint8)
        arrays[f"index_{part}"] = split.index.numpy().astype(np.uint16)
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(
                f"{name}.npy", "w"
            ) as member:  # opened by name, a member is dated 1980: same arrays, same bytes
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
    checksum = hashlib.sha256(target.read_bytes()).hexdigest()
    write_text(target.with_name(f"{target.name}.sha256"), f"{checksum}  {target.name}\n")
    return checksum


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    source, target = (*given, *(DEBIAN, MINI)[len(given) :])
    print(make(source, target), target)
