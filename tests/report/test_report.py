"""The page, its sentences and its numbers, from made-up tables."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import t

from geophone import table as tables
from geophone.errors import GeophoneError
from geophone.relate import SAME_SIDE, networks, relate
from geophone.report import report_page, write_report
from geophone.report.answer import answer, headline
from geophone.report.charts import columns, style
from geophone.report.summary import series_order, summarise, summarise_sides, thinned, with_series
from geophone.report.words import MEASURES, PROFILE, level_label, measure, p_value

SECTIONS = ["answer", "checks", "accuracy", "layers", "relations", "everything", "provenance"]


class Page(HTMLParser):
    """The elements of a page, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.raw else data

    def ids(self, tag: str) -> list[str | None]:
        return [attrs.get("id") for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def table(synthetic: ModuleType) -> pl.DataFrame:
    return synthetic.make_table()


@pytest.fixture(scope="module")
def html(table: pl.DataFrame) -> str:
    return report_page(table, {"command": "geophone run <demo>", "seconds": 231.4, "seeds": [0, 1]}, "A & B")


def sentences(table: pl.DataFrame) -> list[str]:
    named = with_series(table)
    relations = relate(table, resamples=100)
    return answer(summarise(named), summarise_sides(named), relations, series_order(named))


def test_page_has_its_sections_in_order(html: str) -> None:
    page = Page(html)
    assert page.ids("section") == SECTIONS
    assert "A & B" in page.text
    assert "geophone run <demo>" in page.text
    assert "3 min 51 s" in page.text
    assert "41 % dead units" in page.text
    assert "2 of 3 checks passed, in 14 networks." in page.text


def test_page_is_self_contained_and_light(html: str) -> None:
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    outward = [a.get(k) for _, a in page.elements for k in ("src", "href") if a.get(k) not in (None, "data:,")]
    assert outward == []
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy


def test_every_control_has_a_label(html: str) -> None:
    outside = re.sub(r"<label.*?</label>", "", html[: html.index("<script")], flags=re.S)
    assert "<select" in html
    assert "<select" not in outside
    assert "<input" not in outside


def test_names_are_escaped(synthetic: ModuleType) -> None:
    evil = "</script><script>alert(1)</script>"
    table = synthetic.make_table(["Standard"], [0]).with_columns(
        recipe=pl.lit(evil), note=pl.lit(evil), layer=pl.when(pl.col("layer").is_not_null()).then(pl.lit(evil))
    )
    wrong = table.with_columns(
        value=pl.when(pl.col("metric").str.starts_with("check.")).then(1.0).otherwise(pl.col("value"))
    )
    page = Page(
        report_page(wrong, {"command": evil, "notes": [evil], "versions": {evil: evil}, "question": evil}, evil)
    )
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert page.text.count(evil) > 5


# Numbers.


def interval_is_students(low: float, high: float, values: list[float]) -> bool:
    expected = t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=np.std(values, ddof=1) / len(values) ** 0.5)
    return bool(np.allclose([low, high], expected, rtol=0, atol=1e-12))


def accuracies(values: list[float], **columns: Any) -> pl.DataFrame:
    base = {"recipe": "r", "family": "clean", "perturbation": "clean", "level": 0.0, "metric": "accuracy", **columns}
    return tables.frame({**base, "job": f"j{i}", "seed": i, "value": v} for i, v in enumerate(values))


def test_summary_against_scipy() -> None:
    values = [0.61, 0.64, 0.66, 0.70]
    row = summarise(with_series(accuracies(values))).row(0, named=True)
    assert row["value"] == pytest.approx(np.mean(values), abs=1e-12)
    assert interval_is_students(row["low"], row["high"], values)
    half = 1.96 * np.std(values, ddof=1) / 2
    assert not interval_is_students(np.mean(values) - half, np.mean(values) + half, values)  # the normal's quantile
    half = t.ppf(0.975, 3) * np.std(values) / 2
    assert not interval_is_students(np.mean(values) - half, np.mean(values) + half, values)  # divided by n


