"""Perturbations by name, and errors that say what to do."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from geophone.analysis.scores import GROUPS
from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import draws
from geophone.perturb import (
    FGSM,
    L2PGD,
    GaussianNoise,
    LinfPGD,
    SaltAndPepper,
    UniformNoise,
    at_level,
    grid,
)
from geophone.perturb.corruptions import brightness, contrast, pixelate
from geophone.perturb.parse import family_name, level_of

NINETEEN = {name for group in GROUPS.values() for name in group}


def test_a_name_is_every_default_level() -> None:
    assert grid("GaussianNoise") == [GaussianNoise(std=std) for std in GaussianNoise.levels]


def test_a_call_with_its_level_is_one() -> None:
    assert grid("GaussianNoise(std=0.2)") == [GaussianNoise(std=0.2)]
    assert grid("LinfPGD(eps=8/255, steps=20)") == [LinfPGD(eps=8 / 255, steps=20)]


def test_a_call_without_its_level_is_every_default_level_of_it() -> None:
    assert grid("LinfPGD(steps=20)") == [LinfPGD(eps=eps, steps=20) for eps in LinfPGD.levels]


def test_families() -> None:
    assert {one.family for one in grid("noise")} == {"noise"}
    assert {FGSM, LinfPGD, L2PGD} <= {type(one) for one in grid("attack")}
    assert {type(one).__name__ for one in grid("corruption")} == NINETEEN
    assert len(grid("corruption")) == 95
    families = ("noise", "attack", "corruption", "matched")
    assert set(grid("all")) == {one for family in families for one in grid(family)}


def test_a_list_keeps_its_order_and_names_each_once() -> None:
    found = grid(" FGSM(eps=0.1), GaussianNoise ,noise,LinfPGD(eps=0.1, steps=3, random_start=False)")
    assert found[0] == FGSM(eps=0.1)
    assert found[1:-1] == grid("noise")
    assert found[-1] == LinfPGD(eps=0.1, steps=3, random_start=False)


def test_a_plug_in_joins_the_families() -> None:
    @dataclass(frozen=True)
    class Fog:
        haze: float = 0.1
        mix: tuple[int, ...] = (1, 2)
        level: ClassVar[str] = "haze"
        levels: ClassVar[tuple[float, ...]] = (0.1, 0.2)
        family: ClassVar[str] = "weather"

        def __call__(self, x: Any, y: Any, model: Any, rng: Any) -> Any:
            return x

    with PERTURBATIONS.restored():
        PERTURBATIONS.register(Fog)
        assert grid("weather") == grid("Fog") == [Fog(0.1), Fog(0.2)]
        assert grid("Fog(haze=0.3, mix=(1, 2, 3)), FGSM(eps=0.1)") == [Fog(0.3, (1, 2, 3)), FGSM(eps=0.1)]
        assert Fog(0.2) in grid("all")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("GausianNoise", "unknown perturbation 'GausianNoise'. Did you mean 'GaussianNoise'"),
        ("nois", "Did you mean 'noise'"),
        ("noise(std=1)", "unknown perturbation 'noise'|takes no arguments"),
        ("LinfPGD(step=3)", "unknown argument of LinfPGD 'step'. Did you mean 'steps'"),
        ("LinfPGD(eps=8.0)", r"LinfPGD\(eps=8.0\): eps must be a number in \[0, 1\].*8/255, not 8"),
        ("", "cannot read the perturbation ''"),
        ("FGSM(eps=", "cannot read the perturbation"),
        ("FGSM, 3", "cannot read the perturbation"),
    ],
)
def test_a_wrong_spec_is_one_clear_error(spec: str, message: str) -> None:
    with pytest.raises(GeophoneError, match=message):
        grid(spec)


def test_at_level() -> None:
    assert at_level(LinfPGD(steps=20), 0.1) == LinfPGD(eps=0.1, steps=20)
    assert repr(at_level(pixelate(), 4.0)) == "pixelate(severity=4, preset=None)"
    with pytest.raises((GeophoneError, TypeError), match="severity"):  # as below
        at_level(pixelate(), 2.5)


def test_names_for_the_table() -> None:
    assert family_name(LinfPGD(eps=0.1, steps=20)) == "LinfPGD(steps=20)"
    assert level_of(pixelate(severity=4)) == 4.0


def test_numpy_numbers_become_plain_ones() -> None:
    """Or a job's text would hold `np.float64(…)`, which is not a literal."""
    assert repr(GaussianNoise(std=np.float64(0.25))) == "GaussianNoise(std=0.25)"
    assert repr(LinfPGD(eps=0.5, steps=int(np.int64(3)))) == repr(LinfPGD(eps=0.5, steps=3))


