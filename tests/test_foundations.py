"""Randomness, registries, files and the table."""

import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import polars as pl
import pytest
import torch

from geophone.core import table
from geophone.core.errors import GeophoneError
from geophone.core.files import replacing, write_text
from geophone.core.registry import METRICS, PERTURBATIONS, RECIPES, load_plugin, parse_call
from geophone.core.rng import Draws, draws, key, stream
from geophone.core.types import describe
from geophone.data.dataset import divided
from geophone.models.run import deterministic
from geophone.perturb.parse import family_name, level_of

# --- randomness ---


def test_streams_are_named_and_repeat():
    assert torch.equal(torch.rand(5, generator=stream(0, "a")), torch.rand(5, generator=stream(0, "a")))
    assert not torch.equal(torch.rand(5, generator=stream(0, "a")), torch.rand(5, generator=stream(0, "b")))
    assert key(1, "x") == 4_140_374_152_046_474_726  # fixed for good: results on disk depend on it
    assert key("1") != key(1)
    assert key("a", "b") != key("ab")


def test_draws_of_an_example_do_not_depend_on_the_batch():
    whole = draws(3, "noise", index=torch.arange(100))
    for kind in ("uniform", "normal"):
        all_of_them = getattr(whole, kind)("n", 3, 5)
        assert torch.equal(getattr(whole[40:60], kind)("n", 3, 5), all_of_them[40:60])
        order = torch.randperm(100, generator=stream("order"))
        assert torch.equal(getattr(whole[order], kind)("n", 3, 5), all_of_them[order])
        assert not torch.equal(getattr(whole, kind)("other", 3, 5), all_of_them)
        assert not torch.equal(getattr(whole.child(1), kind)("n", 3, 5), all_of_them)


def test_draws_are_uniform_and_normal():
    """400,000 values. Moments within four standard errors; neighbours, examples and seeds uncorrelated."""
    n = 400_000
    u = draws(0, "u", index=torch.arange(400)).uniform("x", 1000).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    counts = torch.histc(u, 100, 0, 1)
    chi = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi - 99) < 4 * math.sqrt(2 * 99)
    z = draws(0, "z", index=torch.arange(400)).normal("x", 1000).double()
    for power, wanted, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean() - wanted) < 4 * math.sqrt(variance / n)
    other = draws(1, "z", index=torch.arange(400)).normal("x", 1000).double()
    pairs = [(z[:, :-1], z[:, 1:]), (z[:-1], z[1:]), (z, other), (z[:, :500], z[:, 500:])]
    assert all(abs((a * b).mean()) < 4 / math.sqrt(a.numel()) for a, b in pairs)


def test_odd_sizes_and_scalars():
    some = Draws(5, torch.tensor([7, 8]))
    assert some.normal("x", 3).shape == (2, 3)
    assert some.normal("x").shape == (2,)
    assert some.uniform("x").shape == (2,)


# --- registries ---


def test_build_reads_code_without_running_it():
    assert PERTURBATIONS.build("LinfPGD(eps=8/255, steps=3)").eps == 8 / 255
    assert parse_call("X(a=(1, 2), b='c', d=None, e=2*3)", "thing") == ("X", {"a": (1, 2), "b": "c", "d": None, "e": 6})
    for text in ("__import__('os')", "X(", "X(1)", "X(a=open('f'))", "a.b()", "X(a=1/0)", "X(**{})", ""):
        with pytest.raises(GeophoneError, match="cannot read the thing"):
            parse_call(text, "thing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LinfPDG", "unknown perturbation 'LinfPDG'. Did you mean 'LinfPGD'"),
        ("LinfPGD(epsilon=1)", "unknown argument of LinfPGD 'epsilon'. Did you mean 'eps'"),
    ],
)
def test_unknown_names_say_the_nearest(text, message):
    with pytest.raises(GeophoneError, match=message.replace(".", r"\.")):
        PERTURBATIONS.build(text)


def test_describe_prints_the_shortest_code():
    for text in ("Standard", "SelectivityRegularised(alpha=-2)", "Adversarial(eps=0.1, steps=3)"):
        assert describe(RECIPES.build(text)) == text
        assert RECIPES.build(describe(RECIPES.build(text))) == RECIPES.build(text)
    attack = PERTURBATIONS.build("LinfPGD(eps=0.25, steps=20)")
    assert (family_name(attack), level_of(attack)) == ("LinfPGD(steps=20)", 0.25)


