"""What the outputs of a network are called: files of names, and which output a class folder is."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geophone.core.errors import GeophoneError, unknown
from geophone.data.dataset import MOST_CLASSES
from geophone.data.places import called

MOST_BYTES = 1 << 26
"""Of a file of names: 64 bytes for each of 2²⁰ classes."""

Names = tuple[tuple[str, ...], ...]
"""Of each output, in order: the name that it is shown by, and what else it is called."""


def output_names(given: Any) -> Names:
    """The names of a network's outputs, in their order.

    Args:
        given: Names in a list or tuple, or the path of a file of them:

            - one name a line; or a key, white space or a tab, and names separated by commas (ImageNet's
              LOC_synset_mapping.txt). A key such as n01440764 alone gets its words from a words.txt beside the file;
            - JSON: a list; a mapping from output to name or to [key, name] (imagenet_class_index.json), or from name to
              output.

    Raises:
        GeophoneError: no such file, or one that can't be read as any of these.
    """
    if not isinstance(given, str | Path):
        if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given) or not given:
            raise GeophoneError(f"classes is {given!r:.80}; allowed are a file of names or a list of them.")
        return tuple((name,) for name in given)
    path = Path(os.path.expanduser(given))
    text = read_text(path, "a file of the outputs' names, one a line in their order, or ImageNet's class index")
    names = _from_json(text, path) if text.lstrip()[:1] in ("{", "[") else _from_lines(text, path)
    if not 0 < len(names) <= MOST_CLASSES:
        raise GeophoneError(f"{path} names {len(names)} outputs; allowed are 1 to {MOST_CLASSES}.")
    return names


def outputs_of(classes: Sequence[str], names: Names, where: str) -> dict[str, int]:
    """Which output each class folder is, by its first name or any other.

    Raises:
        GeophoneError: a folder that no output is called, or more than one.
    """
    place: dict[str, set[int]] = {}
    for output, each in enumerate(names):
        for name in each:
            place.setdefault(name, set()).add(output)
    found = {}
    for label in classes:
        if label not in place:
            raise unknown("class", label, place, f"{where} is called so, and none of the {len(names)} named outputs.")
        if len(place[label]) > 1:
            raise GeophoneError(
                f"{where}: {label!r} is the name of the outputs {sorted(place[label])[:8]}. Call the folders by what "
                "only one output is called, such as its WordNet id."
            )
        (found[label],) = place[label]
    if len(set(found.values())) < len(found):
        raise GeophoneError(f"{where}: two class folders are names of one output. Put their images into one.")
    return found


def read_text(path: Path, what: str) -> str:
    """A small text file.

    Raises:
        GeophoneError: it is missing, unreadable, too large or no text.
    """
    if not os.path.isfile(path):
        raise GeophoneError(f"no file at {called(path)}. Give the path of {what}.")
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise GeophoneError(f"{path} has {os.path.getsize(path)} bytes; allowed are {MOST_BYTES}. Give {what}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GeophoneError(f"{path} cannot be read ({error.strerror}). Give {what}.") from None
    except UnicodeDecodeError:
        raise GeophoneError(f"{path} is no text in UTF-8. Give {what}.") from None


def _from_lines(text: str, path: Path) -> Names:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    words = path.with_name("words.txt")
    more: dict[str, str] = {}
    if words != path and os.path.isfile(words):
        said = (line.partition("\t") for line in read_text(words, "WordNet's words").split("\n"))
        more = {key: names.strip() for key, _, names in said}
    return tuple(_called(f"{line}\t{more[line]}" if line in more else line) for line in lines)


def _called(line: str) -> tuple[str, ...]:
    """The line itself, a WordNet id at its start, and each of the names after that."""
    key, _, rest = line.partition("\t") if "\t" in line else line.partition(" ")
    if "\t" not in line and not _is_wordnet_id(key):
        return (line,)
    names = (rest.strip(), *(name.strip() for name in rest.split(",")))
    return tuple(dict.fromkeys((key, *(name for name in names if name), line)))


def _is_wordnet_id(key: str) -> bool:
    return len(key) == 9 and key[0] == "n" and key[1:].isascii() and key[1:].isdigit()


def _from_json(text: str, path: Path) -> Names:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise GeophoneError(f"{path} is no sound JSON. Give a list of names, or ImageNet's class index.") from None
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):  # name to output
            content = {str(output): name for name, output in content.items()}
        try:
            content = [content[str(output)] for output in range(len(content))]
        except KeyError as missing:
            raise GeophoneError(
                f"{path} does not name the output {missing.args[0]}; allowed are all from 0 to {len(content) - 1}."
            ) from None
    return tuple(_strings(value, path) for value in content)


def _strings(value: Any, path: Path) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise GeophoneError(f"{path} holds {value!r:.80}, which is no name; allowed are text, or a list of text.")
    return tuple(names)
