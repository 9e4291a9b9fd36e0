"""Figures of a sweep: recipes that differ in one number, such as alpha, drawn as a paper would draw them."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import altair as alt
import polars as pl

from geophone.analysis.scores import type_of
from geophone.report.figures import charts
from geophone.report.markup import text
from geophone.report.summary import over_seeds
from geophone.report.words import condition_label, in_255ths, measure

FEWEST = 4
"""Values of the number below which there is no sweep to draw."""

MEANS = "Mean over seeds; bars and bands: 95 % interval of that mean"
NEGATIVE, ZERO, POSITIVE = ("#08306b", "#9ecae1"), "#000000", ("#fcae91", "#99000d")
WHOLE = pl.col("layer").is_null()
NETWORK = ["job", "seed", "swept", "model", "dataset", "metric"]
_RECIPE = re.compile(r"(\w+)\((\w+)=(-?[\d.e+/-]+)((?:, .*)?)\)")
Panel = tuple[charts.Spec, charts.Rows]


@dataclass(frozen=True)
class Sweep:
    """The networks of a sweep.

    Attributes:
        name: The number that differs: `alpha`.
        rows: Their rows of the table, with the number in the column `swept`.
        values: The number's values, ascending.
    """

    name: str
    rows: pl.DataFrame
    values: list[float]

    def colour(self) -> alt.Color:
        """Blue below 0, black at 0, red above; stronger further away."""
        below = [v for v in self.values if v < 0]
        above = [v for v in self.values if v > 0]
        colours = [*_between(*NEGATIVE, len(below)), *([ZERO] if 0 in self.values else [])]
        colours += _between(*POSITIVE, len(above))
        legend = alt.Legend(title=self.name, orient="right", symbolType="circle", symbolOpacity=1, symbolStrokeWidth=0)
        scale = alt.Scale(domain=self.values, range=colours)
        return alt.Color("swept:N", scale=scale, sort=self.values, legend=legend)


def sweep_of(table: pl.DataFrame) -> Sweep | None:
    """The sweep with the most values, if a table has one: alike but for the first argument; `Standard` is 0.

    Where there are several models or data sets, it is of the one with most of the values.
    """
    found: dict[tuple[str | None, str | None, str, str, str], dict[str, float]] = {}
    who = table.drop_nulls("recipe").select("model", "dataset", "recipe").unique(maintain_order=True)
    for model, dataset, recipe in who.iter_rows():
        if match := _RECIPE.fullmatch(recipe):
            kind, name, number, others = match.groups()
            found.setdefault((model, dataset, kind, name, others), {})[recipe] = float(Fraction(number))
    if not found:
        return None
    (model, dataset, _, name, _), values = max(found.items(), key=lambda one: len(one[1]))
    if (model, dataset, "Standard") in who.rows():
        values["Standard"] = 0.0
    if len(values) < FEWEST:
        return None
    rows = table.filter(
        pl.col("recipe").is_in(list(values))
        & pl.col("unit").is_null()
        & pl.col("model").eq_missing(pl.lit(model, pl.String))
        & pl.col("dataset").eq_missing(pl.lit(dataset, pl.String))
    )
    swept = pl.col("recipe").replace_strict(values, return_dtype=pl.Float64)
    return Sweep(name, rows.with_columns(swept=swept), sorted(values.values()))


def sweep_figures(sweep: Sweep) -> dict[str, charts.Spec]:
    """The figures that the table has rows for, by their file's name."""
    points = "One point per network"
    made = {
        "sweep_accuracy": ("Accuracy against class selectivity", points, 1, [_scatter(sweep)]),
        "sweep_selectivity": ("Selectivity, its floor, and what it is confounded with", MEANS, 4, _selectivity(sweep)),
        "sweep_corruption": ("Accuracy under corruption", MEANS, 2, _corruption(sweep)),
        "sweep_corruption_types": ("Accuracy under each type of corruption", MEANS, 5, _types(sweep)),
        "sweep_attack": ("Accuracy under attack", MEANS, 3, _attacks(sweep)),
        "sweep_dimensionality": ("Dimensionality by layer, clean images", MEANS, 2, _clean_dimensions(sweep)),
        "sweep_difference": ("Dimensionality of the difference, perturbed less clean", MEANS, 2, _differences(sweep)),
        "sweep_gradients": ("Input-unit gradients by layer", MEANS, 3, _gradients(sweep)),
        "sweep_networks": ("Beside a plain network, by layer", MEANS, 2, _beside(sweep)),
        "sweep_tradeoff": ("Accuracy and the geometry of manifolds, mean over layers", MEANS, 3, _tradeoff(sweep)),
        "sweep_manifolds": ("Manifolds by layer", MEANS, 4, _manifolds(sweep)),
    }
    return {
        name: charts.figure_panels(title, caption, columns, kept)
        for name, (title, caption, columns, some) in made.items()
        if (kept := [panel for panel in some if panel])
    }


