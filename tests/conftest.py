"""Shapes and types are checked at run time in tests; registries and the number of threads are restored."""

from contextlib import ExitStack

import pytest
from jaxtyping import install_import_hook

with install_import_hook("geophone", "beartype.beartype"):
    import geophone  # noqa: F401

import torch

from geophone.core.registry import REGISTRIES


@pytest.fixture(autouse=True)
def _restored():
    with ExitStack() as stack:
        for registry in REGISTRIES.values():
            stack.enter_context(registry.restored())
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
