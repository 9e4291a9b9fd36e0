"""The tests that decide a claim, with all that could sway them fixed before the data are seen.

A test is called with the table and gives an `Outcome`. None is decided on less than its power calculation asks for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import atanh, ceil, inf
from typing import NamedTuple, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import nct, norm, t

from geophone.claims.measures import (
    AtHalf,
    Measure,
    NoRows,
    as_tuple,
    by_perturbation,
    half_levels,
    listed,
    matching,
    measured,
)
from geophone.errors import GeophoneError
from geophone.relate import cluster_weights, exchanges, permutation_p, rank_correlation

Array = NDArray[np.float64]

SUPPORTED, CONTRADICTED, NOT_DECIDED = "supported", "contradicted", "not decided"
VERDICTS = (SUPPORTED, CONTRADICTED, NOT_DECIDED)

ALPHA = 0.05
LEAST_SEEDS = 5
RESAMPLES = 2000


class Outcome(NamedTuple):
    """What a test found.

    Attributes:
        verdict: One of `VERDICTS`.
        effect: What the number is.
        value: The number.
        low: Lower end of its 95 % interval.
        high: Upper end.
        networks: How many went into it.
        seeds: How many seeds these have.
        needed: What the power calculation asks for.
        note: Why it is not decided, and what was left out.
    """

    verdict: str
    effect: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    networks: int | None = None
    seeds: int | None = None
    needed: str | None = None
    note: str | None = None


@runtime_checkable
class Rule(Protocol):
    """A test with everything fixed; its text says what it asks."""

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Judge by the table, of one data set and model."""


def units_needed(rho: float, power: float, held: int = 0) -> int:
    """Independent units for which Spearman's rho differs from 0 at two-sided 0.05 with this power.

    n = 3 + held + (1 + rho²/2)·((z_0.975 + z_power)/atanh rho)²: Fisher's z with the variance (1 + rho²/2)/(n − 3) of
    Bonett & Wright 2000, doi:10.1007/BF02294183. `held` counts the measures held fixed.
    """
    z = norm.ppf(1 - ALPHA / 2) + norm.ppf(power)
    return ceil(3 + held + (1 + rho**2 / 2) * (z / atanh(rho)) ** 2)


def seeds_needed(effect: float, power: float, alpha: float = ALPHA) -> int:
    """Seeds for which a mean difference of `effect` standard deviations is found with this power.

    Exact for normal differences: the two-sided one-sample t-test at `alpha`, by the noncentral t distribution with
    n − 1 degrees of freedom and noncentrality effect·√n.
    """
    n = max(2, int(((norm.ppf(1 - alpha / 2) + norm.ppf(power)) / effect) ** 2))  # the normal's n is never too large
    while _power(n, effect, alpha) < power:
        n += 1
    return n


def _power(n: int, effect: float, alpha: float) -> float:
    critical, centre = t.ppf(1 - alpha / 2, n - 1), effect * n**0.5
    # The mass on the far side is that of -T beyond the same value; scipy is exact in upper tails.
    return float(nct.sf(critical, n - 1, centre) + nct.sf(critical, n - 1, -centre))


