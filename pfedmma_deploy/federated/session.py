"""A session: everything that a configuration names, loaded: backbone, images, clients, method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.backbone.activation_cache import (
    KIND,
    ActivationCache,
    ImageInputs,
    limit_bytes,
)
from pfedmma_deploy.backbone.clip import Backbone, class_texts, with_activations
from pfedmma_deploy.backbone.linear import Linear
from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.data.clients_file import federation_from_dict
from pfedmma_deploy.data.datasets import NoImages, SiteDataset, load_dataset
from pfedmma_deploy.data.doctor_data import warn_of_content
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.data.registry import REGISTERED
from pfedmma_deploy.data.samples import SAMPLE_NAMES
from pfedmma_deploy.errors import BackboneError, StoreError
from pfedmma_deploy.evaluation.accuracy import Scorer
from pfedmma_deploy.evaluation.calibrate import Calibrator
from pfedmma_deploy.evaluation.guard import Guardian
from pfedmma_deploy.federated.privacy import require_mean
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.methods.registry import make_method
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.types import Dataset, Federation


@dataclass(frozen=True)
class Session:
    """What training, evaluation, personalization and export all start from."""

    config: TrainConfig
    backbone: Backbone
    federation: Federation
    method: Method[Any, Any]
    pixels: PixelLoader
    images: ImageInputs
    """The examples as input of the models: pixels, or cached activations."""
    logit_scale: float
    """The configuration's, or the backbone's own."""
    is_site: bool = False
    """Whether the server's state is the part of it that this one client was sent, as at a site of a
    federation across machines (`pfedmma_deploy.fleet`)."""

    @cached_property
    def calibrator(self) -> Calibrator:
        """Fits the clients' calibrations; what they have in common is computed once."""
        return Calibrator(self.scorer())

    @cached_property
    def guardian(self) -> Guardian:
        """Chooses how strongly the clients' models count."""
        return Guardian(self.scorer(), self.config.guard)

    def scorer(self) -> Scorer:
        """Scores models on the test images."""
        return Scorer(
            self.backbone, self.federation, self.images, self.config.prompt, self.logit_scale
        )

    def sent_to(self, client: str, server: Tensors) -> Tensors:
        """What of the server's state `client` is sent."""
        return server if self.is_site else self.method.distribute(server, client)

    def on(self, federation: Federation) -> Session:
        """The same with other images: what was loaded of the model stays."""
        old = self.pixels
        pixels = PixelLoader(federation.dataset, old.size, old.resize_mode, old.interpolation)
        images = image_inputs(self.config, self.backbone, pixels)
        return replace(self, federation=federation, pixels=pixels, images=images)

    def build_adapter(self) -> Adapter:
        """The method's adapter in the initial state that all clients have in common."""
        generator = torch.Generator().manual_seed(self.config.seed)
        adapter: Adapter = self.method.build(self.backbone, generator)
        return adapter.to(self.backbone.device)

    def class_prompts(self, adapter: Adapter, labels: tuple[int, ...]) -> Prompts:
        """Names of the given classes, tokenized, with their cached activations."""
        names = self.federation.names(labels)
        texts = class_texts(self.backbone, names, self.config.prompt)
        if self.images.cache is not None:
            texts = with_activations(
                self.backbone, texts, adapter.first_block(self.backbone, "text")
            )
        return Prompts(texts=texts, row={label: i for i, label in enumerate(labels)})

    def local_training(self, **changes: Any) -> LocalTraining:
        """The configuration's local training, with `changes` to it."""
        config = self.config
        options: dict[str, Any] = {
            "epochs": config.local_epochs,
            "batch_size": config.batch_size,
            "optimizer": config.optimizer,
            "lr": config.lr,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
            "random_transform": config.transform == "random",
            "logit_scale": self.logit_scale,
        }
        return LocalTraining(**{**options, **changes})

    def full_precision(self) -> Session:
        """The same in fp32: what a model is without the `--autocast` that it was trained with."""
        backbone = replace(self.backbone, precision="none")
        images = image_inputs(self.config, backbone, self.pixels)
        return replace(self, backbone=backbone, images=images)

    def client_model(
        self, client: StoredClient, shared: Tensors, adapter: Adapter | None = None
    ) -> Adapter:
        """A stored client's model as trained: its own part, and the server's without a copy.

        Args:
            client: as the run stores it.
            shared: the server's state.
            adapter: put it in this one; None builds one.

        Raises:
            StoreError: the tensors do not fit the method; names one.
        """
        adapter = self.build_adapter() if adapter is None else adapter
        own, state = self.method.read_state(client.tensors, client.config.get("state"))
        tensors = {**self.sent_to(client.id, shared), **own}
        try:
            self.method.load_client(adapter, tensors, state)
        except ValueError as error:
            raise StoreError(
                f"The stored client {client.id} does not fit the method: {error}."
            ) from error
        return adapter

    def served_model(
        self, client: StoredClient, shared: Tensors, adapter: Adapter | None = None
    ) -> Adapter:
        """The model at the client's default strength; arguments and errors of `client_model`."""
        return self.client_model(client, shared, adapter).at(client.default_strength)

    def new_client_model(self, client: str, shared: Tensors) -> Adapter:
        """The model of a client that never took part: the initial state around the server's."""
        adapter = self.build_adapter()
        received = self.sent_to(client, shared)
        tensors = {**adapter.tensors(*KEPT), **received}
        self.method.load_client(adapter, tensors, self.method.initial_state())
        return adapter


