"""The published corrupted test sets: CIFAR-10-C and CIFAR-100-C (arrays), Tiny-ImageNet-C and ImageNet-C (folders)."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import DATASETS
from geophone.data import places
from geophone.data.dataset import ImageData, assemble, make_split
from geophone.data.images.folders import imagefolder
from geophone.data.npy import map_npy

SEVERITIES = range(1, 6)

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR10_CLASSES, CIFAR100_CLASSES = tuple(_CIFAR10.split()), tuple(_CIFAR100.split())


@dataclass(frozen=True)
class CorruptedSet:
    """What is fixed about one of the four sets.

    Attributes:
        folder: The folder that its archive unpacks to, which is also its title.
        record: Of Zenodo, where the archive is.
        sign: Pattern of what such a folder holds.
    """

    folder: str
    record: int
    sign: str


CIFAR10_C = CorruptedSet("CIFAR-10-C", 2535967, "*.npy")
CIFAR100_C = CorruptedSet("CIFAR-100-C", 3555552, "*.npy")
TINY_IMAGENET_C = CorruptedSet("Tiny-ImageNet-C", 2536630, "*/[1-5]")
IMAGENET_C = CorruptedSet("ImageNet-C", 2235448, "*/[1-5]")
FOLDERS = {fixed.folder for fixed in (CIFAR10_C, CIFAR100_C, TINY_IMAGENET_C, IMAGENET_C)}


@DATASETS.register
def cifar10_c(root: Path | str | None = None, corruption: str = "gaussian_noise", severity: int = 1) -> ImageData:
    """CIFAR-10-C: the CIFAR-10 test images under one published corruption at one of 5 severities; 10,000 test.

    Everything is test. `index` is the position in CIFAR-10's test set, so that rows match the clean images.

    Args:
        root: The folder `CIFAR-10-C` (`<corruption>.npy` and `labels.npy`) or the one that it is in, looked in first;
            then `$GEOPHONE_DATA`, the user's cache, the system's folders. It is never downloaded (2.9 GB).
        corruption: The name of a file in it, without `.npy`.
        severity: 1 to 5.

    Raises:
        GeophoneError: not found, no such corruption or severity, files that are broken or do not fit.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261; Zenodo record 2535967.
    """
    return _cifar_c("cifar10_c", CIFAR10_C, CIFAR10_CLASSES, root, corruption, severity)


@DATASETS.register
def cifar100_c(root: Path | str | None = None, corruption: str = "gaussian_noise", severity: int = 1) -> ImageData:
    """CIFAR-100-C: the CIFAR-100 test images under one published corruption at one of 5 severities; 10,000 test.

    Everything is test. `index` is the position in CIFAR-100's test set, so that rows match the clean images.

    Args:
        root: The folder `CIFAR-100-C` (`<corruption>.npy` and `labels.npy`) or the one that it is in, looked in first;
            then `$GEOPHONE_DATA`, the user's cache, the system's folders. It is never downloaded (2.9 GB).
        corruption: The name of a file in it, without `.npy`.
        severity: 1 to 5.

    Raises:
        GeophoneError: not found, no such corruption or severity, files that are broken or do not fit.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261; Zenodo record 3555552.
    """
    return _cifar_c("cifar100_c", CIFAR100_C, CIFAR100_CLASSES, root, corruption, severity)


@DATASETS.register
def tiny_imagenet_c(
    root: Path | str | None = None,
    corruption: str = "gaussian_noise",
    severity: int = 1,
    size: int | None = None,
    classes: Path | str | Sequence[str] | None = None,
) -> ImageData:
    """Tiny-ImageNet-C: 64×64 colour photographs of 200 classes under one published corruption at one of 5 severities.

    Everything is test. Class names are the folders' names; `index` is the position in the sorted list of files.

    Args:
        root: The folder `Tiny-ImageNet-C` (`<corruption>/<severity>/<wnid>/*.JPEG`) or the one that it is in, looked
            in first; then `$GEOPHONE_DATA`, the user's cache, the system's folders. It is never downloaded.
        corruption: The name of a folder in it.
        severity: 1 to 5.
        size: As in `imagefolder`; the published images need none.
        classes: As in `imagefolder`, where the network's outputs are not the folders in their sorted order.

    Raises:
        GeophoneError: not found, no such corruption or severity, or as `imagefolder`.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261; Zenodo record 2536630.
    """
    return _imagenet_c("tiny_imagenet_c", TINY_IMAGENET_C, root, corruption, severity, size, classes)


@DATASETS.register
def imagenet_c(
    root: Path | str | None = None,
    corruption: str = "gaussian_noise",
    severity: int = 1,
    size: int | None = None,
    classes: Path | str | Sequence[str] | None = None,
) -> ImageData:
    """ImageNet-C: 224×224 colour photographs of 1,000 classes under one published corruption at one of 5 severities.

    Everything is test. Class names are the folders' names; `index` is the position in the sorted list of files.

    Args:
        root: The folder `ImageNet-C` (`<corruption>/<severity>/<wnid>/*.JPEG`) or the one that it is in, looked in
            first; then `$GEOPHONE_DATA`, the user's cache, the system's folders. It is never downloaded.
        corruption: The name of a folder in it.
        severity: 1 to 5.
        size: As in `imagefolder`; the published images are cropped to 224×224 already and need none.
        classes: As in `imagefolder`, where the network's outputs are not the folders in their sorted order.

    Raises:
        GeophoneError: not found, no such corruption or severity, or as `imagefolder`.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261; Zenodo record 2235448.
    """
    return _imagenet_c("imagenet_c", IMAGENET_C, root, corruption, severity, size, classes)


def _cifar_c(
    name: str,
    fixed: CorruptedSet,
    classes: tuple[str, ...],
    root: Path | str | None,
    corruption: str,
    severity: int,
) -> ImageData:
    folder = _find(fixed, root)
    _check(folder, corruption, {file.stem for file in folder.glob("*.npy")} - {"labels"}, severity)
    path, labels_path = folder / f"{corruption}.npy", folder / "labels.npy"
    images, labels = map_npy(path), map_npy(labels_path)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) % 5 or not len(images):
        raise GeophoneError(
            f"{path} holds {images.dtype} {list(images.shape)}; allowed is uint8 [5n, 32, 32, 3], n images for each of "
            "5 severities. Get it again."
        )
    n = len(images) // 5
    if labels.shape not in ((n,), (5 * n,)):
        raise GeophoneError(
            f"{labels_path} has the shape {list(labels.shape)}, but {path.name} has {n} images of each severity; "
            f"allowed are {n} or {5 * n} labels. Get both from the same archive."
        )
    rows = slice((severity - 1) * n, severity * n)
    test = make_split(images[rows], labels[rows] if len(labels) > n else labels, str(path), classes=len(classes))
    return assemble(_code(name, corruption, severity), classes, test)


def _imagenet_c(
    name: str,
    fixed: CorruptedSet,
    root: Path | str | None,
    corruption: str,
    severity: int,
    size: int | None,
    classes: Path | str | Sequence[str] | None,
) -> ImageData:
    folder = _find(fixed, root)
    _check(folder, corruption, {place.parent.name for place in folder.glob(fixed.sign)}, severity)
    data = imagefolder(folder / corruption / str(severity), size, classes)
    return replace(data, name=_code(name, corruption, severity))


def _find(fixed: CorruptedSet, root: Path | str | None) -> Path:
    """The first folder on the search path that bears the set's name, or `root` itself, and holds what it should."""
    given = Path(os.path.expanduser(root)) if root else None
    for folder in places.candidates((fixed.folder,), root):
        meant = folder.name == fixed.folder or (folder == given and folder.name not in FOLDERS)
        if meant and any(folder.glob(fixed.sign)):
            return folder
    looked = ", ".join(str(base) for base in places.search_path(root))
    raise GeophoneError(
        f"{fixed.folder} was not found: looked for the folder {fixed.folder} with {fixed.sign} in {looked}. "
        f"Zenodo record {fixed.record} has it (https://zenodo.org/records/{fixed.record}): unpack it to "
        f"{places.cache() / fixed.folder} or into a folder that $GEOPHONE_DATA names."
    )


def _check(folder: Path, corruption: str, there: Collection[str], severity: int) -> None:
    if corruption not in there:
        raise unknown("corruption", corruption, sorted(there), f"These are the ones in {folder}.")
    if severity not in SEVERITIES:
        raise GeophoneError(f"severity is {severity}; allowed are 1, 2, 3, 4 and 5.")


def _code(name: str, corruption: str, severity: int) -> str:
    return f"{name}(corruption={corruption!r}, severity={severity})"
