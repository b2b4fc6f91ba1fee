"""A client that wants to join a bundle: whether it fits, and whether the changed models compute it.

Its folder of a run holds `adapter.safetensors` and `adapter_config.json`. What it shares with
others is its own copy where it has one (personalized clients do), else that of the run that the
folder lies in (`../../shared`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.calibration import ClientCalibration
from pfedmma_deploy.errors import ExportError, StoreError
from pfedmma_deploy.export.banks import TOWER_OF, client_banks, client_rows
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.registry import make_method
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.providers import model_inputs
from pfedmma_deploy.store.files import parse_json, parse_tensors, read_bytes
from pfedmma_deploy.store.run import Run, default_strength
from pfedmma_deploy.types import Tower

Array = NDArray[Any]
ADAPTER, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = "pfedmma-client"
FULL, HALF_STORED, HALF = 1e-4, 2e-3, 2e-2
"""Accepted difference as a share of the largest number added: in fp32, with weights stored in fp16,
with fp16 arithmetic."""
_SETTING_NAMES = {"bottleneck_dim": "rank"}
"""How a setting is called in messages."""


@dataclass(frozen=True)
class Newcomer:
    """A client that wants to join."""

    id: str
    seen: tuple[int, ...]
    """The bundle's labels of the classes that it trained on."""
    default_strength: float
    banks: Sequence[ExportBanks]
    rows: Mapping[Tower, Mapping[str, Array]]
    """Its row of every bank, by tower and name."""
    calibration: ClientCalibration | None = None


def read_newcomer(folder: Path, name: str | None, opened: Bundle) -> Newcomer:
    """The client in `folder` as the banks of the bundle take it.

    Raises:
        StoreError: a file is missing, damaged, or no client's.
        ExportError: client and bundle differ; names the first thing in which they do.
    """
    config = _read_config(folder)
    manifest, adapter = opened.manifest, opened.manifest.adapter
    id = name or str(config["client"])
    _require_same(
        id,
        ("backbone", config["backbone"].get("fingerprint"), manifest.backbone["fingerprint"]),
        ("method", config["method"], adapter["method"]),
        ("prompt", config["prompt"], manifest.prompt),
        ("logit scale", config["logit_scale"], manifest.logit_scale),
    )
    backbone = backbone_shapes(manifest.backbone["name"])
    method = make_method(config["method"], config["parameters"])
    model: Adapter = method.build(backbone, torch.Generator())
    # Bundles of an earlier version do not say which kind their clients are: there was one.
    known = {"kind": "multimodal", **adapter}
    for key, value in model.export_settings().items():
        if key != "blocks":  # their banks are compared below
            _require_same(id, (_SETTING_NAMES.get(key, key), value, known.get(key)))
    _load_model(folder, config, method, model)
    named = [*config["seen"], *config.get("base", ()), *config.get("novel", ())]
    for one in named:
        if one not in manifest.class_names:
            raise ExportError(
                f"Client {id!r} cannot join: its class list has {one!r}, which the "
                f"bundle's {len(manifest.class_names)} classes lack. Export both from one run."
            )
    if any(info.id == id for info in manifest.clients):
        raise ExportError(
            f"Client {id!r} is in the bundle already: remove it first with `pfedmma bundle "
            "remove`, or add this one under another name with --as."
        )
    rows = client_rows(model, backbone)
    for file in (names.VISION_MODEL, names.TEXT_MODEL):
        _require_banks(id, rows[TOWER_OF[file]], onnx.load(opened.file(file)))
    seen = sorted(manifest.class_names.index(one) for one in config["seen"])
    calibration = None
    # Without general words the bundle could not apply it.
    if "calibration" in config and manifest.general_words:
        calibration = ClientCalibration.from_dict(config["calibration"], str(folder))
    strength = default_strength(config, id)
    return Newcomer(id, tuple(seen), strength, model.export_banks(backbone), rows, calibration)


def _read_config(folder: Path) -> dict[str, Any]:
    config = parse_json(read_bytes(folder / CONFIG), folder / CONFIG)
    keys = ("client", "method", "parameters", "backbone", "prompt", "logit_scale", "seen")
    missing = [key for key in keys if key not in config]
    if config.get("format") != FORMAT or config.get("format_version") != 1 or missing:
        raise StoreError(
            f"{folder / CONFIG} should describe a client ({FORMAT}, version 1), found "
            f"{config.get('format')!r}, version {config.get('format_version')!r}"
            f"{f', without {missing[0]}' if missing else ''}: take a folder runs/NAME/clients/ID."
        )
    return config


