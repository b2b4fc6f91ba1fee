"""FedMaPLe: where the prompts stand, block by block, and what couples the towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.backbone.blocks import run_block
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.fedmaple import CoupledPrompts, FedMaPLe
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def coupled(**parameters: Any) -> CoupledPrompts:
    adapter = inputs.build(FedMaPLe, **parameters)
    assert isinstance(adapter, CoupledPrompts)
    return adapter


def test_the_first_prompt_is_a_photo_and_the_first_block_alone_is_clip() -> None:
    """With n = 4 and J = 1 the text tower reads "a photo of a {name}."."""
    backbone, adapter = tiny_backbone(), coupled(context_vectors=4, prompt_depth=1)
    expected = backbone.encode_text(inputs.texts().prompts)
    found = adapter.encode_text(backbone, inputs.texts())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_prompts_start_from_words_or_from_noise() -> None:
    adapter = coupled()
    assert torch.equal(adapter.text[0], inputs.words("a photo"))
    long = coupled(context_vectors=60)
    for prompt in (adapter.text[1], long.text[0]):
        assert 0.01 < float(prompt.detach().std()) < 0.03


def test_tokens_are_replaced_by_hand() -> None:
    """Five tokens of width 24, n = 2: places 1 and 2 in the text tower, the last two in the image
    tower's, whose prompt is the coupling of the text's.
    """
    adapter = coupled(prompt_depth=2)
    text, image = torch.zeros(2, 5, 24), torch.zeros(2, 5, 32)
    replaced = adapter.replace("text", 1, text)
    assert torch.equal(replaced[0, 1:3], adapter.text[1])
    assert not replaced[:, [0, 3, 4]].any()
    layer = dict(adapter.named_parameters())
    prompt = adapter.text[1] @ layer["couple.1.weight"].T + layer["couple.1.bias"]
    replaced = adapter.replace("image", 1, image)
    torch.testing.assert_close(replaced[1, 3:], prompt)
    assert not replaced[:, :3].any()
    for block in (0, 2):
        assert adapter.replace("text", block, text) is text


def image_by_hand(adapter: CoupledPrompts, pixels: Tensor) -> Tensor:
    """Class token and patches through all blocks, with the prompts of each of the first J."""
    backbone = tiny_backbone()
    x = backbone.embed_image(pixels)
    places = x.shape[1]
    for i, block in enumerate(backbone.blocks("image")):
        if i < adapter.depth:
            prompt = adapter.couple[i](adapter.text[i])
            prompt = backbone.visual.ln_pre(prompt) if i == 0 else prompt
            x = torch.cat([x[:, :places], prompt.expand(len(x), -1, -1)], dim=1)
        x = run_block(block, x, None, None, "image", i)
    return backbone.pool_image(x)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_images_block_by_block(depth: int) -> None:
    adapter = coupled(prompt_depth=depth)
    pixels = inputs.pixels()
    found = adapter.encode_image(tiny_backbone(), pixels)
    torch.testing.assert_close(found, image_by_hand(adapter, pixels), atol=1e-6, rtol=0)
    assert (found - tiny_backbone().encode_image(pixels)).abs().max() > 1e-5


def test_no_deeper_than_the_shallower_tower() -> None:
    assert coupled(prompt_depth=9).depth == 3
    assert {n.split(".")[1] for n in coupled().scopes()} == {"0", "1", "2"}


def test_every_part_learns_and_travels() -> None:
    adapter = coupled()
    FedMaPLe().loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert set(adapter.scopes().values()) == {Scope.SHARED}


def test_values_out_of_range() -> None:
    with pytest.raises(UsageError) as caught:
        coupled(prompt_depth=0)
    assert str(caught.value) == "prompt_depth must be 1 or more, not 0."
