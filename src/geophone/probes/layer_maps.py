"""How alike the layers of one network, or of two, answer to the same images: every layer with every layer, in one pass.

Per batch, each layer's responses are centred and their Gram matrix is taken inside the hook, so nothing is kept but one
n × n matrix per layer; all pairs of layers are then one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core import table as tables
from geophone.core.arguments import as_tuple, checked
from geophone.core.errors import GeophoneError, unknown
from geophone.core.registry import METRICS
from geophone.core.rng import draws, key, stream
from geophone.core.types import Batch, Perturbation, unwrapped
from geophone.data import Split, as_split
from geophone.metrics import Undefined
from geophone.metrics.metric import not_finite
from geophone.metrics.similarity import maps
from geophone.metrics.similarity.pairwise import ENDS, alike
from geophone.models.run import Subject, check_attacked, opened
from geophone.models.tap import Reduce, layers_of, reduction
from geophone.perturb.attacks.base import averaging, draws_of, eot_row, is_attack
from geophone.perturb.cost import passes
from geophone.perturb.parse import family_name, fitted, level_of, named_perturbations
from geophone.probes.grams import LOOKED_AT, Answers, Side, Sums, answers, inner_products
from geophone.probes.part import Columns, Name, Part
from geophone.probes.probe import PROBES, Probe, Row, Soundness, Step, summed
from geophone.stats import CrossMoments, PairSample
from geophone.stats.hsic import LEAST, cross_products
from geophone.stats.statistic import tensor_of

WEIGHTINGS = ("pairs", "equal")
MINIBATCH = "cka_minibatch"
"""Linear CKA of unbiased HSICs summed over batches: all pairs of layers at once, of all units."""
DECONFOUNDED = "cka_minibatch_deconfounded"
BY_BATCH = (MINIBATCH, DECONFOUNDED)
WHOLE = {"cka": True, "cka_biased": False}
"""Measures of kept rows that take all pairs of layers at once, and whether they are debiased."""

SAME_LAYER = "same_layer_similarity"
"""Of a layer with the one of its name: what the diagonal of a map shows."""

RESAMPLES = 500
FEWEST_BATCHES = 8
FEW = 16
"""Images of a batch below which an estimate scatters."""
BIASED = 0.1
"""What shuffled rows may have without a warning."""
DOMINANT = 0.01
GONE = 1e-5
"""Share of a norm that is left of a layer which the images explain: float32 rounds 1e-7 of it."""
Progress = Callable[[int, int], None]


def same_memory(response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Every position of every channel is a unit, in the order of memory: `flatten` without its copy.

    The order of units changes none of the similarities that are invariant to rotations. It is the same for all batches
    of a layer that come with the same memory format.
    """
    if response.ndim == 4 and response.is_contiguous(memory_format=torch.channels_last):
        return response.permute(0, 2, 3, 1).flatten(1)
    return response.flatten(1)


@dataclass(frozen=True)
class Similarity:
    """How alike layers are.

    Attributes:
        table: Rows as `geophone.core.table` describes them: for each measure and pair the value, its interval and
            numbers; `layer` and `depth` are the first network's, `other` and `other_depth` the second's. Rows of
            measures that end in `_shuffled` are the control, with the second side's rows in another order. Then
            come what a map shows in numbers, and what single layers are like.
        layers: The rows of a map, in the order of execution.
        others: Its columns.
        measure: The first measure, of which `map` gives the map by default.
    """

    table: pl.DataFrame
    layers: tuple[str, ...]
    others: tuple[str, ...]
    measure: str = MINIBATCH

    def map(self, measure: str | None = None) -> Float[np.ndarray, "p q"]:
        """All layers by all layers; NaN where a pair has no value.

        Raises:
            GeophoneError: a measure that was not taken.
        """
        rows = self.table.filter((pl.col("metric") == (measure or self.measure)) & pl.col("other_depth").is_not_null())
        if rows.is_empty():
            taken = self.table.filter(pl.col("other_depth").is_not_null())["metric"].unique(maintain_order=True)
            raise unknown("measure", str(measure or self.measure), taken.to_list())
        made = np.full((len(self.layers), len(self.others)), np.nan)
        for i, j, value in rows.select("depth", "other_depth", "value").iter_rows():
            if value is not None:
                made[i, j] = value
        return made

    @property
    def scalars(self) -> dict[str, float | None]:
        """What the first measure's map shows, in numbers: see `geophone.metrics.similarity.maps`."""
        whole = self.table.filter(pl.col("layer").is_null() & (pl.col("metric") != tables.EOT))
        return dict(whole.select("metric", "value").unique("metric", keep="first", maintain_order=True).iter_rows())


