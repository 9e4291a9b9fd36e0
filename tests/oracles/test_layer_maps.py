"""All layers beside all layers, from hooks to rows, against CKA written out in float64 on the whole responses."""

import weakref
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import stream
from geophone.core.types import Batch
from geophone.data import Split
from geophone.metrics import Undefined
from geophone.metrics.similarity import maps
from geophone.models.tap import flatten, positions, record, tap
from geophone.perturb import GaussianNoise, LinfPGD
from geophone.probes.layer_maps import DECONFOUNDED, MINIBATCH, SAME_LAYER, Similarity, similarity
from geophone.train import initialised

N = 96


class Net(nn.Sequential):
    """Convolutions, batch norms and in-place ReLUs."""

    def __init__(self, width: int = 6, bias: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(3, width, 3, padding=1))
        self.add_module("norm1", nn.BatchNorm2d(width))
        self.add_module("relu1", nn.ReLU(inplace=True))
        self.add_module("conv2", nn.Conv2d(width, 2 * width, 3, 2, padding=1))
        self.add_module("relu2", nn.ReLU(inplace=True))
        self.add_module("flat", nn.Flatten())
        self.add_module("head", nn.Linear(2 * width * 16, 4))


LAYERS = ("conv1", "norm1", "relu1", "conv2", "relu2", "head")


def net(seed: int, width: int = 6) -> Net:
    made = initialised(lambda: Net(width), seed)
    made.norm1.bias.data.fill_(0.3)  # type: ignore[union-attr,operator]
    return made.eval()


def images(n: int = N, kind: str = "x") -> Split:
    x = torch.rand(n, 3, 8, 8, generator=stream(kind))
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    return Split(smooth, torch.arange(n) % 4, torch.arange(n))