def open_method(config: TrainConfig) -> Method[Any, Any]:
    """The configuration's method. Raises `UsageError` where the server's rule does not suit it."""
    method = make_method(config.method, config.parameters)
    aggregator = method.aggregator(config.aggregate)
    if config.dp_clip is not None:
        rule = f"--aggregate {config.aggregate}" if config.aggregate else f"--method {method.name}"
        require_mean(aggregator, rule)
    return method


def open_session(
    config: TrainConfig, progress: Progress | None = None, *, linear: Linear | None = None
) -> Session:
    """Load what `config` names and partition the data among clients.

    Args:
        config: the resolved options.
        progress: told of images that are read.
        linear: applies the blocks' weights, for benchmarks; None takes the faster library.

    Raises:
        PfedmmaError: anything that is missing or does not fit, before any training.
    """
    method = open_method(config)
    dataset = load_dataset(config.data, progress=progress)
    federation = build_federation(dataset, config.partition, seed=config.seed)
    return build_session(config, method, warn_of_content(federation), linear=linear)


def open_run_session(run: Run, *, linear: Linear | None = None) -> Session:
    """Load what a run was trained on: the same backbone, the same images, the same splits.

    `linear` is for benchmarks, as in `open_session`.

    Raises:
        PfedmmaError: the backbone's weights or the images are no longer those of the run.
    """
    config = run.config
    federation = federation_from_dict(_dataset_of(run), run.splits)
    method = make_method(config.method, config.parameters)
    is_site = run.role == "site"
    session = build_session(config, method, federation, linear=linear, is_site=is_site)
    require_fingerprint(session.backbone, run.manifest["backbone"], f"The run {run.folder}")
    return session


def _dataset_of(run: Run) -> Dataset:
    names: list[str] = run.manifest["class_names"]
    if run.role == "server":
        return NoImages(names)
    # The record names verified images only, so nothing has to be read to its end again.
    dataset = load_dataset(_data_of(run), verify=False)
    if run.role == "site":
        return SiteDataset(dataset, names, run.manifest["fleet"]["site"])
    return dataset


def build_session(
    config: TrainConfig,
    method: Method[Any, Any],
    federation: Federation,
    *,
    linear: Linear | None = None,
    is_site: bool = False,
) -> Session:
    """The session of data that are partitioned already; the backbone is loaded here.

    Raises:
        PfedmmaError: the backbone is absent or cannot be adapted.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(config.backbone, config.pretrained, device=device)
    backbone = replace(backbone, token_shortcuts=config.token_shortcuts, precision=config.autocast)
    if linear is not None:
        backbone = replace(backbone, linear=linear)
    if config.compile:
        backbone = replace(backbone, run_block=torch.compile(backbone.run_block))
    pixels = PixelLoader(
        federation.dataset, backbone.image_size, backbone.resize_mode, backbone.interpolation
    )
    return Session(
        config=config,
        backbone=backbone,
        federation=federation,
        method=method,
        pixels=pixels,
        images=image_inputs(config, backbone, pixels),
        logit_scale=config.logit_scale or backbone.logit_scale,
        is_site=is_site,
    )


def image_inputs(config: TrainConfig, backbone: Backbone, pixels: PixelLoader) -> ImageInputs:
    """Images as input of the models, with cached activations where the configuration has them."""
    cache = None
    if config.cache:
        cache = ActivationCache(backbone, cache_folder(KIND), limit_bytes())
    return ImageInputs(pixels, cache, views=config.views, seed=config.seed)


def path_from(folder: Path, data: str) -> str | None:
    """The way from a run's folder to its data; None for data that are not a path."""
    if data in SAMPLE_NAMES or data in REGISTERED or not Path(data).expanduser().exists():
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
