"""Clients join and leave a finished bundle, without the run and without training.

The frozen towers were compared with torch when the bundle was made; what is new is one row in every
bank. So the rows are read back, what pFedMMA's adapters add is compared, block by block, with the
equation in numpy on the activations that they really see, and the other clients' features must stay
what they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import ExportError, UsageError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import CLASSIFIER_TEXT, TOWER_OF, replace_banks
from pfedmma_deploy.export.certainty import client_rows
from pfedmma_deploy.export.newcomer import Newcomer, adapter_error, read_newcomer, row_error
from pfedmma_deploy.export.onnx_file import to_bytes
from pfedmma_deploy.export.parity import run_clients
from pfedmma_deploy.export.publish import seal, staged, write_features
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import ClientInfo, History, Manifest
from pfedmma_deploy.runtime.providers import open_session
from pfedmma_deploy.runtime.sources import load_pixels
from pfedmma_deploy.runtime.text_tower import Tokenizer, mixed
from pfedmma_deploy.store.files import write_bytes

Array = NDArray[Any]
EQUATION = "what each adapter adds, against the equation in numpy (float64)"
ROWS = "the client's rows, read back from the models, against its own files"
IMAGES = 8
"""Of the sample in the package, on which the models are run."""
UNCHANGED = 1e-5
"""Accepted change of another client's features."""


def add_client(bundle: Path, client: Path, *, name: str | None = None) -> Bundle:
    """The bundle with the client in folder `client` as its last one.

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
    # The old files are the reference of every check below, so they must be what was published.
    opened.verify()
    newcomer = read_newcomer(client, name, opened)
    manifest, index = opened.manifest, len(opened.manifest.clients)
    known = newcomer.calibration
    info = ClientInfo(
        index,
        newcomer.id,
        newcomer.seen,
        newcomer.default_strength,
        None if known is None else known.calibration,
    )
    manifest = replace(manifest, clients=(*manifest.clients, info))
    pixels, tokens = _check_inputs(opened)
    with staged(bundle) as folder:
        text = _append(opened, folder, manifest, newcomer, tokens)
        worst = 0.0
        for file, items in ((names.VISION_MODEL, pixels), (names.TEXT_MODEL, tokens)):
            model = onnx.load(folder / file)
            worst = max(worst, row_error(model, file, newcomer, index, manifest))
            worst = max(worst, adapter_error(model, file, newcomer, index, items, manifest))
        _require_unchanged(opened, folder, pixels, tokens, {old: old for old in range(index)})
        write_features(
            folder / names.TEXT_EMBEDS, np.concatenate([opened.text_embeds(), text[None]])
        )
        if manifest.general_words:
            mean = client_rows(known, manifest.embed_dim)["mean"]
            means = np.concatenate([opened.mean_embeds(), mean[None]])
            write_features(folder / names.MEAN_EMBEDS, means)
        has_equation = any(one.reference is not None for one in newcomer.banks)
        entry = {"method": EQUATION if has_equation else ROWS, "max_relative_error": worst}
        added = {**manifest.parity.get("added", {}), newcomer.id: entry}
        parity = {**manifest.parity, "added": added}
        seal(folder, bundle.resolve().name, manifest, parity)
    return Bundle.open(bundle)


def remove_client(bundle: Path, client: str) -> Bundle:
    """The bundle without a client; those behind it move up by one index.

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
    pixels, tokens = _check_inputs(opened)
    with staged(bundle) as folder:
        for file in TOWER_OF:
            _change_model(
                opened, folder, manifest, file, lambda _, values: np.delete(values, index, 0)
            )
        _copy_rest(opened, folder)
        rows = {info.index: number for number, info in enumerate(kept)}
        _require_unchanged(opened, folder, pixels, tokens, rows)
        write_features(folder / names.TEXT_EMBEDS, np.delete(opened.text_embeds(), index, 0))
        if manifest.general_words:
            write_features(folder / names.MEAN_EMBEDS, np.delete(opened.mean_embeds(), index, 0))
        parity = dict(old.parity)
        # What was said of a client that joined later leaves with it.
        if "added" in parity:
            parity["added"] = {k: v for k, v in parity["added"].items() if k != client}
        seal(folder, bundle.resolve().name, manifest, parity)
    return Bundle.open(bundle)