def answers(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """Every layer's responses to all images, in float64 throughout."""
    double = Split(split.x, split.y, split.index)
    model = model.double()
    try:
        batch = Batch(double.x.double(), split.y, split.index)
        return {name: b.x for name, b in next(iter(record(model, [batch], LAYERS, flatten))).items() if name in LAYERS}
    finally:
        model.float()


def debiased(x: Tensor, y: Tensor) -> float:
    """CKA of unbiased HSICs by the definition: U-centring in loops of vectors, float64."""

    def u(z: Tensor) -> np.ndarray:
        k = (z @ z.T).numpy().copy()
        np.fill_diagonal(k, 0)
        n = len(k)
        k = k - k.sum(1)[:, None] / (n - 2) - k.sum(0)[None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k

    a, b = u(x.double()), u(y.double())
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def expected(first: dict[str, Tensor], second: dict[str, Tensor]) -> np.ndarray:
    return np.array([[debiased(x, y) for y in second.values()] for x in first.values()])


def mapped(*models: nn.Module | None, measure: str = MINIBATCH, size: int = N, **more: object) -> np.ndarray:
    return similarity(*models, data=images(), measures=(measure,), layers=LAYERS, batch_size=size, **more).map(measure)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", [MINIBATCH, "cka"])
def test_one_batch_is_the_debiased_cka_of_all_responses(measure: str) -> None:
    """1e-6 is what float32 leaves of sums of 96² products of responses; also in-place ReLUs change nothing before."""
    one, two = net(0), net(1, 4)
    truth = expected(answers(one, images()), answers(two, images()))
    assert np.abs(mapped(one, two, measure=measure) - truth).max() < 1e-6
    itself = expected(answers(one, images()), answers(one, images()))
    found = mapped(one, measure=measure)
    assert np.abs(found - itself).max() < 1e-6
    assert np.array_equal(found, found.T)
    assert np.abs(found.diagonal() - 1).max() < 1e-15  # one rounding of a root
    assert itself[1, 2] < 0.999  # what a hook that keeps a view would have 1 for


def kept_views(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """The mutant: hooks that keep what they are given."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in LAYERS
    ]
    with torch.no_grad():
        model(split.x)
    for handle in handles:
        handle.remove()
    return {name: out.flatten(1) for name, out in seen.items()}


def test_hooks_that_keep_views_would_be_wrong() -> None:
    aliased = kept_views(net(0), images())
    assert debiased(aliased["norm1"], aliased["relu1"]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("weights", ["pairs", "equal"])
def test_batches_are_summed_before_the_ratio(weights: str) -> None:
    """96 images in batches of 20: four of these and one of 16, in which the weights differ."""
    one, two = net(0), net(1)
    split = images()
    order = torch.randperm(N, generator=stream(0, "similarity"))
    parts = order.split(20)
    a, b = answers(one, split), answers(two, split)

    def hsic(x: Tensor, y: Tensor) -> float:
        total = 0.0
        for part in parts:
            n = len(part)
            k, m = (z[part].double() @ z[part].double().T for z in (x, y))
            k.fill_diagonal_(0)
            m.fill_diagonal_(0)
            value = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ m.sum(1)
            total += float(value) / (n * (n - 3) if weights == "equal" else 1)
        return total

    truth = np.array([[hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5 for y in b.values()] for x in a.values()])
    assert np.abs(mapped(one, two, size=20, weights=weights) - truth).max() < 1e-6
    other = mapped(one, two, size=20, weights="equal" if weights == "pairs" else "pairs")
    assert np.abs(other - truth).max() > 1e-6


def test_a_short_last_batch_is_merged() -> None:
    """Of 96 in batches of 31, three are left: they go to the third batch."""
    found = similarity(net(0), data=images(), layers=LAYERS, batch_size=31)
    assert np.isfinite(found.map()).all()
    longer = similarity(net(0), data=images(95), layers=LAYERS, batch_size=31)
    assert np.isfinite(longer.map()).all()


@pytest.mark.parametrize("size", [N, 24])
def test_a_bias_of_30_on_a_convolution_changes_nothing(size: int) -> None:
    """An exact invariance, as far as float32 holds the responses: 30 has an ulp of 2e-6, 1e-5 of their spread of 0.2.

    In a similarity its square counts, and, by chance of signs, a tenth of itself.
    """
    one = net(0)
    before = mapped(one, size=size)
    one.conv2.bias.data += 30  # type: ignore[union-attr,operator]
    after = mapped(one, size=size)
    assert np.abs(after - before)[:3, :4].max() < 2e-6  # what comes before the convolution, beside it
    assert np.abs(after[3, 3] - 1) < 1e-6


class Scaled(nn.Module):
    """The images times a factor, and a part of them after a ReLU."""

    def __init__(self, factor: float, bias: float = 0.0) -> None:
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Identity()
        self.head = nn.Linear(192, 4)
        self.factor, self.bias = factor, bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        self.one(self.factor * (flat + self.bias))
        self.two((flat[:, :60] - 0.5).relu())
        return self.head(flat)


@pytest.mark.parametrize("factor", [1e-15, 1e-4, 1e4, 1e15])
def test_scale_changes_nothing(factor: float) -> None:
    """Squares of 1e±15 are at the ends of float32, their products are beyond."""
    maps_of = [similarity(Scaled(f), data=images(), layers=("one", "two"), batch_size=24).map() for f in (1.0, factor)]
    assert 0.1 < maps_of[0][0, 1] < 0.9
    assert np.abs(maps_of[1] - maps_of[0]).max() < 1e-6
    x, y = images().x.flatten(1), images(kind="y").x.flatten(1)
    stored = [similarity({"a": f * x, "b": y}).map() for f in (1.0, factor)]
    assert np.abs(stored[1] - stored[0]).max() < 1e-6


@pytest.mark.parametrize(("bias", "least"), [(30.0, 1e-6), (1000.0, 1e-4)])
def test_a_bias_beside_another_layer_changes_nothing(bias: float, least: float) -> None:
    """1000 has an ulp of 6e-5, beside a spread of 0.1: rounding of 3e-4 of it in each of 192 units, at random."""
    maps_of = [
        similarity(Scaled(1.0, b), data=images(), layers=("one", "two"), batch_size=24).map() for b in (0.0, bias)
    ]
    assert np.abs(maps_of[1] - maps_of[0]).max() < least


def test_a_layer_that_one_image_excites_has_no_value() -> None:
    """Its Gram matrix is all diagonal, of which U-centring leaves nothing but rounding."""
    x = torch.zeros(N, 7)
    x[3] = torch.rand(7, generator=stream("one"))
    found = similarity({"a": x, "b": torch.rand(N, 5, generator=stream("b"))})
    assert np.isnan(found.map()[0]).all()
    assert found.map()[1, 1] == 1


def test_nothing_but_gram_matrices_outlives_its_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a pass no response is referred to, when no row is kept."""
    alive: list[weakref.ref[Tensor]] = []

    def watched(response: Tensor) -> Tensor:
        made = flatten(response).clone()
        alive.append(weakref.ref(made))
        return made

    counts: list[int] = []
    similarity(
        *(net(0), None, images()),
        layers=LAYERS,
        batch_size=24,
        reduce=watched,
        progress=lambda done, _: counts.append(sum(one() is not None for one in alive)),
    )
    assert counts == [0] * 4


class Tokens(nn.Module):
    """A transformer whose tokens come first: 16 of them, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x.flatten(1)[:, :128].unflatten(1, (16, 8)).transpose(0, 1))
        return self.head(x.flatten(1))


class Half(nn.Module):
    """A network that computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 8).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1).bfloat16())


