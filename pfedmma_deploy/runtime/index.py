"""Image features of a folder, kept beside its images: made once, found by words, compared.

`FOLDER/.pfedmma/index-<client>-<strength>.npz` holds one feature an image in half precision, with
its path below the folder, size and time of change. A later call computes only what is new or
changed; one that was stopped goes on where it last saved. numpy alone searches: a million images of
512 numbers are one product with a gigabyte.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.classifier import Classifier, Client
from pfedmma_deploy.runtime.image_tower import OnSkip
from pfedmma_deploy.runtime.sources import find_images

FOLDER = ".pfedmma"
FORMAT = "pfedmma-index 1"
SAVED_EVERY = 4096
"""Images after which an index that is being made is saved."""
BLOCK = 2048
"""Images that are compared with all others at a time."""
ALIKE = 0.98
"""Cosine from which two images count as the same picture."""

Features = NDArray[np.float16]
Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds: an image that keeps both is not read again."""


@dataclass(frozen=True)
class Index:
    """What one client's model makes of the images of a folder."""

    folder: Path
    paths: tuple[str, ...]
    """Below the folder, with forward slashes, in order."""
    features: Features
    """[N, D], L2-normalised before they were rounded to half precision."""
    stamps: NDArray[np.int64]
    """[N, 2]: see `Stamp`."""
    computed: int = 0
    """Images that the call that made it computed; the others were in the file already."""

    def search(self, query: NDArray[np.float32], top: int) -> list[tuple[str, float]]:
        """The `top` images that are closest to a feature [D]: path and cosine, best first."""
        cosines = np.concatenate([self._block(start) @ query for start in self._starts()])
        order = np.argsort(-cosines, kind="stable")[:top]
        return [(self.paths[row], float(cosines[row])) for row in order]

    def duplicates(self, alike: float = ALIKE) -> list[list[str]]:
        """Groups of images that show the same, by path; the first of a group is its largest file.

        Two images are in a group where their cosine is at least `alike`, or a chain of such pairs
        leads from one to the other. Every pair is looked at: 100,000 images are five thousand
        million of them.
        """
        leader = list(range(len(self.paths)))

        def find(row: int) -> int:
            while leader[row] != row:
                leader[row] = row = leader[leader[row]]
            return row

        for start in self._starts():
            block = self._block(start)
            for other in range(start, len(self.paths), BLOCK):
                close = np.argwhere(block @ self._block(other).T >= alike)
                for left, right in close.tolist():
                    leader[find(other + right)] = find(start + left)
        groups: dict[int, list[int]] = {}
        for row in range(len(leader)):
            groups.setdefault(find(row), []).append(row)
        found = []
        for rows in groups.values():
            if len(rows) > 1:
                ordered = sorted(rows, key=lambda row: (-int(self.stamps[row, 0]), row))
                found.append([self.paths[row] for row in ordered])
        return found

    def _starts(self) -> range:
        # One block at least, so that an empty index has an empty product.
        return range(0, max(1, len(self.paths)), BLOCK)

    def _block(self, start: int) -> NDArray[np.float32]:
        return self.features[start : start + BLOCK].astype(np.float32)


