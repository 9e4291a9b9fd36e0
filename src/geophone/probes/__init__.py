"""Probes: what is measured of a network over examples, summed as statistics, turned into rows of the table."""

from geophone.probes.checks import AttackChecks, LayerAxes, ModelChecks
from geophone.probes.curves import Curves
from geophone.probes.exemplars import Exemplars
from geophone.probes.gradients import Gradients
from geophone.probes.layer_maps import LayerMap
from geophone.probes.layers import Layers
from geophone.probes.pairs import Pairs
from geophone.probes.probe import Probe
from geophone.probes.survival import Robustness

__all__ = [
    "AttackChecks",
    "Curves",
    "Exemplars",
    "Gradients",
    "LayerAxes",
    "LayerMap",
    "Layers",
    "ModelChecks",
    "Pairs",
    "Probe",
    "Robustness",
]
