"""One client as a run holds it, and its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedmma_deploy.store.files import json_bytes, tensor_bytes


@dataclass(frozen=True)
class StoredClient:
    """One client as a run holds it."""

    id: str
    tensors: dict[str, Tensor]
    """Its own part, by parameter name; with a copy of the shared part where it has its own."""
    config: dict[str, Any]
    """Method, backbone fingerprint, hyper-parameters, the classes it has seen, provenance."""


def client_files(client: StoredClient) -> dict[str, bytes]:
    base = f"clients/{client.id}"
    return {
        f"{base}/adapter.safetensors": tensor_bytes(client.tensors),
        f"{base}/adapter_config.json": json_bytes(client.config),
    }


def link_file(source: Path | None, target: Path) -> bool:
    """Give a file that is written already another name; False where that cannot be done.

    Files of a run are replaced, never changed, so one name's content cannot change another's.
    """
    if source is None:
        return False
    partial = target.with_name(f"{target.name}.link.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        os.link(source, partial)
        partial.replace(target)
    except OSError:
        return False
    return True
