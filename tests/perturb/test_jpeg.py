"""JPEG compression against Pillow's own files: equal to the bit, at any size and quality."""

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import imagecorruptions.corruptions as reference
import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor

from geophone.core.rng import draws, stream
from geophone.perturb.corruptions import jpeg
from geophone.perturb.corruptions.jpeg import jpeg_compression
from geophone.testing.perturbation_laws import check_perturbation

QUALITIES = (1, 7, 10, 15, 18, 25, 40, 49, 50, 58, 65, 80, 95, 100)
SIZES = (
    (1, 1),
    (2, 3),
    (3, 4),
    (5, 6),
    (8, 8),
    (7, 5),
    (16, 16),
    (17, 31),
    (28, 28),
    (32, 32),
    (33, 33),
    (48, 50),
    (64, 64),
)
Compress = Callable[[Tensor, int], Tensor]


def photographs(height: int, width: int, count: int) -> Tensor:
    """Photographs in levels, [n, 3, height, width] of float32."""
    folder = Path(find_spec("foolbox").origin).parent / "data"  # importing it warns
    files = sorted(folder.glob("imagenet_*"))[:count]
    pictures = [Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BOX) for file in files]
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1).float() for one in pictures]).contiguous()


def hard_images(height: int, width: int) -> Tensor:
    """Levels that are random, black or white at random, and flat in a strong colour: every clip is reached."""
    generator = stream("hard", height, width)
    noise = torch.randint(0, 256, (1, 3, height, width), generator=generator)
    extreme = torch.randint(0, 2, (1, 3, height, width), generator=generator) * 255
    flat = torch.tensor([255, 0, 1]).view(1, 3, 1, 1).expand(1, 3, height, width)
    return torch.cat((noise, extreme, flat)).float()


def pillow(levels: Tensor, quality: int) -> Tensor:
    """One picture after another through Pillow, RGB or grey."""
    read = []
    for one in levels.permute(0, 2, 3, 1).byte().numpy():
        file = BytesIO()
        Image.fromarray(one if one.shape[2] == 3 else one[..., 0]).save(file, "JPEG", quality=quality)
        read.append(np.array(Image.open(file)).reshape(one.shape))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float()


