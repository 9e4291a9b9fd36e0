"""Folders of images: `<split>/<class>/*.png`, ImageNet's and Tiny ImageNet's layouts, one test set, or mere images."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import DATASETS
from geophone.data import places
from geophone.data.dataset import ImageData, Split, assemble, make_split
from geophone.data.names import Names, output_names, outputs_of, read_text

UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow names and has no decoder of its own for: EPS would run another program."""

MOST_PIXELS, PER_BYTE = 1 << 24, 10_000
"""Larger images have at most so many pixels for each byte of their file: PNG and JPEG pack at most 8,264 into one."""

GREY = {"1", "L", "LA"}
COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
VALIDATION = ("val", "valid", "validation")


@DATASETS.register
def imagefolder(
    path: Path | str, size: int | None = None, classes: Path | str | Sequence[str] | None = None
) -> ImageData:
    """A user's folder of images: `train/<class>/*.png`, `val/…`, `test/…`, or `<class>/*.png`, which are all test.

    - Whatever Pillow reads (PNG, JPEG, WebP, TIFF, BMP, GIF, …; of several frames the first), 8 bits per channel; grey
      if all of them are, else RGB (transparency is dropped). `left_out` of what is returned counts what was not read.
    - Images may lie in `<class>/images/`, and a part may be `images/` with `val_annotations.txt` (Tiny ImageNet).
    - With train and val but no labelled test (ImageNet, Tiny ImageNet), val is the test part; the validation part is
      then a tenth of train.
    - Images that lie in no class folder, `*.png`, `test/*.png` or `images/*.png`, are a test part without labels,
      where there is none with labels.
    - Classes are the names of the class folders, sorted; `index` is the position in the sorted list of a part's files.

    Args:
        path: The folder. All its parts are held in memory; of ImageNet, give the folder `val` alone.
        size: Make all images size×size as networks for ImageNet are evaluated: the shorter side is resized to
            round(size · 256/224) pixels (Pillow's bilinear, antialiased), and the centre is cut out. Without it,
            images stay as they are and must have one size.
        classes: What the network's outputs are called, in their order, where it has others than the folders': names, or
            a file of them (see `geophone.data.names.output_names`), such as ImageNet's `imagenet_class_index.json`,
            `LOC_synset_mapping.txt` or `wnids.txt`. Labels are then the places of the folders' names among them.

    Raises:
        GeophoneError: no images, a class that train lacks or that no output is called, a broken image, images of
            different sizes.
    """
    if size is not None and size < 1:
        raise GeophoneError(f"size is {size}; allowed are whole numbers from 1, or none to leave images as they are.")
    path = Path(os.path.expanduser(path))
    if not os.path.isdir(path):
        raise GeophoneError(f"no folder at {places.called(path)}. Give the path of a folder of images.")
    names = None if classes is None else output_names(classes)
    try:
        return _folder(path, size, names)
    except OSError as error:  # a folder that may not be read
        raise GeophoneError(f"{error.filename or path} cannot be read ({error.strerror}).") from None


def _folder(path: Path, size: int | None, names: Names | None) -> ImageData:
    found, left_out = _parts(path)
    validation = [part for part in VALIDATION if part in found]
    if "test" not in found and validation:
        found["test"] = found.pop(validation.pop())
    if "test" not in found:
        raise GeophoneError(
            f"{path} has no class folders with test images ({_suffixes()}), and no images. "
            "Allowed are <class>/*.png, or train/<class>/*.png with test/<class>/*.png or val/<class>/*.png."
        )
    folders = sorted({label for _, label in found.get("train", found["test"]) if label is not None})
    place = {label: i for i, label in enumerate(folders)}
    if names is not None:
        place = outputs_of(folders, names, f"a class folder of {path}")
    outputs = len(folders) if names is None else len(names)
    mode = _common_mode([file for files in found.values() for file, _ in files], path, size)
    splits = {part: _read(files, place, outputs, mode, path, size) for part, files in found.items()}
    called = tuple(folders) if names is None else tuple(name for name, *_ in names)
    val = splits[validation[0]] if validation else None
    return assemble(
        *(path.resolve().name, called, splits["test"], splits.get("train"), val), left_out=left_out.sentences(path)
    )