@dataclass(frozen=True)
class Correlation:
    """Over networks, y rises (sign +1) or falls (−1) with x, by Spearman's rho or, with `held`, the partial rho.

    The interval is the 95 % percentile interval of the two-stage bootstrap of `geophone.relate`: seeds, then networks.
    It takes networks of a recipe for independent evidence, which they are not where recipes differ in more than x.
    Hence a second condition: p < 0.05 when whole recipes are exchanged. Decided if both hold. Likewise the power
    calculation counts recipes, and takes `rho` for the correlation between their means; only where all networks share
    one recipe does it count networks. The number of recipes limits what can be decided (`least_rho`), and the note says
    how.

    Attributes:
        x: One measure.
        y: The other.
        sign: The claimed sign of rho.
        held: A measure held fixed.
        among: Recipes, by name or shell pattern; None for all.
        rho: The size that must be found with this power, in (0, 1). The default asks for 9 recipes.
        power: In (0, 1).

    Raises:
        GeophoneError: a sign other than ±1, or rho or power outside of (0, 1).
    """

    x: Measure
    y: Measure
    sign: int
    held: Measure | None = None
    among: str | tuple[str, ...] | None = None
    rho: float = 0.9
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power)
        if not 0 < self.rho < 1:
            raise GeophoneError(f"rho={self.rho} must lie between 0 and 1; the claimed sign is given by `sign`.")

    def __str__(self) -> str:
        held = f", with {self.held} held fixed" if self.held else ""
        among = f", over {listed(self.among)}" if self.among else ""
        name = "partial rank correlation" if self.held else "rank correlation"
        return f"The {name} of {self.x} with {self.y}{held}{among} is {_words(self.sign, 'positive', 'negative')}."

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Correlate over the networks that have all of the measures."""
        recipes = matching(as_tuple(self.among) if self.among else ("*",), table)
        measures = [m for m in (self.x, self.y, self.held) if m is not None]
        found = [measured(table, m, recipes) for m in measures]
        remarks = _remarks(table, measures, found)
        rows = (
            found[0]
            .with_columns(**{f"v{i}": f["value"] for i, f in enumerate(found)})
            .drop_nulls([f"v{i}" for i in range(len(found))])
        )
        n, seeds = len(rows), rows["seed"].n_unique()
        kinds = rows["recipe"].n_unique()
        units, what = (kinds, "recipes") if kinds > 1 else (n, "networks")
        need = units_needed(self.rho, self.power, held=len(measures) - 2)
        needed = f"{need} {what} and {LEAST_SEEDS} seeds"
        enough = units >= need and seeds >= LEAST_SEEDS
        short = "" if enough else f"needs {needed}, has {units} and {seeds}"
        outcome = Outcome(
            NOT_DECIDED,
            "partial ρ" if self.held else "Spearman’s ρ",
            networks=n,
            seeds=seeds,
            needed=needed,
        )
        if n < 4 or seeds < 2:
            return outcome._replace(note=_note(short, *remarks))
        values = [rows[f"v{i}"].to_numpy() for i in range(len(found))]
        rng = np.random.default_rng(crc32(str(self).encode()))
        rho, low, high, p = correlated(*values, seeds=rows["seed"].to_list(), recipes=rows["recipe"].to_list(), rng=rng)
        why = _undecidable(rho, low, p, kinds)
        verdict = _side(low, high, self.sign) if enough and not why else NOT_DECIDED
        return outcome._replace(verdict=verdict, value=rho, low=low, high=high, note=_note(short, why, *remarks))


def least_rho(recipes: int) -> float:
    """About the smallest |rho| between the means of so many recipes that is significant at two-sided 0.05.

    t/√(recipes − 2 + t²), t the 0.975 quantile of Student's t with recipes − 2 degrees of freedom; 1 below 4 recipes.
    More seeds do not make it smaller where networks of a recipe are alike.
    """
    if recipes < 4:
        return 1.0
    quantile = float(t.ppf(1 - ALPHA / 2, recipes - 2))
    return quantile / (recipes - 2 + quantile**2) ** 0.5


def _undecidable(rho: float | None, low: float | None, p: float | None, recipes: int) -> str:
    """What keeps a correlation from being decided, whatever its interval; empty if nothing does."""
    if rho is None:
        return "a measure is the same in all networks, or is fixed by the one held"
    if low is None:
        return "ρ is undefined in over 5 % of the resamples"
    if p is None:
        return "no p: no two recipes have equally many networks to exchange"
    if p < ALPHA:
        return ""
    return (
        f"exchanging whole recipes gives as much by chance (p = {p:.3f}); where networks of a recipe are alike, "
        f"{recipes} recipes decide no |ρ| below about {least_rho(recipes):.2f}"
    )


def correlated(
    x: Array,
    y: Array,
    held: Array | None = None,
    *,
    seeds: Sequence[int],
    recipes: Sequence[str],
    rng: np.random.Generator,
) -> tuple[float | None, float | None, float | None, float | None]:
    """Rho, its interval and the p-value of exchanging recipes, with networks in the order of recipe and seed."""
    rho = float(rank_correlation(x, y, held)[0])
    if np.isnan(rho):
        return None, None, None, None
    drawn = rank_correlation(x, y, held, cluster_weights(seeds, RESAMPLES, rng))
    low = high = None
    if np.isnan(drawn).mean() <= 0.05:
        low, high = (float(q) for q in np.nanquantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]))
    blocks = recipes if len(set(recipes)) > 1 else range(len(x))
    orders = exchanges(blocks, RESAMPLES, rng)
    return rho, low, high, None if orders is None else permutation_p(x, y, held, orders)


@dataclass(frozen=True)
class Selection:
    """A measure in some recipes.

    Attributes:
        measure: What is measured.
        recipes: Names or shell patterns; with several recipes, their mean within each seed.
    """

    measure: Measure
    recipes: str | tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.measure} in {listed(self.recipes)}"


@dataclass(frozen=True)
class Difference:
    """a − b, paired within seeds, or a alone, lies above (sign +1) or below (−1) a threshold.

    Each seed gives one difference: mean of a over its recipes less mean of b over its. A seed in which one of the
    networks has no value is left out, so with the same recipes on both sides all pairs are within recipe and seed.
    The interval is Student's t over seeds.

    Attributes:
        a: What is claimed to be larger, for sign +1.
        b: What it is compared with; None for nothing but the threshold.
        sign: The claimed side.
        threshold: In the measure's unit.
        effect: The distance from the threshold, in standard deviations over seeds, that must be found with this power.
        power: In (0, 1).

    Raises:
        GeophoneError: a sign other than ±1, an effect of 0 or less, or power outside of (0, 1).
    """

    a: Selection
    b: Selection | None = None
    sign: int = 1
    threshold: float = 0.0
    effect: float = 2.0
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power, self.effect)

    def __str__(self) -> str:
        if self.b is None:
            what = _capital(self.a)
        elif self.a.measure == self.b.measure:
            a, b = (listed(side.recipes) for side in (self.a, self.b))
            what = f"{_capital(self.a.measure)}, {a} less {b},"
        elif self.a.recipes == self.b.recipes:
            what = f"{_capital(self.a.measure)} less {self.b.measure}, in {listed(self.a.recipes)},"
        else:
            what = f"{_capital(self.a)} less {self.b}"
        return f"{what} is {_words(self.sign, 'above', 'below')} {self.threshold:g}."

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Compare over the seeds that have all of the networks."""
        selections = [self.a] if self.b is None else [self.a, self.b]
        sides = [(s.measure, matching(as_tuple(s.recipes), table)) for s in selections]
        found = [measured(table, measure, recipes) for measure, recipes in sides]
        both = pl.concat(found)
        seeds = _complete(both)
        means = [
            f.filter(pl.col("seed").is_in(seeds)).group_by("seed").agg(pl.col("value").mean()).sort("seed")
            for f in found
        ]
        difference = means[0]["value"] if self.b is None else means[0]["value"] - means[1]["value"]
        value, low, high = student(difference.to_numpy())
        need = seeds_needed(self.effect, self.power)
        return _over_seeds(
            _side(low, high, self.sign, self.threshold),
            "mean" if self.b is None else "mean difference",
            (value, low, high),
            both.filter(pl.col("seed").is_in(seeds))["job"].n_unique(),
            len(seeds),
            need,
            _remarks(table, [measure for measure, _ in sides], found),
        )


