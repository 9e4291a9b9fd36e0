"""Arguments of what users call, checked against the annotations that declare them."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

from geophone.core.errors import GeophoneError, misfit, unknown

P = ParamSpec("P")
R = TypeVar("R")

PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    NoneType: "None",
}
_PUBLIC = {"torch.nn.modules.module.Module": "torch.nn.Module", "polars.dataframe.frame.DataFrame": "polars.DataFrame"}
# What torch and NumPy take as a size or as a seed.
_LARGEST = 2**63 - 1


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an argument that is not what its annotation says ends in one error, before anything is done.

    Plain types, unions, sequences of plain types, mappings, functions and classes are checked; of other annotations
    the function itself knows more. A class in place of an object, or of a function, is an error.

    Raises:
        GeophoneError: an argument is of another kind, is missing, or has a name that the function does not know.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _unbound(name, signature, kwargs, error) from None
        for key, value in given.arguments.items():
            parameter = signature.parameters[key]
            declared = parameter.annotation is not parameter.empty
            if declared and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                check_argument(key, value, parameter.annotation)
        return function(*args, **kwargs)

    return call


def check_argument(name: str, value: Any, annotation: Any) -> None:
    """Raise an error for a value that is not what the annotation says.

    Raises:
        GeophoneError: it isn't.
    """
    if fits(value, annotation):
        return
    kinds = _kinds(annotation)
    if _too_large(value) and {int, float} & {*kinds}:
        raise GeophoneError(f"{name} is a number of {value.bit_length()} bits: give one of at most 63.")
    if isinstance(value, list | tuple):
        for kind in kinds:
            if get_origin(kind) in (Sequence, tuple):
                for i, (one, item) in enumerate(zip(value, _items(kind, len(value)), strict=False)):
                    check_argument(f"{name}[{i}]", one, item)
    raise misfit(name, value, " or ".join(_words(kind) for kind in kinds if kind is not NoneType))


def check_fields(thing: Any) -> None:
    """Raise an error for a field of a dataclass that is not what its annotation says; for `__post_init__`.

    Raises:
        GeophoneError: there is one.
    """
    for field in fields(thing):
        check_argument(field.name, getattr(thing, field.name), field.type)


def as_tuple(given: Any) -> tuple[Any, ...]:
    """One thing or several, as a tuple: a text, or what is no iterable, is one."""
    several = isinstance(given, Iterable) and not isinstance(given, str | type)
    return tuple(given) if several else (given,)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says, as far as that can be checked."""
    return any(_fits(value, kind) for kind in _kinds(annotation))


def _unbound(name: str, signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError) -> GeophoneError:
    """The error for arguments that a function cannot be called with."""
    if wrong := [key for key in kwargs if key not in signature.parameters]:
        return unknown(f"argument of {name}", wrong[0], signature.parameters)
    return GeophoneError(f"{name}: {error}. It takes {', '.join(signature.parameters)}.")


def _kinds(annotation: Any) -> tuple[Any, ...]:
    union = isinstance(annotation, UnionType) or get_origin(annotation) is Union
    return get_args(annotation) if union else (annotation,)


def _fits(value: Any, kind: Any) -> bool:
    origin, items = get_origin(kind), get_args(kind)
    if origin is type:
        return isinstance(value, type)
    if origin in (Sequence, tuple) and isinstance(value, list | tuple):
        each = _items(kind, len(value))
        return len(each) == len(value) and all(fits(one, item) for one, item in zip(value, each, strict=True))
    if kind is bool:
        numpy = sys.modules.get("numpy")  # whoever gives one of its numbers has imported it
        return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))
    if kind in (int, float):
        wanted = Integral if kind is int else Real
        return not (isinstance(value, bool) or _too_large(value)) and isinstance(value, wanted)
    if kind is Callable or origin is Callable:
        return callable(value) and not isinstance(value, type)
    if origin is Sequence:
        # A text is a sequence of texts to Python, and one name to most functions. Vectors of numbers are lists of them.
        listed = isinstance(value, Sequence | Set | Iterator) or getattr(value, "ndim", 0) == 1
        return listed and (str in items or not isinstance(value, str))
    try:
        return isinstance(value, kind if origin is None else origin) and not isinstance(value, type)
    except TypeError:  # Any, and protocols that cannot be asked
        return True


def _items(kind: Any, length: int) -> tuple[Any, ...]:
    """What each item of a sequence of some length has to be."""
    items = get_args(kind)
    return items if get_origin(kind) is tuple and Ellipsis not in items else items[:1] * length


def _too_large(value: Any) -> bool:
    return type(value) is int and abs(value) > _LARGEST


def _words(kind: Any) -> str:
    """A kind in the user's words."""
    origin, items = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is Callable or origin is Callable:
        return "a function"
    if origin is type:
        return "a class"
    if origin in (Sequence, Iterable, tuple):
        return "a list of " + " or ".join(f"{_words(one).removeprefix('a ')}s" for one in _kinds(items[0]))
    if origin is not None:
        return "a mapping"
    package = kind.__module__.partition(".")[0]
    return f"a {_PUBLIC.get(f'{kind.__module__}.{kind.__qualname__}', f'{package}.{kind.__qualname__}')}"
