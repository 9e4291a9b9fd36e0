"""One self-contained HTML page: the sections, the data that its controls need, and the scripts inlined."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import polars as pl
import vl_convert

from geophone.analysis.relate import SAME_SIDE, UNDEFINED, geometry_measures, robustness_measures
from geophone.report.figures import charts
from geophone.report.figures.panels import (
    accuracy_groups,
    default_profile,
    has_profile,
    has_scatter,
    profile_chart,
    relation_chart,
    robust_panels,
)
from geophone.report.figures.sweep import sweep_section
from geophone.report.findings import Findings
from geophone.report.markup import count, legend, select, text
from geophone.report.sections.answer import answer, headline, relation_text
from geophone.report.sections.layer_maps import depth_panels, map_panels, map_rows, scalar_table
from geophone.report.sections.manifolds import manifold_section
from geophone.report.sections.scorecard import radii_table, score_section
from geophone.report.sections.verdicts import claims_section
from geophone.report.summary import OWN_SPREAD, profile_metrics, thinned
from geophone.report.words import SOURCES, SPACE, decimal, eot_words, measure, p_value

# What the bundle leaves for the page's own script.
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def page_html(found: Findings, provenance: Mapping[str, Any], title: str, claims: pl.DataFrame | None = None) -> str:
    """The whole report as HTML."""
    carried, omitted = thinned(found.summary)
    specs: dict[str, Any] = {}
    sections = [
        _answer(found),
        claims_section(claims),
        _checks(found.table),
        _accuracy(found, specs),
        score_section(found),
        _breaking(found, specs),
        _layers(found, carried, omitted, specs),
        _maps(found, specs),
        manifold_section(found),
        sweep_section(found.table),
        _relations(found, specs),
        _everything(found, omitted),
        _provenance(provenance),
    ]
    data = {**_data(found, carried), "charts": specs, "profile_start": None}
    if "profile" in specs:
        data["profile_start"] = _condition_places(carried)[default_profile(carried)[1]]
    own = files("geophone.report")
    question = provenance.get("question")
    return Template(own.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=text(title),
        lede=f'<p class="lede">{text(question)}</p>' if question else "",
        css=own.joinpath("page.css").read_text(encoding="utf-8"),
        script=own.joinpath("page.js").read_text(encoding="utf-8"),
        sections="\n".join(section for section in sections if section),
        data=json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        vega=_vega(),
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script. Bundling takes a second or two, so it is done once."""
    return vl_convert.javascript_bundle(SNIPPET, vl_version=charts.VEGA_LITE)


def _answer(found: Findings) -> str:
    sides = found.sides.filter(pl.col("series").is_in(found.peers))  # what holds best is asked of one model's recipes
    sentences = answer(found.summary, sides, found.relations, found.series)
    items = "\n".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<section id="answer"><h2>The answer</h2>\n<ol class="answer">\n{items}\n</ol></section>'


def _checks(table: pl.DataFrame) -> str:
    rows = table.filter(pl.col("metric").str.starts_with("check."))
    if rows.is_empty():
        return ""
    total = rows["job"].n_unique()
    names = rows["metric"].unique(maintain_order=True).to_list()
    wrong = rows.filter(pl.col("value") != 0)
    unknown = rows.filter(pl.col("value").is_null())
    body = [
        f'<p class="problem">{_first_note(part)} '
        f"<small>({text(_some(part['series'].unique(maintain_order=True).to_list()))}; {part['job'].n_unique()} of "
        f"{count(total, 'network')})</small></p>"
        for _, part in wrong.group_by("metric", maintain_order=True)
    ]
    body += [
        f'<p class="problem">Could not be checked: {_first_note(part)}</p>'
        for _, part in unknown.group_by("metric", maintain_order=True)
    ]
    spoilt = set(pl.concat([wrong, unknown])["metric"])
    passed = [name for name in names if name not in spoilt]
    if passed:
        every = len(passed) == len(names) > 1
        which = f"All {len(names)} checks" if every else f"{len(passed)} of {count(len(names), 'check')}"
        notes = "".join(f"<li>{_first_note(rows.filter(pl.col('metric') == name))}</li>" for name in passed)
        body.append(
            f'<details class="fine"><summary>{which} passed, in {count(total, "network")}.</summary>'
            f"<ul>{notes}</ul></details>"
        )
    return f'<section id="checks"><h2>What looks wrong with the measurement</h2>\n{"".join(body)}</section>'


