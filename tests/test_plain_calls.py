"""What a newcomer calls: the obvious is taken, and the rest is one sentence, never a TypeError from within."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import geophone
from geophone import GeophoneError
from geophone.analysis.claims import Increasing, Measure
from geophone.data import synthetic
from geophone.perturb import GaussianNoise, LinfPGD
from geophone.stats import Moments
from geophone.train import Standard

DATA = synthetic(classes=3, train=20, val=5, test=12, size=8)
SHORT = geophone.Training(epochs=1, batch_size=10)
X, LABELS = np.random.default_rng(0).random((12, 5)), np.arange(12) % 3
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
ONE = LinfPGD(eps=0.1, steps=1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


TAKEN: dict[str, Callable[[], object]] = {
    "fit by a recipe's name": lambda: geophone.fit(net(), DATA, "Standard", SHORT),
    "fit by code": lambda: geophone.fit(net(), DATA, "Standard()", SHORT),
    "points and labels": lambda: geophone.manifold_geometry(X, LABELS),
    "points and texts": lambda: geophone.manifold_geometry(X, ["abc"[i] for i in LABELS]),
    "a metric of a list": lambda: geophone.METRICS["participation_ratio"](X.tolist()),
    "a metric of NumPy's": lambda: geophone.METRICS["class_selectivity"](X, LABELS),
    "one metric's name": lambda: geophone.measure(net(), IMAGES, metrics="accuracy"),
    "one perturbation": lambda: geophone.measure(net(), IMAGES, GaussianNoise(0.1), metrics="accuracy"),
    "texts": lambda: geophone.measure(net(), IMAGES, ["GaussianNoise(std=0.1)"], metrics="accuracy"),
    "one comparison": lambda: geophone.compare(net(), net(), IMAGES, "cka"),
    "attacks as texts": lambda: geophone.survival(net(), IMAGES, ["LinfPGD(eps=0.1, steps=1)"]),
    "lists of rows": lambda: geophone.similarity(X.tolist(), X.tolist()),
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_obvious_is_taken(name: str) -> None:
    TAKEN[name]()


def test_labels_say_which_manifold_a_point_is_of() -> None:
    by_label = geophone.manifold_geometry(X, LABELS)
    listed = geophone.manifold_geometry([X[label == LABELS] for label in range(3)])
    assert by_label.capacity == listed.capacity


def test_a_recipe_by_name_is_the_recipe() -> None:
    assert geophone.fit(net(), DATA, "Standard", SHORT) == geophone.fit(net(), DATA, Standard(), SHORT)


ALL = geophone.METRICS
NAMES = set(ALL)
SAID: dict[str, tuple[Callable[[], object], str]] = {
    "fit a class": (
        lambda: geophone.fit(net(), DATA, Standard),
        "recipe is the class Standard: give a geophone.Recipe or text",
    ),
    "fit a pair": (lambda: geophone.fit(net(), IMAGES, "Standard"), "data is of type tuple: give a geophone.ImageData"),
    "fit a name": (lambda: geophone.fit("small_cnn", DATA, "Standard"), "model is of type str: give a torch.nn.Module"),
    "fit a number": (lambda: geophone.fit(net(), DATA, "Standard", 3), "training is of type int"),
    "epochs as text": (lambda: geophone.Training(epochs="3"), "epochs is of type str: give a whole number"),
    "one array": (lambda: geophone.manifold_geometry(X), "manifold 0 has the shape"),
    "too few labels": (lambda: geophone.manifold_geometry(X, LABELS[:5]), "one label for each"),
    "a metric without": (lambda: geophone.metric(lambda moments: 1.0), "a metric needs the statistic that it reads"),
    "a metric of none": (lambda: geophone.metric(), "a metric needs the statistic that it reads.*given none"),
    "a metric of a text": (lambda: geophone.metric("Moments"), "a metric needs the statistic that it reads"),
    "a metric of text": (lambda: ALL["participation_ratio"]("abc"), "cannot be made a matrix of numbers"),
    "ragged rows": (lambda: ALL["cka"]([[1, 2], [3]], [[1, 2], [3, 4]]), "cannot be made a matrix of numbers"),
    "texts for labels": (lambda: ALL["class_selectivity"](X, ["a"] * 12), "cannot be made a matrix of numbers"),
    "labels first": (lambda: ALL["class_selectivity"](LABELS, X), "takes responses"),
    "a list of names": (lambda: ALL[["cka"]], "this metric is of type list: give its name as a text"),
    "the metric itself": (
        lambda: geophone.measure(net(), IMAGES, metrics=[ALL["loss"]]),
        r"metrics\[0\] is of type Metric: give text",
    ),
    "texts to compare": (lambda: geophone.similarity("a", "b"), "cannot be made a matrix of numbers"),
    "nothing to compare": (lambda: geophone.similarity(None), "cannot be made a matrix of numbers"),
    "a measure itself": (lambda: geophone.similarity(X, X, measures=ALL["cka"]), "measures is of type Metric"),
    "a class to shake with": (lambda: geophone.measure(net(), IMAGES, GaussianNoise), "is the class GaussianNoise"),
    "classes": (lambda: geophone.measure(net(), IMAGES, [GaussianNoise]), "is the class GaussianNoise"),
    "an attack's class": (lambda: geophone.survival(net(), IMAGES, LinfPGD), "is the class LinfPGD"),
    "a number": (lambda: geophone.scan(net(), IMAGES, 0.1), "perturb is of type float"),
    "no batch": (lambda: geophone.measure(net(), IMAGES, batch_size=0), "batch_size=0"),
    "a batch of text": (
        lambda: geophone.measure(net(), IMAGES, batch_size="4"),
        "batch_size is of type str: give a whole number",
    ),
    "half an exemplar": (
        lambda: geophone.exemplar_manifolds(net(), IMAGES, exemplars=2.5),
        "exemplars is of type float: give a whole number",
    ),
    "a grid of an object": (lambda: geophone.grid(ONE), "spec is of type LinfPGD: give text"),
    "a grid of a list": (lambda: geophone.grid(["noise"]), "spec is of type list: give text"),
    "a pair to load": (lambda: geophone.load(IMAGES), "name_or_path is of type tuple: give text or a path"),
    "nothing to load": (lambda: geophone.load(None), "name_or_path is of type NoneType"),
    "a path to score": (lambda: geophone.scores("runs"), "table is of type str: give a polars.DataFrame"),
    "a path to relate": (lambda: geophone.relate("runs"), "table is of type str: give a polars.DataFrame"),
    "a path to judge": (lambda: geophone.judge([], "runs"), "table is of type str: give a polars.DataFrame"),
    "no claim": (
        lambda: geophone.judge(["it holds"], geophone.measure(net(), IMAGES)),
        r"claims\[0\] is of type str: give a geophone.Claim",
    ),
    "a table to report": (
        lambda: geophone.write_report(geophone.measure(net(), IMAGES)),
        "out is of type DataFrame: give a path or text",
    ),
    "a folder that is no folder": (lambda: geophone.write_report("nowhere"), "nowhere"),
    "a plug-in's number": (lambda: geophone.load_plugin(3), "path is of type int"),
    "a plug-in's name": (lambda: geophone.load_plugin("nowhere.py"), "no plug-in file"),
}


# Of every public function, arguments that are right: each of its parameters in turn is given something odd instead.
RULE = Increasing(Measure("accuracy"), ("A", "B"))
NOISE = "GaussianNoise(std=0.1)"
RIGHT: dict[str, Callable[[], dict[str, Any]]] = {
    "Claim": lambda: {"name": "a", "source": "b", "statement": "c", "tests": (("d", RULE),)},
    "Job": lambda: {"dataset": "mnist", "model": "mlp", "recipe": "Standard", "seed": 0, "training": SHORT},
    "Training": lambda: {"epochs": 1},
    "attack": lambda: {"model": net(), "data": IMAGES, "attacks": [ONE]},
    "compare": lambda: {"first": net(), "second": net(), "data": IMAGES, "metrics": ["cka"]},
    "compare_networks": lambda: {"first": net(), "second": net(), "data": IMAGES},
    "eps_curve": lambda: {"model": net(), "data": IMAGES, "attack": ONE, "eps": [0.1]},
    "exemplar_manifolds": lambda: {
        **{"model": net(), "data": IMAGES, "perturbations": NOISE, "exemplars": 3},
        **{"copies": 3, "n_t": 4},
    },
    "fit": lambda: {"model": net(), "data": DATA, "recipe": "Standard", "training": SHORT},
    "grid": lambda: {"spec": "noise"},
    "input_gradients": lambda: {"model": net(), "data": IMAGES},
    "judge": lambda: {"claims": [], "table": table_of_noise()},
    "load": lambda: {"name_or_path": "synthetic"},
    "load_model": lambda: {"source": net()},
    "load_plugin": lambda: {"path": __file__},
    "manifold_geometry": lambda: {"manifolds": X, "labels": LABELS, "n_t": 4},
    "measure": lambda: {"model": net(), "data": IMAGES, "perturbations": NOISE, "metrics": ["accuracy"]},
    "metric": lambda: {"statistic": Moments},
    "published": lambda: {"model": net()},
    "record": lambda: {"model": net(), "batches": [IMAGES]},
    "relate": lambda: {"table": table_of_noise()},
    "run_study": lambda: {"study": None, "out": "nowhere"},
    "scan": lambda: {"model": net(), "data": IMAGES, "perturb": NOISE, "checks": False},
    "scan_probes": lambda: {},
    "scores": lambda: {"table": table_of_noise()},
    "similarity": lambda: {"first": X, "second": X, "resamples": 2, "shuffles": 2},
    "survival": lambda: {"model": net(), "data": IMAGES, "attacks": [ONE]},
    "tap": lambda: {"model": net()},
    "write_report": lambda: {"out": "nowhere"},
}
ODD: dict[str, object] = {
    **{"None": None, "-1": -1, "0": 0, "2.5": 2.5, "nan": float("nan"), "10**30": 10**30, "True": True},
    **{"'x'": "x", "''": "", "[]": [], "[1]": [1], "[None]": [None], "{}": {}, "a path": Path("/nowhere/x")},
    **{"an object": object(), "a class": Moments, "an array": X, "images": IMAGES[0]},
}


@cache
def table_of_noise() -> pl.DataFrame:
    return geophone.measure(net(), IMAGES, NOISE, metrics=["accuracy"])


def failures() -> list[str]:
    """Calls that end neither in a result nor in a sentence."""
    found = []
    for name, right in RIGHT.items():
        function = getattr(geophone, name)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            for said, odd in ODD.items():
                try:
                    made = function(**{**right(), parameter.name: odd})
                    if name == "record":
                        list(made)
                except GeophoneError:
                    pass
                except Exception as error:
                    found.append(f"{name}({parameter.name}={said}): {type(error).__name__}: {error}"[:200])
    for registry in (geophone.PERTURBATIONS, geophone.RECIPES):
        for name, made_by in registry.items():
            for parameter, (said, odd) in product(inspect.signature(made_by).parameters, ODD.items()):
                try:
                    made_by(**{parameter: odd})
                except GeophoneError:
                    pass
                except Exception as error:
                    found.append(f"{name}({parameter}={said}): {type(error).__name__}: {error}"[:200])
    return found


def answers() -> dict[str, str]:
    """What each call raises: the sentence, or how it failed otherwise."""
    found = {}
    for name, (call, _) in SAID.items():
        try:
            found[name] = f"no error, but a {type(call()).__name__}"
        except GeophoneError as error:
            found[name] = str(error)
        except Exception as error:
            found[name] = f"!{type(error).__name__}: {error}"
    assert set(ALL) == NAMES  # nothing half-registered is left
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Asked in a process of its own, as users have it: in tests, annotations are checked at run time."""
    here = tmp_path_factory.mktemp("calls")
    run = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(run, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answered


@pytest.mark.parametrize("name", SAID)
def test_the_rest_is_said_in_one_sentence(name: str, asked: dict[str, Any]) -> None:
    assert re.search(SAID[name][1], asked["said"][name]), asked["said"][name]


def test_whatever_an_argument_is_there_is_a_result_or_a_sentence(asked: dict[str, Any]) -> None:
    assert not asked["failures"]


def test_every_public_function_is_asked() -> None:
    functions = {name for name in geophone.__all__ if inspect.isfunction(getattr(geophone, name))}
    assert functions <= set(RIGHT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps({"said": answers(), "failures": failures()}))
