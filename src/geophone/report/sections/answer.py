"""The answer: three sentences made from the table."""

import re
from statistics import fmean

import polars as pl

from geophone.analysis.relate import NATURAL, SAME_SIDE, STATISTICS
from geophone.report.words import INTERVAL, SPACE, decimal, measure, p_value, percent, percent_range, radius

HALF = "half_accuracy_eps"
WHOLE = pl.col("layer").is_null() & (pl.col("metric") == "accuracy")
SIDES = {"natural": "noise and corruptions", "attack": "attacks"}
FLOORS = {"class_selectivity": "class_selectivity_floor"}
"""Measures that few images bring to a value of their own, and what has that value."""
MISSING = {"natural": "no noise or corruption", "attack": "no attack"}


def answer(summary: pl.DataFrame, sides: pl.DataFrame, relations: pl.DataFrame, series: list[str]) -> list[str]:
    """Three sentences with numbers and 95 % intervals: what accuracy is left, where the layers move, what goes with it.

    For a single network, which can't show what goes with what, the third says what its own geometry is.

    Args:
        summary: From `summarise`.
        sides: From `summarise_sides`.
        relations: From `relate`.
        series: The series, with the one first that the others are compared with.
    """
    alone = len(series) == 1 and max(summary["networks"], default=1) == 1
    name = "the network" if alone else series[0]
    last = _geometry(summary) if alone else _relation(relations)
    return [_accuracy(summary, sides, series[0], name), _depth(summary, series[0], name), last]


def _accuracy(summary: pl.DataFrame, sides: pl.DataFrame, reference: str, name: str) -> str:
    """Accuracy on clean images and on each side, the worst natural perturbation, and what holds best on each side."""
    clean = summary.filter(WHOLE & (pl.col("family") == "clean") & (pl.col("series") == reference))
    if clean.is_empty():
        return "The table has no accuracy on clean images, so what a perturbation costs can’t be said."
    start = f"{_capital(name)} classifies {_share(clean, INTERVAL)} of the clean images correctly"
    mine = sides.filter(pl.col("series") == reference)
    curves = summary.filter((pl.col("series") == reference) & pl.col("metric").is_in(["robust_accuracy", HALF]))
    if mine.is_empty() and curves.is_empty():
        return f"{start}; no perturbation was measured."
    left = [_left(mine.filter(pl.col("side") == side), side) for side in SIDES]
    if "attack" not in mine["side"] and len(curves):
        left[-1] = _half(curves)
    held = [_best(sides.filter(pl.col("side") == side), side, reference) for side in SIDES]
    best = f"; {', and '.join(filter(None, held))}" if sides["series"].n_unique() > 1 else ""
    return f"{start}, {', and '.join(left)}{best}."


def _left(mine: pl.DataFrame, side: str) -> str:
    """The mean accuracy of one series on one side: `54.6 % (48.0–61.2) on average under attacks`."""
    if mine.is_empty():
        return f"{MISSING[side]} was measured"
    average = f"{_share(mine.filter(pl.col('perturbation').is_null()))} on average under {SIDES[side]}"
    types = mine.drop_nulls("perturbation").sort("value", "perturbation")
    if side == "attack" or len(types) < 2:
        return average
    return f"{average} (the worst, {types['perturbation'][0]}, leaves {_share(types.head(1), brackets='[]')})"


def _half(curves: pl.DataFrame) -> str:
    """Where attacks that were only measured over their radius leave half of the clean accuracy."""
    said = []
    for (name,), rows in curves.sort("perturbation", "level").group_by("perturbation", maintain_order=True):
        half = rows.filter(pl.col("metric") == HALF)["value"].to_list()
        where = radius(str(name), half[0] if half else rows["level"].to_list()[-1])
        said.append(f"{'half' if half else 'more than half'} of that at eps = {where} of {name}")
    return " and ".join(said)


def _best(rows: pl.DataFrame, side: str, reference: str) -> str:
    """Which series holds best on one side, and whether its interval is clear of the reference's."""
    ranked = rows.filter(pl.col("perturbation").is_null()).sort("value", descending=True, maintain_order=True)
    if ranked.is_empty():
        return ""
    best, compared = ranked.head(1), ranked.filter(pl.col("series") == reference)
    if best["series"][0] == reference:
        return f"nothing holds better under {SIDES[side]}"
    said = f"{best['series'][0]} holds best under {SIDES[side]} with {_share(best)}"
    if compared.is_empty() or best["low"][0] is None or compared["high"][0] is None:
        return said
    overlap = best["low"][0] <= compared["high"][0]
    return f"{said}, {'not clear of' if overlap else 'clear of'} {reference}’s interval"


