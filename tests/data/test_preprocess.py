"""The evaluation transform equals open_clip's, bit for bit; the training transform is seeded."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.data.images import decode_image
from pfedmma_deploy.data.pixels import (
    Interpolation,
    ResizeMode,
    random_resized_crop,
    resize_crop,
)
from pfedmma_deploy.errors import ImageError

SHAPES = [(32, 32), (33, 32), (500, 40), (40, 501), (1, 1), (3, 200), (31, 77), (64, 47)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng([width, height])
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def by_open_clip(
    image: Image.Image, size: int, mode: ResizeMode, interpolation: Interpolation
) -> NDArray[np.uint8]:
    import open_clip

    transform = open_clip.image_transform(
        size,
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=mode,
        interpolation=interpolation,
    )
    tensor = transform(image)
    pixels: NDArray[np.uint8] = (tensor * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_open_clip(
    shape: tuple[int, int], mode: ResizeMode, interpolation: Interpolation
) -> None:
    image = noise(*shape)
    if mode == "longest" and max(shape) / min(shape) > 2 * 32:
        pytest.skip("open_clip cannot resize it to zero pixels either")
    ours = resize_crop(image, 32, mode, interpolation)
    assert ours.shape == (32, 32, 3)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, by_open_clip(image, 32, mode, interpolation))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = noise(45, 60).convert("P", palette=Image.Palette.ADAPTIVE, colors=17)
    return {
        "grey": saved(noise(45, 60, "L"), "PNG"),
        "palette": saved(palette, "PNG"),
        "alpha": saved(noise(45, 60, "RGBA"), "PNG"),
        "grey and alpha": saved(noise(45, 60, "LA"), "PNG"),
        "cmyk": saved(noise(45, 60).convert("CMYK"), "JPEG"),
        "rotated": saved(noise(45, 60), "JPEG", exif=exif),
        "webp": saved(noise(45, 60), "WEBP", lossless=True),
    }


@pytest.mark.parametrize("name", sorted(odd_files()))
def test_odd_files_equal_open_clip_on_the_rgb_image(name: str) -> None:
    from PIL import ImageOps

    data = odd_files()[name]
    ours = resize_crop(decode_image(data), 32)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(ours, by_open_clip(reference, 32, "shortest", "bicubic"))


def test_modes_are_converted_before_the_resize() -> None:
    image = noise(45, 60, "L")
    np.testing.assert_array_equal(resize_crop(image, 32), resize_crop(image.convert("RGB"), 32))


def test_a_strip_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ImageError, match="1 x 30000 pixels is too long and thin"):
        resize_crop(Image.new("RGB", (1, 30_000)), 224)
    with pytest.raises(ImageError, match="would be 0 x 32"):
        resize_crop(Image.new("RGB", (1, 100)), 32, "longest")


def test_random_crop_follows_its_generator() -> None:
    image = noise(60, 45)
    first = random_resized_crop(image, 16, np.random.default_rng(3))
    again = random_resized_crop(image, 16, np.random.default_rng(3))
    other = random_resized_crop(image, 16, np.random.default_rng(4))
    assert first.shape == (16, 16, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_whole_image_at_full_scale_is_the_image_or_its_mirror() -> None:
    image = noise(16, 16)
    pixels = np.asarray(image)
    seen = set()
    for seed in range(12):
        crop = random_resized_crop(
            image, 16, np.random.default_rng(seed), scale=(1.0, 1.0), ratio=(1.0, 1.0)
        )
        mirrored = np.array_equal(crop, pixels[:, ::-1])
        assert mirrored or np.array_equal(crop, pixels)
        seen.add(mirrored)
    assert seen == {True, False}


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (2, 300)])
def test_random_crop_of_thin_images_falls_back_to_the_centre(shape: tuple[int, int]) -> None:
    crop = random_resized_crop(noise(*shape), 8, np.random.default_rng(0))
    assert crop.shape == (8, 8, 3)
