"""Shapes and types are checked at run time in tests; registries and the number of threads are restored."""

from contextlib import ExitStack

import pytest
from jaxtyping import install_import_hook

install_import_hook("geophone", "beartype.beartype")  # for good: modules are imported when they are first used

import torch  # noqa: E402

from geophone.core.registry import REGISTRIES  # noqa: E402


@pytest.fixture(autouse=True)
def _restored():
    with ExitStack() as stack:
        for registry in REGISTRIES.values():
            stack.enter_context(registry.restored())
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
