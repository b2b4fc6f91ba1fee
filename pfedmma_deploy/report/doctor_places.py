"""Where files are: what ships with the package, caches, runs and bundles; how large; how free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pfedmma_deploy.caches import VARIABLE, cache_folder
from pfedmma_deploy.report.doctor_check import Check

__all__ = ["check_assets", "check_images", "check_places"]

LEAST_FREE = 2e9
"""Bytes; a run and its bundle of the largest usual backbones need about as much."""
CACHES = {
    "prefixes": "what frozen blocks make of images",
    "index": "folders of images that were read",
    "facts": "what `data check` measured of images",
    "tensorrt": "TensorRT's engines",
}
"""Kinds of `cache_folder`, and what they hold."""
ASSETS = (
    "pfedmma-tiny/model.safetensors",
    "pfedmma-tiny/pfedmma-tiny.json",
    "samples/cifar10-sample.zip",
    "samples/domains-sample.zip",
)


def check_assets() -> Iterator[Check]:
    """The embedded backbone and samples."""
    import pfedmma_deploy

    folder = Path(pfedmma_deploy.__file__).parent / "assets"
    missing = [name for name in ASSETS if not (folder / name).is_file()]
    if missing:
        found = f"{', '.join(missing)} missing in {folder}"
        yield Check("embedded files", False, found, "install pfedmma-deploy again", stops=True)
    else:
        sizes = sum((folder / name).stat().st_size for name in ASSETS)
        found = f"pfedmma-tiny, cifar10-sample, domains-sample; {_size(sizes)} in {folder}"
        yield Check("embedded files", True, found)


def check_images() -> Iterator[Check]:
    """Formats that Pillow can read here; the wheels have all, a build of one's own may not."""
    from PIL import Image, features

    from pfedmma_deploy.data.images import IMAGE_FORMATS, IMAGE_SUFFIXES

    Image.init()
    codecs = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}
    missing = [
        name
        for name in IMAGE_FORMATS
        if name not in Image.OPEN or (name in codecs and not features.check(codecs[name]))
    ]
    turbo = ", libjpeg-turbo" if features.check_feature("libjpeg_turbo") else ""
    if missing:
        found = f"cannot read {', '.join(missing)}"
        yield Check("images", False, found, "pip install --force-reinstall pillow", stops=True)
    else:
        yield Check("images", True, f"{' '.join(IMAGE_SUFFIXES)}{turbo}")


def check_places(runs: Path, exports: Path) -> Iterator[Check]:
    """Caches, runs and bundles with their sizes, and the space that is left."""
    yield _place("cache of open_clip", _hub_cache(), "weights that --pretrained names", "*/")
    yield _place("cache of OpenAI's weights", Path.home() / ".cache" / "clip", "", "*")
    for kind, what in CACHES.items():
        folder = cache_folder(kind)
        if folder is None:
            yield Check(f"cache of {kind}", True, f"switched off by ${VARIABLE}", absent=True)
        else:
            yield _place(f"cache of {kind}", folder, what, "*")
    yield _place("runs", runs, "`pfedmma train` makes them", "*/manifest.json")
    yield _place("exports", exports, "`pfedmma export` makes them", "*/manifest.json")
    yield _free(runs)


def _hub_cache() -> Path:
    """Where open_clip's downloads go, by the rules of huggingface_hub."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def _place(name: str, folder: Path, what: str, pattern: str) -> Check:
    if not folder.is_dir():
        found = f"{folder}: not there yet{f' ({what})' if what else ''}"
        return Check(name, True, found, absent=True)
    count = sum(1 for _ in folder.glob(pattern))
    entries = "1 entry" if count == 1 else f"{count} entries"
    return Check(name, True, f"{folder.resolve()}: {entries}, {_size(_bytes(folder))}")


def _bytes(folder: Path) -> int:
    """Size of all files below; links count as nothing, and so does what cannot be read."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                status = (Path(parent) / name).lstat()
            except OSError:
                continue
            total += status.st_size
    return total


def _free(runs: Path) -> Check:
    """Space on the disk where runs are written, and whether the folder can be written to."""
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        advice = "work in a folder of your own, or name one with --out"
        return Check("disk", False, f"{folder} cannot be written to", advice)
    advice = "" if free >= LEAST_FREE else "make room, or write to another disk with --out"
    return Check("disk", free >= LEAST_FREE, f"{_size(free)} free in {folder}", advice)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
