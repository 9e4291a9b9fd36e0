"""Do these networks support what was published? Claims, tests that are fixed beforehand, and verdicts with intervals.

Nothing here opens a network: it reads rows of the table.
"""

from geophone.analysis.claims.judge import CLAIM_SCHEMA, CLAIMS, Claim, judge, read_claims, write_claims
from geophone.analysis.claims.measures import AtHalf, Measure, measured
from geophone.analysis.claims.power import seeds_needed, units_needed
from geophone.analysis.claims.rules import (
    Best,
    Correlation,
    Difference,
    Increasing,
    Interaction,
    Rule,
    Selection,
    Types,
)

__all__ = [
    "CLAIMS",
    "CLAIM_SCHEMA",
    "AtHalf",
    "Best",
    "Claim",
    "Correlation",
    "Difference",
    "Increasing",
    "Interaction",
    "Measure",
    "Rule",
    "Selection",
    "Types",
    "judge",
    "measured",
    "read_claims",
    "seeds_needed",
    "units_needed",
    "write_claims",
]
