"""Provenance that rots, states of trainings that other programs wrote, and what a process says of its job's errors."""

import os
import random
import zipfile
from datetime import UTC, datetime

import pytest
import torch

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.core.provenance import FILE, read_provenance, write_provenance
from geophone.data import synthetic
from geophone.models.networks import small_cnn
from geophone.study import process_executor
from geophone.train import Standard, Training, fit
from geophone.train.loop import checkpoint_is_whole


def written(folder, **what):
    write_provenance(
        folder, title="T", seconds=61.5, started=datetime(2026, 1, 1, tzinfo=UTC), device="cpu", threads=1, **what
    )
    return read_provenance(folder / FILE)


def test_rotten_provenance_is_as_written_or_refused(tmp_path):
    """Before, a report was made for other jobs, other seeds and another duration."""
    wanted = written(tmp_path, jobs=["0f" * 8], seeds=[0, 1])
    whole = (tmp_path / FILE).read_bytes()
    refused = 0
    for seed in range(200):
        draw = random.Random(seed)
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / FILE).write_bytes(data)
        try:
            assert read_provenance(tmp_path / FILE) == wanted
        except GeophoneError as error:
            refused += "Run the same command again" in str(error)
    assert refused > 150


def test_rotten_provenance_is_written_anew(tmp_path):
    written(tmp_path)
    (tmp_path / FILE).write_text('{"title": "T", "seconds": 1e300, "started": 3}')
    assert written(tmp_path, resumed=True)["seconds"] == 61.5


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "large"])
def test_no_file_is_one_sentence(what, tmp_path, monkeypatch):
    """A pipe was waited for without end, and a device read until memory ran out."""
    path = tmp_path / FILE
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # has no blocks
    with pytest.raises(GeophoneError, match=r"provenance\.json is not .*Run the same command again"):
        read_provenance(path)


def test_infinite_values_in_a_shard_are_refused(tmp_path):
    rows = table.frame([{"metric": "accuracy", "value": 0.5}])
    rows.with_columns(value=float("inf")).write_parquet(tmp_path / "0.parquet")
    with pytest.raises(GeophoneError, match="NaN or infinite"):
        table.read(tmp_path)


def test_a_state_that_was_packed_otherwise_is_refused(tmp_path):
    """A history that is none failed after the training, and a compression without sums stopped the study."""
    data, training = synthetic(classes=3, size=8, train=16, val=6, test=6), Training(epochs=1, batch_size=8)

    def train(path):
        return fit(small_cnn(3, [0.5], [0.5], width=2), data, Standard(), training, checkpoint=path)

    path = tmp_path / "training.pt"
    train(path)
    state = torch.load(path, weights_only=True)
    for history in ([], [{"epoch": 1}], [{"epoch": 2, "loss": 0.1, "accuracy": 0.1}], 7, [None]):
        torch.save({**state, "history": history, **({} if history else {"best": {"weights": {}}})}, path)
        with pytest.raises(GeophoneError, match="not a readable training state"):
            train(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(10_000))
    packed = bytearray(path.read_bytes())
    packed[packed.index(b"PK\x01\x02") + 10] = 99  # a way to compress that nobody knows
    path.write_bytes(packed)
    assert not checkpoint_is_whole(path)


def test_what_a_job_raises_is_no_death_of_its_process():
    """`input()` without a terminal raises EOFError, which is also how the end of a pipe shows."""
    with process_executor(1) as pool:
        process = pool.submit(os.getpid)
        assert isinstance(pool.submit(input).exception(), EOFError)
        assert isinstance(pool.submit(open, "/nowhere/at/all").exception(), FileNotFoundError)
        assert pool.submit(os.getpid).result() == process.result()
