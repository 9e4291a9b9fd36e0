"""AugMix against Pillow, closed forms and its promises; each oracle rejects a mutant."""

from importlib.util import find_spec
from math import degrees, log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn.functional import cross_entropy

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.testing.contracts import broken_contracts
from geophone.train import AugMix, augmix, initialised
from geophone.train.augmix import augmixed, autocontrast, equalised, jensen_shannon, moved, posterised, solarised


@pytest.fixture(scope="module")
def photos():
    """Eight photographs at 96 × 64, four at 28 × 28 (few pixels: steps of 2 in equalise), dull ones and a constant."""
    folder = Path(find_spec("foolbox").origin).parent / "data"
    large = [Image.open(path).convert("RGB").resize((96, 64)) for path in sorted(folder.glob("imagenet_*.jpg"))[:8]]
    small = [image.resize((28, 28)) for image in large[:4]] + [image.resize((40, 30)).convert("L") for image in large]
    dull = [image.point(lambda v: 90 + v // 5) for image in large[:3]]
    return large + small + dull + [Image.new("RGB", (20, 30), (7, 7, 200)), Image.new("L", (9, 9), 128)]


def levels(image):
    array = np.asarray(image)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())[None]


def test_autocontrast_is_pillows_to_the_bit(photos):
    assert all(torch.equal(autocontrast(levels(p)), levels(ImageOps.autocontrast(p))) for p in photos)
    jointly = [255 * (x - x.min()) // (x.max() - x.min()).clamp(min=1) for x in (levels(p).long() for p in photos)]
    assert not all(
        torch.equal(m, levels(ImageOps.autocontrast(p)).long()) for m, p in zip(jointly, photos, strict=True)
    )


def test_equalise_is_pillows_to_the_bit(photos):
    assert all(torch.equal(equalised(levels(p)), levels(ImageOps.equalize(p))) for p in photos)
    p = photos[0]  # Without the half step, the mutant:
    count = torch.bincount(levels(p)[0, 0].flatten().long(), minlength=256)
    floored = (count.cumsum(0) - count) // ((count.sum() - count[levels(p)[0, 0].max().long()]) // 255)
    assert not torch.equal(floored[levels(p)[0, 0].long()], levels(ImageOps.equalize(p))[0, 0].long())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_posterise_is_pillows_to_the_bit(photos, bits):
    number = torch.tensor([bits])
    assert all(torch.equal(posterised(levels(p), number), levels(ImageOps.posterize(p, bits))) for p in photos)
    assert bits == 8 or not torch.equal(posterised(levels(photos[0]), number + 1), levels(photos[0]))


@pytest.mark.parametrize("threshold", [1, 100, 180, 255, 256])
def test_solarise_is_pillows_to_the_bit(photos, threshold):
    number = torch.tensor([threshold])
    ours = [solarised(levels(p), number) for p in photos]
    wanted = [levels(ImageOps.solarize(p, threshold)) for p in photos]
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    next_one = [levels(ImageOps.solarize(p, threshold - 1)) for p in photos]
    assert not all(torch.equal(a, b) for a, b in zip(ours, next_one, strict=True))


def move(image, **amounts):
    names = ("turn", "shear_x", "shear_y", "shift_x", "shift_y")
    return moved(levels(image), **{name: torch.tensor([float(amounts.get(name, 0))]) for name in names})


def agree(ours, pillow):
    """Within one level: Pillow rounds down what we round; 1e-6 of the places may fall on another side of the edge."""
    off = (ours.int() - levels(pillow).int()).abs()
    return off.max() <= 1 or (off > 1).float().mean() < 1e-4


@pytest.mark.parametrize("amount", [0.29, 0.09, -0.21])
def test_shear_is_pillows_to_one_level(photos, amount):
    for p in photos:
        for name, data in (("shear_x", (1, amount, 0, 0, 1, 0)), ("shear_y", (1, 0, 0, amount, 1, 0))):
            pillow = p.transform(p.size, Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR)
            assert agree(move(p, **{name: amount}), pillow)
    p = photos[0]
    flat = Image.Transform.AFFINE, (1, amount, 0, 0, 1, 0)
    nearest = p.transform(p.size, *flat, resample=Image.Resampling.NEAREST)
    assert not agree(move(p, shear_x=amount), nearest)
    bilinear = p.transform(p.size, *flat, resample=Image.Resampling.BILINEAR)
    assert not agree(move(p, shear_x=-amount), bilinear)


@pytest.mark.parametrize("turn", [0.15, -0.4, 0.52])
def test_turn_is_pillows_to_one_level(photos, turn):
    for p in photos:
        assert agree(move(p, turn=turn), p.rotate(degrees(turn), resample=Image.Resampling.BILINEAR))
    assert not agree(move(photos[0], turn=-turn), photos[0].rotate(degrees(turn), resample=Image.Resampling.BILINEAR))


def test_shift_is_pillows_to_the_bit_and_nothing_moved_is_the_same(photos):
    for p in photos:
        pillow = p.transform(
            p.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, -2), resample=Image.Resampling.BILINEAR, fillcolor=0
        )
        assert torch.equal(move(p, shift_x=3, shift_y=-2), levels(pillow))
        assert torch.equal(move(p), levels(p))


def images(n=40, c=3, h=20, w=16):
    return torch.rand(n, c, h, w, generator=stream("augmix", n, c)), draws(0, "augmix", index=torch.arange(n))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 7, 5), (4, 1, 1)])