@dataclass(frozen=True)
class Increasing:
    """The measure rises (sign +1) or falls (−1) at every step from each recipe to the next.

    Steps are differences paired within seeds, over the seeds that have all of the recipes. Their Student t intervals
    are simultaneous: 95 % for all together, by Bonferroni. Supported: all on the claimed side. Contradicted: one wholly
    on the other. The number given is the least favourable step, whose interval reaches least far to the claimed side.

    Attributes:
        measure: What is measured.
        recipes: Names in the claimed order, at least two.
        sign: The claimed direction.
        effect: The step, in its standard deviations over seeds, that must be found with this power.
        power: Of each step at the corrected level, in (0, 1).

    Raises:
        GeophoneError: fewer than two recipes, or as in `Difference`.
    """

    measure: Measure
    recipes: tuple[str, ...]
    sign: int = 1
    effect: float = 2.0
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power, self.effect)
        if len(self.recipes) < 2:
            raise GeophoneError(f"Increasing needs at least two recipes in order, got {len(self.recipes)}.")

    def __str__(self) -> str:
        steps = len(self.recipes) - 1
        return (
            f"{_capital(self.measure)} {_words(self.sign, 'rises', 'falls')} at {_every(steps, 'step')} "
            f"from {self.recipes[0]} to {self.recipes[-1]}."
        )

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Compare each recipe with the next."""
        found, values = _matrix(table, self.measure, self.recipes)
        alpha = ALPHA / (len(self.recipes) - 1)
        steps = [student(step, alpha) for step in np.diff(values, axis=1).T]
        sides = [_side(low, high, self.sign) for _, low, high in steps]
        verdict = next((s for s in (CONTRADICTED, NOT_DECIDED) if s in sides), SUPPORTED)
        end = -1 if verdict == CONTRADICTED else 0
        worst = min(range(len(steps)), key=lambda i: _ends(steps[i], self.sign)[end])
        return _over_seeds(
            verdict,
            f"least favourable step, {self.recipes[worst]} to {self.recipes[worst + 1]}",
            steps[worst],
            values.size,
            len(values),
            seeds_needed(self.effect, self.power, alpha),
            _remarks(table, [self.measure], [found]),
        )


@dataclass(frozen=True)
class Best:
    """One of the candidates is better than the reference: higher (sign +1) or lower (−1).

    The best is chosen after looking, so the Student t intervals of candidate − reference, paired within seeds, are
    simultaneous over all candidates, by Bonferroni. Supported: that of some candidate is wholly on the claimed side.
    Contradicted: all are wholly on the other. It is not asked whether a recipe that is no candidate is better still.

    Attributes:
        measure: What is measured.
        candidates: Names or shell patterns of recipes.
        reference: A recipe's name.
        sign: Which side is better.
        effect: The difference, in its standard deviations over seeds, that must be found with this power.
        power: Of each comparison at the corrected level, in (0, 1).

    Raises:
        GeophoneError: as in `Difference`.
    """

    measure: Measure
    candidates: str | tuple[str, ...]
    reference: str = "Standard"
    sign: int = 1
    effect: float = 2.0
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power, self.effect)

    def __str__(self) -> str:
        return (
            f"{_capital(self.measure)} is {_words(self.sign, 'higher', 'lower')} in the best of "
            f"{listed(self.candidates)} than in {self.reference}."
        )

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Compare each candidate with the reference."""
        candidates = [name for name in matching(as_tuple(self.candidates), table) if name != self.reference]
        if not candidates:
            raise NoRows(f"no rows for a candidate other than {self.reference}")
        found, values = _matrix(table, self.measure, [*candidates, self.reference])
        alpha = ALPHA / len(candidates)
        compared = [student(values[:, i] - values[:, -1], alpha) for i in range(len(candidates))]
        sides = [_side(low, high, self.sign) for _, low, high in compared]
        if SUPPORTED in sides:
            verdict = SUPPORTED
        else:
            verdict = NOT_DECIDED if NOT_DECIDED in sides else CONTRADICTED
        by = 0 if verdict == SUPPORTED else 1
        best = max(range(len(candidates)), key=lambda i: _ends(compared[i], self.sign)[by])
        return _over_seeds(
            verdict,
            f"{candidates[best]} less {self.reference}, best of {len(candidates)}",
            compared[best],
            values.size,
            len(values),
            seeds_needed(self.effect, self.power, alpha),
            _remarks(table, [self.measure], [found]),
        )