def test_networks_in_half_precision_are_taken() -> None:
    assert similarity(Half(), data=images(), layers=("layer",)).map()[0, 0] == 1
    x = torch.rand(N, 7, generator=stream("h"))
    mixed = similarity({"a": x.half(), "b": x.double()})
    assert mixed.map()[0, 1] == pytest.approx(1, abs=1e-6)


def test_biased_maps_say_so() -> None:
    x, y = (torch.randn(50, 2000, generator=stream(name)) for name in "xy")
    rows = similarity({"a": x, "b": 2 * x}, {"c": y}, measures="cka_biased").table.filter(metric="cka_biased")
    assert rows["value"].min() > 0.9
    assert all(note.startswith("biased for 50 images") for note in rows["note"])
    fair = similarity({"a": x, "b": 2 * x}, {"c": y}).table.filter(metric="cka")
    assert fair["note"].null_count() == 2


def test_distances_have_no_scalars_of_similarity() -> None:
    x = {name: torch.rand(N, 7, generator=stream(name)) for name in "abc"}
    assert "far_similarity" not in similarity(x, measures=("procrustes",)).table["metric"].to_list()
    assert "far_similarity" in similarity(x, measures="cka").table["metric"].to_list()


def test_the_control_is_of_shuffled_rows() -> None:
    """Between unrelated rows CKA is 0 in the mean; with 8 batches of 12, its spread is about 1/12/√8 = 0.03."""
    found = similarity(net(0), net(1), images(), layers=LAYERS, batch_size=12)
    control = found.map(f"{MINIBATCH}_shuffled")
    assert np.abs(control).max() < 0.3
    assert found.map()[:5, :5].min() > 0.3


def test_intervals_are_over_batches_and_need_eight() -> None:
    few = similarity(net(0), net(1), images(), layers=LAYERS, batch_size=24).table
    rows = few.filter(pl.col("metric") == MINIBATCH)
    assert rows["low"].null_count() == len(rows)
    assert rows["note"][0].startswith("4 batches")
    many = similarity(net(0), net(1), images(), layers=LAYERS, batch_size=12).table.filter(
        pl.col("metric") == MINIBATCH
    )
    assert (many["low"] <= many["value"]).all()
    assert (many["high"] >= many["value"]).all()


def test_what_the_images_explain_is_taken_off() -> None:
    """A layer that only rotates the images has nothing left; a deep one keeps some. By the definition elsewhere."""
    model = net(0)
    found = similarity(model, data=images(), measures=(DECONFOUNDED,), layers=LAYERS, batch_size=N)
    a, x = answers(model, images()), images().x.double().flatten(1)

    def u(z: Tensor) -> Tensor:
        k = z @ z.T
        k.fill_diagonal_(0)
        n = len(k)
        k = k - k.sum(1)[:, None] / (n - 2) - k.sum(0)[None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        return k.fill_diagonal_(0)

    own = u(x)
    rest = [u(z) for z in a.values()]
    rest = [k - (k * own).sum() / (own * own).sum() * own for k in rest]
    truth = [[float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()) for m in rest] for k in rest]
    # A part of the norm is gone, so what is left has fewer digits.
    assert np.abs(found.map(DECONFOUNDED) - np.array(truth)).max() < 1e-4
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    image_only = similarity(flat, data=images(), measures=(DECONFOUNDED,), layers=("0",))
    assert np.isnan(image_only.map(DECONFOUNDED)).all()
    assert "beyond what the images explain" in image_only.table["note"][0]


