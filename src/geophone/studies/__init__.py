"""The studies that come with the package: grids of networks, what is measured of them, and claims."""

from geophone.studies.demo import Demo
from geophone.studies.geometry import PopulationGeometry
from geophone.studies.selectivity import Selectivity
from geophone.studies.similarity import RobustSimilarity

__all__ = ["Demo", "PopulationGeometry", "RobustSimilarity", "Selectivity"]
