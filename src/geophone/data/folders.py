"""Folders of images: `<split>/<class>/*.png`, ImageNet's and Tiny ImageNet's layouts, or one test set."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geophone.data import places
from geophone.data.split import ImageData, Split, assemble, make_split
from geophone.errors import GeophoneError, unknown
from geophone.registry import DATASETS

SUFFIXES = {".png", ".jpg", ".jpeg"}
GREY = {"1", "L", "LA"}
COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
VALIDATION = ("val", "valid", "validation")


@DATASETS.register
def imagefolder(path: Path | str, size: int | None = None) -> ImageData:
    """A user's folder of images: `train/<class>/*.png`, `val/…`, `test/…`, or `<class>/*.png`, which are all test.

    - PNG and JPEG, 8 bits per channel; grey if all of them are, else RGB (transparency is dropped).
    - Images may lie in `<class>/images/`, and a part may be `images/` with `val_annotations.txt` (Tiny ImageNet).
    - With train and val but no labelled test (ImageNet, Tiny ImageNet), val is the test part; the validation part is
      then a tenth of train.
    - Classes are the names of the class folders, sorted; `index` is the position in the sorted list of a part's files.

    Args:
        path: The folder. All its parts are held in memory; of ImageNet, give the folder `val` alone.
        size: Make all images size×size as networks for ImageNet are evaluated: the shorter side is resized to
            round(size · 256/224) pixels (Pillow's bilinear, antialiased), and the centre is cut out. Without it,
            images stay as they are and must have one size.

    Raises:
        GeophoneError: no class folders, a class that train lacks, a broken image, images of different sizes.
    """
    if size is not None and size < 1:
        raise GeophoneError(f"size is {size}; allowed are whole numbers from 1, or none to leave images as they are.")
    path = Path(path).expanduser()
    if not path.is_dir():
        raise GeophoneError(f"no folder at {path}. Give the path of a folder of images.")
    found = {part: files for part in ("train", *VALIDATION, "test") if (files := _labelled(path / part))}
    if not found:
        found = {"test": _labelled(path)}
    validation = [part for part in VALIDATION if part in found]
    if "test" not in found and validation:
        found["test"] = found.pop(validation.pop())
    if not found.get("test"):
        raise GeophoneError(
            f"{path} has no class folders with test images (.png, .jpg, .jpeg). "
            "Allowed are <class>/*.png, or train/<class>/*.png with test/<class>/*.png or val/<class>/*.png."
        )
    classes = sorted({label for _, label in found.get("train", found["test"])})
    mode = _common_mode([file for files in found.values() for file, _ in files], path, size)
    splits = {part: _read(files, classes, mode, path, size) for part, files in found.items()}
    val = splits[validation[0]] if validation else None
    return assemble(path.resolve().name, tuple(classes), splits["test"], splits.get("train"), val)


@DATASETS.register
def tiny_imagenet(root: Path | str | None = None) -> ImageData:
    """Tiny ImageNet: 64×64 colour photographs of 200 classes; 90,000 train, 10,000 validation, 10,000 test.

    The official validation images are the test part, since the official test has no labels; a tenth of the training
    images, the same number of each class, are the validation part.

    Args:
        root: The folder `tiny-imagenet-200` or the one that it is in, looked in first; then `$GEOPHONE_DATA`, the
            user's cache, the system's folders. It is never downloaded.

    Raises:
        GeophoneError: not found, or as `imagefolder`.

    References:
        Le & Yang 2015, Tiny ImageNet Visual Recognition Challenge.
    """
    folder = "tiny-imagenet-200"
    for place in places.candidates((folder,), root):
        if (place / "train").is_dir() and (place / "val" / "val_annotations.txt").is_file():
            return replace(imagefolder(place), name="tiny_imagenet")
    looked = ", ".join(str(base) for base in places.search_path(root))
    raise GeophoneError(
        f"Tiny ImageNet was not found: looked for the folder {folder} in {looked}. Unpack tiny-imagenet-200.zip to "
        f"{places.cache() / folder} or into a folder that $GEOPHONE_DATA names."
    )


def _labelled(folder: Path) -> list[tuple[Path, str]]:
    """The images of one part and their class names, sorted; none if the folder has no classes."""
    annotations = folder / "val_annotations.txt"
    if annotations.is_file() and (folder / "images").is_dir():
        lines = sorted(line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line)
        if any(len(line) < 2 for line in lines):
            raise GeophoneError(f"{annotations} has lines without a tab. Allowed is: file, tab, class. Get it again.")
        return [(folder / "images" / file, label) for file, label, *_ in lines]
    if not folder.is_dir():
        return []
    found = []
    for place in sorted(place for place in folder.iterdir() if _is_class(place)):
        inner = place / "images"
        files = sorted(
            file for file in (inner if inner.is_dir() else place).iterdir() if file.suffix.lower() in SUFFIXES
        )
        if not files:
            raise GeophoneError(f"the class folder {place} holds no images (.png, .jpg, .jpeg). Fill it or remove it.")
        found += [(file, place.name) for file in files]
    return found


def _is_class(place: Path) -> bool:
    """Hidden folders are no classes, nor is `images`, where Tiny ImageNet keeps what has no labels."""
    return place.is_dir() and not place.name.startswith(".") and place.name != "images"


def _common_mode(files: list[Path], path: Path, size: int | None) -> str:
    """Pillow's name for what all images become: "L" (grey) if all of them are grey, else "RGB".

    Sizes must agree, unless all images are made to have one.
    """
    first, modes = None, set()
    for file in files:
        with _opened(file) as image:
            first = first or (file, image.size)
            if size is None and image.size != first[1]:
                raise GeophoneError(
                    f"{file} is {image.width} pixels wide and {image.height} high, but {first[0]} is "
                    f"{first[1][0]} wide and {first[1][1]} high. All images must have one size: "
                    f"imagefolder(path={str(path)!r}, size=224) resizes and crops them to 224×224."
                )
            if image.mode not in GREY | COLOUR:
                raise GeophoneError(
                    f"{file} has the mode {image.mode}; allowed are grey and RGB of 8 bits per channel."
                )
            modes.add(image.mode)
    return "L" if modes <= GREY else "RGB"


def _read(files: list[tuple[Path, str]], classes: list[str], mode: str, path: Path, size: int | None) -> Split:
    place = {label: i for i, label in enumerate(classes)}
    labels = []
    for file, label in files:
        if label not in place:
            raise unknown("class", label, classes, f"{file} is of it, but {path / 'train'} has no such class.")
        labels.append(place[label])
    first = _pixels(files[0][0], mode, size)
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, (file, _) in enumerate(files):
        images[i] = _pixels(file, mode, size)
    x = torch.from_numpy(images)
    return make_split(x.permute(0, 3, 1, 2) if x.ndim == 4 else x, torch.tensor(labels), str(path))


def _pixels(file: Path, mode: str, size: int | None) -> NDArray[np.uint8]:
    with _opened(file) as image:
        converted = image.convert(mode)
        return np.asarray(converted if size is None else _resized_centre(converted, size))


def _resized_centre(image: Image.Image, size: int) -> Image.Image:
    """The size×size pixels in the middle, after the shorter side is resized to 256/224 of `size`."""
    short = round(size * 256 / 224)
    width, height = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image file, in whose block any error of Pillow becomes one clear message."""
    try:
        with Image.open(file) as image:
            yield image
    except GeophoneError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's for broken files
        raise GeophoneError(
            f"{file} is missing, truncated or not an image ({error}). Get it again or remove it."
        ) from None
