"""Files, folders and patterns as the images that they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.runtime.sources import find_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few files below the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", "sub/deep/c.webp", "sub/x.gif", "z/d.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "e.jpeg").touch()
    return tmp_path


def found(*places: str) -> list[str]:
    return [str(path) for path in find_images(places)]


def test_a_folder_is_the_images_below_it_in_the_order_of_their_names(photos: Path) -> None:
    everything = ["a.png", "b.JPG", "folder.jpg/e.jpeg", "sub/deep/c.webp", "z/d.bmp"]
    assert found(".") == everything
    assert found(".") == [str(path) for path in sorted(map(Path, everything))]


def test_links_to_folders_are_not_followed(photos: Path) -> None:
    (photos / "sub" / "loop").symlink_to(photos)
    (photos / "sub" / "link.png").symlink_to(photos / "a.png")
    assert found("sub") == ["sub/deep/c.webp", "sub/link.png"]


def test_files_are_taken_as_they_are(photos: Path) -> None:
    assert found("notes.txt", "none.jpg", "a.png", "a.png") == [
        "notes.txt",
        "none.jpg",
        "a.png",
        "a.png",
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.png", "b.JPG"]),
        ("*/*.b?p", ["z/d.bmp"]),
        ("**/*.[jJw]*", ["b.JPG", "folder.jpg/e.jpeg", "sub/deep/c.webp"]),
        ("sub/**", ["sub/deep/c.webp"]),
    ],
)
def test_patterns(photos: Path, pattern: str, names: list[str]) -> None:
    assert found(pattern) == names
    assert found(f"{photos}/{pattern}") == [f"{photos}/{name}" for name in names]


def test_a_name_that_looks_like_a_pattern(photos: Path) -> None:
    (photos / "[1].png").touch()
    (photos / "1.png").touch()
    assert found("[1].png") == ["[1].png"]
    assert found("[12].png") == ["1.png"]


def test_home_in_a_pattern(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos))
    assert found("~/*.png") == [str(photos / "a.png")]


def test_nothing_found(photos: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder empty holds no images \(\.bmp, .* or \.webp"):
        found("a.png", "empty")
    with pytest.raises(DataError, match=r"the pattern \*\.gif matches no images \(\.bmp"):
        found("*.gif")


def test_a_folder_is_listed_when_it_is_come_to(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    scan = os.scandir

    def scandir(path: Path) -> Any:
        listed.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images = find_images(["."])
    assert next(images) == Path("a.png")
    assert listed == ["."]
