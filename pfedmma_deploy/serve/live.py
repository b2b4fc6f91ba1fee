"""The bundle that is served, and its successor: loaded beside it, swapped in one step.

A request keeps the model that it began with. A bundle that is damaged, or in the middle of being
copied, is refused; the one before it stays, and the folder is looked at again when it changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.bundle import MANIFEST, TEXT_MODEL, file_sha256
from pfedmma_deploy.runtime.classifier import Classifier
from pfedmma_deploy.serve.keys import Keys

LOOK_SECONDS: Final = 2.0
"""Between two looks at the folder and at the file of keys."""
_SEVERAL: Final = 5
"""Attempts at a folder that changes while it is read."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Of each file: name, time of change, size, inode."""


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle in use."""

    classifier: Classifier
    version: str
    """First digits of its manifest's SHA-256."""
    has_texts: bool
    """Whether it has a text tower; a bundle may come without."""
    indices: dict[str, int]
    """Of the clients by id; an id is looked up for every request, among thousands."""

    @classmethod
    def load(cls, folder: Path, device: str = "auto", threads: int | None = None) -> Model:
        """The bundle in `folder`, whole and warm: it will not open another file of it.

        Raises:
            BundleError: it is damaged, or changed while it was read.
            DeviceError: the device cannot be used.
        """
        for _ in range(_SEVERAL):
            before = signature(folder)
            classifier = Classifier.load(folder, device, threads)
            classifier.bundle.verify()
            # All that an answer reads: the folder may be replaced at any time.
            if TEXT_MODEL in classifier.manifest.files:
                classifier.embed_texts(["a photo."])
            size = classifier.manifest.preprocessing.image_size
            (row,) = classifier.embed_pixels(np.zeros((1, size, size, 3), np.uint8), [(0, 1.0)])
            # A calibrated client, if there is one: its answers take more files.
            calibrated = (info for info in classifier.clients if info.calibration)
            info = next(calibrated, classifier.clients[0])
            view = info.index, info.default_strength
            classifier.answer("", view, row, classifier.class_names, 1)
            version = file_sha256(folder / MANIFEST)[:12]
            if signature(folder) == before:
                indices = {client.id: client.index for client in classifier.clients}
                return cls(classifier, version, TEXT_MODEL in classifier.manifest.files, indices)
        raise BundleError(f"{folder} changes all the time: copy it to its place in one step.")


class Live:
    """What is served now: a model and the keys, both renewed when their files change."""

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        threads: int | None = None,
        keys: Path | None = None,
        on_change: Callable[[str, str], None] = lambda what, result: None,
    ) -> None:
        """Load the bundle and the keys.

        Args:
            folder: the bundle's.
            device: as for `Classifier.load`.
            threads: likewise.
            keys: the file of keys; None lets everybody ask for everything.
            on_change: told what changed (`bundle` or `keys`), and `loaded` or why it was refused.

        Raises:
            BundleError, DeviceError, UsageError: what is wrong with either.
        """
        self.folder, self.name = folder, folder.resolve().name
        self._device, self._threads = device, threads
        self._keys_file, self._on_change = keys, on_change
        self._seen = signature(folder), _stamp(keys)
        self.model = Model.load(folder, device, threads)
        self.keys = Keys.load(keys) if keys else None

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Load what has changed since the last look; what is damaged is refused and reported."""
        bundle, keys = signature(self.folder), _stamp(self._keys_file)
        changed = [now != then for now, then in zip((bundle, keys), self._seen, strict=True)]
        self._seen = bundle, keys
        if changed[0]:
            self._renew("bundle", self._load_model)
        if changed[1] and self._keys_file is not None:
            self._renew("keys", self._load_keys)

    def _renew(self, what: str, load: Callable[[], None]) -> None:
        try:
            load()
        except Exception as error:  # whatever a damaged file raises, what is there stays
            self._on_change(what, str(error) or type(error).__name__)
        else:
            self._on_change(what, "loaded")

    def _load_model(self) -> None:
        self.model = Model.load(self.folder, self._device, self._threads)

    def _load_keys(self) -> None:
        assert self._keys_file is not None
        self.keys = Keys.load(self._keys_file)


def signature(folder: Path) -> Signature:
    """What changes when a file of the folder does; empty where the folder is not there."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stat = entry.stat()
                found.append((entry.name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except OSError:
        return ()
    return tuple(sorted(found))


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    if file is None:
        return None
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