@DATASETS.register
def tiny_imagenet(root: Path | str | None = None, classes: Path | str | Sequence[str] | None = None) -> ImageData:
    """Tiny ImageNet: 64×64 colour photographs of 200 classes; 90,000 train, 10,000 validation, 10,000 test.

    The official validation images are the test part, since the official test has no labels; a tenth of the training
    images, the same number of each class, are the validation part.

    Args:
        root: The folder `tiny-imagenet-200` or the one that it is in, looked in first; then `$GEOPHONE_DATA`, the
            user's cache, the system's folders. It is never downloaded.
        classes: As in `imagefolder`, where the network's outputs are not in the sorted order of the classes.

    Raises:
        GeophoneError: not found, or as `imagefolder`.

    References:
        Le & Yang 2015, Tiny ImageNet Visual Recognition Challenge.
    """
    folder = "tiny-imagenet-200"
    for place in places.candidates((folder,), root):
        if os.path.isdir(place / "train") and os.path.isfile(place / "val" / "val_annotations.txt"):
            return replace(imagefolder(place, classes=classes), name="tiny_imagenet")
    looked = ", ".join(str(base) for base in places.search_path(root))
    raise GeophoneError(
        f"Tiny ImageNet was not found: looked for the folder {folder} in {looked}. Unpack tiny-imagenet-200.zip to "
        f"{places.cache() / folder} or into a folder that $GEOPHONE_DATA names."
    )


@dataclass
class _LeftOut:
    """What lies in a folder of images and was not read."""

    files: list[Path] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def sentences(self, path: Path) -> tuple[str, ...]:
        """What it was, and how much of it."""
        told = (
            (self.files, "file that Pillow does not read", "files that Pillow does not read"),
            (self.loose, "image that lies in no class folder", "images that lie in no class folder"),
            (self.folders, "folder where no images are looked for", "folders where no images are looked for"),
        )
        return tuple(
            f"{path} has {len(what)} {one if len(what) == 1 else more}, such as {what[0].relative_to(path)}: "
            f"{'it was' if len(what) == 1 else 'they were'} left out."
            for what, one, more in told
            if what
        )


Labelled = list[tuple[Path, str | None]]
"""Images of one part, and the class of each; None where they have none."""


def _parts(path: Path) -> tuple[dict[str, Labelled], _LeftOut]:
    """The images of each part that there is, and what was left out of them."""
    left_out = _LeftOut()
    found = {part: files for part in ("train", *VALIDATION, "test") if (files := _labelled(path / part, left_out))}
    if not found and (files := _labelled(path, left_out)):
        found = {"test": files}
    if not found.keys() & {"test", *VALIDATION}:
        alone = (path, path / "images") if not found else ()
        for place in (path / "test", path / "test" / "images", *alone):
            alike = _images(place, left_out) if os.path.isdir(place) else []
            if alike:
                return {**found, "test": [(file, None) for file in alike]}, left_out
    return found, left_out


def _labelled(folder: Path, left_out: _LeftOut) -> Labelled:
    """The images of one part and their class names, sorted; none if the folder has no classes."""
    annotations = folder / "val_annotations.txt"
    if os.path.isfile(annotations) and os.path.isdir(folder / "images"):
        return _annotated(annotations, folder / "images", left_out)
    if not os.path.isdir(folder):
        return []
    there = sorted(folder.iterdir())
    found: Labelled = []
    for place in (place for place in there if _is_class(place)):
        inner = place / "images"
        files = _images(inner if os.path.isdir(inner) else place, left_out)
        if not files:
            raise GeophoneError(f"the class folder {place} holds no images ({_suffixes()}). Fill it or remove it.")
        found += [(file, place.name) for file in files]
    if found:
        left_out.loose += [file for file in there if _is_image(file)]
    return found


