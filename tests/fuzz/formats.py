"""Every format that is tested. Each file registers its own when it is imported."""

import importlib
import importlib.util

from tests.fuzz.harness import FORMATS as FORMATS

for name in ("formats_calls", "formats_models", "formats_data", "formats_cli", "formats_runs"):
    if importlib.util.find_spec(f"tests.fuzz.{name}") is not None:
        importlib.import_module(f"tests.fuzz.{name}")
