"""The one function that touches the network, against a server of this test's own on this machine."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from geophone.data.places import fetch  # taken before the fixture of conftest.py replaces it

CONTENT = b"some bytes"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.gz").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_under_its_own_name(address, tmp_path):
    path = fetch(f"{address}/file.gz", MD5, tmp_path / "to")
    assert path == tmp_path / "to" / "file.gz"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("file", "checksum", "error"), [("file.gz", "md5:" + "0" * 32, ValueError), ("other.gz", MD5, OSError)]
)
def test_a_wrong_or_missing_file_leaves_nothing_behind(address, tmp_path, file, checksum, error):
    with pytest.raises(error):
        fetch(f"{address}/{file}", checksum, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
