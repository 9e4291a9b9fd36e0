"""How often every rule of `geophone.analysis.claims` decides falsely at its boundary; see docs/statistics.md.

At a boundary the claim does not hold and its contrary does not either, by as little as can be, so that either verdict
is an error. The level of both together is 5 %. Each row is seeded by its name.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from scipy.stats import beta

from geophone.analysis.claims.evidence import (
    ALPHA,
    Array,
    Evidence,
    best_of_several,
    correlated,
    least_of_all,
    mean_beyond,
    share_of_types,
    slopes,
    two_sided,
)
from geophone.analysis.inference import holm

RUNS, RESAMPLES = 3000, 200
STEP = 1 / 500
TYPES, RECIPES = 18, 9
Rng = np.random.Generator
Noise = Callable[[Rng, tuple[int, ...]], Array]


def normal(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Standard normal."""
    return rng.normal(size=shape)


def fine(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Two accuracies in steps of 1/500, each with a standard deviation of 5 steps, and their difference."""
    a, b = (np.round(400 + 5 * rng.normal(size=shape)) * STEP for _ in range(2))
    return a - b


def coarse(rng: Rng, shape: tuple[int, ...]) -> Array:
    """The same with a standard deviation of half a step: most differences are 0 or one step."""
    a, b = (np.round(400 + 0.5 * rng.normal(size=shape)) * STEP for _ in range(2))
    return a - b


def heavy(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, size=shape)


def coin(rng: Rng, shape: tuple[int, ...]) -> Array:
    """One step up or down, and nothing else."""
    return rng.choice([-STEP, STEP], size=shape)


def skewed(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Exponential about its mean: no rule allows for it."""
    return rng.exponential(size=shape) - 1


NOISES: dict[str, Noise] = {
    "normal": normal,
    "steps of 1/500, sd 5 steps": fine,
    "steps of 1/500, sd half a step": coarse,
    "heavy tails (t, 3 df)": heavy,
}


class Case(NamedTuple):
    """A rule at a boundary: what it finds in so many seeds, drawn anew."""

    rule: str
    boundary: str
    noise: str
    draw: Callable[[Rng, int], Evidence]


def together(noise: Noise, rng: Rng, n: int, m: int) -> Array:
    """Noise of m types in n seeds, half of whose variance the types of a seed share."""
    return (noise(rng, (n, m)) + noise(rng, (n, 1))) / 2**0.5


def recipes(rng: Rng, n: int, step: float = 0.0) -> dict[str, Any]:
    """Selectivity of nine recipes with n seeds, and an accuracy that differs between them and goes its own way."""
    level, seed = rng.normal(size=(RECIPES, 1)), rng.normal(size=(1, n))
    x = np.arange(RECIPES)[:, None] + 0.1 * rng.normal(size=(RECIPES, n))
    y = level + 0.5 * seed + 0.5 * rng.normal(size=(RECIPES, n))
    z = rng.normal(size=(RECIPES, 1)) + 0.3 * rng.normal(size=(RECIPES, n))
    y = np.round(y / step) * step if step else y
    names = [str(r) for r in range(RECIPES) for _ in range(n)]
    return {"x": x.ravel(), "y": y.ravel(), "z": z.ravel(), "seeds": list(range(n)) * RECIPES, "recipes": names}


def correlation(rng: Rng, n: int, step: float = 0.0, held: bool = False, alike: bool = False) -> Evidence:
    made = recipes(rng, n, step)
    z = made.pop("z")
    if held:  # both go with z, and with nothing else
        made["x"], made["y"] = made["x"] + 3 * z, made["y"] + 3 * z
    if alike:  # recipes do not differ in accuracy at all
        made["y"] = rng.normal(size=made["y"].shape)
    return correlated(**made, held=z if held else None, rng=rng, resamples=RESAMPLES)[0]


def slope(rng: Rng, n: int, noise: Noise) -> Evidence:
    """Two measures that rise with selectivity alike, though not along a straight line."""
    x = np.linspace(0.07, 0.62, RECIPES) + 0.02 * rng.normal(size=(n, RECIPES))
    common = np.sin(5 * x) + 0.1 * rng.normal(size=(n, 1))
    a, b = (common + 0.05 * noise(rng, (n, RECIPES)) for _ in range(2))
    found = slopes(x, a - b)
    return Evidence() if found is None else mean_beyond(found, -1)


def types(rng: Rng, n: int, noise: Noise, large: float, small: float) -> Evidence:
    """Half of the types far on one side, half hardly on the other, in standard deviations over seeds."""
    effect = np.repeat([large, small], TYPES // 2) * noise(np.random.default_rng(0), (1000, 1)).std()
    return share_of_types(effect + together(noise, rng, n, TYPES), 0.5)


def rules_over_seeds(name: str, noise: Noise) -> Iterator[Case]:
    """The rules that rest on Student's t, at their boundaries, under one kind of noise."""
    far = 8 * float(noise(np.random.default_rng(0), (1000,)).std()) * (np.arange(8) > 0)  # in all but the first
    draws: list[tuple[str, str, Callable[[Rng, int], Evidence]]] = [
        ("Difference", "mean at the threshold", lambda r, n: mean_beyond(noise(r, (n,)), 1)),
        ("Increasing", "8 steps, none rises", lambda r, n: least_of_all(noise(r, (n, 8)), 1)),
        ("Increasing", "8 steps, one does not rise", lambda r, n: least_of_all(noise(r, (n, 8)) + far, 1)),
        ("Best", "8 candidates, none better", lambda r, n: best_of_several(together(noise, r, n, 8), 1)),
        ("Best", "8 candidates, one as good, 7 worse", lambda r, n: best_of_several(noise(r, (n, 8)) - far, 1)),
        ("Types", "9 of 18 at +8, 9 at −1e-6", lambda r, n: types(r, n, noise, 8, -1e-6)),
        ("Types", "9 of 18 at −8, 9 at +1e-6", lambda r, n: types(r, n, noise, -8, 1e-6)),
        ("Types", "all 18 at 0", lambda r, n: types(r, n, noise, 0, 0)),
        ("Interaction", "equal slopes", lambda r, n: slope(r, n, noise)),
    ]
    yield from (Case(rule, boundary, name, draw) for rule, boundary, draw in draws)


def cases() -> Iterator[Case]:
    """Every rule, at its boundaries, under each kind of noise."""
    for name, noise in NOISES.items():
        yield from rules_over_seeds(name, noise)
    yield Case("Correlation", "recipes differ at random", "normal", correlation)
    yield Case("Correlation", "recipes do not differ", "normal", lambda r, n: correlation(r, n, alike=True))
    yield Case("Correlation", "recipes differ at random", "in coarse steps", lambda r, n: correlation(r, n, step=0.5))
    yield Case("Correlation, one held", "both go with that", "normal", lambda r, n: correlation(r, n, held=True))


def outside() -> Iterator[Case]:
    """What Student's t does not allow for: differences that are far from symmetric, or take two values alone."""
    for name, noise in (("exponential", skewed), ("one step up or down", coin)):
        yield from (case for case in rules_over_seeds(name, noise) if case.rule != "Interaction")


def old_types(rng: Rng, n: int, noise: Noise, large: float, small: float) -> Evidence:
    """`Types` as it was: the share of signs, with all means drawn from Student's t together."""
    effect = np.repeat([large, small], TYPES // 2)
    columns = effect + together(noise, rng, n, TYPES)
    means = columns.mean(axis=0)
    z = rng.normal(size=(500, n)) / np.sqrt(n * rng.chisquare(n - 1, size=(500, 1)))
    drawn = ((means + z @ (columns - means)) > 0).mean(axis=1)
    share = (means > 0).mean()
    low, high = (float(q) for q in np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]))
    low, high = min(low, share), max(high, share)
    return Evidence(float(share), low, high, 0.0 if low > 0.5 else 1.0, 0.0 if high < 0.5 else 1.0)


def family(rng: Rng, n: int, size: int = 24) -> bool:
    """Whether any verdict on a study's tests is false, half at their boundary and half with effects of all sizes."""
    effects = np.concatenate([np.zeros(size // 2), rng.choice([-1, 1], size // 2) * rng.uniform(0.2, 6, size // 2)])
    found = [
        mean_beyond(effect + column, 1) for effect, column in zip(effects, rng.normal(size=(size, n)), strict=True)
    ]
    decided = [p is not None and p < ALPHA for p in holm([two_sided(one) for one in found])]
    signs = [1 if one.supports < one.contradicts else -1 for one in found]  # type: ignore[operator]
    return any(d and sign != np.sign(e) for d, sign, e in zip(decided, signs, effects, strict=True))


def rate(case: Case, seeds: int, runs: int = RUNS) -> float:
    """Share of runs in which the rule decides, either way."""
    rng = np.random.default_rng(crc32(f"{case[:3]} {seeds}".encode()))
    p = [two_sided(case.draw(rng, seeds)) for _ in range(runs)]
    return sum(one is not None and one < ALPHA for one in p) / runs


def lower(share: float, runs: int) -> float:
    """Lower end of the exact two-sided 99 % interval of a rate (Clopper & Pearson)."""
    hits = round(share * runs)
    return float(beta.ppf(0.005, hits, runs - hits + 1)) if hits else 0.0


def claims(repeats: int, device: str) -> None:
    """Print a row for each rule, boundary, noise and number of seeds."""
    print(f"{RUNS:,} runs a row; correlations with {RESAMPLES} resamples and as many exchanges each.\n")
    _print(cases())
    rng = np.random.default_rng(0)
    found = [sum(family(rng, seeds) for _ in range(RUNS)) / RUNS for seeds in (5, 10)]
    print(
        f"| 24 claims together, Holm | 12 at 0, 12 not; any false | normal | {' | '.join(f'{f:.3f}' for f in found)} |"
    )
    print("\noutside of what the rules allow for:\n")
    _print(outside())


def _print(some: Iterator[Case]) -> None:
    print("| rule | boundary | noise | 5 seeds | 10 seeds |\n|---|---|---|---|---|")
    for case in some:
        found = [rate(case, seeds) for seeds in (5, 10)]
        cells = [f"{one:.3f}{'' if one <= 0.06 and lower(one, RUNS) <= ALPHA else ' ✗'}" for one in found]
        print(f"| {' | '.join((*case[:3], *cells))} |", flush=True)
