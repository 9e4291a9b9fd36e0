"""Ways to damage files, values and words, for any format."""

import ast
import json
import math
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.harness import Case, Mutator

HUGE = (
    -1,
    0,
    1,
    127,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
)
"""Whole numbers at the edges of what fields hold."""

TEXTS = (
    "", " ", "\x00", "a\x00b", "\n", "two\nlines", "\x1b[31mred\x1b[0m", "é", "日本語", "🙂", "\u202eleft", "'", '"', "\\", "/",
    "..", "../..", "/dev/null", "/dev/zero", "/proc/self/mem", "~", "-", "--", "-1", "%s%n", "{}", "{0}", "a" * 256, "a" * 5000, "None",
    "nan", "inf", "1e999", "9" * 400, "0x10", "1_000", "٣", "True", "con", "a,b", "a=b", "a:b", "[]", "()", "*", "?", "__class__",
)  # fmt: skip
"""Texts that a name or a path should not be, or only just."""

NUMBERS = (
    0, -0.0, -1, 1, 2, 0.5, -0.5, 1e-300, 1e300, -1e300, 1e38, 3.5e38, 10**12, -(10**12), 2**31, 2**63, 2**64, 10**400,
    math.nan, math.inf, -math.inf, True, False, 5e-324, 1 + 1e-16, 1 / 3,
)  # fmt: skip

VALUES = (
    *NUMBERS, *TEXTS, None, [], {}, [[]], [None], {"": None}, [0] * 1000, [1, 2, 3], [0.5], ["a"], {"a": 1}, [[1, 2], [3]],
)  # fmt: skip
"""Values of any kind, for a place in a document or an argument of a call."""


# --- bytes -----------------------------------------------------------------------------------------------------------
def flip(data: bytes, draw: random.Random) -> bytes:
    """One to eight bits turned."""
    new = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        new[draw.randrange(len(new))] ^= 1 << draw.randrange(8)
    return bytes(new)


def overwrite(data: bytes, draw: random.Random) -> bytes:
    """Some bytes in a row drawn anew."""
    start = draw.randrange(len(data))
    size = draw.choice((1, 2, 4, 16, 64))
    return data[:start] + draw.randbytes(min(size, len(data) - start)) + data[start + size :]


