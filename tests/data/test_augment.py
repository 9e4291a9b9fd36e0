"""Laws of `crop_flip`; every other way to shift images must fail one of them."""

import pytest
import torch

from geophone.core.errors import GeophoneError
from geophone.core.rng import draws
from geophone.data import crop_flip

N, C, H, W = 64, 2, 5, 7
X = torch.rand(N, C, H, W, generator=torch.Generator().manual_seed(0)) + 1  # no zero, so that padding can be told


def rng_of(rows=slice(None), epoch=0):
    return draws("test", epoch, index=torch.arange(N)[rows])


def crops(image, pad, flip):
    """All (2 pad + 1)² crops of one padded image, and their mirror images."""
    padded = torch.zeros(C, H + 2 * pad, W + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + H, pad : pad + W] = image
    some = [padded[:, i : i + H, j : j + W] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return torch.stack(some + [crop.flip(2) for crop in some if flip])


def check(augment):
    assert torch.equal(augment(X, rng_of(), 0, False), X)
    for pad, flip in ((2, False), (0, True), (3, True)):
        before = X.clone()
        made = augment(X, rng_of(), pad, flip)
        assert torch.equal(X, before)
        assert (made.shape, made.dtype) == (X.shape, X.dtype)
        which = [(crops(image, pad, flip) == out).flatten(1).all(1) for image, out in zip(X, made, strict=True)]
        assert all(row.any() for row in which)
        # 64 images take many of the crops, and about half of them are mirrored: 5 standard deviations
        assert torch.stack(which).any(0).sum() > min(8, len(which[0]) - 1)
        if flip:
            mirrored = sum(int(row.nonzero()[0]) >= len(row) // 2 for row in which)
            assert abs(mirrored - N / 2) < 5 * N**0.5 / 2
        # the draws belong to the example: any batch, any order
        rows = torch.tensor([9, 3, 60])
        assert torch.equal(augment(X[rows], rng_of(rows), pad, flip), made[rows])
        assert not torch.equal(augment(X, rng_of(epoch=1), pad, flip), made)


def one_shift_for_all(x, rng, pad, flip):
    return crop_flip(x, type(rng)(rng.seed, torch.zeros_like(rng.index)), pad, flip)


def rolled(x, rng, pad, flip):
    shift = (rng.uniform("crop", 2) * (2 * pad + 1)).long() - pad
    return torch.stack([image.roll(tuple(s.tolist()), (1, 2)) for image, s in zip(x, shift, strict=True)])


def keyed_by_row(x, rng, pad, flip):
    return crop_flip(x, type(rng)(rng.seed, torch.arange(len(x))), pad, flip)


def upside_down(x, rng, pad, flip):
    return crop_flip(x, rng, pad, flip).flip(2) if flip else crop_flip(x, rng, pad, flip)


def channels_apart(x, rng, pad, flip):
    other = rng.child("other")
    return torch.cat([crop_flip(x[:, :1], rng, pad, flip), crop_flip(x[:, 1:], other, pad, flip)], 1)


def never_mirrored(x, rng, pad, flip):
    return crop_flip(x, rng, pad, False)


def test_crop_flip():
    check(crop_flip)


@pytest.mark.parametrize(
    "mutant", [one_shift_for_all, rolled, keyed_by_row, upside_down, channels_apart, never_mirrored]
)
def test_other_augmentations_fail_a_law(mutant):
    with pytest.raises(AssertionError):
        check(mutant)


def test_every_place_is_equally_likely():
    n, pad = 9000, 1
    x = torch.zeros(n, 1, 3, 3)
    x[:, :, 1, 1] = 1
    place = crop_flip(x, draws("places", index=torch.arange(n)), pad, False).flatten(1).argmax(1)
    # 1,000 expected in each of 9 places, standard deviation 29.8: within 5 of them
    assert (place.bincount(minlength=9) - 1000).abs().max() < 149


def test_whole_numbers_stay_whole():
    x = (X * 100).to(torch.uint8)
    assert torch.equal(crop_flip(x, rng_of()), (crop_flip(x.float(), rng_of())).to(torch.uint8))


def test_a_negative_pad_is_refused():
    with pytest.raises(GeophoneError, match="pad is -1"):
        crop_flip(X, rng_of(), pad=-1)
