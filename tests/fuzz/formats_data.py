"""Data files: .npz, .npy, idx, CIFAR's pickles and archive, folders of pictures, annotations and files of names."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geophone.core.types import UNLABELLED
from geophone.data import ImageData, load, places
from geophone.data.images import cifar, idx
from tests.data.test_cifar import dumps
from tests.fuzz.harness import Case, Format, Mutator, register
from tests.fuzz.mutate import (
    HUGE,
    TEXTS,
    any_bytes,
    any_json,
    any_npy,
    any_zip,
    chosen,
    damaged,
    damaged_npy,
    damaged_text,
    other_thing,
)

N = 20


def pixels(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def offline(*_: object) -> Path:
    raise OSError("there is no network")


def loaded(case: Case, text: str) -> ImageData:
    """A data set by its code, whose `{}` is the case's folder; without a network."""
    places.fetch = offline
    os.environ["GEOPHONE_DATA"] = ""
    return load(text.format(repr(str(case.folder))))


def sound(case: Case, data: ImageData) -> str | None:
    """Whatever was read is what every verb may rely on."""
    for part in (data.train, data.val, data.test):
        batch = next(part.batches(len(part))) if len(part) else None
        if batch is None:
            continue
        if not (len(part.x) == len(part.y) == len(part.index) and part.x.ndim == 4):
            return f"shapes {part.x.shape} {part.y.shape} {part.index.shape}"
        if not bool(((batch.x >= 0) & (batch.x <= 1)).all()):
            return "pixels outside [0, 1]"
        if part.labelled and not 0 <= int(part.y.min()) <= int(part.y.max()) < len(data.classes):
            return f"labels {part.y.unique()} of {len(data.classes)} classes"
        if not part.labelled and set(part.y.tolist()) != {UNLABELLED}:
            return "absent labels are numbers"
    if not len(data.test):
        return "no test part"
    return None if case.number else _as_written(case, data)


def _as_written(case: Case, data: ImageData) -> str | None:
    expected = np.load(case.seed / "expected.npy")
    return None if np.array_equal(data.test.x.numpy(), expected) else "other pixels than were written"


def expect(folder: Path, x: Any) -> None:
    """Of the valid files: what the test part is."""
    np.save(folder / "expected.npy", x)


# --- npz, npy


def make_npz(folder: Path) -> None:
    x, y = pixels(0, N, 3, 4, 4), np.arange(N) % 3
    parts = {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6], "classes": np.array(["a", "b", "c"])}
    np.savez(folder / "data.npz", **parts)
    np.savez_compressed(folder / "floats.npz", x=(x / 255).astype(np.float32), y=y.astype(np.uint8))
    np.savez(folder / "alone.npz", x=x[:, 0])
    expect(folder, x[:6])


def use_npz(case: Case) -> ImageData:
    return load(
        case.folder / case.draw.choice(("data.npz", "data.npz", "floats.npz", "alone.npz")[: 1 + 3 * case.number])
    )


register(
    Format(
        name="npz",
        make=make_npz,
        use=use_npz,
        right=sound,
        mutators=(any_bytes("*.npz"), any_zip("*.npz"), *[any_zip("*.npz", damaged_npy)] * 3, other_thing("*.npz")),
        cases=200,
    )
)


def make_cifar_c(folder: Path) -> None:
    place = folder / "CIFAR-10-C"
    place.mkdir()
    x = pixels(1, 20, 32, 32, 3)
    np.save(place / "fog.npy", x)
    np.save(place / "labels.npy", np.arange(20) % 10)
    expect(folder, x[4:8].transpose(0, 3, 1, 2))


register(
    Format(
        name="cifar-c",
        make=make_cifar_c,
        use=lambda case: loaded(case, "cifar10_c(root={}, corruption='fog', severity=2)"),
        right=sound,
        mutators=(any_npy("[fl]*.npy"), any_npy("[fl]*.npy"), any_bytes("[fl]*.npy"), other_thing("[fl]*.npy")),
        cases=150,
    )
)


# --- idx


