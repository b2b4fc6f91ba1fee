"""What is left out of the towers, or taken from a cache, changes no feature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.types import Tower
from tests.tinyclip import tiny_backbone

PROMPTS = ["a photo of a cat.", "a ship.", "a photo of a very large and very old steam locomotive."]


def make_adapter() -> MultiModalAdapter:
    """Adapters in blocks 1 and 2 of 3, with biases that are not zero."""
    generator = torch.Generator().manual_seed(1)
    adapter = MultiModalAdapter(
        {"image": 32, "text": 24}, {"image": 3, "text": 3}, 4, 0.5, generator
    )
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)


def test_shortcuts_are_exact() -> None:
    backbone, adapter = tiny_backbone(), make_adapter()
    plain = replace(backbone, token_shortcuts=False)
    tokens = backbone.tokenize(PROMPTS)
    for hook in (None, adapter.hook):
        torch.testing.assert_close(
            backbone.encode_image(pixels(), hook), plain.encode_image(pixels(), hook)
        )
        torch.testing.assert_close(
            backbone.encode_text(tokens, hook), plain.encode_text(tokens, hook)
        )


def test_the_plain_reading_sees_all_tokens() -> None:
    """Otherwise a benchmark against it would compare nothing."""
    plain, seen = replace(tiny_backbone(), token_shortcuts=False), []

    def watch(tower: Tower, block: int, h: Tensor) -> None:
        seen.append(tuple(h.shape[:2]))

    plain.encode_text(plain.tokenize(PROMPTS), watch)
    plain.encode_image(pixels(), watch)
    assert seen == [(3, 77)] * 3 + [(5, 5)] * 3


def test_shortcuts_see_fewer() -> None:
    backbone, seen = tiny_backbone(), []

    def watch(tower: Tower, block: int, h: Tensor) -> None:
        seen.append(tuple(h.shape[:2]))

    tokens = backbone.tokenize(PROMPTS)
    longest = int(tokens.argmax(1).max()) + 1
    backbone.encode_text(tokens, watch)
    backbone.encode_image(pixels(), watch)
    assert seen == [(3, longest)] * 2 + [(3, 1)] + [(5, 5)] * 2 + [(5, 1)]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_prefix_is_exact(start: int) -> None:
    backbone = tiny_backbone()
    adapter = make_adapter()

    def hook(tower: Tower, block: int, h: Tensor) -> Tensor | None:
        return adapter.hook(tower, block, h) if block >= start else None

    tokens = backbone.tokenize(PROMPTS)
    images = backbone.image_activations(pixels(), start)
    texts = backbone.text_activations(tokens, start)
    assert torch.equal(backbone.encode_image(images, hook), backbone.encode_image(pixels(), hook))
    assert torch.equal(
        backbone.encode_text(tokens, hook, texts), backbone.encode_text(tokens, hook)
    )


def test_a_prefix_of_the_whole_tower_is_the_features() -> None:
    backbone = tiny_backbone()
    tokens = backbone.tokenize(PROMPTS)
    images, texts = backbone.image_activations(pixels(), 3), backbone.text_activations(tokens, 3)
    assert torch.equal(backbone.encode_image(images), backbone.encode_image(pixels()))
    assert torch.equal(backbone.encode_text(tokens, None, texts), backbone.encode_text(tokens))


def test_gradients_are_those_of_the_plain_reading() -> None:
    found = []
    for backbone in (tiny_backbone(), replace(tiny_backbone(), token_shortcuts=False)):
        adapter = make_adapter()
        images = backbone.encode_image(pixels(), adapter.hook)
        texts = backbone.encode_text(backbone.tokenize(PROMPTS), adapter.hook)
        (20 * images @ texts.T).logsumexp(1).sum().backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in adapter.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# Of torch.compile itself, which looks at gradients while it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_compiled_blocks_compute_the_same() -> None:
    backbone, adapter = tiny_backbone(), make_adapter()
    fast = replace(backbone, run_block=torch.compile(backbone.run_block))
    tokens = backbone.tokenize(PROMPTS)
    for one, other in (
        (backbone.encode_image(pixels(), adapter.hook), fast.encode_image(pixels(), adapter.hook)),
        (backbone.encode_text(tokens, adapter.hook), fast.encode_text(tokens, adapter.hook)),
    ):
        torch.testing.assert_close(one, other)
    fast.encode_image(pixels(), adapter.hook).sum().backward()  # type: ignore[no-untyped-call]
    assert adapter.get_submodule("image.1").down.weight.grad is not None  # type: ignore[union-attr]