def sweep_section(table: pl.DataFrame) -> str:
    """The figures under one heading, as pictures; empty without a sweep."""
    sweep = sweep_of(table)
    if sweep is None:
        return ""
    return (
        f'<section id="sweep"><h2>Over {text(sweep.name)}</h2>\n'
        f'<p class="caption">Recipes that differ in {text(sweep.name)} alone; Standard is 0. The same figures lie in '
        f"the folder figures/.</p>\n{pictures(sweep_figures(sweep))}</section>"
    )


def pictures(figures: Mapping[str, charts.Spec]) -> str:
    """Figures as pictures in a page."""
    return "".join(
        f'<img class="figure" alt="{text(spec["title"]["text"])}" '
        f'src="data:image/svg+xml;base64,{b64encode(charts.svg(spec).encode()).decode()}">'
        for spec in figures.values()
    )


def _scatter(sweep: Sweep) -> Panel | None:
    """One point a network: accuracy against mean selectivity; dashed, the mean at 0."""
    clean = sweep.rows.filter(WHOLE & (pl.col("family") == "clean"))
    wide = clean.filter(pl.col("metric").is_in(["accuracy", "class_selectivity"])).pivot(
        on="metric", index=["job", "seed", "swept"], values="value", aggregate_function="first"
    )
    if not {"accuracy", "class_selectivity"} <= set(wide.columns):
        return None
    plain = wide.filter(pl.col("swept") == 0)["accuracy"].mean()
    x = alt.X("class_selectivity:Q", title="mean class selectivity", scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False, padding=12))
    base = alt.Chart()
    points = base.mark_point(filled=True, size=70, opacity=0.85).encode(x=x, y=y, color=sweep.colour())
    line = base.mark_rule(strokeDash=[4, 3], color="#777").encode(y=alt.datum(plain))
    layers = [points] if plain is None else [line, points]
    return charts.styled(alt.layer(*layers, data=alt.Data(name="rows"), width=420, height=280)), wide.drop(
        "job"
    ).to_dicts()


def _selectivity(sweep: Sweep) -> list[Panel | None]:
    """Of the whole network: selectivity, the same with shuffled labels, and two numbers that a baseline tells apart."""
    clean = sweep.rows.filter(WHOLE & (pl.col("family") == "clean"))
    names = ("class_selectivity", "class_selectivity_floor", "eta_squared", "mean_response")
    parts = ((name, clean.filter((pl.col("metric") == name) & pl.col("value").is_not_null())) for name in names)
    return [_over_number(sweep, part, measure(name).title, width=170, form=".3~f") for name, part in parts]


