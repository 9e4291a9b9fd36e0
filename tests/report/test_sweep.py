"""Figures of a sweep: which recipes make one, what is drawn, and that it is what the table says."""

import re
from types import ModuleType

import polars as pl
import pytest

from geophone.core.table import frame
from geophone.report import report_page
from geophone.report.figures.sweep import Sweep, sweep_figures, sweep_of
from geophone.report.findings import findings


def sweep(
    synthetic: ModuleType, recipes: tuple[str, ...] | None = None, seeds: tuple[int, ...] = (0, 1)
) -> Sweep | None:
    table = synthetic.make_table(recipes or synthetic.RECIPES, seeds)
    return sweep_of(findings(table).table)


def test_recipes_that_differ_in_one_number_are_a_sweep(synthetic: ModuleType) -> None:
    found = sweep(synthetic)
    assert found is not None
    assert found.name == "alpha"
    assert found.values == [-2, -1, 0, 1, 2]
    # Adversarial and NoiseAugmented have another number, and are no part of it.
    assert set(found.rows["recipe"]) == {"Standard", *synthetic.ALPHAS}


def test_networks_of_another_model_are_no_part_of_a_sweep() -> None:
    every = ["Standard", *(f"SelectivityRegularised(alpha={a})" for a in (-2, -1, 1, 2))]
    rows = [{"recipe": recipe, "dataset": "d", "model": "m", "job": recipe} for recipe in every]
    rows += [{"recipe": recipe, "dataset": "d", "model": "wide", "job": f"wide {recipe}"} for recipe in every[:2]]
    found = sweep_of(frame(rows))
    assert found is not None
    assert found.rows["model"].unique().to_list() == ["m"]
    assert len(found.rows) == 5


def test_other_arguments_that_all_share_do_not_hide_a_sweep() -> None:
    recipes = [f"SelectivityRegularised(alpha={a}, granularity='blocks')" for a in (-2, -1, 1, 2)]
    others = [f"SelectivityRegularised(alpha={a}, granularity='blocks', first=3)" for a in (-1, 1)]
    every = ["Standard", *recipes, *others, *(f"Adversarial(eps={eps}/255)" for eps in (2, 4, 8))]
    found = sweep_of(frame({"recipe": recipe, "dataset": "d", "model": "m"} for recipe in every))
    assert found is not None
    assert found.name == "alpha"
    assert set(found.rows["recipe"]) == {"Standard", *recipes}


@pytest.mark.parametrize("recipes", [("Standard",), ("Standard", "SelectivityRegularised(alpha=1)")])
def test_few_recipes_are_none(synthetic: ModuleType, recipes: tuple[str, ...]) -> None:
    assert sweep(synthetic, recipes) is None
    assert 'id="sweep"' not in report_page(synthetic.make_table(recipes, (0, 1)), {"title": "x"}, "x")


def test_what_is_drawn_is_what_the_table_says(synthetic: ModuleType) -> None:
    found = sweep(synthetic, seeds=(0, 1, 2))
    assert found is not None
    figures = sweep_figures(found)
    assert {"sweep_accuracy", "sweep_corruption", "sweep_corruption_types", "sweep_attack"} <= set(figures)
    table = synthetic.make_table(synthetic.RECIPES, (0, 1, 2))
    corrupted = table.filter((pl.col("family") == "corruption") & (pl.col("metric") == "accuracy"))
    corrupted = corrupted.filter(pl.col("layer").is_null() & (pl.col("recipe") == "SelectivityRegularised(alpha=-2)"))
    per_type = corrupted.group_by("seed", "perturbation").agg(pl.col("value").mean())
    (drawn,) = (r for r in figures["sweep_corruption"]["concat"][0]["data"]["values"] if r["swept"] == -2)
    # Every type has as many severities and every seed as many types: the mean of means is the mean.
    assert drawn["value"] == pytest.approx(per_type["value"].mean())
    assert drawn["low"] < drawn["value"] < drawn["high"]
    points = figures["sweep_accuracy"]["concat"][0]["data"]["values"]
    assert len(points) == 5 * 3
    attacks = figures["sweep_attack"]["concat"]
    assert {cell["title"] for cell in attacks} >= {"FGSM", "L2PGD(steps=20)"}
    # Level 0 is the clean accuracy.
    clean = table.filter((pl.col("family") == "clean") & (pl.col("metric") == "accuracy") & pl.col("layer").is_null())
    (start,) = (r for r in attacks[0]["data"]["values"] if r["swept"] == 0 and r["level"] == 0)
    assert start["value"] == pytest.approx(clean.filter(pl.col("recipe") == "Standard")["value"].mean())


def test_colours_tell_the_sign_and_the_page_holds_the_figures(synthetic: ModuleType) -> None:
    found = sweep(synthetic)
    assert found is not None
    colours = found.colour().to_dict()["scale"]["range"]
    assert len(set(colours)) == 5
    red, blue = (lambda c: int(c[1:3], 16)), (lambda c: int(c[5:7], 16))
    assert all(blue(c) > red(c) for c in colours[:2])
    assert colours[2] == "#000000"
    assert all(red(c) > blue(c) for c in colours[3:])
    page = report_page(synthetic.make_table(), {"title": "x"}, "x")
    section = page[page.index('id="sweep"') :]
    assert len(re.findall(r'<img class="figure" alt="[^"]+" src="data:image/svg\+xml;base64,', section)) >= 4
