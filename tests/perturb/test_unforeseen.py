"""Snow, Gabor noise, JPEG and motion as attacks: each layer against another rendering, each search against its goal.

The renderings here are loops in numpy and scipy; wrong versions of them are rejected by the same checks.
"""

import io
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage, signal
from torch import Tensor, nn

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws, draws, stream
from geophone.core.types import describe
from geophone.perturb import at_level
from geophone.perturb.attacks import gabor, jpeg, snow
from geophone.perturb.attacks.base import Attack
from geophone.perturb.attacks.gabor import GaborAttack
from geophone.perturb.attacks.jpeg import JpegAttack
from geophone.perturb.attacks.layer import LayerAttack
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.snow import SnowAttack
from geophone.perturb.attacks.spatial import TranslationRotation, transformed
from geophone.testing.perturbation_laws import check_perturbation

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports scipy in an old way
    import foolbox

ROUNDING = 1e-12  # of float64 after some hundred operations on numbers of order 1
FLOAT32 = 1e-5  # of float32, in which random numbers are drawn, after some ten operations on numbers up to 10

ATTACKS: list[Attack] = [
    SnowAttack(steps=3),
    GaborAttack(steps=3),
    JpegAttack(steps=3),
    JpegAttack(eps=1.0, ball="linf", steps=3),
    TranslationRotation(translations=3, rotations=3),
    TranslationRotation(tries=3),
]
LAYERS = [attack for attack in ATTACKS if isinstance(attack, LayerAttack)]


def rejected(check: Callable[..., None], *mutants: Any) -> None:
    """Every mutant fails the check."""
    for mutant in mutants:
        with pytest.raises(AssertionError):
            check(mutant)


def keyed(n: int, name: str = "unforeseen") -> Draws:
    return draws(name, index=torch.arange(n) * 3 + 5)


def random_images(n: int = 6, c: int = 3, h: int = 12, w: int = 12) -> Tensor:
    return torch.rand(n, c, h, w, generator=stream("unforeseen", n, c, h, w), dtype=torch.float64)