def _first_note(rows: pl.DataFrame) -> str:
    """What a check said of the first network, and that it said alike of others, whose numbers differ."""
    notes = rows["note"].drop_nulls().unique(maintain_order=True).to_list() or [rows["metric"][0]]
    others = f" <small>(likewise, with other numbers, in {count(len(notes) - 1, 'more network')})</small>"
    return text(notes[0]) + (others if len(notes) > 1 else "")


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _accuracy(found: Findings, specs: dict[str, Any]) -> str:
    groups = accuracy_groups(found)
    if not groups:
        return ""
    body, place = "", 0
    for title, small, panels in groups:
        places = ""
        for spec, rows in panels:
            specs[f"accuracy-{place}"] = charts.filled(spec, rows)
            places += f'<div class="chart" id="accuracy-{place}"></div>'
            place += 1
        grid = "panels small" if small else f"panels in-{charts.columns(len(panels))}"
        body += f'<h3>{text(title)}</h3>\n<div class="{grid}">{places}</div>\n'
    corrupted = ""
    if any(small for _, small, _ in groups):
        source = f", with {text(SOURCES.get(found.source, found.source))}" if found.source else ""
        corrupted = f" Corruptions are those of ImageNet-C and CIFAR-10-C, severity 1 to 5{source}."
    return (
        '<section id="accuracy"><h2>Accuracy under perturbation</h2>\n'
        '<p class="caption">Share of test images classified correctly (higher is better) against the level of each '
        f"perturbation, in its own units; level 0 is the clean images.{corrupted}{text(_attack_words(found))} "
        f"{_interval_words(found)} The averages in the answer are taken over the levels of a "
        "perturbation, then over perturbations.</p>\n"
        f"{legend(found.series)}{body}</section>"
    )


def _attack_words(found: Findings) -> str:
    """What attacks know of the network: nothing but its answers for Square, else all of it."""
    attacks = found.summary.filter(pl.col("family") == "attack")["perturbation"].unique().to_list()
    if not attacks:
        return ""
    blind = ", but for Square, which sees only its answers" if any("Square" in name for name in attacks) else ""
    return f" Attacks are white-box: they know the network and its gradients{blind}.{eot_words(found.averaged)}"


def _breaking(found: Findings, specs: dict[str, Any]) -> str:
    """Robust accuracy over the radius of attacks, and the radius at which half of the accuracy is gone."""
    panels = robust_panels(found)
    table = radii_table(found)
    if not panels and not table:
        return ""
    for place, (spec, rows) in enumerate(panels):
        specs[f"robust-{place}"] = charts.filled(spec, rows)
    places = "".join(f'<div class="chart" id="robust-{place}"></div>' for place in range(len(panels)))
    caption = (
        '<p class="caption">Robust accuracy is the share of test images that are classified correctly, and still are '
        "when the attack may change them by any distance up to eps (a logarithmic axis). It is an upper bound: a "
        f"stronger attack may leave less.{text(eot_words(found.averaged))} Lines and bands are as above.</p>\n"
    )
    drawn = f'{caption}{legend(found.series)}<div class="panels in-3">{places}</div>\n' if panels else ""
    return f'<section id="breaking"><h2>How far until it breaks</h2>\n{drawn}{table}</section>'


def _layers(found: Findings, carried: pl.DataFrame, omitted: list[str], specs: dict[str, Any]) -> str:
    if not has_profile(found):
        return ""
    metric, label = default_profile(carried)
    specs["profile"] = charts.filled(profile_chart(found, carried)[0], [])
    present = carried.filter(pl.col("layer").is_not_null())
    bands = present["low"].null_count() < len(present)
    metrics = [name for name in profile_metrics(found.summary) if name in present["metric"]]
    places = {name: place for place, name in enumerate(carried["metric"].unique(maintain_order=True))}
    start = carried.filter(pl.col("label") == label)["perturbation"][0]
    names = present["perturbation"].unique(maintain_order=True).to_list()
    return (
        '<section id="layers"><h2>Layer by layer</h2>\n'
        '<p class="caption">From the first recorded layer (left) to the last (right). Point at a mark for its '
        f"numbers. {_interval_words(found, layers=True)}</p>\n"
        '<div class="controls">'
        + select(
            "profile-measure", "Measure", [(str(places[m]), measure(m).title) for m in metrics], str(places[metric])
        )
        + select("profile-perturbation", "Images", [(n, "clean images" if n == "clean" else n) for n in names], start)
        + select("profile-level", "Level", [], "")
        + "</div>\n"
        f'{legend(found.series, bands)}<div class="chart large" id="profile"></div>\n'
        '<p class="caption" id="profile-about" aria-live="polite"></p>'
        + "".join(f'<p class="caption">{text(line)}</p>' for line in omitted)
        + "</section>"
    )