def _depth(summary: pl.DataFrame, reference: str, name: str) -> str:
    """How far, and from which layer on, the most harmful attack and natural perturbation move the responses."""
    mine = summary.filter(pl.col("series") == reference)
    moved = mine.filter((pl.col("metric") == "normalised_distance") & pl.col("layer").is_not_null())
    if moved.is_empty():
        return "How far a disturbance moves the layers was not measured: the table has no normalised_distance."
    parts: list[str] = []
    for what, families in (("attack", ["attack"]), ("noise or corruption", list(NATURAL))):
        recorded = pl.col("label").is_in(moved["label"].unique().implode())
        hurt = mine.filter(WHOLE & pl.col("family").is_in(families) & recorded).sort("value", "label")
        there = moved.filter(pl.col("label") == hurt["label"][0]).sort("depth") if len(hurt) else moved.clear()
        parts.append(_moves(there, moved, what, yardstick=not any("moves" in part for part in parts)))
    return f"In {name}, {parts[0]}, whereas {parts[1]}."


def _moves(there: pl.DataFrame, moved: pl.DataFrame, what: str, yardstick: bool) -> str:
    """Where one condition moves the responses most, how far, and where it first reaches half of that."""
    if there.is_empty():
        return f"no {what} was measured layer by layer"
    far = there.sort("value", descending=True, maintain_order=True).head(1)
    first = there.filter(pl.col("value") >= far["value"][0] / 2).head(1)
    low, high = far["low"][0], far["high"][0]
    if low is None:
        between = " (no interval from one network)" if yardstick else ""
    else:
        between = f" ({f'{INTERVAL} ' if yardstick else ''}{decimal(low)}–{decimal(high)})"
    if far["layer"][0] == there["layer"][0]:
        begins = "at the very start"
    elif first["layer"][0] == far["layer"][0]:
        begins = "and less than half that much in every layer before"
    else:
        begins = f"and at least half that much already in {_layer(first, moved)}"
    return (
        f"the most harmful {what}, {there['label'][0]}, moves {'the responses' if yardstick else 'them'} farthest in "
        f"{_layer(far, moved)}, by {decimal(far['value'][0])} times "
        f"{'the typical distance between two different clean images' if yardstick else 'that distance'}{between}, "
        f"{begins}"
    )


def _layer(row: pl.DataFrame, moved: pl.DataFrame) -> str:
    """A layer with its place: `relu2 (layer 2 of 6)`."""
    depths = moved["depth"].unique().sort().to_list()
    return f"{row['layer'][0]} (layer {depths.index(row['depth'][0]) + 1} of {len(depths)})"


def _geometry(summary: pl.DataFrame) -> str:
    """Selectivity and dimensionality of a single network over depth, and what its most harmful perturbation does."""
    clean = summary.filter(pl.col("family") == "clean")
    parts = [
        _selectivity(clean),
        _over_depth(clean, "pca_fraction_95", "95 % of the variance takes a share of the units that"),
    ]
    said = "; ".join(filter(None, parts))
    hurt = summary.filter(WHOLE & (pl.col("family") != "clean")).sort("value", "label")
    if said and len(hurt):
        worst = pl.col("label") == hurt["label"][0]
        there = summary.filter(worst)
        change = [
            f"{title} from {decimal(before[0])} to {decimal(after[0])}{_no_more_than_chance(there, metric)}"
            for metric, title in (("class_selectivity", "mean selectivity"), ("pca_fraction_95", "that share"))
            for before, after in [(_mean_over_layers(clean, metric), _mean_over_layers(there, metric))]
            if before and after and not _no_more_than_chance(clean, metric)
        ]
        if change:
            said += f"; {hurt['label'][0]}, the most harmful of all, takes {' and '.join(change)}"
    return f"On clean images {said}." if said else "The table has no class selectivity and no dimensionality."


def _selectivity(clean: pl.DataFrame) -> str:
    """Class selectivity over depth with its floor; or that it is at its floor, where there is nothing to tell."""
    layers = _above_floor(clean, "class_selectivity")
    if layers.is_empty():
        return ""
    values, floors = layers["value"].to_list(), layers["floor"].drop_nulls().to_list()
    told = layers.filter(pl.col("depth").is_in([layers["depth"].min(), layers["depth"].max()]))
    if told["above"].all():
        chance = f" (shuffled labels give {decimal(fmean(floors))} on average)" if floors else ""
        return _over_depth(clean, "class_selectivity", "class selectivity") + chance
    few = int((~layers["above"]).sum())
    where = "" if len(layers) == 1 else f" in {few} of {len(layers)} layers"
    return (
        f"class selectivity cannot be told from what shuffled labels give{where} ({decimal(fmean(values))} on average "
        f"against {decimal(fmean(floors))}): give more images of each class"
    )


