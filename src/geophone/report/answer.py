"""The answer: three sentences made from the table."""

import polars as pl

from geophone.relate import NATURAL, SAME_SIDE, STATISTICS
from geophone.report.words import INTERVAL, SPACE, decimal, measure, number, p_value, percent, percent_range

WHOLE = pl.col("layer").is_null() & (pl.col("metric") == "accuracy")


def answer(summary: pl.DataFrame, relations: pl.DataFrame, series: list[str]) -> list[str]:
    """Three sentences with numbers and 95 % intervals: what hurts, where it moves the layers, what goes with it."""
    reference = series[0]
    return [_accuracy(summary, reference), _depth(summary, reference), _relation(relations)]


def _accuracy(summary: pl.DataFrame, reference: str) -> str:
    """Clean accuracy, what hurts it most, and which recipe holds best under that."""
    rows = summary.filter(WHOLE)
    mine = rows.filter(pl.col("series") == reference)
    clean = mine.filter(pl.col("family") == "clean")
    if clean.is_empty():
        return "The table has no accuracy on clean images, so what a perturbation costs can’t be said."
    start = f"{reference} classifies {_share(clean)} of the clean images correctly"
    hurt = mine.filter(pl.col("family") != "clean").sort("value")
    if hurt.is_empty():
        return f"{start}; no perturbation was measured."
    worst = hurt.head(1)
    where = worst["label"][0]
    start = f"{start}; {where} hurts it most and leaves {_share(worst)}"
    if rows["series"].n_unique() == 1:
        mildest = hurt.tail(1)
        return f"{start}, while {mildest['label'][0]} hurts it least and leaves {_share(mildest)}."
    there = rows.filter(pl.col("label") == where).sort("value", descending=True)
    best, rest = there.head(1), there.tail(-1)
    if best["series"][0] == reference:
        return f"{start}; no recipe holds better there, the next being {rest['series'][0]} with {_share(rest.head(1))}."
    low = best["low"][0]
    near = 0 if low is None else rest.filter(pl.col("high") >= low).height
    doubt = f", though the intervals of {near} of the {rest.height} others overlap with it" if near else ""
    return f"{start}, where {best['series'][0]} holds best with {_share(best)}{doubt}."


def _depth(summary: pl.DataFrame, reference: str) -> str:
    """How far, and from which layer on, the strongest attack and natural perturbation move the responses."""
    mine = summary.filter(pl.col("series") == reference)
    moved = mine.filter((pl.col("metric") == "normalised_distance") & pl.col("layer").is_not_null())
    if moved.is_empty():
        return "How far a disturbance moves the layers was not measured: the table has no normalised_distance."
    parts = []
    for side, families in (("attack", ["attack"]), ("natural perturbation", NATURAL)):
        hurt = mine.filter(WHOLE & pl.col("family").is_in(families)).sort("value", "label")
        there = moved.filter(pl.col("label") == hurt["label"][0]).sort("depth") if len(hurt) else moved.clear()
        if there.is_empty():
            parts.append(f"no {side} was measured")
            continue
        far = there.sort("value", descending=True).head(1)
        first = there.filter(pl.col("value") >= far["value"][0] / 2).head(1)
        low, high = far["low"][0], far["high"][0]
        interval = "no interval from one network" if low is None else f"{INTERVAL} {decimal(low)}–{decimal(high)}"
        same = first["layer"][0] == far["layer"][0]
        begins = "also the first to pass half of that" if same else f"and passes half of that in {_layer(first, moved)}"
        parts.append(
            f"{there['label'][0]}, the strongest {side}, moves the responses by up to {decimal(far['value'][0])} of "
            f"the distance between two images ({interval}), in {_layer(far, moved)}, {begins}"
        )
    return f"In {reference}, {parts[0]}, while {parts[1]}."


def _layer(row: pl.DataFrame, moved: pl.DataFrame) -> str:
    """A layer with its place: `layer block2.relu2 (depth 5 of 5)`."""
    return f"layer {row['layer'][0]} (depth {row['depth'][0]} of {max(moved['depth'])})"


def headline(relations: pl.DataFrame) -> tuple[str, str]:
    """The pair of measures to show first: the largest |rho| among pairs not measured under the same perturbations.

    Geometry measured under the same perturbations as the robustness is close to a restatement of it, so such a pair
    comes first only when there is no other. Where no rho is defined it is the first pair.
    """
    plain = relations.filter(pl.col("statistic") == "spearman").with_columns(
        same=pl.col("note").fill_null("").str.contains(SAME_SIDE, literal=True),
        size=pl.col("rho").abs().fill_null(-1),
        undefined=pl.col("rho").is_null(),
    )
    first = plain.sort("undefined", "same", -pl.col("size"), maintain_order=True)
    return first["geometry"][0], first["robustness"][0]


def _relation(relations: pl.DataFrame) -> str:
    """The strongest relation that is not close to a restatement of the robustness itself, or why there is none."""
    if relations.is_empty():
        return "Whether geometry goes with robustness can’t be said: the table has no pair of such measures."
    plain = relations.filter(pl.col("statistic") == "spearman")
    if plain["rho"].null_count() == len(plain):
        return f"Whether geometry goes with robustness can’t be said from this table: it {_refusal(plain)}."
    names = headline(relations)
    pair = relations.filter((pl.col("geometry") == names[0]) & (pl.col("robustness") == names[1]))
    pick, held_fixed = (pair.row(by_predicate=pl.col("statistic") == s, named=True) for s in STATISTICS)
    interval = "no interval" if pick["low"] is None else f"{INTERVAL} {decimal(pick['low'])} to {decimal(pick['high'])}"
    tests = plain["p"].count()
    p = (
        "no p-value"
        if pick["p_holm"] is None
        else f"Holm-corrected p{SPACE}{p_value(pick['p_holm'])} over {tests} tests"
    )
    clear = pick["p_holm"] is not None and pick["p_holm"] < 0.05
    held = "undefined" if held_fixed["rho"] is None else decimal(held_fixed["rho"])
    geometry, robustness = (_lower(measure(name).title) for name in names)
    return (
        f"Over {pick['networks']} networks from {pick['seeds']} seeds, the strongest link is between {geometry} and "
        f"{robustness}: Spearman’s ρ{SPACE}={SPACE}{decimal(pick['rho'])} ({interval}, {p}; {held} with clean accuracy "
        f"held fixed), {'more than chance gives' if clear else 'which chance could also give'}."
    )


def _refusal(plain: pl.DataFrame) -> str:
    note: str = plain["note"].drop_nulls().mode().sort()[0]
    return note if note.startswith("needs") else f"gives no defined correlation ({note})"


def _lower(title: str) -> str:
    """A title for the middle of a sentence: `PCA dimensions` stays as it is."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _share(row: pl.DataFrame) -> str:
    value, low, high = (row[name][0] for name in ("value", "low", "high"))
    return f"{percent(value)} ({percent_range(low, high)})"


def relation_text(row: dict[str, float | str | None]) -> str:
    """One correlation in words: `−0.81 [−0.95, −0.42]`."""
    if row["rho"] is None:
        return "–"
    low, high = (row[name] for name in ("low", "high"))
    interval = f" [{number(low, 2)}, {number(high, 2)}]" if isinstance(low, float) and isinstance(high, float) else ""
    return decimal(float(row["rho"])) + interval
