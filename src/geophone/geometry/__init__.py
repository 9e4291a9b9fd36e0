"""The numerical core of population geometry: manifold capacity and what goes with it, on point clouds alone."""

from geophone.geometry.closed_forms import ball_capacity, point_capacity
from geophone.geometry.mean_field import ManifoldGeometry, manifold_geometry

__all__ = ["ManifoldGeometry", "ball_capacity", "manifold_geometry", "point_capacity"]
