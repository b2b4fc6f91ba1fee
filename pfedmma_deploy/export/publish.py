"""A bundle appears under its name only when it is complete, and replaces its forerunner at once.

Its last two files are written here: the model card (from `assets/export/card.md`, where no name of
a class or a client can become markup), and the manifest with the hashes of all others.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation
from pfedmma_deploy.runtime.bundle import MANIFEST, MODEL_CARD, Bundle, file_sha256
from pfedmma_deploy.runtime.manifest import FORMAT, CurvePoint, FileInfo, History, Manifest
from pfedmma_deploy.store.files import flush_folder, json_bytes, write_bytes
from pfedmma_deploy.templates import render_markdown

MOST_ROWS = 50
"""Clients that the model card lists."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def require_replaceable(out: Path) -> None:
    """Raises `ExportError` where `out` is something else than free, empty or an older bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        is_bundle = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    except (OSError, ValueError):
        is_bundle = False
    if not is_bundle:
        raise ExportError(
            f"{out} exists and is not an exported model: nothing was overwritten; "
            "choose another --out, or remove it yourself."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name when the block ends without an error.

    An older bundle of that name is replaced in one step where the system can exchange two folders
    (Linux), else in two. After an error nothing is left behind, and the older bundle is untouched.
    """
    out = out.resolve()
    require_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename does not cross file systems.
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's is for its owner alone
        yield folder
        flush_folder(folder)
        # Again: an export takes minutes, in which somebody may have put something else there.
        require_replaceable(out)
        _take_name(folder, out)
        flush_folder(out.parent)
    finally:
        # Holds the older bundle after an exchange, unfinished files after an error.
        shutil.rmtree(folder, ignore_errors=True)


def write_features(file: Path, features: NDArray[np.float32]) -> None:
    """Write features of any shape as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_bytes(file, buffer.getvalue())


def seal(folder: Path, title: str, manifest: Manifest, parity: Mapping[str, Any]) -> dict[str, int]:
    """Complete a bundle whose other files are there: model card, then the manifest with all hashes.

    Returns the size of every file.
    """
    # Twice: the card lists the files, and is one of those that the manifest has the hashes of.
    manifest = _with_files(manifest, folder, parity)
    write_bytes(folder / MODEL_CARD, model_card(title, manifest).encode())
    manifest = _with_files(manifest, folder, parity)
    write_bytes(folder / MANIFEST, json_bytes(manifest.to_dict()))
    # As any reader will: what was written must be what can be read.
    Bundle.open(folder).verify()
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _with_files(manifest: Manifest, folder: Path, parity: Mapping[str, Any]) -> Manifest:
    """The manifest with the parity report, and sizes and hashes of what is in the folder."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            files[path.name] = FileInfo(path.stat().st_size, file_sha256(path))
    return replace(manifest, files=files, parity=parity)


def model_card(title: str, manifest: Manifest) -> str:
    """Markdown for a bundle named `title`: what the model is, how it was checked, how to use it."""
    listed = manifest.clients[:MOST_ROWS]

    def named(labels: Sequence[int]) -> list[str]:
        return [manifest.class_names[label] for label in labels]

    # Where novel means base classes in another domain, the two lists would be the same.
    novel = manifest.novel if set(manifest.novel) - set(manifest.base) else ()
    return render_markdown(
        "export",
        "card.md",
        m=manifest,
        title=title,
        clients=[(client, named(client.seen)) for client in listed],
        base=named(manifest.base),
        novel=named(novel),
        accuracy=_measured(manifest),
        curve=_mean_curve(manifest.history),
        measured=len(_curves(manifest.history)),
    )


def _curves(history: History | None) -> list[Sequence[CurvePoint]]:
    """The measured clients' accuracies by strength."""
    clients = history.clients.values() if history else ()
    return [client.curve for client in clients if client.curve]


def _mean_curve(history: History | None) -> list[CurvePoint]:
    """Unweighted means over the measured clients, of those that have the figure."""
    curves = [{point.strength: point for point in curve} for curve in _curves(history)]
    means = []
    # Each client was measured at its own default as well.
    for strength in sorted(set.intersection(*map(set, curves))) if curves else ():
        points = [curve[strength] for curve in curves]
        values: list[float | None] = []
        for figure in ("local", "base", "novel", "all"):
            known = [value for one in points if (value := getattr(one, figure)) is not None]
            values.append(sum(known) / len(known) if known else None)
        means.append(CurvePoint(*values, strength=strength))
    return means


def _measured(manifest: Manifest) -> RunEvaluation | None:
    """What the history knows of its clients' accuracies; None where nothing was measured."""
    zero_shot, personalized, history = {}, {}, manifest.history
    strengths = {client.id: client.default_strength for client in manifest.clients}
    for client, one in (history.clients if history else {}).items():
        if one.zero_shot is not None and one.personalized is not None:
            zero_shot[client] = Accuracy(**asdict(one.zero_shot))
            personalized[client] = Accuracy(**asdict(one.personalized))
    return RunEvaluation(zero_shot, personalized, strengths) if personalized else None


def _take_name(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        older = folder.with_name(f"{folder.name}.older")
        out.rename(older)
        try:
            folder.rename(out)
        except OSError:
            older.rename(out)
            raise
        shutil.rmtree(older)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    code = rename(
        _AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return int(code) == 0
