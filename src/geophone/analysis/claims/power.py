"""How many seeds and networks a test needs."""

from math import atanh, ceil

from geophone.analysis.claims.evidence import ALPHA

LEAST_SEEDS = 5
"""Seeds below which no rule decides anything, whatever its power calculation says.

Five is what the two-sided t-test needs to find an effect of two standard deviations with power 0.8, the default of
every rule; the largest error rates of docs/statistics.md are measured there. With three, the t-test's power calculation
would let effects of four standard deviations decide, and the true spread may be six times what three seeds show.
"""


def units_needed(rho: float, power: float, held: int = 0) -> int:
    """Independent units for which Spearman's rho differs from 0 at two-sided 0.05 with this power.

    n = 3 + held + (1 + rho²/2)·((z_0.975 + z_power)/atanh rho)²: Fisher's z with the variance (1 + rho²/2)/(n − 3) of
    Bonett & Wright 2000, doi:10.1007/BF02294183. `held` counts the measures held fixed.
    """
    from scipy.stats import norm

    z = norm.ppf(1 - ALPHA / 2) + norm.ppf(power)
    return ceil(3 + held + (1 + rho**2 / 2) * (z / atanh(rho)) ** 2)


def seeds_needed(effect: float, power: float, alpha: float = ALPHA) -> int:
    """Seeds for which a mean difference of `effect` standard deviations is found with this power.

    Exact for normal differences: the two-sided one-sample t-test at `alpha`, by the noncentral t distribution with
    n − 1 degrees of freedom and noncentrality effect·√n.
    """
    from scipy.stats import norm

    n = max(2, int(((norm.ppf(1 - alpha / 2) + norm.ppf(power)) / effect) ** 2))  # the normal's n is never too large
    while _power(n, effect, alpha) < power:
        n += 1
    return n


def _power(n: int, effect: float, alpha: float) -> float:
    from scipy.stats import nct, t

    critical, centre = t.ppf(1 - alpha / 2, n - 1), effect * n**0.5
    # The mass on the far side is that of -T beyond the same value; scipy is exact in upper tails.
    return float(nct.sf(critical, n - 1, centre) + nct.sf(critical, n - 1, -centre))


def least_rho(recipes: int) -> float:
    """About the smallest |rho| between the means of so many recipes that is significant at two-sided 0.05.

    t/√(recipes − 2 + t²), t the 0.975 quantile of Student's t with recipes − 2 degrees of freedom; 1 below 4 recipes.
    More seeds do not make it smaller where networks of a recipe are alike.
    """
    from scipy.stats import t

    if recipes < 4:
        return 1.0
    quantile = float(t.ppf(1 - ALPHA / 2, recipes - 2))
    return quantile / (recipes - 2 + quantile**2) ** 0.5
