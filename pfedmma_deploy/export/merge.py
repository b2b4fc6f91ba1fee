"""`pfedmma export --format open_clip`: stock CLIP weights, where a method merges into them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, class_texts
from pfedmma_deploy.backbone.loading import CONFIG_FILE, MODEL_NAME
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.bundle import ExportReport
from pfedmma_deploy.export.parity import Parity
from pfedmma_deploy.export.run import parity_examples
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime.bundle import checked_strength
from pfedmma_deploy.store.files import json_bytes, tensor_bytes, write_bytes
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.types import TOWERS, Tower

BLOCKS: Final[Mapping[Tower, str]] = {
    "image": "visual.transformer.resblocks",
    "text": "transformer.resblocks",
}
"""Where open_clip keeps the blocks of a tower."""


def refuse_open_clip(method: type[Method[Any, Any]]) -> NoReturn:
    """Say why a method's clients cannot become plain open_clip weights.

    Raises:
        ExportError: always.
    """
    reason = method.merge_blocker or (
        f"what it trains ({method.trained}) is more than a change of the weights that CLIP has "
        "already. "
    )
    other = (
        " Export ONNX instead: `pfedmma export`, which serves all clients from one file."
        if not method.export_blocker
        else ""
    )
    raise ExportError(
        f"The clients of {method.name} cannot be written as open_clip weights: {reason}Only "
        f"methods that change weights (zero-shot, plora, tap) merge exactly.{other}"
    )


def merge(backbone: Backbone, adapter: Adapter) -> dict[str, Tensor]:
    """The backbone's state dict with an adapter's changes of attention weights in it.

    Its keys are open_clip's own; `adapter.task` says for which task, `adapter.strength` how much of
    the changes.
    """
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with torch.no_grad():
        for tower in TOWERS:
            for block in range(backbone.depth(tower)):
                name = f"{BLOCKS[tower]}.{block}.attn.in_proj_weight"
                state[name] = adapter.scaled_attention(tower, block, state[name])
    return state


def export_open_clip(
    run: Run,
    out: Path,
    *,
    clients: Sequence[str] | None = None,
    strength: float | None = None,
    session: Session | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `<client>.safetensors` and `<client>.json` for every client of a finished run.

    A client that knows several tasks has one pair per task, `<client>-<task>`. Every file is loaded
    by `open_clip.create_model` and gives features bit-identical to the trained client's, or it is
    not kept. The JSON says how to load it.

    Args:
        run: the run.
        out: folder of the files.
        clients: ids; None takes all.
        strength: how much of the changes is merged, 0 (plain CLIP) to 1.5, 1 being as trained;
            None takes each client's own default.
        session: the run's, where it is open already.
        progress: told of the clients.

    Raises:
        UsageError: an unknown client, or a strength beyond its range.
        ExportError: the method does not merge, or a file does not give the same features.
    """
    started = time.perf_counter()
    run.require_complete()
    ids = run.client_ids if clients is None else clients
    # Before anything is written: an id may be mistyped.
    chosen = [run.load_client(client) for client in ids]
    session = (session or open_run_session(run)).full_precision()
    if not session.method.merges:
        refuse_open_clip(type(session.method))
    shared = run.load_shared()
    given = None if strength is None else checked_strength(strength)
    trained = session.build_adapter().eval()
    known = run.manifest["class_names"]
    texts = class_texts(session.backbone, known, session.config.prompt)
    pixels = session.pixels.load(parity_examples(session))
    files: dict[str, int] = {}
    for stored in (progress or Silent()).track(chosen, "clients merged", len(chosen)):
        amount = stored.default_strength if given is None else given
        adapter = session.client_model(stored, shared, trained).at(amount)
        tasks = adapter.tasks or ("classify",)
        for task in tasks:
            adapter.task = task
            name = stored.id if len(tasks) == 1 else f"{stored.id}-{task}"
            path = out / f"{name}.safetensors"
            write_bytes(path, tensor_bytes(merge(session.backbone, adapter)))
            _require_equal(session.backbone, adapter, path, pixels, texts)
            card = {"strength": amount, **_card(session, run, stored, task, path)}
            write_bytes(path.with_suffix(".json"), json_bytes(card))
            for written in (path, path.with_suffix(".json")):
                files[written.name] = written.stat().st_size
    if session.backbone.name == MODEL_NAME:
        config = CONFIG_FILE.read_bytes()
        write_bytes(out / CONFIG_FILE.name, config)
        files[CONFIG_FILE.name] = len(config)
    # Bit-identical features choose the same classes.
    parity = Parity(0.0, 100.0, len(pixels))
    return ExportReport(out, tuple(ids), files, parity, time.perf_counter() - started)


def load_open_clip(backbone: Backbone, path: Path) -> Backbone:
    """The backbone with the weights of a file, loaded strictly by open_clip."""
    model = open_clip.create_model(
        backbone.name,
        pretrained=str(path),
        force_quick_gelu=backbone.activation == "quick_gelu",
        device=backbone.device,
    )
    return replace(backbone, model=model.eval().requires_grad_(False))


@torch.inference_mode()
def _require_equal(
    backbone: Backbone, adapter: Adapter, path: Path, pixels: NDArray[Any], texts: ClassTexts
) -> None:
    """Raises `ExportError`, and takes the file away, where one feature differs in one bit."""
    loaded = load_open_clip(backbone, path)
    images = torch.from_numpy(pixels)
    found = loaded.encode_image(images), loaded.encode_text(texts.prompts)
    expected = adapter.encode_image(backbone, images), adapter.encode_text(backbone, texts)
    error = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    if error != 0:
        path.unlink()
        raise ExportError(
            f"{path.name} does not give the features of the trained client: they differ by up to "
            f"{error:.1e}, expected 0. It was not kept; export from the run's own backbone."
        )


def _card(
    session: Session, run: Run, stored: StoredClient, task: str, path: Path
) -> dict[str, Any]:
    """What the file is and how it is loaded."""
    backbone, config = session.backbone, stored.config
    return {
        "client": stored.id,
        "task": task,
        "method": session.method.name,
        "run": run.folder.resolve().name,
        "open_clip": {
            "model_name": backbone.name,
            "pretrained": path.name,
            "force_quick_gelu": backbone.activation == "quick_gelu",
            "image_mean": list(backbone.mean),
            "image_std": list(backbone.std),
            "image_interpolation": backbone.interpolation,
            "image_resize_mode": backbone.resize_mode,
        },
        "usage": (
            "open_clip.create_model_and_transforms(**open_clip) with the table above"
            + (
                f", after open_clip.add_model_config('{CONFIG_FILE.name}')"
                if backbone.name == MODEL_NAME
                else ""
            )
        ),
        "backbone_fingerprint": backbone.fingerprint,
        "prompt": config["prompt"],
        "logit_scale": config["logit_scale"],
        "class_names": run.manifest["class_names"],
        "seen": config["seen"],
        "base": config["base"],
        "novel": config["novel"],
    }
