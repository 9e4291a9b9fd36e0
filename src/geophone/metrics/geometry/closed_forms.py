"""Capacities that are known in closed form: what estimates are held against."""

from math import inf, sqrt

from geophone.core.errors import GeophoneError


def point_capacity(kappa: float = 0.0) -> float:
    """Capacity of points at margin κ: 1/α₀(κ) = ∫_{−κ}^{∞} Dt (t + κ)² = (1 + κ²) Φ(κ) + κ φ(κ). It is 2 at κ = 0.

    References:
        Gardner 1988, doi:10.1088/0305-4470/21/1/030.
    """
    from scipy.stats import norm

    return float(1 / ((1 + kappa**2) * norm.cdf(kappa) + kappa * norm.pdf(kappa)))


def ball_capacity(radius: float, dimension: int, kappa: float = 0.0) -> float:
    """Capacity of D-dimensional balls of radius R, in units of their centre's length, at margin κ.

        1/α = ∫ χ_D(r) dr { ∫_{κ−r/R}^{κ+Rr} Dt (Rr − t + κ)²/(1 + R²) + ∫_{−∞}^{κ−r/R} Dt ((t − κ)² + r²) }

    At κ = 0 it is 2/(D + 1) for R = 1; as R grows it falls to 1/(D + ½), and as R falls it rises to 2.

    Args:
        radius: R, above 0.
        dimension: D, at least 1.
        kappa: The margin.

    Raises:
        GeophoneError: a radius or dimension outside of that.

    References:
        Chung, Lee & Sompolinsky 2018, arXiv:1710.06487, section on balls.
    """
    from scipy.integrate import quad
    from scipy.stats import chi, norm

    if not 0 < radius < inf or dimension < 1 or dimension != int(dimension):
        raise GeophoneError(
            f"radius={radius}, dimension={dimension}: a ball has a finite radius above 0 and a whole dimension from 1."
        )

    def at(r: float) -> float:
        low, high = kappa - r / radius, kappa + radius * r
        edge = _second_moment(low, high, high) / (1 + radius**2)
        return edge + _second_moment(-inf, low, kappa) + r**2 * float(norm.cdf(low))

    density = chi(dimension).pdf
    middle = sqrt(dimension)
    inverse = sum(
        quad(lambda r: density(r) * at(r), start, stop, limit=200, epsabs=1e-12, epsrel=1e-11)[0]
        for start, stop in ((0, middle), (middle, middle + 12))
    )
    return float(1 / inverse)


def _second_moment(low: float, high: float, centre: float) -> float:
    """∫_low^high Dt (t − centre)², by partial integration."""
    from scipy.stats import norm

    a, b = norm.pdf(low), norm.pdf(high)
    first = a * (low - 2 * centre) if low > -inf else 0.0
    last = b * (high - 2 * centre) if high < inf else 0.0
    return float((1 + centre**2) * (norm.cdf(high) - norm.cdf(low)) + first - last)