@PROBES.register
@dataclass(frozen=True)
class LayerMap(Probe):
    """All layers of a model beside all layers of another, of itself, or of itself under a perturbation.

    A step is a batch, of an order of its own: files are often sorted by class. See `similarity` for the fields.
    """

    stage: ClassVar[str] = "layer map"

    measures: tuple[str, ...] = (MINIBATCH,)
    layers: tuple[str, ...] | None = None
    others: tuple[str, ...] | None = None
    perturbation: str | Perturbation | None = None
    reduce: str | Reduce = same_memory
    batch_size: int = 256
    weights: str = "pairs"
    points: int | None = 1000
    shuffles: int = 20
    resamples: int | None = None

    def __post_init__(self) -> None:
        _check_measures(self.measures, True)
        _check_sizes(self.batch_size, self.points)
        if self.weights not in WEIGHTINGS:
            raise unknown("weighting", self.weights, WEIGHTINGS)

    def resolved(self, examples: Split) -> "LayerMap":
        if self.perturbation is None:
            return self
        return replace(self, perturbation=fitted(_perturbation(self.perturbation), examples.x.shape))

    @property
    def shaken(self) -> Perturbation | None:
        """The perturbation of a probe that is resolved."""
        return None if isinstance(self.perturbation, str) else self.perturbation

    @property
    def attacked(self) -> bool:
        """Whether the second side is attacked."""
        return self.shaken is not None and is_attack(self.shaken)

    def plan(self, n: int, seed: int) -> list[Tensor]:
        """The rows of each batch; a last one shorter than half is merged with the one before."""
        order = torch.randperm(n, generator=stream(seed, "similarity"))
        parts = list(order.split(self.batch_size))
        if len(parts) > 1 and len(parts[-1]) < max(LEAST, self.batch_size / 2):
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def steps(self, examples: Split) -> int:
        return len(self.plan(len(examples), 0))

    def costs(self, examples: Split) -> Sequence[float]:
        again = 0 if self.shaken is None else passes(self.shaken)
        return [(2 + again) * len(examples) / self.steps(examples)]

    def check(self, subject: Subject, examples: Split) -> None:
        if len(examples) < LEAST:
            raise GeophoneError(f"similarity needs at least {LEAST} images, has {len(examples)}. Give more.")
        second = subject.models[-1]
        if self.shaken is not None and self.attacked:
            check_attacked(second, examples, family_name(self.shaken))
        few = self.plan(len(examples), subject.seed)[0][: LEAST - 1]  # rows that are tokens are more than these
        some = next(examples.rows(few).batches(LEAST)).x
        for model, layers in zip((subject.models[0], second), self._layers, strict=True):
            wanted = [] if layers is None else layers_of(model, layers)
            answers(model, some, layers, wanted, reduction(self.reduce), pairs=False)

    @property
    def _layers(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        return self.layers, self.layers if self.others is None else self.others

    def _kept(self, examples: Split) -> Tensor:
        """Indices of the images whose responses are kept."""
        n = len(examples)
        count = 0 if {*self.measures} <= {*BY_BATCH} else n if self.points is None else min(self.points, n)
        return examples.index[draws("sample", index=examples.index).bits("rank").argsort()[:count]]

    def begin(self, subject: Subject, examples: Split) -> Step:
        first, second = subject.models[0], subject.models[-1]
        alone = len(subject.models) == 1 and self.shaken is None
        noisy = self.attacked and subject.stochastic(len(subject.models) - 1)
        run = None if self.shaken is None else averaging(self.shaken, noisy)
        # Its draws are keyed by its name as it was given.
        name = "" if self.shaken is None else family_name(self.shaken)
        needs = [
            [] if one is None else layers_of(model, one)
            for model, one in zip((first, second), self._layers, strict=True)
        ]
        reduce, plan, keep = reduction(self.reduce), self.plan(len(examples), subject.seed), self._kept(examples)
        pairs, images = bool({*self.measures} & {*BY_BATCH}), DECONFOUNDED in self.measures
        told = "itself" if len(subject.models) == 1 else "another"
        facts = {
            "alone": alone,
            "seed": subject.seed,
            "told": told + (f" under {name}" if name else ""),
            "level": 0.0 if self.shaken is None else level_of(self.shaken),
            "draws": draws_of(self.shaken, True) if noisy else None,
        }

        def step(number: int, done: Callable[[int], None]) -> Part:
            batch = next(examples.rows(plan[number]).batches(len(plan[number])))
            kept = torch.isin(batch.index, keep)

            def asked(which: int, x: Tensor, look: bool = False) -> Answers:
                subject.reseed("similarity", "network", number, which)
                model, layers = (first, second)[which], self._layers[which]
                return answers(model, x, layers, needs[which], reduce, kept=kept, pairs=pairs, look=look)

            ours = theirs = asked(0, batch.x, look=pairs and number < LOOKED_AT)
            if not alone:
                x = batch.x
                if run is not None:
                    subject.reseed("similarity", "attack", number)
                    x = run(batch.x, batch.y, second, draws(subject.seed, name, index=batch.index))
                theirs = asked(1, x)
            size = torch.tensor([len(batch)], dtype=torch.int64, device=subject.device)
            sums: dict[Name, Any] = {("sizes",): Columns({"sizes": size})}
            if pairs:
                generator = stream(subject.seed, "shuffled rows", number + 1)
                sums["pairs",] = Columns(inner_products(ours, theirs, batch.x, images, generator))
            if ours.lengths is not None:
                sums["lengths",] = Columns({"lengths": ours.lengths})
            if ours.first is not None:
                sums["first",] = Columns({"first": ours.first, "images": size})
            for which, side in (("a", ours), ("b", theirs)):
                for layer, count in zip(side.names, side.bad, strict=True):
                    sums["sound", which, layer] = Soundness(len(batch), torch.tensor(count, dtype=torch.int64))
                if side.rows and (which == "a" or not alone):
                    sums["rows", which] = Columns(side.rows)
            done(1)
            order = {which: [side.names, side.widths, side.stages] for which, side in (("a", ours), ("b", theirs))}
            return Part.of(number, sums, {**facts, "layers": order})

        return step

    @property
    def kinds(self) -> Sequence[type[Any]]:
        return (Soundness,)

    def sums(self, part: Part) -> Sums:
        """What was summed, by side."""
        total, facts = part.total(), part.facts
        sizes = tuple(total["sizes",]["sizes"].tolist())
        pairs = {name: value.cpu() for name, value in total["pairs",].columns.items()} if ("pairs",) in total else {}
        sides = []
        for which, own in (("a", "own_a"), ("b", "own_b")):
            names, widths, stages = (tuple(values) for values in facts["layers"][which])
            bad = {name: int(total["sound", which, name].bad) for name in names}
            looked = total.get(("first",)) if which == "a" else None
            sides.append(
                Side(
                    *(names, widths, stages, sum(sizes)),
                    bad={name: count for name, count in bad.items() if count},
                    own=pairs.get(own),
                    lengths=total["lengths",]["lengths"].cpu() if pairs and which == "a" else None,
                    first=None if looked is None else looked["first"].cpu(),
                    looked_at=0 if looked is None else int(looked["images"].sum()),
                )
            )
        return Sums(sides[0], sides[0] if facts["alone"] else sides[1], sizes, pairs)

    def rows(self, part: Part) -> Iterator[Row]:
        sums, facts, total = self.sums(part), part.facts, part.total()
        ours, theirs = (total["rows", which].columns if ("rows", which) in total else {} for which in "ab")
        theirs = ours if facts["alone"] else theirs
        rows: list[Row] = []
        for measure in self.measures:
            if measure in BY_BATCH:
                rows += _batch_rows(sums, measure, self.weights, facts["seed"])
            else:
                rows += _kept_rows(sums, ours, theirs, (measure,), self.shuffles, self.resamples, facts["seed"])
        first = self.measures[0]
        rows += _scalar_rows(sums, rows, first) + _same_layer_rows(sums, rows, first) + _layer_rows(sums.a)
        if facts["draws"] is not None:
            rows.append({**eot_row(facts["draws"]), "n": sum(sums.sizes)})
        common = {"family": "similarity", "perturbation": facts["told"], "level": facts["level"]}
        yield from ({**common, **row} for row in rows)


@checked
def similarity(
    first: Any,
    second: Any = None,
    data: Any = None,
    measures: str | Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    *,
    perturbation: str | Perturbation | None = None,
    reduce: Reduce = same_memory,
    batch_size: int = 256,
    weights: str = "pairs",
    points: int | None = 1000,
    shuffles: int = 20,
    resamples: int | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Similarity:
    """How alike all layers of two networks answer, or of one; or two sets of stored responses; or two plain matrices.

    `cka_minibatch`, the default for networks, sums the unbiased HSIC (Song et al. 2012) over batches,

        CKA(l, m) = Σ_b w_b HSIC₁(K_b, L_b) / √( Σ_b w_b HSIC₁(K_b, K_b) · Σ_b w_b HSIC₁(L_b, L_b) ),

    numerators and denominators before the ratio, so its limit is the same for every batch size, and with one batch it
    is the debiased CKA of all images. Near 0, and sometimes below, for unrelated responses; never clamped. A last batch
    shorter than half is merged with the one before. Memory O(L n²), n the batch size, however many the images.
    `cka_minibatch_deconfounded` takes the part of every Gram matrix off that the images' own Gram matrix explains.

    Other measures are of the responses to `points` images, which are kept: `cka` (debiased) and `cka_biased` for all
    pairs at once, in the space of samples or of features, whichever costs less; any other registered metric that
    compares two sets of responses pair by pair (slow for many layers).

    Args:
        first: A network (a module: images in [0, 1] → logits); or responses `[n, d]`, a mapping from layers to such, or
            to `Batch`es of such as `record` gives them.
        second: Likewise; None: the first with itself, or with itself under the perturbation.
        data: For networks, the images: as for `measure`. Labels are needed by attacks only.
        measures: Names; default `cka_minibatch` for networks and `cka` for responses.
        layers: Of the first network: names or shell patterns; default every activation and block output.
        others: Of the second; default `layers`.
        perturbation: What the second network sees in place of the clean images, as an object or as code with its level.
            An attack is against the second. A network that draws noise of its own draws other noise for either side,
            and attacks on it whose `draws` are left open average over 10 draws: a row `eot_draws` says over how many.
        reduce: From a response `[n, ...]` to `[n, d]`. The default makes every position of every channel a unit.
        batch_size: Images per batch, at least 4.
        weights: "pairs": a batch of n counts n(n − 3), the number of sums in it; "equal": 1.
        points: For how many images responses are kept, if a measure needs them: those with the smallest hash; None all.
        shuffles: Of rows, for the control.
        resamples: Halves of the rows for intervals of measures of kept rows: see `alike`. Default 200 for a single pair
            of layers and 0, which is no interval, for more.
        seed: Keys shuffles, resamples and the perturbation.
        columns: Values for the table's columns job, dataset, model, recipe, seed and epoch; and for `perturbation`,
            which says what is compared.
        progress: Called with (steps done, steps in all).

    Raises:
        GeophoneError: misaligned rows, NaN, fewer than 4 images or images per batch, unknown layers or measures.

    References:
        Kornblith et al. 2019, arXiv:1905.00414; Nguyen, Raghu & Kornblith 2021, arXiv:2010.15327 (minibatches);
        Cui et al. 2022, arXiv:2202.00095 (deconfounding).

    >>> similarity(standard, robust, "fashion_mnist_mini").map()
    """
    if weights not in WEIGHTINGS:
        raise unknown("weighting", weights, WEIGHTINGS)
    networks = callable(first)
    if second is not None and callable(second) != networks:
        raise GeophoneError("similarity compares two networks, or two sets of responses; it was given one of each.")
    named = None if measures is None else as_tuple(measures)
    taken = tuple(dict.fromkeys((MINIBATCH if networks else "cka",) if named is None else named))
    _check_measures(taken, networks)
    if not networks:
        if perturbation is not None or data is not None:
            raise GeophoneError("responses are compared as they are: leave out data and perturbation.")
        return _of_responses(first, second, taken, points, shuffles, resamples, batch_size, seed, columns)
    probe = LayerMap(
        taken,
        None if layers is None else as_tuple(layers),
        None if others is None else as_tuple(others),
        *(perturbation, reduce, batch_size, weights, points, shuffles, resamples),
    )
    examples = as_split(data).near(first)
    probe = probe.resolved(examples)
    models = [unwrapped(one) for one in (first, second) if one is not None]
    with opened(models, examples, seed) as subject:
        part = summed(probe, subject, examples, progress=progress)
    sums = probe.sums(part)
    table = tables.labelled(tables.frame(probe.rows(part)), columns or {})
    return Similarity(table, sums.a.names, sums.b.names, taken[0])


def _of_responses(
    first: Any,
    second: Any,
    taken: tuple[str, ...],
    points: int | None,
    shuffles: int,
    resamples: int | None,
    batch_size: int,
    seed: int,
    columns: Mapping[str, Any] | None,
) -> Similarity:
    """Stored responses, of one model or of two."""
    _check_sizes(batch_size, points)
    ours = _stored(first)
    theirs = ours if second is None else _stored(second)
    ours, theirs = _alike_stored(ours, theirs)
    _check_aligned(first, second, ours, theirs)
    a = _side_of(ours)
    sums = Sums(a, a if second is None else _side_of(theirs))
    common = {"family": "similarity", "perturbation": "itself" if second is None else "another", "level": 0.0}
    rows = _kept_rows(sums, ours, theirs, taken, shuffles, resamples, seed)
    rows += _scalar_rows(sums, rows, taken[0]) + _same_layer_rows(sums, rows, taken[0])
    table = tables.frame({**common, **(columns or {}), **row} for row in rows)
    return Similarity(table, sums.a.names, sums.b.names, taken[0])


def _check_sizes(batch_size: int, points: int | None) -> None:
    if batch_size < LEAST or (points is not None and points < LEAST):
        raise GeophoneError(f"batch_size={batch_size}, points={points}: similarity needs at least {LEAST} images.")


def _perturbation(given: str | Perturbation) -> Perturbation:
    """One perturbation, from code too."""
    drawn = named_perturbations(given)
    if len(drawn) != 1:
        raise GeophoneError(
            f"{given!r} is not one perturbation. Give one with its level, such as 'LinfPGD(eps=8/255)', or an object."
        )
    return drawn[0]


def _check_measures(names: Sequence[str], networks: bool) -> None:
    if not names:
        raise GeophoneError("no measure of similarity is named. Leave measures out for the default.")
    pairwise_ones = [name for name, metric in METRICS.items() if metric.statistic in (CrossMoments, PairSample)]
    allowed = [*(BY_BATCH if networks else ()), *pairwise_ones]
    for name in names:
        if name not in allowed:
            raise unknown("measure of similarity", name, allowed)


def _stored(given: Any) -> dict[str, Tensor]:
    """Responses of each layer, checked."""
    layers = given if isinstance(given, Mapping) else {"responses": given}
    if not layers:
        raise GeophoneError("there are no layers in the mapping of responses.")
    made = {}
    for name, value in layers.items():
        x = tensor_of(value.x if isinstance(value, Batch) else value, str(name))
        if x.ndim != 2 or not x.is_floating_point():
            raise GeophoneError(
                f"{name}: similarity takes responses [n, d] of floats, not {list(x.shape)} of {x.dtype}. "
                "Use x.flatten(1), or a mean over space."
            )
        bad = int((~x.isfinite().all(1)).count_nonzero())
        if bad and not isinstance(given, Mapping):  # there is no other layer
            raise GeophoneError(f"{name}: {not_finite(bad, len(x))}. Remove those rows from both sides.")
        made[str(name)] = x.detach()
    return made


def _alike_stored(*sides: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """All responses in one type, float32 or wider, and on the first one's device."""
    every = [x for side in sides for x in side.values()]
    kind = torch.float64 if any(x.dtype == torch.float64 for x in every) else torch.float32
    if sides[0] is sides[1]:
        sides = sides[:1]
    made = [{name: x.to(every[0].device, kind) for name, x in side.items()} for side in sides]
    return made * (3 - len(made))


def _check_aligned(first: Any, second: Any, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Rows must be of the same images in the same order, as far as can be told."""
    lengths = {f"{name} ({side})": len(x) for side, part in ((1, ours), (2, theirs)) for name, x in part.items()}
    if len(set(lengths.values())) > 1:
        (a, n), (b, m) = sorted(lengths.items(), key=lambda item: item[1])[:: len(lengths) - 1]
        raise GeophoneError(f"rows must be of the same images: {a} has {n}, {b} has {m}.")
    if min(lengths.values()) < LEAST:
        raise GeophoneError(f"similarity needs at least {LEAST} rows, has {min(lengths.values())}.")
    indices = [
        (str(name), value.index.cpu())
        for one in (first, second)
        for name, value in (one if isinstance(one, Mapping) else {"responses": one}).items()
        if isinstance(value, Batch)
    ]
    for name, index in indices[1:]:
        if not torch.equal(index, indices[0][1]):
            raise GeophoneError(
                f"the rows of {indices[0][0]} and {name} are of other images, or in another order (their indices "
                "differ), as two loaders that shuffle give them. Record both from one loader, without shuffling."
            )


def _side_of(layers: dict[str, Tensor]) -> Side:
    """Stored responses as a side; those of a layer that are not finite are taken out."""
    bad = {name: int((~x.isfinite().all(1)).count_nonzero()) for name, x in layers.items()}
    bad = {name: count for name, count in bad.items() if count}
    for name in bad:
        layers[name] = torch.zeros_like(layers[name])
    widths = tuple(x.shape[1] for x in layers.values())
    return Side(tuple(layers), widths, (0,) * len(layers), len(next(iter(layers.values()))), bad)


def _flaw(sums: Sums, layer: str, other: str) -> str:
    """Why two layers have no similarity because of what is wrong with one of them alone; empty if nothing is."""
    if reason := sums.a.flaw(layer):
        return reason
    reason = sums.b.flaw(other)
    return f"{other}, on the other side: {reason}" if reason else ""


def _batch_rows(sums: Sums, measure: str, weights: str, seed: int) -> list[dict[str, Any]]:
    """All pairs by HSICs summed over batches, with the bootstrap over batches and the shuffled control."""
    from scipy.stats import t

    sizes = torch.tensor(sums.sizes, dtype=torch.float64)
    each = torch.ones_like(sizes) if weights == "pairs" else 1 / (sizes * (sizes - 3))
    rng = np.random.default_rng(key(seed, "bootstrap over batches") % 2**63)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), RESAMPLES)
    resampled = torch.from_numpy(drawn).double() * each

    parts, own_a, own_b = sums.pairs, sums.pairs["own_a"], sums.pairs["own_b"]

    def ratio(w: Tensor, kind: str) -> Tensor:
        """Of each weighting of the batches, `[w, b]` → `[w, p, q]`; NaN where a norm is 0."""
        top, a, b = torch.einsum("wb,bpq->wpq", w, parts[kind]), w @ own_a, w @ own_b
        whole_a, whole_b = a, b
        if measure == DECONFOUNDED:
            with_a, with_b, own = w @ parts["image_a"], w @ parts["image_b"], w @ parts["image"]
            moved = with_b if kind == "cross" else w @ parts["image_shuffled"]
            top = top - with_a[:, :, None] * moved[:, None] / own[:, :, None]
            a, b = a - with_a.square() / own, b - with_b.square() / own
        a, b = (torch.where(x > GONE * y, x, torch.nan) for x, y in ((a, whole_a), (b, whole_b)))
        return top / (a[:, :, None] * b[:, None]).sqrt()

    value = ratio(each[None], "cross")[0]
    low = high = None
    if len(sizes) >= FEWEST_BATCHES:
        count = len(sizes)
        spread = ratio(resampled, "cross").std(0) * (count / (count - 1)) ** 0.5 * t.ppf(0.975, count - 1)
        low, high = value - spread, value + spread
    notes = [] if low is not None else [f"{len(sizes)} batches: no interval from fewer than {FEWEST_BATCHES}"]
    if min(sums.sizes) < FEW:
        notes.append(f"batches of {min(sums.sizes)} images: the estimate scatters widely below {FEW}")
    note = "; ".join(notes) or None
    why = "a side does not vary" if measure == MINIBATCH else "a side does not vary beyond what the images explain"
    n = int(sizes.sum())
    made = _map_rows(sums, measure, n, value, low, high, note, why)
    return made + _map_rows(sums, f"{measure}_shuffled", n, ratio(each[None], "shuffled")[0], why=why)


def _kept_rows(
    sums: Sums,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    measures: Sequence[str],
    shuffles: int,
    resamples: int | None,
    seed: int,
) -> list[Row]:
    """Measures of kept rows: all pairs at once where that can be done, or pair by pair."""
    single = len(sums.a.names) == len(sums.b.names) == 1
    halves = resamples if resamples is not None else 200 if single else 0
    made: list[Row] = []
    for measure in measures:
        if measure in WHOLE and not single and not halves:
            made += _whole_rows(sums, ours, theirs, measure, shuffles, seed)
        else:
            made += _pair_rows(sums, ours, theirs, measure, shuffles, halves, seed)
    return made


def _whole_rows(
    sums: Sums, ours: dict[str, Tensor], theirs: dict[str, Tensor], measure: str, shuffles: int, seed: int
) -> list[dict[str, Any]]:
    """All pairs at once from the kept rows; the control is of one shuffle, each of its pairs being many rows' mean."""
    first, second = list(ours.values()), None if sums.b is sums.a else list(theirs.values())
    n = len(first[0])
    top, own_a, own_b = (part.cpu() for part in cross_products(first, second, WHOLE[measure]))
    own_a, own_b = (torch.where(x > 0, x, torch.nan) for x in (own_a, own_b))
    scale = (own_a[:, None] * own_b[None]).sqrt()
    made = _map_rows(sums, measure, n, top / scale, why="a side does not vary")
    if shuffles:
        order = torch.randperm(n, generator=stream(seed, "shuffled rows"))
        moved = [x[order.to(x.device)] for x in (second or first)]
        control = cross_products(first, moved, WHOLE[measure])[0].cpu() / scale
        for row, chance in zip(made, control.flatten().tolist(), strict=True):
            if chance > BIASED:
                row["note"] = f"biased for {n} images and these widths: shuffled rows have {chance:.2g}"
        made += _map_rows(sums, f"{measure}_shuffled", n, control, why="a side does not vary")
    return made


def _pair_rows(
    sums: Sums,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    measure: str,
    shuffles: int,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Pair by pair."""
    made = []
    for i, (name, x) in enumerate(ours.items()):
        for j, (other, y) in enumerate(theirs.items()):
            where = {"layer": name, "depth": i, "other": other, "other_depth": j, "n": len(x), "d": x.shape[1]}
            if flaw := _flaw(sums, name, other):
                names = (measure, f"{measure}_shuffled") if shuffles else (measure,)
                made += [{**where, "metric": metric, "value": None, "note": flaw} for metric in names]
                continue
            found = alike(x, y, (measure,), resamples=resamples, shuffles=shuffles, seed=seed)[0]
            made.append(
                {**where, "metric": measure, "value": found.value, "low": found.low, "high": found.high}
                | {"note": found.note}
            )
            if shuffles:
                why = None if found.control is not None else found.note
                made.append({**where, "metric": f"{measure}_shuffled", "value": found.control, "note": why})
    return made


def _map_rows(
    sums: Sums,
    measure: str,
    n: int,
    value: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    note: str | None = None,
    why: str = "",
) -> list[dict[str, Any]]:
    grid = [part.tolist() if part is not None else None for part in (value, low, high)]
    made = []
    for i, layer in enumerate(sums.a.names):
        for j, other in enumerate(sums.b.names):
            number, below, above = (None if part is None or isnan(part[i][j]) else part[i][j] for part in grid)
            if flaw := _flaw(sums, layer, other):
                number = below = above = None
            said = flaw or (why if number is None else note)
            row = {"layer": layer, "depth": i, "other": other, "other_depth": j, "metric": measure, "value": number}
            made.append(row | {"low": below, "high": above, "n": n, "d": sums.a.widths[i], "note": said})
    return made


def _scalar_rows(sums: Sums, rows: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """What the first measure's map shows, in numbers."""
    grid = np.full((len(sums.a.names), len(sums.b.names)), np.nan)
    for row in rows:
        if row["metric"] == measure and row["value"] is not None:
            grid[row["depth"], row["other_depth"]] = row["value"]
    if grid.size == 1 or not (measure in BY_BATCH or ENDS.get(measure) == (0.0, 1.0)):
        return []  # a single pair, or distances
    alone = sums.b is sums.a
    asked: dict[str, Callable[[], float]] = {
        "near_similarity": lambda: maps.near_similarity(grid),
        "far_similarity": lambda: maps.far_similarity(grid),
        "block_contrast": lambda: maps.block_contrast(grid, sums.a.stages, None if alone else sums.b.stages),
    }
    if alone:
        asked |= {
            "effective_layers": lambda: maps.effective_layers(grid),
            "entropy_layers": lambda: maps.entropy_layers(grid),
        }
        asked |= {
            f"largest_block_{100 * share:.0f}": partial(maps.largest_block, grid, share) for share in maps.THRESHOLDS
        }
    else:
        asked["equal_depth_similarity"] = lambda: maps.equal_depth_similarity(grid)
    made: list[dict[str, Any]] = []
    for name, compute in asked.items():
        whole: dict[str, Any] = {"metric": name, "n": rows[0]["n"], "d": len(sums.a.names), "note": f"of {measure}"}
        try:
            made.append(whole | {"value": float(compute())})
        except Undefined as reason:
            made.append(whole | {"note": str(reason)})
    return made


def _same_layer_rows(sums: Sums, rows: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The first measure of layers with the layer of the same name on the other side."""
    if sums.b is sums.a or len(sums.a.names) == len(sums.b.names) == 1:
        return []
    return [
        {key: value for key, value in row.items() if key not in ("other", "other_depth")}
        | {"metric": SAME_LAYER, "note": row.get("note") or f"of {measure}"}
        for row in rows
        if row["metric"] == measure and row["layer"] == row["other"]
    ]


def _layer_rows(side: Side) -> list[dict[str, Any]]:
    """How much of each layer of the first network is one direction, and how much a few images."""
    if side.lengths is None or side.first is None:
        return []
    n = len(side.lengths)
    few = max(1, round(DOMINANT * n))
    shares = {
        "first_pc_share": (side.first.mean(0), side.looked_at),
        "dominant_share": (side.lengths.topk(few, 0).values.sum(0) / side.lengths.sum(0), n),
    }
    made = []
    for name, (value, count) in shares.items():
        for i, layer in enumerate(side.names):
            row = {"layer": layer, "depth": i, "metric": name, "n": count, "d": side.widths[i]}
            flaw = side.flaw(layer) or ("the responses do not vary" if isnan(value[i]) else "")
            made.append(row | ({"note": flaw} if flaw else {"value": float(value[i])}))
    return made
