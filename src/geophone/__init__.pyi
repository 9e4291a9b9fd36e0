# What `import geophone` offers; `__init__.py` reads this, and imports a name's module when it is first used.
from .analysis.claims import Claim, judge
from .analysis.relate import relate
from .analysis.scores import scores
from .core.errors import GeophoneError
from .core.registry import DATASETS, METRICS, MODELS, PERTURBATIONS, PROBES, RECIPES, load_plugin
from .core.types import Batch, Pair, Recipe
from .data import ImageData, Split, load
from .diagnosis import Scan, attack, compare_networks, scan, scan_probes
from .metrics import Metric, Undefined, metric
from .metrics.geometry import manifold_geometry
from .models import load_model
from .models.tap import record, tap
from .perturb import grid
from .probes.curves import Curve, eps_curve
from .probes.exemplars import exemplar_manifolds
from .probes.gradients import input_gradients
from .probes.layer_maps import Similarity, similarity
from .probes.layers import measure
from .probes.pairs import compare
from .probes.probe import Probe
from .probes.published import published
from .probes.survival import Survival, survival
from .report import write_report
from .study import Job, run_study
from .train import Training, fit

__version__: str
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
    "Recipe",
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
