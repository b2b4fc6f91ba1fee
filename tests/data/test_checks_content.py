"""Copies, leakage, blank and tiny images; and one folder that has every defect."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data import scan
from pfedmma_deploy.data.dataset_checks import problem_kinds
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.doctor_data import check_content, check_data, warn_of_content
from pfedmma_deploy.data.image_stats import ImageStats, measure, read_stats
from pfedmma_deploy.data.readers.base import StoredDataset
from pfedmma_deploy.types import Example
from tests.data.bad_folder import EXPECTED, make_bad_folder, noise
from tests.data.toy import partitioned
from tests.images import MemoryDataset


def data_of(*examples: Example) -> MemoryDataset:
    data = MemoryDataset(("ant", "bee"), [])
    data.examples = examples
    return data


def looks(**digests: str) -> dict[str, ImageStats]:
    return {key: ImageStats(digest, 32, 32, 50.0) for key, digest in digests.items()}


def test_measured_by_hand() -> None:
    half = np.zeros((2, 4, 3), np.uint8)
    half[:, :2, 0] = 200  # red: half 200, half 0; mean 100, deviation 100
    fact = measure(Image.fromarray(half))
    assert (fact.width, fact.height, fact.spread) == (4, 2, 100.0)
    assert fact.digest == measure(Image.fromarray(half)).digest
    assert fact.digest != measure(Image.fromarray(half.reshape(4, 2, 3))).digest


def test_the_same_pixels_in_another_file_are_a_copy(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", 1)
    with Image.open(path) as image:
        image.save(tmp_path / "b.bmp")
        assert measure(image.convert("RGB")) == measure(Image.open(tmp_path / "b.bmp"))


def test_copies_by_hand() -> None:
    data = data_of(
        Example("a", 0, "train", client="n"),
        Example("b", 0, "train", client="n"),
        Example("c", 0, "test", client="n"),
        Example("d", 1, "train", client="s"),
        Example("e", 1, "train", client="s"),
    )
    found = check_content(data, looks(a="1", b="1", c="1", d="2", e="1"))
    assert {problem.kind: (problem.count, problem.examples) for problem in found} == {
        "leaked-images": (1, ("c (test) is a (train)",)),
        "image-in-two-classes": (1, ("a (ant) and e (bee)",)),
        "held-by-several": (1, ("a (client n) and e (client s)",)),
        "duplicate-images": (1, ("b is a",)),
    }


def test_every_leaked_test_image_counts() -> None:
    data = data_of(Example("a", 0, "val"), *(Example(key, 0, "test") for key in "bcd"))
    (leak, twice) = check_content(data, looks(a="1", b="1", c="1", d="2"))
    assert (leak.kind, leak.count) == ("leaked-images", 2)
    assert (twice.kind, twice.examples) == ("duplicate-images", ("c is b",))


def test_blank_images_are_not_copies_of_each_other() -> None:
    data = data_of(Example("a", 0, "train"), Example("b", 1, "test"))
    blank = ImageStats("1", 32, 32, 0.4)
    (problem,) = check_content(data, {"a": blank, "b": blank})
    assert (problem.kind, problem.count) == ("blank-images", 2)


def test_tiny_images() -> None:
    data = data_of(Example("a", 0, "train"), Example("b", 0, "train"))
    stats = {"a": ImageStats("1", 15, 99, 9), "b": ImageStats("2", 16, 16, 9)}
    (problem,) = check_content(data, stats)
    assert (problem.kind, problem.examples) == ("tiny-images", ("a (15 x 99)",))


def test_the_division_decides_who_holds_what() -> None:
    data = MemoryDataset(("ant", "bee", "cow", "dog"), [0, 1, 2, 3] * 20)
    data.pixels[data.examples[4].key] = data.pixels[data.examples[0].key]
    federation = partitioned(data, clients=2, classes="all", num_shots=0, seed=0)
    (warning,) = warn_of_content(federation).warnings
    assert "4.png" in warning and "0.png" in warning
    # In the data set both are training images; which is a leak depends on the parts set aside.
    splits = {e.key: e.split for c in federation.clients for e in (*c.train, *c.val, *c.test)}
    leaked = {splits["0.png"], splits["4.png"]} not in ({"train"}, {"test"}, {"train", "val"})
    assert (problem_kinds()["leaked-images"].title in warning) == leaked
    (problem,) = (
        p for p in check_data(data).problems if p.level != "warning" or "copies" in str(p)
    )
    assert problem.kind == "duplicate-images"


def test_stats_are_kept_and_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MIN_IMAGES", 1)
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    root, cache = tmp_path / "data", tmp_path / "cache" / "index"
    for number, name in enumerate(("x/0.png", "x/1.png", "y/0.png")):
        noise(root / name, number)
    data = load_dataset(root)
    assert isinstance(data, StoredDataset)
    first, broken = read_stats(data, data.examples)
    assert len(first) == 3 and not broken
    opened: list[str] = []
    honest = StoredDataset.open_image

    def open_image(self: StoredDataset, example: Example) -> Image.Image:
        opened.append(example.key)
        return honest(self, example)

    monkeypatch.setattr(StoredDataset, "open_image", open_image)
    assert read_stats(data, data.examples)[0] == first
    assert opened == []
    noise(root / "x" / "1.png", 77)
    os.utime(root / "x" / "1.png", ns=(1, 1))
    changed = read_stats(data, data.examples)[0]
    assert opened == ["x/1.png"]
    assert {key for key in first if changed[key] != first[key]} == {"x/1.png"}
    (file,) = cache.glob("*.images.npy")
    file.write_bytes(b"no array")
    assert read_stats(data, data.examples)[0] == changed


def test_a_limit_leaves_only_what_is_known() -> None:
    data = MemoryDataset(("ant", "bee"), [0, 1, 0])
    assert read_stats(data, data.examples, limit=2) == ({}, {})
    assert len(read_stats(data, data.examples, limit=3)[0]) == 3


def test_the_cache_can_be_moved_and_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDMMA_CACHE", "/elsewhere")
    file = scan.cache_file(Path("/data"), "images.npy")
    assert file is not None and file.parent == Path("/elsewhere/index")
    monkeypatch.setenv("PFEDMMA_CACHE", "off")
    assert scan.cache_file(Path("/data"), "images.npy") is None


def test_images_that_break_after_reading_are_told(tmp_path: Path) -> None:
    for number in range(4):
        noise(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    data = load_dataset(tmp_path)
    (tmp_path / "a" / "0.png").write_text("gone")
    problems = {p.kind: p for p in check_data(data).problems}
    assert problems["skipped-files"].examples[0].startswith("a/0.png (not a JPEG")


def test_every_planted_defect_is_found(tmp_path: Path) -> None:
    found = check_data(load_dataset(make_bad_folder(tmp_path / "bad")))
    assert {problem.kind for problem in found.problems} == EXPECTED
    assert not found.is_good
    levels = [problem.level for problem in found.problems]
    assert levels == sorted(levels, key=("fatal", "error", "warning").index)
    by_kind = {problem.kind: problem for problem in found.problems}
    assert by_kind["id-names"].count == 3
    assert by_kind["leaked-images"].examples == (
        "a/test/ant/leaked.png (test) is a/train/ant/0.png (train)",
    )
    assert by_kind["client-without-test"].examples == ("c",)
    for problem in found.problems:
        assert problem.count >= len(problem.examples) >= 1 and problem.advice


@pytest.mark.parametrize("name", ["cifar10-sample", "domains-sample"])
def test_nothing_is_wrong_with_the_samples(name: str) -> None:
    found = check_data(load_dataset(name))
    assert (found.problems, found.is_good) == ((), True)
    assert found.images == len(load_dataset(name).examples)


def test_an_impossible_division_is_a_finding_beside_the_others() -> None:
    data = load_dataset("cifar10-sample")
    found = check_data(data, PartitionConfig(clients=50))
    (problem,) = found.problems
    assert (problem.kind, problem.level, found.federation) == ("impossible-division", "fatal", None)
    assert "there are 50 clients and 5 classes to train on" in problem.examples[0]


def test_client_folders_count_as_clients(tmp_path: Path) -> None:
    for number in range(24):
        noise(tmp_path / f"site{number % 2}" / "ab"[number // 2 % 2] / f"{number}.png", number)
    found = check_data(load_dataset(tmp_path))
    assert found.federation is not None
    assert [client.id for client in found.federation.clients] == ["site0", "site1"]
    example = replace(found.federation.clients[0].train[0], client=None)
    assert example.client is None


@pytest.mark.parametrize(("shift", "expected"), [(0, set()), (1, {"shifted-labels"})])
def test_a_manifest_whose_labels_were_shifted(
    shift: int, expected: set[str], tmp_path: Path
) -> None:
    names = ("ant", "bee", "cow")
    rows = ["path,label"]
    for number in range(18):
        path = f"images/{names[number % 3]}/{number}.png"
        noise(tmp_path / path, number)
        rows.append(f"{path},{names[(number + shift) % 3]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    found = check_data(load_dataset(tmp_path / "manifest.csv"))
    assert {p.kind for p in found.problems} == expected