def _annotated(annotations: Path, folder: Path, left_out: _LeftOut) -> Labelled:
    """The images that a file of Tiny ImageNet names, and their classes."""
    text = read_text(annotations, "Tiny ImageNet's lines: file, tab, class")
    lines = sorted(line.split("\t") for line in text.splitlines() if line)
    if any(len(line) < 2 for line in lines):
        raise GeophoneError(f"{annotations} has lines without a tab. Allowed is: file, tab, class. Get it again.")
    labels: dict[str, str] = {}
    for file, label, *_ in lines:
        if not label or Path(file).name != file or "\0" in file or file in labels:
            raise GeophoneError(
                f"{annotations} has the line {file[:80]!r}, {label[:80]!r}; allowed are the name of a file in "
                f"{folder}, each once, and its class. Get it again."
            )
        labels[file] = label
    left_out.loose += [file for file in sorted(folder.iterdir()) if _is_image(file) and file.name not in labels]
    return [(folder / file, label) for file, label, *_ in lines]


def _is_class(place: Path) -> bool:
    """Hidden folders are no classes, nor is `images`, where Tiny ImageNet keeps what has no labels."""
    return os.path.isdir(place) and not place.name.startswith(".") and place.name != "images"


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _formats() and not file.name.startswith(".") and not os.path.isdir(file)


def _images(folder: Path, left_out: _LeftOut) -> list[Path]:
    """The images in a folder, sorted. Hidden files are not counted as left out."""
    there = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    files = [file for file in there if _is_image(file)]
    if files:
        left_out.files += [file for file in there if not _is_image(file) and not os.path.isdir(file)]
        left_out.folders += [place for place in there if os.path.isdir(place)]
    return files


@cache
def _formats() -> dict[str, str]:
    """Suffixes of the images that Pillow reads here, and their formats."""
    there = Image.registered_extensions()  # which imports Pillow's decoders
    return {suffix: name for suffix, name in there.items() if name in Image.OPEN and name not in UNREAD}


def _suffixes() -> str:
    return ".png, .jpg, .webp, .tif, .bmp, .gif and whatever else Pillow reads"


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


def _read(files: Labelled, place: dict[str, int], outputs: int, mode: str, path: Path, size: int | None) -> Split:
    """The images of one part; labels are the places of their classes."""
    labels = []
    for file, label in files:
        if label is None:
            continue
        if label not in place:
            raise unknown("class", label, place, f"{file} is of it, but {path / 'train'} has no such class.")
        labels.append(place[label])
    first = _pixels(files[0][0], mode, size)
    try:
        images = np.empty((len(files), *first.shape), np.uint8)
    except (MemoryError, ValueError):
        raise GeophoneError(
            f"{path}: {len(files)} images of {list(first.shape)} bytes do not fit into memory. Give size, to make them "
            "smaller, or a part of the folder."
        ) from None
    for i, (file, _) in enumerate(files):
        images[i] = _pixels(file, mode, size)
    x = torch.from_numpy(images)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
    return make_split(x, torch.tensor(labels), str(path), outputs=outputs) if labels else make_split(x, None, str(path))


def _pixels(file: Path, mode: str, size: int | None) -> NDArray[np.uint8]:
    with _opened(file) as image:
        converted = image.convert(mode)
        return np.asarray(converted if size is None else _resized_centre(converted, size, file))


def _resized_centre(image: Image.Image, size: int, file: Path) -> Image.Image:
    """The size×size pixels in the middle, after the shorter side is resized to 256/224 of `size`."""
    short = round(size * 256 / 224)
    width, height = (int(short * side / min(image.size)) for side in image.size)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 0):  # Pillow's own bound for what is decoded
        raise GeophoneError(
            f"{file} is {image.width} pixels wide and {image.height} high: with size={size} it would be resized to "
            f"{width}×{height} before its centre is cut out. Crop it, or give a smaller size."
        )
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image file, in whose block any error of Pillow becomes one clear message."""
    reason = "there is no such file"
    try:
        if os.path.isfile(file):  # opening a pipe would wait for ever
            # Whatever its name says, a file is what it holds: only decoders that run nothing are tried.
            known = set(_formats().values())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, about odd metadata
                with Image.open(file, formats=[name for name in Image.ID if name in known]) as image:
                    if image.width * image.height > max(MOST_PIXELS, PER_BYTE * os.path.getsize(file)):
                        raise OSError(f"{image.width}×{image.height} pixels in {os.path.getsize(file)} bytes")
                    yield image
                    return
    except GeophoneError:
        raise
    except Exception as error:  # Pillow's decoders raise anything for broken files
        reason = places.reason(error)
    raise GeophoneError(f"{file} is missing, truncated or not an image ({reason}). Get it again or remove it.")