def test_intervals_keep_bounds_and_never_undercut_a_rows_own() -> None:
    agreeing = summarise(with_series(accuracies([0.5, 0.5], low=0.48, high=0.52)))
    assert agreeing.select("low", "high").row(0) == pytest.approx((0.48, 0.52))
    wide = summarise(with_series(accuracies([0.0, 0.2], low=0.0, high=0.01)))
    assert wide["low"][0] == 0
    assert 0.2 < wide["high"][0] <= 1
    single = summarise(with_series(accuracies([0.5], low=0.48, high=0.52)))
    assert single.select("low", "high", "networks").row(0) == (0.48, 0.52, 1)
    bare = summarise(with_series(accuracies([0.5])))
    assert bare.select("low", "high").row(0) == (None, None)
    unbounded = summarise(with_series(accuracies([-1.0, 1.0], metric="margin")))
    assert unbounded["low"][0] == pytest.approx(-12.706, abs=1e-3)


Intervals = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def pooled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of the means of `values` [conditions, series, networks], as the report makes them."""
    cells = np.ndindex(*values.shape)
    base = {"family": "noise", "perturbation": "p", "metric": "my_own"}
    table = tables.frame(
        {**base, "recipe": f"r{s}", "job": f"{s}-{i}", "seed": i, "level": float(c), "value": values[c, s, i]}
        for c, s, i in cells
    )
    made = summarise(with_series(table)).sort("level", "series")
    return tuple(made[name].to_numpy().reshape(values.shape[:2]) for name in ("low", "high"))  # type: ignore[return-value]


def unpooled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = values.shape[2]
    half = t.ppf(0.975, n - 1) * values.std(axis=2, ddof=1) / n**0.5
    return values.mean(axis=2) - half, values.mean(axis=2) + half


def over_all_networks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mutant: the standard error of a mean over the networks of all series."""
    _, k, n = values.shape
    half = t.ppf(0.975, k * (n - 1)) * (values.var(axis=2, ddof=1).mean(axis=1, keepdims=True) / (k * n)) ** 0.5
    return values.mean(axis=2) - half, values.mean(axis=2) + half


def covers(intervals: Intervals) -> bool:
    """Whether 95 % of the intervals hold the true mean, within 4 standard errors of 300 independent conditions.

    Seven series of two networks, of different means and one spread. Series of a condition share a spread, so that only
    conditions count as independent.
    """
    rng = np.random.default_rng(7)
    true = rng.normal(size=(300, 7))
    low, high = intervals(true[..., None] + rng.normal(size=(300, 7, 2)))
    rate = ((low <= true) & (true <= high)).mean()
    return bool(abs(rate - 0.95) < 4 * (0.95 * 0.05 / 300) ** 0.5)


def test_pooled_intervals_cover() -> None:
    assert covers(pooled)
    assert covers(unpooled)
    assert not covers(over_all_networks)
    values = np.random.default_rng(8).normal(size=(50, 7, 2))
    widths = [float(np.mean(high - low)) for low, high in (pooled(values), unpooled(values))]
    assert widths[1] > 3 * widths[0]  # t_1 = 12.71 and t_7 = 2.36


def test_pooled_interval_by_hand() -> None:
    """Deviations ±1 and ±3: s² = (2 + 18)/2 = 10, df = 2, half-width t_2 √(10/2); the single network has t_2 √10."""
    rows = [("a", 9.0), ("a", 11.0), ("b", 17.0), ("b", 23.0), ("c", 5.0)]
    base = {"family": "clean", "perturbation": "clean", "level": 0.0, "metric": "my_own", "dataset": "d", "model": "m"}
    many = [
        {**base, "recipe": r, "job": str(i), "seed": i, "value": v, **extra}
        for extra in ({}, {"metric": "other"}, {"level": 1.0, "family": "noise"})
        for i, (r, v) in enumerate(rows)
    ]
    made = summarise(with_series(tables.frame(many)))
    assert len(made) == 9
    means = np.array([10.0, 20.0, 5.0])
    half = t.ppf(0.975, 2) * np.sqrt(10 / np.array([2, 2, 1]))
    for (_, _), part in made.group_by("metric", "level"):
        part = part.sort("series")
        assert np.allclose(part["low"], means - half, rtol=0, atol=1e-9)
        assert np.allclose(part["high"], means + half, rtol=0, atol=1e-9)


