"""Metrics: named pure functions of one statistic. Each also takes plain tensors."""

from geophone.metrics.activity import active_fraction, dead_fraction
from geophone.metrics.dimensionality import (
    difference_dim,
    difference_fraction,
    participation_ratio,
    participation_ratio_corrected,
    pca_dim,
    pca_fraction,
    two_nn,
)
from geophone.metrics.images import perturbation_l2, perturbation_linf
from geophone.metrics.metric import Metric, Undefined, default_metrics, metric
from geophone.metrics.outcomes import accuracy, loss, margin, share_interval
from geophone.metrics.selectivity import class_selectivity, class_selectivity_floor, eta_squared, mean_response
from geophone.metrics.similarity.moments import (
    angular_distance,
    cca,
    cka,
    cka_biased,
    linear_regression_r2,
    normalised_distance,
    procrustes,
    pwcca,
    r2_cca,
    svcca,
)

# isort: split
# Last: they import the others, and metrics are registered, and measured, in the order of imports.
from geophone.metrics.similarity.kernels import (
    cka_deconfounded,
    cka_rbf,
    cka_rbf_kornblith,
    cka_without_first_pc,
    cka_without_pcs,
    cknna,
    knn_alignment,
    knn_overlap,
    mutual_knn,
    rbf_cka,
    rsa_correlation,
    rsa_euclidean,
    rsa_whitened,
)
from geophone.metrics.similarity.pairwise import Alike, alike, compact

# isort: split
from geophone.metrics.manifolds import (
    METRICS_OF_MANIFOLDS,
    ClassPoints,
    center_correlation,
    glue_metrics,
    manifold_capacity,
    manifold_capacity_floor,
    manifold_center_rank,
    manifold_dimension,
    manifold_radius,
)

__all__ = [
    "METRICS_OF_MANIFOLDS",
    "Alike",
    "ClassPoints",
    "Metric",
    "Undefined",
    "accuracy",
    "active_fraction",
    "alike",
    "angular_distance",
    "cca",
    "center_correlation",
    "cka",
    "cka_biased",
    "cka_deconfounded",
    "cka_rbf",
    "cka_rbf_kornblith",
    "cka_without_first_pc",
    "cka_without_pcs",
    "cknna",
    "class_selectivity",
    "class_selectivity_floor",
    "compact",
    "dead_fraction",
    "default_metrics",
    "difference_dim",
    "difference_fraction",
    "eta_squared",
    "glue_metrics",
    "knn_alignment",
    "knn_overlap",
    "linear_regression_r2",
    "loss",
    "manifold_capacity",
    "manifold_capacity_floor",
    "manifold_center_rank",
    "manifold_dimension",
    "manifold_radius",
    "margin",
    "mean_response",
    "metric",
    "mutual_knn",
    "normalised_distance",
    "participation_ratio",
    "participation_ratio_corrected",
    "pca_dim",
    "pca_fraction",
    "perturbation_l2",
    "perturbation_linf",
    "procrustes",
    "pwcca",
    "r2_cca",
    "rbf_cka",
    "rsa_correlation",
    "rsa_euclidean",
    "rsa_whitened",
    "share_interval",
    "svcca",
    "two_nn",
]