def without_client(history: History | None, client: str) -> History | None:
    """The history once `client` has left the bundle; what was sent stays sent."""
    if history is None:
        return None
    kept = {name: entry for name, entry in history.clients.items() if name != client}
    return replace(history, clients=kept)


# The changed models.


def _append(
    opened: Bundle,
    folder: Path,
    manifest: Manifest,
    newcomer: Newcomer,
    tokens: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Models with one more row.

    Returns the client's text features [C, D] at its default strength, by its text tower.
    """
    text: NDArray[np.float32] | None = None
    # The classifier comes last: it has the text features, which the new text tower computes.
    for file in (names.TEXT_MODEL, names.VISION_MODEL, names.CLASSIFIER_MODEL):
        # The classifier holds the image tower as a module of its own.
        prefix = "image." if file == names.CLASSIFIER_MODEL else ""
        own = {prefix + name: row for name, row in newcomer.rows[TOWER_OF[file]].items()}
        if text is not None:
            own[CLASSIFIER_TEXT] = (manifest.logit_scale * text).T
            own |= client_rows(newcomer.calibration, manifest.embed_dim)

        def appended(name: str, values: Array, own: Mapping[str, Array] = own) -> Array:
            return np.concatenate([values, own[name][None].astype(values.dtype)])

        _change_model(opened, folder, manifest, file, appended)
        if text is None:
            session = open_session(folder / file, "cpu")
            rows = np.full(len(tokens), len(manifest.clients) - 1)
            text = run_clients(session, tokens, rows)
    _copy_rest(opened, folder)
    assert text is not None
    strength = newcomer.default_strength
    if strength == 1:
        return text
    if manifest.prompt_of(1) != manifest.prompt:
        return mixed(opened.text_embeds()[0], text, strength)
    return run_clients(session, tokens, rows, np.full(len(tokens), strength, np.float32))


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
    for file in (names.TOKENIZER, names.LABELS, names.GENERAL_EMBEDS):
        if file in opened.manifest.files:
            shutil.copyfile(opened.file(file), folder / file)


# Checks.


def _check_inputs(opened: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of the sample, uint8 [N, H, W, 3], and the clients' class prompts, [C, context]."""
    manifest = opened.manifest
    dataset = load_dataset("cifar10-sample", verify=False)
    step = max(1, len(dataset.examples) // IMAGES)
    images = []
    for example in dataset.examples[::step][:IMAGES]:
        images.append(load_pixels(dataset.open_image(example), manifest.preprocessing))
    tokenizer = Tokenizer(opened.file(names.TOKENIZER), manifest.context_length)
    prompts = build_prompts(manifest.class_names, manifest.prompt_of(1))
    return np.stack(images), tokenizer(prompts)


def _require_unchanged(
    opened: Bundle, folder: Path, pixels: Array, tokens: Array, rows: Mapping[int, int]
) -> None:
    """Raises `ExportError` where a client's features changed; `rows` is old index -> new index."""
    for file in TOWER_OF:
        if file not in opened.manifest.files:
            continue
        items = tokens if file == names.TEXT_MODEL else pixels
        old, new = open_session(opened.file(file), "cpu"), open_session(folder / file, "cpu")
        for left, right in rows.items():
            expected = run_clients(old, items, np.full(len(items), left))
            found = run_clients(new, items, np.full(len(items), right))
            error = float(np.abs(expected - found).max())
            if not error <= UNCHANGED:
                raise ExportError(
                    f"{file}: the features of client number {left} would change by {error:.1e}. "
                    "Nothing was written; please report this."
                )
