"""How this package compiles what its loops are slow in."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

from numba import njit

FAST = {"reassoc", "contract"}
"""Sums may be reordered, so that they fill vector registers; nothing else of arithmetic is relaxed."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compile a function of plain arrays once, keep it on disk, and let the interpreter's lock go in it.

    Numba keeps it in `__pycache__` beside the source, or where NUMBA_CACHE_DIR says, until that file changes. So
    kernels that call each other are in one file.

    What checks of types were put around the function is left off: they take tensors, and nothing else can be compiled.
    """
    plain = unwrap(function)
    made: Callable[..., Any]
    try:
        made = njit(cache=True, nogil=True, fastmath=FAST)(plain)
    except RuntimeError:  # there is no folder that can be written to: each process compiles it anew
        made = njit(nogil=True, fastmath=FAST)(plain)
    return made
