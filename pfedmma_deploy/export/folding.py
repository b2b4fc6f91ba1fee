"""`pfedmma export --format open_clip`: stock CLIP weights, where a method folds into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone import tiny
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.texts import ClassTexts, class_texts
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.run import chosen_clients, parity_examples
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.clients import StoredClient
from pfedmma_deploy.store.files import json_bytes, tensor_bytes, write_bytes
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.store.workspace import (
    Workspace,
    full_precision,
    load_client_adapter,
    open_run_workspace,
)
from pfedmma_deploy.types import TOWERS, Tower

__all__ = ["FoldReport", "export_open_clip", "fold", "refuse_open_clip"]

BLOCKS: Final[Mapping[Tower, str]] = {
    "image": "visual.transformer.resblocks",
    "text": "transformer.resblocks",
}
"""Where open_clip keeps the blocks of a tower."""


@dataclass(frozen=True)
class FoldReport:
    """The files that were written; each was loaded back by open_clip and compared."""

    bundle: str
    """Their folder."""
    clients: tuple[str, ...]
    files: dict[str, int]
    """Bytes by name."""
    max_abs_error: float
    """Largest difference of a feature between the trained client and the file: 0."""
    images: int
    """Images that it was looked for on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `pfedmma export --json` prints them."""
        values = asdict(self)
        error, images = values.pop("max_abs_error"), values.pop("images")
        parity = {"max_abs_error": error, "top1_agreement": 100.0, "images": images}
        return {**values, "clients": list(self.clients), "parity": parity}


def refuse_open_clip(method: Method) -> NoReturn:
    """Say why a method's clients cannot become plain open_clip weights.

    Raises:
        ExportError: always.
    """
    reason = (
        f"what it trains ({method.trained}) is more than a change of the weights that CLIP has "
        "already. "
    )
    if method.name in ("pfedmma", "local", "fedavg-mma"):
        reason = (
            "its adapter computes s * up(relu(W relu(down(h)))) beside each block, and what passes "
            "a ReLU is no matrix that could be added to the block's own. "
        )
    other = (
        " Export ONNX instead: `pfedmma export`, which serves all clients from one file."
        if method.exportable
        else ""
    )
    raise ExportError(
        f"The clients of {method.name} cannot be written as open_clip weights: {reason}Only "
        f"methods that change weights (zero-shot, plora, tap) fold exactly.{other}"
    )


def fold(backbone: Backbone, adapter: Adapter) -> dict[str, Tensor]:
    """The backbone's state dict with an adapter's changes of attention weights in it.

    Its keys are open_clip's own; `adapter.task` says for which task.
    """
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with torch.no_grad():
        for tower in TOWERS:
            for block in range(backbone.depth(tower)):
                name = f"{BLOCKS[tower]}.{block}.attn.in_proj_weight"
                state[name] = adapter.attention(tower, block, state[name])
    return state


def export_open_clip(
    run: Run,
    out: Path,
    *,
    clients: Sequence[str] | None = None,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> FoldReport:
    """Write `<client>.safetensors` and `<client>.json` for every client of a finished run.

    A client that knows several tasks has one pair per task, `<client>-<task>`. Every file is loaded
    by `open_clip.create_model` and gives the trained client's features to the bit, or it is not
    kept. The JSON says how to load it.

    Args:
        run: the run.
        out: folder of the files.
        clients: ids; None takes all.
        workspace: the run's, where it is open already.
        progress: told of the clients.

    Raises:
        UsageError: an unknown client.
        ExportError: the method does not fold, or a file does not give the same features.
    """
    run.require_complete()
    ids = chosen_clients(run, clients)
    workspace = full_precision(workspace or open_run_workspace(run))
    if not workspace.method.folds:
        refuse_open_clip(workspace.method)
    shared, adapter = run.load_shared(), workspace.build_adapter().eval()
    known = run.manifest["class_names"]
    texts = class_texts(workspace.backbone, known, workspace.config.prompt)
    pixels = workspace.pixels.load(parity_examples(workspace))
    files: dict[str, int] = {}
    for client in (progress or Silent()).track(ids, "clients folded", len(ids)):
        stored = run.load_client(client)
        load_client_adapter(workspace.method, adapter, stored, shared)
        for name, task in _named_tasks(client, adapter):
            adapter.task = task
            path = out / f"{name}.safetensors"
            write_bytes(path, tensor_bytes(fold(workspace.backbone, adapter)))
            _require_equal(workspace.backbone, adapter, path, pixels, texts)
            card = _card(workspace, run, stored, task, path)
            write_bytes(path.with_suffix(".json"), json_bytes(card))
            for written in (path, path.with_suffix(".json")):
                files[written.name] = written.stat().st_size
    if workspace.backbone.name == tiny.MODEL_NAME:
        config = tiny.CONFIG_FILE.read_bytes()
        write_bytes(out / tiny.CONFIG_FILE.name, config)
        files[tiny.CONFIG_FILE.name] = len(config)
    return FoldReport(str(out), tuple(ids), files, 0.0, len(pixels))


def _named_tasks(client: str, adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Name of the file and task, for each task that the client knows."""
    tasks = adapter.tasks or ("classify",)
    for task in tasks:
        yield (client if len(tasks) == 1 else f"{client}-{task}"), task


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
    workspace: Workspace, run: Run, stored: StoredClient, task: str, path: Path
) -> dict[str, Any]:
    """What the file is and how it is loaded."""
    backbone, config = workspace.backbone, stored.config
    return {
        "client": stored.id,
        "task": task,
        "method": workspace.method.name,
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
                f", after open_clip.add_model_config('{tiny.CONFIG_FILE.name}')"
                if backbone.name == tiny.MODEL_NAME
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