def test_five_networks_and_other_data_sets_are_not_pooled() -> None:
    rng = np.random.default_rng(9)
    five = rng.normal(size=(3, 2, 5))
    for mine, expected in zip(pooled(five), unpooled(five), strict=True):
        assert np.allclose(mine, expected, rtol=0, atol=1e-9)
    four = rng.normal(size=(3, 2, 4))
    assert not np.allclose(pooled(four)[0], unpooled(four)[0], rtol=0, atol=1e-3)
    values = {"d": [1.0, 2.0], "e": [10.0, 60.0]}
    table = pl.concat(
        accuracies(v, metric="my_own", dataset=d).with_columns(job=pl.lit(d) + pl.col("job")) for d, v in values.items()
    )
    for row in summarise(with_series(table)).to_dicts():
        assert interval_is_students(row["low"], row["high"], values[row["series"].split(" · ")[1]])


def test_sides_are_those_of_relate(table: pl.DataFrame) -> None:
    named = with_series(table)
    sides = summarise_sides(named)
    wide = networks(table)
    means = wide.group_by("recipe").agg(pl.col(pl.Float64).mean())
    for row in sides.to_dicts():
        name = f"{row['side']}_accuracy" if row["perturbation"] is None else f"accuracy.{row['perturbation']}"
        assert row["value"] == pytest.approx(means.filter(pl.col("recipe") == row["series"])[name].item(), abs=1e-12)
        assert row["low"] < row["value"] < row["high"]
    assert len(sides) == 7 * (2 + 8)
    one = summarise_sides(with_series(table.filter(pl.col("job") == table["job"][0])))
    accuracy = table.filter((pl.col("job") == table["job"][0]) & (pl.col("metric") == "accuracy"))
    attacks = accuracy.filter(pl.col("family") == "attack").select(pl.col("low", "high").mean()).row(0)
    assert one.filter((pl.col("side") == "attack") & pl.col("perturbation").is_null()).select("low", "high").row(
        0
    ) == pytest.approx(attacks, abs=1e-12)


def test_undefined_values_are_left_out_of_means() -> None:
    made = summarise(with_series(accuracies([0.4, float("nan"), 0.6])))
    assert made.select("value", "networks").row(0) == (0.5, 2)


# Sentences.


def test_three_sentences_say_what_the_table_holds(table: pl.DataFrame) -> None:
    first, second, third = sentences(table)
    standard = table.filter((pl.col("recipe") == "Standard") & (pl.col("metric") == "accuracy"))
    clean = standard.filter(pl.col("family") == "clean")["value"].mean()
    assert first.startswith(
        f"Standard classifies {100 * float(str(clean)):.1f}\N{NO-BREAK SPACE}% (95\N{NO-BREAK SPACE}%"
    )
    assert "(the worst, Pixelate, leaves" in first
    assert re.search(r"; NoiseAugmented\(std=0\.1\) holds best under noise and corruptions with [^;]*, clear of", first)
    assert re.search(
        r"Adversarial\(eps=0\.0314\) holds best under attacks with .*clear of Standard’s interval\.$", first
    )
    assert "the most harmful attack, LinfPGD(steps=20) at 8/255, moves" in second
    assert "the most harmful noise or corruption, Pixelate at 0.6, moves" in second
    assert "block2.relu2 (layer 6 of 6)" in second
    assert third.startswith("Over 14 networks from 2 seeds")
    assert "pairs measured under the same perturbations left aside" in third
    assert "after Holm’s correction for 44 tests" in third
    for sentence in (first, second, third):
        assert sentence.endswith(".")
        assert re.search(r"\. [A-Z]", sentence) is None
        assert re.search(r"interval [−\d]", sentence)


def test_where_it_starts_is_the_first_layer_past_half(synthetic: ModuleType) -> None:
    table = synthetic.make_table(["Standard"], [0])
    moved = (pl.col("metric") == "normalised_distance") & (pl.col("family") == "attack")
    levels = pl.col("depth").replace_strict({0: 0.1, 1: 0.39, 2: 0.41, 3: 0.8, 4: 0.7, 5: 0.6})
    second = sentences(table.with_columns(value=pl.when(moved).then(levels).otherwise("value")))[1]
    assert "farthest in block1.relu2 (layer 4 of 6), by 0.80 times" in second
    assert "and at least half that much already in block1.relu1 (layer 3 of 6), whereas" in second


