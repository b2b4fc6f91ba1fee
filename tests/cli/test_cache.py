"""`pfedmma cache`: what is there is shown, and only that is deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma_deploy.cli.main import run


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "caches"))
    for kind in ("prefixes", "index"):
        folder = tmp_path / "caches" / kind / "inner"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"12345")
    (tmp_path / "caches" / "mine.txt").write_text("not a cache")
    return tmp_path / "caches"


def test_info(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "info", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["folder"] == str(caches)
    assert values["kinds"]["prefixes"] == {"files": 1, "bytes": 5}
    assert values["kinds"]["tensorrt"] == {"files": 0, "bytes": 0}


def test_clear_one(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "clear", "prefixes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cleared": ["prefixes"], "bytes": 5}
    assert not (caches / "prefixes").exists()
    assert (caches / "index").exists()


def test_clear_all_leaves_what_is_not_a_cache(caches: Path) -> None:
    assert run(["cache", "clear", "--quiet"]) == 0
    assert [path.name for path in caches.iterdir()] == ["mine.txt"]


def test_an_unknown_kind(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "clear", "prefixs"]) == 2
    assert "no cache is called 'prefixs'; did you mean 'prefixes'?" in capsys.readouterr().err
    assert (caches / "index").exists()


def test_caches_that_are_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PFEDMMA_CACHE", "off")
    assert run(["cache", "info"]) == 0
    assert "Caches are off (PFEDMMA_CACHE)." in capsys.readouterr().out
    assert run(["cache", "clear"]) == 0
