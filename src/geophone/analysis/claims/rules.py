"""The tests that decide a claim, with all that could sway them fixed before the data are seen.

A test is called with the table and gives an `Outcome`. None is decided on fewer seeds than `LEAST_SEEDS` and its power
calculation ask for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
import polars as pl

from geophone.analysis.claims.evidence import (
    ALPHA,
    Array,
    Evidence,
    best_of_several,
    correlated,
    fewest_types,
    least_of_all,
    mean_beyond,
    share_of_types,
    slopes,
    two_sided,
)
from geophone.analysis.claims.measures import (
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
from geophone.analysis.claims.power import LEAST_SEEDS, least_rho, seeds_needed, units_needed
from geophone.core.errors import GeophoneError

SUPPORTED, CONTRADICTED, NOT_DECIDED = "supported", "contradicted", "not decided"
VERDICTS = (SUPPORTED, CONTRADICTED, NOT_DECIDED)


class Outcome(NamedTuple):
    """What a test found.

    Attributes:
        effect: What the number is.
        value: The number.
        low: Lower end of its 95 % interval.
        high: Upper end.
        supports: One-sided p-value of "the claim does not hold"; None where the test can't be judged.
        contradicts: One-sided p-value of "the contrary does not hold".
        networks: How many went into it.
        seeds: How many seeds these have.
        needed: What the power calculation asks for.
        note: Why it is not decided, and what was left out.
    """

    effect: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    supports: float | None = None
    contradicts: float | None = None
    networks: int | None = None
    seeds: int | None = None
    needed: str | None = None
    note: str | None = None

    @property
    def p(self) -> float | None:
        """Twice the smaller of both one-sided p-values; None where the test can't be judged."""
        return two_sided(Evidence(supports=self.supports, contradicts=self.contradicts))

    @property
    def side(self) -> str:
        """The verdict that it would be, were p small enough."""
        if self.supports is None or self.contradicts is None:
            return NOT_DECIDED
        return SUPPORTED if self.supports <= self.contradicts else CONTRADICTED

    @property
    def verdict(self) -> str:
        """The verdict of this test alone, at two-sided 5 %."""
        return self.side if self.p is not None and self.p < ALPHA else NOT_DECIDED


@runtime_checkable
class Rule(Protocol):
    """A test with everything fixed; its text says what it asks."""

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Judge by the table, of one data set and model."""


@dataclass(frozen=True)
class Correlation:
    """Over networks, y rises (sign +1) or falls (−1) with x, by Spearman's rho or, with `held`, the partial rho.

    The interval is the 95 % percentile interval of the two-stage bootstrap of `relate`: seeds, then networks.
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
        outcome = Outcome("partial ρ" if self.held else "Spearman’s ρ", networks=n, seeds=seeds, needed=needed)
        if n < 4 or seeds < 2:
            return outcome._replace(note=_note(short, *remarks))
        values = [rows[f"v{i}"].to_numpy() for i in range(len(found))]
        rng = np.random.default_rng(crc32(str(self).encode()))
        names = rows["recipe"].to_list()
        evidence, p = correlated(*values, sign=self.sign, seeds=rows["seed"].to_list(), recipes=names, rng=rng)
        note = _note(short, evidence.why or _by_chance(p, kinds), *remarks)
        outcome = outcome._replace(value=evidence.value, low=evidence.low, high=evidence.high, note=note)
        if not enough:
            return outcome
        return outcome._replace(supports=evidence.supports, contradicts=evidence.contradicts)


def _by_chance(p: float | None, recipes: int) -> str:
    """What keeps a correlation from being decided, whatever its interval; empty if nothing does."""
    if p is None or p < ALPHA:
        return ""
    return (
        f"exchanging whole recipes gives as much by chance (p = {p:.3f}); where networks of a recipe are alike, "
        f"{recipes} recipes decide no |ρ| below about {least_rho(recipes):.2f}"
    )


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
        return _over_seeds(
            mean_beyond(difference.to_numpy(), self.sign, self.threshold),
            "mean" if self.b is None else "mean difference",
            both.filter(pl.col("seed").is_in(seeds))["job"].n_unique(),
            len(seeds),
            seeds_needed(self.effect, self.power),
            _remarks(table, [measure for measure, _ in sides], found),
        )


@dataclass(frozen=True)
class Interaction:
    """a changes more with x than b does: its slope on x is larger (sign +1) or smaller (−1), paired within seeds.

    In each seed the slope of a − b on x over the recipes is taken, by least squares, which is the slope of a less that
    of b; the interval is Student's t over seeds. The recipes are taken as they are: it is not asked what others, in
    other steps of x, would give. A seed in which one of the networks has no value is left out.

    Attributes:
        x: What both change with.
        a: What is claimed to have the larger slope, for sign +1.
        b: What it is compared with, in the same unit.
        sign: The claimed side of slope of a less slope of b.
        among: Recipes, by name or shell pattern; at least three.
        effect: The difference of slopes, in standard deviations over seeds, that must be found with this power.
        power: In (0, 1).

    Raises:
        GeophoneError: as in `Difference`.
    """

    x: Measure
    a: Measure
    b: Measure
    sign: int
    among: str | tuple[str, ...]
    effect: float = 2.0
    power: float = 0.8

    def __post_init__(self) -> None:
        _check(self.sign, self.power, self.effect)

    def __str__(self) -> str:
        return (
            f"The slope of {self.a} on {self.x}, less that of {self.b}, over {listed(self.among)}, "
            f"is {_words(self.sign, 'above', 'below')} 0."
        )

    def __call__(self, table: pl.DataFrame) -> Outcome:
        """Compare slopes over the seeds that have all of the networks."""
        recipes = matching(as_tuple(self.among), table)
        if len(recipes) < 3:
            raise NoRows(f"no rows for a third recipe of {listed(self.among)}: a slope needs three")
        measures = [self.x, self.a, self.b]
        grids = [_matrix(table, measure, recipes) for measure in measures]
        found = [rows for rows, _, _ in grids]
        seeds = [seed for seed in grids[0][2] if all(seed in complete for _, _, complete in grids)]
        x, a, b = (values[[complete.index(seed) for seed in seeds]] for _, values, complete in grids)
        slope = slopes(x, a - b)
        if slope is None:
            made = Evidence(why=f"{self.x} is the same in all recipes of a seed")
        else:
            made = mean_beyond(slope, self.sign)
        return _over_seeds(
            made,
            "slope less slope",
            x.size,
            len(seeds),
            seeds_needed(self.effect, self.power),
            _remarks(table, measures, found),
        )


