"""The embedded samples: counts, splits, licences, order, and what their card says of them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pfedmma_deploy
from pfedmma_deploy.data.samples import SAMPLE_NAMES, SampleDataset, load_sample
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example

ASSETS = Path(pfedmma_deploy.__file__).parent / "assets" / "samples"
CARD = (ASSETS / "README.md").read_text("utf-8")
Pixels = NDArray[np.uint8]
EMOJI_DOMAINS = ("noto", "twemoji", "openmoji", "fluent")
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@cache
def sample(name: str) -> SampleDataset:
    return load_sample(name)


@cache
def pixels(name: str) -> dict[Example, Pixels]:
    data = sample(name)
    return {example: np.asarray(data.open_image(example)) for example in data.examples}


def test_cifar10_sample_has_the_promised_counts() -> None:
    data = sample("cifar10-sample")
    assert data.class_names == CIFAR_CLASSES
    counts = Counter((example.label, example.split) for example in data.examples)
    expected = {"train": 100, "val": 20, "test": 100}
    assert counts == {(k, split): n for k in range(10) for split, n in expected.items()}
    assert {example.domain for example in data.examples} == {"photo"}


def test_domains_sample_has_every_class_in_every_domain_and_split() -> None:
    data = sample("domains-sample")
    assert data.class_names == tuple(c for c in CIFAR_CLASSES if c not in ("deer", "frog"))
    counts = Counter((e.domain, e.split, e.label) for e in data.examples)
    for label in range(8):
        for domain in ("photo", "sketch"):
            assert [counts[domain, s, label] for s in ("train", "val", "test")] == [30, 10, 30]
        for domain in EMOJI_DOMAINS:
            assert counts[domain, "train", label] >= 2
            assert counts[domain, "val", label] == 0
            assert counts[domain, "test", label] >= 1


def test_both_samples_stay_below_ten_megabytes() -> None:
    assert sum((ASSETS / f"{name}.zip").stat().st_size for name in SAMPLE_NAMES) < 10_000_000


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_no_picture_occurs_twice(name: str) -> None:
    keys: dict[str, str] = {}
    for example, image in pixels(name).items():
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        assert digest not in keys, f"{example.key} has the pixels of {keys[digest]}"
        keys[digest] = example.key


def test_photos_have_the_same_split_in_both_samples() -> None:
    split = {image.tobytes(): e.split for e, image in pixels("cifar10-sample").items()}
    photos = [(e, image) for e, image in pixels("domains-sample").items() if e.domain == "photo"]
    assert len(photos) == 560
    assert all(split[image.tobytes()] == e.split for e, image in photos)


def test_no_test_photo_nearly_equals_one_that_is_trained_on() -> None:
    images = pixels("cifar10-sample")
    flat = np.stack(list(images.values())).astype(np.float32)
    is_test = np.array([example.split == "test" for example in images])

    def normalised(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = batch.reshape(len(batch), -1)
        rows = rows - rows.mean(1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    seen = normalised(flat[~is_test])
    for test in (flat[is_test], flat[is_test][:, :, ::-1]):
        assert (seen @ normalised(test).T).max() < 0.9


def test_an_emoji_is_on_one_side_in_every_family() -> None:
    sides: dict[str, set[str]] = defaultdict(set)
    for example in sample("domains-sample").examples:
        if example.domain in EMOJI_DOMAINS:
            sides[Path(example.key).stem].add(example.split)
    assert len(sides) == 59
    assert all(len(splits) == 1 for splits in sides.values())


@pytest.mark.parametrize(
    "variants",
    [
        "1f426 1f426-200d-2b1b",
        "1f424 1f425",
        "1f414 1f413",
        "1f408 1f408-200d-2b1b",
        "1f431 1f638 1f639 1f63b 1f63c 1f63d 1f640 1f63f 1f63e",
        "1f6eb 1f6ec",
        "1f697 1f695 1f693",
        "1f698 1f696 1f694",
        "1f415 1f9ae 1f415-200d-1f9ba",
        "1f40e 1f3c7",
        "1f6a4 1f6e5-fe0f",
    ],
)
def test_variants_of_a_drawing_are_on_one_side(variants: str) -> None:
    splits = {
        Path(example.key).stem: example.split for example in sample("domains-sample").examples
    }
    assert len({splits[code] for code in variants.split()}) == 1


def test_emoji_are_drawn_on_white() -> None:
    for example, image in pixels("domains-sample").items():
        if example.domain in EMOJI_DOMAINS:
            assert image.shape == (64, 64, 3)
            ink = (image.min(-1) < 250).mean()
            assert 0.1 < ink < 0.95, f"{example.key}: {ink:.0%} of the picture is drawn on"


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_keys_agree_with_label_split_and_domain(name: str) -> None:
    data: Dataset = sample(name)
    for e in data.examples:
        folder = f"images/{e.domain}/{e.split}/{data.class_names[e.label]}/"
        assert e.key.startswith(folder)
        assert e.client is None
    assert len({e.key for e in data.examples}) == len(data.examples)
    assert data.skipped == ()


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_loading_twice_gives_the_same_examples_and_pixels(name: str) -> None:
    first, second = sample(name), load_sample(name)
    assert first.examples == second.examples
    for example in first.examples[::97]:
        assert first.open_image(example).tobytes() == second.open_image(example).tobytes()


def test_threads_read_the_same_pixels() -> None:
    data = sample("cifar10-sample")
    chosen = data.examples[::11] * 4
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(data.open_image, chosen))
    expected = pixels("cifar10-sample")
    assert all((np.asarray(i) == expected[e]).all() for i, e in zip(images, chosen, strict=True))


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_card_in_the_container_agrees_with_the_index(name: str) -> None:
    data = sample(name)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for e in data.examples:
        labels = counts.setdefault(str(e.domain), {}).setdefault(e.split, {})
        class_name = data.class_names[e.label]
        labels[class_name] = labels.get(class_name, 0) + 1
    assert data.card["name"] == name
    assert data.card["counts"] == counts
    assert set(data.card["licences"]) == set(data.card["attribution"]) == set(counts)
    assert [source["domain"] for source in data.card["sources"]] == list(counts)
    assert all(len(source["sha256"]) == 64 for source in data.card["sources"])


def test_data_card_names_every_source_with_its_version_and_licence() -> None:
    card = sample("domains-sample").card
    for source in card["sources"]:
        row = f"| {source['domain']} | `{source['package']}` {source['version']} |"
        line = next(line for line in CARD.splitlines() if line.startswith(row))
        licence = card["licences"][source["domain"]]
        assert line.endswith(
            "none stated by its authors |" if "none" in licence else f"{licence} |"
        )


def test_data_card_states_the_counts_of_the_files() -> None:
    data = sample("domains-sample")
    for domain, splits in data.card["counts"].items():
        for split, labels in splits.items():
            numbers = [labels[class_name] for class_name in data.class_names]
            cells = " | ".join(str(n) for n in [*numbers, sum(numbers)])
            assert f"| {domain} | {split} | {cells} |" in CARD
    for name in SAMPLE_NAMES:
        assert any(
            line.startswith(f"| `{name}` |") and f"| {len(sample(name).examples)} |" in line
            for line in CARD.splitlines()
        )
    assert "100 train, 20 validation and 100 test images of each" in CARD


def test_data_card_example_reads_the_container() -> None:
    code = CARD.split("```python\n")[1].split("```")[0]
    path = ASSETS / "domains-sample.zip"
    names: dict[str, object] = {}
    exec(code.replace('"domains-sample.zip"', repr(str(path))), names)
    rows = names["rows"]
    assert isinstance(rows, list)
    assert [row["key"] for row in rows] == [e.key for e in sample("domains-sample").examples]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError) as caught:
        load_sample("cifar100")
    assert str(caught.value) == (
        "There is no sample 'cifar100'; the samples are cifar10-sample and domains-sample."
    )


def test_an_example_of_other_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"cifar10-sample has no image cat/1\.png; use the"):
        sample("cifar10-sample").open_image(Example("cat/1.png", 3, "train"))