def update_index(
    classifier: Classifier,
    folder: Path,
    client: Client = 0,
    *,
    strength: float | None = None,
    file: Path | None = None,
    batch_size: int = 32,
    on_skip: OnSkip | None = None,
    progress: Progress | None = None,
) -> Index:
    """The index of a folder's images, up to date and saved.

    Args:
        classifier: of the bundle.
        folder: images at any depth.
        client: by id, or by index.
        strength: of the client; None is its default.
        file: where the index is; None is below `folder`.
        batch_size: images per call of the model.
        on_skip: called for an image that cannot be read, which is left out and tried again the
            next time; without it such an image is an error.
        progress: told of images.

    Raises:
        DataError: no images there.
        UsageError: no such folder or client, or the index cannot be written there.
        ImageError: an image cannot be read and there is no `on_skip`.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one that holds images.")
    index = classifier.bundle.client_index(client)
    strength = classifier.bundle.strength_of(index, strength)
    name = classifier.clients[index].id
    file = file or index_file(folder, name, strength)
    header = _header(classifier.bundle, name, strength)
    width = classifier.manifest.embed_dim
    stored = _load(file, header, width)
    present: dict[str, Stamp] = {}
    for image in find_images([folder]):
        stat = image.stat()
        present[image.relative_to(folder).as_posix()] = stat.st_size, stat.st_mtime_ns
    rows = {path: row for path, row in stored.items() if present.get(path) == row[0]}
    todo = iter([path for path in present if path not in rows])
    total, computed = len(present) - len(rows), 0
    shown = iter((progress or Silent()).track(range(total), "images", total))
    changed = len(rows) < len(stored)
    while chunk := list(islice(todo, SAVED_EVERY)):
        for path, feature in _compute(
            classifier, folder, chunk, index, strength, batch_size, on_skip
        ):
            rows[path] = present[path], feature
            computed += 1
        for _ in islice(shown, len(chunk)):
            pass
        _save(file, header, rows, width)
        changed = False
    if changed:
        _save(file, header, rows, width)
    paths = tuple(path for path in present if path in rows)
    features = [rows[path][1] for path in paths]
    stamps = np.array([rows[path][0] for path in paths], np.int64).reshape(-1, 2)
    stacked = np.stack(features) if features else np.empty((0, width), np.float16)
    return Index(folder, paths, stacked, stamps, computed)


def index_file(folder: Path, client: str, strength: float) -> Path:
    """Where the index of a folder is unless another place is named."""
    # A client's id may be anything; its name in a file must not be a path.
    safe = "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in client)
    return folder / FOLDER / f"index-{safe}-{strength:g}.npz"


Rows = dict[str, tuple[Stamp, Features]]


def _compute(
    classifier: Classifier,
    folder: Path,
    paths: Sequence[str],
    client: int,
    strength: float,
    batch_size: int,
    on_skip: OnSkip | None,
) -> Iterator[tuple[str, Features]]:
    """Features of those images that can be read."""
    names = {os.fspath(folder / path): path for path in paths}
    found = classifier.iter_embed(
        list(names), client, strength=strength, batch_size=batch_size, on_skip=on_skip
    )
    for name, feature in found:
        yield names[name], feature.astype(np.float16)


def _header(bundle: Bundle, client: str, strength: float) -> str:
    """What an index must have been made with to be of use."""
    model = bundle.manifest.files[VISION_MODEL].sha256
    return json.dumps([FORMAT, model, client, strength])


def _load(file: Path, header: str, width: int) -> Rows:
    """The rows of an index; none where there is no file, or one of another model."""
    if not file.exists():
        return {}
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if arrays["header"].tobytes().decode() != header:
                return {}
            paths = json.loads(arrays["paths"].tobytes())
            features, stamps = arrays["features"], arrays["stamps"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{file} cannot be read ({error}): delete it, it is made again."
        ) from error
    shapes = (features.shape, stamps.shape, features.dtype)
    if shapes != ((len(paths), width), (len(paths), 2), np.float16):
        raise BundleError(f"{file} does not fit together: delete it, it is made again.")
    rows: Rows = {}
    for path, stamp, feature in zip(paths, stamps.tolist(), features, strict=True):
        rows[path] = (stamp[0], stamp[1]), feature
    return rows


def _save(file: Path, header: str, rows: Rows, width: int) -> None:
    """Write an index under a temporary name, then give it its own."""
    buffer = io.BytesIO()
    features = [feature for _, feature in rows.values()]
    np.savez(
        buffer,
        header=np.frombuffer(header.encode(), np.uint8),
        paths=np.frombuffer(json.dumps(list(rows)).encode(), np.uint8),
        features=np.stack(features) if features else np.empty((0, width), np.float16),
        stamps=np.array([stamp for stamp, _ in rows.values()], np.int64).reshape(-1, 2),
    )
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(buffer.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise UsageError(
            f"The index {file} cannot be written ({error.strerror}): name another place with "
            "--index FILE."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
