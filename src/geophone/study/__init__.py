"""Studies: frozen dataclasses that expand to jobs, and what runs the jobs so that they can be interrupted."""

from geophone.study.comparison import Comparison, LayerMap
from geophone.study.execute import process_executor, ray_executor, run_study
from geophone.study.study import Study, find_study, study
from geophone.study.tasks import Job, run_job

__all__ = [
    "Comparison",
    "Job",
    "LayerMap",
    "Study",
    "find_study",
    "process_executor",
    "ray_executor",
    "run_job",
    "run_study",
    "study",
]
