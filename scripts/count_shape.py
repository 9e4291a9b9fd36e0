"""Count what makes a house crooked, and fail where there is more of it than the limits allow: part of `make lint`.

    python scripts/count_shape.py

Limits only go down: where a count is below its limit, the limit is to be lowered in the same commit. `FINAL` is where
they are to end.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "geophone"
MANY = 12
LONG = 80
NOT_LONG = {
    "held_out": "a compiled kernel",
    "nearest_points": "a compiled kernel",
    "lawson_hanson": "a compiled kernel",
    "cone": "a compiled kernel",
    "selectivity_claims": "data that are still code",
    "similarity_claims": "data that are still code",
    "geometry_claims": "data that are still code",
}
FINAL = {"public functions with many parameters": 2, "long functions": 0, "getattr and hasattr": 15, "names read": 0}

Found = Iterator[tuple[int, str]]


def parameters(node: ast.FunctionDef) -> int:
    """How many parameters a function has, without `self` and `cls`."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([one for one in given if one.arg not in ("self", "cls")])


def lines(node: ast.FunctionDef) -> int:
    """How many lines a function's statements take, without its signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


def many_parameters(tree: ast.Module) -> Found:
    """Public functions with `MANY` parameters or more; no methods, nor commands and models (theirs are fields)."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        apart = any(mark in ast.unparse(each) for each in node.decorator_list for mark in ("cli.command", ".register"))
        if parameters(node) >= MANY and not apart:
            yield node.lineno, f"{node.name} has {parameters(node)} parameters"


def long_functions(tree: ast.Module) -> Found:
    """Functions of more than `LONG` lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in NOT_LONG and lines(node) > LONG:
            yield node.lineno, f"{node.name} has {lines(node)} lines"


def by_name(tree: ast.Module) -> Found:
    """Calls of getattr and hasattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            yield node.lineno, ast.unparse(node)


def names_read(tree: ast.Module) -> Found:
    """Calls that read the beginning or the end of a text."""
    reads = ("startswith", "endswith", "starts_with", "ends_with")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in reads:
            yield node.lineno, ast.unparse(node)[:90]


COUNTS: dict[str, tuple[Callable[[ast.Module], Found], tuple[str, ...], int]] = {
    "public functions with many parameters": (many_parameters, ("",), 2),
    "long functions": (long_functions, ("",), 0),
    "getattr and hasattr": (by_name, ("",), 42),
    "names read": (names_read, ("report", "analysis"), 16),
}
"""What is counted, in which rooms, and how many there may be now."""


def counted(count: Callable[[ast.Module], Found], source: Path, rooms: tuple[str, ...]) -> list[str]:
    """Where it is found."""
    files = sorted({file for room in rooms for file in (source / room).rglob("*.py")})
    return [
        f"{file.relative_to(source)}:{line}: {what}"
        for file in files
        for line, what in count(ast.parse(file.read_text()))
    ]


def main(source: Path = SOURCE) -> int:
    """Print the counts; 1 where one is not what its limit says."""
    wrong = 0
    for name, (count, rooms, limit) in COUNTS.items():
        found = counted(count, source, rooms)
        print(f"{name}: {len(found)} (limit {limit}, to be {FINAL[name]})")
        if len(found) != limit:
            wrong += 1
            print("  lower the limit" if len(found) < limit else "  more than the limit allows", *found, sep="\n  ")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