def idx_file(array: Any) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def make_idx(folder: Path) -> None:
    x = pixels(2, N, 4, 4)
    arrays = (x, np.arange(N, dtype=np.uint8) % 10, x[:6], np.arange(6, dtype=np.uint8))
    for name, array in zip(idx.FILES, arrays, strict=True):
        (folder / name).write_bytes(idx_file(array))
    packed = folder / idx.FILES[2]
    (folder / f"{packed.name}.gz").write_bytes(gzip.compress(packed.read_bytes(), mtime=0))
    packed.unlink()
    expect(folder, x[:6, None])


def use_idx(case: Case) -> ImageData:
    """With the checksums of the valid files, or of whatever is there now: then the format alone is judged."""
    place = case.draw.choice((case.seed, case.folder, case.folder))
    checksums = []
    for name in idx.FILES:
        files = [path for path in (place / name, place / f"{name}.gz") if path.is_file()]
        try:
            content = files[0].read_bytes() if files and files[0].resolve().parent == place.resolve() else b""
            content = unpacked(content) if files and files[0].suffix == ".gz" else content
        except Exception:
            content = b""
        checksums.append(hashlib.sha256(content).hexdigest())
    idx.SETS["mnist"] = replace(idx.SETS["mnist"], sha256=tuple(checksums), held_out=2)
    return loaded(case, "mnist(root={})")


def idx_header(case: Case) -> str:
    """Another number of axes, or another size."""
    path, draw = chosen(case, "*-ubyte"), case.draw
    data = bytearray(path.read_bytes() if path.is_file() else b"")
    axes = draw.choice((0, 1, 2, 3, 4, 5, 64, 65, 255))
    sizes = [draw.choice((*HUGE, 2, 4, N, 2**16)) % 2**32 for _ in range(axes)]
    body = bytes(data[4 + 4 * data[3] :]) if len(data) > 3 else b""
    kind = draw.choice((8, 8, 8, 9, 13))
    path.write_bytes(bytes((0, 0, kind, axes)) + np.array(sizes, ">u4").tobytes() + draw.choice((body, b"")))
    return f"idx: {sizes} in {path.name}"


def unpacked(data: bytes) -> bytes:
    """The first 64 MiB of a gzip file: an earlier mutator may have made a bomb of it."""
    with gzip.open(io.BytesIO(data)) as file:
        return file.read(1 << 26)


def gzip_bomb(pattern: str) -> Mutator:
    """A small file that unpacks to 2 GiB."""

    def mutator(case: Case) -> str:
        path = chosen(case, pattern)
        block = gzip.compress(bytes(1 << 24), 1)
        path.write_bytes(block * 128)
        return f"bomb in {path.name}"

    return mutator


register(
    Format(
        name="idx",
        make=make_idx,
        use=use_idx,
        right=sound,
        mutators=(*[idx_header] * 3, *[any_bytes("*ubyte*")] * 4, other_thing("*ubyte*"), gzip_bomb("*.gz")),
        cases=60,
    )
)


# --- CIFAR


def cifar_files() -> tuple[dict[str, bytes], Any]:
    """The eight files of CIFAR-10 with few images, and the test images."""
    files = {}
    for seed, name in enumerate((*cifar.CIFAR10.train, *cifar.CIFAR10.test)):
        x = pixels(seed, 4, 3072)
        content = {b"batch_label": name.encode(), b"labels": [0, 1, 2, 3], b"data": x, b"filenames": [b"a.png"] * 4}
        files[name] = dumps(content)
    files["batches.meta"] = dumps({b"num_cases_per_batch": 4, b"label_names": [b"%d" % i for i in range(10)]})
    return files, x.reshape(-1, 3, 32, 32)


def make_cifar(folder: Path) -> None:
    place = folder / cifar.CIFAR10.folder
    place.mkdir()
    files, x = cifar_files()
    for name, content in files.items():
        (place / name).write_bytes(content)
    expect(folder, x)


