"""Tests of the room `data` see no network, no cache and no system folder; each makes the files that it reads."""

import pytest

from geophone.data import places


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    def fetch(url, checksum, folder):
        raise OSError("no network")

    monkeypatch.setattr(places, "fetch", fetch)
    monkeypatch.setattr(places, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(places, "SYSTEM", ())
    monkeypatch.delenv("GEOPHONE_DATA", raising=False)