def photographs() -> Tensor:
    """Ten photographs of CIFAR-10, which come with foolbox."""
    folder = Path(foolbox.__file__).parent / "data"
    pixels = [np.asarray(Image.open(next(folder.glob(f"cifar10_{i:02d}_*.png")))) for i in range(10)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double() / 255


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        head = nn.LazyLinear(6)
        model = nn.Sequential(layers, head).double().eval()
        model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    return model


@pytest.fixture(scope="module")
def pictures(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Photographs and the network's own answers as labels: it is right about all of them."""
    x = photographs()
    return x, network(x).argmax(1).detach()


class Counting(nn.Module):
    """A network that counts the images it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.model(x)


# --- promises of all of them


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
def test_every_law_of_perturbations_holds(attack: Any) -> None:
    if attack == TranslationRotation(translations=3, rotations=3):
        attack = TranslationRotation(translations=2, rotations=2)  # the laws are long for 27 motions
    assert check_perturbation(lambda: attack) == []


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_and_number_of_channels(attack: Any, channels: int, shape: tuple[int, int]) -> None:
    x = random_images(2, channels, *shape)
    out = attack(x, torch.tensor([0, 1]), lambda x: x.flatten(1)[:, :1] * torch.tensor([1.0, -1.0]), keyed(2))
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(attack: Any, dtype: torch.dtype) -> None:
    x = random_images(2, 3, 9, 9).to(dtype)
    out = attack(x, torch.tensor([0, 1]), lambda x: x.flatten(1)[:, ::99], keyed(2))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
def test_only_images_are_attacked(attack: Any) -> None:
    with pytest.raises(GeophoneError, match="n, c, h, w"):
        attack(torch.rand(2, 9), torch.tensor([0, 1]), nn.Linear(9, 2), keyed(2))


def weak(attack: Attack) -> Attack:
    """The attack at a strength that fools some of the photographs and not all."""
    eps = {SnowAttack: 0.1, GaborAttack: 0.05, JpegAttack: 0.5, TranslationRotation: 0.15}[type(attack)]
    extra = {"discolor": 0.0} if isinstance(attack, SnowAttack) else {}
    eps = 0.02 if getattr(attack, "ball", "") == "linf" else eps
    return type(attack)(**{**vars(attack), **extra, "eps": eps})


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
def test_fool_leaves_what_is_fooled_and_does_the_rest_as_the_attack_does(
    attack: Attack, network: nn.Module, pictures: tuple[Tensor, Tensor]
) -> None:
    (x, y), rng = pictures, keyed(10)
    one, whole, saving = weak(attack), Counting(network), Counting(network)
    full, quick = one(x, y, whole, rng), one.fool(x, y, saving, rng)
    fooled = network(quick).argmax(1) != y
    assert 0 < fooled.sum() < len(x), "the test needs some that are fooled and some that are not"
    # The law says how far a batched gradient may move: by 1e-9.
    assert torch.allclose(quick[~fooled], full[~fooled], rtol=0, atol=1e-9)
    assert not fooled[(network(full).argmax(1) != y).logical_not() & ~fooled].any()
    assert saving.seen < whole.seen
    alone = [one.fool(x[i : i + 1], y[i : i + 1], network, rng[i : i + 1]) for i in range(len(x))]
    assert torch.allclose(torch.cat(alone), quick, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", LAYERS, ids=describe)
def test_more_steps_find_a_higher_loss_and_steps_downhill_do_not(
    attack: Any, network: nn.Module, pictures: tuple[Tensor, Tensor]
) -> None:
    (x, y), rng = pictures, keyed(10)

    class Downhill(type(attack)):  # type: ignore[misc]
        def onward(self, z: Tensor, gradient: Tensor) -> Tensor:
            return super().onward(z, -gradient)

    def climbs(kind: Any) -> None:
        made = partial(kind, **{**vars(weak(attack)), "eps": attack.eps, "loss": "margin"})
        short, long = (margin(network(made(steps=n)(x, y, network, rng)), y).mean() for n in (1, 10))
        assert long > short

    climbs(type(attack))
    rejected(climbs, Downhill)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: SnowAttack(eps=-1.0), "eps"),
        (lambda: SnowAttack(budget=0.0), "budget"),
        (lambda: SnowAttack(discolor=2.0), "discolor"),
        (lambda: SnowAttack(steps=0), "steps"),
        (lambda: SnowAttack(loss="hinge"), "hinge"),
        (lambda: GaborAttack(eps=75.0), "75"),
        (lambda: GaborAttack(density=1.5), "density"),
        (lambda: JpegAttack(ball="l1"), "linf"),
        (lambda: JpegAttack(step_size=-1.0), "step_size"),
        (lambda: TranslationRotation(translations=0), "translations"),
        (lambda: TranslationRotation(degrees=200.0), "degrees"),
        (lambda: TranslationRotation(tries=-1), "tries"),
    ],
)
def test_wrong_parameters_are_named(wrong: Callable[[], Any], match: str) -> None:
    with pytest.raises(GeophoneError, match=match):
        wrong()


# --- snow


def drawn_snow(
    z: np.ndarray, flakes: np.ndarray, h: int, w: int, places: Any = snow.PLACES, power: int = 4
) -> np.ndarray:
    """The snow layer of one image, flake by flake."""
    out = np.zeros((h + 40, w + 40))
    for layer, (row, column) in enumerate(places):
        for i in range(z.shape[1]):
            for j in range(z.shape[2]):
                top, left = 20 + 4 * i + row - 6, 20 + 4 * j + column - 6
                out[top : top + 13, left : left + 13] += z[layer, i, j] ** power * flakes[layer]
    return out[20 : 20 + h, 20 : 20 + w]


def test_snow_is_flakes_every_four_pixels_with_the_fourth_power_of_their_intensity() -> None:
    x, rng, attack = random_images(3, 3, 18, 23), keyed(3), SnowAttack(eps=0.7)
    start, laid = attack.layer(x, rng)
    z = torch.rand(start.shape, generator=stream("intensities"), dtype=torch.float64)
    ours, flakes = laid(z, torch.arange(3)).numpy(), snow.flake_kernels(rng).double().numpy()

    def agrees(options: dict[str, Any]) -> None:
        luma = 0.2126 * x[:, 0] + 0.7152 * x[:, 1] + 0.0722 * x[:, 2]
        bleached = 0.75 * x + 0.25 * x.maximum((1.5 * luma + 0.5)[:, None])
        for i in range(3):
            layer = drawn_snow(z[i].numpy(), flakes[i], 18, 23, **options)
            whole = np.clip(bleached[i].numpy() + 0.7 * layer, 0, 1)
            assert np.abs(ours[i] - whole).max() <= ROUNDING

    agrees({})
    rejected(agrees, {"power": 3}, {"places": [(column, row) for row, column in snow.PLACES]})


def drawn_flake(draw: np.ndarray, left: bool, shortest: int = 2) -> np.ndarray:
    """One streak, pixel by pixel, from the four uniform numbers that it is made of."""
    down, across = (shortest + math.floor(5 * one) for one in draw[:2])
    thickness = 1 if draw[2] < 0.6 else 3 if draw[2] < 0.9 else 5
    out = np.zeros((13, 13))
    for i in range(-6, 7):
        for j in range(-6, 7):
            a, b, long, short = (i, j, down, across) if down > across else (j, i, across, down)
            off = abs(b - short / long * a)
            value = 1 + thickness * math.sqrt(1 + short / long) / 4 - off
            out[6 + i, 6 + (-j if left else j)] = min(max(value, 0), 1) * (abs(a) <= long)
    near = np.exp(-(np.arange(-1, 2) ** 2) / (2 * (0.41 + 0.19 * draw[3]) ** 2))
    return ndimage.convolve(out, np.outer(near, near) / near.sum() ** 2, mode="constant")


def test_flakes_are_blurred_streaks_that_all_lean_to_one_side() -> None:
    rng = keyed(40)
    ours, numbers = snow.flake_kernels(rng).numpy(), rng.uniform("flakes", 7, 4).numpy()
    left = (rng.uniform("lean") < 0.5).numpy()
    assert 0 < left.sum() < 40
    assert np.allclose(ours, ours[:, :, ::-1, ::-1], atol=FLOAT32)

    def agrees(shortest: int) -> None:
        for i in range(40):
            for layer in range(7):
                flake = drawn_flake(numbers[i, layer].astype(float), left[i], shortest)
                assert np.abs(ours[i, layer] - flake).max() <= FLOAT32

    agrees(2)
    rejected(agrees, 1)


def test_snow_keeps_its_budget_in_every_square_of_eight_by_eight_flakes() -> None:
    z = 3 * torch.rand(2, 7, 11, 19, generator=stream("steps"), dtype=torch.float64) - 1
    attack = SnowAttack(budget=0.15)

    def within(after: Tensor) -> None:
        assert after.min() >= 0
        assert after.max() <= 1
        for top in range(0, 11, 8):
            for left in range(0, 19, 8):
                assert after[:, :, top : top + 8, left : left + 8].mean((2, 3)).max() <= 0.15 + ROUNDING

    within(attack.onward(z, torch.randn(z.shape, generator=stream("gradient"))))
    rejected(within, z, z.clamp(0, 1), z.clamp(0, 1) * 0.15 / z.clamp(0, 1).mean((2, 3), keepdim=True))
    within(attack.layer(random_images(2, 3, 44, 76), keyed(2))[0])
    small = torch.full_like(z, 0.1)
    assert torch.equal(attack.onward(small, torch.zeros_like(z)), small), "what is within the budget stays"


def test_bleaching_does_not_grow_with_eps_and_can_be_left_out(network: nn.Module) -> None:
    x, y = random_images(3, 3, 32, 32), torch.tensor([0, 1, 2])
    luma = 0.2126 * x[:, 0] + 0.7152 * x[:, 1] + 0.0722 * x[:, 2]
    bleached = 0.75 * x + 0.25 * x.maximum((1.5 * luma + 0.5)[:, None])
    # A pixel gets at most the sum of its flakes, some 7·13² times eps.
    assert (SnowAttack(eps=1e-9)(x, y, network, keyed(3)) - bleached.clamp(0, 1)).abs().max() < 1e-5
    assert (SnowAttack(eps=1e-9, discolor=0.0)(x, y, network, keyed(3)) - x).abs().max() < 1e-5


# --- Gabor noise


def test_each_image_is_convolved_with_its_own_kernel() -> None:
    sparse = torch.randn(3, 1, 9, 14, generator=stream("sparse"), dtype=torch.float64)
    kernels = torch.randn(3, 1, 23, 23, generator=stream("kernels"), dtype=torch.float64)
    ours = gabor.convolved(sparse, kernels).numpy()

    def agrees(convolve: Callable[..., np.ndarray]) -> None:
        theirs = [convolve(image, kernel) for image, kernel in zip(sparse.numpy(), kernels.numpy(), strict=True)]
        # Sums of 126 products of numbers of order 1.
        assert np.abs(ours - np.stack(theirs)).max() <= 1e3 * ROUNDING

    def plain(image: np.ndarray, kernel: np.ndarray, by: Any = signal.convolve2d) -> np.ndarray:
        whole = by(image[0], kernel[0], mode="full")
        return whole[None, 11:-11, 11:-11]

    agrees(plain)
    rejected(
        agrees, partial(plain, by=signal.correlate2d), lambda image, kernel: plain(image, kernel.transpose(0, 2, 1))
    )


def test_kernels_are_gabor_functions_in_one_to_ten_directions() -> None:
    rng = keyed(60)
    ours, numbers = gabor.gabor_kernels(rng).numpy(), rng.uniform("kernel", 4).double().numpy()
    place = np.linspace(-0.5, 0.5, 23)

    def drawn(draw: np.ndarray, turn: float = math.pi) -> np.ndarray:
        sides, deviation, frequency = 1 + int(10 * draw[0]), 0.1 + 0.3 * draw[1], 3 + 2.75 * draw[2]
        out = np.zeros((23, 23))
        for side in range(sides):
            angle = math.pi * draw[3] + turn * side / sides
            for i, down in enumerate(place):
                along = place * math.cos(angle) + down * math.sin(angle)
                wide = np.exp(-(place**2 + down**2) / (2 * deviation**2))
                out[i] += wide * np.cos(2 * math.pi * frequency * along)
        return out

    def agrees(turn: float) -> None:
        assert all(np.abs(ours[i, 0] - drawn(numbers[i], turn)).max() <= 10 * FLOAT32 for i in range(60))

    agrees(math.pi)
    rejected(agrees, math.pi / 2)
    assert set(1 + (10 * numbers[:, 0]).astype(int)) == set(range(1, 11))


def test_texture_is_pushed_to_two_values_and_stretched_to_the_unit_interval() -> None:
    noise = torch.randn(4, 1, 15, 20, generator=stream("noise"), dtype=torch.float64)
    ours = gabor.texture(noise).numpy()

    def agrees(soft: float) -> None:
        for image, texture in zip(noise.numpy(), ours, strict=True):
            away = image - image.mean()
            away /= np.abs(away).max()
            pushed = away * (1 + soft) / (soft + np.abs(away))
            assert np.abs(texture - (pushed - pushed.min()) / np.ptp(pushed)).max() <= 1e3 * ROUNDING

    agrees(1e-3)
    rejected(agrees, 1e-2)
    assert ours.min() == 0
    assert ours.max() == 1
    assert np.mean((ours < 0.05) | (ours > 0.95)) > 0.9
    assert torch.equal(gabor.texture(torch.zeros(1, 1, 3, 3)), torch.zeros(1, 1, 3, 3))


def test_gabor_noise_has_kernels_at_a_share_of_the_pixels_and_only_brightens(network: nn.Module) -> None:
    x, rng = random_images(3, 3, 32, 32), keyed(3)
    for density, count in ((1 / 14, 73), (0.5, 512), (0.0, 1), (1.0, 1024)):
        z, laid = GaborAttack(density=density).layer(x, rng)
        assert z.shape == (3, count)
        assert z.abs().max() <= 1
        if density == 1 / 14:
            # Whichever kernel is switched off, the image changes: no two are at one place.
            whole = laid(z, torch.arange(3))
            for one in (0, 41, 72):
                z_ = z.clone()
                z_[:, one] = 0
                assert (laid(z_, torch.arange(3)) - whole).flatten(1).abs().amax(1).min() > 0
    dark = 0.5 * x  # so that nothing is clipped
    out = GaborAttack(eps=0.1)(dark, torch.tensor([0, 1, 2]), network, rng)
    assert (out >= dark).all()
    assert ((out - dark).amax((1, 2, 3)) - 0.1).abs().max() <= ROUNDING
    onward = GaborAttack(steps=5).onward(torch.tensor([[0.9, -0.2]]), torch.tensor([[3.0, -1e-9]]))
    assert torch.allclose(onward, torch.tensor([[1.0, -0.7]]))


# --- JPEG


def test_the_cosine_transform_is_orthonormal_and_scipys() -> None:
    ours = jpeg.cosines(torch.zeros(1, dtype=torch.float64)).numpy()
    assert np.abs(ours @ ours.T - np.eye(8)).max() <= ROUNDING
    assert np.abs(ours - fft.dct(np.eye(8), axis=0, norm="ortho")).max() <= ROUNDING


def drawn_decoded(
    z: np.ndarray, shape: tuple[int, int, int], unit: float = 0.5, across_first: bool = False, smooth: bool = False
) -> np.ndarray:
    """A JPEG decoder without rounding, block by block."""
    channels, h, w = shape
    start, planes = 0, []
    for plane in range(channels):
        half = channels == 3 and plane > 0
        height, width = (-(-h // 2), -(-w // 2)) if half else (h, w)
        table = np.array(jpeg.CHROMINANCE if half else jpeg.LUMINANCE, dtype=float)
        rows, columns = -(-height // 8), -(-width // 8)
        whole = np.zeros((8 * rows, 8 * columns))
        for i in range(rows):
            for j in range(columns):
                block = z[start : start + 64].reshape(8, 8)
                start += 64
                block = (block.T if across_first else block) * table * unit
                whole[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = fft.idctn(block, norm="ortho")
        if half:
            whole = ndimage.zoom(whole, 2, order=1) if smooth else np.kron(whole, np.ones((2, 2)))
        planes.append(whole[:h, :w])
    assert start == len(z)
    if channels != 3:
        return np.stack(planes)
    y, cb, cr = planes
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 17, 34), (1, 9, 8), (2, 12, 6)], ids=str)
def test_coefficients_are_decoded_as_a_jpeg_decoder_does(shape: tuple[int, int, int]) -> None:
    like = JpegAttack().layer(torch.zeros(2, *shape, dtype=torch.float64), keyed(2))[0]
    z = torch.randn(like.shape, generator=stream("coefficients"), dtype=torch.float64)
    ours = jpeg.decoded(z, shape).numpy()

    def agrees(options: dict[str, Any]) -> None:
        for i in range(2):
            assert np.abs(ours[i] - drawn_decoded(z[i].numpy(), shape, **options)).max() <= 1e3 * ROUNDING

    agrees({})
    rejected(agrees, {"unit": 1.0}, {"across_first": True}, *([{"smooth": True}] if shape[0] == 3 else []))


def test_a_grey_jpeg_file_of_quality_50_is_within_eps_1_in_linf() -> None:
    """Pillow's file, decoded by Pillow, is the image plus half-step coefficients of at most 1."""
    grey = (photographs().mean(1, keepdim=True)[:4] * 255).round()
    z, theirs = [], []
    for image in grey[:, 0].numpy():
        file = io.BytesIO()
        Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=50)
        opened = Image.open(file)
        assert np.array_equal(np.array(opened.quantization[0]).reshape(8, 8), jpeg.LUMINANCE)
        theirs.append(np.asarray(opened, dtype=float))
        blocks = (image - 128).reshape(4, 8, 4, 8).transpose(0, 2, 1, 3)
        steps = fft.dctn(blocks, axes=(2, 3), norm="ortho") / np.array(jpeg.LUMINANCE)
        z.append(2 * (steps.round() - steps).reshape(-1))
    coefficients = torch.from_numpy(np.stack(z))
    assert coefficients.abs().max() <= 1
    # Pillow transforms with integers, so where a coefficient is half way between two steps it may take the other one.
    sure = (coefficients.abs() < 0.98).reshape(4, 16, 64).all(2)
    assert sure.sum() > 8

    def agrees(z: Tensor) -> None:
        ours = (grey + jpeg.decoded(z, (1, 32, 32))).clamp(0, 255)[:, 0]
        off = (ours - torch.from_numpy(np.stack(theirs))).abs()
        # Pillow rounds to whole grey levels, and its integer transforms are off by less than another.
        assert off.reshape(4, 4, 8, 4, 8).amax((2, 4)).reshape(4, 16)[sure].max() <= 1.5

    agrees(coefficients)
    rejected(agrees, 2 * coefficients, 0 * coefficients)


def test_colours_are_pillows() -> None:
    codes = np.stack(np.meshgrid(*[[60, 110, 128, 160]] * 3, indexing="ij"), -1).reshape(8, 8, 3).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(codes, "YCbCr").convert("RGB"), dtype=float)
    ours = (codes - np.array([0.0, 128, 128])) @ np.array(jpeg.COLOURS).T
    inside = (ours > 1) & (ours < 254)
    assert inside.mean() > 0.5
    assert np.abs(ours - theirs)[inside].max() <= 1  # Pillow rounds its tables