@pytest.mark.parametrize("severity", [1, 10])
def test_images_of_any_size_and_channels_stay_in_range(shape, severity):
    x, rng = images(30, *shape)
    for dtype in (torch.float32, torch.float64):
        mixed = augmixed(x.to(dtype), rng, severity=severity, depth=4)
        assert mixed.shape == (2, *x.shape)
        assert mixed.dtype == dtype
        assert mixed.min() >= 0
        assert mixed.max() <= 1
        assert bool(mixed.isfinite().all())


def test_an_image_comes_out_the_same_in_any_batch():
    x, rng = images()
    whole = augmixed(x, rng)
    rows = torch.randperm(40, generator=stream("order"))
    assert torch.equal(augmixed(x[rows], rng[rows]), whole[:, rows])
    assert torch.equal(augmixed(x[5:6], rng[5:6]), whole[:, 5:6])
    assert torch.equal(augmixed(x.to(memory_format=torch.channels_last), rng), whole)
    assert not torch.equal(augmixed(x[rows], rng), whole[:, rows])
    assert not torch.equal(whole[0], whole[1])


def test_draws_have_the_distributions_of_the_paper(monkeypatch):
    """Operations replaced by ones that leave a trace: how many of each kind, how long, how strong, how mixed."""
    seen = []
    blank = torch.zeros(3000, 1, 2, 2)
    rng = draws(0, "many", index=torch.arange(3000))
    trace = [lambda x, amount, i=i: seen.append((i, amount)) or x + 1 for i in range(4)]
    monkeypatch.setattr(augmix, "POINTWISE", tuple(trace))
    monkeypatch.setattr(augmix, "_motion", lambda kind, amount, h, w: (kind, amount))
    monkeypatch.setattr(augmix, "moved", lambda x, kind, amount: seen.append((kind + 4, amount)) or x + 1)
    mixed = augmixed(blank, rng, severity=3)
    kinds = torch.cat([torch.as_tensor(kind).expand(len(amount)) for kind, amount in seen])
    amounts = torch.cat([amount for _, amount in seen])
    total = 3000 * 6 * 2  # a chain has 2 operations on average, with variance 2/3
    assert abs(len(kinds) - total) < 5 * (3000 * 6 * 2 / 3) ** 0.5
    share = torch.bincount(kinds, minlength=9) / len(kinds)
    assert (share - 1 / 9).abs().max() < 5 * (8 / 81 / len(kinds)) ** 0.5
    sigma = 0.3 / 12**0.5  # of |amount|, uniform on [0, 0.3]
    assert abs(amounts.abs().mean() - 0.15) < 5 * sigma / len(kinds) ** 0.5
    assert 0.29 < amounts.abs().max() < 0.3
    assert abs((amounts > 0).float().mean() - 0.5) < 5 * 0.5 / len(kinds) ** 0.5
    # An image of zeros after a chain of length l is l/255, so the mixture's mean is (1 - 1/2) · 2/255. Its variance,
    # for lengths' variance 2/3 and E Σ w² = 1/2 of Dirichlet(1, 1, 1): E(1-m)² (4 + 2/3 · 1/2) - 1 = 13/9 - 1 = 4/9.
    length = mixed[:, :, 0, 0, 0].flatten() * 255
    assert abs(length.mean() - 1) < 5 * (4 / 9 / 6000) ** 0.5
    # The sixth is 5 standard errors of a variance whose kurtosis is below 3: 5 · (4/9) · (2/6000)^½ = 0.04.
    assert abs(length.var() - 4 / 9) < 0.04