def truncate(data: bytes, draw: random.Random) -> bytes:
    """The end is gone."""
    return data[: draw.choice((0, 1, len(data) // 2, len(data) - 1, draw.randrange(len(data))))]


def behead(data: bytes, draw: random.Random) -> bytes:
    """The start is gone."""
    return data[draw.choice((1, 4, draw.randrange(len(data)))) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    """Bytes put in between."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((b"\x00", b"\n", b"\xff" * 8, draw.randbytes(16))) + data[at:]


def duplicate(data: bytes, draw: random.Random) -> bytes:
    """A stretch is there twice."""
    a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data)) + 1))
    return data[:b] + data[a:b] + data[b:]


def splice(data: bytes, draw: random.Random) -> bytes:
    """A stretch is overwritten with another."""
    size = draw.randrange(1, len(data) // 2 + 2)
    a, b = draw.randrange(len(data)), draw.randrange(len(data))
    return (data[:a] + data[b : b + size] + data[a + size :])[: len(data)]


def cut(data: bytes, draw: random.Random) -> bytes:
    """A stretch is gone."""
    a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data)) + 1))
    return data[:a] + data[b:]


def zero(data: bytes, draw: random.Random) -> bytes:
    """A stretch of zeros, as of a disk that lost a block."""
    start = draw.randrange(len(data))
    size = min(draw.choice((4, 64, 512, 4096)), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def huge_integer(data: bytes, draw: random.Random) -> bytes:
    """A number at the edge of what a field holds, more often near the start, where headers are."""
    size = draw.choice((1, 2, 4, 8))
    start = min(draw.choice((draw.randrange(64), draw.randrange(len(data)))), max(len(data) - size, 0))
    number = draw.choice(HUGE) % (1 << 8 * size)
    return data[:start] + number.to_bytes(size, draw.choice(("little", "big"))) + data[start + size :]


def other_digits(data: bytes, draw: random.Random) -> bytes:
    """Another number where one is written in digits."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip(data, draw)
    at = draw.choice(places)
    end = at
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    new = draw.choice((b"0", b"-1", b"1.5", b"999999999999", b"1e999", b"9" * 400, str(draw.randrange(1000)).encode()))
    return data[:at] + new + data[end:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, flip, overwrite, truncate, behead, insert, duplicate, splice, cut, zero, huge_integer, other_digits),
)


def damaged(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Bytes damaged in one of these ways, and its name."""
    if not data:
        return draw.randbytes(draw.choice((1, 16))), "fill"
    one = draw.choice(BYTES)
    return one(data, draw), one.__name__


def chosen(case: Case, pattern: str) -> Path:
    """One of the case's files."""
    files = sorted(path for path in case.folder.rglob(pattern) if path.is_file() and not path.is_symlink())
    return case.draw.choice(files) if files else case.folder / pattern.replace("*", "none")


def put(path: Path, data: bytes) -> None:
    """Write a file, whatever was in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or not path.is_file():
        path.unlink(missing_ok=True)
    path.write_bytes(data)


def any_bytes(pattern: str = "*") -> Mutator:
    """Damage one file that matches, whatever is in it."""

    def mutator(case: Case) -> str:
        path = chosen(case, pattern)
        data = path.read_bytes() if path.is_file() else b""
        new, how = damaged(data, case.draw)
        put(path, new)
        return f"{how} in {path.name}"

    return mutator


def other_thing(pattern: str = "*") -> Mutator:
    """Something else where one file was: nothing, a folder, a link, an empty file, a device, a file of another kind."""

    def mutator(case: Case) -> str:
        path = chosen(case, pattern)
        put(path, b"")
        path.unlink()
        what = case.draw.choice(
            ("nothing", "folder", "empty", "loop", "dangling", "null", "zero", "fifo", "zip", "text")
        )
        if what == "folder":
            path.mkdir()
        elif what == "empty":
            path.touch()
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "zip":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("a.txt", "a")
        elif what == "text":
            path.write_text("hello\n")
        elif what != "nothing":
            target = {
                "loop": path,
                "dangling": Path("/nowhere/at/all"),
                "null": Path("/dev/null"),
                "zero": Path("/dev/zero"),
            }
            path.symlink_to(target[what])
        return f"{path.name} is {what}"

    return mutator


# --- zip -------------------------------------------------------------------------------------------------------------
def members(path: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    """What a zip file holds."""
    with zipfile.ZipFile(path) as file:
        return [(info, file.read(info)) for info in file.infolist()]


def write_members(path: Path, parts: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip file of these; a name may come twice."""
    import warnings

    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as file:
        for name, data in parts:
            file.writestr(zipfile.ZipInfo(name) if name else zipfile.ZipInfo("x"), data, compression)


def any_zip(pattern: str, inside: Callable[[bytes, random.Random], tuple[bytes, str]] = damaged) -> Mutator:
    """Change a zip file as a zip file: members renamed, gone, twice, otherwise compressed, with false sizes, changed.

    Args:
        pattern: Which files.
        inside: Changes one member's bytes, and says how.
    """

    def mutator(case: Case) -> str:
        path, draw = chosen(case, pattern), case.draw
        try:
            parts = [(info.filename, data) for info, data in members(path)]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError):
            return any_bytes(pattern)(case)
        if not parts:
            return any_bytes(pattern)(case)
        at = draw.randrange(len(parts))
        name, data = parts[at]
        what = draw.choice(
            (
                "rename",
                "drop",
                "twice",
                "compress",
                "size",
                "inside",
                "inside",
                "inside",
                "more",
                "bomb",
                "swap",
                "comment",
            )
        )
        compression = zipfile.ZIP_STORED
        if what == "rename":
            parts[at] = (
                draw.choice((*TEXTS, name.upper(), f"/{name}", f"../{name}", f"a/{name}")).replace("\ud800", "?"),
                data,
            )
        elif what == "drop":
            del parts[at]
        elif what == "twice":
            parts.append((name, inside(data, draw)[0]))
        elif what == "compress":
            compression = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        elif what == "inside":
            new, how = inside(data, draw)
            parts[at], what = (name, new), f"{how} inside"
        elif what == "more":
            parts.append((draw.choice(("more.npy", "x/y", "readme")), draw.randbytes(8)))
        elif what == "bomb":
            parts[at], compression = (name, data + bytes(1 << 26)), zipfile.ZIP_DEFLATED
        elif what == "swap":
            other = draw.randrange(len(parts))
            parts[at], parts[other] = (name, parts[other][1]), (parts[other][0], data)
        write_members(path, parts, compression)
        if what == "size":
            _false_sizes(path, draw)
        if what == "comment":
            path.write_bytes(path.read_bytes() + draw.randbytes(100))
        return f"zip: {what} of {name}"

    return mutator


def _false_sizes(path: Path, draw: random.Random) -> None:
    """Another number in one field of one header, local or central."""
    data = bytearray(path.read_bytes())
    fields = {b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))}
    fields[b"PK\x01\x02"] = ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4))
    fields[b"PK\x05\x06"] = ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))
    mark = draw.choice(list(fields))
    starts = [i for i in range(len(data) - 3) if data[i : i + 4] == mark]
    if starts:
        offset, size = draw.choice(fields[mark])
        at = draw.choice(starts) + offset
        data[at : at + size] = (draw.choice(HUGE) % (1 << 8 * size)).to_bytes(size, "little")
    path.write_bytes(data)