def make_archive(folder: Path) -> None:
    files, x = cifar_files()
    with tarfile.open(folder / cifar.CIFAR10.archive, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{cifar.CIFAR10.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    expect(folder, x)


class Nest(tuple):
    """Reduces to a call that is never to be made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def laughs(depth: int = 60) -> Any:
    """A tuple of 10 tuples of 10 tuples …, each the same one: tiny, unless somebody walks it."""
    nest: Any = (0,) * 10
    for _ in range(depth):
        nest = (nest,) * 10
    return nest


def keyed_by_laughs() -> bytes:
    """A dictionary with such a key, which only hashing ever notices."""
    nest = pickle.dumps(laughs(), 2)[2:-1]
    return b"\x80\x02}" + nest + b"K\x01s."


PICKLES: dict[str, Callable[[], bytes]] = {
    "memo": lambda: b"\x80\x02}r\xff\xff\xff\xfe.",  # LONG_BINPUT
    "bytes": lambda: b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",  # BINBYTES8
    "bytearray": lambda: b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "frame": lambda: b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b".",
    "long": lambda: b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1.",
    "call": lambda: pickle.dumps({b"labels": Nest()}, 2),
    "key": keyed_by_laughs,
    "labels": lambda: pickle.dumps({b"labels": [laughs()], b"data": pixels(0, 1, 3072)}, 2),
    "itself": lambda: b"\x80\x02}q\x00h\x00h\x00s.",
    "digits": lambda: b"I" + b"9" * 100_000 + b"\n.",
    "list": lambda: b"]" * 100_000 + b"a" * 99_999 + b".",
    "dtype": lambda: pickle.dumps({b"labels": [0], b"data": np.zeros((1, 3072), np.float64)}, 2),
    "objects": lambda: pickle.dumps({b"labels": [0], b"data": np.array([Nest()], object)}, 2),
    "not a dictionary": lambda: pickle.dumps([1, 2], 2),
}


def other_pickle(case: Case) -> str:
    """A pickle that was written to hurt."""
    path = chosen(case, "*batch*")
    what = case.draw.choice(list(PICKLES))
    path.write_bytes(PICKLES[what]())
    return f"pickle: {what} in {path.name}"


def unharmed(case: Case, data: ImageData) -> str | None:
    if (case.folder / "made").exists():
        return "a pickle was obeyed"
    return sound(case, data)


register(
    Format(
        name="cifar",
        make=make_cifar,
        use=lambda case: loaded(case, "cifar10(root={})"),
        right=unharmed,
        mutators=(other_pickle, any_bytes("*batch*"), any_bytes("*batch*"), other_thing("*batch*")),
        cases=150,
    )
)


def any_tar(case: Case) -> str:
    """The archive with changed bytes inside: its headers, or a member's content."""
    path, draw = chosen(case, "*.gz"), case.draw
    try:
        data = unpacked(path.read_bytes())
    except Exception:
        return any_bytes("*.gz")(case)
    at = 512 * draw.randrange(len(data) // 512 or 1)
    what = draw.choice(("size", "type", "block", "any"))
    if what == "size":
        size = draw.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"00000000000\0"))
        data = data[: at + 124] + size + data[at + 136 :]
    elif what == "type":
        data = data[: at + 156] + draw.choice((b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"g", b"L")) + data[at + 157 :]
    elif what == "block":
        new, _ = damaged(data[at : at + 512] or b"a", draw)
        data = data[:at] + new + data[at + 512 :]
    else:
        data, _ = damaged(data or b"a", draw)
    if what in ("size", "type"):  # with the checksum that a header needs
        header = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
        data = data[: at + 148] + b"%06o\0 " % sum(header) + data[at + 156 :]
    path.write_bytes(gzip.compress(data, 1))
    return f"tar: {what} at {at}"


register(
    Format(
        name="cifar-archive",
        make=make_archive,
        use=lambda case: loaded(case, "cifar10(root={})"),
        right=unharmed,
        mutators=(*[any_tar] * 5, any_bytes("*.gz"), other_thing("*.gz"), gzip_bomb("*.gz")),
        cases=40,
        seconds=8,
    )
)


# --- pictures

SUFFIXES = (
    ".png",
    ".jpg",
    ".webp",
    ".tif",
    ".bmp",
    ".gif",
    ".ppm",
    ".tga",
    ".ico",
    ".jp2",
    ".qoi",
    ".pcx",
    ".sgi",
    ".dds",
)


def make_pictures(folder: Path) -> None:
    """One picture a format, in two classes; a whole set of PNG; Tiny ImageNet's layout."""
    for i, suffix in enumerate(SUFFIXES):
        place = folder / "many" / ("ant", "bee")[i % 2] / f"{i:02}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        options = {"sizes": [(16, 16)]} if suffix == ".ico" else {}
        Image.fromarray(pixels(i, 16, 16, 3)).save(place, **options)
    tiny = folder / "tiny"
    for label in ("n00000001", "n00000002"):
        for i in range(12):
            place = tiny / "train" / label / "images" / f"{label}_{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(i, 4, 4, 3)).save(place)
    (tiny / "val" / "images").mkdir(parents=True)
    x = [pixels(50 + i, 4, 4, 3) for i in range(4)]
    for i, picture in enumerate(x):
        Image.fromarray(picture).save(tiny / "val" / "images" / f"val_{i}.png")
    lines = [f"val_{i}.png\tn0000000{1 + i % 2}\t0\t0\t3\t3\n" for i in range(4)]
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
    (tiny / "wnids.txt").write_text("n00000002\nn00000001\n")
    (tiny / "words.txt").write_text("n00000001\tant, emmet\nn00000002\tbee\n")
    (tiny / "index.json").write_text('{"0": ["n00000001", "ant"], "1": ["n00000002", "bee"]}')
    expect(folder, np.stack(x).transpose(0, 3, 1, 2))


def use_pictures(case: Case) -> ImageData:
    size = case.draw.choice(("", ", size=8"))
    return loaded(case, f"imagefolder(path={{}}{size})".replace("{}", repr(str(case.folder / "many"))))


def png_size(case: Case) -> str:
    """A PNG that claims another size, with the checksum that goes with it."""
    import struct
    import zlib

    path, draw = chosen(case, "*.png"), case.draw
    data = path.read_bytes() if path.is_file() else b""
    if len(data) < 33:
        return any_bytes("*.png")(case)
    sides = [draw.choice((0, 1, 17, 10_000, 13_000, 2**16, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    header = b"IHDR" + struct.pack(">II", *sides) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    return f"png: {sides}"


def moved(case: Case) -> str:
    """A file under another name, or in another place; a folder where none should be."""
    path, draw = chosen(case, "*.*"), case.draw
    name = draw.choice((*TEXTS, "a.png", ".hidden.png", "x" * 250 + ".png", "b.txt", "c.eps"))
    name = name.replace("/", "_").replace("\x00", "_").encode()[:255].decode(errors="ignore") or "empty"
    place = draw.choice((path.parent, path.parent.parent, path.parent / "deeper"))
    if name in (".", "..") or not path.is_file():
        return "nothing"
    place.mkdir(exist_ok=True)
    path.rename(place / name)
    return f"{path.name} is {place.name}/{name[:60]!r}"


def crossed(case: Case) -> str:
    """A picture of one format under the name of another."""
    one, other = chosen(case, "*.*"), chosen(case, "*.*")
    if one.is_file() and other.is_file():
        other.write_bytes(one.read_bytes())
    return f"{one.name} as {other.name}"


def postscript(case: Case) -> str:
    """A program where a picture should be."""
    path = chosen(case, "*.png")
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(made) (w) file closefile\n")
    return f"EPS in {path.name}"


def not_run(case: Case, data: ImageData) -> str | None:
    if (case.folder / "made").exists():
        return "a program in a picture was run"
    return None if not case.number and data.size in ((16, 16), (8, 8)) else sound(case, data) if case.number else "size"


register(
    Format(
        name="pictures",
        make=make_pictures,
        use=use_pictures,
        right=not_run,
        mutators=(*[any_bytes("[0-9]*.*")] * 4, png_size, moved, crossed, postscript, other_thing("[0-9]*.*")),
        cases=200,
    )
)


def any_lines(pattern: str) -> Mutator:
    """Change a text file: its characters, or its lines."""

    def mutator(case: Case) -> str:
        path, draw = chosen(case, pattern), case.draw
        text = path.read_text(errors="replace") if path.is_file() else ""
        lines = text.splitlines()
        what = draw.choice(("text", "drop", "twice", "swap", "field", "encoding"))
        if what == "text" or not lines:
            text, what = damaged_text(text, draw)
        elif what == "drop":
            lines.pop(draw.randrange(len(lines)))
        elif what == "twice":
            lines.append(draw.choice(lines))
        elif what == "swap":
            lines.reverse()
        elif what == "field":
            at = draw.randrange(len(lines))
            fields = lines[at].split("\t")
            fields[draw.randrange(len(fields))] = draw.choice((*TEXTS, "../../train/x.png", str(path)))
            lines[at] = "\t".join(fields)
        if what in ("drop", "twice", "swap", "field"):
            text = "\n".join(lines)
        path.write_bytes(text.encode("utf-16" if what == "encoding" else "utf-8", "replace"))
        return f"{what} in {path.name}"

    return mutator


register(
    Format(
        name="tiny-imagenet",
        make=make_pictures,
        use=lambda case: loaded(case, "tiny_imagenet(root={})".replace("{}", repr(str(case.folder / "tiny")))),
        right=sound,
        mutators=(*[any_lines("val_annotations.txt")] * 4, moved, any_bytes("val*"), other_thing("val*")),
        cases=100,
    )
)


def use_names(case: Case) -> ImageData:
    tiny = case.folder / "tiny"
    file = tiny / case.draw.choice(("wnids.txt", "words.txt", "index.json"))
    return load(f"imagefolder(path={str(tiny)!r}, classes={str(file)!r})")


def named(case: Case, data: ImageData) -> str | None:
    wrong = sound(case, data)
    if wrong is None and data.test.outputs != len(data.classes):
        return f"{data.test.outputs} outputs with {len(data.classes)} names"
    return wrong


register(
    Format(
        name="names",
        make=make_pictures,
        use=use_names,
        right=named,
        mutators=(*[any_lines("wnids.txt"), any_lines("words.txt"), any_json("index.json")] * 2, other_thing("w*.txt")),
        cases=100,
    )
)


# --- paths


def hostile_path(case: Case) -> str:
    """Another path in place of the file's."""
    case.words[0] = case.draw.choice(
        (*TEXTS, "a" * 300 + ".npz", "a/" * 3000, "~nobody-at-all/x.npz", "\x00.npz", "/proc/self/mem", "/dev/zero",
         "/proc", "x" * 300, "/dev/stdin", "..", "data.npz/", "data.npz/x", "folder", "CIFAR-10-C")
    )  # fmt: skip
    return f"path {case.words[0][:60]!r}"


def hostile_place(case: Case) -> str:
    """Something odd where data are looked for, and a path to it."""
    draw, folder = case.draw, case.folder
    what = draw.choice(("loop", "fifo.npz", "null.npz", "folder.npz", "inside", "class fifo", "shut"))
    place = folder / what
    case.words[0] = str(place)
    if what == "loop":
        place.symlink_to(place)
    elif what == "fifo.npz":
        os.mkfifo(place)
    elif what == "null.npz":
        place.symlink_to("/dev/null")
    else:
        (place / "ant").mkdir(parents=True, exist_ok=True)
        if what == "inside":
            (place / "ant" / "again").symlink_to(place)
            (place / "ant" / "loop.png").symlink_to("loop.png")
        elif what == "class fifo":
            os.mkfifo(place / "ant" / "a.png")
        elif what == "shut":
            (place / "ant").chmod(0)
    return f"{what} at {case.words[0][-60:]}"


def use_path(case: Case) -> ImageData:
    os.environ["GEOPHONE_DATA"] = ""
    places.fetch = offline
    return load(case.words[0])


def no_device(case: Case, data: ImageData) -> str | None:
    return sound(case, data) if Path(case.words[0]).name == "data.npz" else f"{case.words[0]!r} was read"


register(
    Format(
        name="data-paths",
        make=make_npz,
        words=("data.npz",),
        use=use_path,
        right=no_device,
        mutators=(hostile_path, hostile_path, hostile_place),
        cases=100,
    )
)
