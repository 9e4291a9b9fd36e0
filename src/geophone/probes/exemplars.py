"""Exemplar manifolds: what one image becomes when it is shaken many times, layer by layer.

A class manifold is the responses to the images of a class, and `measure` reads its geometry. An exemplar manifold is
the responses to copies of one image, each shaken with draws of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import GeophoneError, check_counts
from geophone.core.rng import draws
from geophone.core.types import Batch, Model, Perturbation, unwrapped
from geophone.data import Split
from geophone.metrics.geometry import manifold_geometry
from geophone.metrics.geometry.separability import separabilities
from geophone.metrics.metric import not_finite
from geophone.metrics.outcomes import Z
from geophone.models.run import Subject, check_attacked, logits_of
from geophone.models.stochastic import refuse_frozen
from geophone.models.tap import PROBED, check_axes, check_ran, layers_of, tap
from geophone.perturb.attacks.base import averaging, draws_of, eot_row, is_attack
from geophone.perturb.cost import passes
from geophone.perturb.parse import condition, family_name, shakes
from geophone.probes.part import Columns, Name, Part
from geophone.probes.probe import PROBES, Probe, Row, Step, measured
from geophone.probes.projection import RandomProjection

PIXELS = "pixels"
"""The layer before the first: the shaken images themselves, at depth −1."""

POINT = 1e-5
"""The spread of copies, over the length of their mean, up to which they are one point: rounding in float32."""

MOST_COPIES = 1 << 20

_NAMES = (
    *("exemplar_capacity", "exemplar_radius", "exemplar_dimension", "exemplar_width"),
    *("exemplar_center_correlation", "exemplar_center_rank"),
)
_ONE_POINT = "its copies have one and the same response: nothing random reaches this layer"
_NO_DIFFERENCE = "clean and shaken copies have one and the same response"

Clouds = dict[str, Float[Tensor, "p m d"]]


@PROBES.register
@dataclass(frozen=True)
class Exemplars(Probe):
    """Manifolds of single examples, shaken many times; a step is an exemplar, under every condition.

    See `exemplar_manifolds`.
    """

    stage: ClassVar[str] = "exemplar manifolds"

    perturbations: tuple[str | Perturbation, ...] = ()
    layers: tuple[str, ...] | None = None
    exemplars: int = 50
    copies: int = 50
    features: int = 1000
    n_t: int = 300
    kappa: float = 0.0
    n_reps: int = 10

    def __post_init__(self) -> None:
        check_counts(exemplars=self.exemplars, copies=self.copies, features=self.features)
        if self.exemplars < 2 or not 2 <= self.copies < MOST_COPIES:
            raise GeophoneError(
                f"{self.exemplars} exemplars with {self.copies} copies: at least 2 of each are needed, and fewer than "
                f"{MOST_COPIES} copies."
            )

    def resolved(self, examples: Split) -> "Exemplars":
        return replace(self, perturbations=tuple(shakes(self.perturbations, examples.x.shape)))

    @property
    def shaken(self) -> list[Perturbation]:
        """The perturbations of a probe that is resolved."""
        return [one for one in self.perturbations if not isinstance(one, str)]

    def chosen(self, examples: Split) -> Split:
        """The exemplars, in the order of their indices."""
        if len(examples) < self.exemplars:
            raise GeophoneError(
                f"{self.exemplars} exemplars of {len(examples)} images: ask for at most as many as there are."
            )
        chosen = examples.take(self.exemplars)
        return chosen.rows(chosen.index.argsort(stable=True))

    def steps(self, examples: Split) -> int:
        return self.exemplars

    def costs(self, examples: Split) -> Sequence[float]:
        return [float(self.copies), *(self.copies * (1 + passes(one)) for one in self.shaken)]

    def check(self, subject: Subject, examples: Split) -> None:
        net, chosen = unwrapped(subject.model), self.chosen(examples)
        if self.shaken:
            refuse_frozen(net, "Robustness")
        if attack := next((one for one in self.shaken if is_attack(one)), None):
            check_attacked(net, examples, family_name(attack))
        check_axes(net, next(chosen.batches(PROBED)).x, self.copies, self.layers)

    def begin(self, subject: Subject, examples: Split) -> Step:
        net, chosen = unwrapped(subject.model), self.chosen(examples)
        noisy = any(is_attack(one) for one in self.shaken) and subject.stochastic()
        wanted = [] if self.layers is None else layers_of(net, self.layers)
        project = RandomProjection(self.features, subject.seed)
        conditions = [(None, None), *((one, averaging(one, noisy)) for one in self.shaken)]
        names = [condition(one) for one, _ in conditions]
        attacked = [noisy and one is not None and is_attack(one) for one, _ in conditions]
        averaged = [draws_of(one, True) if yes else None for (one, _), yes in zip(conditions, attacked, strict=True)]

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = chosen.batch(number, 1)
            sums: dict[Name, Any] = {}
            for place, (_, run) in enumerate(conditions):
                name = names[place]["perturbation"]
                found = _copies(subject, batch, run, name, self.copies, self.layers, project)
                check_ran(wanted, found)
                sums[place,] = Columns({layer: points[None] for layer, points in found.items()})
                done(place + 1)
            here = [*zip(names, averaged, strict=True)]
            return Part.of(number, sums, {"seed": subject.seed, "order": list(found), "conditions": here})

        return step

    def rows(self, part: Part) -> Iterator[Row]:
        total, clean = part.total(), None
        options = {"n_t": self.n_t, "kappa": self.kappa, "n_reps": self.n_reps}
        for place, (here, averaged) in enumerate(part.facts["conditions"]):
            clouds = {layer: total[place,][layer] for layer in part.facts["order"]}
            yield from _condition(here, clouds, clean, part.facts["seed"], **options)
            if averaged is not None:
                yield {**here, **eot_row(averaged), "n": self.exemplars}
            clean = clouds if clean is None else clean


@checked
def exemplar_manifolds(
    model: Model,
    data: Any,
    perturbations: str | Perturbation | Sequence[Perturbation | str] = (),
    layers: Sequence[str] | None = None,
    *,
    exemplars: int = 50,
    copies: int = 50,
    features: int = 1000,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **fit: Any,
) -> pl.DataFrame:
    """Geometry of exemplar manifolds, and how far they lie from the clean image's; returns rows of the table.

    Of P images (the first of each class, as `Split.take` chooses them) M copies each are shaken independently, with
    random starts, noise and the network's own noise drawn for each copy, and go through the network once. In each
    layer, projected at random to at most `features`, the P clouds of M points are analysed together. With the clouds'
    radius R_i and dimension D_i, rows are

    - `exemplar_capacity`, `exemplar_radius`, `exemplar_dimension`, `exemplar_center_correlation` and
      `exemplar_center_rank` (K): as `geophone.metrics.geometry.manifold_geometry` defines them, with ± 1.96 standard
      errors of its samples.
    - `exemplar_width`: mean_i R_i·√D_i, ± 1.96 standard errors over the exemplars.
    - `exemplar_capacity_floor`: 2/M, the capacity of clouds without structure. Nothing is read off a capacity near it.
    - `clean_separability`: mean over exemplars of the held-out accuracy of a linear support vector machine that tells
      an image's clean copies from its shaken ones. 0.5 is chance, complete overlap; 1 is none; ± 1.96 standard errors
      over the exemplars. The clean copies of a deterministic network are one point, M times.

    Conditions are `clean`, where the network's noise alone tells copies apart, and each perturbation. Layers are
    `pixels`, at depth −1, and those recorded. Copies that are all alike in a layer are a point: its rows are null, with
    the reason, but for the centres and the separability. Each image goes through the network with its own copies only,
    so no result depends on the order of the images; a network's noise is that of the global generators, set anew for
    each image and condition, other for clean and for shaken copies. Against a network with noise,
    attacks whose `draws` are left open average over 10 draws of it, so that copies are moved in directions of that
    mean, not of one pass; rows `eot_draws` say so.

    The protocol of the separability (folds, classifier, what is held out) is ours: the paper's is not known to us.

    Args:
        model: Images in [0, 1] → logits. On the device where it is.
        data: A `Split`, an `ImageData` (its test images), a data set's name or path, or a pair `(x, y)`; labels are
            needed by attacks only.
        perturbations: What to shake the images with: objects, or text as `grid` reads it. An attack needs a random
            start, or all copies are one.
        layers: Module names or shell patterns; default every activation and block output.
        exemplars: P, at least 2.
        copies: M, at least 2.
        features: To how many dimensions a larger layer is projected.
        seed: Keys the draws, the network's noise, the projections and the samples.
        columns: Values for the table's columns job, dataset, model, recipe, seed and epoch.
        progress: Called with (steps done, steps in all).
        fit: Of the geometry's fit: n_t (300), Gaussian samples a manifold; kappa (0), the margin; n_reps (10), starts
            of the fit of the directions that the clouds' centres share.

    Raises:
        GeophoneError: too few images or copies, bad images or labels, unknown layers, or perturbations of a network
            whose noise is frozen.

    References:
        Dapello et al. 2021, arXiv:2111.06979; Chung, Lee & Sompolinsky 2018, doi:10.1103/PhysRevX.8.031003.

    >>> exemplar_manifolds(model, "fashion_mnist_mini", "LinfPGD(eps=8/255, steps=1, step_size=8/255)", ["relu?"])
    """
    probe = Exemplars(
        as_tuple(perturbations),
        None if layers is None else as_tuple(layers),
        *(exemplars, copies, features),
        **fit,
    )
    return measured(probe, model, data, seed=seed, columns=columns, progress=progress)


def _copies(
    subject: Subject,
    image: Batch,
    shake: Perturbation | None,
    name: str,
    copies: int,
    layers: Sequence[str] | None,
    project: RandomProjection,
) -> dict[str, Tensor]:
    """Responses to copies of one image under what goes by a name, by layer, pixels first, `[copies, d]`."""
    net = unwrapped(subject.model)
    which = int(image.index)
    index = MOST_COPIES * image.index + torch.arange(copies, device=image.index.device)
    x = image.x.repeat(copies, 1, 1, 1)
    y = image.y.repeat(copies)
    if shake is not None:
        # Keyed without the level, as everywhere: a copy gets the same noise, only more of it.
        subject.reseed("exemplars", "attacked", name, which)
        x = shake(x, y, net, draws(subject.seed, "exemplars", name, index=index))
    subject.reseed("exemplars", "network", name, which)
    with tap(net, layers, project) as seen:
        logits_of(net, x)
        return {PIXELS: project(x), **seen}


def _condition(
    here: dict[str, Any], clouds: Clouds, clean: Clouds | None, seed: int, **options: Any
) -> Iterator[dict[str, Any]]:
    """The rows of one condition."""
    for depth, (layer, points) in enumerate(clouds.items(), start=-1):
        exemplars, copies, width = points.shape
        row = {**here, "layer": layer, "depth": depth, "n": exemplars, "d": width}
        yield row | {"metric": "exemplar_capacity_floor", "value": 2 / copies}
        bad = ~points.isfinite().flatten(1).all(1)
        if flaw := _flaw(bad):
            yield from (row | {"metric": name, "note": flaw} for name in _NAMES)
        else:
            yield from (row | part for part in _geometry(points, seed, **options))
        if clean is not None:
            flaw = _flaw(bad | ~clean[layer].isfinite().flatten(1).all(1))
            found = {"note": flaw} if flaw else _separability(clean[layer], points, seed)
            yield row | {"metric": "clean_separability", **found}


def _flaw(bad: Tensor) -> str:
    """Why there is no value where some exemplars' copies have responses that are no numbers; empty if none has."""
    return not_finite(int(bad.count_nonzero()), len(bad)) if bool(bad.any()) else ""