def test_weights_of_the_chains_are_dirichlets(monkeypatch):
    """A third of the operations make an image white, so a mixture of black and white ones shows its weights' sum S.

    One of three chains white, odds 4: S ~ Beta(1, 2), P(S < 1/4) = 7/16. Two white, odds 2: Beta(2, 1), 1/16. In all
    5/16. Uniform numbers divided by their sum, the mutant, have 1/3 and 1/54, in all 0.228.
    """
    white = tuple((lambda x, _, i=i: torch.full_like(x, 255 * (i < 3))) for i in range(9))
    monkeypatch.setattr(augmix, "POINTWISE", white)
    monkeypatch.setattr(augmix, "MOVES", 0)
    draw = Draws.uniform
    monkeypatch.setattr(Draws, "uniform", lambda self, name, *s: draw(self, name, *s) * (name != "skip"))
    mixed = augmixed(torch.zeros(3000, 1, 1, 1), draws(0, "dirichlet", index=torch.arange(3000)), depth=1)
    some = mixed[(mixed > 1e-6) & (mixed < 1 - 1e-6)]
    assert abs(len(some) / 6000 - 2 / 3) < 5 * (2 / 9 / 6000) ** 0.5
    assert abs((some < 0.25).float().mean() - 5 / 16) < 5 * (5 / 16 * 11 / 16 / len(some)) ** 0.5


def test_where_all_weight_is_on_the_original_it_comes_back(monkeypatch):
    x, rng = images()
    draw = Draws.uniform
    monkeypatch.setattr(
        Draws, "uniform", lambda self, name, *s: draw(self, name, *s) * (name != "skip") + (name == "skip")
    )
    assert torch.equal(augmixed(x, rng), x.expand(2, *x.shape))
    monkeypatch.undo()
    assert not torch.equal(augmixed(x, rng), x.expand(2, *x.shape))


def test_a_weight_that_is_drawn_as_zero_is_no_division_by_zero(monkeypatch):
    x, rng = images(4)
    monkeypatch.setattr(Draws, "uniform", lambda self, name, *s: torch.zeros(len(self.index), *s))
    assert bool(augmixed(x, rng, width=1).isfinite().all())


def test_one_chain_of_one_operation_is_that_operation(monkeypatch):
    """With no weight on the original, each result is exactly one of the nine, at the amount that was drawn."""
    x = torch.randint(0, 256, (60, 3, 12, 18), generator=stream("one"), dtype=torch.uint8)
    rng = draws(0, "one", index=torch.arange(60))
    draw = Draws.uniform
    monkeypatch.setattr(Draws, "uniform", lambda self, name, *s: draw(self, name, *s) * (name != "skip"))
    got = (augmixed(x / 255, rng, copies=1, width=1, depth=1, severity=10)[0] * 255).round().to(torch.uint8)
    kind = (rng.uniform("operation", 1, 1).flatten() * 9).long()
    level = rng.uniform("level", 1, 1).flatten()
    sign = torch.where(rng.uniform("direction", 1, 1).flatten() < 0.5, -1, 1)
    assert set(kind.tolist()) == set(range(9))
    for i in range(60):
        one, a, zero = x[i : i + 1], level[i : i + 1], torch.zeros(1)
        s = a * sign[i]
        moves = torch.stack([s * torch.pi / 6, s * 0.3, s * 0.3, (s * 18 / 3).trunc(), (s * 12 / 3).trunc()])
        wanted = [
            lambda one=one: autocontrast(one),
            lambda one=one: equalised(one),
            lambda one=one, a=a: posterised(one, 4 - (4 * a).long()),
            lambda one=one, a=a: solarised(one, 256 - (256 * a).long()),
        ] + [
            lambda one=one, k=k, moves=moves, zero=zero: moved(one, *[moves[j] if j == k else zero for j in range(5)])
            for k in range(5)
        ]
        off = (wanted[kind[i]]()[0].int() - got[i].int()).abs()
        assert off.max() <= 1, kind[i]  # a rounding of a sine may turn one level
        assert (off > 0).float().mean() < 0.01


