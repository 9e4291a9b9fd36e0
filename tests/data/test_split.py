"""Laws of `Split` and `ImageData`: batches, balanced subsets, the validation part, pixel moments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geophone.core.errors import GeophoneError
from geophone.data.dataset import Split, assemble, hold_out, make_split

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(torch.tensor)


def split_of(y, size=3):
    n = len(y)
    x = (torch.arange(n * 2 * size * size) * 37 % 256).to(torch.uint8).reshape(n, 2, size, size)
    return Split(x, y, torch.arange(n) * 3 + 5)


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)


# --- batches


def check_batches(batches):
    split = split_of(torch.arange(11) % 3)
    before = split.x.clone()
    for size in (1, 4, 11, 100):
        some = list(batches(split, size))
        assert [len(batch) for batch in some] == [min(size, 11 - start) for start in range(0, 11, size)]
        x = torch.cat([batch.x for batch in some])
        assert x.dtype == torch.float32
        assert np.array_equal(x.numpy(), before.numpy().astype(np.float32) / np.float32(255))
        assert torch.equal(torch.cat([batch.y for batch in some]), split.y)
        assert torch.equal(torch.cat([batch.index for batch in some]), split.index)


def test_batches_hold_every_example_once_on_the_unit_scale():
    check_batches(lambda split, size: split.batches(size))


def test_batches_that_drop_the_last_one_fail_the_law():
    with pytest.raises(AssertionError):
        check_batches(lambda split, size: [b for b in split.batches(size) if len(b) == size])


def test_batches_follow_the_given_order():
    split = split_of(torch.arange(7) % 2)
    order = torch.tensor([6, 0, 3])
    (batch,) = split.batches(5, order)
    assert torch.equal(batch.y, split.y[order])
    assert torch.equal(batch.index, split.index[order])
    assert torch.equal(batch.x, split.x[order] / 255)


def test_float_images_pass_through():
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.zeros(5, dtype=torch.int64), torch.arange(5))
    assert torch.equal(next(split.batches(5)).x, x)


def changed_by_its_batches(split, batches):
    before = split.x.clone()
    for batch in batches:
        batch.x.zero_()
    return not torch.equal(split.x, before)


def test_what_is_done_to_a_batch_does_not_reach_the_data():
    split = Split(torch.ones(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert not changed_by_its_batches(split, split.batches(3))
    views = [type(next(split.batches(1)))(split.x[:2], split.y[:2], split.index[:2])]
    assert changed_by_its_batches(split, views), "a mutant that hands out views must be caught"


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(GeophoneError, match="batch_size=0"):
        list(split_of(torch.zeros(3, dtype=torch.int64)).batches(0))


# --- take


def taken_by_hand(y, n):
    """Go round the classes, taking the next example of each, until there are n; put them in source order."""
    waiting = {c: [i for i, label in enumerate(y.tolist()) if label == c] for c in sorted(set(y.tolist()))}
    rows = []
    while len(rows) < n:
        for left in waiting.values():
            if left and len(rows) < n:
                rows.append(left.pop(0))
    return sorted(rows)


def check_take(take, y):
    split = split_of(y)
    for n in range(1, len(y) + 1):
        assert same(take(split, n), split.rows(torch.tensor(taken_by_hand(y, n))))


@given(LABELS)
def test_take_is_balanced_first_come_and_in_source_order(y):
    check_take(Split.take, y)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda split, n: split.rows(torch.arange(n)),
        lambda split, n: split.rows(split.y.argsort(stable=True)[:n]),
        lambda split, n: split.rows(split.take(n).index.sub(5).div(3).long().flip(0)),
    ],
    ids=["first n", "by class", "other order"],
)
def test_other_subsets_fail_the_law_of_take(mutant):
    with pytest.raises(AssertionError):
        check_take(mutant, torch.tensor([0, 0, 0, 1, 2, 1]))


@pytest.mark.parametrize("n", [0, -1, 7])
def test_take_refuses_more_than_there_are(n):
    with pytest.raises(GeophoneError, match="allowed are 1 to 6"):
        split_of(torch.arange(6) % 2).take(n)


# --- the validation part


def check_hold_out(hold_out, y, n):
    split = split_of(y)
    train, val = hold_out(split, n)
    assert len(val) == n
    assert sorted([*train.index.tolist(), *val.index.tolist()]) == split.index.tolist()
    for part in (train, val):
        assert part.index.tolist() == sorted(part.index.tolist())
        rows = (part.index - 5) // 3
        assert same(part, split.rows(rows))
    for c in range(5):
        share = n * int((y == c).sum()) / len(y)
        assert abs(int((val.y == c).sum()) - share) < 1
    assert same(val, hold_out(split, n)[1])


@given(LABELS, st.data())
def test_the_validation_part_is_a_stratified_part(y, data):
    check_hold_out(hold_out, y, data.draw(st.integers(1, len(y) - 1)))


def first_rows(split, n):
    return split.rows(torch.arange(n, len(split))), split.rows(torch.arange(n))


def equal_floors(split, n):
    each = n // 5
    val = [i for c in range(5) for i in (split.y == c).nonzero()[:each, 0].tolist()]
    return split.rows(torch.tensor([i for i in range(len(split)) if i not in val])), split.rows(
        torch.tensor(sorted(val))
    )


def leaky(split, n):
    return split, hold_out(split, n)[1]


def by_chance(split, n):
    order = torch.randperm(len(split))
    return split.rows(order[n:].sort().values), split.rows(order[:n].sort().values)


@pytest.mark.parametrize("mutant", [first_rows, equal_floors, leaky, by_chance])
def test_other_ways_to_hold_out_fail_the_law(mutant):
    y = torch.arange(5).repeat_interleave(20)
    with pytest.raises(AssertionError):
        check_hold_out(mutant, y, 33)


def test_what_is_held_out_follows_the_examples_and_not_their_order():
    split = split_of(torch.arange(40) % 4)
    mixed = split.rows(torch.randperm(40, generator=torch.Generator().manual_seed(1)))
    assert sorted(hold_out(mixed, 8)[1].index.tolist()) == hold_out(split, 8)[1].index.tolist()


def test_a_missing_validation_part_never_comes_from_the_test_part():
    train, test = split_of(torch.arange(40) % 4), split_of(torch.arange(8) % 4)
    data = assemble("made", tuple("abcd"), test, train)
    assert same(data.test, test)
    assert (len(data.train), len(data.val)) == (36, 4)
    assert sorted(data.train.index.tolist() + data.val.index.tolist()) == train.index.tolist()


def test_parts_of_different_sizes_are_refused():
    with pytest.raises(GeophoneError, match=r"train images are uint8 \[2, 4, 4\], the test images uint8 \[2, 3, 3\]"):
        assemble(
            "made", ("a",), split_of(torch.zeros(2, dtype=torch.int64)), split_of(torch.zeros(9, dtype=torch.int64), 4)
        )


def test_one_train_example_cannot_be_split():
    with pytest.raises(GeophoneError, match="cannot hold 1 of 1 train examples"):
        assemble(
            "made", ("a",), split_of(torch.zeros(2, dtype=torch.int64)), split_of(torch.zeros(1, dtype=torch.int64))
        )


# --- pixel moments


def test_mean_and_std_are_those_of_the_train_pixels():
    train, test = split_of(torch.arange(30) % 3), split_of(torch.arange(3))
    data = assemble("made", tuple("abc"), test, train)
    pixels = data.train.x.numpy().astype(np.float64) / 255
    # pixels are float32 before they are summed in float64: relative error up to 2^-24
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=2**-23)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), rtol=2**-22)
    assert not np.allclose(data.mean, train.x.numpy().mean((0, 2, 3)) / 255, rtol=2**-23), "val must not be in it"
    assert (data.channels, data.size) == (2, (3, 3))


def test_mean_and_std_of_black_and_white():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat(10)[:, None, None, None].expand(20, 1, 4, 6).contiguous()
    train = make_split(x, torch.zeros(20, dtype=torch.int64), "x")
    data = assemble("made", ("a",), train, train, val=train)
    assert data.mean == (0.5,)
    assert data.std == (0.5,)
    assert data.size == (4, 6)


def test_a_test_only_set_has_no_mean():
    data = assemble("made", ("a",), split_of(torch.zeros(2, dtype=torch.int64)))
    assert len(data.train) == len(data.val) == 0
    with pytest.raises(GeophoneError, match="made has no training part"):
        _ = data.mean


def test_a_split_prints_what_it_is_and_not_its_pixels():
    assert repr(split_of(torch.arange(3))) == "<Split of 3 images, uint8 [2, 3, 3]>"


def test_to_keeps_the_content():
    data = assemble("made", tuple("abc"), split_of(torch.arange(3)), split_of(torch.arange(30) % 3)).to("cpu")
    assert same(data.test, split_of(torch.arange(3)))
