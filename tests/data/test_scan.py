"""What is remembered about large folders: used while it is true, dropped as soon as it is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.data import image_stats
from pfedmma_deploy.data import scan as scan_module
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.images import verify_image
from pfedmma_deploy.data.scan import Scan, scan, scan_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_module, "MIN_IMAGES", 1)
    return tmp_path / "cache" / "index"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "data" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    settle(tmp_path / "data")
    return tmp_path / "data"


def settle(root: Path) -> None:
    """Let the last change of every folder be a minute ago."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (time.time() - 60,) * 2)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every folder that is really listed."""
    listed: list[Path] = []

    def list_folder(root: Path) -> Scan:
        listed.append(root)
        return scan_folder(root)

    monkeypatch.setattr(scan_module, "scan_folder", list_folder)
    return listed


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are really read."""
    names: list[str] = []

    def verify(source: Path) -> None:
        names.append(source.name)
        verify_image(source)

    monkeypatch.setattr(image_stats, "verify_image", verify)
    return names


def test_a_folder_is_listed_once(root: Path, cache: Path, scans: list[Path]) -> None:
    first, second = scan(root), scan(root)
    assert scans == [root]
    assert second.images == first.images == sorted(first.images) and len(first.images) == 6
    assert (second.folders, second.other_files) == (["c0", "c1"], first.other_files)
    assert (cache.stat().st_mode & 0o077) == 0


@pytest.mark.parametrize("change", ["add", "remove", "rename", "folder"])
def test_a_changed_folder_is_listed_again(
    change: str, root: Path, cache: Path, scans: list[Path]
) -> None:
    scan(root)
    old = root / "c0" / "0.png"
    if change == "add":
        (root / "c1" / "9.png").touch()
    elif change == "remove":
        old.unlink()
    elif change == "rename":
        old.rename(root / "c0" / "8.png")
    else:
        (root / "c2").mkdir()
    found = scan(root)
    assert scans == [root, root]
    assert found.images == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def test_a_folder_that_has_just_changed_is_not_remembered(
    root: Path, cache: Path, scans: list[Path]
) -> None:
    (root / "c0" / "9.png").touch()
    scan(root)
    scan(root)
    assert scans == [root, root]


def test_a_folder_with_something_unusable_is_not_remembered(
    root: Path, cache: Path, scans: list[Path]
) -> None:
    (root / "c0" / "link.png").symlink_to(root / "later.png")
    settle(root)
    assert scan(root).skipped[0].reason == "a link to nothing"
    scan(root)
    assert scans == [root, root]


def outside(record: dict[str, Any], folder: str) -> str:
    """A cache file that names an image in a folder that is not below the root."""
    stamp = Path(record["root"], folder).stat().st_mtime_ns
    stamps = record["stamps"] | {folder: stamp}
    return json.dumps(record | {"stamps": stamps, "images": [f"{folder}/secret.png"]})


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: json.dumps(record | {"format": 1}),
        lambda record: json.dumps(record | {"root": "/etc"}),
        lambda record: json.dumps(record | {"stamps": {}}),
        lambda record: json.dumps(record | {"images": ["c0/../../secret.png"]}),
        lambda record: json.dumps(record | {"images": ["../secret.png"]}),
        lambda record: json.dumps(record | {"images": [7]}),
        lambda record: outside(record, "/"),
        lambda record: outside(record, "c0/../.."),
        lambda record: json.dumps(record | {"other_files": 7}),
    ],
)
def test_a_cache_file_is_not_believed_blindly(
    damage: Callable[[dict[str, Any]], str], root: Path, cache: Path, scans: list[Path]
) -> None:
    expected = scan(root).images
    (file,) = cache.glob("*.list.json")
    file.write_text(damage(json.loads(file.read_text())))
    assert scan(root).images == expected
    assert scans == [root, root]


def test_good_images_are_read_once(root: Path, cache: Path, opened: list[str]) -> None:
    (root / "c0" / "2.png").write_bytes(b"broken")
    for expected in (["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"], ["2.png"]):
        opened.clear()
        data = load_dataset(root)
        assert sorted(opened) == expected
        assert len(data.examples) == 5
        assert [skip.path for skip in data.skipped] == ["c0/2.png"]


def test_a_changed_image_is_read_again(root: Path, cache: Path, opened: list[str]) -> None:
    load_dataset(root)
    file = root / "c1" / "3.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    # Of the same size and with the old time, as a copying program would leave it.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    data = load_dataset(root)
    assert opened == ["3.png"]
    assert [skip.path for skip in data.skipped] == ["c1/3.png"]


def test_a_damaged_list_of_good_images_costs_time_only(
    root: Path, cache: Path, opened: list[str]
) -> None:
    load_dataset(root)
    (file,) = cache.glob("*.images.npy")
    for content in (b"", b"no array", _saved(np.zeros(3)), _saved(np.zeros((2, 2), np.uint64))):
        file.write_bytes(content)
        opened.clear()
        assert len(load_dataset(root).examples) == 6
        assert len(opened) == 6


def _saved(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_the_cache_can_be_switched_off(
    root: Path, cache: Path, scans: list[Path], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset(root, cache=False)
    monkeypatch.setenv("PFEDMMA_CACHE", "off")
    load_dataset(root)
    assert scans == [root, root] and len(opened) == 12
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(scan_module, "MIN_IMAGES", 1)
    assert len(load_dataset(root).examples) == 6


def test_small_folders_leave_no_trace(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    load_dataset(root)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_hundred_thousand_images_are_listed_in_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of `benchmarks/index.py`, with room for a busy machine."""
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    for number in range(100):
        folder = tmp_path / "data" / f"class{number:03}"
        folder.mkdir(parents=True)
        for image in range(1000):
            (folder / f"{image:04}.jpg").touch()
    settle(tmp_path / "data")
    for _ in range(2):
        start = time.perf_counter()
        assert len(load_dataset(tmp_path / "data", verify=False).examples) == 100_000
        assert time.perf_counter() - start < 2