def test_divergence_in_closed_form():
    one_hot = 200 * torch.eye(3)[:, None].expand(3, 5, 3)
    assert jensen_shannon(one_hot) == pytest.approx(log(3), abs=1e-6)
    same = torch.randn(1, 5, 4, generator=stream("jsd")).expand(3, 5, 4)
    assert jensen_shannon(same) == pytest.approx(0, abs=1e-6)
    two = 200 * torch.eye(3)[[0, 0, 1]][:, None]  # M = (2/3, 1/3): (2 ln(3/2) + ln 3) / 3
    assert jensen_shannon(two) == pytest.approx((2 * log(1.5) + log(3)) / 3, abs=1e-6)
    # Entropy of the mean less the mean entropy, the other way to write it; KL(M || p), the mutant, is something else.
    logits = torch.randn(3, 6, 4, generator=stream("jsd", 2)).double()
    p = logits.softmax(2)
    m = p.mean(0)
    other = ((p * p.log()).sum(2).mean(0) - (m * m.log()).sum(1)).mean()
    assert jensen_shannon(logits) == pytest.approx(other.item(), abs=1e-12)
    assert abs((m * (m.log() - p.log())).sum(2).mean() - other) > 1e-3
    assert torch.autograd.gradcheck(jensen_shannon, logits.requires_grad_())


def network():
    return initialised(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()), 0)


def test_loss_is_cross_entropy_of_the_clean_and_twelve_divergences():
    model = nn.Sequential(network(), initialised(lambda: nn.Linear(4 * 18 * 14, 3), 1))
    x, rng = images()
    y = torch.arange(40) % 3
    model.eval()
    with torch.no_grad():
        logits = torch.stack([model(x), *(model(mixed) for mixed in augmixed(x, rng))])
        wanted = cross_entropy(logits[0], y) + 12 * jensen_shannon(logits)
        mutant = cross_entropy(logits.flatten(0, 1), y.repeat(3)) + 12 * jensen_shannon(logits)
        got = AugMix().loss(model, x, y, rng)
    assert got == pytest.approx(wanted.item(), rel=1e-5)
    assert got != pytest.approx(mutant.item(), rel=1e-5)


def test_one_pass_of_all_three_so_batch_norm_counts_one_batch():
    model = nn.Sequential(network(), initialised(lambda: nn.Linear(4 * 18 * 14, 3), 1)).train()
    x, rng = images()
    state = torch.get_rng_state()
    losses = [AugMix().loss(model, x, torch.arange(40) % 3, rng).item() for _ in range(2)]
    assert model[0][1].num_batches_tracked == 2
    assert losses[0] == losses[1]
    assert torch.equal(state, torch.get_rng_state())


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"width": 0}, {"depth": -1}, {"severity": 0}, {"severity": 11}, {"jsd": 0.0}):
        with pytest.raises(GeophoneError, match=next(iter(wrong))):
            AugMix(**wrong)


def test_contract():
    assert broken_contracts("recipes", "AugMix") == []


def test_no_two_things_share_draws(monkeypatch):
    names = []
    draw = Draws.uniform
    monkeypatch.setattr(Draws, "uniform", lambda self, name, *s: names.append(name) or draw(self, name, *s))
    augmixed(*images())
    assert len(set(names)) == len(names) == 6
