"""The export-time towers compute what the backbone computes, before any ONNX."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import adapter_hook, stack_banks
from pfedmma_deploy.export.graph import ClassifierGraph, ImageGraph, TextGraph, is_quick_gelu
from pfedmma_deploy.types import TOWERS
from tests.export.sample import (
    BOTTLENECK_DIM,
    CLASS_NAMES,
    CLIENTS,
    SCALE,
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
    banks = stack_banks(CLIENTS, backbone, BOTTLENECK_DIM)
    image = ImageGraph(backbone, banks["image"], SCALE).eval()
    return image, TextGraph(backbone, banks["text"], SCALE).eval()


def reference(backbone: Backbone, items: Tensor, clients: list[int]) -> Tensor:
    """One item at a time, each with its client's hook."""
    hooks = [None, *(adapter_hook(client.tensors, SCALE) for client in CLIENTS)]
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
        found = graph(items, clients)
        expected = reference(backbone, items, order)
        assert (found - expected).abs().max() < TOLERANCE
        assert torch.allclose(found.norm(dim=-1), torch.ones(6), atol=1e-6)


@torch.inference_mode()
def test_zero_shot_is_exactly_the_graph_without_adapters() -> None:
    backbone = shared_backbone()
    image, _ = graphs(backbone)
    bare = ImageGraph(backbone, {}, SCALE).eval()
    pixels, zeros = torch.from_numpy(images(3)), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(image(pixels, zeros), bare(pixels, zeros))


@torch.inference_mode()
def test_adapters_change_the_answer() -> None:
    image, text = graphs(shared_backbone())
    pixels = torch.from_numpy(images(1)).repeat(3, 1, 1, 1)
    tokens = shared_backbone().tokenize(["cat"]).repeat(3, 1)
    for features in (image(pixels, torch.arange(3)), text(tokens, torch.arange(3))):
        gaps = torch.pdist(features)
        assert gaps.min() > 0.01


@torch.inference_mode()
def test_classifier_scores_are_scaled_cosines_with_each_clients_own_texts() -> None:
    backbone = shared_backbone()
    image, text = graphs(backbone)
    tokens = backbone.tokenize(list(CLASS_NAMES))
    texts = torch.stack([text(tokens, torch.full((4,), c)) for c in range(3)])
    classifier = ClassifierGraph(image, texts, backbone.logit_scale).eval()
    pixels, clients = torch.from_numpy(images(3)), torch.tensor([2, 0, 1])
    features = image(pixels, clients)
    expected = torch.stack(
        [backbone.logit_scale * texts[c] @ f for c, f in zip([2, 0, 1], features, strict=True)]
    )
    assert torch.allclose(classifier(pixels, clients), expected, atol=1e-4)


def test_the_hook_is_the_papers_equation() -> None:
    """By hand, with r = 1 and d = 2: a = s (Up relu(W relu(Down h + b_d) + b_w) + b_u)."""
    tensors = {
        "image.3.down.weight": torch.tensor([[1.0, -2.0]]),
        "image.3.down.bias": torch.tensor([0.5]),
        "image.3.up.weight": torch.tensor([[3.0], [-1.0]]),
        "image.3.up.bias": torch.tensor([0.25, 0.5]),
        "text.5.down.weight": torch.tensor([[1.0, 1.0]]),
        "text.5.down.bias": torch.tensor([-9.0]),
        "text.5.up.weight": torch.tensor([[1.0], [1.0]]),
        "text.5.up.bias": torch.tensor([2.0, 4.0]),
        "pair.0.weight": torch.tensor([[2.0]]),
        "pair.0.bias": torch.tensor([-1.0]),
    }
    hook = adapter_hook(tensors, scale=0.1)
    # down: 2 - 2 + 0.5 = 0.5; pair: 2 * 0.5 - 1 = 0: only the bias is left.
    # down: 4 - 2 + 0.5 = 2.5; pair: 2 * 2.5 - 1 = 4; up: (12.25, -3.5) times 0.1.
    found = hook("image", 3, torch.tensor([[[2.0, 1.0], [4.0, 1.0]]]))
    assert found is not None
    assert torch.allclose(found, torch.tensor([[[0.025, 0.05], [1.225, -0.35]]]))
    # The text tower's own down layer is off, and the pair's bias is cut by its relu.
    added = hook("text", 5, torch.tensor([[[1.0, 1.0]]]))
    assert added is not None
    assert torch.allclose(added, torch.tensor([[[0.2, 0.4]]]))
    assert hook("image", 2, torch.zeros(1, 1, 2)) is None


def test_blocks_come_from_the_names() -> None:
    clients = [random_client("a", 1, blocks=(0, 2)), random_client("b", 2, blocks=(0, 2))]
    banks = stack_banks(clients, shared_backbone(), BOTTLENECK_DIM)
    assert sorted(banks["image"]) == [0, 2]
    assert sorted(banks["text"]) == [0, 2]
    # Pair 1 belongs to block 2, and row 2 to the second client.
    expected = torch.as_tensor(clients[1].tensors["pair.1.weight"])
    assert torch.equal(banks["text"][2].pair_weight[2].T, expected)
    assert not banks["text"][2].up_weight[0].any()


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ExportError, match=r"SiLU\(\) cannot be exported: GELU and QuickGELU can"):
        is_quick_gelu(nn.SiLU())
    with pytest.raises(ExportError, match="approximate='tanh'"):
        is_quick_gelu(nn.GELU(approximate="tanh"))


@torch.inference_mode()
def test_the_hook_is_the_trained_module() -> None:
    backbone = shared_backbone()
    widths = {tower: backbone.width(tower) for tower in TOWERS}
    depths = {tower: backbone.depth(tower) for tower in TOWERS}
    generator = torch.Generator().manual_seed(5)
    adapter = MultiModalAdapter(widths, depths, BOTTLENECK_DIM, SCALE, generator)
    hook = adapter_hook(adapter.state_dict(), SCALE)
    pixels, tokens = torch.from_numpy(images(2)), backbone.tokenize(["cat", "dog"])
    for encode, items in ((backbone.encode_image, pixels), (backbone.encode_text, tokens)):
        assert torch.equal(encode(items, hook), encode(items, adapter.hook))
