"""Single files, folders and zips, honest and hostile ones: images or sentences."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from pfedmma_deploy.demo import uploads
from pfedmma_deploy.demo.uploads import (
    Upload,
    open_images,
    read_image,
    remarks,
    sample_items,
    thumbnail,
)
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
    monkeypatch.setattr(uploads, "MOST_BYTES", 10_000)
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
    monkeypatch.setattr(uploads, "MOST_MEMBERS", 3)
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


RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (40, 30), RED)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_plain_image_needs_no_remark() -> None:
    data = encoded("PNG")
    assert read_image(data).size == (40, 30)
    assert remarks(data) == []


def test_files_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded("WEBP"))
    assert read_image(path).tobytes() == read_image(path.read_bytes()).tobytes()
    with pytest.raises(ImageError, match="This file cannot be opened: No such file"):
        read_image(tmp_path / "gone.png")


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    data = encoded("WEBP", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(data).getpixel((5, 5)) == RED
    assert remarks(data) == ["Of its 2 frames, the first was used."]


def test_rotated_photos_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("JPEG", exif=exif)
    assert read_image(data).size == (30, 40)
    assert remarks(data) == ["It was turned upright, as its camera noted."]


def test_transparency_is_ignored_and_said() -> None:
    data = encoded("PNG", Image.new("RGBA", (40, 40), (*RED, 0)))
    assert read_image(data).getpixel((0, 0)) == RED
    assert remarks(data) == ["Its transparency was ignored."]


def test_tiny_images_are_remarked_on() -> None:
    assert remarks(encoded("PNG", Image.new("RGB", (9, 90)))) == [
        "It is tiny (9 x 90 pixels): expect little."
    ]


def huge_header() -> bytes:
    """A valid PNG header of 60,000 x 60,000 pixels with nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"just some text", "not a JPEG, PNG, WebP or BMP image, or its header is damaged"),
        (encoded("GIF"), "not a JPEG, PNG, WebP or BMP image but a GIF image"),
        (b"PK\3\4 and so on", "but a ZIP archive"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "or its header is damaged"),
        (encoded("JPEG")[:200], "damaged|header"),
        (encoded("PNG")[:60], "damaged: "),
        (huge_header(), "more than 89,478,485 pixels; scale it down"),
    ],
)
def test_everything_else_is_a_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(
        ImageError, match=rf"^This file is not an image that I can read: .*{reason}"
    ):
        read_image(data)


def test_files_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)
    with pytest.raises(
        ImageError, match=r"^This file is too large: 0 MB, 0 MB are allowed\. Scale"
    ):
        read_image(encoded("PNG"))


def test_thumbnails_are_small_and_small_images_unchanged() -> None:
    large = thumbnail(Image.new("RGB", (2000, 1000), RED))
    assert large.startswith(b"\xff\xd8") and len(large) < 2000
    assert Image.open(io.BytesIO(large)).size == (112, 56)
    small = Image.effect_noise((32, 32), 50).convert("RGB")
    assert Image.open(io.BytesIO(thumbnail(small))).tobytes() == small.tobytes()
