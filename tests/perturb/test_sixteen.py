"""The sixteen points at which other tools go wrong (specification of perturbations, §5): a test for each.

Where a point has tests of its own elsewhere, the one here is the shortest that would notice its loss; see
test_losses.py (1), tests/robustness (2, 6, 8, 11), test_perturbation_laws.py (3, 4), test_pgd.py (10).
"""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import draws, stream
from geophone.perturb import FGSM, L1, L1PGD, L2, L2PGD, LinfPGD, grid
from geophone.perturb.attacks.apgd import LinfAPGD
from geophone.perturb.attacks.carlini_wagner import CarliniWagner
from geophone.perturb.attacks.deepfool import L2DeepFool
from geophone.perturb.attacks.square import LinfSquare
from geophone.perturb.corruptions import Corruption, frost, glass_blur, jpeg_compression, preset_for, shot_noise
from geophone.perturb.parse import family_name, fitted
from geophone.probes.survival import survival

N, D, K = 48, 12, 4


class Curved(nn.Module):
    """A smooth network with dropout; its logits are multiplied by `scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = stream("sixteen")
        self.first = nn.Parameter(torch.randn(D, 32, generator=generator))
        self.second = nn.Parameter(torch.randn(32, K, generator=generator))
        self.dropout = nn.Dropout(0.3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(2 * (x.flatten(1) - 0.5) @ self.first)) @ self.second * self.scale


def data() -> tuple[Tensor, Tensor]:
    x = torch.rand(N, 1, 3, 4, generator=stream("sixteen images"))
    with torch.no_grad():
        return x, Curved().eval()(x).argmax(1)


RNG = draws("sixteen", index=torch.arange(N))
QUICK = [
    FGSM(0.05),
    LinfPGD(0.05, steps=5),
    L2PGD(0.3, steps=5),
    L1PGD(0.8, steps=5),
    LinfAPGD(0.05, steps=5),
    LinfSquare(0.05, queries=20),
    L2DeepFool(0.3, steps=5),
    CarliniWagner(0.3, steps=5, searches=2),
]
attacks = pytest.mark.parametrize("attack", QUICK, ids=lambda attack: type(attack).__name__)


@attacks
def test_1_confident_logits_raise_no_robust_accuracy(attack: Any) -> None:
    """× 2^20: plain cross-entropy has no gradient left there, and a power of two rounds nothing."""
    plain, confident = (survival(Curved(scale), data(), [attack]).accuracy()[0] for scale in (1.0, 2.0**20))
    assert confident == plain


def test_2_stochastic_networks_are_judged_by_repeated_passes() -> None:
    class Noisy(Curved):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.2 * torch.randn_like(x))

    assert survival(Noisy(), data(), [LinfPGD(0.05, steps=3, draws=2)]).passes == 50
    assert survival(Curved(), data(), [LinfPGD(0.05, steps=3)]).passes == 1


@attacks
def test_3_the_network_is_as_it_was(attack: Any) -> None:
    model = Curved().train()
    model.dropout.eval()  # a frozen part
    attack(*data(), model, RNG)
    assert [module.training for module in model.modules()] == [True, False]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@attacks
def test_4_the_global_random_state_is_as_it_was(attack: Any) -> None:
    before = torch.get_rng_state()
    attack(*data(), Curved(), RNG)
    assert torch.equal(torch.get_rng_state(), before)


@attacks
@pytest.mark.parametrize("change", [lambda x: 255 * x, lambda x: (x - 0.5) / 0.25])
def test_5_images_that_are_not_in_0_1_are_refused_with_the_remedy(attack: Any, change: Any) -> None:
    x, y = data()
    with pytest.raises(GeophoneError, match="normalise inside the model"):
        attack(change(x), y, Curved(), RNG)
    attack(x - 3e-8 * (x == 0), y, Curved(), RNG)  # rounding is no reason


def test_6_success_is_what_a_fresh_pass_says() -> None:
    model, (x, y) = Curved().eval(), data()
    found = survival(model, (x, y), [L2DeepFool(eps=100.0)])
    nearest = L2DeepFool(eps=100.0).nearest(x, y, model, RNG)
    with torch.no_grad():
        wrong = model(nearest).argmax(1) != y
    assert wrong.float().mean() > 0.9
    assert torch.equal(found.fooled[:, 0, 0], found.margin[:, 0, 0] < 0)


def test_7_what_failed_is_the_clean_image_and_infinitely_far() -> None:
    """For attacks that look for the nearest example; those with a radius return where they ended."""

    class Deaf(Curved):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x) + nn.functional.one_hot(data()[1], K)[: len(x)]

    x, y = data()
    assert torch.equal(L2DeepFool(steps=3).nearest(x, y, Deaf(), RNG), x)
    from geophone.probes.curves import eps_curve

    curve = eps_curve(Deaf(), (x, y), L2DeepFool(steps=3), [0.5], batch_size=N)
    assert curve.minimum is not None
    assert curve.minimum.isinf().all()


def test_8_what_is_wrong_already_has_radius_0() -> None:
    from geophone.probes.curves import eps_curve

    x, y = data()
    y = torch.where(torch.arange(N) < 10, (y + 1) % K, y)
    curve = eps_curve(Curved(), (x, y), L2DeepFool(), [1e-9])
    assert curve.minimum is not None
    assert (curve.minimum[:10] == 0).all()
    assert (curve.minimum[10:] > 0).all()
    assert curve.accuracy()[0][0] == 1 - 10 / N


def test_9_probabilities_are_noticed() -> None:
    from geophone.data import as_split
    from geophone.probes.checks import attack_checks

    model = nn.Sequential(Curved(), nn.Softmax(1))
    rows = {row["metric"]: row for row in attack_checks(model, as_split(data()))}
    assert rows["check.probabilities"]["value"] == 1


def test_10_an_l1_point_is_in_the_ball_and_the_box_at_once() -> None:
    """The nearest such point, against a brute-force search; clipping after projecting leaves budget unused."""
    x = torch.tensor([[0.9, 0.5, 0.1]], dtype=torch.float64)
    moved = torch.tensor([[2.0, 0.9, 0.1]], dtype=torch.float64)
    found = L1.inside(moved, x, 0.4)
    assert torch.allclose(found, torch.tensor([[1.0, 0.8, 0.1]], dtype=torch.float64), atol=1e-12)
    sequential = (x + L1.project(moved - x, 0.4)).clamp(0, 1)
    assert (sequential - moved).norm() > (found - moved).norm() + 0.05


def test_10_l2_starts_are_uniform_in_the_ball() -> None:
    start = L2.uniform(draws("ball", index=torch.arange(4000)), torch.zeros(4000, 10, dtype=torch.float64))
    assert (start.norm(dim=1) ** 10).mean() == pytest.approx(0.5, abs=0.02)  # its sd is .29/√4000 = .0046


def test_11_restarts_and_attacks_are_worst_for_each_example() -> None:
    found = survival(Curved(), data(), [LinfPGD(0.05, steps=1), L2PGD(0.3, steps=1)], restarts=3)
    each = found.rate.nan_to_num(1).amin((1, 2))
    assert found.accuracy()[0] == each.double().mean().item()
    assert found.accuracy()[0] <= min(found.accuracy(name)[0] for name in found.attacks)


def test_12_constants_are_those_of_the_set_that_the_size_belongs_to() -> None:
    assert [preset_for(side, side) for side in (28, 32, 64, 224)] == ["cifar10", "cifar10", "tiny_imagenet", "imagenet"]
    assert [shot_noise.constants[preset][2] for preset in ("cifar10", "tiny_imagenet", "imagenet")] == [100, 50, 12]
    named = [family_name(fitted(shot_noise(), (1, 3, side, side))) for side in (32, 64, 224)]
    assert named == [f"shot_noise(preset={preset!r})" for preset in ("cifar10", "tiny_imagenet", "imagenet")]
    assert all(len(kind.constants[preset]) == 5 for kind in corruptions() for preset in kind.constants)
    assert all(len(kind.constants) == 3 for kind in corruptions())


def corruptions() -> list[Any]:
    return [kind for _, kind in PERTURBATIONS.items() if isinstance(kind, type) and issubclass(kind, Corruption)]


def test_13_nothing_is_saved_as_jpeg_behind_the_back() -> None:
    """ImageNet-C's files are JPEG of quality 85 on top of their corruption; a constant image would not notice."""
    x = torch.rand(2, 3, 224, 224, generator=stream("photo")).mul(255).floor() / 255
    out = grid("contrast(severity=1, preset='imagenet')")[0](x, torch.zeros(2, dtype=torch.int64), torch.relu, RNG[:2])
    by_hand = (x - x.mean((2, 3), keepdim=True)) * 0.4 + x.mean((2, 3), keepdim=True)
    assert (out - by_hand).abs().max() <= 1 / 255 + 1e-6
    assert "85" in (jpeg_compression.__doc__ or "") + (Corruption.__doc__ or "")


