"""Heat maps: what is counted, and that the picture and the blocks hold all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.report.heatmap import Holdings, count_holdings, draw_blocks, draw_heatmap
from tests.data.toy import make_toy


def holdings(rows: int, columns: int, top: int = 9) -> Holdings:
    counts = np.random.default_rng(0).integers(0, top + 1, (rows, columns))
    return Holdings(
        tuple(f"site-{n}" for n in range(rows)), tuple(f"class {n}" for n in range(columns)), counts
    )


def test_training_images_of_base_classes_are_counted() -> None:
    data = make_toy(("ant", "bee", "cow", "dog"), {"train": 5, "val": 1, "test": 3})
    federation = build_federation(data, PartitionConfig(clients=2, num_shots=3))
    counted = count_holdings(federation)
    assert (counted.clients, counted.classes) == (("0", "1"), ("ant", "bee"))
    owner = federation.clients[0].classes[0]
    assert counted.counts.tolist() == ([[3, 0], [0, 3]] if owner == 0 else [[0, 3], [3, 0]])


def test_blocks_by_hand() -> None:
    # Shades by the square root: 1 of 16 is a quarter, 4 of 16 a half, 9 of 16 three quarters.
    drawn = draw_blocks(
        Holdings(("a", "b"), ("ant", "bee", "cow"), np.array([[0, 1, 4], [16, 9, 0]])), 60
    )
    assert drawn == [
        "client    0   1   2",
        "a         ·   1░  4▒",
        "b        16█  9▓  ·",
        "classes: 0 ant, 1 bee, 2 cow",
        "blocks: empty 0 to full 16 training images",
    ]


def test_narrow_terminals_lose_the_counts_first_then_single_classes() -> None:
    counted = Holdings(("a",), tuple("abcdefghijklmnopqrst"), np.arange(20)[None])
    wide, narrow, narrower = (draw_blocks(counted, width) for width in (100, 30, 18))
    assert "19█" in wide[1]
    assert wide[0].split()[1:] == [str(n) for n in range(20)]
    assert len(narrow[1]) <= 30 and "19" not in narrow[1]
    assert "a block stands for 2 classes next to each other" in narrower
    assert "blocks: empty 0 to full 37 training images" in narrower  # 18 + 19


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 130), st.integers(20, 200), st.integers(0, 100_000))
def test_no_line_is_too_long(rows: int, columns: int, width: int, top: int) -> None:
    drawn = draw_blocks(holdings(rows, columns, top), width)
    assert max(map(len, drawn[: rows + 1])) <= width
    assert len(drawn) >= rows + 3


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (10, 5), (100, 100)])
def test_pictures_grow_with_what_they_show(rows: int, columns: int, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "map.png"
    draw_heatmap(holdings(rows, columns), file, "toy: dirichlet")
    with Image.open(file) as image:
        assert image.format == "PNG"
        # 150 dots an inch: a row of 100 is at least 0.13 inches high, one of 10 at least 0.24.
        assert image.height >= rows * (19 if rows == 100 else 36)
        assert image.width >= columns * 19
        assert max(image.size) < 3000


def test_an_empty_division_can_be_drawn(tmp_path: Path) -> None:
    nothing = Holdings(("a",), ("ant",), np.zeros((1, 1), np.int64))
    draw_heatmap(nothing, tmp_path / "map.png", "nothing")
    assert draw_blocks(nothing, 40)[1].split() == ["a", "·"]
