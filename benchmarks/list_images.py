"""How long and with how much memory a million image paths are listed.

    python benchmarks/list_images.py              # or with --verify: each is read, as in training

Makes a folder of a thousand classes with a thousand files each (hard links to one image, so almost
no disk space, but a million directory entries), loads it twice in fresh processes (nothing
remembered, then the list remembered) and removes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

CLASSES, IMAGES = 1000, 1000
LINKS = 50_000
"""Hard links to one file; file systems allow 65,000 (ext4) or fewer."""
LOAD = """
import sys, time
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.system import peak_memory
start = time.perf_counter()
dataset = load_dataset(sys.argv[1], verify="--verify" in sys.argv)
seconds = time.perf_counter() - start
print(f"{len(dataset.examples):,} images in {seconds:.2f} s, {peak_memory() / 1e6:,.0f} MB")
"""


def make_tree(root: Path) -> None:
    """`CLASSES` folders of `IMAGES` JPEG files each."""
    source = root / "source.jpg"
    for made in range(CLASSES * IMAGES):
        label, image = divmod(made, IMAGES)
        folder = root / f"class_name_{label:04}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"n{label:08}_{image:08}.jpg"
        if made % LINKS == 0:
            Image.new("RGB", (8, 8)).save(file)
            source = file
        else:
            os.link(source, file)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "data")
        make_tree(root)
        time.sleep(3)  # a listing is remembered once the folder is two seconds old
        environment = {**os.environ, "PFEDMMA_CACHE": str(Path(scratch, "cache"))}
        for state in ("nothing remembered", "remembered"):
            print(f"{state}: ", end="", flush=True)
            command = [sys.executable, "-c", LOAD, str(root), *sys.argv[1:]]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