def linear(shape: tuple[int, int, int]) -> tuple[nn.Module, Tensor]:
    """A linear network with two classes, and what its logits' difference is multiplied by, `[c, h, w]`."""
    weight = torch.randn(2, math.prod(shape), generator=stream("linear"), dtype=torch.float64)
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], 2, bias=False, dtype=torch.float64)
    layer.weight.data = weight
    return nn.Sequential(nn.Flatten(), layer), (weight[1] - weight[0]).reshape(shape)


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_jpeg_lowers_a_linear_margin_by_eps_times_the_dual_norm_of_the_coefficients_gradient(ball: str) -> None:
    shape, eps = (3, 9, 10), 0.05
    network, weight = linear(shape)
    x, y = 0.4 + 0.2 * random_images(3, *shape), torch.zeros(3, dtype=torch.int64)
    size = JpegAttack().layer(x, keyed(3))[0].shape[1]
    units = np.stack([drawn_decoded(one, shape).reshape(-1) for one in np.eye(size)]) / 255
    gradient = units @ weight.numpy().reshape(-1)
    found = JpegAttack(eps=eps, ball=ball, steps=40)(x, y, network, keyed(3))
    assert found.min() > 0, "the test needs images that are not clipped"
    assert found.max() < 1
    rise = ((found - x) * weight).sum((1, 2, 3)).numpy()
    if ball == "linf":
        # Steps of 2.5·eps/40 go from edge to edge in 32.
        assert np.abs(rise - eps * np.abs(gradient).sum()).max() <= 1e3 * ROUNDING
    else:
        # A step and the projection turn the perturbation towards the gradient by 1/17 of what is left.
        assert np.all(rise <= eps * np.linalg.norm(gradient) * (1 + ROUNDING))
        assert np.all(rise >= 0.95 * eps * np.linalg.norm(gradient))