@dataclass(frozen=True)
class Increasing:
    """The measure rises (sign +1) or falls (−1) at every step from each recipe to the next.

    Steps are differences paired within seeds, over the seeds that have all of the recipes, each with a Student t-test.
    All of them must rise, so the p-value for the claim is the largest of theirs; one that falls is enough against it,
    so that p-value is the smallest, times their number. The number given is the least favourable step; see
    `least_of_all` for its interval, which lies wholly on one side of 0 just where the test is decided.

    Attributes:
        measure: What is measured.
        recipes: Names in the claimed order, at least two.
        sign: The claimed direction.
        effect: The step, in its standard deviations over seeds, that must be found with this power.
        power: Of each step, in (0, 1).

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
        found, values, seeds = _matrix(table, self.measure, self.recipes)
        steps = least_of_all(np.diff(values, axis=1), self.sign)
        return _over_seeds(
            steps,
            f"least favourable step, {self.recipes[steps.place]} to {self.recipes[steps.place + 1]}",
            values.size,
            len(seeds),
            seeds_needed(self.effect, self.power),
            _remarks(table, [self.measure], [found]),
        )


@dataclass(frozen=True)
class Best:
    """One of the candidates is better than the reference: higher (sign +1) or lower (−1).

    Each difference candidate − reference, paired within seeds, has a Student t-test. The best is chosen after looking,
    so the p-value for the claim is the smallest of theirs times their number; against it, all must be worse, so that
    p-value is the largest. The number given is the best; see `best_of_several` for its interval. It is not asked
    whether a recipe that is no candidate is better still.

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
        found, values, seeds = _matrix(table, self.measure, [*candidates, self.reference])
        best = best_of_several(values[:, :-1] - values[:, -1:], self.sign)
        return _over_seeds(
            best,
            f"{candidates[best.place]} less {self.reference}, best of {len(candidates)}",
            values.size,
            len(seeds),
            seeds_needed(self.effect, self.power, ALPHA / len(candidates)),
            _remarks(table, [self.measure], [found]),
        )


@dataclass(frozen=True)
class Types:
    """In more than a share of the perturbation types, a recipe is better than another: higher (sign +1) or lower (−1).

    The mean over seeds of the paired difference in a type has a one-sided t-test to either side, and Holm's step-down
    over all types bounds how many lie on the claimed side, and how many on the other: the interval is that of the share
    on the claimed side, 95 % whatever the dependence between types (`share_of_types`). Supported: wholly above
    `at_least`. Contradicted: wholly below. So a type counts only where its own difference is clear; types whose
    difference is near 0 leave the claim open. The types are these; what others would give is not in the interval.

    Attributes:
        measure: What is measured, under perturbations.
        recipe: The one claimed to be better.
        against: The one it is compared with.
        sign: Which side is better.
        at_least: The share, in [0, 1).
        effect: The difference, in its standard deviations over seeds, that must be found with this power in one type.
        power: Of one type at the level to which Holm's procedure has come when the claim is decided, in (0, 1).

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
        made = share_of_types(self.sign * differences, self.at_least)
        what = "share of types" if made.value is None else f"share of types: {round(made.value * types)} of {types}"
        need = seeds_needed(self.effect, self.power, ALPHA / (types + 1 - fewest_types(self.at_least, types)))
        remarks = _remarks(table, [self.measure], [found])
        return _over_seeds(made, what, rows["job"].n_unique(), len(seeds), need, remarks)


def _over_seeds(found: Evidence, effect: str, networks: int, seeds: int, need: int, remarks: Iterable[str]) -> Outcome:
    """The outcome of a test over seeds, without p-values where these are too few."""
    need = max(LEAST_SEEDS, need)
    short = f"needs {need} seeds, has {seeds}" if seeds < need else ""
    supports, contradicts = (None, None) if short else (found.supports, found.contradicts)
    note = _note(short, found.why, *remarks)
    numbers = (found.value, found.low, found.high, supports, contradicts)
    return Outcome(effect, *numbers, networks, seeds, f"{need} seeds", note)


def _matrix(table: pl.DataFrame, measure: Measure, recipes: Sequence[str]) -> tuple[pl.DataFrame, Array, list[int]]:
    """The measure of each network; as `[seeds, recipes]` over the seeds that have all of the recipes; these seeds."""
    found = measured(table, measure, _named(recipes, table))
    seeds = _complete(found)
    values = {(recipe, seed): value for recipe, seed, value in found.select("recipe", "seed", "value").iter_rows()}
    grid = [[values[recipe, seed] for recipe in recipes] for seed in seeds]
    return found, np.array(grid, dtype=np.float64).reshape(len(seeds), len(recipes)), seeds


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
