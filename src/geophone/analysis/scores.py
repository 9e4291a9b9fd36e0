"""Scores of natural corruptions, worked out from the table: mean accuracies, and the mCE of ImageNet-C.

A network is a job of the table. Nothing here opens a network: it reads rows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import polars as pl

from geophone.core.arguments import checked
from geophone.core.errors import GeophoneError, unknown

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "spatter"),
    "digital": ("brightness", "contrast", "saturate", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The 19 corruptions of CIFAR-10-C, Tiny ImageNet-C and ImageNet-C, by kind."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 4 that were published for validation. Each is scored by itself; means and mCE leave them out."""

STANDARD = tuple(name for group in GROUPS.values() for name in group if name not in EXTRA)
"""The 15 that means and mCE are over."""

SEVERITIES = (1, 2, 3, 4, 5)
NONE_STANDARD = "none of the 15 standard corruptions was measured"
WHO = ("job", "dataset", "model", "recipe", "seed", "epoch")

SCORE_SCHEMA: dict[str, Any] = {
    "job": pl.String,
    "dataset": pl.String,
    "model": pl.String,
    "recipe": pl.String,
    "seed": pl.Int64,
    "epoch": pl.Int64,
    "source": pl.String,
    "corruption": pl.String,
    "severity": pl.Float64,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "note": pl.String,
}

_SOURCE = r"(?:preset|published)='[^']*'"


