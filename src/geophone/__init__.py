"""Geophone: shake a network's input, record how the disturbance travels, read why the network holds or breaks.

>>> import geophone
>>> geophone.scan(my_model, "fashion_mnist_mini", "GaussianNoise, LinfPGD", out="report.html")
>>> rows = geophone.measure(my_model, (images, labels), geophone.grid("LinfPGD(eps=8/255)"))
>>> for batch in geophone.record(my_model, geophone.load("mnist").test.batches(256), ["layer*.relu*"]): ...
"""

from geophone.claims import Claim, judge
from geophone.data import ImageData, Split, load
from geophone.errors import GeophoneError
from geophone.geometry import manifold_geometry
from geophone.gradients import input_gradients
from geophone.manifolds import exemplar_manifolds
from geophone.measure import compare, measure
from geophone.metrics import Metric, Undefined, metric
from geophone.models import load_model
from geophone.perturb import grid
from geophone.published import published
from geophone.record import record, tap
from geophone.registry import DATASETS, METRICS, MODELS, PERTURBATIONS, RECIPES, load_plugin
from geophone.relate import relate
from geophone.report import write_report
from geophone.robustness import Curve, Survival, eps_curve, survival
from geophone.scan import Scan, attack, compare_networks, scan
from geophone.scores import scores
from geophone.similarity import Similarity, similarity
from geophone.study import Job, run_study
from geophone.train import Training, fit
from geophone.types import Batch, Pair

__version__ = "0.1.0"
__all__ = [
    "DATASETS",
    "METRICS",
    "MODELS",
    "PERTURBATIONS",
    "RECIPES",
    "Batch",
    "Claim",
    "Curve",
    "GeophoneError",
    "ImageData",
    "Job",
    "Metric",
    "Pair",
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
    "scores",
    "similarity",
    "survival",
    "tap",
    "write_report",
]