def _corruption(sweep: Sweep) -> list[Panel | None]:
    """Mean over types and severities, plain and over clean accuracy, against the number."""
    accuracy = sweep.rows.filter(WHOLE & (pl.col("metric") == "accuracy"))
    per_type = accuracy.filter(pl.col("family") == "corruption").group_by(*NETWORK, "perturbation", maintain_order=True)
    mean = per_type.agg(pl.col("value").mean()).group_by(NETWORK, maintain_order=True).agg(pl.col("value").mean())
    clean = accuracy.filter(pl.col("family") == "clean").select("job", clean="value")
    relative = mean.join(clean, on="job")
    relative = relative.with_columns(value=pl.col("value") / pl.col("clean"), metric=pl.lit("accuracy_relative"))
    return [_over_number(sweep, mean, "corrupted accuracy"), _over_number(sweep, relative, "over clean accuracy")]


def _types(sweep: Sweep) -> list[Panel | None]:
    rows = sweep.rows.filter(WHOLE & (pl.col("metric") == "accuracy") & (pl.col("family") == "corruption"))
    mean = rows.group_by(*NETWORK, "perturbation", maintain_order=True).agg(pl.col("value").mean())
    names = rows["perturbation"].unique().sort()
    parts = ((name, mean.filter(pl.col("perturbation") == name)) for name in names)
    return [_over_number(sweep, part, type_of(name) or name, width=130) for name, part in parts]


def _over_number(sweep: Sweep, rows: pl.DataFrame, title: str, width: int = 300, form: str = "%") -> Panel | None:
    """Means with intervals against the swept number, evenly spaced."""
    if rows.is_empty():
        return None
    x = alt.X("swept:O", title=sweep.name, sort=sweep.values, axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    y = alt.Y("value:Q", title=None, axis=alt.Axis(format=form), scale=alt.Scale(zero=False, padding=6))
    base = alt.Chart()
    bars = base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(color="#bbb", strokeWidth=1).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=30 if width < 200 else 60, opacity=1).encode(x=x, y=y)
    coloured = [layer.encode(color=sweep.colour()) for layer in (bars, points)]
    layers = alt.layer(line, *coloured, data=alt.Data(name="rows"), title=title, width=width, height=0.8 * width)
    spec = charts.styled(layers)
    return spec, _over_seeds(rows)


def _attacks(sweep: Sweep) -> list[Panel | None]:
    """Accuracy over the level of each attack, a line for each value."""
    rows = sweep.rows.filter(WHOLE & (pl.col("family") == "attack"))
    rows = rows.filter(pl.col("metric").is_in(["accuracy", "robust_accuracy"]))
    clean = sweep.rows.filter(WHOLE & (pl.col("family") == "clean") & (pl.col("metric") == "accuracy"))
    made: list[Panel | None] = []
    for metric, name in rows.select("metric", "perturbation").unique(maintain_order=True).rows():
        part = rows.filter((pl.col("perturbation") == name) & (pl.col("metric") == metric) & (pl.col("level") > 0))
        if part["level"].n_unique() < 3:
            continue
        levels = part["level"].unique().sort().to_list()
        part = pl.concat([clean.with_columns(level=pl.lit(0.0), metric=pl.lit(metric)), part])
        steps = "Steps" in name
        scaled = in_255ths(name) and not steps
        title = "steps" if steps else "eps, in 255ths" if scaled else "eps"
        expression = "format(datum.value * 255, '.3~g')" if scaled else "format(datum.value, '.3~g')"
        axis = alt.Axis(values=[0, *levels], labelExpr=expression, labelOverlap="greedy")
        scale = alt.Scale(type="symlog", constant=min(levels), nice=False)
        x = alt.X("level:Q", title=title, axis=axis, scale=scale)
        made.append(_lines(sweep, part, x, "level", name, "%"))
    return made


