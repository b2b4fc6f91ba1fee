"""The export-time towers compute what the backbone computes, before any ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.multimodal import bottleneck_reference
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import stack_banks
from pfedmma_deploy.export.graph import ClassifierGraph, ImageGraph, TextGraph, is_quick_gelu
from tests.export.sample import (
    CLASS_NAMES,
    CLIENTS,
    images,
    random_client,
    shared_backbone,
    tiny_backbone,
)

TOLERANCE = 2e-6


@pytest.fixture(
    scope="module",
    params=["gelu", "quick_gelu", "layer_scale", "no_ln_pre", "final_ln_after_pool"],
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    options = {
        "gelu": {},
        "quick_gelu": {"quick_gelu": True},
        "layer_scale": {"ls_init_value": 0.3},
        "no_ln_pre": {"no_ln_pre": True},
        "final_ln_after_pool": {"final_ln_after_pool": True},
    }[request.param]
    return tiny_backbone(**options)  # type: ignore[arg-type]


def graphs(backbone: Backbone) -> tuple[ImageGraph, TextGraph]:
    places = stack_banks(CLIENTS, backbone)
    return ImageGraph(backbone, places["image"]).eval(), TextGraph(backbone, places["text"]).eval()


def reference(backbone: Backbone, items: Tensor, clients: list[int]) -> Tensor:
    """One item at a time, each with its client's hook."""
    hooks = [None, *(client.adapter.hook for client in CLIENTS)]
    encode = backbone.encode_image if items.ndim == 4 else backbone.encode_text
    rows = [encode(items[i : i + 1], hooks[c]) for i, c in enumerate(clients)]
    return torch.cat(rows)


@torch.inference_mode()
def test_mixed_batches_equal_the_backbone(backbone: Backbone) -> None:
    image, text = graphs(backbone)
    order = [0, 1, 2, 1, 0, 2]
    clients = torch.tensor(order)
    pixels = torch.from_numpy(images(6))
    tokens = backbone.tokenize(["cat", "a dog", "", "long " * 90, "owl", "x"])
    for graph, items in ((image, pixels), (text, tokens)):
        found = graph(items, clients, torch.ones(6))
        expected = reference(backbone, items, order)
        assert (found - expected).abs().max() < TOLERANCE
        assert torch.allclose(found.norm(dim=-1), torch.ones(6), atol=1e-6)


@torch.inference_mode()
def test_zero_shot_is_exactly_the_graph_without_adapters() -> None:
    backbone = shared_backbone()
    image, _ = graphs(backbone)
    bare = ImageGraph(backbone, {}).eval()
    pixels, zeros = torch.from_numpy(images(3)), torch.zeros(3, dtype=torch.int64)
    ones = torch.ones(3)
    assert torch.equal(image(pixels, zeros, ones), bare(pixels, zeros, ones))


@torch.inference_mode()
def test_adapters_change_the_answer() -> None:
    image, text = graphs(shared_backbone())
    pixels = torch.from_numpy(images(1)).repeat(3, 1, 1, 1)
    tokens = shared_backbone().tokenize(["cat"]).repeat(3, 1)
    each = torch.arange(3), torch.ones(3)
    for features in (image(pixels, *each), text(tokens, *each)):
        gaps = torch.pdist(features)
        assert gaps.min() > 0.01


@torch.inference_mode()
def test_classifier_scores_are_scaled_cosines_with_each_clients_own_texts() -> None:
    backbone = shared_backbone()
    image, text = graphs(backbone)
    tokens = backbone.tokenize(list(CLASS_NAMES))
    texts = torch.stack([text(tokens, torch.full((4,), c), torch.ones(4)) for c in range(3)])
    classifier = ClassifierGraph(image, texts, backbone.logit_scale).eval()
    pixels, clients = torch.from_numpy(images(3)), torch.tensor([2, 0, 1])
    features = image(pixels, clients, torch.ones(3))
    expected = torch.stack(
        [backbone.logit_scale * texts[c] @ f for c, f in zip([2, 0, 1], features, strict=True)]
    )
    assert torch.allclose(classifier(pixels, clients, torch.ones(3)), expected, atol=1e-4)