def _load_model(
    folder: Path, config: Mapping[str, Any], method: Method[Any, Any], adapter: Adapter
) -> None:
    """Put the client into its adapter; raises `ExportError` where it lacks or has too much."""
    stored = parse_tensors(read_bytes(folder / ADAPTER), folder / ADAPTER)
    tensors, state = method.read_state(stored, config.get("state"))
    missing = adapter.scopes().keys() - tensors.keys()
    if missing:
        run = folder.resolve().parents[1]
        if not (run / "manifest.json").is_file():
            raise ExportError(
                f"{folder} lacks {min(missing)} and does not lie in a run, whose shared/ "
                "would have what its method shares: personalize the client first (then it has its "
                "own copy), or name its folder inside the run, runs/NAME/clients/ID."
            )
        opened = Run.open(run)
        shared = opened.load_shared()
        if opened.role != "site":
            shared = method.distribute(shared, str(config["client"]))
        tensors = {**shared, **tensors}
    try:
        method.load_client(adapter, tensors, state)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}. Train the client again.") from error
    adapter.eval()


def _require_same(id: str, *pairs: tuple[str, Any, Any]) -> None:
    for what, found, expected in pairs:
        if found != expected:
            sides = []
            for value in (found, expected):
                # Of a fingerprint twelve digits are enough to tell it from another.
                text = str(value)
                sides.append(text[:12] if len(text) == 64 else repr(value))
            raise ExportError(
                f"Client {id!r} cannot join: its {what} is {sides[0]}, the bundle's "
                f"is {sides[1]}. Export it from its own run instead."
            )


def _require_banks(id: str, rows: Mapping[str, Array], model: onnx.ModelProto) -> None:
    """Raises `ExportError` where the rows are not one of every bank, of its shape and finite."""
    banks = set(client_banks(model))
    shapes = {e.name: list(e.dims)[1:] for e in model.graph.initializer if e.name in banks}
    for name in sorted(rows.keys() | shapes.keys()):
        found = list(rows[name].shape) if name in rows else "missing"
        if found != shapes.get(name, "missing"):
            raise ExportError(
                f"Client {id!r} cannot join: {name} is {found} in its adapter and "
                f"{shapes.get(name, 'missing')} in the bundle."
            )
        if not np.isfinite(rows[name]).all():
            raise ExportError(f"Client {id!r} cannot join: {name} is not finite.")


def row_error(
    model: onnx.ModelProto, file: str, newcomer: Newcomer, index: int, manifest: Manifest
) -> float:
    """Largest difference of a row from the client's tensor, as a share of its largest number.

    Raises:
        ExportError: it is more than the storage explains.
    """
    entries = {entry.name: entry for entry in model.graph.initializer}
    worst = 0.0
    for name, row in newcomer.rows[TOWER_OF[file]].items():
        found = numpy_helper.to_array(entries[name])[index]
        worst = float(np.max([worst, _share(found, row)]))
    accepted = HALF_STORED if manifest.weights == "fp16" else 0.0
    if not worst <= accepted:
        raise ExportError(
            f"{file} does not hold the added client: a row of it differs by {worst:.1e}. "
            "Nothing was written; please report this."
        )
    return worst


def adapter_error(
    model: onnx.ModelProto,
    file: str,
    newcomer: Newcomer,
    index: int,
    items: Array,
    manifest: Manifest,
) -> float:
    """Largest difference of what adapters add from their reference, as a share of the largest.

    Raises:
        ExportError: it is more than the precision explains.
    """
    tower = TOWER_OF[file]
    checked = [one for one in newcomer.banks if one.tower == tower and one.reference is not None]
    if not checked:
        return 0.0
    wanted = [name for one in checked for name in _tapped(model, one)]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    clients, strengths = np.full(len(items), index), np.ones(len(items), np.float32)
    values = session.run(wanted, model_inputs(session, items, clients, strengths))
    worst = 0.0
    for one, h, added in zip(checked, values[::2], values[1::2], strict=True):
        assert one.reference is not None
        rows = {name: row.double().numpy() for name, row in one.rows.items()}
        expected = one.reference(rows, h.astype(np.float64))
        worst = float(np.max([worst, _share(added, expected)]))
    accepted = HALF if manifest.precision == "fp16" else FULL
    if manifest.weights == "fp16":
        accepted = max(accepted, HALF_STORED)
    if not worst <= accepted:
        raise ExportError(
            f"{file} does not compute the added client: what its adapters add differs by "
            f"{worst:.1e} of the largest number (accepted {accepted:.0e}). "
            "Nothing was written; please report this."
        )
    return worst


def _tapped(model: onnx.ModelProto, banks: ExportBanks) -> tuple[str, str]:
    """Names of a module's input h and of its output, found from the banks that it reads.

    The first bank is multiplied with h, the last one is added before the scale.
    """
    reader = {name: node for node in model.graph.node for name in node.input}

    def row(name: str) -> str:
        gathered: str = reader[f"{banks.place}.{name}"].output[0]
        # Banks stored in fp16 are converted behind the Gather.
        return reader[gathered].output[0] if reader[gathered].op_type == "Cast" else gathered

    first, *_, last = banks.rows
    added = reader[row(last)].output[0]
    return reader[row(first)].input[0], reader[added].output[0]


def _share(found: Array, expected: Array) -> float:
    """Largest difference as a share of the largest number expected; NaN where one is NaN."""
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max() / largest)
