"""A table of several models: recipes are compared within a model, and what lies between models is said."""

from types import ModuleType

import polars as pl

from geophone.core.table import KEYS
from geophone.report.figures.sweep import sweep_of
from geophone.report.findings import findings
from geophone.report.page import _answer
from geophone.report.sections.answer import answer


def of_two_models(synthetic: ModuleType) -> pl.DataFrame:
    """All recipes in one model; in another, which is better at everything, one of these and one of its own."""
    first = synthetic.make_table(seeds=(0, 1, 2, 3, 4)).with_columns(model=pl.lit("a"))
    second = synthetic.make_table(("Standard", "NoiseAugmented(std=0.1)"), (0, 1, 2, 3, 4)).with_columns(
        model=pl.lit("b"),
        job=pl.lit("b") + pl.col("job"),
        recipe=pl.col("recipe").replace("NoiseAugmented(std=0.1)", "SelectivityRegularised(alpha=7)"),
        value=pl.when(pl.col("metric") == "accuracy").then(1 - 0.01 * (1 - pl.col("value"))).otherwise("value"),
    )
    return pl.concat([first, second]).sort(KEYS, nulls_last=False)


def test_what_holds_best_is_a_recipe_of_the_same_model(synthetic: ModuleType) -> None:
    found = findings(of_two_models(synthetic))
    assert found.series[0] == "Standard · a"
    assert set(found.peers) == {name for name in found.series if name.endswith("· a")}
    assert "· b" not in _answer(found).replace("&#183;", "·")
    # Mutant: among all series it would be the other model that holds best.
    assert "· b holds best" in " ".join(answer(found.summary, found.sides, found.relations, found.series))


def test_a_network_without_peers_is_compared_with_all(synthetic: ModuleType) -> None:
    table = of_two_models(synthetic)
    alone = table.filter((pl.col("recipe") == "Standard") | (pl.col("model") == "b"))
    assert findings(alone).peers == findings(alone).series


def test_relations_over_models_say_so(synthetic: ModuleType) -> None:
    both = findings(of_two_models(synthetic))
    assert "Over 45 networks of 2 models, whose differences count too, from 5 seeds" in _answer(both)
    one = findings(synthetic.make_table(seeds=(0, 1, 2, 3, 4)))
    assert "Over 35 networks from 5 seeds" in _answer(one)


def test_a_sweep_is_of_one_model(synthetic: ModuleType) -> None:
    sweep = sweep_of(of_two_models(synthetic))
    assert sweep is not None
    assert sweep.values == [-2, -1, 0, 1, 2]  # 7 is the other model's
    assert set(sweep.rows["model"]) == {"a"}
    assert set(sweep.rows["swept"]) == set(sweep.values)
