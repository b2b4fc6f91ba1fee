"""Every exportable method: the graphs, and the bundle, compute what its trained clients compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from pfedmma_deploy.adapters.base import Frozen
from pfedmma_deploy.adapters.lora import low_rank_banks
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import client_banks, stack_banks
from pfedmma_deploy.export.bundle_clients import add_client, remove_client
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.graph import ImageGraph, TextGraph
from pfedmma_deploy.export.models import build_graphs
from pfedmma_deploy.export.quality import Evaluation
from pfedmma_deploy.methods.feddat import DualAdapter
from pfedmma_deploy.methods.promptfl import PromptFL, SharedContext
from pfedmma_deploy.methods.registry import METHODS
from pfedmma_deploy.methods.tap import ComponentAdapter
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.bundle import TEXT_MODEL, VISION_MODEL, Bundle
from tests.export.kinds import EXPORTABLE, clients_of, export_kind
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

TOLERANCE = 3e-6
ORDER = [0, 1, 2, 1, 0]
"""Clients of the five images."""
STRENGTHS = [0.5, 1.0, 0.5, 1.5, 1.0]
"""And how much of what they add counts."""
QUICK = ("plora", "promptfl")
"""One that changes both towers, and one that has a prompt of its own."""
BUNDLED = pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EXPORTABLE],
)
TOWERS = [("pfedmma", {"towers": "image"}), ("local", {"towers": "text"})]
CASES = [*((name, {}) for name in EXPORTABLE), *TOWERS, ("clip-adapter", {"share": "none"})]


@pytest.mark.parametrize(("name", "parameters"), CASES)
@torch.inference_mode()
def test_graphs_equal_the_trained_clients(name: str, parameters: dict[str, Any]) -> None:
    """A batch that mixes both clients, zero-shot and strengths; zero-shot bit-identical."""
    backbone, pixels = tiny_backbone(), inputs.pixels()
    clients = clients_of(name, **parameters)
    graphs = build_graphs(clients, backbone)
    prompt = clients[0].adapter.export_settings().get("prompt", inputs.TEMPLATE)
    models = [None, *(client.adapter for client in clients)]
    order = torch.tensor(ORDER)

    amounts = torch.tensor(STRENGTHS)
    found = graphs[VISION_MODEL].eval()(pixels, order, amounts)
    bare = ImageGraph(backbone, {}).eval()(pixels, torch.zeros(5, dtype=torch.int64), amounts)
    for row, client in enumerate(ORDER):
        model = models[client]
        if model is None:
            assert torch.equal(found[row], bare[row])
        else:
            expected = model.at(STRENGTHS[row]).encode_image(backbone, pixels[row : row + 1])[0]
            assert (found[row] - expected).abs().max() < TOLERANCE

    names = [inputs.NAMES[i % 3] for i in range(5)]
    texts = class_texts(backbone, names, inputs.TEMPLATE)
    own = class_texts(backbone, names, prompt).prompts
    tokens = torch.stack([(own if c else texts.prompts)[i] for i, c in enumerate(ORDER)])
    # Where clients read other tokens than zero-shot, features are mixed outside.
    given = STRENGTHS if prompt == inputs.TEMPLATE else [1.0] * 5
    found = graphs[TEXT_MODEL].eval()(tokens, order, torch.tensor(given))
    bare = TextGraph(backbone, {}).eval()(texts.prompts, torch.zeros_like(order), amounts)
    for row, client in enumerate(ORDER):
        model = models[client]
        if model is None:
            assert torch.equal(found[row], bare[row])
        else:
            expected = model.at(given[row]).encode_text(backbone, texts)[row]
            assert (found[row] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", EXPORTABLE)
@torch.inference_mode()
def test_every_client_differs_from_zero_shot(name: str) -> None:
    """Else the comparison above would compare nothing."""
    backbone, pixels = tiny_backbone(), inputs.pixels()
    given = {"scale": 0.5} if "scale" in METHODS[name].Parameters.__dataclass_fields__ else {}
    clients = clients_of(name, **given)
    texts = class_texts(backbone, inputs.NAMES, inputs.TEMPLATE)
    zero = backbone.encode_image(pixels), backbone.encode_text(texts.prompts)
    for client in clients:
        own = (
            client.adapter.encode_image(backbone, pixels),
            client.adapter.encode_text(backbone, texts),
        )
        assert max(float((a - b).abs().max()) for a, b in zip(own, zero, strict=True)) > 1e-3


@BUNDLED
def test_a_bundle_of_every_exportable_method(name: str, tmp_path: Path) -> None:
    """Exported, opened without torch, asked for typed classes, and made smaller and longer."""
    report = export_kind(tmp_path / "site", name, classifier=True)
    assert report.parity.max_abs_error < 1e-5
    assert report.parity.top1_agreement == 100
    clients = clients_of(name)
    backbone = tiny_backbone()
    classifier = Classifier.load(report.bundle, device="cpu")
    assert classifier.manifest.adapter["kind"]
    typed = ("red fox", "X-ray", "owl", "'tis")
    model = clients[1].adapter
    with torch.inference_mode():
        texts = class_texts(backbone, typed, inputs.TEMPLATE)
        expected = model.encode_text(backbone, texts).numpy()
        half = model.at(0.5).encode_text(backbone, texts).numpy()
    np.testing.assert_allclose(classifier._texts.encoded(2, typed, 1), expected, atol=1e-5)
    np.testing.assert_allclose(classifier._texts.encoded(2, typed, 0.5), half, atol=1e-5)
    with torch.inference_mode():
        known = class_texts(backbone, inputs.NAMES, inputs.TEMPLATE)
        half = model.at(0.5).encode_text(backbone, known).numpy()
    np.testing.assert_allclose(classifier._texts.known(2, 0.5), half, atol=1e-5)
    plain = backbone.encode_text(texts.prompts).numpy()
    np.testing.assert_allclose(classifier._texts.encoded(0, typed, 1), plain, atol=1e-5)

    before = {name: (report.bundle / name).read_bytes() for name in (VISION_MODEL, TEXT_MODEL)}
    remove_client(report.bundle, "b")
    folder = write_client(tmp_path / "b", name, seed=1)
    added = add_client(report.bundle, folder)
    assert [client.id for client in added.manifest.clients] == ["zero-shot", "a", "b"]
    for file, old in before.items():
        was, now = onnx.load_from_string(old), onnx.load(report.bundle / file)
        assert client_banks(was) == client_banks(now)
        rows = {e.name: onnx.numpy_helper.to_array(e) for e in was.graph.initializer}
        for entry in now.graph.initializer:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(entry), rows[entry.name])
    Bundle.open(report.bundle).verify()


def write_client(folder: Path, name: str, seed: int) -> Path:
    """The folder of a client as a run leaves it, with its own copy of what is shared."""
    folder.mkdir()
    clients = clients_of(name)
    adapter = clients[seed].adapter
    save_file(adapter.tensors(), folder / "adapter.safetensors")
    config: dict[str, Any] = {
        "format": "pfedmma-client",
        "format_version": 1,
        "client": clients[seed].id,
        "method": name,
        "parameters": {},
        "backbone": {"fingerprint": tiny_backbone().fingerprint},
        "prompt": inputs.TEMPLATE,
        "logit_scale": tiny_backbone().logit_scale,
        "seen": [inputs.NAMES[0]],
    }
    if isinstance(adapter, ComponentAdapter):
        config["state"] = {"held": list(adapter.held), "participations": 1, "losses": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_methods_that_cannot_be_exported_say_why() -> None:
    refused = {name for name, method in METHODS.items() if method.export_blocker}
    assert refused == {"zero-shot", "fedotp", "pfedmoap", "fedtpg", "fedmaple"}


FORMS = [
    ("promptfl", ExportConfig("ort", precision="fp16", max_accuracy_drop=100)),
    ("plora", ExportConfig("portable", precision="fp16", max_accuracy_drop=100)),
    ("plora", ExportConfig("portable", precision="int8", weights="fp16", max_accuracy_drop=100)),
    ("pfedpt", ExportConfig("ort", precision="fp16", max_accuracy_drop=100)),
    ("fedclip", ExportConfig("ort", precision="fp16", max_accuracy_drop=100)),
    ("clip-adapter", ExportConfig("portable", precision="fp16", max_accuracy_drop=100)),
    ("clip-adapter", ExportConfig("ort", precision="int8", weights="fp16", max_accuracy_drop=100)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), FORMS)
def test_reduced_precision(name: str, config: ExportConfig, tmp_path: Path) -> None:
    """They are valid, keep every bank, and hardly turn a feature; a client joins them, too."""
    pixels = inputs.pixels().numpy()
    labels, rows = np.array([0, 1, 2, 1, 0]), np.arange(5)
    shown = Evaluation(pixels, labels, rows[labels < 2], rows[labels == 2], {})
    report = export_kind(tmp_path / "site", name, config, classifier=True, evaluation=shown)
    assert report.quality is not None
    assert report.quality.least_cosine > 0.98
    assert report.quality.least_text_cosine > 0.98
    remove_client(report.bundle, "a")
    added = add_client(report.bundle, write_client(tmp_path / "a", name, seed=0))
    assert [client.id for client in added.manifest.clients] == ["zero-shot", "b", "a"]
    assert added.manifest.parity["added"]["a"]["max_relative_error"] < 2e-2


def test_low_rank_changes_are_not_fused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"clients of plora change queries .*--flavour portable"):
        export_kind(tmp_path / "x", "plora", ExportConfig(flavour="ort"))


def test_adapters_that_mix_scores_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedContext, "interpolation", "scores")
    with pytest.raises(
        ExportError,
        match="client 'a', SharedContext, mixes class scores, and a bundle's graphs give features",
    ):
        export_kind(tmp_path / "x", "promptfl")
    assert not list(tmp_path.iterdir())


def test_products_side_by_side_are_their_sum() -> None:
    """By hand: B1 A1 + B2 A2 of rank one each, d = 2."""
    a1, b1 = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    a2, b2 = torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]])
    banks = low_rank_banks("image", 0, {"q": [(a1, b1), (a2, b2)]}, 0.5)
    assert banks.place == "blocks.0.low_rank"
    # 3*1 + 7*5 = 38, 3*2 + 7*6 = 48; 4*1 + 8*5 = 44, 4*2 + 8*6 = 56.
    product = (banks.rows["q_down"] @ banks.rows["q_up"]).T
    assert product.tolist() == [[38.0, 48.0], [44.0, 56.0]]
    stacked = {name: torch.stack([torch.zeros_like(row), row]) for name, row in banks.rows.items()}
    module: Any = banks.build(stacked)
    each = torch.tensor([0, 1]), torch.ones(2, 1, 1)
    found = module.queries(torch.tensor([[[1.0, 0.0]]] * 2), *each)
    assert found.tolist() == [[[0.0, 0.0]], [[19.0, 22.0]]]


def test_a_context_stands_in_the_prompt_by_stars() -> None:
    settings = inputs.build(PromptFL, context_vectors=3).export_settings()
    assert settings == {"kind": "context", "vectors": 3, "prompt": "* * * {}."}
    ids = tiny_backbone().tokenize(["* * * large dog.", "large dog."])
    assert len(set(ids[0, 1:4].tolist())) == 1
    assert ids[0, 4:8].tolist() == ids[1, 1:5].tolist()


def test_a_feddat_client_as_one_adapter_by_hand() -> None:
    """d = 2 and 4 with one and two units per bottleneck: the image tower's are filled up."""
    adapter = DualAdapter({"image": 2, "text": 4}, {"image": 1, "text": 1}, 2, torch.Generator())
    own = dict(adapter.named_parameters())
    for side, factor in (("shared", 1.0), ("local", 10.0)):
        path = f"{side}.image.0"
        own[f"{path}.down.weight"].data = torch.tensor([[factor, 0.0]])
        own[f"{path}.up.weight"].data = torch.tensor([[2.0], [0.0]])
        own[f"{path}.up.bias"].data = torch.tensor([factor, 0.0])
    assert adapter.export_settings() == {
        "kind": "multimodal",
        "bottleneck_dim": 4,
        "scale": 0.5,
        "blocks": {"image": [0], "text": [0]},
    }
    shallow = SimpleNamespace(depth=lambda tower: 1)
    first = next(one for one in adapter.export_banks(shallow) if one.tower == "image")  # type: ignore[arg-type]
    rows = {name: row.tolist() for name, row in first.rows.items()}
    assert rows["down_weight"] == [[1.0, 10.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert rows["up_weight"] == [[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert rows["up_bias"] == [[11.0, 0.0]]
    assert rows["pair_weight"] == torch.eye(4).tolist()


def test_clients_that_do_not_have_the_same_are_named() -> None:
    a, b = clients_of("promptfl")
    backbone = tiny_backbone()
    bare = replace(b, adapter=Frozen())
    with pytest.raises(ExportError, match=r"'b' lacks context\.vectors in the text tower"):
        stack_banks([a, bare], backbone)
    with pytest.raises(ExportError, match=r"'b' alone has context in the text tower"):
        stack_banks([replace(a, adapter=Frozen()), b], backbone)
    short = replace(b, adapter=inputs.build(PromptFL, context_vectors=2))
    with pytest.raises(ExportError, match=r"'b' has context\.vectors of shape \[2, 24\]"):
        stack_banks([a, short], backbone)
