"""Any file decodes to RGB pixels or raises ImageError; nothing else comes out."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pfedmma_deploy.data.images import decode_image, is_image_name, verify_image
from pfedmma_deploy.errors import ImageError


def photo(width: int = 24, height: int = 16) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 13, columns * 9, rows * columns], axis=-1) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8)


def palette_with_alpha() -> bytes:
    return encoded(photo().quantize(16), "PNG", transparency=bytes(range(16)))


SAMPLES: dict[str, bytes] = {
    "rgb.png": encoded(photo(), "PNG"),
    "rgb.jpg": encoded(photo(), "JPEG"),
    "rgb.bmp": encoded(photo(), "BMP"),
    "rgb.webp": encoded(photo(), "WEBP", lossless=True),
    "grey.png": encoded(photo().convert("L"), "PNG"),
    "grey.jpg": encoded(photo().convert("L"), "JPEG"),
    "bilevel.png": encoded(photo().convert("1"), "PNG"),
    "bilevel.bmp": encoded(photo().convert("1"), "BMP"),
    "grey-alpha.png": encoded(photo().convert("LA"), "PNG"),
    "rgba.png": encoded(photo().convert("RGBA"), "PNG"),
    "rgba.webp": encoded(photo().convert("RGBA"), "WEBP", lossless=True),
    "rgba.bmp": encoded(photo().convert("RGBA"), "BMP"),
    "palette.png": encoded(photo().quantize(16), "PNG"),
    "palette.bmp": encoded(photo().quantize(16), "BMP"),
    "palette-index-transparent.png": encoded(photo().quantize(16), "PNG", transparency=3),
    "palette-alpha.png": palette_with_alpha(),
    "rgb-transparent-colour.png": encoded(photo(), "PNG", transparency=(0, 0, 0)),
    "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
    "progressive.jpg": encoded(photo(), "JPEG", progressive=True),
    "two-pictures.jpg": encoded(photo(), "MPO", save_all=True, append_images=[photo(8, 8)]),
    "animated.png": encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)]),
    "animated.webp": encoded(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_pixels_equal_exif_transpose_then_convert_rgb(name: str) -> None:
    image = decode_image(SAMPLES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ImageOps.exif_transpose(Image.open(BytesIO(SAMPLES[name]))).convert("RGB")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(pixels(image), pixels(expected))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), fmt, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(decode_image(data)), pixels(expected))
    if orientation == 6:
        assert decode_image(data).size == (16, 24)


def test_broken_exif_does_not_cost_the_photo() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode_image(data).size == (24, 16)


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    image = decode_image(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels(image)[..., 0], values >> 8)
    assert pixels(image)[0, 1].tolist() == [4, 4, 4]


def test_reads_paths_and_open_files(tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    path.write_bytes(SAMPLES["rgb.png"])
    with path.open("rb") as file:
        from_file = decode_image(file)
        assert not file.closed
    for image in (from_file, decode_image(path), decode_image(str(path))):
        np.testing.assert_array_equal(pixels(image), pixels(photo()))


def refusals(tmp_path: Path) -> list[tuple[Any, str]]:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    return [
        (b"", "the file is empty"),
        (b"hello, I am text", "not a JPEG, PNG, WebP or BMP image, or its header is damaged"),
        (encoded(photo(), "GIF"), "not a JPEG, PNG, WebP or BMP image but a GIF image"),
        (encoded(photo(), "TIFF"), "not a JPEG, PNG, WebP or BMP image but a TIFF image"),
        (b"\0\0\0\x18ftypheic", "not a JPEG, PNG, WebP or BMP image but a HEIC image"),
        (encoded(photo(200, 200), "JPEG")[:-500], "damaged: image file is truncated"),
        (SAMPLES["rgb.png"][:-40], "damaged: "),
        (tmp_path / "folder.jpg", "a folder, not a file"),
        (tmp_path / "pipe.jpg", "not a regular file"),
        (tmp_path / "absent.jpg", "No such file or directory"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_refusals_name_the_reason_without_the_path(tmp_path: Path, case: int) -> None:
    source, reason = refusals(tmp_path)[case]
    for read in (decode_image, verify_image):
        with pytest.raises(ImageError) as caught:
            read(source)
        assert str(caught.value).startswith(reason)
        assert str(tmp_path) not in str(caught.value)


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused_unopened(side: int) -> None:
    with pytest.raises(ImageError, match=r"more than 89,478,485 pixels; scale it down"):
        decode_image(png(side, side))


def test_a_text_chunk_bomb_is_refused() -> None:
    bomb = b"k\0\0" + zlib.compress(b"\0" * (80 << 20))
    with pytest.raises(ImageError):
        decode_image(png(8, 8, (b"zTXt", bomb)))


MUTABLE = sorted(SAMPLES.items())


@settings(deadline=None)
@given(
    st.sampled_from(MUTABLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_mutated_files_decode_or_raise_image_error(
    sample: tuple[str, bytes], edits: list[tuple[float, int]], cut: float, truncate: bool
) -> None:
    data = bytearray(sample[1])
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    if truncate:
        del data[int(cut * len(data)) :]
    for read in (decode_image, verify_image):
        try:
            read(bytes(data))
        except ImageError as error:
            assert str(error)


@settings(deadline=None)
@given(
    st.binary(max_size=64), st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"])
)
def test_noise_behind_a_valid_signature_raises_image_error(noise: bytes, magic: bytes) -> None:
    try:
        decode_image(magic + noise)
    except ImageError as error:
        assert str(error)


def test_image_names() -> None:
    assert all(map(is_image_name, ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.BMP"]))
    assert not any(map(is_image_name, ["a.gif", "jpg", "classes.txt", "x.jpg.part"]))
