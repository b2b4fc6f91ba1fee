"""How long and with how much memory a million image paths are listed: `python benchmarks/index.py`.

Makes a folder of a thousand classes with a thousand files each (hard links to one image, so almost
no disk space, but a million directory entries), loads it twice in fresh processes (nothing
remembered, then the list remembered) and removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

LINKS = 50_000
"""Hard links to one file; file systems allow 65,000 (ext4) or fewer."""


def make_tree(root: Path, classes: int, images: int) -> None:
    """`classes` folders of `images` JPEG files each."""
    made = 0
    source = root / "source.jpg"
    for number in range(classes):
        folder = root / f"class_name_{number:04}"
        folder.mkdir(parents=True)
        for image in range(images):
            file = folder / f"n{number:08}_{image:08}.jpg"
            if made % LINKS == 0:
                Image.new("RGB", (8, 8)).save(file)
                source = file
            else:
                os.link(source, file)
            made += 1


def load(root: Path, *, verify: bool) -> None:
    """Load `root` and print what it took, as JSON."""
    from pfedmma_deploy.data.datasets import load_dataset

    start = time.perf_counter()
    dataset = load_dataset(root, verify=verify)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"images": len(dataset.examples), "classes": len(dataset.class_names)}
    print(json.dumps({**found, "seconds": round(seconds, 2), "peak_memory": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000, help="per class")
    parser.add_argument("--folder", type=Path, help="load this folder instead of making one")
    parser.add_argument("--verify", action="store_true", help="read every image, as training does")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load, verify=options.verify)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder
        if root is None:
            root = Path(scratch, "data")
            make_tree(root, options.classes, options.images)
            time.sleep(3)  # a listing is remembered once the folder is two seconds old
        environment = {**os.environ, "PFEDMMA_CACHE": str(Path(scratch, "cache"))}
        command = [sys.executable, __file__, "--load", str(root)]
        command += ["--verify"] if options.verify else []
        for state in ("nothing remembered", "remembered"):
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            print(f"{state}: {done.stdout.strip()}")
        if options.folder is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
