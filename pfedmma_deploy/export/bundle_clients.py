"""Clients join and leave a finished bundle, without the run and without training.

What a client brings is its folder of a run: `adapter.safetensors` and `adapter_config.json`. The
part that it shares with others is its own copy where it has one (personalized clients do), else
that of the run that the folder lies in (`../../shared`).

The frozen towers were compared with torch when the bundle was made; what is new is one row in every
bank. So the rows are read back, what pFedMMA's adapters add is compared, block by block, with the
equation in numpy on the activations that they really see, and the other clients' features must stay
what they were.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import ExportError, StoreError, UsageError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import (
    CLASSIFIER_TEXT,
    TOWER_OF,
    client_banks,
    client_rows,
    replace_banks,
)
from pfedmma_deploy.export.describe import without_client
from pfedmma_deploy.export.onnx_file import to_bytes
from pfedmma_deploy.export.parity import run_clients
from pfedmma_deploy.export.publish import seal, staged
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.methods.registry import make_method
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.runtime.providers import open_session
from pfedmma_deploy.runtime.sources import load_pixels
from pfedmma_deploy.runtime.text_tower import Tokenizer
from pfedmma_deploy.store.files import parse_json, parse_tensors, read_bytes, write_bytes
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import Tower

Array = NDArray[Any]
ADAPTER, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = "pfedmma-client"
EQUATION = "what each adapter adds, against the equation in numpy (float64)"
ROWS = "the client's rows, read back from the models, against its own files"
IMAGES = 8
"""Of the sample in the package, on which the models are run."""
UNCHANGED = 1e-5
"""Accepted change of another client's features."""
FULL, HALF_STORED, HALF = 1e-4, 2e-3, 2e-2
"""Accepted difference as a share of the largest number added: in fp32, with weights stored in fp16,
with fp16 arithmetic."""
_SETTING_NAMES = {"bottleneck_dim": "rank"}
"""How a setting is called in messages."""


