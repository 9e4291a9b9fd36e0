"""Write docs/catalogue.md: everything that is registered, from the docstrings."""

from pathlib import Path

import geophone  # noqa: F401
from geophone.core.registry import REGISTRIES

TARGET = Path(__file__).parents[1] / "docs" / "catalogue.md"


def catalogue() -> str:
    """The page."""
    lines = ["# Catalogue", "", "Made by `python scripts/make_catalogue.py` from what is registered; do not edit."]
    for registry in REGISTRIES.values():
        lines += ["", f"## {registry.plural.capitalize()}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(registry.summary(name))} |" for name in registry]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(catalogue(), encoding="utf-8")