def test_best_is_said_to_be_clear_only_if_it_is() -> None:
    def first(best: list[float]) -> str:
        parts = [
            accuracies(values, recipe=recipe, **where).with_columns(job=pl.lit(recipe) + pl.col("job"))
            for recipe, values in (("Standard", [0.50, 0.52]), ("Other", best))
            for where in ({}, {"family": "noise", "perturbation": "Blot", "level": 1.0})
        ]
        return sentences(pl.concat(parts))[0]

    assert "Other holds best under noise and corruptions" in first([0.80, 0.82])
    assert ", clear of Standard’s interval" in first([0.80, 0.82])
    assert ", not clear of Standard’s interval" in first([0.54, 0.56])
    assert "nothing holds better under noise and corruptions" in first([0.1, 0.12])
    assert "and no attack was measured" in first([0.1, 0.12])


def test_the_headline_is_not_a_restatement(table: pl.DataFrame) -> None:
    relations = relate(table, resamples=100)
    plain = relations.filter(pl.col("statistic") == "spearman")
    pair = (pl.col("geometry") == headline(relations)[0]) & (pl.col("robustness") == headline(relations)[1])
    apart = plain.filter(~pl.col("note").str.contains(SAME_SIDE))
    assert plain.filter(pair)["rho"].abs()[0] == apart["rho"].abs().max()
    assert plain["rho"].abs().max() != apart["rho"].abs().max()


SUBSETS: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    "clean only": (lambda t: t.filter(pl.col("family") == "clean"), "no perturbation was measured"),
    "no attack": (lambda t: t.filter(pl.col("family") != "attack"), "no attack was measured"),
    "accuracy only": (lambda t: t.filter(pl.col("metric") == "accuracy"), "has no normalised_distance"),
    "layers only": (lambda t: t.filter(pl.col("layer").is_not_null()), "no accuracy on clean images"),
    "no checks": (lambda t: t.filter(~pl.col("metric").str.starts_with("check.")), "needs at least 8 networks"),
    "checks only": (
        lambda t: t.filter(pl.col("metric").str.starts_with("check.")),
        "no class selectivity and no dimensionality",
    ),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_partial_tables_make_a_page_that_says_what_is_missing(name: str, synthetic: ModuleType) -> None:
    part, said = SUBSETS[name]
    table = part(synthetic.make_table([None], [None]))
    page = Page(report_page(table, {}, "Scan"))
    assert said in page.text
    assert page.ids("li").count(None) == 3
    assert ("checks" in page.ids("section")) == (name in ("clean only", "no attack", "checks only"))


def test_a_scan_is_refused_a_relation_with_the_reason(synthetic: ModuleType) -> None:
    page = Page(report_page(synthetic.make_table([None], [None]), {}, "Scan"))
    assert "needs at least 8 networks and 2 seeds, has 1 and 0" in page.text
    assert "On clean images class selectivity goes from" in page.text
    assert "the most harmful of all, takes mean selectivity from" in page.text
    assert "relation" not in page.ids("div")
    assert "All 3 checks passed, in 1 network." in page.text
    assert "The network classifies" in page.text
    assert "no interval from one network" in page.text


def test_a_scan_has_no_recipes(synthetic: ModuleType) -> None:
    html = report_page(synthetic.make_table([None], [None]), {}, "Scan")
    assert "recipe" not in Page(html).text.lower()
    data = html[html.index('id="data">') : html.index("</script>")]
    assert "Recipe" not in data
    assert "Network" in data
    assert "Recipe" in report_page(synthetic.make_table(("Standard",), [0]), {}, "Study")


def test_a_check_that_could_not_run_is_said(synthetic: ModuleType) -> None:
    table = synthetic.make_table([None], [None]).with_columns(
        value=pl.when(pl.col("metric") == "check.inputs").then(None).otherwise("value")
    )
    assert "Could not be checked: Inputs lie in [0, 1]." in Page(report_page(table, {}, "Scan")).text


# Size, looks, words.


def test_twenty_recipes_stay_light_and_distinct(synthetic: ModuleType) -> None:
    one = synthetic.make_table(["Standard"], [0, 1])
    many = pl.concat([one.with_columns(recipe=pl.lit(f"R({i})"), job=pl.col("job") + str(i)) for i in range(20)])
    html = report_page(many, {}, "Many")
    assert len(html.encode()) < 3_000_000
    looks = {json.dumps(style(place)) for place in range(28)}
    assert len(looks) == 28


