"""The prefix cache: exact, shared between processes, bounded, and harmless when damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pfedmma_deploy.backbone.activation_cache import (
    ActivationCache,
    ImageInputs,
    key_of,
    limit_bytes,
)
from pfedmma_deploy.backbone.clip import Activations
from pfedmma_deploy.caches import folder_size
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.errors import UsageError
from tests.images import MemoryDataset
from tests.tinyclip import tiny_backbone

ROW = 5 * 32 * 4
"""Bytes of one image's tokens in the test backbone."""


class Images:
    """Random pixels, and how often they were asked for."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        self.keys = [key_of(one) for one in self.pixels]
        self.decoded = 0

    def decode(self, places: object) -> NDArray[np.uint8]:
        chosen: NDArray[np.uint8] = self.pixels[list(places)]  # type: ignore[call-overload]
        self.decoded += len(chosen)
        return chosen


def expected(images: Images, start: int) -> torch.Tensor:
    return tiny_backbone().image_activations(torch.from_numpy(images.pixels), start).tokens


def test_what_is_kept_is_what_was_computed(tmp_path: Path) -> None:
    store, images = ActivationCache(tiny_backbone(), tmp_path, 1 << 20), Images(5)
    store.keep(images.keys, 1, images.decode)
    images.decoded = 0
    found = store.load(images.keys, 1, images.decode)
    assert found.start == 1
    torch.testing.assert_close(found.tokens, expected(images, 1))
    assert images.decoded == 0


def test_what_is_not_kept_is_computed(tmp_path: Path) -> None:
    store, images = ActivationCache(tiny_backbone(), tmp_path, 1 << 20), Images(4)
    store.keep(images.keys[:2], 2, images.decode)
    torch.testing.assert_close(
        store.load(images.keys, 2, images.decode).tokens, expected(images, 2)
    )


def test_another_process_finds_it(tmp_path: Path) -> None:
    images = Images(3)
    ActivationCache(tiny_backbone(), tmp_path, 1 << 20).keep(images.keys, 1, images.decode)
    images.decoded = 0
    other = ActivationCache(tiny_backbone(), tmp_path, 1 << 20)
    other.keep(images.keys, 1, images.decode)
    other.load(images.keys, 1, images.decode)
    assert images.decoded == 0


def test_models_and_precisions_do_not_mix(tmp_path: Path) -> None:
    images = Images(2)
    ActivationCache(tiny_backbone(), tmp_path, 1 << 20).keep(images.keys, 1, images.decode)
    images.decoded = 0
    changed = replace(tiny_backbone(), fingerprint="0" * 64)
    ActivationCache(changed, tmp_path, 1 << 20).load(images.keys, 1, images.decode)
    half = replace(tiny_backbone(), precision="bf16")
    ActivationCache(half, tmp_path, 1 << 20).load(images.keys, 1, images.decode)
    ActivationCache(tiny_backbone(), tmp_path, 1 << 20).load(images.keys, 2, images.decode)
    assert images.decoded == 3 * 2


def test_the_folder_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    limit = 12 * ROW
    old, new = Images(8, seed=1), Images(8, seed=2)
    ActivationCache(tiny_backbone(), tmp_path, limit).keep(old.keys, 1, old.decode)
    for shard in tmp_path.glob("*/*.npy"):
        os.utime(shard, (1, 1))
    store = ActivationCache(replace(tiny_backbone(), fingerprint="f" * 64), tmp_path, limit)
    store.keep(new.keys, 1, new.decode)
    assert folder_size(tmp_path)[1] <= limit
    new.decoded = 0
    store.load(new.keys, 1, new.decode)
    assert new.decoded == 0


def test_more_than_fits_is_computed_each_time(tmp_path: Path) -> None:
    images = Images(6)
    store = ActivationCache(tiny_backbone(), tmp_path, 2 * ROW)
    store.keep(images.keys, 1, images.decode)
    assert folder_size(tmp_path)[1] <= 2 * ROW
    torch.testing.assert_close(
        store.load(images.keys, 1, images.decode).tokens, expected(images, 1)
    )


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY nonsense", b"[1, 2"])
def test_a_damaged_file_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    images = Images(2)
    ActivationCache(tiny_backbone(), tmp_path, 1 << 20).keep(images.keys, 1, images.decode)
    for path in tmp_path.glob("*/*"):
        path.write_bytes(damage)
    store = ActivationCache(tiny_backbone(), tmp_path, 1 << 20)
    torch.testing.assert_close(
        store.load(images.keys, 1, images.decode).tokens, expected(images, 1)
    )


def test_no_folder_keeps_nothing() -> None:
    images = Images(2)
    store = ActivationCache(tiny_backbone(), None, 1 << 20)
    store.keep(images.keys, 1, images.decode)
    assert len(store.load(images.keys, 1, images.decode)) == 2


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDMMA_PREFIX_GB", "0.5")
    assert limit_bytes() == 500_000_000
    monkeypatch.setenv("PFEDMMA_PREFIX_GB", "much")
    with pytest.raises(UsageError, match="a number of gigabytes, such as 8, found 'much'"):
        limit_bytes()


def test_views_are_drawn_once(tmp_path: Path) -> None:
    """The same few augmentations come again and again, and their prefixes with them."""
    dataset = MemoryDataset(("cat", "dog"), [0, 1, 0])
    store = ActivationCache(tiny_backbone(), tmp_path, 1 << 20)
    inputs = ImageInputs(PixelLoader(dataset, 16), store, views=2, seed=3)
    inputs.keep(dataset.examples, 1, is_random=True)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        found = inputs.load_random(dataset.examples, rng, 1)
        assert isinstance(found, Activations)
        seen |= {row.numpy().tobytes() for row in found.tokens}
    assert len(seen) == 3 * 2


def test_fresh_augmentations_stay_fresh(tmp_path: Path) -> None:
    dataset = MemoryDataset(("cat", "dog"), [0, 1, 0])
    store = ActivationCache(tiny_backbone(), tmp_path, 1 << 20)
    inputs = ImageInputs(PixelLoader(dataset, 16), store)
    rng = np.random.default_rng(0)
    drawn = [inputs.load_random(dataset.examples, rng, 1) for _ in range(2)]
    assert all(isinstance(one, torch.Tensor) for one in drawn)
    assert not torch.equal(drawn[0], drawn[1])  # type: ignore[arg-type]
