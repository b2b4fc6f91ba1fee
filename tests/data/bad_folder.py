"""A folder of clients with every defect that `pfedmma data check` knows how to find in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES_TXT = """\
ox,ox
ant,ant
cat,dog
dog,cat
n01440764,n01440764
class_3,class_3
0,0
Bird,Bird
bird,bird
empty,empty
"""


def noise(path: Path, number: int, size: int = 24) -> Path:
    """An image of coarse noise that differs from all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def make_bad_folder(root: Path) -> Path:
    """Two clients with training and test images, one with too few, one with none."""
    number = 0
    for client, sizes in {"a": (50, 5, 4), "b": (4, 4, 2)}.items():
        for split, count in zip(("train", "test"), (sizes[1], sizes[2]), strict=True):
            for name in ("ant", "cat", "dog", "n01440764", "class_3", "0", "Bird", "bird"):
                for index in range(sizes[0] if (split, name) == ("train", "ant") else count):
                    number += 1
                    noise(root / client / split / name / f"{index}.png", number)
    noise(root / "c" / "train" / "ox" / "0.png", 9000)
    noise(root / "a" / "train" / "ox" / "0.png", 9001)
    (root / "d").mkdir()
    (root / "a" / "train" / "empty").mkdir()
    (root / "classes.txt").write_text(CLASSES_TXT)

    train, test = root / "a" / "train", root / "a" / "test"
    shutil.copy(train / "ant" / "0.png", test / "ant" / "leaked.png")
    shutil.copy(train / "ant" / "1.png", train / "ant" / "copy.png")
    shutil.copy(train / "ant" / "2.png", train / "bird" / "ant.png")
    shutil.copy(train / "ant" / "3.png", root / "b" / "train" / "ant" / "of_a.png")
    Image.new("RGB", (24, 24), (200, 30, 30)).save(train / "ant" / "blank.png")
    noise(train / "ant" / "tiny.png", 9002, size=8)
    whole = (train / "ant" / "4.png").read_bytes()
    (train / "ant" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (train / "ant" / "note.png").write_text("not an image")
    (train / "ant" / "moving.gif").write_bytes(b"GIF89a")
    return root


EXPECTED = {
    "empty-class",
    "empty-client",
    "no-training-images",
    "same-class-name",
    "shifted-labels",
    "id-names",
    "leaked-images",
    "image-in-two-classes",
    "skipped-files",
    "other-files",
    "class-order",
    "class-without-test",
    "client-without-test",
    "client-without-val",
    "one-class-client",
    "few-images",
    "held-by-several",
    "duplicate-images",
    "blank-images",
    "tiny-images",
    "imbalanced-classes",
    "imbalanced-clients",
}
"""Kinds of the planted defects."""
