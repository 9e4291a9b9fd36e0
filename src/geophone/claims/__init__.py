"""Do these networks support what was published? Claims, tests that are fixed beforehand, and verdicts with intervals.

Nothing here opens a network: it reads rows of the table.
"""

from geophone.claims.judge import CLAIM_SCHEMA, CLAIMS, Claim, judge, read_claims, write_claims
from geophone.claims.measures import AtHalf, Measure, measured
from geophone.claims.rules import (
    Best,
    Correlation,
    Difference,
    Increasing,
    Interaction,
    Rule,
    Selection,
    Types,
    seeds_needed,
    units_needed,
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
