"""Heat maps of how alike layers are, and what they show in numbers."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import altair as alt
import polars as pl

from geophone.report.figures import charts
from geophone.report.markup import text
from geophone.report.summary import over_seeds
from geophone.report.words import decimal, in_255ths, measure

MOST, OF_A_KIND = 40, 4
"""Maps that the page carries, and of each comparison but that with itself; the table has all."""
FURTHEST = {"procrustes": 2.0, "angular_distance": 1.571}
"""The largest value of measures for which 0 is alike."""
EARLIER = "beside itself earlier"

ITSELF = "itself"
SCALARS = (
    *("near_similarity", "far_similarity", "block_contrast", "effective_layers", "entropy_layers"),
    *("largest_block_70", "largest_block_80", "largest_block_90", "equal_depth_similarity"),
)
SAME_LAYER, GAP = "same_layer_similarity", "train_test_gap"
_WHICH = ["series", "perturbation", "level"]
Panel = tuple[charts.Spec, charts.Rows]


def map_rows(table: pl.DataFrame) -> pl.DataFrame:
    """Rows of layers beside layers; controls with shuffled rows are left out."""
    return table.filter(
        pl.col("other_depth").is_not_null()
        & pl.col("layer").is_not_null()
        & ~pl.col("metric").str.ends_with("_shuffled")
        & pl.col("value").is_not_null()
    )


def map_panels(table: pl.DataFrame, series: Sequence[str], width: int = 210) -> list[Panel]:
    """One heat map for each series, comparison and measure: means over networks, the first layer at the lower left."""
    rows = map_rows(table)
    if rows.is_empty():
        return []
    mean = rows.group_by(*_WHICH, "metric", "layer", "depth", "other", "other_depth", maintain_order=True).agg(
        pl.col("value").mean().round_sig_figs(4), networks=pl.col("job").n_unique()
    )
    metrics = mean["metric"].unique(maintain_order=True)
    groups = _ordered(mean, series).partition_by(*_WHICH, "metric", maintain_order=True)
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for part in groups:
        kind = part["perturbation"][0], part["metric"][0]
        seen[kind] = seen.get(kind, 0) + 1
        if kind[0] == ITSELF or seen[kind] <= OF_A_KIND:
            kept.append(part)
    return [_panel(part, len(metrics) > 1, width) for part in kept[:MOST]]


def _ordered(rows: pl.DataFrame, series: Sequence[str]) -> pl.DataFrame:
    """Networks beside themselves first, and within a comparison in the order of the series."""
    place = pl.col("series").replace_strict(list(series), range(len(series)), return_dtype=pl.Int64)
    return rows.sort(pl.col("perturbation") != ITSELF, "perturbation", "level", place, maintain_order=True)


def _level(row: dict[str, Any]) -> str:
    """The level of a comparison as words after its name."""
    level = row["level"]
    if not level:
        return ""
    if row["perturbation"] == EARLIER:
        return f", after epoch {level:g}"
    return (
        f", {255 * level:.3g}/255" if in_255ths(row["perturbation"].removeprefix("under ")) else f", level {level:.3g}"
    )


def _panel(rows: pl.DataFrame, several: bool, width: int) -> Panel:
    first = rows.row(0, named=True)
    under = f"{first['perturbation']}{_level(first)}" + (f" ({measure(first['metric']).title})" if several else "")
    p, q = rows["depth"].n_unique(), rows["other_depth"].n_unique()
    made = _map(p, q, first["perturbation"] == ITSELF, FURTHEST.get(first["metric"]), width)
    spec = {**deepcopy(made), "title": {**charts.heading(str(first["series"]), under), "limit": width + 50}}
    columns = ["series", "layer", "depth", "other", "other_depth", "value", "networks"]
    bare = pl.lit(None, pl.Float64)  # the page's script asks every row for an interval
    return spec, rows.select(*columns, low=bare, high=bare).to_dicts()


@cache
def _map(p: int, q: int, itself: bool, furthest: float | None, width: int) -> charts.Spec:
    """The specification of a map of p layers by q. Altair takes a while for one, and maps are alike."""
    axis: dict[str, Any] = {"labelOverlap": "greedy", "ticks": False, "domain": False, "labelAngle": 0, "grid": False}
    axis["values"] = list(range(0, max(p, q), max(1, max(p, q) // 5)))
    ends = [0.0, 1.0] if furthest is None else [furthest, 0.0]  # bright is alike
    flush = alt.Scale(padding=0)
    spec = charts.styled(
        alt.Chart(alt.Data(name="rows"), width=width, height=round(width * min(2.0, p / q)))
        .mark_rect()
        .encode(
            x=alt.X("other_depth:O", scale=flush, title="layer" if itself else "layer of the other"),
            y=alt.Y("depth:O", scale=flush, title="layer", sort="descending"),
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme="inferno", domain=ends, clamp=True),
                legend=alt.Legend(title=None, gradientLength=round(width * 0.6), tickCount=3),
            ),
            tooltip=[
                alt.Tooltip("layer:N", title="Layer"),
                alt.Tooltip("other:N", title="Beside"),
                alt.Tooltip("value:Q", title="Similarity", format=".3f"),
                alt.Tooltip("networks:Q", title="Networks"),
            ],
        )
    )
    for name in ("x", "y"):
        spec["encoding"][name]["axis"] = axis
    return spec


def map_figure(panels: Sequence[Panel]) -> charts.Spec:
    """The first dozen maps in one figure for a paper: networks beside themselves come first."""
    caption = "Mean over networks; 1: alike up to rotation and scale"
    return charts.figure_panels("How alike layers are", caption, min(4, len(panels)), panels[:12])


def depth_panels(table: pl.DataFrame, series: Sequence[str], width: int = 300) -> list[Panel]:
    """Lines over depth: of each comparison, a layer with the one of its name on the other side."""
    rows = table.filter(pl.col("metric").is_in([SAME_LAYER, GAP]) & pl.col("value").is_not_null())
    if rows.is_empty():
        return []
    mean = over_seeds(rows, ["perturbation", "level", "layer", "depth", "metric"])
    made = []
    for part in mean.partition_by("metric", "perturbation", "level", maintain_order=True)[:MOST]:
        first = part.row(0, named=True)
        title = measure(first["metric"]).title
        layers = part.select("depth", "layer").unique(maintain_order=True).rows()
        spec = charts.profile("Recipe", series, layers, title, width=width)
        spec["title"] = charts.heading(title, f"{first['perturbation']}{_level(first)}")
        listed = part.sort("series", "depth").with_columns(label=pl.lit(first["perturbation"]))
        made.append((spec, charts.rows_of(listed)))
    return made


def scalar_table(table: pl.DataFrame, series: Sequence[str]) -> str:
    """What maps show, in numbers: a row for each series and comparison."""
    rows = table.filter(pl.col("layer").is_null() & pl.col("metric").is_in(SCALARS) & pl.col("value").is_not_null())
    if rows.is_empty():
        return ""
    mean = over_seeds(rows, ["perturbation", "level", "metric"])
    present = [name for name in SCALARS if name in mean["metric"]]
    head = "".join(f'<th class="number">{text(measure(name).title)}</th>' for name in present)
    lines = []
    for part in _ordered(mean, series).partition_by(*_WHICH, maintain_order=True):
        first = part.row(0, named=True)
        found = {row["metric"]: row for row in part.to_dicts()}
        cells = "".join(f'<td class="number">{_number(found.get(name))}</td>' for name in present)
        lines.append(
            f"<tr><td>{text(first['series'])}</td><td>{text(first['perturbation'])}{_level(first)}</td>{cells}"
            f'<td class="number">{first["networks"]}</td></tr>'
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="What the maps show, in numbers"><table><thead><tr>'
        f'<th>Network</th><th>Beside</th>{head}<th class="number">Networks</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _number(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["low"] is None:
        return decimal(row["value"])
    return f"{decimal(row['value'])} [{decimal(row['low'])}, {decimal(row['high'])}]"