def test_a_constant_layer_has_no_value_and_the_others_have() -> None:
    model = net(0)
    model.norm1.weight.data.zero_()  # type: ignore[union-attr,operator]
    found = similarity(model, data=images(), layers=LAYERS, batch_size=24)
    made = found.map()
    assert np.isnan(made[1]).all()
    assert np.isnan(made[:, 2]).all()
    assert np.isfinite(made[0, 0])
    row = found.table.filter((pl.col("layer") == "norm1") & (pl.col("metric") == MINIBATCH)).row(0, named=True)
    assert (row["value"], row["note"]) == (None, "a side does not vary")


def test_clean_beside_perturbed() -> None:
    """No noise: 1 everywhere a layer meets itself. Noise: less, and least in the first layer of white noise."""
    quiet = similarity(net(0), data=images(), layers=LAYERS, perturbation=GaussianNoise(0.0), batch_size=N)
    rows = quiet.table.filter(pl.col("metric") == SAME_LAYER)
    assert rows["value"].to_list() == pytest.approx([1.0] * 6, abs=1e-6)
    assert rows["layer"].to_list() == list(LAYERS)
    loud = similarity(net(0), data=images(), layers=LAYERS, perturbation=GaussianNoise(0.3), batch_size=N)
    assert max(loud.table.filter(pl.col("metric") == SAME_LAYER)["value"]) < 0.95
    attacked = similarity(net(0), data=images(), layers=LAYERS, perturbation=LinfPGD(eps=0.1))
    assert attacked.table["perturbation"][0] == "itself under LinfPGD"
    assert attacked.table["level"][0] == pytest.approx(0.1)


def test_other_measures_go_pair_by_pair_over_kept_rows() -> None:
    one, two = net(0), net(1)
    found = similarity(one, two, images(), ("procrustes",), layers=("relu2", "head"), shuffles=0)
    a, b = answers(one, images()), answers(two, images())
    x, y = (z["head"] - z["head"].mean(0) for z in (a, b))
    nuclear = torch.linalg.svdvals(x.T @ y).sum() / (x.norm() * y.norm())
    assert found.map("procrustes")[1, 1] == pytest.approx(2 - 2 * float(nuclear), abs=1e-5)
    fewer = similarity(one, two, images(), ("procrustes",), layers=("head",), shuffles=0, points=40)
    assert fewer.table.filter(pl.col("metric") == "procrustes")["n"].to_list() == [40]


def test_stored_responses_and_plain_matrices() -> None:
    a, b = answers(net(0), images()), answers(net(1), images())
    found = similarity(a, b)
    assert found.layers == LAYERS
    assert np.abs(found.map("cka") - expected(a, b)).max() < 1e-9
    one = similarity(a["head"], b["head"], measures=("cka", "cca"))
    rows = one.table.filter(pl.col("metric") == "cka").row(0, named=True)
    assert rows["value"] == pytest.approx(debiased(a["head"], b["head"]), abs=1e-9)
    assert rows["low"] < rows["value"] < rows["high"]
    assert set(one.table["metric"]) == {"cka", "cka_shuffled", "cca", "cca_shuffled"}