def _geometry(points: Float[Tensor, "p m d"], seed: int, **options: Any) -> Iterator[dict[str, Any]]:
    """Value, interval and note of each of `_NAMES`."""
    if _is_point(points).all():
        yield from ({"metric": name, "note": _ONE_POINT} for name in _NAMES)
        return
    try:
        found = manifold_geometry(list(points), seed=seed, **options)
    except GeophoneError as reason:
        yield from ({"metric": name, "note": str(reason)} for name in _NAMES)
        return
    for what in ("capacity", "radius", "dimension"):
        value, half = getattr(found, what), Z * getattr(found, f"{what}_se")
        yield {"metric": f"exemplar_{what}", "value": value, "low": max(0.0, value - half), "high": value + half}
    yield {"metric": "exemplar_width", **_mean(found.radii * found.dimensions.sqrt())}
    yield {"metric": "exemplar_center_correlation", "value": found.center_correlation}
    yield {"metric": "exemplar_center_rank", "value": float(found.k)}


def _separability(clean: Float[Tensor, "p m d"], shaken: Float[Tensor, "p m d"], seed: int) -> dict[str, Any]:
    both = torch.cat([clean, shaken], 1)
    if bool(_is_point(both).all()):
        return {"note": _NO_DIFFERENCE}
    found = separabilities(list(zip(clean, shaken, strict=True)), seed=seed)
    accuracies = torch.tensor([one.accuracy for one in found], dtype=torch.float64)
    return _mean(accuracies, most=1.0)


def _mean(values: Float[Tensor, " p"], most: float | None = None) -> dict[str, Any]:
    """Mean over the exemplars with its normal interval, not below 0 or above `most`."""
    value = float(values.mean())
    half = Z * float(values.std()) / sqrt(len(values))
    high = value + half if most is None else min(most, value + half)
    return {"value": value, "low": max(0.0, value - half), "high": high}


def _is_point(points: Float[Tensor, "p m d"]) -> Tensor:
    """Which clouds are one point, to rounding, `[p]`."""
    exact = points.double()
    centre = exact.mean(1, keepdim=True)
    spread = (exact - centre).square().sum(2).mean(1).sqrt()
    return spread <= POINT * centre.square().sum(2).sqrt()[:, 0]
