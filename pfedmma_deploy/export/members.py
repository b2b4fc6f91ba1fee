"""Clients join and leave a finished bundle, without the run and without training.

What a client brings is its folder of a run: `adapter.safetensors` and `adapter_config.json`. The
part that it shares with others is its own copy where it has one (personalized clients do), else
that of the run that the folder lies in (`../../shared`).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import ExportError, UsageError
from pfedmma_deploy.export import describe, member_check
from pfedmma_deploy.export.banks import adapted, append_row, bank_shapes, remove_row
from pfedmma_deploy.export.card import seal
from pfedmma_deploy.export.history import without_client
from pfedmma_deploy.export.joining import read_client, require_fitting
from pfedmma_deploy.export.onnx_file import to_bytes
from pfedmma_deploy.export.parity import run_clients
from pfedmma_deploy.export.publish import staged
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.runtime.providers import open_session
from pfedmma_deploy.runtime.tokenizer import Tokenizer
from pfedmma_deploy.store.files import write_bytes
from pfedmma_deploy.types import Tower

__all__ = ["MemberReport", "add_client", "remove_client"]

Array = NDArray[Any]
TOWER_OF: Mapping[str, Tower] = {
    names.VISION_MODEL: "image",
    names.TEXT_MODEL: "text",
    names.CLASSIFIER_MODEL: "image",
}


@dataclass(frozen=True)
class MemberReport:
    """A bundle after a client joined or left."""

    bundle: Path
    clients: tuple[str, ...]
    """Ids by index, zero-shot first."""
    files: dict[str, int]
    """Name -> bytes."""
    parity: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of `pfedmma export --json`."""
        return {
            "bundle": str(self.bundle),
            "clients": list(self.clients),
            "files": dict(self.files),
            "parity": dict(self.parity),
            "quality": None,
        }


def add_client(bundle: Path, client: Path, *, name: str | None = None) -> MemberReport:
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
    manifest = opened.manifest
    joining = read_client(client, name)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in (names.VISION_MODEL, names.TEXT_MODEL):
        tower = TOWER_OF[file]
        model = onnx.load(bundle / file)
        shapes.update(bank_shapes(model, tower, adapted(manifest, tower)))
    tensors = require_fitting(joining, manifest, shapes)
    index = len(manifest.clients)
    labels = sorted(manifest.class_names.index(seen) for seen in joining.config["seen"])
    longer = (*manifest.clients, ClientInfo(index, joining.id, tuple(labels)))
    manifest = replace(manifest, clients=longer)
    pixels = member_check.check_images(manifest)
    tokens = _tokens(opened)
    with staged(bundle) as folder:
        text = _write_longer(opened, folder, manifest, tensors, tokens)
        errors = [
            check(folder / file, TOWER_OF[file], items, index, tensors, manifest)
            for file, items in ((names.VISION_MODEL, pixels), (names.TEXT_MODEL, tokens))
            for check in (member_check.adapter_error, member_check.row_error)
        ]
        same = {old: old for old in range(index)}
        _require_unchanged(opened, folder, pixels, tokens, same)
        _save_text(folder, np.concatenate([opened.text_embeds(), text[None]]))
        added = {
            **manifest.parity.get("added", {}),
            joining.id: {
                "method": member_check.how(manifest),
                "max_relative_error": max(errors),
            },
        }
        parity = {**manifest.parity, "added": added}
        sizes = seal(folder, bundle.resolve().name, manifest, parity)
    return MemberReport(bundle, tuple(c.id for c in longer), sizes, parity)


def remove_client(bundle: Path, client: str) -> MemberReport:
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
    history = without_client(old.history, client)
    manifest = replace(old, clients=fewer, history=history)
    pixels, tokens = member_check.check_images(manifest), _tokens(opened)
    rows = {info.index: number for number, info in enumerate(kept)}
    with staged(bundle) as folder:
        _change_models(opened, folder, manifest, lambda _, model: remove_row(model, index))
        _copy_rest(opened, folder)
        _require_unchanged(opened, folder, pixels, tokens, rows)
        _save_text(folder, np.delete(opened.text_embeds(), index, 0))
        parity = dict(old.parity)
        if "added" in parity:
            parity["added"] = {k: v for k, v in parity["added"].items() if k != client}
        sizes = seal(folder, bundle.resolve().name, manifest, parity)
    return MemberReport(bundle, tuple(c.id for c in fewer), sizes, parity)


def _write_longer(
    opened: Bundle,
    folder: Path,
    manifest: Manifest,
    tensors: Mapping[str, Array],
    tokens: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Models with one more row. Returns the client's text features [C, D], by its text tower."""

    def longer(file: str, model: onnx.ModelProto) -> None:
        tower = TOWER_OF[file]
        row = None
        if file == names.CLASSIFIER_MODEL:
            row = (manifest.logit_scale * text).T
        append_row(model, tower, adapted(manifest, tower), tensors, row)

    _change_models(opened, folder, manifest, longer, only=(names.TEXT_MODEL,))
    session = open_session(folder / names.TEXT_MODEL, "cpu")
    text = run_clients(session, tokens, np.full(len(tokens), len(manifest.clients) - 1))
    rest = tuple(file for file in TOWER_OF if file != names.TEXT_MODEL)
    _change_models(opened, folder, manifest, longer, only=rest)
    _copy_rest(opened, folder)
    return text


def _change_models(
    opened: Bundle,
    folder: Path,
    manifest: Manifest,
    change: Callable[[str, onnx.ModelProto], None],
    only: tuple[str, ...] = tuple(TOWER_OF),
) -> None:
    for file in only:
        if file in opened.manifest.files:
            model = onnx.load(opened.file(file))
            change(file, model)
            write_bytes(folder / file, to_bytes(model, describe.metadata(manifest, file)))


def _copy_rest(opened: Bundle, folder: Path) -> None:
    for file in (names.TOKENIZER, names.LABELS):
        shutil.copyfile(opened.file(file), folder / file)


def _save_text(folder: Path, features: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_bytes(folder / names.TEXT_EMBEDS, buffer.getvalue())


def _require_unchanged(
    opened: Bundle, folder: Path, pixels: Array, tokens: Array, rows: Mapping[int, int]
) -> None:
    for file in TOWER_OF:
        if file in opened.manifest.files:
            items = tokens if file == names.TEXT_MODEL else pixels
            member_check.require_unchanged(opened.path / file, folder / file, items, rows)


def _tokens(opened: Bundle) -> NDArray[np.int64]:
    """Token ids of the class prompts as the clients read them, [C, context]."""
    manifest = opened.manifest
    tokenizer = Tokenizer(opened.file(names.TOKENIZER), manifest.context_length)
    return tokenizer(build_prompts(manifest.class_names, manifest.prompt_of(1)))
