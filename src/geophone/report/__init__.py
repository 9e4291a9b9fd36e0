"""The report: one HTML page and its figures, made from the table alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert

from geophone.analysis.claims import read_claims
from geophone.core import table as tables
from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError
from geophone.core.files import reserved, write_all
from geophone.core.provenance import read_provenance
from geophone.report.figures import charts
from geophone.report.figures.panels import (
    accuracy_groups,
    bands_in_short,
    default_profile,
    has_profile,
    has_scatter,
    profile_chart,
    relation_chart,
    relation_title,
    robust_panels,
)
from geophone.report.figures.sweep import sweep_figures, sweep_of
from geophone.report.findings import Findings, findings
from geophone.report.page import page_html
from geophone.report.sections.layer_maps import map_figure, map_panels
from geophone.report.sections.manifolds import manifold_figures
from geophone.report.words import measure

__all__ = ["report_files", "report_page", "write_report"]


@checked
def write_report(out: Path | str, page: Path | str | None = None) -> Path:
    """Write a page, and `out/figures/*.svg|png`, from `out/table/*.parquet` and `out/provenance.json`.

    If there is an `out/claims.parquet`, as `geophone.analysis.claims.write_claims` makes it, the page shows its
    verdicts. All of it is written, or nothing is.

    Args:
        out: The folder of a study or scan.
        page: Where the page goes, a file that ends in .html; by default `out/report.html`.

    Returns:
        The path of the page.

    Raises:
        GeophoneError: the table or the provenance is missing, empty or corrupt, the claims are corrupt, `page` can't be
            a page, `out` can't be written, or another command writes there.
    """
    out, path = Path(out), Path(page or Path(out) / "report.html")
    if path.suffix.lower() != ".html":
        raise GeophoneError(f"--out {path}: give a file that ends in .html.")
    provenance = _read_provenance(out / "provenance.json")
    with reserved(out, path):
        table = tables.read(out / "table")
        if provenance.get("jobs"):  # rows of a study's earlier versions may lie in the same folder
            table = table.filter(pl.col("job").is_in(provenance["jobs"]))
        write_all(report_files(table, provenance, out, path, read_claims(out)))
    return path


def report_files(
    table: pl.DataFrame, provenance: Mapping[str, Any], out: Path, page: Path, claims: pl.DataFrame | None = None
) -> dict[Path, bytes]:
    """What a report consists of and where it goes, to be written: its figures, in `out/figures`, and its page.

    Args:
        table: The long table.
        provenance: How it was made, with a title.
        out: The folder of a study or scan.
        page: Where the page goes.
        claims: Verdicts on published claims.

    Raises:
        GeophoneError: the table has no rows.
    """
    found = findings(_checked(table))
    made: dict[Path, bytes] = {}
    for name, spec in _figures(found).items():
        drawn = charts.svg(spec)
        made[out / "figures" / f"{name}.svg"] = drawn.encode()
        made[out / "figures" / f"{name}.png"] = vl_convert.svg_to_png(drawn, scale=2)
    made[page] = page_html(found, provenance, str(provenance["title"]), claims).encode()
    return made


def report_page(
    table: pl.DataFrame, provenance: Mapping[str, Any], title: str, claims: pl.DataFrame | None = None
) -> str:
    """The report as one self-contained HTML page that needs no network.

    Args:
        table: The long table, of one network or of many.
        provenance: How it was made, as in provenance.json; what is missing is left out.
        title: The page's title.
        claims: Verdicts on published claims, from `geophone.analysis.claims.judge`.

    Raises:
        GeophoneError: the table has no rows.
    """
    return page_html(findings(_checked(table)), provenance, title, claims)


def _checked(table: pl.DataFrame) -> pl.DataFrame:
    if table.is_empty():
        raise GeophoneError("the table has no rows, so there is nothing to report. Run the study or scan first.")
    return table


def _read_provenance(path: Path) -> dict[str, Any]:
    if not path.exists():
        unfinished = (path.parent / "study.json").is_file()
        why = (
            "its study is not finished: run the same command again"
            if unfinished
            else "it is no study's or scan's folder"
        )
        raise GeophoneError(f"{path.parent} has no {path.name}: {why}.")
    return read_provenance(path)


def _figures(found: Findings) -> dict[str, charts.Spec]:
    """The figures that stand alone: those charts that the table has rows for."""
    made = {}
    caption = bands_in_short(found)
    if groups := accuracy_groups(found, width=210):
        made["accuracy"] = charts.figure_accuracy(groups, found.series, caption)
    if panels := robust_panels(found, width=260):
        made["robust_accuracy"] = charts.figure_robust(panels, found.series, caption)
    if has_profile(found):
        title = measure(default_profile(found.summary)[0]).title
        made["profile"] = charts.figure_profile(
            *profile_chart(found, found.summary, width=640), found.series, title, caption
        )
    if has_scatter(found):
        made["relation"] = charts.figure_relation(
            *relation_chart(found, width=440), found.series, relation_title(found)
        )
    if maps := map_panels(found.maps, found.series):
        made["layer_maps"] = map_figure(maps)
    made |= manifold_figures(found)
    sweep = sweep_of(found.table)
    return made if sweep is None else {**made, **sweep_figures(sweep)}
