"""Foolbox 3.3.4 as oracle: the same images from the same start, to 1e-6, on a small convolutional network, float64."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geophone.core.rng import draws, stream
from geophone.models.run import evaluating
from geophone.perturb import FGSM, L2, L2PGD, LINF, LinfPGD, Norm, loss_gradient
from geophone.perturb.attacks.ascent import Ascent, pgd
from geophone.perturb.attacks.losses import ce

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports distutils' successor in an old way
    import eagerpy
    import foolbox

EPS = {LINF: [2 / 255, 8 / 255, 0.3], L2: [0.125, 1.0, 5.0]}
THEIRS = {LINF: foolbox.attacks.LinfPGD, L2: foolbox.attacks.L2PGD}
OURS = {LINF: LinfPGD, L2: L2PGD}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 6),
        )
    return layers.double().eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images with values at 0 and 1, labels, and random numbers in [-1, 1]."""
    generator = stream("foolbox")
    x = torch.rand(8, 3, 12, 12, generator=generator, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    y = torch.randint(6, (8,), generator=generator)
    return x, y, 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1


def of_foolbox(attack: Any, network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return attack.run(foolbox.PyTorchModel(network, bounds=(0, 1)), x, y, epsilon=eps)


def agrees(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max().item() <= 1e-6


@pytest.mark.parametrize("eps", EPS[LINF])
def test_fgsm(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], eps: float) -> None:
    x, y, _ = batch
    ours = FGSM(eps=eps, loss="ce")(x, y, network, draws("unused", index=torch.arange(len(x))))
    agrees(ours, of_foolbox(foolbox.attacks.FGSM(), network, x, y, eps))


@pytest.mark.parametrize(("norm", "eps"), [(norm, eps) for norm in EPS for eps in EPS[norm]])
def test_pgd_from_the_image(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], norm: Norm, eps: float) -> None:
    x, y, _ = batch
    ours = OURS[norm](eps=eps, steps=7, random_start=False, loss="ce")
    theirs = THEIRS[norm](abs_stepsize=2.5 * eps / 7, steps=7, random_start=False)
    agrees(ours(x, y, network, draws("unused", index=torch.arange(len(x)))), of_foolbox(theirs, network, x, y, eps))


def starts_alike(attack: Any, norm: Norm, network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], eps: float) -> None:
    """The same start in the ball for both, put in the place of foolbox's random one."""
    x, y, random = batch
    start = (x + norm.project(random, eps)).clamp(0, 1)
    theirs = THEIRS[norm](abs_stepsize=eps / 3, steps=7, random_start=True)
    theirs.get_random_start = lambda x0, epsilon: eagerpy.astensor(start)
    ours = attack(network, x, y, start, norm=norm, eps=eps, steps=7, step_size=eps / 3)
    agrees(ours, of_foolbox(theirs, network, x, y, eps))


@pytest.mark.parametrize(("norm", "eps"), [(norm, eps) for norm in EPS for eps in EPS[norm]])
def test_pgd_from_a_given_start(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], norm: Norm, eps: float
) -> None:
    starts_alike(own_pgd, norm, network, batch, eps)


def own_pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, **settings: Any) -> Tensor:
    with evaluating(model):
        return pgd(Ascent(model, ce), x, y, start, **settings)


def wrong_pgd(mistake: str) -> Any:
    def attack(model, x, y, start, *, norm, eps, steps, step_size):
        moved = x if mistake == "starts at x" else start
        for _ in range(steps):
            with evaluating(model):
                gradient = loss_gradient(model, moved, y)
            sign = -1 if mistake == "descends" else 1
            moved = moved + sign * step_size * (gradient if mistake == "raw gradient" else norm.steepest(gradient))
            if mistake == "clips before it projects":
                moved = x + norm.project(moved.clamp(0, 1) - x, eps)
                continue
            if mistake != "does not project":
                moved = (moved if mistake == "projects on the last step" else x) + norm.project(moved - x, eps)
            if mistake != "does not clip":
                moved = moved.clamp(0, 1)
        return moved

    return attack


@pytest.mark.parametrize("norm", [LINF, L2])
@pytest.mark.parametrize(
    "mistake", ["none", "starts at x", "descends", "raw gradient", "does not project", "does not clip"]
)
def test_a_mutant_disagrees(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], norm: Norm, mistake: str) -> None:
    if mistake == "none":
        starts_alike(wrong_pgd(mistake), norm, network, batch, EPS[norm][1])
    else:
        with pytest.raises(AssertionError):
            starts_alike(wrong_pgd(mistake), norm, network, batch, EPS[norm][1])


def test_the_order_of_projection_and_clipping_is_theirs(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """In l2 it matters: clipping first leaves a part of the ball unused."""
    with pytest.raises(AssertionError):
        starts_alike(wrong_pgd("clips before it projects"), L2, network, batch, EPS[L2][1])