def test_thinning_keeps_the_network_rows_and_says_what_went(table: pl.DataFrame) -> None:
    summary = summarise(with_series(table))
    kept, omitted = thinned(summary, most=2000)
    whole = summary.filter(pl.col("layer").is_null())
    assert kept.filter(pl.col("layer").is_null()).height == whole.height
    assert kept.height < 2000
    assert len(omitted) >= 1
    assert thinned(summary)[1] == []


def test_series_are_ordered_by_their_numbers() -> None:
    names = ["S(alpha=2)", "S(alpha=-1)", "Adversarial", "S(alpha=-2)", "Standard", "S(alpha=10)", "S(alpha=1)"]
    made = series_order(pl.DataFrame({"series": names}))
    assert made == ["Standard", "Adversarial", *(f"S(alpha={a})" for a in (-2, -1, 1, 2, 10))]


def test_series_name_what_differs(synthetic: ModuleType) -> None:
    one = synthetic.make_table([None], [None])
    two = pl.concat([one, one.with_columns(model=pl.lit("ResNet20"), job=pl.lit("other"))])
    assert with_series(one)["series"].unique().to_list() == ["SmallCNN"]
    assert set(with_series(two)["series"]) == {"SmallCNN", "ResNet20"}
    nameless = one.with_columns(model=pl.lit(None, pl.String))
    assert with_series(nameless)["series"].unique().to_list() == ["network"]


def test_words() -> None:
    assert level_label("attack", 8 / 255) == "8/255"
    assert level_label("attack", 0.5 / 255) == "0.5/255"
    assert level_label("attack", 0.5) == "0.5"
    assert level_label("noise", 8 / 255) == "0.0314"
    assert p_value(0.0004) == "<\N{NO-BREAK SPACE}0.001"
    assert measure("attack_cka").title == "Linear CKA with clean under attack"
    assert measure("natural_accuracy_relative").title == "Accuracy under noise and corruption relative to clean"
    assert measure("attack_difference_fraction_95").title.endswith("difference (95 %) under attack, share of units")
    assert measure("my_own").title == "my_own"
    assert [columns(n) for n in (1, 3, 4, 5, 6, 8, 9, 10)] == [1, 3, 4, 3, 3, 4, 3, 4]
    assert all(measure(name).about.endswith(".") for name in MEASURES)
    assert "accuracy" not in PROFILE


# Files.


def test_write_report(tmp_path: Path, synthetic: ModuleType) -> None:
    tables.write(
        synthetic.make_table(("Standard", "NoiseAugmented(std=0.1)"), (0, 1)), tmp_path / "table" / "a.parquet"
    )
    (tmp_path / "provenance.json").write_text(json.dumps({"title": "Title"}))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert Page(path.read_text(encoding="utf-8")).ids("section") == SECTIONS
    for name in ("accuracy", "profile", "relation"):
        svg = (tmp_path / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "Standard" in svg
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    elsewhere = tmp_path / "other" / "page.html"
    assert write_report(tmp_path, elsewhere) == elsewhere
    assert elsewhere.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert not [name for name in left if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("provenance", "said"),
    [(None, "it is no study's or scan's folder"), ("{", "can't be read"), ("{}", 'no "title"'), ("[]", 'no "title"')],
)
def test_bad_provenance_is_one_clear_error(
    tmp_path: Path, synthetic: ModuleType, provenance: str | None, said: str
) -> None:
    tables.write(synthetic.make_table([None], [None]), tmp_path / "table" / "a.parquet")
    if provenance is not None:
        (tmp_path / "provenance.json").write_text(provenance)
    with pytest.raises(GeophoneError, match=said):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_empty_and_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(GeophoneError, match="no rows"):
        report_page(tables.empty(), {}, "Empty")
    (tmp_path / "provenance.json").write_text('{"title": "T"}')
    with pytest.raises(GeophoneError, match="no table at"):
        write_report(tmp_path)


def test_relate_and_report_work_without_torch() -> None:
    """In a package without its `__init__`, which imports everything."""
    folder = Path(tables.__file__).parent
    code = (
        "import sys, types; package = types.ModuleType('geophone'); package.__path__ = [sys.argv[1]];"
        "sys.modules['geophone'] = package; import geophone.report; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
