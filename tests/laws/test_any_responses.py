"""Every metric under responses of any kind: a number that is right, or no number and the true reason."""

import math

import pytest
import torch

from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.core.types import Batch, Pair
from geophone.metrics import Undefined
from geophone.metrics.metric import OUT_OF_RANGE, OVERFLOW
from geophone.testing.statistic_laws import examples

N, D = 60, 5
NAMES = [name for name, metric in METRICS.items() if METRICS.origin(name) == "geophone"]
RESPONSES = [name for name in NAMES if METRICS[name].reads not in ("images", "logits")]
"""Images and logits are checked before they are measured."""
OF_SIZE = {"mean_response": 1, "glue_center_alignment": 2, "glue_axis_alignment": 2, "glue_center_axis_alignment": 2}
"""Metrics that change with the responses' scale, and as which power of it."""
EPSILON = {"class_selectivity", "class_selectivity_floor"}
"""Metrics whose formula has a constant that small responses vanish beside."""


def changed(data, change):
    if isinstance(data, Pair):
        return Pair(change(data.a), change(data.b), data.index)
    return Batch(change(data.x), data.y, data.index)


def plain(data):
    return (data.a, data.b) if isinstance(data, Pair) else (data.x, data.y)


def with_value(value, rows):
    def change(x):
        x = x.clone()
        x[rows, 0] = value
        return x

    return change


BAD = {
    "one NaN": (with_value(math.nan, [7]), 1),
    "one infinity": (with_value(math.inf, [7]), 1),
    "one of -infinity": (with_value(-math.inf, [7]), 1),
    "all NaN": (with_value(math.nan, slice(None)), N),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", RESPONSES)
def test_a_statistic_that_met_nan_has_no_value(name, kind):
    """Whoever merges statistics of their own gets the reason too, and never a number or an error of linear algebra."""
    metric, (change, _) = METRICS[name], BAD[kind]
    data = changed(examples(metric.reads, N, D), change)
    with pytest.raises(Undefined, match="NaN or infinite"):
        metric(metric.statistic.of(data))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", RESPONSES)
def test_plain_arrays_with_nan_are_counted(name, kind):
    metric, (change, bad) = METRICS[name], BAD[kind]
    with pytest.raises(Undefined, match=f"{bad} of {N} examples have NaN or infinite responses"):
        metric(*plain(changed(examples(metric.reads, N, D), change)))


@pytest.mark.parametrize("scale", [3e38, 1e34, 1e-34, 1e-44])
@pytest.mark.parametrize("name", RESPONSES)
def test_large_and_small_responses_are_numbers(name, scale):
    """Whatever float32 can hold is measured: 1e34 is not infinite, and 1e-34 is not 0."""
    metric = METRICS[name]
    data = examples(metric.reads, N, D)
    wanted = torch.as_tensor(metric(metric.statistic.of(data)), dtype=torch.float64)
    wanted = wanted * scale ** OF_SIZE.get(name, 0)
    got = torch.as_tensor(metric(metric.statistic.of(changed(data, lambda x: x * scale))), dtype=torch.float64)
    if name in EPSILON and scale < 1:
        assert (got < 1e-20).all()
        return
    # Measured to 1e-9 of itself; iterative fits (manifolds) to their own stopping rule.
    assert torch.allclose(got, wanted, rtol=2e-2 if "manifold" in name or "glue" in name else 1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e150, 1e-150])
@pytest.mark.parametrize("name", [n for n in RESPONSES if not ("manifold" in n or "glue" in n or n in OF_SIZE)])
def test_what_float64_cannot_square_says_so(name, scale):
    metric = METRICS[name]
    data = examples(metric.reads, N, D)
    wanted = torch.as_tensor(metric(metric.statistic.of(data)), dtype=torch.float64)
    try:
        got = torch.as_tensor(metric(metric.statistic.of(changed(data, lambda x: x * scale))), dtype=torch.float64)
    except Undefined as reason:
        assert str(reason) in (OVERFLOW, OUT_OF_RANGE)  # noqa: PT017
        return
    if not (name in EPSILON and scale < 1):
        assert torch.allclose(got, wanted, rtol=1e-7, atol=0)


def few(reads, kind):
    """Few examples, few classes or few units of what a metric reads."""
    n, d, y = {
        "no example": (0, 4, []),
        "one": (1, 4, [0]),
        "two": (2, 4, [0, 1]),
        "three": (3, 4, [0, 0, 1]),
        "one class": (30, 4, [0] * 30),
        "one each": (10, 4, list(range(10))),
        "constant": (30, 4, [i % 3 for i in range(30)]),
        "one unit": (30, 1, [i % 3 for i in range(30)]),
    }[kind]
    x = torch.rand(n, d, generator=stream("few", kind), dtype=torch.float64)
    other = x + 0.1 * torch.rand(n, d, generator=stream("few more", kind), dtype=torch.float64)
    if kind == "constant":
        x[:], other[:] = 1.5, 2.0
    labels = torch.tensor(y, dtype=torch.int64)
    if reads in ("pair", "images"):
        return Pair(x, other, torch.arange(n))
    return Batch(x, labels.clamp(max=d - 1) if reads == "logits" else labels, torch.arange(n))


FEW = {
    "no example": NAMES,
    "one": [n for n in NAMES if METRICS[n].reads not in ("images", "logits")],
    "two": ["pca_dim_95", "pca_fraction_95", "difference_dim_95", "participation_ratio", "eta_squared", "cka", "cca"],
    "one class": ["class_selectivity", "class_selectivity_floor", "eta_squared", "manifold_capacity", "glue_capacity"],
    "one each": ["class_selectivity", "class_selectivity_floor", "eta_squared", "manifold_capacity", "glue_capacity"],
    "one unit": ["accuracy", "margin", "loss", "rsa_correlation"],
}
"""What must not have a value; whoever else has one in these cases must have a finite one."""
ALWAYS = {"active_fraction", "mean_response"}
"""Means, which one image has too."""


@pytest.mark.parametrize("kind", ["no example", "one", "two", "three", "one class", "one each", "constant", "one unit"])
@pytest.mark.parametrize("name", NAMES)
def test_few_examples_give_a_number_or_a_reason(name, kind):
    metric = METRICS[name]
    try:
        value = torch.as_tensor(metric(*plain(few(metric.reads, kind))), dtype=torch.float64)
    except Undefined as reason:
        assert "NaN" not in str(reason)  # noqa: PT017
        return
    assert value.isfinite().all()
    assert name not in FEW.get(kind, []) or (kind == "one" and name in ALWAYS), f"a value of {value.tolist()}"