@pytest.mark.parametrize(
    ("make", "field", "wrong"),
    [
        (make, field, wrong)
        for make, field, values in [
            (GaussianNoise, "std", [-0.1, math.nan, math.inf]),
            (UniformNoise, "width", [-0.1]),
            (SaltAndPepper, "amount", [-0.1, 1.1]),
            (brightness, "severity", [-1, 6, 7]),
            (FGSM, "eps", [-0.1, 8.0]),
            (LinfPGD, "eps", [-0.1, 8.0]),
            (LinfPGD, "steps", [0, -3]),
            (LinfPGD, "step_size", [-0.1]),
            (L2PGD, "eps", [-0.1, math.nan]),
        ]
        for wrong in values
    ],
)
def test_a_bad_parameter_is_one_clear_error(make: Any, field: str, wrong: float) -> None:
    with pytest.raises(
        GeophoneError, match=rf"^{make.__name__}\({field}={wrong!r}\): {field} must be a(| whole) number"
    ):
        make(**{field: wrong})


@pytest.mark.parametrize(
    "text", ["GaussianNoise(std='a')", "LinfPGD(steps=2.5)", "LinfPGD(random_start=1)", "FGSM(eps=True)"]
)
def test_so_is_one_of_the_wrong_type(text: str) -> None:
    """A `TypeError` where annotations are checked at run time, as they may be while testing."""
    with pytest.raises((GeophoneError, TypeError)):
        PERTURBATIONS.build(text)


IMAGES = torch.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize("perturbation", [GaussianNoise(), contrast(), FGSM(), L2PGD()], ids=repr)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (255 * IMAGES, r"images lie in \[127.5, 127.5\], not in \[0, 1\]: .*normalise inside the model"),
        ((IMAGES - 0.5) / 0.2 - 1, "normalise inside the model"),
        ((255 * IMAGES).to(torch.uint8), r"images are torch.uint8, not float: .*x.float\(\) / 255"),
        (IMAGES * torch.nan, "images hold NaN"),
        (torch.full_like(IMAGES, torch.inf), r"images lie in \[inf, inf\]"),
        (IMAGES[:0], r"cannot perturb a tensor of shape \[0, 3, 4, 4\]"),
        (IMAGES[0, 0, 0], "cannot perturb a tensor of shape"),
        (IMAGES[[0, 1, 0]], "3 images came with labels"),
    ],
    ids=["255", "normalised", "uint8", "nan", "inf", "empty", "one axis", "labels"],
)
def test_wrong_images_are_one_clear_error(perturbation: Any, x: torch.Tensor, message: str) -> None:
    rng = draws("test", index=torch.arange(2))
    with pytest.raises(GeophoneError, match=message):
        perturbation(x, torch.zeros(2, dtype=torch.int64), lambda x: x.flatten(1), rng)


def test_corruptions_need_images_and_noise_does_not() -> None:
    x, y, rng = torch.full((2, 100), 0.5), torch.zeros(2, dtype=torch.int64), draws("test", index=torch.arange(2))
    assert GaussianNoise()(x, y, torch.relu, rng).shape == x.shape
    with pytest.raises(GeophoneError, match=r"shape \[2, 100\]: give a batch \[n, c, h, w\]"):
        contrast()(x, y, torch.relu, rng)


def test_labels_and_draws_are_of_the_same_images() -> None:
    y, rng = torch.zeros(2, dtype=torch.int64), draws("test", index=torch.arange(2))
    with pytest.raises(GeophoneError, match=r"draws of shape \[3\]"):
        GaussianNoise()(IMAGES, y, torch.relu, draws("test", index=torch.arange(3)))
    with pytest.raises(GeophoneError, match=r"labels are torch.float32"):
        GaussianNoise()(IMAGES, y.float(), torch.relu, rng)
    with pytest.raises(GeophoneError, match="move all to one device"):
        GaussianNoise()(IMAGES, y.to("meta"), torch.relu, rng)


def test_rounding_beyond_the_range_is_no_error() -> None:
    """A bilinear resize in float32 may give 1.0000001; the result is in [0, 1] again."""
    x = torch.full((2, 3, 4, 4), 1 + 2**-23)
    out = brightness(severity=1)(x, torch.zeros(2, dtype=torch.int64), torch.relu, draws("test", index=torch.arange(2)))
    assert out.max() == 1
