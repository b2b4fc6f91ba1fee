"""A client's folder, read as something that may join a bundle, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.adapters.graph_form import GraphForm
from pfedmma_deploy.errors import ExportError, StoreError
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import parse_json, parse_tensors, read_bytes
from pfedmma_deploy.store.run import Run

__all__ = ["Joining", "read_client", "require_fitting", "taken_form"]

ADAPTER, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = "pfedmma-client"
_NAMES = {"bottleneck_dim": "rank"}
"""How a setting is called in messages."""


@dataclass(frozen=True)
class Joining:
    """A client that wants to join."""

    folder: Path
    id: str
    tensors: Mapping[str, Tensor]
    """Its own adapter tensors by name; with the shared ones where it has a copy of them."""
    config: Mapping[str, Any]
    """`adapter_config.json`."""


def read_client(folder: Path, name: str | None = None) -> Joining:
    """Read a client's folder; `name` replaces its own id.

    Raises:
        StoreError: a file is missing, damaged, or no client's.
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
    return Joining(folder, name or str(config["client"]), tensors, config)


def taken_form(joining: Joining) -> GraphForm:
    """The client as a graph takes it.

    Raises:
        ExportError: it lacks something that is shared, and lies in no run that has it.
    """
    config = joining.config
    method = get_method(config["method"])
    assert method.graph is not None, "bundles are made of methods that have a graph"
    parameters = method.configure(config["parameters"])
    try:
        return method.graph(dict(joining.tensors), parameters)
    except KeyError as error:
        run = joining.folder.resolve().parents[1]
        if not (run / "manifest.json").is_file():
            raise ExportError(
                f"{joining.folder} lacks {error.args[0]} and does not lie in a run, whose shared/ "
                "would have what its method shares: personalize the client first (then it has its "
                "own copy), or name its folder inside the run, runs/NAME/clients/ID."
            ) from None
    shared = method.distribute(Run.open(run).load_shared(), str(config["client"]))
    try:
        return method.graph({**shared, **joining.tensors}, parameters)
    except KeyError as error:
        raise ExportError(
            f"{joining.folder} and its run lack {error.args[0]}: train the client again."
        ) from None


def require_fitting(
    joining: Joining, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """One row of every bank, by name.

    Args:
        joining: the client.
        manifest: the bundle's.
        shapes: name and shape of every tensor that the bundle's banks are made of.

    Raises:
        ExportError: client and bundle differ; names the first thing in which they do.
    """
    config, adapter = joining.config, manifest.adapter
    _require_same(
        joining,
        ("backbone", config["backbone"].get("fingerprint"), manifest.backbone["fingerprint"]),
        ("method", config["method"], adapter["method"]),
        ("prompt", config["prompt"], manifest.prompt),
        ("logit scale", config["logit_scale"], manifest.logit_scale),
    )
    form = taken_form(joining)
    # Bundles of an earlier version do not say which kind their clients are: there was one.
    known = {"kind": "multimodal", **adapter}
    _require_same(
        joining,
        *((_NAMES.get(key, key), value, known.get(key)) for key, value in form.settings.items()),
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
            "`pfedmma bundle remove`, or add this one under another name with --as."
        )
    arrays = {name: tensor.float().numpy() for name, tensor in form.tensors.items()}
    _require_tensors(joining, arrays, shapes)
    return arrays


def _require_same(joining: Joining, *pairs: tuple[str, Any, Any]) -> None:
    for what, found, expected in pairs:
        if found != expected:
            raise ExportError(
                f"Client {joining.id!r} cannot join: its {what} is {_short(found)}, the bundle's "
                f"is {_short(expected)}. Export it from its own run instead."
            )


def _require_tensors(
    joining: Joining,
    tensors: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise ExportError(
                f"Client {joining.id!r} cannot join: {name} is {_shape(found.get(name))} in its "
                f"adapter and {_shape(shapes.get(name))} in the bundle."
            )
        if not np.isfinite(tensors[name]).all():
            raise ExportError(f"Client {joining.id!r} cannot join: {name} is not finite.")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"{list(shape)}"


def _short(value: Any) -> str:
    """A fingerprint by its first twelve digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)
