"""Operations counted by hand, and against what the field publishes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pfedmma_deploy.backbone.flops import (
    Pass,
    backward_flop,
    block_flop,
    image_flop,
    image_tokens,
    tower_flop,
)
from tests.tinyclip import tiny_backbone


def test_a_block_by_hand() -> None:
    """T = 2, d = 3, m = 5: projections 8*2*9, attention 4*4*3, MLP 4*2*3*5."""
    assert block_flop(2, 3, 5) == 144 + 48 + 120
    assert backward_flop(2, 3, 5) == 312 + 48


def test_a_block_of_one_token_by_hand() -> None:
    """Keys and values of both tokens 4*2*9, then 4*9 + 4*2*3 + 4*3*5 of the one."""
    assert block_flop(2, 3, 5, queries=1) == 72 + 36 + 24 + 60
    assert backward_flop(2, 3, 5, queries=1) == 192 + 24


@pytest.mark.parametrize(
    ("patch", "width", "depth", "embed", "billions"),
    [(32, 768, 12, 512, 8.82), (16, 768, 12, 512, 35.1), (14, 1024, 24, 768, 162)],
)
def test_published_costs(patch: int, width: int, depth: int, embed: int, billions: float) -> None:
    """ViT-B/32, B/16 and L/14 at 224 px: blocks, patches and projection."""
    patches = (224 // patch) ** 2
    blocks = depth * block_flop(patches + 1, width, 4 * width)
    ends = 2 * patches * 3 * patch**2 * width + 2 * width * embed
    assert (blocks + ends) / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_tower_is_the_sum_of_its_blocks() -> None:
    """Three blocks of 5 tokens (2 x 2 patches of 8 x 8 px), width 32, MLP 128, adapted from 1."""
    plain = replace(tiny_backbone(), token_shortcuts=False)
    assert image_tokens(plain) == 5
    block, back = block_flop(5, 32, 128), backward_flop(5, 32, 128)
    ends = 2 * 32 * 16
    patches = 2 * 4 * 3 * 64 * 32
    found = tower_flop(plain, "image", 5, adapted=1)
    assert found == Pass(patches + 3 * block + ends, back + ends)


def test_shortcuts_and_prefixes_save_what_they_should() -> None:
    backbone = tiny_backbone()
    block, last = block_flop(5, 32, 128), block_flop(5, 32, 128, queries=1)
    found = tower_flop(backbone, "image", 5, start=1, adapted=1)
    assert found.forward == block + last + 2 * 32 * 16
    assert found.backward == backward_flop(5, 32, 128, queries=1) + 2 * 32 * 16


def test_an_image_as_exported_and_as_written() -> None:
    backbone = tiny_backbone()
    saved = block_flop(5, 32, 128) - block_flop(5, 32, 128, queries=1)
    assert image_flop(backbone, token_shortcuts=False) - image_flop(backbone) == saved


def test_a_kept_tower_costs_nothing() -> None:
    assert tower_flop(tiny_backbone(), "image", 5, start=3) == Pass(0, 0)