class _Span(NamedTuple):
    """A number and its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Network:
    """One network under the corruptions of one source."""

    who: dict[str, Any]
    source: str | None
    clean: _Span | None
    accuracy: dict[tuple[str, float], _Span]  # by type and severity
    pictures: str | None  # of frost, where they are named
    images: int | None
    classes: int | None

    def severities(self, corruption: str) -> list[float]:
        return sorted(severity for name, severity in self.accuracy if name == corruption)

    @property
    def standard(self) -> list[str]:
        """The standard corruptions that were measured."""
        return [name for name in STANDARD if self.severities(name)]

    def row(self, metric: str, value: _Span | None, note: str | None = None, **where: Any) -> dict[str, Any]:
        """A row of the scores."""
        numbers = {} if value is None else value._asdict()
        return {**self.who, "source": self.source, **where, "metric": metric, **numbers, "n": self.images, "note": note}


@checked
def scores(table: pl.DataFrame, baseline: str | pl.DataFrame | None = None) -> pl.DataFrame:
    """How each network holds under the corruptions that were measured, as one tidy frame.

    With accuracy a of one type at one severity, clean accuracy c, and k classes:

    - `corruption_accuracy`: a, in [0, 1].
    - `corruption_accuracy_relative`: a/c. 1: corruption costs nothing; chance is 1/(kc), not 0.
    - `corruption_accuracy_above_chance`: (a − 1/k)/(1 − 1/k). 0: guessing; 1: all right.

    Each stands for every type and severity, for a type (`severity` null: mean over its severities), for a severity
    (`corruption` null: mean over the types) and for the whole (both null: mean over the types of their means). Means
    over types are over the standard ones that were measured, and `note` says which; the 4 in `EXTRA`, and a plug-in's
    corruptions, are scored one by one only. As division and subtraction are by constants of the network, a mean of
    scores is the score of the mean.

    With a baseline, from errors E = 1 − a and E₀ of the baseline, sums being over severities:

    - `ce`: Σ E / Σ E₀, for each type that both have at the same severities.
    - `mce`: the mean of `ce` over the standard types. 1: as good as the baseline; lower: better. Published as 100·mce.
    - `relative_ce`, `relative_mce`: the same from what corruption adds to the clean error, Σ (E − E_clean). It has no
      interval where the baseline's part is not clear of 0, as with few images or a mild corruption.

    Intervals are 95 %. That of one accuracy is the row's own (Wilson's, from its n images). All conditions, the clean
    images and usually the baseline share their images, so that their errors depend on each other in an unknown way.
    Therefore a mean's interval is the mean of the intervals, and that of a difference or quotient goes from its least
    to its greatest value over both intervals: right if errors go together as badly as they can, else too wide, never
    too narrow. It is about these images; what other seeds would give is not in it.

    Scores are per network and `source`: whose constants made the corruptions, such as `preset='cifar10'`, or which
    published files were read, such as `published='cifar10_c'`. These are not mixed. Nor is frost from procedural
    pictures compared with frost from the published ones: its `ce` is null then, and so is `mce`. Means over it say so.

    Args:
        table: The long table.
        baseline: The network that mCE compares with: a job's id, a model's or recipe's name, or one of these with the
            seed ("Standard, 0"), in `table`; or a table that holds just this network. None for no mCE. (The published
            numbers are relative to AlexNet.)

    Returns:
        Columns job, dataset, model, recipe, seed, epoch, source, corruption, severity, metric, value, low, high, n,
        note. Undefined is null and `note` says why. Networks without corruptions have no rows.

    Raises:
        GeophoneError: the baseline is unknown, or is several networks; it and a network were not measured under the
            same standard corruptions and severities; a network has two accuracies for one condition.

    References:
        Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4 (mCE and relative mCE).

    >>> scores(table, baseline="Standard, 0").filter(pl.col("metric") == "mce")
    """
    found = _networks(table)
    rows = [row for network in found for row in _accuracies(network)]
    if baseline is not None:
        chosen = _named(found, baseline) if isinstance(baseline, str) else _networks(baseline)
        rows += [row for network in found for row in _errors(network, _counterpart(network, chosen))]
    return pl.DataFrame(rows, schema=SCORE_SCHEMA, orient="row")


def type_of(perturbation: str) -> str:
    """The type of a corruption in the table: `fog` for `fog(preset='cifar10')`."""
    return perturbation.partition("(")[0]


def source_of(perturbation: str) -> str | None:
    """Whose constants, or which published files, the table names: `preset='cifar10'`; None where it names none."""
    named = re.search(_SOURCE, perturbation)
    return named[0] if named else None


def pictures_of(perturbation: str) -> str | None:
    """Which pictures the table names for frost: `published` or `procedural`; None where it names none."""
    named = re.search(r"pictures='([^']*)'", perturbation)
    return named[1] if named else None


def without_source(perturbation: str) -> str:
    """The rest of the name: `fog` for `fog(preset='cifar10')`."""
    rest = re.sub(rf"{_SOURCE}(, )?", "", perturbation)
    return rest.replace(", )", ")").replace("()", "")


def _networks(table: pl.DataFrame) -> list[_Network]:
    """Every network and source with an accuracy under a corruption, in the order of the table."""
    rows = table.filter(
        pl.col("layer").is_null()
        & (pl.col("metric") == "accuracy")
        & pl.col("family").is_in(["clean", "corruption"])
        & pl.col("value").is_not_null()
        & pl.col("level").is_not_null()
    )
    rows = rows.select(*WHO, "family", "perturbation", "level", "value", "low", "high", "n", "d").unique(
        maintain_order=True
    )
    made = []
    for _, part in rows.group_by(WHO, maintain_order=True):
        who = dict(zip(WHO, part.select(WHO).row(0), strict=True))
        clean = part.filter(pl.col("family") == "clean")
        if len(clean) > 1:
            raise _twice(who, "clean images")
        corrupted = part.filter(pl.col("family") == "corruption").to_dicts()
        for source in dict.fromkeys(source_of(row["perturbation"]) for row in corrupted):
            mine = [row for row in corrupted if source_of(row["perturbation"]) == source]
            accuracy = {(type_of(row["perturbation"]), row["level"]): _span(row) for row in mine}
            if len(accuracy) < len(mine):
                keys = [(type_of(row["perturbation"]), row["level"]) for row in mine]
                raise _twice(who, "{} at severity {:g}".format(*next(key for key in keys if keys.count(key) > 1)))
            images = [row["n"] for row in mine if row["n"] is not None]
            made.append(
                _Network(
                    who,
                    source,
                    _span(clean.row(0, named=True)) if len(clean) else None,
                    accuracy,
                    next(filter(None, (pictures_of(row["perturbation"]) for row in mine)), None),
                    min(images, default=None),
                    mine[0]["d"],
                )
            )
    return made


def _span(row: dict[str, Any]) -> _Span:
    return _Span(row["value"], row["low"], row["high"])


def _twice(who: dict[str, Any], condition: str) -> GeophoneError:
    return GeophoneError(
        f"the network {_name(who)} has two accuracies on {condition}. Give a measurement on other images, or with "
        "other settings, a job or data set of its own."
    )


def _accuracies(network: _Network) -> Iterator[dict[str, Any]]:
    """The accuracies and the two normalised ones, of every condition and every mean."""
    yield from _scored(network, "corruption_accuracy", network.accuracy)
    clean, classes = network.clean, network.classes
    if clean is None or clean.value == 0:
        reason = "the table has no accuracy on clean images" if clean is None else "clean accuracy is 0"
        yield network.row("corruption_accuracy_relative", None, reason)
    else:
        relative = {key: _quotient(accuracy, clean) for key, accuracy in network.accuracy.items()}
        yield from _scored(network, "corruption_accuracy_relative", relative)
    if classes is None or classes < 2:
        reason = "the table does not say how many classes there are" if classes is None else "there is one class"
        yield network.row("corruption_accuracy_above_chance", None, reason)
    else:
        above = {key: _above_chance(accuracy, 1 / classes) for key, accuracy in network.accuracy.items()}
        yield from _scored(network, "corruption_accuracy_above_chance", above)


def _scored(network: _Network, metric: str, values: dict[tuple[str, float], _Span]) -> Iterator[dict[str, Any]]:
    """One score's rows: for each condition, each type, each severity, and the whole."""
    for (name, severity), value in values.items():
        yield network.row(metric, value, corruption=name, severity=severity)
    means = {}
    for name in dict.fromkeys(name for name, _ in values):
        severities = network.severities(name)
        means[name] = _mean([values[name, severity] for severity in severities])
        yield network.row(metric, means[name], _severities(severities), corruption=name)
    types = network.standard
    if not types:
        yield network.row(metric, None, NONE_STANDARD)
        return
    each = [network.severities(name) for name in types]
    for severity in sorted({severity for severities in each for severity in severities}):
        there = [name for name in types if (name, severity) in values]
        note = "; ".join(filter(None, [_over(there), _procedural(network, there)]))
        yield network.row(metric, _mean([values[name, severity] for name in there]), note, severity=severity)
    alike = all(severities == each[0] for severities in each)
    which = _severities(each[0]) if alike else "not all at the same severities"
    note = "; ".join(filter(None, [_over(types), which, _procedural(network, types)]))
    yield network.row(metric, _mean([means[name] for name in types]), note)


