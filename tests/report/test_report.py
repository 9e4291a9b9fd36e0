"""The page, its sentences and its numbers, from made-up tables."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import t

from geophone.analysis.claims import CLAIM_SCHEMA, write_claims
from geophone.analysis.relate import SAME_SIDE, networks, relate
from geophone.analysis.scores import GROUPS, scores
from geophone.core import table as tables
from geophone.core.errors import GeophoneError
from geophone.report import report_page, write_report
from geophone.report.figures.charts import columns, style
from geophone.report.figures.panels import accuracy_groups, robust_panels
from geophone.report.findings import Findings, findings, shortened
from geophone.report.sections.answer import answer, headline
from geophone.report.sections.verdicts import claims_section
from geophone.report.summary import (
    series_order,
    summarise,
    summarise_radii,
    summarise_sides,
    thinned,
    with_series,
)
from geophone.report.words import MEASURES, PROFILE, condition_label, level_label, measure, p_value, radius

SECTIONS = [
    *("answer", "checks", "accuracy", "scores", "breaking", "layers", "relations", "everything", "provenance"),
]
SWEPT = [*SECTIONS[:6], "sweep", *SECTIONS[6:]]


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
def found(table: pl.DataFrame) -> Findings:
    return findings(table)


@pytest.fixture(scope="module")
def html(table: pl.DataFrame) -> str:
    return report_page(table, {"command": "geophone run <demo>", "seconds": 231.4, "seeds": [0, 1]}, "A & B")


def sentences(table: pl.DataFrame) -> list[str]:
    named, _ = shortened(with_series(table))
    relations = relate(table, resamples=100)
    return answer(summarise(named), summarise_sides(named), relations, series_order(named))


def test_page_has_its_sections_in_order(html: str) -> None:
    page = Page(html)
    assert page.ids("section") == SWEPT
    assert "A & B" in page.text
    assert "geophone run <demo>" in page.text
    assert "3 min 51 s" in page.text
    assert "41 % dead units" in page.text
    assert "2 of 3 checks passed, in 14 networks." in page.text


def test_page_is_self_contained_and_light(html: str) -> None:
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    sources = [a[k] or "" for _, a in page.elements for k in ("src", "href") if k in a]
    assert [source for source in sources if not source.startswith(("data:,", "data:image/svg+xml;base64,"))] == []
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "img-src data:" in policy


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


def radii_of(half: list[tuple[float | None, float | None, float | None]]) -> pl.DataFrame:
    """Networks with an eps at half accuracy (value, low, high), and a curve up to eps = 0.5."""
    base = {"recipe": "r", "family": "attack", "perturbation": "LinfPGD"}
    rows: list[dict[str, Any]] = []
    for i, (value, low, high) in enumerate(half):
        who = {**base, "job": f"j{i}", "seed": i}
        rows.append({**who, "metric": "half_accuracy_eps", "value": value, "low": low, "high": high})
        rows += [{**who, "level": level, "metric": "robust_accuracy", "value": 0.6} for level in (0.25, 0.5)]
    return with_series(tables.frame(rows))


def test_rows_without_a_level_have_a_label() -> None:
    made = summarise(radii_of([(0.1, 0.08, 0.12)])).filter(pl.col("metric") == "half_accuracy_eps")
    assert made.select("label", "level_label", "value").row(0) == ("LinfPGD", "", 0.1)


def test_a_radius_beyond_those_tried_is_not_left_out_of_a_mean() -> None:
    """The mean of 0.1 and "more than 0.5" is not 0.1: there is none."""
    mixed = radii_of([(0.1, 0.08, 0.12), (None, None, None)])
    row = summarise_radii(mixed).row(0, named=True)
    assert (row["value"], row["low"], row["high"], row["networks"], row["missing"]) == (None, None, None, 2, 1)
    assert row["beyond"] == 0.5
    assert "half_accuracy_eps" not in summarise(mixed)["metric"]
    both = summarise_radii(radii_of([(0.1, 0.0, 0.3), (0.2, 0.1, 0.4)])).row(0, named=True)
    assert (both["value"], both["missing"]) == (pytest.approx(0.15), 0)
    assert both["low"] == 0  # 0.15 - 12.7 x 0.05, cut at 0
    assert both["high"] == pytest.approx(0.15 + 12.706 * 0.05, abs=1e-3)
    open_ended = summarise_radii(radii_of([(0.1, 0.08, None), (0.2, 0.1, 0.4)])).row(0, named=True)
    assert (open_ended["value"], open_ended["high"]) == (pytest.approx(0.15), None)


def test_names_are_short_where_all_corruptions_have_one_source(synthetic: ModuleType) -> None:
    one = synthetic.make_table([None], [None])
    short, source = shortened(one)
    assert source == "preset='cifar10'"
    assert {"fog", "pixelate", "speckle_noise", "GaussianNoise", "FGSM", "clean"} <= set(short["perturbation"])
    for other in ("fog(published='cifar10_c')", "fog"):
        more = pl.concat([one, one.filter(pl.col("level") == 3).with_columns(perturbation=pl.lit(other))])
        kept, none = shortened(more)
        assert none is None
        assert kept.equals(more)


# Panels and tables of robustness.


def small_panels(table: pl.DataFrame) -> list[tuple[str, bool, list[str]]]:
    """Heading, whether small, and titles of the accuracy panels."""
    groups = accuracy_groups(findings(table))
    return [(title, small, [spec["title"]["text"] for spec, _ in panels]) for title, small, panels in groups]


def test_panels_stand_by_kind_in_the_published_order(synthetic: ModuleType) -> None:
    table = synthetic.make_table([None], [None], synthetic.EVERY)
    assert small_panels(table) == [
        ("Noise", False, ["GaussianNoise", "SaltAndPepper"]),
        *((f"Corruptions: {kind}", True, list(types)) for kind, types in GROUPS.items()),
        ("Attacks", False, ["FGSM", "L2PGD(steps=20)", "LinfPGD(steps=20)"]),
    ]
    plugin = table.with_columns(perturbation=pl.col("perturbation").str.replace(r"^fog\(.*", "Blot"))
    assert [title for title, *_ in small_panels(plugin)] == [
        *("Noise", "Corruptions: noise", "Corruptions: blur", "Corruptions: weather", "Corruptions: digital"),
        *("Other corruptions", "Attacks"),
    ]
    only = plugin.filter((pl.col("perturbation") == "Blot") | (pl.col("family") == "clean"))
    assert small_panels(only) == [("Corruptions", False, ["Blot"])]


def test_severities_are_whole_numbers_after_clean(found: Findings) -> None:
    panels = {spec["title"]["text"]: (spec, rows) for group in accuracy_groups(found) for spec, rows in group.panels}
    spec, rows = panels["fog"]
    x = spec["layer"][0]["encoding"]["x"]
    assert x["title"] == "severity"
    assert x["axis"]["values"] == [0, 1, 2, 3, 4, 5]
    assert x["axis"]["labelExpr"] == "datum.value === 0 ? 'clean' : datum.value"
    assert {row["level"] for row in rows} == {0, 1, 2, 3, 4, 5}
    assert panels["LinfPGD(steps=20)"][0]["layer"][0]["encoding"]["x"]["title"] == "level, in 255ths"
    assert panels["L2PGD(steps=20)"][0]["layer"][0]["encoding"]["x"]["title"] == "level"


def test_what_else_is_said_of_a_corruption_stands_under_its_title(synthetic: ModuleType) -> None:
    frost = synthetic.corruptions(("frost",), "preset='cifar10', pictures='procedural'")
    group = accuracy_groups(findings(synthetic.make_table([None], [None], frost)))[0]
    assert group.panels[0][0]["title"]["text"] == "frost"
    assert group.panels[0][0]["title"]["subtitle"] == "pictures='procedural'"


def test_curves_over_eps_are_logarithmic(found: Findings) -> None:
    l2, linf = robust_panels(found)
    for (spec, rows), unit, name in ((l2, "eps", "L2FAB(steps=20)"), (linf, "eps, in 255ths", "LinfPGD(steps=20)")):
        x = spec["layer"][0]["encoding"]["x"]
        assert spec["title"]["text"] == name
        assert x["title"] == unit
        assert x["scale"]["type"] == "log"
        assert ("labelExpr" in x["axis"]) == (unit != "eps")
        assert len(rows) == 7 * 10
        assert all(row["low"] < row["value"] < row["high"] for row in rows if 0 < row["value"] < 1)


def cells(html: str, name: str) -> list[list[str]]:
    """The text of a table's body, row by row."""
    part = html[html.index(f'<table class="{name}">') :]
    part = part[: part.index("</table>")]
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part)
    ]


