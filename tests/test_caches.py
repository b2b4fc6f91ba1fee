"""Where caches go, and how large folders are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pfedmma_deploy.caches import cache_folder, folder_size


def test_a_place_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDMMA_CACHE", "/data/caches")
    assert cache_folder("index") == Path("/data/caches/index")
    for off in ("off", " OFF ", ""):
        monkeypatch.setenv("PFEDMMA_CACHE", off)
        assert cache_folder("index") is None


@pytest.mark.skipif(sys.platform != "linux", reason="every system has a place of its own")
def test_the_place_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDMMA_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("prefixes") == Path("/home/ann/.cache/pfedmma/prefixes")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_folder("prefixes") == Path("/fast/pfedmma/prefixes")


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "two").write_bytes(b"4567")
    assert folder_size(tmp_path) == (2, 7)
    assert folder_size(tmp_path / "none") == folder_size(None) == (0, 0)
