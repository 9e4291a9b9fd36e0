"""Geophone: shake a network's input, record how the disturbance travels, read why the network holds or breaks.

>>> import geophone
>>> geophone.scan(my_model, "fashion_mnist_mini", "GaussianNoise, LinfPGD", out="report.html")
>>> rows = geophone.measure(my_model, (images, labels), geophone.grid("LinfPGD(eps=8/255)"))
>>> for batch in geophone.record(my_model, geophone.load("mnist").test.batches(256), ["layer*.relu*"]): ...
"""

from geophone.analysis.claims import Claim, judge
from geophone.analysis.relate import relate
from geophone.analysis.scores import scores
from geophone.core.errors import GeophoneError
from geophone.core.registry import DATASETS, METRICS, MODELS, PERTURBATIONS, RECIPES, load_plugin
from geophone.core.types import Batch, Pair
from geophone.data import ImageData, Split, load
from geophone.metrics import Metric, Undefined, metric
from geophone.metrics.geometry import manifold_geometry
from geophone.models import load_model
from geophone.models.tap import record, tap
from geophone.perturb import grid
from geophone.probes.curves import Curve, eps_curve
from geophone.probes.exemplars import exemplar_manifolds
from geophone.probes.gradients import input_gradients
from geophone.probes.layer_maps import Similarity, similarity
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.probes.probe import PROBES, Probe
from geophone.probes.published import published
from geophone.probes.survival import Survival, survival
from geophone.report import write_report
from geophone.scan import Scan, attack, compare_networks, scan, scan_probes
from geophone.study import Job, run_study
from geophone.train import Training, fit

# isort: split
# Last: it registers the studies that come with the package.
from geophone import studies as studies

__version__ = "0.1.0"
__all__ = [
    "DATASETS",
    "METRICS",
    "MODELS",
    "PERTURBATIONS",
    "PROBES",
    "RECIPES",
    "Batch",
    "Claim",
    "Curve",
    "GeophoneError",
    "ImageData",
    "Job",
    "Metric",
    "Pair",
    "Probe",
    "Scan",
    "Similarity",
    "Split",
    "Survival",
    "Training",
    "Undefined",
    "attack",
    "compare",
    "compare_networks",
    "eps_curve",
    "exemplar_manifolds",
    "fit",
    "grid",
    "input_gradients",
    "judge",
    "load",
    "load_model",
    "load_plugin",
    "manifold_geometry",
    "measure",
    "metric",
    "published",
    "record",
    "relate",
    "run_study",
    "scan",
    "scan_probes",
    "scores",
    "similarity",
    "survival",
    "tap",
    "write_report",
]
