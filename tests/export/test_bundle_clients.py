"""Clients that join and leave a finished bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from pfedmma_deploy.errors import ExportError, StoreError, UsageError
from pfedmma_deploy.export import banks, newcomer
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.bundle_clients import add_client, remove_client
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.parity import run_clients
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.runtime.bundle import Bundle
from tests.export.sample import (
    BOTTLENECK_DIM,
    CLASS_NAMES,
    CLIENTS,
    PROMPT,
    SCALE,
    export_sample,
    images,
    random_client,
    shared_backbone,
)

pytest_plugins = ["tests.export.fixtures"]

MODELS = ("vision_model.onnx", "text_model.onnx", "classifier.onnx")


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's backbone has no name that open_clip knows."""
    monkeypatch.setattr(newcomer, "backbone_shapes", lambda name: shared_backbone())


def write_client(
    folder: Path,
    client: ExportClient,
    tensors: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """A client's folder as a run leaves it."""
    folder.mkdir(parents=True)
    save_file(tensors or client.adapter.tensors(), folder / "adapter.safetensors")
    config = {
        "format": "pfedmma-client",
        "format_version": 1,
        "client": client.id,
        "method": "pfedmma",
        "parameters": {"bottleneck_dim": BOTTLENECK_DIM, "scale": SCALE},
        "backbone": {"fingerprint": shared_backbone().fingerprint},
        "prompt": PROMPT,
        "logit_scale": shared_backbone().logit_scale,
        "seen": [CLASS_NAMES[label] for label in client.seen],
        "base": list(CLASS_NAMES[:2]),
        "novel": list(CLASS_NAMES[2:]),
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def ids(bundle: Bundle) -> list[str]:
    """Its clients by index."""
    return [client.id for client in bundle.manifest.clients]


def initializers(file: Path) -> dict[str, Any]:
    return {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(file).graph.initializer}


def features(file: Path, client: int) -> Any:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return run_clients(session, images(4), np.full(4, client))


def test_out_and_in_again_is_the_same_bundle(copy: Path, bundle: Path, tmp_path: Path) -> None:
    """The removed client comes back from its files: equal to what torch exported."""
    fewer = remove_client(copy, "0")
    assert ids(fewer) == ["zero-shot", "north"]
    assert initializers(copy / MODELS[0])["blocks.1.adapter.up_bias"].shape == (2, 1, 64)
    Bundle.open(copy).verify()

    report = add_client(copy, write_client(tmp_path / "0", CLIENTS[1]))
    assert ids(report) == ["zero-shot", "north", "0"]
    for name in MODELS:
        old, new = initializers(bundle / name), initializers(copy / name)
        assert list(old) == list(new)
        for key in old:
            np.testing.assert_allclose(new[key], old[key], atol=2e-5 if key == "text" else 0)
    left, right = Bundle.open(bundle), Bundle.open(copy)
    np.testing.assert_allclose(left.text_embeds(), right.text_embeds(), atol=1e-6)
    right.verify()
    assert right.manifest.clients == left.manifest.clients
    added = report.manifest.parity["added"]["0"]
    assert added["method"] == "what each adapter adds, against the equation in numpy (float64)"
    assert 0 < added["max_relative_error"] < 1e-5
    assert json.loads((copy / "manifest.json").read_text())["parity"]["added"] == {"0": added}
    notes = {entry.key: entry.value for entry in onnx.load(copy / MODELS[0]).metadata_props}
    assert json.loads(notes["clients"]) == ["zero-shot", "north", "0"]
    assert "| 2 | 0 | 1 | cat |" in (copy / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_indices_move_up(copy: Path, bundle: Path) -> None:
    remove_client(copy, "north")
    assert Bundle.open(copy).client_index("0") == 1
    found, expected = features(copy / MODELS[0], 1), features(bundle / MODELS[0], 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_under_another_name(copy: Path, tmp_path: Path) -> None:
    folder = write_client(tmp_path / "0", random_client("0", 9))
    with pytest.raises(ExportError, match=r"'0' is in the bundle already: .* --as"):
        add_client(copy, folder)
    assert ids(add_client(copy, folder, name="shop"))[-1] == "shop"
    assert np.abs(features(copy / MODELS[0], 3) - features(copy / MODELS[0], 2)).max() > 0.01


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bundles_in_reduced_precision_take_clients_too(
    precision: Any,
    tmp_path: Path,
    reuse: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.export.test_precision import evaluation

    reuse(monkeypatch)
    form = ExportConfig(precision=precision, weights="fp16", max_accuracy_drop=100)
    site = export_sample(tmp_path / "site", config=form, evaluation=evaluation()).bundle
    report = add_client(site, write_client(tmp_path / "new", random_client("new", 9)))
    assert ids(report)[-1] == "new"
    assert report.manifest.parity["added"]["new"]["max_relative_error"] < 2e-2


def test_shared_projections_come_from_the_run(copy: Path, tmp_path: Path) -> None:
    client = random_client("x", 4)
    own = {k: v for k, v in client.adapter.tensors().items() if not k.startswith("pair.")}
    folder = write_client(tmp_path / "runs" / "r" / "clients" / "x", client, own)
    with pytest.raises(ExportError, match=r"lacks pair\.0\.bias and does not lie in a run"):
        add_client(copy, folder)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backbone": {"fingerprint": "a" * 64}}, "its backbone is aaaaaaaaaaaa, the bundle's is "),
    ({"method": "lora"}, "its method is 'lora', the bundle's is 'pfedmma'"),
    ({"parameters": {"bottleneck_dim": 8, "scale": SCALE}}, "its rank is 8, the bundle's is 4"),
    ({"parameters": {"bottleneck_dim": 4, "scale": 1.0}}, "its scale is 1.0, the bundle's is 0.5"),
    ({"prompt": "{}"}, r"its prompt is '\{\}', the bundle's is 'a photo of a \{\}\.'"),
    ({"seen": ["zebra"]}, "its class list has 'zebra', which the bundle's 4 classes lack"),
    ({"novel": ["yak"]}, "its class list has 'yak'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_who_does_not_fit_is_refused_by_name(
    copy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    before = (copy / "manifest.json").read_bytes()
    folder = write_client(tmp_path / "c", random_client("stranger", 4), **changes)
    with pytest.raises(ExportError, match=f"Client 'stranger' cannot join: {message}"):
        add_client(copy, folder)
    assert (copy / "manifest.json").read_bytes() == before


def test_wrong_tensors_are_refused(copy: Path, tmp_path: Path) -> None:
    client = random_client("new", 4)
    tensors = client.adapter.tensors()
    bare = {name: value for name, value in tensors.items() if name != "pair.1.bias"}
    folder = write_client(tmp_path / "a", client, bare)
    with pytest.raises(ExportError, match=r"lacks pair\.1\.bias and does not lie in a run"):
        add_client(copy, folder)
    nan = {**tensors, "image.1.up.bias": tensors["image.1.up.bias"] * np.nan}
    with pytest.raises(StoreError, match=r"image\.1\.up\.bias holds values that are not finite"):
        add_client(copy, write_client(tmp_path / "b", client, nan))
    more = {**tensors, "stray": torch.zeros(1)}
    with pytest.raises(ExportError, match="parameter stray is not of this adapter"):
        add_client(copy, write_client(tmp_path / "c", client, more))


def test_not_a_client(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"adapter_config\.json: No such file"):
        add_client(copy, tmp_path)
    folder = write_client(tmp_path / "c", CLIENTS[0], format="other")
    with pytest.raises(StoreError, match=r"should describe a client .* found 'other'"):
        add_client(copy, folder)


def test_a_wrong_row_is_noticed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the bank laid out wrongly, the bundle would not be written."""
    rows_of = banks.client_rows

    def transposed(*arguments: Any) -> Any:
        rows = rows_of(*arguments)
        return {
            tower: {name: row.T if "pair_weight" in name else row for name, row in own.items()}
            for tower, own in rows.items()
        }

    monkeypatch.setattr(newcomer, "client_rows", transposed)
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match=r"does not compute the added client: .* differs by"):
        add_client(copy, write_client(tmp_path / "new", random_client("new", 4)))
    assert (copy / "manifest.json").read_bytes() == before


def test_who_cannot_leave(copy: Path) -> None:
    with pytest.raises(UsageError, match="zero-shot is the backbone itself"):
        remove_client(copy, "zero-shot")
    with pytest.raises(UsageError, match="has no client 'nort'"):
        remove_client(copy, "nort")
    remove_client(copy, "0")
    with pytest.raises(ExportError, match="'north' is the only client"):
        remove_client(copy, "north")


def test_inputs_and_outputs_of_adapters_are_found(bundle: Path) -> None:
    model = onnx.load(bundle / "vision_model.onnx")
    banks = CLIENTS[0].adapter.export_banks(shared_backbone())
    taps = [newcomer._tapped(model, one) for one in banks if one.tower == "image"]
    assert len({source for source, _ in taps}) == len({added for _, added in taps}) == 2


def test_open_clip_weights_are_refused_with_the_reason() -> None:
    from pfedmma_deploy.export.merge import refuse_open_clip

    with pytest.raises(ExportError, match=r"pfedmma cannot .*what passes a ReLU is no matrix"):
        refuse_open_clip(get_method("pfedmma"))
