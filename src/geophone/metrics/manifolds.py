"""Population geometry of class manifolds: how well a linear readout can tell a layer's classes apart, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, TypeVar

from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.core.types import UNLABELLED
from geophone.metrics.geometry.glue import MEASURES, Glue, glue
from geophone.metrics.geometry.mean_field import ManifoldGeometry, manifold_geometry
from geophone.metrics.metric import Metric, Undefined, metric
from geophone.metrics.outcomes import Z
from geophone.stats import Sample

T = TypeVar("T")


@dataclass(frozen=True)
class ClassPoints(Sample):
    """Of every class the 50 examples whose index has the smallest hash: its manifold, as a cloud of points."""

    reads: ClassVar[str] = "points"
    per_class: ClassVar[int] = 50

    @cached_property
    def geometry(self) -> ManifoldGeometry:
        """The mean-field analysis, done once for all metrics that read it.

        Raises:
            Undefined: fewer than two classes, a class of one image, or no analysis of these points.
        """
        return self._analysed(manifold_geometry)

    @cached_property
    def glue(self) -> Glue:
        """The analysis of classes that are told apart together, in random balanced halves, done once.

        Raises:
            Undefined: as `geometry`.
        """
        return self._analysed(glue)

    @cached_property
    def _failed(self) -> dict[str, str]:
        """Why an analysis can't be made, by its name: it isn't tried again for each metric."""
        return {}

    def _analysed(self, analysis: Callable[[list[Tensor]], T]) -> T:
        name = analysis.__name__
        if name in self._failed:
            raise Undefined(self._failed[name])
        try:
            return analysis(self._clouds())
        except GeophoneError as reason:
            self._failed[name] = str(reason)
            raise Undefined(str(reason)) from None

    def _clouds(self) -> list[Tensor]:
        if bool((self.y == UNLABELLED).any()):
            raise Undefined("needs labels, which these images lack")
        clouds = [self.x[self.y == label] for label in self.y.unique()]
        if len(clouds) < 2:
            raise Undefined("needs images of at least two classes")
        if min(len(cloud) for cloud in clouds) < 2:
            raise Undefined("a class has one image only, which is no manifold")
        return clouds


def _interval(value: str) -> Callable[[ClassPoints], tuple[float, float]]:
    """95 % over the samples of t: ± 1.96 standard errors. It says nothing of other images."""

    def bounds(points: ClassPoints) -> tuple[float, float]:
        found = points.geometry
        return _around(getattr(found, value), getattr(found, f"{value}_se"))

    return bounds


def _around(value: float, error: float) -> tuple[float, float]:
    return value - Z * error, value + Z * error


@metric(ClassPoints, when="asked", interval=_interval("capacity"))
def manifold_capacity(points: ClassPoints) -> float:
    """Mean-field capacity α of a layer's class manifolds: classes per feature that a hyperplane separates. In (0, 2].

    The harmonic mean over classes, each of up to 50 images, after the directions that the classes' centres share are
    taken away; see `geophone.metrics.geometry.manifold_geometry`. What is near 2/M (`manifold_capacity_floor`) says
    nothing but that M images of a class are that many points in many directions. The interval is that of the samples
    of t.

    Raises:
        Undefined: fewer than two classes, a class of one image, or classes whose centres coincide.

    References:
        Chung, Lee & Sompolinsky 2018, arXiv:1710.06487; Cohen et al. 2020, doi:10.1038/s41467-020-14578-5.
    """
    return points.geometry.capacity


@metric(ClassPoints, when="asked", interval=_interval("radius"))
def manifold_radius(points: ClassPoints) -> float:
    """Radius R of a layer's class manifolds in units of their centres' length, mean over classes. At least 0.

    Raises:
        Undefined: as `manifold_capacity`.
    """
    return points.geometry.radius


@metric(ClassPoints, when="asked", interval=_interval("dimension"))
def manifold_dimension(points: ClassPoints) -> float:
    """Dimension D of a layer's class manifolds, as far as a linear readout meets it, mean over classes. In [0, M - 1].

    Raises:
        Undefined: as `manifold_capacity`.
    """
    return points.geometry.dimension


@metric(ClassPoints, when="asked")
def center_correlation(points: ClassPoints) -> float:
    """Mean |cos| between the centres of a layer's class manifolds, about their mean. In [0, 1].

    Raises:
        Undefined: as `manifold_capacity`.
    """
    return points.geometry.center_correlation


@metric(ClassPoints, when="asked")
def manifold_center_rank(points: ClassPoints) -> float:
    """How many directions the classes' centres share, K: those were taken away before capacity was measured.

    Raises:
        Undefined: as `manifold_capacity`.
    """
    return float(points.geometry.k)


@metric(ClassPoints, when="asked")
def manifold_capacity_floor(points: ClassPoints) -> float:
    """The capacity 2/M that M images of a class have where they point in as many directions: the sample's floor.

    Raises:
        Undefined: as `manifold_capacity`.
    """
    return points.geometry.floor


def _of_glue(points: ClassPoints, measure: str) -> float:
    value: float | None = getattr(points.glue, measure)
    if value is None:
        raise Undefined("the anchors do not vary, or by no more than chance")
    return value


def _interval_of_glue(points: ClassPoints, measure: str) -> tuple[float, float]:
    return _around(_of_glue(points, measure), points.glue.standard_errors[measure])


glue_metrics = {
    measure: METRICS.add(
        f"glue_{measure}",
        Metric(
            f"glue_{measure}",
            ClassPoints,
            partial(_of_glue, measure=measure),
            interval=partial(_interval_of_glue, measure=measure),
            when="asked",
            doc=f"{measure.replace('_', ' ').capitalize()} of class manifolds that are told apart together, in random "
            "balanced halves of the classes (GLUE); see `geophone.metrics.geometry.glue`.",
        ),
    )
    for measure in MEASURES
}
"""GLUE's measures, by name."""

METRICS_OF_MANIFOLDS = (
    "manifold_capacity",
    "manifold_capacity_floor",
    "manifold_radius",
    "manifold_dimension",
    "center_correlation",
    "manifold_center_rank",
)
"""Names of all that is read off one analysis."""