# --- documents -------------------------------------------------------------------------------------------------------
def changed(value: Any, draw: random.Random, values: Sequence[Any] = VALUES) -> tuple[Any, str]:
    """A nest of dictionaries and lists with one place changed, and what was done. The nest itself is left alone."""
    places: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        places.append(path)
        keys: Iterable[Any] = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            walk(node[key], (*path, key))

    walk(value, ())
    path = draw.choice(places)
    what = draw.choice(("replace", "replace", "drop", "add", "rename", "wrap", "near"))
    new = draw.choice(list(values))

    def edit(node: Any, rest: tuple[Any, ...]) -> Any:
        if not rest:
            if what == "wrap":
                return [node]
            if what == "near" and type(node) in (int, float):
                return draw.choice((node + 1, -node, node * 1.5, str(node), node * 10**9, [node]))
            return new
        copy = dict(node) if isinstance(node, dict) else list(node)
        key = rest[0]
        if len(rest) > 1 or what in ("replace", "wrap", "near"):
            copy[key] = edit(node[key], rest[1:])
        elif what == "drop":
            del copy[key]
        elif isinstance(copy, list):
            copy.insert(key, new)
        elif what == "add":
            copy[draw.choice(TEXTS)] = new
        else:
            copy[draw.choice(TEXTS)] = copy.pop(key)
        return copy

    return edit(value, path), f"{what} at {list(path)!r:.80}"


