"""Data sets that a program has in its hands, and data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.data import registry
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.items import ItemDataset
from pfedmma_deploy.errors import DataError, UsageError

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
NAMES = ("red", "grey")


def test_pillow_images_and_arrays_are_one() -> None:
    grey = np.full((4, 6), 7, np.uint8)
    items = [
        (RED, 0),
        (Image.fromarray(RED), np.int64(0)),
        (grey, 1),
        (Image.new("RGBA", (2, 2)), 1),
    ]
    data = ItemDataset(items, NAMES, name="mixed")
    assert [(e.key, e.label, e.split) for e in data.examples] == [
        ("0", 0, "train"),
        ("1", 0, "train"),
        ("2", 1, "train"),
        ("3", 1, "train"),
    ]
    opened = [data.open_image(example) for example in data.examples]
    assert [image.mode for image in opened] == ["RGB"] * 4
    assert np.array_equal(np.asarray(opened[0]), np.asarray(opened[1]))
    assert opened[2].getpixel((0, 0)) == (7, 7, 7)


def test_keys_have_one_width_and_parts_are_taken() -> None:
    splits: Any = ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    clients = ["a", "b"] * 5 + ["a"]
    data = ItemDataset([(RED, 0)] * 11, NAMES, splits=splits, clients=clients)
    assert data.examples[10].key == "10" and data.examples[3].key == "03"
    assert [e.split for e in data.examples] == splits
    assert [e.client for e in data.examples] == clients


def test_any_map_style_data_set_will_do() -> None:
    class Mapped:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> list[Any]:
            return [RED, index]

    assert [e.label for e in ItemDataset(Mapped(), NAMES).examples] == [0, 1]


@pytest.mark.parametrize(
    ("items", "more", "message"),
    [
        ([], {}, "the data set x has no items: give it pairs of image and label"),
        ([(RED, 2)], {}, "item 0 of the data set x has label 2, which none of the 2 class names"),
        ([(RED, 0), RED], {}, r"item 1 of the data set x should be a pair \(image, label\)"),
        ([(RED / 255, 0)], {}, "found float64"),
        ([("a.png", 0)], {}, "found str"),
        ([(RED, "red")], {}, "item 0 of the data set x should be a pair"),
        ([(RED, 0)], {"splits": []}, "the data set x has 1 items and 0 splits: give one for each"),
        ([(RED, 0)], {"splits": ["dev"]}, "has a split 'dev': use train, val and test"),
        ([(RED, 0)], {"clients": ["a", "b"]}, "the data set x has 1 items and 2 clients"),
    ],
)
def test_mistakes_are_named(items: Sequence[Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ItemDataset(items, NAMES, name="x", **more)


def test_a_registered_data_set_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTERED", {})
    monkeypatch.setattr("pfedmma_deploy.data.datasets.REGISTERED", registry.REGISTERED)
    data = registry.register_dataset(ItemDataset([(RED, 0)], NAMES, name="reds"))
    assert load_dataset("reds") is data
    assert load_dataset(data) is data
    other = registry.register_dataset(ItemDataset([(RED, 1)], NAMES, name="reds"))
    assert load_dataset("reds") is other


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cifar10-sample", "that is a data set of this package; give it a name of its own"),
        ("oxford_pets", "that is a data set of this package"),
        ("", "no data set can be registered as '': give it a name of its own"),
    ],
)
def test_names_of_the_package_are_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        registry.register_dataset(ItemDataset([(RED, 0)], NAMES, name=name))
