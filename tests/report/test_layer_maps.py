"""Heat maps of layers beside layers: what is drawn, in which order, and what stands beside it in numbers."""

from typing import Any

import polars as pl
import pytest

from geophone.core.table import frame
from geophone.report import report_page
from geophone.report.findings import Findings, findings
from geophone.report.sections.layer_maps import depth_panels, map_figure, map_panels, scalar_table

LAYERS = ("conv", "relu", "<b7>")


def rows(recipe: str, seed: int, perturbation: str, level: float, value: float) -> list[dict[str, Any]]:
    """A map whose value falls by 0.1 a step from the diagonal, its control, a scalar and the diagonal."""
    here: dict[str, Any] = {"job": f"{recipe} {seed}", "dataset": "d", "model": "m", "recipe": recipe, "seed": seed}
    here |= {"family": "similarity", "perturbation": perturbation, "level": level}
    made: list[dict[str, Any]] = [{**here, "metric": "far_similarity", "value": value - 0.2, "n": 9, "d": 3}]
    for i, layer in enumerate(LAYERS):
        for j, other in enumerate(LAYERS):
            cell = {**here, "layer": layer, "depth": i, "other": other, "other_depth": j, "n": 9, "d": 5}
            made.append({**cell, "metric": "cka_minibatch", "value": value - 0.1 * abs(i - j)})
            made.append({**cell, "metric": "cka_minibatch_shuffled", "value": 0.01})
        if perturbation != "itself":
            made.append(
                {**here, "layer": layer, "depth": i, "metric": "same_layer_similarity", "value": value - 0.01 * i}
            )
    return made


def accuracy(recipe: str, seed: int) -> dict[str, Any]:
    return {
        **{"job": f"{recipe} {seed}", "dataset": "d", "model": "m", "recipe": recipe, "seed": seed, "family": "clean"},
        **{"perturbation": "clean", "level": 0.0, "metric": "accuracy", "value": 0.9, "n": 9, "d": 3},
    }


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    made = []
    for recipe, value in (("Robust", 0.9), ("Standard", 0.6)):
        for seed in (0, 1):
            made += [accuracy(recipe, seed), *rows(recipe, seed, "under LinfPGD(steps=20)", 8 / 255, value - 0.05)]
            made += rows(recipe, seed, "itself", 0.0, value + 0.02 * seed)
    return frame(made)


@pytest.fixture(scope="module")
def found(table: pl.DataFrame) -> Findings:
    return findings(table)


def test_a_map_is_the_mean_over_networks_standard_and_itself_first(found: Findings) -> None:
    panels = map_panels(found.maps, found.series)
    titles = [(spec["title"]["text"], spec["title"]["subtitle"]) for spec, _ in panels]
    assert titles == [
        ("Standard", "itself"),
        ("Robust", "itself"),
        ("Standard", "under LinfPGD(steps=20), 8/255"),
        ("Robust", "under LinfPGD(steps=20), 8/255"),
    ]
    cells = {(row["depth"], row["other_depth"]): row for row in panels[0][1]}
    assert len(cells) == 9
    assert cells[0, 2]["value"] == pytest.approx(0.61 - 0.2)
    assert cells[0, 2]["networks"] == 2
    assert (cells[0, 2]["layer"], cells[0, 2]["other"]) == ("conv", "<b7>")
    assert panels[0][0]["encoding"]["y"]["sort"] == "descending"  # the first layer is at the bottom


def test_rows_of_maps_are_in_no_other_chart(found: Findings, table: pl.DataFrame) -> None:
    assert "similarity" not in found.table["family"].to_list()
    assert len(found.maps) + len(found.table) == len(table)
    assert set(found.summary["metric"]) == {"accuracy"}


def test_lines_over_depth_are_of_each_layer_with_itself(found: Findings) -> None:
    ((spec, values),) = depth_panels(found.maps, found.series)
    assert spec["title"]["subtitle"] == "under LinfPGD(steps=20), 8/255"
    robust = [row["value"] for row in values if row["series"] == "Robust"]
    assert robust == pytest.approx([0.85, 0.84, 0.83])


def test_numbers_stand_under_the_maps(found: Findings) -> None:
    made = scalar_table(found.maps, found.series)
    assert made.index("Standard") < made.index("Robust")
    assert "0.41 [" in made  # the mean over two seeds, with its interval
    assert "Far" in made


def test_the_page_shows_all_of_it_escaped(table: pl.DataFrame) -> None:
    html = report_page(table, {}, "Maps")
    assert html.count('<div class="chart" id="map-') == 4
    assert html.count('<div class="chart" id="depth-') == 1
    assert "<b7>" not in html.partition("<body>")[2].replace("\\u003cb7>", "")
    assert "Layers beside layers" not in report_page(table.filter(pl.col("family") == "clean"), {}, "None")


def test_a_figure_has_every_map(found: Findings) -> None:
    panels = map_panels(found.maps, found.series)
    assert len(map_figure(panels)["concat"]) == 4
    assert map_panels(found.maps.clear(), found.series) == []
