"""Large, animated, rotated, transparent and hostile files: an image or a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pfedmma_deploy.demo import inputs
from pfedmma_deploy.demo.inputs import read_image, remarks, thumbnail
from pfedmma_deploy.errors import ImageError

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
    monkeypatch.setattr(inputs, "MOST_BYTES", 10)
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
