"""Everything a configuration names, loaded: backbone, images, clients, method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.images import ImageInputs
from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.backbone.prefixes import KIND, PrefixStore, limit_bytes
from pfedmma_deploy.backbone.products import Linear
from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.data.clients_file import federation_from_dict
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.doctor_data import warn_of_content
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.data.samples import SAMPLE_NAMES
from pfedmma_deploy.errors import BackboneError, StoreError
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.store.clients import StoredClient
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import Federation


@dataclass(frozen=True)
class Workspace:
    """What training, evaluation, personalization and export all start from."""

    config: TrainConfig
    backbone: Backbone
    federation: Federation
    method: Method
    pixels: PixelLoader
    images: ImageInputs
    """What the models are given of images: pixels, or kept prefixes."""
    logit_scale: float
    """The configuration's, or the backbone's own."""

    def build_adapter(self) -> Adapter:
        """The method's adapter in the initial state that all clients have in common."""
        generator = torch.Generator().manual_seed(self.config.seed)
        parameters = self.method.configure(self.config.parameters)
        return self.method.build(self.backbone, parameters, generator).to(self.backbone.device)


def open_workspace(
    config: TrainConfig, progress: Progress | None = None, *, linear: Linear | None = None
) -> Workspace:
    """Load what `config` names and divide the data among clients.

    Args:
        config: the resolved options.
        progress: told of images that are read.
        linear: what multiplies with the blocks' weights, for benchmarks; None takes the faster.

    Raises:
        PfedmmaError: anything that is missing or does not fit, before any training.
    """
    method = get_method(config.method)
    dataset = load_dataset(config.data, progress=progress)
    federation = warn_of_content(build_federation(dataset, config.partition, seed=config.seed))
    return _workspace(config, method, federation, linear)


def open_run_workspace(run: Run) -> Workspace:
    """Load what a run was trained on: the same backbone, the same images, the same splits.

    Raises:
        PfedmmaError: the backbone's weights or the images are no longer those of the run.
    """
    config = run.config
    # The record names verified images only, so nothing has to be read to its end again.
    dataset = load_dataset(_data_of(run), verify=False)
    federation = federation_from_dict(dataset, run.splits)
    workspace = _workspace(config, get_method(config.method), federation)
    require_fingerprint(workspace.backbone, run.manifest["backbone"], f"The run {run.folder}")
    return workspace


def full_precision(workspace: Workspace) -> Workspace:
    """The same in fp32: what a model is without the `--autocast` that it was trained with."""
    backbone = replace(workspace.backbone, precision="none")
    images = image_inputs(workspace.config, backbone, workspace.pixels)
    return replace(workspace, backbone=backbone, images=images)


def path_from(folder: Path, data: str) -> str | None:
    """The way from a run's folder to its data; None for data that are not a path."""
    if data in SAMPLE_NAMES or not Path(data).expanduser().exists():
        return None
    target = Path(data).expanduser().resolve()
    try:
        return os.path.relpath(target, folder.resolve())
    except ValueError:  # another drive
        return str(target)


def _data_of(run: Run) -> str:
    """The run's data: where they lie from its folder, else as `--data` was given.

    So a command may be given from anywhere, and both may be moved together.
    """
    way: str | None = run.manifest.get("data_path")
    if way is not None and (run.folder / way).exists():
        return str(run.folder / way)
    return run.config.data


def require_fingerprint(backbone: Backbone, recorded: Mapping[str, Any], owner: str) -> None:
    """Raises `BackboneError` where `backbone` is not the one that `owner` was made with."""
    if backbone.fingerprint != recorded["fingerprint"]:
        raise BackboneError(
            f"{owner} was made with {recorded['name']} ({recorded['pretrained']}) of fingerprint "
            f"{recorded['fingerprint'][:12]}, found {backbone.fingerprint[:12]}. Adapters fit only "
            "the weights that they were trained on: load those, or train again."
        )


def load_client_tensors(
    method: Method, client: StoredClient, shared: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All adapter tensors of a client: its own part, and the server's where it has no copy."""
    return {**method.distribute(shared, client.id), **client.tensors}


def load_client_adapter(
    method: Method, adapter: Adapter, client: StoredClient, shared: dict[str, Tensor]
) -> None:
    """Put a stored client into `adapter`. Raises `StoreError` naming what does not fit."""
    try:
        adapter.load(load_client_tensors(method, client, shared))
    except ValueError as error:
        raise StoreError(
            f"The stored client {client.id} does not fit the method: {error}."
        ) from error


def image_inputs(config: TrainConfig, backbone: Backbone, pixels: PixelLoader) -> ImageInputs:
    """What the models are given of images, with the prefix cache where the configuration has it."""
    store = None
    if config.cache:
        folder = cache_folder(KIND)
        store = PrefixStore(backbone, folder, limit_bytes())
    return ImageInputs(pixels, store, views=config.views, seed=config.seed)


def _workspace(
    config: TrainConfig, method: Method, federation: Federation, linear: Linear | None = None
) -> Workspace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(config.backbone, config.pretrained, device=device)
    backbone = replace(backbone, shortcuts=config.token_shortcuts, precision=config.autocast)
    if linear is not None:
        backbone = replace(backbone, linear=linear)
    if config.compile:
        backbone = replace(backbone, run_block=torch.compile(backbone.run_block))
    pixels = PixelLoader(
        federation.dataset, backbone.image_size, backbone.resize_mode, backbone.interpolation
    )
    return Workspace(
        config=config,
        backbone=backbone,
        federation=federation,
        method=method,
        pixels=pixels,
        images=image_inputs(config, backbone, pixels),
        logit_scale=config.logit_scale or backbone.logit_scale,
    )