@dataclass(frozen=True)
class BundleClientsReport:
    """A bundle after a client joined or left."""

    bundle: Path
    clients: tuple[str, ...]
    """Ids by index, zero-shot first."""
    files: dict[str, int]
    """Name -> bytes."""
    parity: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of `pfedmma bundle add --json`."""
        return {
            "bundle": str(self.bundle),
            "clients": list(self.clients),
            "files": dict(self.files),
            "parity": dict(self.parity),
            "quality": None,
        }


@dataclass(frozen=True)
class _Newcomer:
    """A client that wants to join."""

    id: str
    folder: Path
    config: Mapping[str, Any]
    """`adapter_config.json`."""
    banks: Sequence[ExportBanks]
    rows: Mapping[Tower, Mapping[str, Array]]
    """Its row of every bank, by tower and name."""


def add_client(bundle: Path, client: Path, *, name: str | None = None) -> BundleClientsReport:
    """Add the client in folder `client` to the bundle as its last one.

    Args:
        bundle: folder of the bundle; replaced once the longer one has passed its checks.
        client: folder with `adapter.safetensors` and `adapter_config.json`.
        name: id to serve it under; None takes its own.

    Raises:
        BundleError, StoreError: the bundle or the client's files are missing or damaged.
        ExportError: the client does not belong to this backbone, method, rank, scale, prompt or
            class list, or its id is taken; or the longer bundle does not pass its checks.
    """
    opened = Bundle.open(bundle)
    opened.verify()
    newcomer = _read_newcomer(client, name, opened)
    manifest, index = opened.manifest, len(opened.manifest.clients)
    labels = sorted(manifest.class_names.index(seen) for seen in newcomer.config["seen"])
    clients = (*manifest.clients, ClientInfo(index, newcomer.id, tuple(labels)))
    manifest = replace(manifest, clients=clients)
    pixels, tokens = _check_images(manifest), _tokens(opened)
    with staged(bundle) as folder:
        text = _append(opened, folder, manifest, newcomer, tokens)
        errors = []
        for file, items in ((names.VISION_MODEL, pixels), (names.TEXT_MODEL, tokens)):
            errors.append(_row_error(folder / file, newcomer, index, manifest))
            errors.append(_adapter_error(folder / file, newcomer, index, items, manifest))
        _require_unchanged(opened, folder, pixels, tokens, {old: old for old in range(index)})
        _save_text(folder, np.concatenate([opened.text_embeds(), text[None]]))
        has_equation = any(one.reference is not None for one in newcomer.banks)
        added = {
            **manifest.parity.get("added", {}),
            newcomer.id: {
                "method": EQUATION if has_equation else ROWS,
                "max_relative_error": max(errors),
            },
        }
        parity = {**manifest.parity, "added": added}
        sizes = seal(folder, bundle.resolve().name, manifest, parity)
    return BundleClientsReport(bundle, tuple(c.id for c in clients), sizes, parity)


def remove_client(bundle: Path, client: str) -> BundleClientsReport:
    """Take a client out of the bundle; those behind it move up by one index.

    Raises:
        BundleError: the bundle is missing or damaged.
        UsageError: it has no such client, or the client is zero-shot.
        ExportError: it is the only one, or the shorter bundle does not pass its checks.
    """
    opened = Bundle.open(bundle)
    opened.verify()
    index = opened.client_index(client)
    old = opened.manifest
    if index == 0:
        raise UsageError("zero-shot is the backbone itself: every bundle keeps it.")
    if len(old.clients) == 2:
        raise ExportError(
            f"{client!r} is the only client of {bundle}: delete the folder if nobody needs it."
        )
    kept = [info for info in old.clients if info.index != index]
    fewer = tuple(replace(info, index=number) for number, info in enumerate(kept))
    manifest = replace(old, clients=fewer, history=without_client(old.history, client))
    pixels, tokens = _check_images(manifest), _tokens(opened)
    with staged(bundle) as folder:
        for file in TOWER_OF:
            _change_model(
                opened, folder, manifest, file, lambda _, values: np.delete(values, index, 0)
            )
        _copy_rest(opened, folder)
        rows = {info.index: number for number, info in enumerate(kept)}
        _require_unchanged(opened, folder, pixels, tokens, rows)
        _save_text(folder, np.delete(opened.text_embeds(), index, 0))
        parity = dict(old.parity)
        if "added" in parity:
            parity["added"] = {k: v for k, v in parity["added"].items() if k != client}
        sizes = seal(folder, bundle.resolve().name, manifest, parity)
    return BundleClientsReport(bundle, tuple(c.id for c in fewer), sizes, parity)


# What the newcomer brings, and whether it fits.


def _read_newcomer(folder: Path, name: str | None, opened: Bundle) -> _Newcomer:
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
    for unknown in (one for one in named if one not in manifest.class_names):
        raise ExportError(
            f"Client {id!r} cannot join: its class list has {unknown!r}, which the "
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
    return _Newcomer(id, folder, config, model.export_banks(backbone), rows)


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
        tensors = {**_shared_of_run(folder, min(missing), method, config), **tensors}
    try:
        method.load_client(adapter, tensors, state)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}. Train the client again.") from error
    adapter.eval()


def _shared_of_run(
    folder: Path, missing: str, method: Method[Any, Any], config: Mapping[str, Any]
) -> Tensors:
    """What the run that the folder lies in shares with its client."""
    run = folder.resolve().parents[1]
    if not (run / "manifest.json").is_file():
        raise ExportError(
            f"{folder} lacks {missing} and does not lie in a run, whose shared/ "
            "would have what its method shares: personalize the client first (then it has its "
            "own copy), or name its folder inside the run, runs/NAME/clients/ID."
        )
    return method.distribute(Run.open(run).load_shared(), str(config["client"]))


def _require_same(id: str, *pairs: tuple[str, Any, Any]) -> None:
    for what, found, expected in pairs:
        if found != expected:
            raise ExportError(
                f"Client {id!r} cannot join: its {what} is {_short(found)}, the bundle's "
                f"is {_short(expected)}. Export it from its own run instead."
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


def _short(value: Any) -> str:
    """A fingerprint by its first twelve digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)


# The changed models.


