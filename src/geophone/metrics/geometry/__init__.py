"""The numerical core of population geometry: manifold capacity and what goes with it, on point clouds alone."""

from geophone.metrics.geometry.closed_forms import ball_capacity, point_capacity
from geophone.metrics.geometry.dimensions import DataDimensions, data_dimensions, two_nn_dimension
from geophone.metrics.geometry.glue import Glue, GluePairs, glue, glue_pairs
from geophone.metrics.geometry.mean_field import ManifoldGeometry, manifold_geometry
from geophone.metrics.geometry.separability import Separability, linear_separability, separabilities
from geophone.metrics.geometry.simulated import SimulatedCapacity, simulated_capacity

__all__ = [
    "DataDimensions",
    "Glue",
    "GluePairs",
    "ManifoldGeometry",
    "Separability",
    "SimulatedCapacity",
    "ball_capacity",
    "data_dimensions",
    "glue",
    "glue_pairs",
    "linear_separability",
    "manifold_geometry",
    "point_capacity",
    "separabilities",
    "simulated_capacity",
    "two_nn_dimension",
]