def _errors(network: _Network, baseline: _Network) -> Iterator[dict[str, Any]]:
    """CE and mCE, plain and relative."""
    _check_conditions(network, baseline)
    yield from _compared(network, baseline, ("ce", "mce"), _error, "makes no error")
    if network.clean is None or baseline.clean is None:
        whose = "table" if network.clean is None else "baseline"
        yield network.row("relative_mce", None, f"the {whose} has no accuracy on clean images")
    else:
        yield from _compared(network, baseline, ("relative_ce", "relative_mce"), _added_error, "loses nothing")


def _compared(
    network: _Network,
    baseline: _Network,
    metrics: tuple[str, str],
    error: Callable[[_Network, _Span], _Span],
    refusal: str,
) -> Iterator[dict[str, Any]]:
    """One kind of error over the baseline's: each type's quotient of sums over severities, and their mean."""
    quotients: dict[str, _Span | None] = {}
    for name in dict.fromkeys(name for name, _ in network.accuracy):
        severities = network.severities(name)
        if severities != baseline.severities(name):
            continue  # one of the four extra ones, or a plug-in's
        if name == "frost" and network.pictures != baseline.pictures:
            quotients[name] = None
            yield network.row(metrics[0], None, _other_pictures(network, baseline), corruption=name)
            continue
        mine, its = (_mean([error(n, n.accuracy[name, s]) for s in severities]) for n in (network, baseline))
        quotients[name] = _quotient(mine, its) if its.value > 0 else None
        note = _severities(severities) if its.value > 0 else f"the baseline {refusal} under {name}"
        yield network.row(metrics[0], quotients[name], note, corruption=name)
    defined = [quotient for name in network.standard if (quotient := quotients[name]) is not None]
    undefined = [name for name in network.standard if quotients[name] is None]
    if not network.standard:
        yield network.row(metrics[1], None, NONE_STANDARD)
    elif "frost" in undefined and network.pictures != baseline.pictures:
        yield network.row(metrics[1], None, _other_pictures(network, baseline))
    elif undefined:
        yield network.row(metrics[1], None, f"the baseline {refusal} under {', '.join(undefined)}")
    else:
        note = "; ".join(filter(None, [_over(network.standard), _procedural(network, network.standard)]))
        yield network.row(metrics[1], _mean(defined), note)


def _error(_network: _Network, accuracy: _Span) -> _Span:
    return _difference(_exactly(1.0), accuracy)


def _added_error(network: _Network, accuracy: _Span) -> _Span:
    """Error under the corruption less the error on clean images."""
    assert network.clean is not None  # where it is, there is no relative mCE
    return _difference(network.clean, accuracy)


def _check_conditions(network: _Network, baseline: _Network) -> None:
    """Raise where one of the two lacks a standard condition that the other has."""
    mine, its = ({key for key in n.accuracy if key[0] in STANDARD} for n in (network, baseline))
    lacks = [
        f"{who} lacks {_conditions(missing)}"
        for who, missing in ((f"the network {_name(network.who)}", its - mine), ("the baseline", mine - its))
        if missing
    ]
    if lacks:
        raise GeophoneError(
            f"mCE needs the same standard corruptions and severities in both: {', and '.join(lacks)}. Measure what is "
            "missing, or filter the table to what both have."
        )