def _append(
    opened: Bundle,
    folder: Path,
    manifest: Manifest,
    newcomer: _Newcomer,
    tokens: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Models with one more row. Returns the client's text features [C, D], by its text tower."""

    def longer(file: str, text: NDArray[np.float32] | None = None) -> None:
        # The classifier holds the image tower as a module of its own.
        prefix = "image." if file == names.CLASSIFIER_MODEL else ""
        own = {prefix + name: row for name, row in newcomer.rows[TOWER_OF[file]].items()}
        if text is not None:
            own[CLASSIFIER_TEXT] = (manifest.logit_scale * text).T

        def appended(name: str, values: Array) -> Array:
            return np.concatenate([values, own[name][None].astype(values.dtype)])

        _change_model(opened, folder, manifest, file, appended)

    longer(names.TEXT_MODEL)
    session = open_session(folder / names.TEXT_MODEL, "cpu")
    text = run_clients(session, tokens, np.full(len(tokens), len(manifest.clients) - 1))
    longer(names.VISION_MODEL)
    longer(names.CLASSIFIER_MODEL, text)
    _copy_rest(opened, folder)
    return text


def _change_model(
    opened: Bundle,
    folder: Path,
    manifest: Manifest,
    file: str,
    change: Callable[[str, Array], Array],
) -> None:
    """Write a model of the bundle, if it has it, with other banks."""
    if file in opened.manifest.files:
        model = onnx.load(opened.file(file))
        replace_banks(model, change)
        write_bytes(folder / file, to_bytes(model, describe.metadata(manifest, file)))


def _copy_rest(opened: Bundle, folder: Path) -> None:
    for file in (names.TOKENIZER, names.LABELS):
        shutil.copyfile(opened.file(file), folder / file)


def _save_text(folder: Path, features: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_bytes(folder / names.TEXT_EMBEDS, buffer.getvalue())


# Checks.


def _check_images(manifest: Manifest) -> NDArray[np.uint8]:
    """Real images from the sample in the package, uint8 [N, H, W, 3] at the model's size."""
    dataset = load_dataset("cifar10-sample", verify=False)
    step = max(1, len(dataset.examples) // IMAGES)
    chosen = dataset.examples[::step][:IMAGES]
    return np.stack([load_pixels(dataset.open_image(o), manifest.preprocessing) for o in chosen])


def _tokens(opened: Bundle) -> NDArray[np.int64]:
    """Token ids of the class prompts as the clients read them, [C, context]."""
    manifest = opened.manifest
    tokenizer = Tokenizer(opened.file(names.TOKENIZER), manifest.context_length)
    return tokenizer(build_prompts(manifest.class_names, manifest.prompt_of(1)))


def _require_unchanged(
    opened: Bundle, folder: Path, pixels: Array, tokens: Array, rows: Mapping[int, int]
) -> None:
    """Raises `ExportError` where a client's features changed; `rows` is old index -> new index."""
    for file in TOWER_OF:
        if file not in opened.manifest.files:
            continue
        items = tokens if file == names.TEXT_MODEL else pixels
        old, new = _session(opened.file(file).read_bytes()), _session((folder / file).read_bytes())
        for left, right in rows.items():
            expected = run_clients(old, items, np.full(len(items), left))
            found = run_clients(new, items, np.full(len(items), right))
            error = float(np.abs(expected - found).max())
            if not error <= UNCHANGED:
                raise ExportError(
                    f"{file}: the features of client number {left} would change by {error:.1e}. "
                    "Nothing was written; please report this."
                )


def _row_error(file: Path, newcomer: _Newcomer, index: int, manifest: Manifest) -> float:
    """Largest difference of a row from the client's tensor, as a share of its largest number.

    Raises:
        ExportError: it is more than the storage explains.
    """
    model = onnx.load(file)
    entries = {entry.name: entry for entry in model.graph.initializer}
    worst = 0.0
    for name, row in newcomer.rows[TOWER_OF[file.name]].items():
        found = numpy_helper.to_array(entries[name])[index]
        worst = float(np.max([worst, _share(found, row)]))
    accepted = HALF_STORED if manifest.weights == "fp16" else 0.0
    if not worst <= accepted:
        raise ExportError(
            f"{file.name} does not hold the added client: a row of it differs by {worst:.1e}. "
            "Nothing was written; please report this."
        )
    return worst


def _adapter_error(
    file: Path, newcomer: _Newcomer, index: int, items: Array, manifest: Manifest
) -> float:
    """Largest difference of what adapters add from their reference, as a share of the largest.

    Raises:
        ExportError: it is more than the precision explains.
    """
    tower = TOWER_OF[file.name]
    checked = [one for one in newcomer.banks if one.tower == tower and one.reference is not None]
    if not checked:
        return 0.0
    model = onnx.load(file)
    wanted = [name for one in checked for name in _tapped(model, one)]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = _session(model.SerializeToString())
    first, second = (node.name for node in session.get_inputs())
    values = session.run(wanted, {first: items, second: np.full(len(items), index)})
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
            f"{file.name} does not compute the added client: what its adapters add differs by "
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


def _session(model: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
