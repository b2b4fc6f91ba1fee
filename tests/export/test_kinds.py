"""Every exportable method: the graphs, and the bundle, compute what its trained clients compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from pfedmma_deploy.adapters.graph_form import GraphForm, context_form, low_rank_form
from pfedmma_deploy.backbone.texts import class_texts
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import client_banks
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.graph import ImageGraph, TextGraph
from pfedmma_deploy.export.members import add_client, remove_client
from pfedmma_deploy.export.models import build_graphs, stack
from pfedmma_deploy.export.quality import Evaluation
from pfedmma_deploy.methods.registry import METHODS, get_method
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.bundle import TEXT_MODEL, VISION_MODEL, Bundle
from tests.export.kinds import EXPORTABLE, clients_of, export_kind
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

TOLERANCE = 3e-6
ORDER = [0, 1, 2, 1, 0]
"""Clients of the five images."""
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
    """A batch that mixes both clients and zero-shot; zero-shot to the bit."""
    backbone, pixels = tiny_backbone(), inputs.pixels()
    clients, adapter = clients_of(name, **parameters)
    banks, adapter = stack(clients, backbone, adapter)
    graphs = build_graphs(
        backbone, banks, float(adapter.get("scale", 1)), text_embeds=None, logit_scale=1.0
    )
    models = [None, *(client.trained for client in clients)]
    order = torch.tensor(ORDER)

    found = graphs[VISION_MODEL].eval()(pixels, order)
    bare = ImageGraph(backbone, {}, 1.0).eval()(pixels, torch.zeros(5, dtype=torch.int64))
    for row, client in enumerate(ORDER):
        model = models[client]
        if model is None:
            assert torch.equal(found[row], bare[row])
        else:
            expected = model.encode_image(backbone, pixels[row : row + 1])[0]
            assert (found[row] - expected).abs().max() < TOLERANCE

    names = [inputs.NAMES[i % 3] for i in range(5)]
    texts = class_texts(backbone, names, inputs.TEMPLATE)
    own = class_texts(backbone, names, adapter.get("prompt", inputs.TEMPLATE)).prompts
    tokens = torch.stack([(own if c else texts.prompts)[i] for i, c in enumerate(ORDER)])
    found = graphs[TEXT_MODEL].eval()(tokens, order)
    bare = TextGraph(backbone, {}, 1.0).eval()(texts.prompts, torch.zeros_like(order))
    for row, client in enumerate(ORDER):
        model = models[client]
        if model is None:
            assert torch.equal(found[row], bare[row])
        else:
            assert (found[row] - model.encode_text(backbone, texts)[row]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", EXPORTABLE)
@torch.inference_mode()
def test_every_client_differs_from_zero_shot(name: str) -> None:
    """Else the comparison above would compare nothing."""
    backbone, pixels = tiny_backbone(), inputs.pixels()
    if METHODS[name].parameters.__dataclass_fields__.get("scale"):
        clients, _ = clients_of(name, scale=0.5)
    else:
        clients, _ = clients_of(name)
    texts = class_texts(backbone, inputs.NAMES, inputs.TEMPLATE)
    zero = backbone.encode_image(pixels), backbone.encode_text(texts.prompts)
    for client in clients:
        assert client.trained is not None
        own = (
            client.trained.encode_image(backbone, pixels),
            client.trained.encode_text(backbone, texts),
        )
        assert max(float((a - b).abs().max()) for a, b in zip(own, zero, strict=True)) > 1e-3


@BUNDLED
def test_a_bundle_of_every_exportable_method(name: str, tmp_path: Path) -> None:
    """Exported, opened without torch, asked for typed classes, and made smaller and longer."""
    report = export_kind(tmp_path / "site", name, classifier=True)
    assert report.parity.max_abs_error < 1e-5
    assert report.parity.top1_agreement == 100
    clients, _ = clients_of(name)
    backbone = tiny_backbone()
    classifier = Classifier.load(report.bundle, device="cpu")
    assert classifier.manifest.adapter["kind"]
    typed = ("red fox", "X-ray", "owl", "'tis")
    model = clients[1].trained
    assert model is not None
    with torch.inference_mode():
        texts = class_texts(backbone, typed, inputs.TEMPLATE)
        expected = model.encode_text(backbone, texts).numpy()
    found = classifier._texts.typed(2, typed)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = backbone.encode_text(texts.prompts).numpy()
    np.testing.assert_allclose(classifier._texts.typed(0, typed), plain, atol=1e-5)

    before = {name: (report.bundle / name).read_bytes() for name in (VISION_MODEL, TEXT_MODEL)}
    remove_client(report.bundle, "b")
    folder = write_client(tmp_path / "b", name, seed=1)
    added = add_client(report.bundle, folder)
    assert added.clients == ("zero-shot", "a", "b")
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
    clients, _ = clients_of(name)
    trained = clients[seed].trained
    assert trained is not None
    tensors = trained.tensors(*set(trained.scopes().values()))
    save_file(tensors, folder / "adapter.safetensors")
    config = {
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
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_methods_that_cannot_be_exported_say_why() -> None:
    refused = {name for name, method in METHODS.items() if not method.exportable}
    assert refused == {"zero-shot", "fedotp", "pfedmoap", "fedtpg", "fedmaple"}
    for name, method in METHODS.items():
        assert bool(method.obstacle) != method.exportable, name


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
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_reduced_precision(name: str, form: ExportConfig, tmp_path: Path) -> None:
    """They are valid, keep every bank, and hardly turn a feature; a client joins them, too."""
    pixels = inputs.pixels().numpy()
    labels, rows = np.array([0, 1, 2, 1, 0]), np.arange(5)
    shown = Evaluation(pixels, labels, rows[labels < 2], rows[labels == 2], {})
    report = export_kind(tmp_path / "site", name, form, classifier=True, evaluation=shown)
    assert report.quality is not None
    assert report.quality.least_cosine > 0.98
    assert report.quality.least_text_cosine > 0.98
    remove_client(report.bundle, "a")
    added = add_client(report.bundle, write_client(tmp_path / "a", name, seed=0))
    assert added.clients == ("zero-shot", "b", "a")
    assert added.parity["added"]["a"]["max_relative_error"] < 2e-2


def test_low_rank_changes_are_not_fused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"clients of plora change queries .*--flavour portable"):
        export_kind(tmp_path / "x", "plora", ExportConfig(flavour="ort"))


def test_products_side_by_side_are_their_sum() -> None:
    """By hand: B1 A1 + B2 A2 of rank one each, d = 2."""
    a1, b1 = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    a2, b2 = torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]])
    form = low_rank_form({"image.0.q": [(a1, b1), (a2, b2)]}, 0.5)
    down, up = (form.tensors[f"image.blocks.0.low_rank.q_{side}"] for side in ("down", "up"))
    # 3*1 + 7*5 = 38, 3*2 + 7*6 = 48; 4*1 + 8*5 = 44, 4*2 + 8*6 = 56.
    assert (down @ up).T.tolist() == [[38.0, 48.0], [44.0, 56.0]]
    assert form.settings == {"kind": "low-rank", "rank": 2, "scale": 0.5}


def test_a_context_stands_in_the_prompt_by_stars() -> None:
    form = context_form(torch.zeros(3, 8))
    assert form.settings == {"kind": "context", "vectors": 3, "prompt": "* * * {}."}
    ids = tiny_backbone().tokenize(["* * * large dog.", "large dog."])
    assert len(set(ids[0, 1:4].tolist())) == 1
    assert ids[0, 4:8].tolist() == ids[1, 1:5].tolist()


def test_a_feddat_client_as_one_adapter_by_hand() -> None:
    """d = 1, one unit per bottleneck; the text tower has two, so the image's are filled up."""
    method = get_method("feddat")
    tensors = {}
    for side, factor in (("shared", 1.0), ("local", 10.0)):
        for tower, units in (("image", 1), ("text", 2)):
            path = f"{side}.{tower}.0"
            tensors[f"{path}.down.weight"] = torch.full((units, 1), factor)
            tensors[f"{path}.down.bias"] = torch.zeros(units)
            tensors[f"{path}.up.weight"] = torch.full((1, units), 2.0)
            tensors[f"{path}.up.bias"] = torch.tensor([factor])
    assert method.graph is not None
    form: GraphForm = method.graph(tensors, method.configure({}))
    assert form.settings == {"kind": "multimodal", "bottleneck_dim": 4, "scale": 0.5}
    assert form.tensors["image.0.down.weight"].tolist() == [[1.0], [10.0], [0.0], [0.0]]
    assert form.tensors["image.0.up.weight"].tolist() == [[2.0, 2.0, 0.0, 0.0]]
    assert form.tensors["image.0.up.bias"].tolist() == [11.0]
    assert torch.equal(form.tensors["pair.0.weight"], torch.eye(4))


def test_a_client_that_lacks_something_is_named() -> None:
    from dataclasses import replace

    (a, b), adapter = clients_of("promptfl")
    bare = replace(b, tensors={})
    with pytest.raises(ExportError, match=r"'b' lacks text\.context\.vectors"):
        stack([a, bare], tiny_backbone(), adapter)
    short = replace(b, tensors={"text.context.vectors": torch.zeros(2, 24)})
    with pytest.raises(ExportError, match=r"'b' has text\.context\.vectors of shape \[2, 24\]"):
        stack([a, short], tiny_backbone(), adapter)
