"""Operations per image, counted by hand."""

from __future__ import annotations

import pytest

from pfedmma_deploy.benchmark.flops import ImageTower, exported_flop, image_flop, tower_of
from tests.tinyclip import tiny_backbone


def test_the_smallest_tower_by_hand() -> None:
    """One patch of one pixel, d = 2, m = 3, D = 5, one block, so T = 2 tokens.

    Patches 2 * 1 * 3 * 2 = 12; q, k, v, out 4 * 2 * 2 * 2 * 2 = 64; scores and mixture
    2 * 2 * 2 * 2 * 2 = 32; MLP 2 * 2 * 2 * 2 * 3 = 48; projection 2 * 2 * 5 = 20.
    """
    tower = ImageTower(image_size=1, patch_size=1, width=2, depth=1, mlp_width=3, embed_dim=5)
    assert image_flop(tower) == 12 + 64 + 32 + 48 + 20
    # In the only block keys and values of both tokens, the rest of one: 32 + 16 + 16 + 24.
    assert exported_flop(tower) == 12 + (32 + 16 + 16 + 24) + 20


@pytest.mark.parametrize(
    ("patch", "width", "depth", "embed", "billions"),
    [(32, 768, 12, 512, 8.82), (16, 768, 12, 512, 35.1), (14, 1024, 24, 768, 162)],
)
def test_known_towers(patch: int, width: int, depth: int, embed: int, billions: float) -> None:
    tower = ImageTower(224, patch, width, depth, 4 * width, embed)
    assert image_flop(tower) / 1e9 == pytest.approx(billions, rel=0.005)


def test_dimensions_are_read_from_a_backbone() -> None:
    assert tower_of(tiny_backbone()) == ImageTower(16, 8, 32, 3, 128, 16)