def _above_floor(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """A measure's layers, with their floor and whether they are clear of it (of its interval, where it has one)."""
    layers = rows.filter(pl.col("layer").is_not_null() & pl.col("value").is_not_null())
    floors = layers.filter(pl.col("metric") == FLOORS.get(metric, ""))
    floors = floors.select("layer", "depth", floor="value", most=pl.coalesce("high", "value"))
    found = layers.filter(pl.col("metric") == metric).join(floors, on=["layer", "depth"], how="left")
    return found.sort("depth").with_columns(above=pl.col("most").is_null() | (pl.col("value") > pl.col("most")))


def _no_more_than_chance(rows: pl.DataFrame, metric: str) -> str:
    """What to say of a measure whose mean over layers is at its floor; empty where it is above it, or has none."""
    layers = _above_floor(rows, metric).drop_nulls("most")
    if layers.is_empty() or layers["value"].sum() > layers["most"].sum():
        return ""
    return ", which shuffled labels could give too"


def _over_depth(clean: pl.DataFrame, metric: str, title: str) -> str:
    """How a layer measure goes from the first layer to the last."""
    layers = clean.filter(pl.col("layer").is_not_null() & (pl.col("metric") == metric)).sort("depth")
    if layers.is_empty():
        return ""
    first, last = layers.row(0, named=True), layers.row(-1, named=True)
    goes = "is" if len(layers) == 1 else "goes from"
    end = "" if len(layers) == 1 else f" to {decimal(last['value'])} in {last['layer']}"
    return f"{title} {goes} {decimal(first['value'])} in {first['layer']}{end}"


def _mean_over_layers(rows: pl.DataFrame, metric: str) -> list[float]:
    """The mean of a layer measure over its layers, as a list of one; empty where there is none."""
    values = rows.filter(pl.col("layer").is_not_null() & (pl.col("metric") == metric))["value"].drop_nulls()
    return [sum(values) / len(values)] if len(values) else []


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
    held = "undefined" if held_fixed["rho"] is None else decimal(held_fixed["rho"])
    p = pick["p_holm"]
    corrected = "no p-value" if p is None else f"p{SPACE}{p_value(p)} after Holm’s correction for {_tests(plain)}"
    aside = SAME_SIDE not in (pick["note"] or "") and plain["note"].str.contains(SAME_SIDE, literal=True).any()
    chance = "more than chance gives" if p is not None and p < 0.05 else "which chance could also give"
    return (
        f"Over {pick['networks']} networks{_mixed(pick['note'])} from {pick['seeds']} seeds, the strongest relation"
        f"{', pairs measured under the same perturbations left aside,' if aside else ''} is between "
        f"{_glossed(names[0])} and {_glossed(names[1])}: as the first rises the second "
        f"{'rises' if pick['rho'] > 0 else 'falls'}, with a rank correlation (Spearman’s ρ) of {decimal(pick['rho'])} "
        f"({interval}; {held} with clean accuracy held fixed), {chance} ({corrected})."
    )


def _mixed(note: str | None) -> str:
    """` of 3 models`, where the networks that are related have several: part of a relation may lie between models."""
    mixed = re.findall(r"mixes (\d+ (?:models|data sets))", note or "")
    return f" of {' and '.join(mixed)}, whose differences count too," if mixed else ""


def _tests(plain: pl.DataFrame) -> str:
    n = plain["p"].count()
    return "1 test" if n == 1 else f"{n} tests"


def _glossed(name: str) -> str:
    """A measure for the middle of a sentence, with its gloss: `dead units (…)`."""
    found = measure(name)
    title = found.title if found.title[:2].isupper() else found.title[0].lower() + found.title[1:]
    return f"{title} ({found.gloss})" if found.gloss else title


def _refusal(plain: pl.DataFrame) -> str:
    note: str = plain["note"].drop_nulls().mode().sort()[0]
    return note if note.startswith("needs") else f"gives no defined correlation ({note})"


def _capital(name: str) -> str:
    """`the network` as a sentence begins; a recipe's own name stays as it is."""
    return "The network" if name == "the network" else name


def _share(row: pl.DataFrame, of_what: str = "", brackets: str = "()") -> str:
    """An accuracy with its interval: `86.1 % (84.0–88.2)`."""
    value, low, high = (row[name][0] for name in ("value", "low", "high"))
    return f"{percent(value)} {brackets[0]}{f'{of_what} ' if of_what else ''}{percent_range(low, high)}{brackets[1]}"


def relation_text(row: dict[str, float | str | None]) -> str:
    """One correlation in words: `−0.81 [−0.95, −0.42]`."""
    if row["rho"] is None:
        return "–"
    low, high = (row[name] for name in ("low", "high"))
    interval = f" [{decimal(low)}, {decimal(high)}]" if isinstance(low, float) and isinstance(high, float) else ""
    return decimal(float(row["rho"])) + interval
