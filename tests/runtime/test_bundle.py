"""Reading a bundle: what is damaged, missing or of another version is said by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import Manifest

pytest_plugins = ["tests.export.fixtures"]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "manifest.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere is no folder: .* `pfedmma export`"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json: .* `pfedmma export`"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        Bundle.open(tmp_path)


def test_manifest_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(BundleError, match="is no JSON object"):
        Bundle.open(tmp_path)


WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(format="pfedmma-run"), "format 'pfedmma-run', expected 'pfedmma-bundle'"),
    (lambda m: m.update(format_version=2), "format version 2, this program reads version 1"),
    (lambda m: m.pop("prompt"), "manifest's prompt should be text, found nothing"),
    (lambda m: m.update(prompt="a photo"), r"prompt 'a photo' has no \{\}"),
    (lambda m: m.update(embed_dim="24"), "embed_dim should be a whole number, found str"),
    (lambda m: m.update(embed_dim=True), "embed_dim should be a whole number, found bool"),
    (lambda m: m.update(class_names=["cat", 3]), "class_names.1 should be text, found int"),
    (lambda m: m["clients"].pop(0), "numbered from 0, which is zero-shot"),
    (lambda m: m["clients"][1].pop("seen"), "clients.seen should be a list, found nothing"),
    (lambda m: m.update(clients=[3]), "clients should be objects"),
    (lambda m: m.update(novel=[2, 9]), "labels beyond its 4 class names"),
    (lambda m: m["preprocessing"].update(mean=[0.5]), "should have 3 numbers, found 1"),
    (
        lambda m: m["preprocessing"].update(resize_mode="stretch"),
        "preprocessing.resize_mode should be one of shortest, squash, longest, found 'stretch'",
    ),
    (lambda m: m["files"].update({"x": 3}), "files.x.bytes should be a whole number"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_manifests(copy: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(copy)
    assert str(copy) in str(caught.value)


def test_changed_files_are_noticed(copy: Path) -> None:
    model = copy / "vision_model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    opened = Bundle.open(copy)
    with pytest.raises(
        BundleError, match=r"vision_model\.onnx was changed: its SHA-256 is [0-9a-f]"
    ):
        opened.file("vision_model.onnx")
    model.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=r"has \d+ bytes, its manifest says \d+"):
        opened.verify()
    model.unlink()
    with pytest.raises(BundleError, match=r"vision_model\.onnx is missing: copy the bundle again"):
        opened.verify()


def test_files_outside_the_manifest_are_not_used(copy: Path) -> None:
    rewrite(copy, lambda m: m["files"].pop("classifier.onnx"))
    with pytest.raises(BundleError, match=r"was exported without classifier\.onnx"):
        Bundle.open(copy).file("classifier.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 4, 23), np.float32), r"float32 \(3, 4, 23\), expected float32 \(3, 4, 24\)"),
        (np.zeros((3, 4, 24)), "holds float64"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_wrong_text_features(copy: Path, content: Any, message: str) -> None:
    import hashlib

    file = copy / "text_embeds.npy"
    if content is None:
        file.write_bytes(b"not numpy")
    else:
        np.save(file, content, allow_pickle=True)
    info = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    rewrite(copy, lambda m: m["files"].update({"text_embeds.npy": info}))
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy).text_embeds()


def test_numbers_may_be_whole(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["logit_scale"] = 100
    assert Manifest.from_dict(raw).logit_scale == 100.0
