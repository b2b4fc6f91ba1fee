"""A changed bundle is loaded beside the old one; a damaged one changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.serve.keys import add_key
from pfedmma_deploy.serve.live import Live
from pfedmma_deploy.serve.server import make_service
from tests.serve.calling import QUICKSTART, files, photo, served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(QUICKSTART, tmp_path / "bundle")
    return tmp_path / "bundle"


def rename_client(folder: Path, old: str, new: str) -> None:
    """Give a client another id, as a new version of the bundle in one step."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for client in manifest["clients"]:
        if client["id"] == old:
            client["id"] = new
    manifest["history"] = None
    partial = folder / ".manifest.json"
    partial.write_text(json.dumps(manifest))
    partial.replace(folder / "manifest.json")


def test_a_new_version_is_taken_up(folder: Path) -> None:
    changes: list[tuple[str, str]] = []
    live = Live(folder, "cpu", 1, on_change=lambda *change: changes.append(change))
    old = live.model
    live.look()
    assert live.model is old
    rename_client(folder, "3", "ward")
    live.look()
    assert "ward" in live.model.indices
    assert "ward" not in old.indices
    assert live.model.version != old.version
    assert changes == [("bundle", "loaded")]
    # A request that began with the old one is answered, files or no files.
    shutil.rmtree(folder)
    old.classifier.predict(photo(), "3", classes=["zebra", "tea pot"], strength=0.5)


def test_a_damaged_one_is_refused_until_it_is_whole(folder: Path) -> None:
    changes: list[tuple[str, str]] = []
    live = Live(folder, "cpu", 1, on_change=lambda *change: changes.append(change))
    old = live.model
    model = folder / "vision_model.onnx"
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    live.look()
    assert live.model is old
    ((what, reason),) = changes
    assert what == "bundle"
    assert "has 7971856 bytes, its manifest says 7971857" in reason
    # Nothing has changed since: nothing is tried.
    live.look()
    assert len(changes) == 1
    model.write_bytes(content)
    live.look()
    assert live.model is not old
    assert changes[-1] == ("bundle", "loaded")


def test_a_bundle_without_a_text_tower(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["text_model.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "text_model.onnx").unlink()
    with served(make_service(folder, device="cpu", threads=1)) as caller:

        def ask(**data: Any) -> Any:
            return caller.post("/v1/classify", files=files(photo()), data=data)

        assert ask(client="3").status_code == ask(client="3", strength="0").status_code == 200
        for refused in (ask(classes=["cat"]), ask(strength="0.5")):
            assert refused.status_code == 422
            assert refused.json()["error"].startswith("This bundle has no text tower")
        assert caller.post("/v1/embed", json={"texts": ["a"]}).status_code == 422


def test_a_folder_that_vanishes_changes_nothing(folder: Path) -> None:
    changes: list[tuple[str, str]] = []
    live = Live(folder, "cpu", 1, on_change=lambda *change: changes.append(change))
    folder.rename(folder.with_name("elsewhere"))
    live.look()
    assert "is no folder" in changes[0][1]
    assert "3" in live.model.indices


def test_a_withdrawn_key_is_noticed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    withdrawn = add_key(file, "a", ["3"])
    live = Live(folder, "cpu", 1, keys=file)
    kept = add_key(file, "b", ["4"])
    text = file.read_text()
    file.write_text("[broken")
    live.look()
    assert live.keys is not None
    assert live.keys.find(withdrawn) is not None
    file.write_text(text[text.index("[b]") :])
    live.look()
    assert live.keys.find(withdrawn) is None
    assert live.keys.find(kept) is not None


def test_no_request_fails_while_it_changes(folder: Path) -> None:
    service = make_service(folder, device="cpu", threads=1)
    seen: list[Any] = []
    with served(service) as caller:
        for number in range(6):
            if number % 2:
                rename_client(folder, "3" if number == 1 else f"new-{number - 2}", f"new-{number}")
                service.live.look()
            answer = caller.post("/v1/classify", files=files(photo()), data={"client": "4"})
            assert answer.status_code == 200
            seen.append(answer.json())
    assert all(answer == seen[0] for answer in seen)
