"""A client at work on a few images in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.methods.base import ClientRun, Method, Tensors
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.types import ClientData, Scope
from tests.images import MemoryDataset
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

LABELS = (0, 1, 2, 0, 1, 2)
EVERYTHING = frozenset({Scope.LOCAL, Scope.SHARED})


def client_data(*, captions: bool = False) -> tuple[MemoryDataset, ClientData]:
    """Six images of three classes, four to train on and two held out."""
    dataset = MemoryDataset(inputs.NAMES, LABELS)
    if captions:
        dataset.examples = tuple(
            replace(example, caption=f"{example.key} shows {inputs.NAMES[example.label]}")
            for example in dataset.examples
        )
    train, val = dataset.examples[:4], dataset.examples[4:]
    return dataset, ClientData("a", (0, 1, 2), train=train, val=val, test=())


def client_run(
    adapter: Adapter,
    method: Method[Any, Any],
    *,
    captions: bool = False,
    scopes: frozenset[Scope] = EVERYTHING,
    received: Tensors | None = None,
    round: int | None = 0,
    lr: float = 0.05,
    state: Any = None,
) -> ClientRun[Any]:
    """The adapter on that client, plain SGD, one epoch of two batches."""
    dataset, client = client_data(captions=captions)
    torch.set_num_threads(1)
    return ClientRun(
        backbone=tiny_backbone(),
        adapter=adapter,
        loss=method.loss,
        client=client,
        images=ImageInputs(PixelLoader(dataset, 16)),
        prompts=Prompts(inputs.texts(), {label: label for label in range(3)}),
        options=LocalTraining(
            epochs=1,
            batch_size=2,
            lr=lr,
            momentum=0.0,
            weight_decay=0.0,
            random_transform=False,
            logit_scale=inputs.LOGIT_SCALE,
            scopes=scopes,
        ),
        received=received or {},
        optimizer={},
        rng=np.random.default_rng([0, 0, 1]),
        state=method.initial_state() if state is None else state,
        round=round,
    )