def _maps(found: Findings, specs: dict[str, Any]) -> str:
    """Layers beside layers: heat maps, what they show in numbers, and lines over depth."""
    panels = map_panels(found.maps, found.series)
    if not panels:
        return ""
    lines = depth_panels(found.maps, found.series)
    for kind, some in (("map", panels), ("depth", lines)):
        specs |= {f"{kind}-{place}": charts.filled(*panel) for place, panel in enumerate(some)}
    maps = "".join(f'<div class="chart" id="map-{place}"></div>' for place in range(len(panels)))
    curves = "".join(f'<div class="chart" id="depth-{place}"></div>' for place in range(len(lines)))
    drawn = f'{legend(found.series)}<div class="panels in-3">{curves}</div>\n' if lines else ""
    every = map_rows(found.maps).select("series", "perturbation", "level", "metric").unique().height
    rest = f" {every - len(panels)} more are in the table." if every > len(panels) else ""
    return (
        '<section id="maps"><h2>Layers beside layers</h2>\n'
        '<p class="caption">Every layer with every layer, in the order of execution from the lower left. Bright: '
        "alike. Linear CKA, unless a map says otherwise: 1, alike up to rotation and scale; about 0, unrelated. Point "
        f'at a cell for its numbers.{rest}</p>\n<div class="panels in-3">{maps}</div>\n'
        f"{scalar_table(found.maps, found.series)}\n{drawn}</section>"
    )


def _relations(found: Findings, specs: dict[str, Any]) -> str:
    relations = found.relations
    if relations.is_empty():
        return ""
    geometry = relations["geometry"].unique(maintain_order=True).to_list()
    robustness = relations["robustness"].unique(maintain_order=True).to_list()
    start = headline(relations)
    undefined = relations["rho"].null_count() == len(relations)
    explained = (
        '<p class="caption">One point per network. A geometric measure is the mean over layers: on clean images, or '
        "between clean and perturbed responses where it says “under”. Spearman’s ρ compares ranks: 1, one rises "
        "whenever the other does; −1, one falls; 0, no monotone relation. “Clean held fixed” is the partial ρ, what is "
        "left once clean accuracy is accounted for. Intervals are 95 % bootstrap intervals clustered by seed; "
        "p-values come from exchanging whole recipes and are Holm-corrected over all rows of the table.</p>\n"
    )
    body = explained if has_scatter(found) or not undefined else ""
    if has_scatter(found):
        specs["relation"] = charts.filled(relation_chart(found)[0], [])
        body += (
            '<div class="controls">'
            + select("relation-geometry", "Geometry", [(g, measure(g).title) for g in geometry], start[0])
            + select("relation-robustness", "Robustness", [(r, measure(r).title) for r in robustness], start[1])
            + f"</div>\n{legend(found.series, bands=False)}"
            '<p class="finding" id="relation-text" aria-live="polite"></p>\n'
            '<div class="chart large" id="relation"></div>\n<p class="caption" id="relation-about"></p>\n'
        )
    if undefined:
        reasons = relations["note"].unique(maintain_order=True).to_list()
        body += "".join(f'<p class="finding">No correlation is computed: {text(reason)}.</p>' for reason in reasons[:5])
    else:
        body += _relation_table(relations)
    return f'<section id="relations"><h2>Does geometry go with robustness?</h2>\n{body}</section>'


