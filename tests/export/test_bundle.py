"""What an export leaves on disk, what it refuses, and that it never leaves half a bundle."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export import publish
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.bundle import ExportReport
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import ClientHistory, Figures, History, Manifest
from tests.export.sample import (
    CLASS_NAMES,
    CLIENTS,
    PROMPT,
    export_sample,
    images,
    random_client,
    shared_backbone,
    tiny_backbone,
    with_tensor,
)

pytest_plugins = ["tests.export.fixtures"]

Reuse = Callable[[pytest.MonkeyPatch], None]

FILES = {
    "README.md",
    "classifier.onnx",
    "labels.txt",
    "manifest.json",
    "text_embeds.npy",
    "text_model.onnx",
    "tokenizer.json",
    "vision_model.onnx",
}


def test_report_and_files(exported: ExportReport) -> None:
    values = exported.to_dict()
    assert values["clients"] == ["zero-shot", "north", "0"]
    assert set(values["files"]) == FILES == {path.name for path in exported.bundle.iterdir()}
    assert all(size > 0 for size in values["files"].values())
    # 6 images x 3 clients, alone and in a mixed batch.
    assert values["parity"]["images"] == 36
    assert values["parity"]["top1_agreement"] == 100.0
    assert 0 < values["parity"]["max_abs_error"] < 1e-5
    json.dumps(values)


def test_manifest(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    assert (raw["format"], raw["format_version"]) == ("pfedmma-bundle", 2)
    assert raw["strength"] == "exact"
    assert raw["clients"][1] == {
        "index": 1,
        "id": "north",
        "seen": [1],
        "default_strength": 1.0,
        "calibration": None,
    }
    assert raw["general_words"] == []
    assert raw["class_names"] == list(CLASS_NAMES)
    assert (raw["base"], raw["novel"]) == ([0, 1], [2, 3])
    assert raw["prompt"] == PROMPT
    assert raw["logit_scale"] == shared_backbone().logit_scale
    assert raw["backbone"]["activation"] == "gelu"
    assert raw["adapter"]["blocks"] == {"image": [1, 2], "text": [1, 2]}
    assert raw["provenance"]["run"] == "test"
    assert raw["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(raw["files"]) == FILES - {"manifest.json"}
    assert Manifest.from_dict(raw).to_dict() == json.loads(json.dumps(raw), object_hook=_tuples)
    Bundle.open(bundle).verify()


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    keep = {"blocks", "image", "text"}
    return {k: tuple(v) if isinstance(v, list) and k not in keep else v for k, v in value.items()}


def test_models_carry_their_description_and_no_paths(bundle: Path) -> None:
    for name in ("vision_model.onnx", "text_model.onnx", "classifier.onnx"):
        data = (bundle / name).read_bytes()
        model = onnx.load_from_string(data)
        notes = {entry.key: entry.value for entry in model.metadata_props}
        assert ast.literal_eval(notes["names"]) == dict(enumerate(CLASS_NAMES))
        assert ast.literal_eval(notes["imgsz"]) == [16, 16]
        assert json.loads(notes["clients"]) == ["zero-shot", "north", "0"]
        assert json.loads(notes["backbone"])["fingerprint"] == shared_backbone().fingerprint
        assert float(notes["logit_scale"]) == shared_backbone().logit_scale
        assert b".py" not in data
        assert ast.literal_eval(notes["args"])["half"] is False
        assert (notes["flavour"], notes["precision"], notes["weights"]) == ("ort", "fp32", "fp32")


def test_one_gather_per_bank_and_no_weights_beside_the_file(bundle: Path) -> None:
    model = onnx.load(bundle / "vision_model.onnx")
    banks = {i.name: list(i.dims) for i in model.graph.initializer if "adapter" in i.name}
    assert banks["blocks.1.adapter.down_weight"] == [3, 64, 4]
    assert len(banks) == 2 * 6
    gathered = Counter(node.input[0] for node in model.graph.node if node.op_type == "Gather")
    assert set(banks) <= set(gathered)
    assert not any(i.data_location for i in model.graph.initializer)


def test_text_features_are_each_clients_own(bundle: Path) -> None:
    embeds = Bundle.open(bundle).text_embeds()
    backbone = shared_backbone()
    tokens = backbone.tokenize(
        ["a photo of a cat.", "a photo of a dog.", "a photo of a fire truck.", "a photo of a owl."]
    )
    hooks = [None, *(client.adapter.hook for client in CLIENTS)]
    for row, hook in zip(embeds, hooks, strict=True):
        np.testing.assert_allclose(
            row, backbone.encode_text(tokens, hook).detach().numpy(), atol=1e-6
        )
    assert np.abs(embeds[0] - embeds[1]).max() > 0.05


def test_no_name_becomes_markup_in_the_card(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    _, north, other = manifest.clients
    names = ("cat | dog", "<script>", "[x](http://y)", "1. a\n# b")
    evil = replace(north, id="a'; rm -rf b | `c`")
    manifest = replace(
        manifest,
        clients=(manifest.clients[0], other, replace(evil, index=2)),
        class_names=names,
        prompt="a `photo` of {}",
    )
    card = publish.model_card("my model", manifest)
    assert "--model 'my model' --client 'a'\"'\"'; rm -rf b | `c`' --compare" in card
    assert 'Classifier.load("my model")' in card
    assert "| a'; rm -rf b &#124; \\`c\\` | 1 | &lt;script&gt; |" in card
    assert "`` a `photo` of {} ``" in card
    assert "Novel: [x\\](http://y), 1. a \\# b." in card
    assert "<script>" not in card


def test_card_names_what_matters(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    for part in (
        "tiny-test (random)",
        "2 clients",
        "| 1 | north | 1 | dog |",
        "`a photo of a {}.`",
    ):
        assert part in card
    assert (bundle / "labels.txt").read_text().split("\n") == [*CLASS_NAMES, ""]


def test_card_says_how_accurate_the_clients_are(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    _, north, other = manifest.clients
    assert "## Accuracy" not in publish.model_card("m", replace(manifest, history=None))
    before = Figures(60.0, 70.0, 80.0, 65.0)
    rows = {
        north.id: ClientHistory((), before, Figures(90.0, 68.0, None, 66.0)),
        other.id: ClientHistory((), before, Figures(70.0, 75.0, None, 61.0)),
    }
    history = History(1, 1, 1, 1, {}, rows)
    card = publish.model_card("m", replace(manifest, history=history))
    assert "| zero-shot | 60.0 | 70.0 | 80.0 | 65.0 |" in card
    assert "| personalized | 80.0 | 71.5 | - | 63.5 |" in card
    worst = f"| 70.0 ({other.id}) | 68.0 ({north.id}) | - | 61.0 ({other.id}) |"
    assert f"| worst client {worst}" in card
    loses = "1 of 2 loses more than a point of base or novel accuracy against zero-shot"
    assert f"{loses}: {north.id}." in card


def test_quick_gelu_and_same_bytes_again(tmp_path: Path) -> None:
    backbone = tiny_backbone(layers=2, quick_gelu=True)
    first = export_sample(tmp_path / "one", backbone, clients=[random_client("a", 3, layers=2)])
    again = export_sample(tmp_path / "two", backbone, clients=[random_client("a", 3, layers=2)])
    assert first.parity.max_abs_error < 1e-5
    assert "classifier.onnx" not in first.files
    for name in ("vision_model.onnx", "text_model.onnx", "text_embeds.npy", "tokenizer.json"):
        assert (first.bundle / name).read_bytes() == (again.bundle / name).read_bytes()


def test_an_older_bundle_is_replaced(
    tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)
    out = tmp_path / "exports" / "site"
    export_sample(out)
    (out / "stray.txt").write_text("from before")
    report = export_sample(out, classifier=True)
    assert {path.name for path in out.iterdir()} == FILES == set(report.files)
    assert [path.name for path in out.parent.iterdir()] == ["site"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing_a_folder(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(publish, "_exchange", lambda left, right: False)
    out = tmp_path / "bundle"
    for text in ("old", "new"):
        with publish.staged(out) as folder:
            (folder / "manifest.json").write_text('{"format": "pfedmma-bundle"}')
            (folder / "content").write_text(text)
    assert (out / "content").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_the_older_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with publish.staged(out) as folder:
        (folder / "manifest.json").write_text('{"format": "pfedmma-bundle"}')
    with pytest.raises(KeyboardInterrupt), publish.staged(out) as folder:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": "pfedmma-run"}'])
def test_other_folders_are_never_overwritten(tmp_path: Path, content: str | None) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("do not lose me")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match=r"exists and is not an exported model: nothing was"):
        export_sample(tmp_path)
    with pytest.raises(ExportError, match="not an exported model"):
        export_sample(precious)
    assert precious.read_text() == "do not lose me"


def test_a_model_that_differs_is_not_published(
    tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)
    north, other = CLIENTS
    values = north.adapter.tensors()
    changed = with_tensor(north, "image.2.up.bias", values["image.2.up.bias"] * 1.5)
    with pytest.raises(
        ExportError,
        match=r"not the trained one: largest difference \d\.\d+e-\d+ \(accepted 1e-04\), "
        r"same class for [\d.]+ % of 36 images \(accepted 99 %\)",
    ):
        export_sample(tmp_path / "wrong", clients=[changed, other])
    assert not list(tmp_path.iterdir())


def test_the_trained_adapters_own_forward_is_what_counts(
    tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's hook that computes something else than its tensors say is noticed."""
    reuse(monkeypatch)
    _, other = CLIENTS
    wrong = random_client("north", 1, scale=0.6)
    with pytest.raises(ExportError, match="not the trained one"):
        export_sample(tmp_path / "wrong", clients=[wrong, other])


