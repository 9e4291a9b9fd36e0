"""What everything stands on: errors, files, registries, randomness, the table; no measurement happens here."""

import lazy_loader

_ROOMS = ("arguments", "checksums", "errors", "files", "progress", "provenance", "registry", "rng", "table", "types")
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_ROOMS)