def is_pillows(compress: Compress, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    for size in sizes:
        levels = torch.cat((photographs(*size, 2), hard_images(*size)))
        for quality in QUALITIES:
            for x in (levels, levels[:, :1].contiguous()):
                assert torch.equal(compress(x, quality), pillow(x, quality)), (size, quality)


def apply(perturbation: jpeg_compression, x: Tensor, index: Tensor | None = None) -> Tensor:
    index = torch.arange(len(x)) if index is None else index
    return perturbation(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros_like, draws("test", index=index))


def test_pillow_has_the_codec_that_is_followed() -> None:
    """Pillow's wheels do. Where it doesn't, files and arithmetic may differ."""
    assert features.check_feature("libjpeg_turbo")


def test_laws() -> None:
    assert check_perturbation(lambda: jpeg_compression()) == []


def test_arithmetic_is_pillows() -> None:
    is_pillows(jpeg.through_arithmetic)


def test_arithmetic_without_any_file_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, done here."""
    monkeypatch.setattr(jpeg, "coded_in_file", jpeg.coded_in_blocks)
    is_pillows(jpeg.through_arithmetic)


def through_files(levels: torch.Tensor, quality: int) -> torch.Tensor:
    return jpeg.through_files(levels / 255, quality).mul(255).round()


def test_files_are_pillows() -> None:
    is_pillows(through_files, ((1, 1), (7, 5), (28, 28), (33, 50)))


def test_all_three_ways_agree_on_large_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = photographs(224, 224, 2)
    for quality in (7, 25, 80):
        expected = pillow(x, quality)
        assert torch.equal(through_files(x, quality), expected)
        assert torch.equal(jpeg.through_arithmetic(x, quality), expected)
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "coded_in_file", jpeg.coded_in_blocks)
            assert torch.equal(jpeg.through_arithmetic(x, quality), expected)


def test_more_blocks_than_one_file_has_rows() -> None:
    """Of 65500 rows, that is: 9000 images of one block make 72000."""
    x = torch.randint(0, 256, (9000, 1, 8, 3), generator=stream("many")).float()
    stack = jpeg._stretched(x, 8, 8).view(-1, 8)
    steps = jpeg._steps(jpeg._BRIGHTNESS, 30)
    assert torch.equal(jpeg.coded_in_file(stack, steps), jpeg.coded_in_blocks(stack, steps))


def rounded_up(planes: Tensor) -> Tensor:
    """Means of 2 × 2 with all halves rounded up."""
    h, w = planes.shape[2:]
    even = jpeg._stretched(planes, h + h % 2, -(-w // 16) * 16)
    total = even[:, :, ::2, ::2] + even[:, :, 1::2, ::2] + even[:, :, ::2, 1::2] + even[:, :, 1::2, 1::2]
    return ((total + 2) / 4).floor()


def stretched_first(planes: Tensor, good: Callable[[Tensor], Tensor] = jpeg._halved) -> Tensor:
    """The bottom goes on before rows are halved, not after."""
    h, w = planes.shape[2:]
    return good(jpeg._stretched(planes, -(-h // 16) * 16, w))


MUTANTS = {
    "all halves of colours rounded up": ("_halved", rounded_up),
    "the bottom goes on too early": ("_halved", stretched_first),
    "colour copied to twice the size": ("_doubled", lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    "steps one too wide": (
        "_steps",
        lambda table, quality, good=jpeg._steps: [one + 1 for one in good(table, quality)],
    ),
    "one table for all": ("_COLOUR", jpeg._BRIGHTNESS),
    "exact cosines": (
        "_COSINES",
        [
            [round(8192 * 2**0.5 * np.cos((2 * j + 1) * k * np.pi / 16)) if k else 8192 for j in range(4)]
            for k in range(8)
        ],
    ),
    "colours truncated": ("_FROM_COLOUR", tuple((factors, 0) for factors, _ in jpeg._FROM_COLOUR)),
    "colours rounded to the nearest": (
        "_TO_BRIGHTNESS_AND_COLOUR",
        (
            jpeg._TO_BRIGHTNESS_AND_COLOUR[0],
            *((factors, offset + 1) for factors, offset in jpeg._TO_BRIGHTNESS_AND_COLOUR[1:]),
        ),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_not_pillows(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "coded_in_file", jpeg.coded_in_blocks)
    sizes = ((28, 30), (64, 64))
    is_pillows(jpeg.through_arithmetic, sizes)
    monkeypatch.setattr(jpeg, *MUTANTS[mutant])
    with pytest.raises(AssertionError):
        is_pillows(jpeg.through_arithmetic, sizes)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_it_is_imagecorruptions(side: int) -> None:
    """Theirs has ImageNet-C's qualities at every size."""
    levels = photographs(side, side, 3)
    for severity in range(1, 6):
        pictures = [Image.fromarray(one) for one in levels.permute(0, 2, 3, 1).byte().numpy()]
        expected = np.stack([np.array(reference.jpeg_compression(one, severity)) for one in pictures])
        for dtype in (torch.float32, torch.float64):
            x = levels.to(dtype) / 255
            out = apply(jpeg_compression(severity=severity, preset="imagenet"), x)
            assert torch.equal(out, torch.from_numpy(expected).permute(0, 3, 1, 2).to(dtype) / 255)


def test_qualities_are_the_published_ones_of_each_size() -> None:
    for side, quality in ((32, 58), (64, 50), (80, 15)):
        levels = photographs(side, side, 2)
        assert torch.equal(apply(jpeg_compression(severity=3), levels / 255), pillow(levels, quality) / 255)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_grey_images(channels: int) -> None:
    for side in (20, 90):
        x = hard_images(side, side).repeat(1, 2, 1, 1)[:, :channels] / 255
        out = apply(jpeg_compression(preset="imagenet"), x)
        for channel in range(channels):
            assert torch.equal(
                out[:, channel : channel + 1], apply(jpeg_compression(preset="imagenet"), x[:, channel : channel + 1])
            )


def test_values_between_levels_are_rounded_first() -> None:
    levels = photographs(24, 40, 2)
    shift = torch.rand(levels.shape, generator=stream("shift")) * 0.9 - 0.45
    x = ((levels + shift) / 255).clamp(0, 1)
    for perturbation in (jpeg_compression(severity=1), jpeg_compression(severity=5)):
        assert torch.equal(apply(perturbation, x), apply(perturbation, levels / 255))
    half = apply(jpeg_compression(), (levels / 255).half())
    assert torch.equal(half, apply(jpeg_compression(), levels / 255).half())


def test_an_image_is_the_same_in_every_batch_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ((7, 5), (33, 20), (90, 90)):
        x = torch.cat((photographs(*size, 3), hard_images(*size))) / 255
        for blocks in (False, True):
            with monkeypatch.context() as patch:
                if blocks:
                    patch.setattr(jpeg, "coded_in_file", jpeg.coded_in_blocks)
                    patch.setattr(jpeg_compression, "large", 10**9)
                whole = apply(jpeg_compression(), x)
                for rows in ([0], [5], [3, 1], [4, 2, 0, 5, 1]):
                    index = torch.tensor(rows)
                    assert torch.equal(apply(jpeg_compression(), x[index], index), whole[index])
                patch.setattr(jpeg_compression, "chunk", 2 * x[0].numel())
                assert torch.equal(apply(jpeg_compression(), x), whole)
                assert torch.equal(apply(jpeg_compression(), x.contiguous(memory_format=torch.channels_last)), whole)
