"""Files that exist once they are whole: written beside, flushed to disk, hashed, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedmma_deploy.errors import StoreError


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` under its name only when it is safely on disk; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    # The rename itself is durable only once the folder is flushed as well.
    flush_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable; other systems than POSIX cannot be asked to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def json_bytes(value: object) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors, in name order so that equal tensors give equal bytes."""
    ordered = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    return save(ordered)


def read_bytes(path: Path, sha256: str | None = None) -> bytes:
    """Contents of a file, verified where its hash is given.

    Raises:
        StoreError: the file is missing or not what was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise StoreError(
            f"{path}: {reason}. The folder is incomplete; copy or train it again."
        ) from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(
            f"{path} is damaged or was changed: its SHA-256 is not the one recorded "
            f"({sha256[:12]}...). Restore the file or train again."
        )
    return data


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object; `path` is named in the error. Raises `StoreError` where it is not one."""
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} should hold a JSON object, found a {type(value).__name__}.")
    return value


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, all finite; `path` is named in the error.

    Raises:
        StoreError: not safetensors, or values that are NaN or infinite.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is not a safetensors file: {error}.") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise StoreError(f"{path}: tensor {name} holds values that are not finite.")
    return tensors
