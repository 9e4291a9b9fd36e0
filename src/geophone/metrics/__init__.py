"""Metrics: named pure functions of one statistic. Each also takes plain tensors."""

from geophone.metrics.activity import active_fraction, dead_fraction
from geophone.metrics.dimensionality import (
    difference_dim,
    difference_fraction,
    participation_ratio,
    participation_ratio_corrected,
    pca_dim,
    pca_fraction,
)
from geophone.metrics.metric import Metric, Undefined, metric
from geophone.metrics.outcomes import accuracy, loss, margin, share_interval
from geophone.metrics.selectivity import class_selectivity, class_selectivity_floor
from geophone.metrics.similarity import cka, normalised_distance

__all__ = [
    "Metric",
    "Undefined",
    "accuracy",
    "active_fraction",
    "cka",
    "class_selectivity",
    "class_selectivity_floor",
    "dead_fraction",
    "difference_dim",
    "difference_fraction",
    "loss",
    "margin",
    "metric",
    "normalised_distance",
    "participation_ratio",
    "participation_ratio_corrected",
    "pca_dim",
    "pca_fraction",
    "share_interval",
]
