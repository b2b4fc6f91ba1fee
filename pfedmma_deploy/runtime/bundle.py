"""An export bundle on disk: found, read and verified.

The manifest is checked when the bundle is opened, every other file when it is first used, so that
plain prediction never reads the text tower (often half of the bundle).
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import BundleError, UsageError, nearest
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.types import STRENGTHS

VISION_MODEL = "vision_model.onnx"
TEXT_MODEL = "text_model.onnx"
CLASSIFIER_MODEL = "classifier.onnx"
TEXT_EMBEDS = "text_embeds.npy"
GENERAL_EMBEDS = "general_embeds.npy"
MEAN_EMBEDS = "mean_embeds.npy"
TOKENIZER = "tokenizer.json"
LABELS = "labels.txt"
MODEL_CARD = "README.md"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A folder `exports/<name>/` whose manifest has been read."""

    path: Path
    manifest: Manifest
    _verified: set[str] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """The bundle in folder `path`.

        Raises:
            BundleError: the folder or its manifest is missing, damaged or of another version.
        """
        folder = Path(path)
        file = folder / MANIFEST
        if not file.is_file():
            what = "is no folder" if not folder.is_dir() else f"has no {MANIFEST}"
            raise BundleError(f"{folder} {what}: make an exported model with `pfedmma export`.")
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{file} cannot be read ({error}): export it again.") from error
        if not isinstance(raw, dict):
            raise BundleError(f"{file} is no JSON object: export it again.")
        try:
            return cls(folder, Manifest.from_dict(raw))
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from None

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files, once its size and hash have been found right.

        Raises:
            BundleError: the manifest does not list it, or it is missing or was changed.
        """
        info = self.manifest.files.get(name)
        path = self.path / name
        if info is None:
            raise BundleError(f"{self.path} was exported without {name}: export it again with it.")
        # Many threads share a classifier: one of them hashes, the others wait for it.
        with self._lock:
            if name in self._verified:
                return path
            if not path.is_file():
                raise BundleError(f"{path} is missing: copy the bundle again, or export it again.")
            # The size first: a copy that was cut off is noticed without reading it.
            size = path.stat().st_size
            if size != info.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, its manifest says {info.bytes}: "
                    "copy the bundle again, or export it again."
                )
            found = file_sha256(path)
            if found != info.sha256:
                raise BundleError(
                    f"{path} was changed: its SHA-256 is {found}, its manifest says {info.sha256}; "
                    "copy the bundle again, or export it again."
                )
            self._verified.add(name)
        return path

    def verify(self) -> None:
        """Check every file that the manifest lists. Raises `BundleError`."""
        for name in self.manifest.files:
            self.file(name)

    def text_embeds(self) -> NDArray[np.float32]:
        """Text features of the known class names, [clients, C, D], L2-normalised.

        Each client's at its default strength.
        """
        return self._embeds(TEXT_EMBEDS, len(self.manifest.clients), len(self.manifest.class_names))

    def general_embeds(self) -> NDArray[np.float32]:
        """Zero-shot text features of the general words, [W, D], L2-normalised."""
        return self._embeds(GENERAL_EMBEDS, len(self.manifest.general_words))

    def mean_embeds(self) -> NDArray[np.float32]:
        """Directions of the clients' mean images, [clients, D]; zeros where one is not known."""
        return self._embeds(MEAN_EMBEDS, len(self.manifest.clients))

    def _embeds(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A file of features, [*shape, D]. Raises `BundleError`."""
        path, expected = self.file(name), (*shape, self.manifest.embed_dim)
        try:
            # A pickle inside an array could run anything.
            embeds: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}): export it again.") from error
        if embeds.shape != expected or embeds.dtype != np.float32:
            raise BundleError(
                f"{path} holds {embeds.dtype} {embeds.shape}, expected float32 {expected}: "
                "export it again."
            )
        return embeds

    def client_index(self, client: str | int) -> int:
        """Row of a client in the banks: by id (text) or by index (a number; 0 is zero-shot).

        Raises:
            UsageError: there is no such client; the message names those there are.
        """
        clients = self.manifest.clients
        if isinstance(client, str):
            for info in clients:
                if info.id == client:
                    return info.index
            ids = [info.id for info in clients]
            listed = ", ".join(ids[:12])
            if len(ids) > 12:
                listed += f" and {len(ids) - 12} more"
            raise UsageError(
                f"{self.path} has no client {client!r}{nearest(client, ids)} (clients: {listed})."
            )
        # True would be client 1 to Python.
        if isinstance(client, bool) or not 0 <= int(client) < len(clients):
            raise UsageError(
                f"{self.path} has no client number {client}: it has 0 (zero-shot) "
                f"to {len(clients) - 1}. A client's name is given as text."
            )
        return int(client)

    def strength_of(self, index: int, strength: float | None) -> float:
        """The strength that client `index` answers with: the one given, or else its default.

        Raises:
            UsageError: it is not from 0 to 1.5.
            BundleError: it is not 1, and the bundle's models take none.
        """
        if strength is None:
            return self.manifest.clients[index].default_strength
        strength = checked_strength(strength)
        if strength != 1 and self.manifest.strength is None:
            raise BundleError(
                f"{self.path} was exported without an input for the strength and answers at "
                f"strength 1 alone, found {strength:g}: export it again for others."
            )
        return strength


def checked_strength(strength: float) -> float:
    """The strength, from 0 to 1.5. Raises `UsageError`."""
    # Written so that NaN does not pass.
    if not STRENGTHS[0] <= strength <= STRENGTHS[-1]:
        raise UsageError(
            f"A strength is a number from {STRENGTHS[0]:g} (zero-shot) over 1 (as trained) to "
            f"{STRENGTHS[-1]:g}, found {strength:g}."
        )
    return float(strength)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