def test_table_of_scores_is_that_of_scores(table: pl.DataFrame, html: str) -> None:
    head, *rows = cells(html, "scores")[1:]
    assert head == ["", "mean", "speckle_noise °", "fog", "pixelate"]
    assert len(rows) == 3 * 7
    found = scores(table).join(table.select("job", "recipe").unique(), on="job")
    metrics = ("corruption_accuracy", "corruption_accuracy_relative", "corruption_accuracy_above_chance")
    for place, (name, mean, *each) in enumerate(rows):
        mine = found.filter(
            (pl.col("recipe") == name) & (pl.col("metric") == metrics[place // 7]) & pl.col("severity").is_null()
        )
        by_type = {
            key: 100 * value for key, value in mine.group_by("corruption").agg(pl.col("value").mean()).iter_rows()
        }
        assert mean.startswith(f"{by_type[None]:.1f} (")
        assert by_type[None] == pytest.approx((by_type["fog"] + by_type["pixelate"]) / 2)  # without speckle_noise
        assert each == [f"{by_type[key]:.0f}" for key in ("speckle_noise", "fog", "pixelate")]
    assert html.count("<tbody data-score=") == 3
    assert html.count('" hidden><tr>') == 2
    assert (
        "Made with the constants of CIFAR-10-C; means are over 2 of the 15 standard corruptions: fog, pixelate." in html
    )


def test_sources_have_tables_of_their_own(synthetic: ModuleType) -> None:
    both = {**synthetic.corruptions(("fog",)), **synthetic.corruptions(("fog", "snow"), "published='cifar10_c'")}
    html = report_page(synthetic.make_table([None], [None], both), {}, "Two sources")
    assert html.count('<table class="scores">') == 2
    assert "Made with the constants of CIFAR-10-C; means are over 1 of the 15" in html
    assert "Made with the published files of CIFAR-10-C; means are over 2 of the 15" in html


def test_without_clean_images_only_what_is_defined_can_be_chosen(synthetic: ModuleType) -> None:
    table = synthetic.make_table([None], [None]).filter(pl.col("family") != "clean")
    html = report_page(table, {}, "No clean images")
    assert html.count("<tbody data-score=") == 2
    assert "Divided by clean accuracy</option>" not in html
    assert "means are over 2 of the 15 standard corruptions: fog, pixelate." in html
    old = table.filter(pl.col("family") == "corruption").with_columns(perturbation=pl.lit("Blot"))
    old = report_page(old.unique(["level", "metric", "layer"], maintain_order=True), {}, "No standard corruption")
    assert "Means are missing: none of the 15 standard corruptions was measured." in old
    assert cells(old, "scores")[1] == ["", "mean", "Blot °"]
    assert 'id="scores"' not in report_page(table.filter(pl.col("family") != "corruption"), {}, "No corruption")


def test_table_of_radii(synthetic: ModuleType, html: str) -> None:
    head, *rows = cells(html, "radii")
    assert head == ["Attack", "Recipe", "eps at half accuracy [95 %]", "Median minimum norm [95 %]"]
    assert len(rows) == 2 * 7
    assert rows[0][:2] == ["L2FAB(steps=20)", "Standard"]
    assert re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", rows[0][2])
    assert rows[7][:2] == ["LinfPGD(steps=20)", "Standard"]
    assert re.fullmatch(r"[\d.]+/255 \[[\d.]+/255, [\d.]+/255\]", rows[7][2])
    assert rows[7][3] == "–"
    table = synthetic.make_table(["Standard"], [0, 1])
    half = pl.col("metric") == "half_accuracy_eps"
    gone = table.with_columns(value=pl.when(half & (pl.col("seed") == 1)).then(None).otherwise("value"))
    assert "beyond 128/255 in 1 of 2 networks" in report_page(gone, {}, "Beyond")
    wide = table.filter(pl.col("seed") == 0).with_columns(high=pl.when(half).then(None).otherwise("high"))
    assert re.search(r"/255 <small>\[[\d.]+/255, beyond\]", report_page(wide, {}, "Open"))


# Sentences.


def test_three_sentences_say_what_the_table_holds(table: pl.DataFrame) -> None:
    first, second, third = sentences(table)
    standard = table.filter((pl.col("recipe") == "Standard") & (pl.col("metric") == "accuracy"))
    clean = standard.filter(pl.col("family") == "clean")["value"].mean()
    assert first.startswith(
        f"Standard classifies {100 * float(str(clean)):.1f}\N{NO-BREAK SPACE}% (95\N{NO-BREAK SPACE}%"
    )
    assert "(the worst, pixelate, leaves" in first
    assert re.search(r"; NoiseAugmented\(std=0\.1\) holds best under noise and corruptions with [^;]*, clear of", first)
    assert re.search(
        r"Adversarial\(eps=0\.0314\) holds best under attacks with .*clear of Standard’s interval\.$", first
    )
    assert "the most harmful attack, LinfPGD(steps=20) at 8/255, moves" in second
    assert "the most harmful noise or corruption, pixelate at severity 5, moves" in second
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


def test_attacks_measured_over_their_radius_alone_are_said(synthetic: ModuleType) -> None:
    table = synthetic.make_table(["Standard"], [0])
    accuracy = (pl.col("family") == "attack") & (pl.col("metric") != "robust_accuracy") & pl.col("level").is_not_null()
    curves = table.filter(~accuracy)
    first = sentences(curves)[0]
    assert re.search(
        r"half of that at eps = 0\.\d+ of L2FAB\(steps=20\) and half of that at eps = [\d.]+/255 of", first
    )
    beyond = curves.filter(pl.col("metric") != "half_accuracy_eps")
    assert "more than half of that at eps = 128/255 of LinfPGD(steps=20)." in sentences(beyond)[0]
    assert "no attack was measured layer by layer" in sentences(curves)[1]
    only = curves.filter(pl.col("family") != "corruption").filter(pl.col("family") != "noise")
    assert "no noise or corruption was measured, and half of that at eps" in sentences(only)[0]


def test_depth_is_said_of_what_was_recorded_layer_by_layer(synthetic: ModuleType) -> None:
    """The most harmful corruption has no layer rows, as published files measured by accuracy alone."""
    table = synthetic.make_table(["Standard"], [0])
    fog = table.filter(pl.col("layer").is_null() & pl.col("perturbation").str.starts_with("fog"))
    worst = fog.with_columns(perturbation=pl.lit("snow(preset='cifar10')"), value=pl.lit(0.0))
    first, second, _ = sentences(pl.concat([table, worst]))
    assert "(the worst, snow, leaves" in first
    assert "the most harmful noise or corruption, pixelate at severity 5, moves" in second


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
    html = report_page(table, {}, "Scan")
    page = Page(html)
    assert said in page.text
    assert html[html.index('<ol class="answer">') : html.index("</ol>")].count("<li>") == 3
    assert ("checks" in page.ids("section")) == (name in ("clean only", "no attack", "checks only"))


@pytest.mark.parametrize(
    ("high", "told"), [(0.30, True), (None, True), (0.42, False)], ids=["clear of it", "without a range", "within it"]
)
def test_no_story_is_told_of_selectivity_at_its_floor(high: float | None, told: bool, synthetic: ModuleType) -> None:
    """Layers at .37 and .39, shuffled labels at .25 or anywhere up to .42: between these nothing rises."""
    at, layer = pl.col("metric") == "class_selectivity", pl.col("layer").is_not_null()
    at_floor = (pl.col("metric") == "class_selectivity_floor") & layer
    table = synthetic.make_table([None], [None]).with_columns(
        value=pl.when(at & layer).then(0.37 + 0.02 * pl.col("depth")).when(at_floor).then(0.25).otherwise("value"),
        high=pl.when(at_floor).then(pl.lit(high, pl.Float64)).otherwise("high"),
        low=pl.when(at_floor).then(pl.lit(None if high is None else 0.2, pl.Float64)).otherwise("low"),
    )
    third = sentences(table)[2]
    assert ("class selectivity goes from" in third) == told
    assert ("takes mean selectivity from" in third) == told
    assert ("class selectivity cannot be told from what shuffled labels give" in third) == (not told)
    assert "that share from" in third  # dimensionality has no floor, and its story stays


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
    one = synthetic.make_table(["Standard"], [0])
    many = pl.concat([one.with_columns(recipe=pl.lit(f"R({i})"), job=pl.col("job") + str(i)) for i in range(20)])
    html = report_page(many, {}, "Many")
    assert len(html.encode()) < 3_000_000
    looks = {json.dumps(style(place)) for place in range(28)}
    assert len(looks) == 28


def test_all_corruptions_of_fourteen_networks_stay_light(synthetic: ModuleType) -> None:
    one = synthetic.make_table(["Standard"], [0, 1], synthetic.EVERY)
    many = pl.concat([one.with_columns(recipe=pl.lit(f"R({i})"), job=pl.col("job") + str(i)) for i in range(7)])
    html = report_page(many, {}, "Many")
    assert len(html.encode()) < 3_500_000
    assert "Left out of this page to keep it light: secondary layer measures" in html
    assert "at all but the highest level" not in html  # severities can be chosen


def test_the_strongest_level_is_that_of_the_layers(table: pl.DataFrame) -> None:
    """A curve over eps goes on to larger radii than those at which layers were recorded."""
    kept, omitted = thinned(summarise(with_series(table)), most=8000)
    assert "at all but the highest level" in omitted[-1]
    there = kept.filter(pl.col("layer").is_not_null() & (pl.col("family") == "attack"))
    assert set(there.filter(pl.col("perturbation") == "LinfPGD(steps=20)")["level"]) == {8 / 255}


def test_checks_are_said_once_for_many_networks() -> None:
    def row(job: int, name: str, value: float | None, note: str) -> dict[str, Any]:
        return {"job": f"j{job}", "recipe": f"r{job}", "metric": f"check.{name}", "value": value, "note": note}

    rows = [
        row(job, name, value, f"{name} says {job} here.")
        for job in range(8)
        for name, value in (("gradients", 1.0), ("randomness", 0.0), ("black_box", None))
    ]
    page = Page(report_page(tables.frame(rows), {}, "Checks"))
    assert "gradients says 0 here. (likewise, with other numbers, in 7 more networks)" in page.text
    assert "(r0, r1, r2, r3, r4 and 3 more; 8 of 8 networks)" in page.text
    assert "Could not be checked: black_box says 0 here." in page.text
    assert "1 of 3 checks passed, in 8 networks." in page.text
    assert "gradients says 1" not in page.text


def test_thinning_keeps_the_network_rows_and_says_what_went(table: pl.DataFrame) -> None:
    summary = summarise(with_series(table))
    kept, omitted = thinned(summary, most=2000)
    whole = summary.filter(pl.col("layer").is_null())
    assert kept.filter(pl.col("layer").is_null()).height == whole.height
    assert kept.height < 2000
    assert len(omitted) >= 1
    assert thinned(summary)[1] == []


@pytest.mark.parametrize("most", [400, 2000, 8000])
def test_a_page_that_was_thinned_starts_with_what_it_carries(
    most: int, table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is left out, the layer chart's measure and images are among what is left."""
    monkeypatch.setattr("geophone.report.page.thinned", partial(thinned, most=most))
    html = report_page(table, {}, "Thinned")
    assert "Left out of this page to keep it light" in html
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    start = data["profile_start"]
    assert any(c == start and layer >= 0 for c, layer in zip(data["rows"]["c"], data["rows"]["l"], strict=True))


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
    for name, level, said in (
        ("LinfPGD", 8 / 255, "8/255"),
        ("FGSM", 0.25 / 255, "0.25/255"),
        ("LinfPGD(steps=20)", 128 / 255, "128/255"),
        *(("LinfPGD", level, f"{level:.1f}") for level in (0.1, 3 * 0.1, 0.5)),
        ("LinfPGD", 0.01234, "0.0123"),
        ("L2PGD", 8 / 255, "0.0314"),
        ("LinfPGD", None, ""),
    ):
        assert level_label("attack", name, level) == said
    assert level_label("noise", "GaussianNoise", 8 / 255) == "0.0314"
    assert condition_label("clean", "clean", 0.0) == "clean images"
    assert condition_label("corruption", "fog(preset='cifar10')", 3.0) == "fog(preset='cifar10') at severity 3"
    assert condition_label("corruption", "Blot", 3.0) == "Blot at 3"
    assert condition_label("attack", "LinfPGD(steps=20)", None) == "LinfPGD(steps=20)"
    assert (radius("LinfFAB", 0.0123), radius("L2FAB", 0.0123)) == ("3.14/255", "0.0123")
    assert p_value(0.0004) == "<\N{NO-BREAK SPACE}0.001"
    assert measure("attack_cka").title == "Linear CKA with clean under attack"
    assert measure("natural_accuracy_relative").title == "Accuracy under noise and corruption relative to clean"
    assert measure("attack_difference_fraction_95").title.endswith("difference (95 %) under attack, share of units")
    assert measure("my_own").title == "my_own"
    assert [columns(n) for n in (1, 3, 4, 5, 6, 8, 9, 10)] == [1, 3, 4, 3, 3, 4, 3, 4]
    assert all(measure(name).about.endswith(".") for name in MEASURES)
    assert "accuracy" not in PROFILE


# Claims.


def verdicts(*rows: dict[str, Any]) -> pl.DataFrame:
    base = {
        "claim": "c",
        "source": "Paper, arXiv:1",
        "statement": "Stated.",
        "test": "Tested.",
        "effect": "mean difference",
    }
    made = [{**base, "alone": row["verdict"], **row} for row in rows]
    return pl.DataFrame(made, schema=CLAIM_SCHEMA, orient="row")


JUDGED = verdicts(
    {"verdict": "supported", "value": 0.0123, "low": 0.0105, "high": 0.0141, "networks": 20, "seeds": 5},
    {
        "claim": "d",
        "statement": "Joint.",
        "verdict": "contradicted",
        "test": None,
        "effect": None,
        "differs": "Smaller.",
    },
    {"claim": "d", "part": "one", "verdict": "not decided", "note": "needs 23 networks and 5 seeds, has 4 and 2"},
    {"claim": "d", "part": "two", "verdict": "contradicted", "value": -0.81, "low": -0.95, "high": -0.42},
)


def test_claims_come_right_after_the_answer(table: pl.DataFrame, html: str) -> None:
    page = Page(report_page(table, {}, "Claims", JUDGED))
    assert page.ids("section") == [SWEPT[0], "claims", *SWEPT[1:]]
    assert "claims" not in Page(html).ids("section")


def test_claims_say_verdict_number_and_size() -> None:
    section = claims_section(JUDGED)
    page = Page(section)
    assert "Of 2 published claims, 1 is supported, 1 is contradicted and none is not decided." in page.text
    assert "0.0123 [0.0105,\N{NO-BREAK SPACE}0.0141] mean difference. Tested." in page.text
    assert "−0.81 [−0.95,\N{NO-BREAK SPACE}−0.42]" in page.text
    assert "20 networks5 seeds" in page.text
    assert "Needs 23 networks and 5 seeds, has 4 and 2." in page.text
    assert "Smaller." in page.text
    assert [a.get("class") for tag, a in page.elements if tag == "tr"] == [None, None, None, "part", "part"]
    assert section.count('rowspan="3"') == 1


def test_claims_show_what_correction_does() -> None:
    row = {"value": 0.5, "low": 0.1, "high": 0.9, "p": 0.004, "p_holm": 0.0604}
    page = Page(claims_section(verdicts({**row, "verdict": "not decided", "alone": "supported"})))
    said = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "not decidedby itself: supported" in said
    assert "p = 0.004, corrected = 0.060." in said
    assert "corrected for how many tests" in said
    agreed = Page(claims_section(verdicts({**row, "verdict": "supported", "p_holm": 0.02})))
    assert "by itself:" not in agreed.text


def test_verdicts_do_not_rest_on_colour() -> None:
    section = claims_section(JUDGED)
    for word, sign in (("supported", "✓"), ("contradicted", "✗"), ("not\N{NO-BREAK SPACE}decided", "?")):
        assert f'<span aria-hidden="true">{sign}</span>\N{NO-BREAK SPACE}{word}</span>' in section
    assert section.count('class="verdict contradicted"') == 2


def test_without_claims_there_is_no_section() -> None:
    assert claims_section(None) == claims_section(JUDGED.clear()) == ""


def test_numbers_of_claims_have_two_digits_of_their_interval() -> None:
    for value, low, high, said in (
        (0.5, 0.5, 0.5, "0.50 [0.50, 0.50]"),
        (1234.5, 1000.0, 1500.0, "1234 [1000, 1500]"),
        (0.0, 0.0, 0.0, "0.00 [0.00, 0.00]"),
        (-1e-9, -2e-9, 1e-9, "−1.0e−09 [−2.0e−09, 1.0e−09]"),
        (-0.001, -0.5, 0.5, "0.00 [−0.50, 0.50]"),
        (0.123456, None, None, "0.12"),
    ):
        row = {"verdict": "not decided", "value": value, "low": low, "high": high, "networks": 1, "seeds": 1}
        assert f"{said} mean difference" in Page(claims_section(verdicts(row))).text.replace("\N{NO-BREAK SPACE}", " ")


def test_claims_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    names = [
        name for name, kind in CLAIM_SCHEMA.items() if kind == pl.String and name not in ("verdict", "alone", "part")
    ]
    row = {**dict.fromkeys(names, evil), "verdict": "supported", "value": 0.5, "networks": 1, "seeds": 1}
    parts = verdicts({**row, "test": None}, {**row, "part": evil}, {**row, "part": "two"})
    page = Page(claims_section(parts))
    assert "script" not in [tag for tag, _ in page.elements]
    # The claim has it 5 times (statement, source, differs, assumptions, needed), a part 4 times, one as its label too.
    assert page.text.count(evil) == 14


def test_write_report_shows_the_claims_of_its_folder(tmp_path: Path, synthetic: ModuleType) -> None:
    tables.write(synthetic.make_table(["Standard"], [0]), tmp_path / "table" / "all.parquet")
    (tmp_path / "provenance.json").write_text(json.dumps({"title": "Claims"}))
    path = write_claims(JUDGED, tmp_path)
    assert "claims" in Page(write_report(tmp_path).read_text(encoding="utf-8")).ids("section")
    path.write_bytes(b"PAR1")
    with pytest.raises(GeophoneError, match=r"claims\.parquet is corrupt"):
        write_report(tmp_path)


# Files.


def test_write_report(tmp_path: Path, synthetic: ModuleType) -> None:
    tables.write(
        synthetic.make_table(("Standard", "NoiseAugmented(std=0.1)"), (0, 1)), tmp_path / "table" / "a.parquet"
    )
    (tmp_path / "provenance.json").write_text(json.dumps({"title": "Title"}))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert Page(path.read_text(encoding="utf-8")).ids("section") == SECTIONS
    for name in ("accuracy", "robust_accuracy", "profile", "relation"):
        svg = (tmp_path / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "Standard" in svg
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    elsewhere = tmp_path / "other" / "page.html"
    assert write_report(tmp_path, elsewhere) == elsewhere
    assert elsewhere.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert not [name for name in left if name.endswith(".tmp")]


OTHER_KINDS = (
    *(
        ("seeds", 7),
        ("jobs", '"j"'),
        ("jobs", "[1]"),
        ("notes", 5),
        ("versions", "[]"),
        ("seconds", '"x"'),
        ("seconds", "NaN"),
    ),
    *(("networks", '"a"'), ("threads", "true"), ("command", "[]"), ("question", "{}"), ("started", "1")),
)


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        (None, "it is no study's or scan's folder"),
        ("{", "it is no JSON"),
        ("{}", 'no "title"'),
        ("[]", "no JSON object"),
        *((f'{{"title": "T", "{name}": {value}}}', f'its "{name}"') for name, value in OTHER_KINDS),
        ("[" * 100_000, "it is no JSON"),
        (b"\xff", "it is no JSON"),
    ],
)
def test_bad_provenance_is_one_clear_error(
    tmp_path: Path, synthetic: ModuleType, provenance: str | bytes | None, said: str
) -> None:
    tables.write(synthetic.make_table([None], [None]), tmp_path / "table" / "a.parquet")
    if provenance is not None:
        content = provenance if isinstance(provenance, bytes) else provenance.encode()
        (tmp_path / "provenance.json").write_bytes(content)
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
    folder = Path(tables.__file__).parents[1]
    code = (
        "import sys, types; package = types.ModuleType('geophone'); package.__path__ = [sys.argv[1]];"
        "sys.modules['geophone'] = package; import geophone.report; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