def _conditions(missing: set[tuple[str, float]]) -> str:
    """`fog at 1, 2, frost at 5`, at most five types."""
    names = [name for name in STANDARD if any(name == other for other, _ in missing)]
    parts = [f"{name} at {', '.join(f'{s:g}' for other, s in sorted(missing) if other == name)}" for name in names[:5]]
    return ", ".join(parts) + (f" and {len(names) - 5} more types" if len(names) > 5 else "")


def _named(found: list[_Network], name: str) -> list[_Network]:
    """The networks that go by a name: one, with its data sets and sources."""
    chosen = [network for network in found if name in _names(network.who)]
    if not chosen:
        names = dict.fromkeys(known for network in found for known in _names(network.who))
        raise unknown("baseline", name, names, "It must be a network whose accuracy under corruptions is in the table.")
    return chosen


def _names(who: dict[str, Any]) -> list[str]:
    """What a network may be called: by its job, model or recipe, and by the last two with the seed."""
    plain = [who[key] for key in ("job", "model", "recipe") if who[key] is not None]
    return [*plain, *(f"{name}, {who['seed']}" for name in plain[-2:] if who["seed"] is not None)]


def _name(who: dict[str, Any]) -> str:
    names = _names(who)
    return repr(names[-1]) if names else "without a name"


def _counterpart(network: _Network, chosen: list[_Network]) -> _Network:
    """The baseline on the same data set and source, of which there must be one."""
    same = [b for b in chosen if b.who["dataset"] == network.who["dataset"] and b.source == network.source]
    if len({tuple(v for k, v in b.who.items() if k != "dataset") for b in chosen}) > 1:
        each = dict.fromkeys(f"{_name(b.who)} (job {b.who['job']})" for b in chosen)
        raise GeophoneError(
            f"the baseline must be one network, but {len(each)} are meant: {', '.join(list(each)[:8])}. "
            "Name it by its job or with its seed, or give a table that holds it alone."
        )
    if not same:
        there = ", ".join(f"{b.who['dataset']} ({b.source or 'no preset'})" for b in chosen) or "nothing"
        raise GeophoneError(
            f"the network {_name(network.who)} was measured on corruptions of {network.who['dataset']} "
            f"({network.source or 'no preset'}), the baseline on those of {there}. mCE needs the same in both."
        )
    return same[0]


def _mean(spans: Sequence[_Span]) -> _Span:
    """The mean, with the mean of the intervals: wide enough however the errors depend on each other."""
    lows, highs = [s.low for s in spans if s.low is not None], [s.high for s in spans if s.high is not None]
    value = fmean(span.value for span in spans)
    return _Span(value, fmean(lows), fmean(highs)) if len(lows) == len(highs) == len(spans) else _Span(value)


def _difference(a: _Span, b: _Span) -> _Span:
    """Of a and b, a − b from its least to its greatest value over both intervals."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return _Span(a.value - b.value)
    return _Span(a.value - b.value, a.low - b.high, a.high - b.low)


def _quotient(a: _Span, b: _Span) -> _Span:
    """a/b for b above 0, from its least to its greatest value; without an interval where b's reaches 0."""
    if a.low is None or a.high is None or b.low is None or b.high is None or b.low <= 0:
        return _Span(a.value / b.value)
    corners = [x / y for x in (a.low, a.high) for y in (b.low, b.high)]
    return _Span(a.value / b.value, min(corners), max(corners))


def _above_chance(accuracy: _Span, chance: float) -> _Span:
    """What is right beyond guessing, as a share of what could be."""
    return _quotient(_difference(accuracy, _exactly(chance)), _exactly(1 - chance))


def _exactly(value: float) -> _Span:
    return _Span(value, value, value)


def _over(types: Sequence[str]) -> str:
    """Which of the standard types a mean is over."""
    if len(types) == len(STANDARD):
        return "over the 15 standard corruptions"
    missing = [name for name in STANDARD if name not in types]
    which = f": {', '.join(types)}" if len(types) <= len(missing) else f", without {', '.join(missing)}"
    return f"over {len(types)} of the 15 standard corruptions{which}"


def _procedural(network: _Network, types: Sequence[str]) -> str | None:
    """That a mean is over frost that isn't the published one."""
    return "frost from procedural pictures" if "frost" in types and network.pictures == "procedural" else None


def _other_pictures(network: _Network, baseline: _Network) -> str:
    mine, its = (n.pictures or "unnamed" for n in (network, baseline))
    return f"frost is from {mine} pictures, the baseline's from {its} ones: measure both with the same"


def _severities(severities: Sequence[float]) -> str | None:
    """Which severities a mean is over, unless it is all five."""
    if tuple(severities) == SEVERITIES:
        return None
    return f"{'severity' if len(severities) == 1 else 'severities'} {', '.join(f'{s:g}' for s in severities)}"
