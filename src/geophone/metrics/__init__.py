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
from geophone.metrics.similarity import cka, normalised_distance, pwcca

__all__ = [
    "Metric",
    "Undefined",
    "accuracy",
    "active_fraction",
    "cka",
    "class_selectivity",
    "class_selectivity_floor",
    "dead_fraction",
    "default_metrics",
    "difference_dim",
    "difference_fraction",
    "eta_squared",
    "loss",
    "margin",
    "mean_response",
    "metric",
    "normalised_distance",
    "participation_ratio",
    "participation_ratio_corrected",
    "pca_dim",
    "pca_fraction",
    "perturbation_l2",
    "perturbation_linf",
    "pwcca",
    "share_interval",
    "two_nn",
]
