"""Studies: frozen dataclasses that expand to jobs, and what runs the jobs so that they can be interrupted."""

from geophone.study.comparison import Comparison, LayerMap
from geophone.study.execute import process_executor, ray_executor, run_study
from geophone.study.geometry import PopulationGeometry
from geophone.study.job import Job, run_job
from geophone.study.selectivity import Selectivity
from geophone.study.similarity import RobustSimilarity
from geophone.study.studies import Demo, Study, find_study, study

__all__ = [
    "Comparison",
    "Demo",
    "Job",
    "LayerMap",
    "PopulationGeometry",
    "RobustSimilarity",
    "Selectivity",
    "Study",
    "find_study",
    "process_executor",
    "ray_executor",
    "run_job",
    "run_study",
    "study",
]
