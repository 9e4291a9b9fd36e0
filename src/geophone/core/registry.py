"""One registry per kind of thing; being registered is enough to be listed, helped, tested and reported."""

import ast
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin

from geophone.core.arguments import PLAIN, checked
from geophone.core.errors import GeophoneError, check_is, reason_of, short, unknown

T = TypeVar("T")

LONGEST_CALL = 1000
"""Characters of one call's text: more than any use, and little enough to be read and shown."""


class Registry(Generic[T]):
    """Names to things of one kind, in the order in which they were registered.

    A plug-in registers its things just as the package does; see `load_plugin`.
    """

    def __init__(self, kind: str, plural: str, own: str = "") -> None:
        """A registry whose own things are registered by the module `own`, which is imported when one is asked for."""
        self.kind, self.plural = kind, plural
        self._own = own
        self._things: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def fill(self) -> None:
        """Import what registers the package's own things, if that was not done."""
        if own := self._own:
            self._own = ""  # first: while it is imported, it may be asked
            import_module(own)

    def add(self, name: str, thing: T) -> T:
        """Register a thing. A name that is taken by another definition is an error."""
        origin = _loading[-1] if _loading else "geophone"
        if origin != "geophone":
            self.fill()  # so that the package's own are there first
        if name in self._things and self._origins[name] != origin:
            raise GeophoneError(
                f"the {self.kind} {name!r} of {origin} is already there, from {self._origins[name]}: rename it."
            )
        self._things[name] = thing
        self._origins[name] = origin
        return thing

    def register(self, thing: T) -> T:
        """Decorator: register a class or function under its own name. The fields of a dataclass are checked then."""
        if isinstance(thing, type) and is_dataclass(thing):
            thing.__init__ = checked(thing.__init__)  # type: ignore[method-assign]
        return self.add(thing.__name__, thing)  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> T:
        self.fill()
        check_is(str, f"its name as a text, such as {next(iter(self._things), '')!r}", **{f"this {self.kind}": name})
        if name not in self._things:
            raise unknown(self.kind, name, self._things, f"`geophone list {self.plural}` shows all of them.")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        self.fill()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self.fill()
        return iter(self._things)

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and things, in order."""
        self.fill()
        return iter(self._things.items())

    def __len__(self) -> int:
        self.fill()
        return len(self._things)

    def origin(self, name: str) -> str:
        """Where a thing came from: "geophone", or the plug-in's file or distribution."""
        self.fill()
        return self._origins[name]

    def summary(self, name: str) -> str:
        """The first line of a thing's docstring."""
        self.fill()
        text = getattr(self[name], "doc", None) or inspect.getdoc(self[name])
        return text.splitlines()[0] if text else ""

    def build(self, text: str, **more: Any) -> Any:
        """A thing from code such as `LinfPGD(eps=8/255, steps=20)`: a registered name and plain literals, never run.

        Args:
            text: The code.
            more: Further arguments, of any kind.

        Raises:
            GeophoneError: the name is not registered, the arguments are not literals or are not the thing's.
        """
        name, arguments = parse_call(text, self.kind)
        arguments |= more
        made: Any = self[name]
        signature = inspect.signature(made)
        try:
            signature.bind(**arguments)
        except TypeError:
            wrong = [k for k in arguments if k not in signature.parameters]
            if wrong:
                raise unknown(f"argument of {name}", wrong[0], signature.parameters) from None
            raise GeophoneError(f"{text}: {name} needs the arguments {', '.join(signature.parameters)}.") from None
        values = {}
        for key, value in arguments.items():
            parameter = signature.parameters[key]
            if key not in more:
                value = _fitting(value, parameter, text)
            elif type(value) is int and parameter.annotation in (float, float | None):
                value = float(value)
            values[key] = value
        try:
            return made(**values)
        except GeophoneError:
            raise
        except Exception as error:  # what is registered may be a plug-in's and fail in any way
            raise GeophoneError(f"{text} can't be made ({reason_of(error)}). Check its arguments.") from error

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Undo what is registered inside the block (for tests: registries are process-global)."""
        self.fill()
        things, origins = dict(self._things), dict(self._origins)
        try:
            yield
        finally:
            self._things, self._origins = things, origins


def parse_call(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Split `Name(a=1, b=8/255)` into its name and its arguments, without running anything.

    Arguments are None, True, False, texts, finite numbers, products and quotients of two numbers, and tuples, lists and
    dictionaries of these. Whole numbers have at most 64 bits.

    Raises:
        GeophoneError: anything else, or more than `LONGEST_CALL` characters.
    """
    try:
        if not isinstance(text, str) or len(text) > LONGEST_CALL:
            raise ValueError("no text that is read")
        with warnings.catch_warnings(action="ignore"):  # of odd literals such as 1if
            node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {_named(k.arg): _literal(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        pass
    raise GeophoneError(
        f"cannot read the {kind} {short(text)}: write it as Name or Name(field=number), such as LinfPGD(eps=8/255)."
    )


def _named(argument: str | None) -> str:
    if argument is None:
        raise ValueError("** is not a literal")
    return argument


def _literal(node: ast.expr) -> Any:
    """A plain value, or a quotient or product of two numbers (`8/255`); nothing that could grow beyond its text."""
    match node:
        case ast.Constant(value=None | bool() | str() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return _finite(value)
        case ast.UnaryOp(op=ast.USub(), operand=of):
            return _finite(-_number(of))
        case ast.UnaryOp(op=ast.UAdd(), operand=of):
            return _number(of)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _finite(_number(left) / _number(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _finite(_number(left) * _number(right))
        case ast.Tuple(elts=parts):
            return tuple(_literal(part) for part in parts)
        case ast.List(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=keys, values=parts) if None not in keys:
            return {_literal(key): _literal(part) for key, part in zip(keys, parts, strict=True) if key is not None}
    raise ValueError("not a literal")


def _number(node: ast.expr) -> int | float:
    value = _literal(node)
    if type(value) not in (int, float):
        raise ValueError("not a number")
    return value


def _finite(value: int | float) -> int | float:
    if not math.isfinite(value) or (type(value) is int and value.bit_length() > 64):
        raise ValueError("not a number that can be meant")
    return value


def _fitting(value: Any, parameter: inspect.Parameter, text: str) -> Any:
    """A literal as the parameter's annotation wants it: a whole number is a float where one is asked for, and back.

    Raises:
        GeophoneError: it isn't of that type, as far as the annotation names plain ones.
    """
    annotation = parameter.annotation
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    allowed = [PLAIN[kind] for kind in kinds if kind in PLAIN]
    for kind in kinds:
        items = get_args(kind)
        if get_origin(kind) in (Sequence, tuple) and items and items[0] in (int, float):
            if isinstance(value, tuple | list) and all(type(one) is int or type(one) is items[0] for one in value):
                return tuple(items[0](one) for one in value)
            allowed.append(f"a tuple of {PLAIN[items[0]].removeprefix('a ')}s")
        elif kind not in PLAIN:
            return value  # of a type that only the thing itself can check
        elif type(value) is kind or (kind is float and type(value) is int):
            return kind(value) if kind is not NoneType else None
        elif kind is int and type(value) is float and value.is_integer():
            return int(value)
    raise GeophoneError(f"{text}: {parameter.name} is {short(value)}; allowed is {' or '.join(allowed)}.")


DATASETS: Registry[Callable[..., Any]] = Registry("data set", "data", "geophone.data")
MODELS: Registry[Callable[..., Any]] = Registry("model", "models", "geophone.models")
RECIPES: Registry[Callable[..., Any]] = Registry("recipe", "recipes", "geophone.train")
PERTURBATIONS: Registry[Callable[..., Any]] = Registry("perturbation", "perturbations", "geophone.perturb")
METRICS: Registry[Any] = Registry("metric", "metrics", "geophone.metrics")
STUDIES: Registry[Callable[..., Any]] = Registry("study", "studies", "geophone.studies")
PROBES: Registry[Callable[..., Any]] = Registry("probe", "probes", "geophone.probes")
REGISTRIES = {r.plural: r for r in (DATASETS, MODELS, RECIPES, PERTURBATIONS, METRICS, STUDIES, PROBES)}

_loading: list[str] = []
_loaded: dict[Path, Any] = {}
_entered: set[EntryPoint] = set()


def load_file(path: Path, kind: str) -> Any:
    """Import a user's Python file once, and return the module. What it registers is marked as its own.

    Its folder goes to the end of `sys.path`, so that it can import its neighbours, now and later.

    Raises:
        GeophoneError: the file is missing, or fails or leaves (sys.exit) while it is imported. What ends the process at
            once (os._exit, a crash of compiled code) can't be caught.
    """
    try:
        path = path.resolve()
        found = path in _loaded or path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a null, or a link to itself
        found = False
    if not found:
        raise GeophoneError(f"no {kind} file at {path}. Give the path of a Python file.")
    if path in _loaded:
        return _loaded[path]
    name = f"geophone_user_{path.stem}_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise GeophoneError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with _importing(path.name, str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _loaded[path] = module
    return module


@contextmanager
def _importing(origin: str, what: str) -> Iterator[None]:
    """Mark what is registered inside the block as `origin`'s; any failure of that code becomes one clear error."""
    for registry in REGISTRIES.values():
        registry.fill()  # what is the package's own is not registered inside it
    _loading.append(origin)
    try:
        yield
    except GeophoneError:
        raise
    except (Exception, SystemExit) as error:
        raise GeophoneError(f"{what} could not be imported: {reason_of(error)}") from error
    finally:
        _loading.pop()


@checked
def load_plugin(path: Path | str) -> Any:
    """Load a plug-in: one Python file that registers metrics, perturbations, recipes, models, data sets or studies."""
    return load_file(Path(path), "plug-in")


def load_entry_points() -> None:
    """Load, once, the plug-ins that installed distributions announce under the entry point group `geophone.plugins`.

    Raises:
        GeophoneError: a plug-in fails while it is imported.
    """
    for point in entry_points(group="geophone.plugins"):
        if point in _entered:
            continue
        origin = point.dist.name if point.dist else point.name
        with _importing(origin, f"the plug-in {origin}"):
            point.load()
        _entered.add(point)