@torch.inference_mode()
def test_classifier_mixes_texts_at_other_strengths() -> None:
    """By hand: zero-shot's texts (1, 0), (0, 1), the client's (0, 1), (1, 0), half of each."""
    texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])

    class Fixed(nn.Module):
        def forward(self, pixels: Tensor, client: Tensor, strength: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(pixels), -1)

    classifier = ClassifierGraph(Fixed(), texts, 10.0)
    pixels, strengths = torch.zeros(4, 1), torch.tensor([0.0, 0.5, 1.0, 0.5])
    found = classifier(pixels, torch.tensor([1, 1, 1, 0]), strengths)
    half = 10 * 0.5**0.5
    torch.testing.assert_close(
        found, torch.tensor([[10.0, 0.0], [half, half], [0.0, 10.0], [10.0, 0.0]])
    )


def test_the_numpy_reference_is_the_papers_equation() -> None:
    """By hand, with r = 1 and d = 2: a = s (Up relu(W relu(Down h + b_d) + b_w) + b_u)."""
    rows = {
        "down_weight": [[1.0], [-2.0]],
        "down_bias": [[0.5]],
        "pair_weight": [[2.0]],
        "pair_bias": [[-1.0]],
        "up_weight": [[3.0, -1.0]],
        "up_bias": [[0.25, 0.5]],
    }
    arrays = {name: np.array(row) for name, row in rows.items()}
    # down: 2 - 2 + 0.5 = 0.5; pair: 2 * 0.5 - 1 = 0: only the bias is left.
    # down: 4 - 2 + 0.5 = 2.5; pair: 2 * 2.5 - 1 = 4; up: (12.25, -3.5) times 0.1.
    found = bottleneck_reference(arrays, np.array([[[2.0, 1.0], [4.0, 1.0]]]), 0.1)
    np.testing.assert_allclose(found, [[[0.025, 0.05], [1.225, -0.35]]])
    # Down is off here, and the pair's bias is cut by its relu.
    off = bottleneck_reference({**arrays, "down_bias": np.array([[-9.0]])}, np.ones((1, 1, 2)), 0.1)
    np.testing.assert_allclose(off, [[[0.025, 0.05]]])


def test_rows_belong_to_blocks_and_clients() -> None:
    clients = [random_client("a", 1), random_client("b", 2)]
    places = stack_banks(clients, shared_backbone())
    assert sorted(places["image"]) == ["blocks.1.adapter", "blocks.2.adapter"]
    assert sorted(places["text"]) == ["blocks.1.adapter", "blocks.2.adapter"]
    # Pair 1 belongs to block 2, and row 2 to the second client.
    expected = dict(clients[1].adapter.named_parameters())["pair.1.weight"]
    banks = dict(places["text"]["blocks.2.adapter"].named_buffers())
    assert torch.equal(banks["pair_weight"][2].T, expected)
    assert not banks["up_weight"][0].any()


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ExportError, match=r"SiLU\(\) cannot be exported: GELU and QuickGELU can"):
        is_quick_gelu(nn.SiLU())
    with pytest.raises(ExportError, match="approximate='tanh'"):
        is_quick_gelu(nn.GELU(approximate="tanh"))


@torch.inference_mode()
def test_the_reference_is_the_trained_module() -> None:
    """numpy in float64 and torch, on the rows of every adapted block."""
    backbone = shared_backbone()
    client, generator = CLIENTS[0], torch.Generator().manual_seed(5)
    for banks in client.adapter.export_banks(backbone):
        h = torch.randn(2, 3, backbone.width(banks.tower), generator=generator)
        rows = {name: row.double().numpy() for name, row in banks.rows.items()}
        assert banks.reference is not None
        found = torch.from_numpy(banks.reference(rows, h.double().numpy())).float()
        expected = client.adapter.hook(banks.tower, int(banks.place.split(".")[1]), h)
        assert expected is not None
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