@dataclass(frozen=True)
class Types:
    """In more than a share of the perturbation types, a recipe is better than another: higher (sign +1) or lower (−1).

    It is better in a type where the mean over seeds of the paired difference is on the claimed side. The interval is
    that of the share when all mean differences are drawn together, 2000 times, from Student's t over seeds: each type
    has its own t distribution, and the types go together as they did over the seeds. (Drawing seeds with replacement
    would do the same for many seeds; of 5 it makes intervals that are too narrow.) It is extended to hold the share
    itself. Supported: wholly above `at_least`. Contradicted: wholly below. The types are these; what others would give
    is not in the interval.

    Attributes:
        measure: What is measured, under perturbations.
        recipe: The one claimed to be better.
        against: The one it is compared with.
        sign: Which side is better.
        at_least: The share, in [0, 1).
        effect: The difference, in its standard deviations over seeds, that must be found with this power in one type.
        power: In (0, 1).

    Raises:
        GeophoneError: a share outside of [0, 1), or as in `Difference`.
    """

    measure: Measure
    recipe: str
    against: str = "Standard"
    sign: int = 1
    at_least: float = 0.5
    effect: float = 2.0
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power, self.effect)
        if not 0 <= self.at_least < 1:
            raise GeophoneError(f"at_least={self.at_least} is no share that could be exceeded. Give one in [0, 1).")

    def __str__(self) -> str:
        return (
            f"{_capital(self.measure)} is {_words(self.sign, 'higher', 'lower')} in {self.recipe} than in "
            f"{self.against} for more than {100 * self.at_least:g} % of the perturbation types."
        )

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Count types over the seeds that have both recipes."""
        found = by_perturbation(table, self.measure, _named((self.recipe, self.against), table))
        seeds = _complete(found)
        rows = found.filter(pl.col("seed").is_in(seeds))
        a, b = (rows.filter(pl.col("recipe") == r).sort("perturbation", "seed") for r in (self.recipe, self.against))
        types = found["perturbation"].n_unique()
        differences = (a["value"] - b["value"]).to_numpy().reshape(types, len(seeds)).T
        rng = np.random.default_rng(crc32(str(self).encode()))
        value, low, high = share(self.sign * differences, rng)
        verdict = NOT_DECIDED
        if low is not None and high is not None:
            verdict = SUPPORTED if low > self.at_least else CONTRADICTED if high < self.at_least else NOT_DECIDED
        what = "share of types" if value is None else f"share of types: {round(value * types)} of {types}"
        need = seeds_needed(self.effect, self.power)
        remarks = _remarks(table, [self.measure], [found])
        return _over_seeds(verdict, what, (value, low, high), rows["job"].n_unique(), len(seeds), need, remarks)


def share(differences: Array, rng: np.random.Generator) -> tuple[float | None, float | None, float | None]:
    """Share of types `[seeds, types]` with a mean above 0, and its interval as in `Types`."""
    n = len(differences)
    if n == 0:
        return None, None, None
    means = differences.mean(axis=0)
    value = float((means > 0).mean())
    if n == 1:
        return value, None, None
    # Weights z of the centred seeds give a mean difference the variance s²/n, the root of chi-square over its degrees
    # of freedom makes it Student's.
    z = rng.normal(size=(RESAMPLES, n)) / np.sqrt(n * rng.chisquare(n - 1, size=(RESAMPLES, 1)))
    drawn = ((means + z @ (differences - means)) > 0).mean(axis=1)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return value, min(float(low), value), max(float(high), value)


def student(differences: Array, alpha: float = ALPHA) -> tuple[float | None, float | None, float | None]:
    """Mean with its two-sided Student t interval; no interval from one difference, nothing from none."""
    n = len(differences)
    if n == 0:
        return None, None, None
    value = float(differences.mean())
    if n == 1:
        return value, None, None
    half = float(t.ppf(1 - alpha / 2, n - 1) * differences.std(ddof=1) / n**0.5)
    return value, value - half, value + half


def _side(low: float | None, high: float | None, sign: int, threshold: float = 0.0) -> str:
    """The verdict of an interval: on which side of the threshold it lies."""
    if low is None or high is None or low <= threshold <= high:
        return NOT_DECIDED
    return SUPPORTED if (low > threshold) == (sign > 0) else CONTRADICTED


def _ends(interval: tuple[float | None, float | None, float | None], sign: int) -> tuple[float, float]:
    """The ends of an interval seen from the claimed side: the less and the more favourable one."""
    _, low, high = interval
    if low is None or high is None:
        return -inf, -inf
    return (low, high) if sign > 0 else (-high, -low)


def _over_seeds(
    verdict: str,
    effect: str,
    interval: tuple[float | None, float | None, float | None],
    networks: int,
    seeds: int,
    need: int,
    remarks: Iterable[str],
) -> Outcome:
    """The outcome of a test over seeds, not decided where these are too few."""
    short = f"needs {need} seeds, has {seeds}" if seeds < need else ""
    verdict = NOT_DECIDED if short else verdict
    return Outcome(verdict, effect, *interval, networks, seeds, f"{need} seeds", _note(short, *remarks))


def _matrix(table: pl.DataFrame, measure: Measure, recipes: Sequence[str]) -> tuple[pl.DataFrame, Array]:
    """The measure of each network, and as `[seeds, recipes]` over the seeds that have all of the recipes."""
    found = measured(table, measure, _named(recipes, table))
    seeds = _complete(found)
    values = {(recipe, seed): value for recipe, seed, value in found.select("recipe", "seed", "value").iter_rows()}
    grid = [[values[recipe, seed] for recipe in recipes] for seed in seeds]
    return found, np.array(grid, dtype=np.float64).reshape(len(seeds), len(recipes))


def _named(recipes: Sequence[str], table: pl.DataFrame) -> Sequence[str]:
    """The same recipes, all of which the table has."""
    for name in recipes:
        if name not in table["recipe"]:
            raise NoRows(f"no rows for the recipe {name}")
    return recipes


def _complete(found: pl.DataFrame) -> list[int]:
    """The seeds in which every recipe has a value, and every perturbation where these are apart."""
    recipes = found["recipe"].n_unique()
    per_seed = found.group_by("seed").agg(pl.col("recipe").n_unique(), missing=pl.col("value").null_count())
    whole = per_seed.filter((pl.col("recipe") == recipes) & (pl.col("missing") == 0))
    return sorted(whole["seed"].to_list())


def _remarks(table: pl.DataFrame, measures: Sequence[Measure], found: Sequence[pl.DataFrame]) -> list[str]:
    """At which level half of the accuracy was found to be gone, and which networks have no value."""
    said: dict[str, None] = {}
    for measure, rows in zip(measures, found, strict=True):
        if isinstance(measure.level, AtHalf):
            levels = half_levels(table, measure).items()
            each = [f"{name} at {level:.3g} ({100 * kept:.0f} %)" for name, (level, kept) in levels]
            more = f" and {len(each) - 3} more" if len(each) > 3 else ""
            said[f"nearest to half of {measure.level.reference}’s clean accuracy: {', '.join(each[:3])}{more}"] = None
        lacking = rows.filter(pl.col("value").is_null()).unique("job", maintain_order=True)
        if len(lacking):
            first = f"{lacking['recipe'][0]}, seed {lacking['seed'][0]}"
            also = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            said[f"left out, for lack of some values of {measure}: {first}{also}"] = None
    return list(said)


def _check(sign: int, power: float, effect: float = 1.0) -> None:
    if sign not in (1, -1):
        raise GeophoneError(f"sign={sign} must be 1 or -1.")
    if not 0 < power < 1:
        raise GeophoneError(f"power={power} must lie between 0 and 1; 0.8 is usual.")
    if not effect > 0:
        raise GeophoneError(f"effect={effect} must be above 0: standard deviations over seeds.")


def _note(*parts: str) -> str | None:
    return "; ".join(part for part in parts if part) or None


def _words(sign: int, up: str, down: str) -> str:
    return up if sign > 0 else down


def _every(n: int, what: str) -> str:
    return f"the {what}" if n == 1 else f"each of {n} {what}s"


def _capital(what: object) -> str:
    return str(what)[:1].upper() + str(what)[1:]
