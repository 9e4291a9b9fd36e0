"""The data set in the package: its checksum, its balance, its source, and the script that made it."""

import hashlib
import runpy
from pathlib import Path

import pytest
import torch

from geophone.data import load
from geophone.data.arrays import MINI
from geophone.data.images import idx

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_mnist_mini.py"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")


def test_the_file_is_the_one_that_its_checksum_says():
    said, name = MINI.with_name(f"{MINI.name}.sha256").read_text().split()
    assert name == MINI.name
    assert hashlib.sha256(MINI.read_bytes()).hexdigest() == said
    assert MINI.stat().st_size < 6e6


def test_licence_and_provenance_lie_beside_it():
    assert "2017 Zalando SE" in MINI.with_name("LICENSE.fashion-mnist").read_text(encoding="utf-8")
    assert SCRIPT.name in MINI.with_name("PROVENANCE.md").read_text(encoding="utf-8")


def test_its_parts_are_balanced_and_apart():
    data = load("fashion_mnist_mini")
    for part, each in ((data.train, 900), (data.val, 100), (data.test, 200)):
        assert part.y.bincount().tolist() == [each] * 10
        assert part.index.tolist() == sorted(set(part.index.tolist()))
    assert not set(data.train.index.tolist()) & set(data.val.index.tolist())
    images = [part.x.flatten(1).numpy().tobytes() for part in (data.train, data.val, data.test)]
    rows = [{block[i : i + 784] for i in range(0, len(block), 784)} for block in images]
    assert not rows[0] & rows[2], "a test image must not be a train image"
    assert (data.channels, data.size, data.classes[9]) == (1, (28, 28), "Ankle boot")


def test_the_validation_part_stays_the_same_for_ever():
    val = load("fashion_mnist_mini").val.index.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(val).hexdigest() == "e74da2f18d95bc76aff17221c4030cd974d37ebbd1636a5969f3f79db1f3ef15"


@pytest.mark.slow
@needs_debian
def test_the_script_makes_the_file_again_byte_for_byte(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    script["make"](DEBIAN, tmp_path / MINI.name)
    assert (tmp_path / MINI.name).read_bytes() == MINI.read_bytes()
    checksum = f"{MINI.name}.sha256"
    assert (tmp_path / checksum).read_text() == MINI.with_name(checksum).read_text()


@pytest.mark.slow
@needs_debian
def test_its_images_are_the_first_of_each_class_of_the_full_set():
    data = load("fashion_mnist_mini")
    fixed = idx.SETS["fashion_mnist"]
    whole = [
        torch.tensor(idx.read_checked(DEBIAN / f"{file}.gz", sha256, fixed.title))
        for file, sha256 in zip(idx.FILES, fixed.sha256, strict=True)
    ]
    for part, x, y in ((data.train, *whole[:2]), (data.val, *whole[:2]), (data.test, *whole[2:])):
        assert torch.equal(part.x[:, 0], x[part.index])
        assert torch.equal(part.y, y[part.index].long())
    for c in range(10):
        both = torch.cat([data.train.index[data.train.y == c], data.val.index[data.val.y == c]]).sort().values
        assert torch.equal(both, (whole[1] == c).nonzero()[:1000, 0])
        assert torch.equal(data.test.index[data.test.y == c], (whole[3] == c).nonzero()[:200, 0])