def test_14_glass_blur_copies_where_others_swap() -> None:
    """Values are drawn from the neighbourhood with repetition: some are lost, which no exchange of pixels can do."""
    assert "copy" in (glass_blur.__doc__ or "").lower() or "copies" in (glass_blur.__doc__ or "").lower()


def test_15_a_procedural_frost_says_so() -> None:
    named = family_name(fitted(frost(pictures="procedural"), (1, 3, 32, 32)))
    assert "procedural" in named
    installed = importlib.util.find_spec("imagecorruptions") is not None
    assert ("published" in family_name(fitted(frost(), (1, 3, 32, 32)))) == installed


@pytest.mark.parametrize("name", [kind.__name__ for kind in corruptions()])
def test_16_results_are_truncated_to_256_levels(name: str) -> None:
    x = torch.rand(6, 3, 32, 32, generator=stream("levels"))
    out = PERTURBATIONS[name](severity=2)(x, torch.zeros(6, dtype=torch.int64), torch.relu, RNG[:6]) * 255
    assert (out - out.round()).abs().max() < 1e-4
    # Truncation: what is left of a constant shift of uniform values loses half a level on average, rounding would not.
    if name == "brightness":
        shifted = torch.rand(8, 1, 32, 32, generator=stream("shift")) * 0.5
        moved = PERTURBATIONS[name](severity=1)(shifted, torch.zeros(8, dtype=torch.int64), torch.relu, RNG[:8])
        assert ((moved - shifted).mean() - 0.05).item() == pytest.approx(-0.5 / 255, abs=0.1 / 255)