BAD_CLIENTS = [
    ([], "There is no client to export"),
    ([CLIENTS[0], CLIENTS[0]], "Client 'north' is there twice"),
    ([random_client("zero-shot", 1)], "Client 'zero-shot' is the name of client 0"),
    (
        [CLIENTS[0], random_client("0", 2, layers=2)],
        "client '0' alone has blocks.0.adapter in the image tower",
    ),
    (
        [CLIENTS[0], random_client("0", 2, rank=5)],
        r"'0' has blocks.1.adapter.down_weight of shape \[64, 5\], others \[64, 4\]",
    ),
    (
        [with_tensor(CLIENTS[0], "text.2.down.bias", torch.full((4,), float("nan")))],
        "'north' has NaN or infinity in blocks.2.adapter.down_bias",
    ),
    (
        [random_client("deep", 1, layers=4)],
        "sit at blocks.3.adapter of the image tower, which tiny-test does not have",
    ),
]


@pytest.mark.parametrize(("clients", "message"), BAD_CLIENTS)
def test_wrong_clients_are_refused(
    tmp_path: Path, clients: list[ExportClient], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_sample(tmp_path / "out", clients=clients)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a photo"}, r"The prompt 'a photo' has no \{\}"),
        ({"class_names": ("cat", "cat")}, "each once: rename the equal ones"),
        (
            {"parity_images": images()[:, :8]},
            r"uint8 \[N, 16, 16, 3\], found uint8 \[6, 8, 16, 3\]",
        ),
        ({"parity_images": images(0)}, r"found uint8 \[0, 16, 16, 3\]"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_sample(tmp_path / "out", **changes)


def test_another_tokenizer_is_refused(
    tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)
    backbone = tiny_backbone()
    plain = backbone.tokenize

    def upper(texts: list[str]) -> torch.Tensor:
        return plain([text.replace("42", "43") for text in texts])

    other = Backbone(**{**vars(backbone), "tokenize": upper})
    with pytest.raises(ExportError, match="tokenizer of tiny-test is not CLIP's byte-pair"):
        export_sample(tmp_path / "out", other)
    assert not list(tmp_path.iterdir())