def _profile(
    sweep: Sweep,
    metric: str,
    title: str,
    family: str = "clean",
    only: pl.Expr | None = None,
    share: bool = False,
) -> Panel | None:
    """A measure over depth, a line for each value; the mean over the perturbations that `only` chooses."""
    rows = sweep.rows.filter(pl.col("layer").is_not_null() & (pl.col("metric") == metric))
    rows = rows.filter((pl.col("family") == family) & (pl.lit(True) if only is None else only))
    rows = rows.drop_nulls("value")
    if rows.is_empty():
        return None
    keys = [*NETWORK, "layer", "depth"]
    rows = rows.group_by(*keys, "perturbation", maintain_order=True).agg(pl.col("value").mean())
    rows = rows.group_by(keys, maintain_order=True).agg(pl.col("value").mean())
    depths = rows["depth"].unique().sort().to_list()
    x = alt.X("depth:Q", title="layer", axis=alt.Axis(values=depths, format="d"), scale=alt.Scale(nice=False))
    return _lines(sweep, rows, x, "depth", title, ".3~f", share)


def _clean_dimensions(sweep: Sweep) -> list[Panel | None]:
    shares = [_profile(sweep, f"pca_fraction_{p}", f"PCA, {p} % of variance, share of units") for p in (95, 90, 99)]
    return [*shares, _profile(sweep, "two_nn", measure("two_nn").title)]


def _differences(sweep: Sweep) -> list[Panel | None]:
    """Corruptions at the left, PGD at the right, on one scale: as they are, then scaled to one length."""
    metric, panels = "difference_fraction_95", []
    panels.append(_profile(sweep, metric, "corruptions", "corruption", share=True))
    steps = sweep.rows.filter(pl.col("perturbation") == "PGDSteps")["level"].unique().to_list()
    if steps:
        near = min(steps, key=lambda level: abs(level - 40))
        only = (pl.col("perturbation") == "PGDSteps") & (pl.col("level") == near)
        panels.append(_profile(sweep, metric, f"PGD, {near:g} steps", "attack", only, share=True))
    for level in sweep.rows.filter(pl.col("family") == "matched")["level"].unique().sort():
        attack = pl.col("perturbation").str.contains("PGD")
        for words, only in (("corruptions", ~attack), ("PGD", attack)):
            chosen = only & (pl.col("level") == level)
            panels.append(_profile(sweep, metric, f"{words}, scaled to l2 = {level:g}", "matched", chosen, share=True))
    return panels


def _gradients(sweep: Sweep) -> list[Panel | None]:
    return [
        _profile(sweep, metric, measure(metric).title)
        for metric in ("input_gradient_cv_samples", "input_gradient_cv_units", "input_gradient_norm")
    ]


def _beside(sweep: Sweep) -> list[Panel | None]:
    """How alike networks and the plain one of their seed are; at 0, plain ones of two seeds."""
    return [_profile(sweep, metric, metric.upper(), "networks") for metric in ("pwcca", "cka")]


def _manifolds(sweep: Sweep) -> list[Panel | None]:
    """Class manifolds of clean images; exemplar manifolds, and their overlap, under the strongest attack of each."""
    attacked = (pl.col("family") == "attack") & (pl.col("metric") == "exemplar_width")
    levels = sweep.rows.filter(attacked)["level"]
    strongest = pl.col("level") == (0.0 if levels.is_empty() else levels.max())
    classes = ("manifold_capacity", "manifold_radius", "manifold_dimension", "center_correlation")
    exemplars = ("exemplar_capacity", "exemplar_width", "exemplar_center_correlation", "clean_separability")
    return [
        *(_profile(sweep, metric, measure(metric).title) for metric in classes),
        *(_profile(sweep, metric, measure(metric).title, "attack", strongest) for metric in exemplars),
    ]