@pytest.mark.parametrize(("ball", "eps"), [("l2", 1.0), ("l2", 30.0), ("linf", 0.7)])
def test_jpeg_stays_in_its_ball_of_coefficients(ball: str, eps: float) -> None:
    attack, x = JpegAttack(eps=eps, ball=ball), random_images(4, 3, 20, 20)

    def inside(z: Tensor) -> None:
        order = 2 if ball == "l2" else math.inf
        assert torch.linalg.vector_norm(z, order, dim=1).max() <= eps * (1 + ROUNDING)
        assert z.abs().max() <= 2

    start = attack.layer(x, keyed(4))[0]
    gradient = torch.randn(start.shape, generator=stream("g"), dtype=torch.float64) ** 9  # a few are much the largest
    inside(start)
    inside(attack.onward(start, gradient))
    inside(attack.onward(attack.onward(start, gradient), gradient))
    rejected(inside, start + gradient)


# --- translation and rotation


def moved(
    image: np.ndarray, right: float, down: float, degrees: float, centre: float = 0.5, **options: Any
) -> np.ndarray:
    """Scipy's motion of one image `[c, h, w]`: turned clockwise about its centre, then moved."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])  # of (row, column)
    middle = (np.array(image.shape[1:]) - 1) * centre
    offset = middle - turn @ (middle + np.array([down, right]))
    plain = {"order": 1, "mode": "grid-constant", "cval": 0.0, **options}
    return np.stack([ndimage.affine_transform(plane, turn, offset, **plain) for plane in image])


def test_images_are_turned_and_moved_as_scipy_does() -> None:
    x = random_images(6, 2, 9, 14)
    motions = torch.tensor([[0, 0, 0], [2, -3, 0], [0.3, 0, 0], [0, 0, 25.0], [-1.7, 2.2, -40], [5, 5, 180]]).double()
    ours = transformed(x, *motions.T).numpy()

    def agrees(move: Callable[..., np.ndarray]) -> None:
        for image, motion, out in zip(x.numpy(), motions.numpy(), ours, strict=True):
            assert np.abs(move(image, *motion) - out).max() <= 1e2 * ROUNDING

    agrees(moved)
    rejected(
        agrees,
        partial(moved, mode="nearest"),
        partial(moved, order=0),
        partial(moved, centre=0.0),
        lambda image, right, down, degrees: moved(image, right, down, -degrees),
        lambda image, right, down, degrees: moved(image, down, right, degrees),
        lambda image, right, down, degrees: moved(moved(image, right, down, 0), 0, 0, degrees),
    )


def test_whole_pixels_and_quarter_turns_are_exact() -> None:
    x = random_images(1, 3, 6, 6)
    one = torch.ones(1, dtype=torch.float64)
    shifted = torch.zeros_like(x)
    shifted[:, :, 1:, 2:] = x[:, :, :-1, :-2]
    assert torch.allclose(transformed(x, 2 * one, one, 0 * one), shifted, rtol=0, atol=ROUNDING)
    assert torch.allclose(transformed(x, 0 * one, 0 * one, 90 * one), x.rot90(-1, (2, 3)), rtol=0, atol=10 * ROUNDING)


def brute_force(x: Tensor, y: Tensor, network: Any, motions: np.ndarray) -> Tensor:
    """The largest margin over motions `[n, k, 3]`, each tried by scipy."""
    highest = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for k in range(motions.shape[1]):
        tried = [moved(image, *motion) for image, motion in zip(x.numpy(), motions[:, k], strict=True)]
        highest = highest.maximum(margin(network(torch.from_numpy(np.stack(tried))).detach(), y))
    return highest


def grid_of(pixels: float, degrees: float, translations: int = 5, rotations: int = 5) -> np.ndarray:
    steps = [np.linspace(-limit, limit, n) for limit, n in ((pixels, translations),) * 2 + ((degrees, rotations),)]
    return np.stack([axis.reshape(-1) for axis in np.meshgrid(*steps, indexing="ij")], -1)[None]


def test_the_worst_motion_of_the_grid_is_found(network: nn.Module, pictures: tuple[Tensor, Tensor]) -> None:
    x, y = (one[:3] for one in pictures)
    found = TranslationRotation(eps=0.5, rotations=3)(x, y, network, keyed(3))
    ours = margin(network(found).detach(), y)

    def agrees(grid: np.ndarray) -> None:
        assert (ours - brute_force(x, y, network, grid.repeat(3, 0))).abs().max() <= 1e4 * ROUNDING  # logits of order 1

    agrees(grid_of(2.5, 15.0, 5, 3))
    rejected(agrees, grid_of(5.0, 30.0, 5, 3), grid_of(2.5, 15.0, 3, 3), grid_of(2.5, 0.0, 5, 1))


def test_a_network_that_looks_at_one_pixel_sees_the_brightest_within_reach() -> None:
    x = random_images(4, 1, 11, 11)

    def one_pixel(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), x[:, 0, 5, 5]], dim=1)

    attack = TranslationRotation(pixels=2.0, degrees=0.0, translations=5, rotations=1)
    found = attack(x, torch.zeros(4, dtype=torch.int64), one_pixel, keyed(4))[:, 0, 5, 5]
    assert torch.allclose(found, x[:, 0, 3:8, 3:8].amax((1, 2)), rtol=0, atol=ROUNDING)
    dark = attack(x, torch.ones(4, dtype=torch.int64), one_pixel, keyed(4))[:, 0, 5, 5]
    assert torch.allclose(dark, x[:, 0, 3:8, 3:8].amin((1, 2)), rtol=0, atol=ROUNDING)


def test_random_motions_are_each_images_own_and_the_worst_is_kept(
    network: nn.Module, pictures: tuple[Tensor, Tensor]
) -> None:
    x, y = (one[:5] for one in pictures)
    rng, attack = keyed(5), TranslationRotation(tries=4, pixels=3.0)
    motions = (2 * rng.uniform("motion", 4, 3).double() - 1) * torch.tensor([3.0, 3.0, 30.0])
    assert len(motions.reshape(-1, 3).unique(dim=0)) == 20
    ours = margin(network(attack(x, y, network, rng)).detach(), y)
    assert (ours - brute_force(x, y, network, motions.numpy())).abs().max() <= 1e4 * ROUNDING
    fewer = margin(network(TranslationRotation(tries=1, pixels=3.0)(x, y, network, rng)).detach(), y)
    assert (ours > fewer).any()


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # foolbox's
def test_rotations_fool_the_same_images_as_foolbox() -> None:
    """Not translations: foolbox's are (n - 1)/n of the pixels that it is told, n the image's size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).eval()
    x = photographs().float()
    y = network(x).argmax(1)
    theirs = foolbox.attacks.SpatialAttack(0, 30, 1, 7, grid_search=True)
    fooled = theirs(foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu"), x, y)[2]
    assert 0 < fooled.sum() < len(x), "the test needs some that are fooled and some that are not"
    ours = TranslationRotation(pixels=0.0, translations=1, rotations=7)(x, y, network, keyed(10))
    assert torch.equal(network(ours).argmax(1) != y, fooled)


def test_motions_need_no_gradient(network: nn.Module, pictures: tuple[Tensor, Tensor]) -> None:
    x, y = pictures

    def blocked(x: Tensor) -> Tensor:
        return network(x).detach()

    assert TranslationRotation.black_box
    attack = TranslationRotation(translations=3, rotations=3)
    assert torch.equal(attack(x, y, blocked, keyed(10)), attack(x, y, network, keyed(10)))
    with pytest.raises(GeophoneError, match="gradient"):
        JpegAttack()(x, y, blocked, keyed(10))


def test_a_stronger_motion_contains_a_weaker_one() -> None:
    """Half of the ranges, with as fine a grid, is a part of the whole grid: the margin can only rise."""
    x, y = random_images(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
    network, _ = linear((3, 16, 16))
    whole = TranslationRotation(translations=5, rotations=5)
    half = at_level(TranslationRotation(translations=3, rotations=3), 0.5)
    gaps = [margin(network(one(x, y, network, keyed(4))).detach(), y) for one in (half, whole)]
    assert (gaps[1] >= gaps[0] - ROUNDING).all()
    assert (gaps[1] > gaps[0]).any()