def test_plugins_are_marked_and_may_not_take_a_name(tmp_path):
    good, bad, broken = (tmp_path / f"{name}.py" for name in ("good", "bad", "broken"))
    good.write_text(
        "from geophone import metric\nfrom geophone.stats import Moments\n@metric(Moments)\ndef mine(m): return 1.0\n"
    )
    bad.write_text(
        "from geophone import metric\nfrom geophone.stats import Moments\n@metric(Moments)\ndef cka(m): return 1.0\n"
    )
    broken.write_text("import nothing_like_this\n")
    load_plugin(good)
    load_plugin(good)  # once is enough, twice does no harm
    assert METRICS.origin("mine") == "good.py"
    with pytest.raises(GeophoneError, match="the metric 'cka' of bad.py is already there, from geophone"):
        load_plugin(bad)
    with pytest.raises(GeophoneError, match="could not be imported: ModuleNotFoundError"):
        load_plugin(broken)
    with pytest.raises(GeophoneError, match="no plug-in file at"):
        load_plugin(tmp_path / "absent.py")


# --- global switches ---

PRECISIONS = """
import contextlib, os, torch, warnings
from geophone.models.run import deterministic, full_precision
backends = torch.backends
{switch}

def state():
    new = [kind.fp32_precision for kind in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]
    old = []
    for read in (lambda: backends.cuda.matmul.allow_tf32, lambda: backends.cudnn.allow_tf32):
        with contextlib.suppress(RuntimeError):
            old.append(read())
    return new, old, os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.are_deterministic_algorithms_enabled()

before = state()
with full_precision(), deterministic():
    inside = state()
assert inside[0] == ["ieee"] * 3 and not any(inside[1]) and inside[2:] == (":4096:8", True), inside
assert len(inside[1]) >= len(before[1])
assert state() == before, (before, state())
"""


@pytest.mark.parametrize(
    "switch",
    [
        "",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
        "backends.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'ieee'",
        "torch.set_float32_matmul_precision('high')",
        "backends.cudnn.allow_tf32 = False",
    ],
)
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has no such switch")
def test_full_precision_whichever_switches_were_used_before(switch):
    """In a process of its own: a mixture of the old switches and the new can't be undone."""
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    code = PRECISIONS.replace("{switch}", switch)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_is_not_deterministic_is_no_matter_of_the_users():
    """Torch's warning is about a mode that the user did not ask for; others come through."""
    with deterministic():
        warnings.warn("cumsum_cuda_kernel does not have a deterministic implementation, but you set", stacklevel=1)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)


# --- whole levels ---


def test_levels_are_divided_correctly_on_other_devices():
    """Where numbers are multiplied by a rounded reciprocal, as on a GPU, a tensor of one number is not.

    Meta tensors stand for that device, and a tensor that says what it is divided by for its kernel.
    """

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            if call is torch.ops.aten.div_.Tensor:
                by.append(args[1])
            return call(*args, **(kwargs or {}))

    by = []
    with Seen():
        divided(torch.empty(3, device="meta"), 255)
    assert by[0].device.type == "meta"
    assert by[0].shape == ()
    level = torch.arange(256, dtype=torch.float32)
    assert torch.equal(
        divided(level.clone(), 255), torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255))
    )
    assert not torch.equal(level * torch.tensor(1 / 255), level / 255)  # the mutant: the reciprocal


# --- files ---


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_unwritable_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GeophoneError, match="cannot make the folder"):
        write_text(tmp_path / "file" / "inside.txt", "x")


# --- the table ---

ROW = {"job": "a", "perturbation": "clean", "level": 0.0, "metric": "accuracy", "value": 0.5}


def test_rows_round_trip_in_a_fixed_order(tmp_path):
    rows = [{**ROW, "job": job, "metric": m} for job, m in itertools.product("ba", ("x", "accuracy"))]
    for i, row in enumerate(rows):
        table.write(table.frame([row]), tmp_path / f"{i}.parquet")
    read = table.read(tmp_path)
    assert read.select("job", "metric").rows() == [("a", "accuracy"), ("a", "x"), ("b", "accuracy"), ("b", "x")]
    assert dict(read.schema) == table.SCHEMA


def test_nan_becomes_null():
    assert table.frame([{**ROW, "value": math.nan}])["value"].to_list() == [None]


def test_infinities_are_refused():
    with pytest.raises(GeophoneError, match="'accuracy' is infinite"):
        table.frame([{**ROW, "value": math.inf}])


def test_tables_from_before_other_depth_are_read(tmp_path):
    made = table.frame([ROW])
    made.drop("other_depth").write_parquet(tmp_path / "old.parquet")
    assert table.read(tmp_path).equals(made)
    made.drop("other_depth", "note").write_parquet(tmp_path / "old.parquet")
    with pytest.raises(GeophoneError, match="other columns than this version writes"):
        table.read(tmp_path)


def test_bad_shards(tmp_path):
    with pytest.raises(GeophoneError, match="no table at"):
        table.read(tmp_path)
    table.write(table.frame([ROW]), tmp_path / "good.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("empty", b""), ("garbage", b"x" * 100)):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(GeophoneError, match=rf"{name}.parquet is corrupt .*Delete it and run the same command"):
            table.read(tmp_path)
        path.unlink()
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(GeophoneError, match="other columns than this version writes"):
        table.read(tmp_path)