def any_json(pattern: str, values: Sequence[Any] = VALUES) -> Mutator:
    """Change a JSON file as a document, or the way it is written."""

    def mutator(case: Case) -> str:
        path, draw = chosen(case, pattern), case.draw
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return any_bytes(pattern)(case)
        what = draw.choice((*("value",) * 8, "deep", "bom", "utf16", "twice", "comma", "latin", "digits", "surrogate"))
        text = json.dumps(document, indent=draw.choice((None, 2)))
        if what == "value":
            document, what = changed(document, draw, values)
            text = json.dumps(document)
        elif what == "deep":
            text = draw.choice(("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 5000 + "1" + "}" * 5000))
        elif what == "comma":
            text = text.rstrip()[:-1] + "," + text.rstrip()[-1:]
        elif what == "twice":
            text = draw.choice((text + text, text.replace("{", '{"a": 1, "a": 2, ', 1)))
        elif what == "digits":
            text = other_digits(text.encode(), draw).decode()
        elif what == "surrogate":
            text = text.replace('"', '"\\ud800', 1)
        encoding = {"bom": "utf-8-sig", "utf16": "utf-16", "latin": "latin-1"}.get(what, "utf-8")
        path.write_bytes((text + ("é" if what == "latin" else "")).encode(encoding, "replace"))
        return f"json: {what} in {path.name}"

    return mutator


# --- npy -------------------------------------------------------------------------------------------------------------
KINDS = (
    *(
        "<f4",
        ">f4",
        "<f8",
        "<f2",
        "<f16",
        "<c16",
        "<i8",
        ">i8",
        "<u8",
        "|u1",
        "|i1",
        "|b1",
        "<i2",
        ">u4",
        "|O",
        "|V8",
        "|S5",
        "<U3",
    ),
    *(
        "<U1000000000",
        "<M8[s]",
        "<m8[D]",
        "|S0",
        "|V0",
        "=f4",
        "f4",
        "e",
        "nonsense",
        "",
        "<f3",
        "<i16",
        "|O8",
        "float32",
    ),
)
SHAPES = (
    *(
        (),
        (0,),
        (1,),
        (-1,),
        (2**62,),
        (2**31, 2**31),
        (2**40, 1, 1),
        (0, 2**62),
        (10**12,),
        (10**30,),
        (1,) * 64,
        (1,) * 100,
    ),
    *((True, 2), (1.5,), ("a",), [3, 4], 7, None, (3, (4,)), (2, 3, 4, 5), (-(2**63),)),
)


def npy(descr: Any, shape: Any, data: bytes, fortran: Any = False, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array file with this header, true or not."""
    return npy_with(repr({"descr": descr, "fortran_order": fortran, "shape": shape}), data, version)


def npy_with(header: str, data: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """An array file with this text as its header."""
    text = header.encode("latin-1", "replace")
    wide = version[0] != 1
    text += b" " * (-(len(text) + (12 if wide else 10) + 1) % 64) + b"\n"
    size = len(text) if length is None else length
    size = size % (1 << 32) if wide else min(max(size, 0), 65535)
    return b"\x93NUMPY" + bytes(version) + struct.pack("<I" if wide else "<H", size) + text + data


def damaged_npy(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """An array file with a changed header or changed bytes, and how."""
    try:
        size = struct.unpack("<H", data[8:10])[0]
        header = ast.literal_eval(data[10 : 10 + size].decode("latin-1").strip())
        descr, shape, body = header["descr"], header["shape"], data[10 + size :]
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, RecursionError, MemoryError):
        return damaged(data, draw)
    what = draw.choice(
        (
            "kind",
            "kind",
            "shape",
            "shape",
            "near",
            "fortran",
            "version",
            "length",
            "deep",
            "key",
            "literal",
            "special",
            "bytes",
        )
    )
    if what == "kind":
        descr = draw.choice(
            (*KINDS, [("a", "<f4"), ("b", "<i4")], [("a", "<f4", (2**40,))], ["<f4"], None, 7, ("<f4", (2,)))
        )
    elif what == "shape":
        shape = draw.choice(SHAPES)
    elif what == "near" and isinstance(shape, tuple) and shape:
        at = draw.randrange(len(shape))
        shape = (
            *shape[:at],
            draw.choice((shape[at] + 1, shape[at] - 1, 0, shape[at] * 2, shape[at] * 10**9)),
            *shape[at + 1 :],
        )
    elif what == "special" and isinstance(descr, str) and descr[1:] in ("f4", "f8", "f2") and body:
        width = int(descr[2:])
        code = {2: "e", 4: "f", 8: "d"}[width]
        at = draw.randrange(max(len(body) // width, 1)) * width
        number = draw.choice((math.nan, math.inf, -math.inf, -1.0, 2.0, 60000.0))
        body = body[:at] + struct.pack(descr[0] + code, number) + body[at + width :]
    elif what == "deep":
        return npy_with(
            draw.choice(("(" * 200 + ")" * 200, "[" * 9000, "-" * 9000 + "1", "{'a':" * 90 + "1" + "}" * 90)), body
        ), what
    elif what == "key":
        text = repr(header)
        return npy_with(
            draw.choice((text.replace("descr", "descre"), text.replace("}", ", 'more': 1}"), "{}", "7", "None")), body
        ), what
    elif what == "literal":
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({draw.choice(('9**9**9', '1e3', '1j', 'a', '9' * 5000, '10L'))},)}}"
        return npy_with(text, body), what
    elif what == "length":
        return npy_with(repr(header), body, draw.choice(((1, 0), (2, 0))), draw.choice(HUGE)), what
    elif what == "version":
        return npy(descr, shape, body, False, draw.choice(((2, 0), (3, 0), (0, 0), (9, 9), (255, 255)))), what
    elif what == "bytes":
        return damaged(data, draw)
    return npy(descr, shape, body, draw.choice((True, 1, "yes", None)) if what == "fortran" else False), what


def any_npy(pattern: str) -> Mutator:
    """Change an .npy file."""

    def mutator(case: Case) -> str:
        path = chosen(case, pattern)
        new, how = damaged_npy(path.read_bytes() if path.is_file() else b"", case.draw)
        put(path, new)
        return f"npy: {how} in {path.name}"

    return mutator


# --- words -----------------------------------------------------------------------------------------------------------
LITERALS = (
    *("9**9**9", "'a'*1000000000", "1000000000*[0]", "'a'*10**9", "[0]*10**9", "10**9*[0]", "(0,)*10**9", "b'a'*10**9", "9" * 5000, "-" * 5000 + "1", "(" * 500 + "1" + ")" * 500),
    *("[" * 500 + "]" * 500, "1/0", "0/0", "1%0", "1e999", "-1e999", "1e400*1", "1e308*10", "8/255", "8//255", "1<<10**9", "~0", "not 1"),
    *("__import__('os').getpid()", "exit()", "open('x')", "lambda: 0", "[x for x in y]", "x", "x.y", "f'{1}'", "{*()}", "{**{}}", "...", "1j"),
    *("1if 1else 2", "a:=1", "yield", "await x", "None", "True", "False", "'a'", "''", "b''", "()", "[]", "{}", "{1:2}", "{1}", "(1,2)", "[1,[2]]"),
    *("-1", "+1", "--1", "0", "-0.0", "1_0", "0b1", "0o17", "0xff", "1e-320", "'\\x00'", "'\\n'", "'\\ud800'", "'" + "a" * 300 + "'", "float('nan')"),
    *("2*3", "2*3*4", "2/3/4", "'a'*2", "2*'a'", "[1]*3", "True*5", "1*1.5", "8/255*2", "2**3", "1+1", "1-1", "3*-1", "1 2", "1,", ",", "=", "=1"),
    *("10**400*1.0", "10" * 200 + "*1.5", "'a' 'b'", "*[1]", "1;2", "1#", "\\", "\t1", "١", "é", "𝟏", "\x00", "\ufeff1", "1\n", "\n1", "{[]:1}", "{{}:1}"),
)  # fmt: skip
"""What may stand where a call expects a number."""


def damaged_text(text: str, draw: random.Random) -> tuple[str, str]:
    """A text with a character or a stretch changed, and how."""
    if not text:
        return draw.choice(TEXTS), "fill"
    a, b = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
    what = draw.choice(("drop", "double", "insert", "replace", "cut", "case", "other", "repeat", "signs"))
    if what == "drop":
        text = text[:a] + text[a + 1 :]
    elif what == "double":
        text = text[:b] + text[a:b] + text[b:]
    elif what == "insert":
        text = text[:a] + draw.choice(TEXTS) + text[a:]
    elif what == "replace":
        text = text[:a] + draw.choice("()[]{},=/*-+.:'\"\\ \t\n\x000a_é日") + text[a + 1 :]
    elif what == "cut":
        text = text[:a]
    elif what == "case":
        text = text.swapcase()
    elif what == "other":
        text = draw.choice(TEXTS)
    elif what == "repeat":
        text = (text * draw.choice((2, 100, 10_000)))[:200_000]
    else:
        text = text[:a] + draw.choice(LITERALS) + text[a:]
    return text, what


def any_word(at: Sequence[int] | None = None) -> Mutator:
    """Change one of the case's words (of those at these places) as text."""

    def mutator(case: Case) -> str:
        places = [i for i in (at or range(len(case.words))) if i < len(case.words)]
        if not places:
            case.words.append(case.draw.choice(TEXTS))
            return "a word more"
        place = case.draw.choice(places)
        case.words[place], how = damaged_text(case.words[place], case.draw)
        return f"{how} in word {place}: {case.words[place]!r:.120}"

    return mutator


def any_argument(case: Case) -> str:
    """Drop, double, move, replace or add a word of a command line."""
    draw, words = case.draw, case.words
    what = draw.choice(("drop", "double", "swap", "replace", "add", "value"))
    if not words or what == "add":
        words.insert(draw.randrange(len(words) + 1), draw.choice((*TEXTS, "--help", "--out", "--nothing", "--", "-x")))
        return "a word more"
    place = draw.randrange(len(words))
    was = words[place]
    if what == "drop":
        del words[place]
    elif what == "double":
        words.insert(place, was)
    elif what == "swap":
        other = draw.randrange(len(words))
        words[place], words[other] = words[other], was
    elif what == "replace":
        words[place] = draw.choice(TEXTS)
    else:
        words[place] = str(draw.choice(NUMBERS))
    return f"{what} of the word {was!r:.60}"


def other_value(
    options: dict[str, Sequence[str]], hostile: Sequence[str] = (*TEXTS, *(str(n) for n in NUMBERS))
) -> Mutator:
    """Give an option of a command line a value: one that it may have, or a hostile one."""

    def mutator(case: Case) -> str:
        option = case.draw.choice(list(options))
        value = case.draw.choice((*options[option], *case.draw.sample(list(hostile), 6)))
        case.words += case.draw.choice(([option, value], [f"{option}={value}"]))
        return f"{option} {value!r:.80}"

    return mutator


def hostile_call(case: Case, name: str, parameters: Sequence[str]) -> str:
    """The text of a call with some parameters, one of them hostile, now and then damaged as text."""
    draw = case.draw
    given = {
        one: draw.choice(LITERALS)
        for one in draw.sample(list(parameters), min(len(parameters), draw.choice((1, 1, 2))))
    }
    if draw.random() < 0.1:
        given[draw.choice(("nothing", "*", "**", "", "self", "a" * 300, "é"))] = "1"
    text = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    return damaged_text(text, draw)[0] if draw.random() < 0.2 else text
