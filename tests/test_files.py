"""Files are written whole or not at all, all of them or none, by one command at a time."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import polars as pl
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from geophone.core import files, table
from geophone.core.errors import GeophoneError, plain
from geophone.core.files import replacing, reserved, write_all, write_text

LIMIT = 100_000  # bytes


@contextmanager
def no_file_beyond(limit):
    """Writing beyond so many bytes fails, as on a full disk, whoever writes: Python, polars, torch or safetensors."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


NUMBERS = torch.linspace(0, 1, 200_000, dtype=torch.float64)
WRITERS = {
    "text": lambda path: path.write_text("x" * 2 * LIMIT),
    "bytes": lambda path: path.write_bytes(bytes(2 * LIMIT)),
    "parquet": lambda path: pl.DataFrame({"a": NUMBERS.numpy()}).write_parquet(path, compression="uncompressed"),
    "torch": lambda path: torch.save(NUMBERS, path),
    "safetensors": lambda path: save_file({"a": NUMBERS}, path),
}


@pytest.mark.parametrize("there", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, writer, there):
    path = tmp_path / "made" / "file"
    if there:
        write_text(path, "old")
    with (
        no_file_beyond(LIMIT),
        pytest.raises(GeophoneError, match=r"cannot write .*file: File too large\. Make room"),
        replacing(path) as temporary,
    ):
        WRITERS[writer](temporary)
    assert [p.name for p in tmp_path.rglob("*")] == (["made", "file"] if there else [])
    assert not there or path.read_text() == "old"


def test_what_is_not_the_disks_fault_is_said_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "made" / "file"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trouble", [28, 122, 5, 30], ids=["ENOSPC", "EDQUOT", "EIO", "EROFS"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_every_trouble_of_a_disk(tmp_path, monkeypatch, step, trouble):
    (tmp_path / "a").write_text("old")

    def fails(*_):
        raise OSError(trouble, os.strerror(trouble))

    monkeypatch.setattr(*((files.os, "fsync") if step == "fsync" else (files.Path, "replace")), fails)
    for write in (lambda: write_text(tmp_path / "a", "new"), lambda: write_all({tmp_path / "a": b"new"})):
        with pytest.raises(GeophoneError, match=os.strerror(trouble)):
            write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_all_files_or_none(tmp_path):
    """The second does not fit: the first is as it was."""
    (tmp_path / "a").write_text("old")
    both = {tmp_path / "a": b"new", tmp_path / "deep" / "er" / "b": bytes(2 * LIMIT)}
    with no_file_beyond(LIMIT), pytest.raises(GeophoneError, match="b: File too large"):
        write_all(both)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]
    write_all(both)
    assert [path.read_bytes() for path in both] == list(both.values())


def test_a_shard_that_does_not_fit(tmp_path):
    rows = table.frame({"job": str(i), "metric": "m", "note": f"{i * 7919:x}" * 3} for i in range(40_000))
    with no_file_beyond(LIMIT), pytest.raises(GeophoneError, match=r"a\.parquet: File too large"):
        table.write(rows, tmp_path / "table" / "a.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n" * 256, "File name too long"),
        ("ä" * 128, "File name too long"),
        ("nul\0", "null byte"),
        ("folder", "it is a folder"),
        ("fifo", "it is no ordinary file"),
        ("file/x", "cannot make the folder"),
        ("n" * 256 + "/x", "File name too long"),
        ("new/" + "n" * 256 + "/x", "File name too long"),
    ],
)
def test_names_that_no_file_can_have_are_found_before_the_work(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GeophoneError, match=said), reserved(None, tmp_path / name):
        raise AssertionError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "file", "folder"]


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "[a]*?.html", "-"])
def test_every_name_that_a_file_can_have_is_written_and_locked(tmp_path, name):
    path = tmp_path / name
    with reserved(None, path):
        with pytest.raises(GeophoneError, match="another run is writing"), reserved(None, path):
            raise AssertionError
        write_text(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_long_names_that_begin_alike_have_their_own_locks(tmp_path):
    with reserved(None, tmp_path / ("n" * 250 + "1")), reserved(None, tmp_path / ("n" * 250 + "2")):
        pass


def test_another_process_is_kept_out_until_the_block_ends(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from geophone.core.errors import GeophoneError
        from geophone.core.files import reserved
        try:
            with reserved(Path(sys.argv[1]), Path(sys.argv[2])):
                print("in")
        except GeophoneError as error:
            print(error)
    """)

    def other(folder, file):
        command = [sys.executable, "-c", code, str(folder), str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with reserved(tmp_path / "a", tmp_path / "a.html"):
        assert "another run is writing in" in other(tmp_path / "a", tmp_path / "b.html")
        assert "another run is writing" in other(tmp_path / "b", tmp_path / "a.html")
        assert other(tmp_path / "b", tmp_path / "b.html") == "in\n"
    assert other(tmp_path / "a", tmp_path / "a.html") == "in\n"


def test_what_a_killed_command_left_is_cleared_and_nothing_else(tmp_path):
    for name in (".report.html.abc.tmp", ".other.html.abc.tmp", "mine.tmp", "folder/.x.tmp", "folder/table/.y.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "folder" / ".lock").write_text("")  # of the command that was killed
    with reserved(tmp_path / "folder", tmp_path / "report.html"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".other.html.abc.tmp", "mine.tmp"]


def test_a_block_that_fails_leaves_no_folder_that_it_made(tmp_path):
    for error in (GeophoneError, KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), reserved(tmp_path / "a" / "b", tmp_path / "c" / "d.html"):
            raise error
        assert not list(tmp_path.iterdir())


def test_a_lock_that_somebody_else_has_is_left_alone(tmp_path):
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(GeophoneError, match="another run is writing"), reserved(tmp_path):
            raise AssertionError
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b[36mray::work()\x1b[39m failed", "ray::work() failed"),
        ("\x1b[1;31;40mred\x1b[0m \x1b]8;;http://a\x07link\x1b]8;;\x1b\\", "red link"),
        ("one\n  two\r\n\nthree\u2028four", "one two three four"),
        ("bell\x07 and \x9b tab\tnul\x00", "bell  and   tab nul"),
        ("bytes \udcff", r"bytes \udcff"),
        ("Σ ≥ ½, naïve – ρ", "Σ ≥ ½, naïve – ρ"),
    ],
)
def test_messages_are_one_line_without_colours(text, line):
    assert plain(text) == str(GeophoneError(text)) == line
    plain(text).encode()
