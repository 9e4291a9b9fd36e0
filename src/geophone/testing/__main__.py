"""`python -m geophone.testing FILE`: load a plug-in and check that what it registers keeps its contracts."""

import sys
from pathlib import Path

import click

from geophone.core.errors import GeophoneError
from geophone.core.registry import load_plugin
from geophone.testing.contracts import broken_contracts, registered_by


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def main(file: Path) -> None:
    """Check everything that the plug-in FILE registers. Exits with 1 when a promise is broken."""
    try:
        load_plugin(file)
        found = list(registered_by(file.name))
        if not found:
            raise GeophoneError(f"{file} registers nothing. See `geophone list` and docs/plugins.md.")
    except GeophoneError as error:
        click.echo(f"geophone: {error}", err=True)
        sys.exit(2)
    bad = 0
    for kind, name in found:
        broken = broken_contracts(kind, name)
        click.echo(f"{'FAILED' if broken else 'ok':7}{kind}: {name}")
        for line in broken:
            click.echo(f"       {line}")
        bad += bool(broken)
    click.echo(f"{len(found) - bad} passed, {bad} failed")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