def in_other_order(split: Split) -> Batch:
    order = torch.randperm(len(split), generator=stream("other"))
    return Batch(split.x[order].flatten(1), split.y[order], split.index[order])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: similarity(net(0), data=images(3)), "at least 4 images"),
        (lambda: similarity(net(0), data=images(), batch_size=3), "at least 4 images"),
        (lambda: similarity(net(0), data=images(), measures=()), "no measure"),
        (lambda: similarity(net(0), data=images(), perturbation="noise"), "not one perturbation"),
        (lambda: similarity(Tokens(), data=images(), layers=("layer",), batch_size=16), "first axis must be the"),
        (lambda: similarity(torch.ones(3, 2), torch.ones(3, 2)), "at least 4 rows"),
        (lambda: similarity(torch.ones(9, 2), torch.ones(8, 2)), "rows must be of the same images"),
        (lambda: similarity(torch.full((9, 2), torch.nan), torch.ones(9, 2)), "NaN"),
        (lambda: similarity(torch.ones(9, 2, 2), torch.ones(9, 2)), "flatten"),
        (lambda: similarity(torch.ones(9, 2), net(0), images()), "one of each"),
        (lambda: similarity(net(0), data=images(), measures=("ckaa",)), "cka"),
        (lambda: similarity(net(0), data=images(), weights="none"), "pairs"),
        (lambda: similarity(torch.ones(9, 2), data=images()), "leave out data"),
        (lambda: similarity({}, {}), "no layers"),
        (lambda: similarity(net(0), data=images(), layers=("conv9",)), "conv9"),
        (lambda: similarity(net(0), data=images(), reduce=positions), "one row per image"),
        (
            lambda: similarity(
                {"a": Batch(images().x.flatten(1), images().y, images().index)}, {"b": in_other_order(images())}
            ),
            "shuffl",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call: Callable[[], Similarity], words: str) -> None:
    with pytest.raises(GeophoneError, match=words):
        call()


