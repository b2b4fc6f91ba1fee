"""A client's folder, read as something that may join a bundle, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import ExportError, StoreError
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import parse_json, parse_tensors, read_bytes
from pfedmma_deploy.store.run import Run

__all__ = ["Joining", "read_client", "require_fitting"]

ADAPTER, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = "pfedmma-client"


@dataclass(frozen=True)
class Joining:
    """A client that wants to join."""

    folder: Path
    id: str
    tensors: Mapping[str, NDArray[Any]]
    """All adapter tensors by name, the shared projections included."""
    config: Mapping[str, Any]
    """`adapter_config.json`."""


def read_client(folder: Path, name: str | None = None) -> Joining:
    """Read a client's folder; `name` replaces its own id.

    Raises:
        StoreError: a file is missing, damaged, or no client's.
        ExportError: it has no projections of its own and lies in no run.
    """
    config = parse_json(read_bytes(folder / CONFIG), folder / CONFIG)
    keys = ("client", "method", "parameters", "backbone", "prompt", "logit_scale", "seen")
    missing = [key for key in keys if key not in config]
    if config.get("format") != FORMAT or config.get("format_version") != 1 or missing:
        raise StoreError(
            f"{folder / CONFIG} should describe a client ({FORMAT}, version 1), found "
            f"{config.get('format')!r}, version {config.get('format_version')!r}"
            f"{f', without {missing[0]}' if missing else ''}: take a folder runs/NAME/clients/ID."
        )
    tensors = parse_tensors(read_bytes(folder / ADAPTER), folder / ADAPTER)
    if not any(key.startswith("pair.") for key in tensors):
        run = folder.resolve().parents[1]
        if not (run / "manifest.json").is_file():
            raise ExportError(
                f"{folder} holds no shared projections (pair.*) and does not lie in a run, whose "
                "shared/ would have them: personalize the client first (then it has its own "
                "copy), or name its folder inside the run, runs/NAME/clients/ID."
            )
        tensors = {**Run.open(run).load_shared(), **tensors}
    arrays = {key: value.float().numpy() for key, value in tensors.items()}
    return Joining(folder, name or str(config["client"]), arrays, config)


def require_fitting(
    joining: Joining, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises `ExportError` naming the first thing in which client and bundle differ.

    Args:
        joining: the client.
        manifest: the bundle's.
        shapes: name and shape of every tensor that the bundle's banks are made of.
    """
    config, parameters = joining.config, joining.config["parameters"]
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("backbone", config["backbone"].get("fingerprint"), manifest.backbone["fingerprint"]),
        ("method", config["method"], manifest.adapter["method"]),
        ("rank", parameters.get("bottleneck_dim"), manifest.adapter["bottleneck_dim"]),
        ("scale", parameters.get("scale"), manifest.adapter["scale"]),
        ("prompt", config["prompt"], manifest.prompt),
        ("logit scale", config["logit_scale"], manifest.logit_scale),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise ExportError(
                f"Client {joining.id!r} cannot join: its {what} is {_short(found)}, the bundle's "
                f"is {_short(expected)}. Export it from its own run instead."
            )
    named = [*config["seen"], *config.get("base", ()), *config.get("novel", ())]
    unknown = [name for name in named if name not in manifest.class_names]
    if unknown:
        raise ExportError(
            f"Client {joining.id!r} cannot join: its class list has {unknown[0]!r}, which the "
            f"bundle's {len(manifest.class_names)} classes lack. Export both from one run."
        )
    if any(info.id == joining.id for info in manifest.clients):
        raise ExportError(
            f"Client {joining.id!r} is in the bundle already: remove it first with "
            "--remove-client, or add this one under another name with --as."
        )
    _require_tensors(joining, shapes)


def _require_tensors(joining: Joining, shapes: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: tensor.shape for name, tensor in joining.tensors.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise ExportError(
                f"Client {joining.id!r} cannot join: {name} is {_shape(found.get(name))} in its "
                f"adapter and {_shape(shapes.get(name))} in the bundle."
            )
        if not np.isfinite(joining.tensors[name]).all():
            raise ExportError(f"Client {joining.id!r} cannot join: {name} is not finite.")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"{list(shape)}"


def _short(value: Any) -> str:
    """A fingerprint by its first twelve digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)
