"""Folders and zips, honest and hostile ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from pfedmma_deploy.demo import archive, inputs
from pfedmma_deploy.demo.archive import Upload, open_images, sample_items
from pfedmma_deploy.errors import DataError, ImageError
from tests.demo.fakes import fake_model, image, with_sample


def png(size: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def make_zip(
    path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_classes_are_the_names_of_folders(tmp_path: Path) -> None:
    members = {
        "photos/Cat/a.png": png(),
        "photos/fire truck/b.PNG": png(),
        "photos/zebra/c.png": png(),
        "owl/cat/d.png": png(),
        "e.png": png(),
        "notes.txt": b"x",
        "__MACOSX/cat/._a.png": b"x",
        "cat/.hidden.png": b"x",
    }
    path = make_zip(tmp_path / "photos.zip", members)
    with open_images(fake_model(), [Upload.plain(path)]) as (items, said):
        assert [(item.name, item.label) for item in items] == [
            ("e.png", None),
            ("owl/cat/d.png", 0),
            ("photos/Cat/a.png", 0),
            ("photos/fire truck/b.PNG", 2),
            ("photos/zebra/c.png", None),
        ]
        assert {item.read().size for item in items} == {(30, 30)}
    assert said == ["3 other files in the zip were left out."]


def test_single_files_have_no_known_class(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png())
    with open_images(fake_model(), [Upload.plain(tmp_path / "cat.png")]) as (items, said):
        assert items[0].label is None and items[0].read().size == (30, 30)
    assert said[0].startswith("True classes are not known, so nothing can be right or wrong: for")


def test_files_of_a_folder_keep_their_class(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(png())
    files = [Upload("photos/owl/a.png", tmp_path / "x"), Upload("photos/b.png", tmp_path / "x")]
    with open_images(fake_model(), files) as (items, said):
        assert [(item.name, item.label) for item in items] == [
            ("photos/owl/a.png", 3),
            ("photos/b.png", None),
        ]
    assert said == []


def test_paths_in_a_zip_lead_nowhere(tmp_path: Path) -> None:
    names = ["../../etc/cat/a.png", "/root/cat/b.png", "C:\\cat\\c.png"]
    path = make_zip(tmp_path / "evil.zip", dict.fromkeys(names, png()))
    before = sorted(tmp_path.rglob("*"))
    with open_images(fake_model(), [Upload.plain(path)]) as (items, _):
        assert len([item.read() for item in items]) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bomb_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_BYTES", 10_000)
    monkeypatch.setattr(archive, "MOST_BYTES", 10_000)
    path = make_zip(tmp_path / "bomb.zip", {"a.png": bytes(50_000_000), "b.png": png()})
    assert path.stat().st_size < 100_000
    with open_images(fake_model(), [Upload.plain(path)]) as (items, _):
        with pytest.raises(ImageError, match="This file is too large: 0 MB"):
            items[0].read()
        assert items[1].read().size == (30, 30)


def test_ten_thousand_images_are_bounded_and_said(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "many.zip", {f"cat/{i:05}.png": b"x" for i in range(10_000)})
    with open_images(fake_model(), [Upload.plain(path)]) as (items, said):
        assert len(items) == 1000 and items[-1].name == "cat/00999.png"
    assert said == ["Only the first 1,000 of 10,000 images were taken."]


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    path = make_zip(tmp_path / "many.zip", {f"{i}.txt": b"x" for i in range(4)})
    with (
        pytest.raises(DataError, match=r"many\.zip holds 4 files; 3 are allowed\. Split it\."),
        open_images(fake_model(), [Upload.plain(path)]),
    ):
        pass


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\3\4 cut off"])
def test_no_zip(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with (
        pytest.raises(DataError, match=r"^x\.zip is not a zip that I can read: File is not a zip"),
        open_images(fake_model(), [Upload.plain(tmp_path / "x.zip")]),
    ):
        pass


def test_no_images(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.txt": b"x", "inner.zip": b"x"})
    with (
        pytest.raises(DataError, match=r"There are no images in these files: \.jpg, \.png, "),
        open_images(fake_model(), [Upload.plain(path)]),
    ):
        pass


def test_damaged_encrypted_and_odd_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png(200), "b.png": png()})
    with zipfile.ZipFile(path) as file:
        start = file.getinfo("a.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 60] ^= 0xFF  # within the compressed bytes of a.png
    path.write_bytes(data)
    with open_images(fake_model(), [Upload.plain(path)]) as (items, _):
        with pytest.raises(ImageError, match="The zip is damaged here: "):
            items[0].read()
        assert items[1].read().size == (30, 30)

    odd = make_zip(tmp_path / "odd.zip", {"a.png": png()}, zipfile.ZIP_LZMA)
    with (
        open_images(fake_model(), [Upload.plain(odd)]) as (items, _),
        pytest.raises(ImageError, match="compressed in an unusual way: make a plain zip"),
    ):
        items[0].read()

    data = bytearray(make_zip(tmp_path / "locked.zip", {"a.png": png()}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with (
        open_images(fake_model(), [Upload.plain(tmp_path / "locked.zip")]) as (items, _),
        pytest.raises(ImageError, match="It is encrypted: unlock the zip first"),
    ):
        items[0].read()


def test_the_sample(tmp_path: Path) -> None:
    model = with_sample(fake_model(), [(3, image(1, 2)), (0, image(0, 0))])
    items = sample_items(model, 5)
    assert [(item.name, item.label) for item in items] == [("1.png", 0), ("0.png", 3)]
    assert items[1].read().getpixel((0, 0)) == (10, 20, 0)
    with pytest.raises(DataError, match="images that are not part of the package: choose images"):
        sample_items(fake_model(), 5)