def _relation_table(relations: pl.DataFrame) -> str:
    partial = {
        (r["geometry"], r["robustness"]): r for r in relations.to_dicts() if r["statistic"] == "partial_spearman"
    }
    plain = relations.filter(pl.col("statistic") == "spearman")
    plain = plain.sort(pl.col("rho").abs(), descending=True, nulls_last=True, maintain_order=True)
    pairs = [(row, partial[row["geometry"], row["robustness"]]) for row in plain.to_dicts()]
    notes = [_notes(held) for _, held in pairs]
    defined = [each for (row, _), each in zip(pairs, notes, strict=True) if row["rho"] is not None]
    shared = [note for note in defined[0] if all(note in each for each in defined)]
    own = [[note for note in each if note not in (*shared, SAME_SIDE)] for each in notes]
    counts = {row["networks"] for row, _ in pairs}
    lines = []
    for (row, held), each, left in zip(pairs, notes, own, strict=True):
        mark = " †" if SAME_SIDE in each and SAME_SIDE not in shared else ""
        cells = [
            f"<td>{text(measure(row['geometry']).title)}</td><td>{text(measure(row['robustness']).title)}{mark}</td>",
            *(
                f'<td class="number">{relation_text(r)}</td><td class="number">{_p(r["p_holm"])}</td>'
                for r in (row, held)
            ),
            f'<td class="number">{row["networks"]}</td>' if len(counts) > 1 else "",
            f'<td class="note">{text("; ".join(left))}</td>' if any(own) else "",
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = (
        '<th>Geometry</th><th>Robustness</th><th class="number">ρ [95 %]</th><th class="number">p, Holm</th>'
        '<th class="number">Clean held fixed</th><th class="number">p, Holm</th>'
        + ('<th class="number">Networks</th>' if len(counts) > 1 else "")
        + ('<th class="note">Note</th>' if any(own) else "")
    )
    return (
        f"<h3>All {count(len(plain), 'pair')}, strongest first</h3>\n"
        f'<p class="caption">{text(_table_words(plain, relations, shared, notes))}</p>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of relations">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _notes(row: dict[str, Any]) -> list[str]:
    """The parts of a relation's note, but for undefined resamples where they are few enough for an interval."""
    parts = (row["note"] or "").split("; ")
    return [part for part in parts if part and not (part.startswith(UNDEFINED) and row["low"] is not None)]


def _table_words(plain: pl.DataFrame, relations: pl.DataFrame, shared: list[str], notes: list[list[str]]) -> str:
    """What holds for many rows of the table of relations, said once."""
    words = []
    if plain["networks"].n_unique() == 1:
        words.append(f"Each pair over {plain['networks'][0]} networks.")
    if shared:
        words.append(f"Throughout: {'; '.join(shared)}.")
    if SAME_SIDE not in shared and any(SAME_SIDE in each for each in notes):
        words.append(f"†: {SAME_SIDE}, so the geometry is close to a restatement of the accuracy.")
    if relations.filter(pl.col("low").is_not_null())["note"].str.contains(UNDEFINED, literal=True).any():
        words.append("Resamples in which ρ is undefined, at most 5 % of a row’s, are left out of its interval.")
    return " ".join(words)


def _p(value: float | None) -> str:
    return "–" if value is None else p_value(value).removeprefix(f"={SPACE}")


def _everything(found: Findings, omitted: list[str]) -> str:
    one = len(found.wide) < 2
    texts = (*([] if len(found.series) == 1 else [found.kind]), "Images", "Layer", "Measure")
    numbers = ("Value" if one else "Mean", "95 % interval", "Networks")
    head = "".join(
        f'<th{" class=number" if name in numbers else ""}><button type="button">{name}</button></th>'
        for name in (*texts, *numbers)
    )
    each = "of the network" if one else f"as its mean over the networks of a {found.kind.lower()}"
    each = "as its mean over the networks" if len(found.series) == 1 and not one else each
    example = " ".join([*found.series[: len(texts) - 3], "accuracy"])
    return (
        '<section id="everything"><h2>Everything</h2>\n'
        f'<p class="caption">Every measure {each}. Press a column’s name to sort. '
        "The full table, with one row per network and unit, is in the folder <code>table</code> of the results. "
        f"{text(' '.join(omitted))}</p>\n"
        '<div class="controls"><label>Search (all words must occur)<input type="search" id="search" '
        f'placeholder="{text(example)}" autocomplete="off"></label></div>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of everything">'
        f'<table><thead><tr>{head}</tr></thead><tbody id="rows"></tbody></table></div>\n'
        '<p class="caption" id="found" aria-live="polite"></p>'
        '<button type="button" class="more" id="more">Show 200 more</button></section>'
    )


def _provenance(provenance: Mapping[str, Any]) -> str:
    entries = []
    if command := provenance.get("command"):
        entries.append(("Command", f"<code>{text(command)}</code>"))
    for name, key in (("Study", "study"), ("Networks", "networks"), ("Started", "started")):
        if provenance.get(key) is not None:
            entries.append((name, text(provenance[key])))
    if provenance.get("seconds") is not None:
        entries.append(("Duration", _duration(float(provenance["seconds"]))))
    if provenance.get("seeds"):
        entries.append(("Seeds", text(", ".join(map(str, provenance["seeds"])))))
    for name, key in (("Device", "device"), ("Threads", "threads"), ("Host", "host")):
        if provenance.get(key) is not None:
            entries.append((name, text(provenance[key])))
    if versions := provenance.get("versions"):
        entries.append(("Versions", text(", ".join(f"{name} {version}" for name, version in versions.items()))))
    entries += [("Note", text(note)) for note in provenance.get("notes") or ()]
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries)
    body = f"<dl>{items}</dl>" if items else '<p class="caption">Nothing was recorded about how this was made.</p>'
    return f'<section id="provenance"><h2>Provenance</h2>\n{body}</section>'


def _interval_words(found: Findings, layers: bool = False) -> str:
    """What the bands of a chart are."""
    counts = found.summary["networks"].to_list()
    if max(counts) == 1:
        bands = "Bands are 95 % Wilson intervals over the test images; they say nothing about other seeds."
        return "With one network per line there are no bands." if layers else bands
    least = "" if layers else ", never narrower than the Wilson interval over the test images"
    words = f"Lines are means over seeds, bands 95 % Student t intervals of that mean{least}."
    if len(found.series) > 1 and min(counts) < OWN_SPREAD:
        what = found.kind.lower()
        return (
            f"{words} Where a {what} has fewer than {OWN_SPREAD} networks, the spread over seeds is pooled over the "
            f"{what}s, which assumes that it is alike in all of them."
        )
    return f"{words} From two seeds it is wide: 12.7 standard errors either way." if max(counts) == 2 else words


def _condition_places(carried: pl.DataFrame) -> dict[str, int]:
    return {label: place for place, label in enumerate(_conditions(carried)["label"])}


def _conditions(carried: pl.DataFrame) -> pl.DataFrame:
    return carried.select("family", "perturbation", "level_label", "label").unique(subset="label", maintain_order=True)


def _data(found: Findings, carried: pl.DataFrame) -> dict[str, Any]:
    """What the controls need. Rows go as columns of small integers, which keeps the page light."""
    metrics = carried["metric"].unique(maintain_order=True).to_list()
    layers = carried.filter(pl.col("layer").is_not_null()).select("layer", "depth").unique(maintain_order=True).rows()
    places = {pair: place for place, pair in enumerate(layers)}
    conditions = _condition_places(carried)
    geometry = [g for g in geometry_measures(found.wide) if g in found.relations["geometry"]]
    robustness = [r for r in robustness_measures(found.wide) if r in found.relations["robustness"]]
    return {
        "series": found.series,
        "metrics": [{"title": measure(m).title, "about": measure(m).about} for m in metrics],
        "conditions": _conditions(carried).to_dicts(),
        "layers": layers,
        "rows": {
            "s": [found.series.index(s) for s in carried["series"]],
            "c": [conditions[label] for label in carried["label"]],
            "l": [places.get(pair, -1) for pair in carried.select("layer", "depth").iter_rows()],
            "m": [metrics.index(m) for m in carried["metric"]],
            **{key: _short(carried[name]) for key, name in (("v", "value"), ("lo", "low"), ("hi", "high"))},
            "k": carried["networks"].to_list(),
        },
        "networks": found.wide.select("series", "seed", *geometry, *robustness).to_dicts(),
        "titles": {name: measure(name).title for name in (*geometry, *robustness)},
        "abouts": {name: f"{measure(name).title}: {measure(name).about}" for name in (*geometry, *robustness)},
        "relations": _relation_sentences(found.relations),
    }


def _relation_sentences(relations: pl.DataFrame) -> dict[str, str]:
    """What is said over the scatter, for each pair."""
    said: dict[str, str] = {}
    for row in relations.to_dicts():
        key = f"{row['geometry']}|{row['robustness']}"
        name = "Spearman’s ρ" if row["statistic"] == "spearman" else " With clean accuracy held fixed ρ"
        if row["rho"] is None:
            said[key] = said.get(key) or f"No correlation: {row['note']}."
            continue
        interval = "no interval" if row["low"] is None else f"95 % {decimal(row['low'])} to {decimal(row['high'])}"
        p = "no p" if row["p_holm"] is None else f"Holm p {p_value(row['p_holm'])}"
        said[key] = said.get(key, "") + f"{name} = {decimal(row['rho'])} ({interval}; {p})."
        if row["statistic"] == "partial_spearman":
            notes = "".join(f"; {note}" for note in _notes(row))
            said[key] += f" {row['networks']} networks, {row['seeds']} seeds{notes}."
    return said


def _short(column: pl.Series) -> list[float | None]:
    return column.round_sig_figs(4).to_list()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "under 1 s"