@pytest.mark.parametrize("measure", ["cka_minibatch", "cka_minibatch_deconfounded", "cka", "cka_biased", "procrustes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_that_is_not_finite_leaves_the_others_theirs(measure: str, value: float) -> None:
    """Of one image in one layer: every pair with that layer is null with the reason, all others are as without it."""
    model = net(0)

    def spoiled(response: torch.Tensor) -> torch.Tensor:
        flat = response.flatten(1)
        if response.shape[1] == model.conv2.out_channels:  # type: ignore[union-attr]
            flat = flat.clone()
            flat[torch.isclose(flat[:, :9], mark, atol=1e-4).all(1)] = value
        return flat

    names = ["conv1", "conv2"]
    with tap(model, ["conv2"], lambda r: r.flatten(1)) as seen:
        model(images().x[:1])
    mark = seen["conv2"][0, :9]
    sound, broken = (
        similarity(model, data=images(), layers=names, measures=measure, reduce=reduce, shuffles=2)
        for reduce in (lambda r: r.flatten(1), spoiled)
    )
    with_it = (pl.col("layer") == "conv2") | (pl.col("other") == "conv2").fill_null(False)
    lost = broken.table.filter(with_it & pl.col("layer").is_not_null())
    assert len(lost) >= 3
    assert lost["value"].null_count() == len(lost)
    assert all(f"1 of {len(images())} examples have NaN or infinite responses" in note for note in lost["note"])
    kept = (sound.table.filter(~with_it & (pl.col("layer") == "conv1")) for sound in (sound, broken))
    assert next(kept).equals(next(kept))


@pytest.mark.parametrize("measure", ["cka_minibatch", "cka"])
@pytest.mark.parametrize("scale", [1e34, 1e-34])
def test_responses_that_float32_cannot_square_are_no_others(measure: str, scale: float) -> None:
    model = net(0)
    sound, scaled = (
        similarity(model, data=images(), layers=LAYERS, measures=measure, reduce=reduce, shuffles=0).map()
        for reduce in (lambda r: r.flatten(1), lambda r: r.flatten(1) * scale)
    )
    # Scaled by 1e34 the responses are rounded anew in float32: 1e-7 of each.
    assert np.allclose(sound, scaled, atol=1e-5)
    assert not np.isnan(sound).any()


def test_stored_responses_that_are_not_finite() -> None:
    rows = torch.randn(40, 3, generator=stream("stored"))
    holed = rows.clone()
    holed[4, 1] = torch.nan
    found = similarity({"a": rows, "b": holed, "c": rows[:, :2]})
    assert np.isnan(found.map()).tolist() == [[False, True, False], [True, True, True], [False, True, False]]
    notes = found.table.filter(pl.col("other") == "b", pl.col("value").is_null())["note"].unique().to_list()
    assert all("1 of 40 examples have NaN or infinite responses" in note for note in notes)


# What a map shows, in numbers: closed forms.


def blocks(inside: float, outside: float, size: int = 4) -> np.ndarray:
    made = np.full((2 * size, 2 * size), outside)
    made[:size, :size] = made[size:, size:] = inside
    np.fill_diagonal(made, 1.0)
    return made


def test_scalars_of_two_blocks() -> None:
    made = blocks(0.9, 0.2)
    stages = [0] * 4 + [1] * 4
    assert maps.block_contrast(made, stages) == pytest.approx(0.7)
    assert maps.largest_block(made, 0.8) == 4
    assert maps.largest_block(made, 0.95) == 1
    assert maps.largest_block(made, 0.1) == 8
    # Eight layers, at least 3.5 of 7 steps apart: 4, 5, 6 or 7; all between blocks.
    assert maps.far_similarity(made) == pytest.approx(0.2)
    # A tenth of 7 steps is less than one: neighbours alone, six of the seven within a block.
    assert maps.near_similarity(made) == pytest.approx((6 * 0.9 + 0.2) / 7)


def test_effective_layers_count_groups() -> None:
    assert maps.effective_layers(np.ones((6, 6))) == pytest.approx(1)
    assert maps.effective_layers(np.eye(6)) == pytest.approx(6)
    assert maps.effective_layers(blocks(1.0, 0.0)) == pytest.approx(2)
    assert maps.entropy_layers(blocks(1.0, 0.0)) == pytest.approx(2)
    assert maps.entropy_layers(np.eye(6)) == pytest.approx(6)


def test_largest_block_by_all_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = rng.random((7, 7))
        made = np.maximum(made, made.T)
        np.fill_diagonal(made, 1)
        runs = [(i, j) for i in range(7) for j in range(i, 7) if (made[i : j + 1, i : j + 1] >= 0.4).all()]
        assert maps.largest_block(made, 0.4) == max(j - i + 1 for i, j in runs)


def test_equal_depth_of_networks_of_two_lengths() -> None:
    made = np.zeros((3, 5))
    made[[0, 1, 2], [0, 2, 4]] = [0.3, 0.6, 0.9]
    assert maps.equal_depth_similarity(made) == pytest.approx(0.6)


def test_scalars_without_a_value_say_why() -> None:
    gap = blocks(0.9, 0.2)
    gap[0] = gap[:, 0] = np.nan
    with pytest.raises(Undefined, match="a layer has no similarity"):
        maps.effective_layers(gap)
    with pytest.raises(Undefined, match="one stage"):
        maps.block_contrast(blocks(0.9, 0.2), [0] * 8)
    with pytest.raises(Undefined, match="3 stages on one side and 2"):
        maps.block_contrast(np.ones((3, 2)), [0, 1, 2], [0, 1])
    with pytest.raises(Undefined, match="far from each other"):
        maps.far_similarity(np.ones((1, 1)))
    for scalar in (maps.far_similarity, maps.near_similarity, maps.equal_depth_similarity):
        with pytest.raises(Undefined, match="a layer has no similarity"):
            scalar(gap)


def test_first_component_and_dominant_images() -> None:
    """Rank one: the first component is all. One image a hundred times as far as the others is nearly all of the sum."""
    x = torch.rand(N, 1, 1, 1, generator=stream("one")).expand(N, 3, 8, 8).contiguous()
    x[0] = 1.0
    split = Split(x, torch.arange(N) % 4, torch.arange(N))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    table = similarity(flat, data=split, layers=("1",)).table
    shares = dict(table.filter(pl.col("metric").str.ends_with("_share")).select("metric", "value").iter_rows())
    assert shares["first_pc_share"] == pytest.approx(1.0, abs=1e-5)
    lengths = (x.flatten(1).double() - x.flatten(1).double().mean(0)).square().sum(1)
    assert shares["dominant_share"] == pytest.approx(float(lengths.max() / lengths.sum()), abs=1e-5)
