"""Reading a bundle: what is damaged, missing or of another version is said by name."""

from __future__ import annotations

import copy as copying
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import History, Manifest
from tests.export.fixtures import rewrite

pytest_plugins = ["tests.export.fixtures"]


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
    (lambda m: m.update(format_version=3), "format version 3, this program reads versions 1 and 2"),
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


HISTORY: dict[str, Any] = {
    "rounds": 4,
    "bytes_up_per_client_round": 100,
    "bytes_down_per_client_round": 100,
    "bytes_total": 1600,
    "parameters": {"shared": 25, "local": 1000, "frozen": 5000},
    "clients": {
        "north": {
            "num_examples": [3, 0, 0, 0],
            "zero_shot": {"local": 74.5, "base": 73, "novel": None, "all": 71.5},
            "personalized": {"local": 90.0, "base": 70, "novel": None, "all": None},
            "curve": [{"local": 80.0, "base": 72, "novel": None, "all": None, "strength": 0.5}],
        },
        "0": {"num_examples": [], "zero_shot": None, "personalized": None, "curve": []},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """HISTORY with one entry set, `path` separated by slashes."""
    raw = copying.deepcopy(HISTORY)
    *way, last = path.split("/")
    place = raw
    for key in way:
        place = place[key]
    place[last] = value
    return raw


def read_history(bundle: Path, history: Any) -> History | None:
    """What a manifest with this history is read as."""
    raw = json.loads((bundle / "manifest.json").read_text())
    return Manifest.from_dict({**raw, "history": history}).history


def test_a_history_is_read_back_as_written(bundle: Path) -> None:
    history = read_history(bundle, HISTORY)
    assert history is not None
    assert history.clients["north"].num_examples == (3, 0, 0, 0)
    assert json.loads(json.dumps(asdict(history))) == HISTORY


def test_histories_without_curves_are_read(bundle: Path) -> None:
    """As bundles of version 1 have them."""
    older = copying.deepcopy(HISTORY)
    del older["clients"]["north"]["curve"]
    history = read_history(bundle, older)
    assert history is not None and history.clients["north"].curve == ()


def test_bundles_without_a_run_have_no_history(bundle: Path) -> None:
    assert read_history(bundle, None) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rounds", "4", "manifest's history.rounds should be a whole number, found str"),
        ("parameters/shared", 0.5, "history.parameters.shared should be a whole number"),
        ("clients/north", 3, "history.clients.north.num_examples should be a list, found nothing"),
        ("clients/north/zero_shot", [], "clients.north.zero_shot should be an object, found list"),
        ("clients/north/personalized/local", "74", "personalized.local should be a number"),
        ("clients/north/personalized/base", 101.0, "should be a percentage, found 101"),
        ("clients/north/personalized/base", float("nan"), "should be a percentage, found nan"),
        ("clients/north/curve", {}, "clients.north.curve should be a list, found dict"),
        (
            "clients/north/curve",
            [{"local": -1.0, "base": 72, "novel": None, "strength": 0.5}],
            "history.clients.north.curve.0.local should be a percentage, found -1",
        ),
    ],
)
def test_damage_of_a_history_is_named(bundle: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_history(bundle, changed(path, value))
    with pytest.raises(BundleError, match="history should be an object, found list"):
        read_history(bundle, [])


def test_a_history_must_fit_the_bundle(bundle: Path, copy: Path) -> None:
    assert Bundle.open(bundle).manifest.history is None

    def open_with(history: dict[str, Any]) -> Bundle:
        rewrite(copy, lambda raw: raw.update(history=history))
        return Bundle.open(copy)

    assert open_with(HISTORY).manifest.history == read_history(bundle, HISTORY)
    with pytest.raises(BundleError, match="history names a client 'x' that the bundle lacks"):
        open_with(changed("clients/x", HISTORY["clients"]["north"]))
    with pytest.raises(BundleError, match=r"counts images of 1 classes for client 'north', exp.*4"):
        open_with(changed("clients/north/num_examples", [3]))