def _tradeoff(sweep: Sweep) -> list[Panel | None]:
    """Accuracy, and measures of manifolds, against the number: a line for each condition."""
    manifolds = sweep.rows.filter(pl.col("metric").is_in(["manifold_capacity", "exemplar_width"]))
    if manifolds.is_empty():
        return []
    plain = sweep.rows.filter(WHOLE & (pl.col("metric") == "accuracy") & pl.col("family").is_in(["clean", "attack"]))
    parts = [("Accuracy", "%", plain)]
    for metric in (
        "manifold_capacity",
        "manifold_dimension",
        "manifold_radius",
        "exemplar_width",
        "clean_separability",
    ):
        rows = sweep.rows.filter(pl.col("layer").is_not_null() & (pl.col("metric") == metric)).drop_nulls("value")
        # Copies of clean images are one point before the noisy layer: the same layers for all conditions.
        rows = rows.with_columns(count=pl.len().over("layer")).filter(pl.col("count") == pl.col("count").max())
        parts.append((measure(metric).title, ".3~f", rows))
    found = [(title, form, _over_layers(rows)) for title, form, rows in parts if not rows.is_empty()]
    # One legend for all panels: a condition has its colour in each.
    labels = pl.concat([rows.select("family", "level", "label") for _, _, rows in found]).unique(maintain_order=True)
    labels = labels.sort(pl.col("family") != "clean", "family", "level", "label")
    shown = labels["label"].unique(maintain_order=True).to_list()
    return [_conditions(sweep, rows, title, form, shown) for title, form, rows in found]


def _over_layers(rows: pl.DataFrame) -> pl.DataFrame:
    """The mean over layers in each network and condition, with what the condition is called."""
    where = ["family", "perturbation", "level"]
    rows = rows.group_by(*NETWORK, *where, maintain_order=True).agg(pl.col("value").mean())
    labels = [condition_label(*condition) for condition in rows.select(where).iter_rows()]
    return rows.with_columns(label=pl.Series(labels, dtype=pl.String))


def _conditions(sweep: Sweep, rows: pl.DataFrame, title: str, form: str, shown: Sequence[str]) -> Panel:
    """Means with intervals against the number, evenly spaced; a line for each condition."""
    x = alt.X("swept:O", title=sweep.name, sort=sweep.values, axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    y = alt.Y("value:Q", title=None, axis=alt.Axis(format=form, tickCount=5), scale=alt.Scale(zero=False, padding=6))
    legend = alt.Legend(title=None, orient="bottom", columns=3, labelLimit=320)
    colours = alt.Scale(domain=list(shown), range=[charts.style(i)["colour"] for i in range(len(shown))])
    base = alt.Chart().encode(x=x, color=alt.Color("label:N", scale=colours, sort=list(shown), legend=legend))
    bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(strokeWidth=1.7).encode(y=y)
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y)
    layers = alt.layer(bars, line, points, data=alt.Data(name="rows"), title=title, width=270, height=220)
    return charts.styled(layers), _over_seeds(rows, ["label"])


def _lines(sweep: Sweep, rows: pl.DataFrame, x: alt.X, place: str, title: str, form: str, share: bool = False) -> Panel:
    """A line for each value, with its band; from 0 to 1 where it is a share that panels are compared by."""
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False)
    y = alt.Y("value:Q", title=None, axis=alt.Axis(format=form, tickCount=5), scale=scale)
    base = alt.Chart().encode(x=x, color=sweep.colour())
    band = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(strokeWidth=1.7).encode(y=y)
    points = base.mark_point(filled=True, size=26, opacity=1).encode(y=y)
    layers = alt.layer(band, line, points, data=alt.Data(name="rows"), title=title, width=270, height=220)
    spec = charts.styled(layers)
    return spec, _over_seeds(rows, [place])


def _over_seeds(rows: pl.DataFrame, where: Sequence[str] = ()) -> charts.Rows:
    """Mean over networks with its interval, for each value of the number: see `over_seeds`."""
    series = rows.with_columns(series=pl.col("swept").cast(pl.String))
    made = over_seeds(series, [*where, "metric"]).with_columns(swept=pl.col("series").cast(pl.Float64))
    return made.sort("swept", *where).select("swept", *where, "value", "low", "high").to_dicts()


def _between(first: str, last: str, n: int) -> list[str]:
    """N colours from one to the other."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (first, last)]
    shares = [i / max(1, n - 1) for i in range(n)]
    return ["#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True)) for share in shares]
