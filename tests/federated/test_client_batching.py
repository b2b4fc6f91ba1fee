"""Clients trained in one pass come to what each comes to alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.backbone.activation_cache import ActivationCache, ImageInputs
from pfedmma_deploy.backbone.clip import Backbone, class_texts, with_activations
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.federated.client_batching import clients_per_pass
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.methods.fedotp import FedOTP
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.methods.pfedpt import PFedPT
from pfedmma_deploy.methods.plora import PLoRA
from pfedmma_deploy.methods.promptfl import PromptFL
from pfedmma_deploy.methods.registry import METHODS
from pfedmma_deploy.methods.zero_shot import ZeroShot
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.types import ClientData
from tests.images import MemoryDataset
from tests.tinyclip import tiny_backbone

OPTIONS = LocalTraining(
    epochs=2,
    batch_size=4,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    random_transform=False,
    logit_scale=20.0,
)
ROUNDS = (["a", "b", "c"], ["a", "c"], ["c", "b", "a"])
"""Of 9, 3 and 6 images: 6, 2 and 4 steps, the last batches of 1, 3 and 2 images."""


def clients() -> tuple[MemoryDataset, list[ClientData]]:
    dataset = MemoryDataset(("cat", "dog", "ship"), [i % 3 for i in range(18)])
    parts = dataset.examples[:9], dataset.examples[9:12], dataset.examples[12:]
    return dataset, [
        ClientData(name, (0, 1, 2), train=part, val=(), test=())
        for name, part in zip("abc", parts, strict=True)
    ]


def double_backbone() -> Backbone:
    backbone = tiny_backbone()
    return replace(backbone, model=copy.deepcopy(backbone.model).double())


def federate(
    folder: Path,
    backbone: Backbone,
    *,
    together: bool,
    method: Method[Any, Any] | None = None,
    cache: ActivationCache | None = None,
    rounds: Sequence[list[str]] = ROUNDS,
) -> tuple[dict[str, Tensor], Checkpoint]:
    """Several rounds in which not all clients take part; the server's state and the clients'."""
    dataset, members = clients()
    method = method or PFedMMA.configure({"bottleneck_dim": 4, "scale": 0.1})
    generator = torch.Generator().manual_seed(1)
    adapter = method.build(backbone, generator).to(backbone.visual.proj.dtype)
    texts = class_texts(backbone, dataset.class_names, "a photo of a {}.")
    if cache is not None:
        texts = with_activations(backbone, texts, adapter.first_block(backbone, "text"))
    checkpoint = Checkpoint(folder)
    engine = InProcessEngine(
        backbone=backbone,
        method=method,
        adapter=adapter,
        clients=members,
        images=ImageInputs(PixelLoader(dataset, 16), cache),
        prompts=Prompts(texts, {0: 0, 1: 1, 2: 2}),
        options=OPTIONS,
        checkpoint=checkpoint,
        seed=5,
        client_batching=together,
    )
    shared = method.start(adapter, "abc")
    for round, chosen in enumerate(rounds):
        reports = list(engine.run_round(round, chosen, shared))
        assert [report.update.client for report in reports] == chosen
        shared = method.aggregator().combine([report.update for report in reports], shared)
        checkpoint.commit(round, shared, {})
    return shared, checkpoint


def largest_difference(
    one: tuple[dict[str, Tensor], Checkpoint],
    other: tuple[dict[str, Tensor], Checkpoint],
    *,
    momentum: bool = False,
) -> float:
    """Over the shared tensors and every client's own, and on request its momentum, which holds
    sums of gradients and is many times as large.
    """
    pairs = [(one[0], other[0])]
    for client in "abc":
        left, right = one[1].load_client(client), other[1].load_client(client)
        assert left is not None
        assert right is not None
        assert left.optimizer.keys() == right.optimizer.keys()
        pairs.append((left.own, right.own))
        if momentum:
            pairs.append((left.optimizer, right.optimizer))
    return max(float((a[n] - b[n]).abs().max()) for a, b in pairs for n in a)


def test_equal_to_one_after_the_other_in_float64(tmp_path: Path) -> None:
    alone = federate(tmp_path / "alone", double_backbone(), together=False)
    cohort = federate(tmp_path / "cohort", double_backbone(), together=True)
    moved = federate(tmp_path / "moved", double_backbone(), together=True, rounds=ROUNDS[:1])
    assert largest_difference(alone, cohort, momentum=True) < 1e-10
    assert largest_difference(moved, cohort) > 1e-3, "the rounds after the first changed nothing"


def test_equal_to_one_after_the_other_in_float32(tmp_path: Path) -> None:
    alone = federate(tmp_path / "alone", tiny_backbone(), together=False)
    cohort = federate(tmp_path / "cohort", tiny_backbone(), together=True)
    assert 0 < largest_difference(alone, cohort) < 1e-5


@pytest.mark.parametrize("together", [False, True])
def test_cached_activations_change_nothing(tmp_path: Path, together: bool) -> None:
    backbone = tiny_backbone()
    plain = federate(
        tmp_path / "plain", replace(backbone, token_shortcuts=False), together=together
    )
    store = ActivationCache(backbone, tmp_path / "kept", 1 << 30)
    kept = federate(tmp_path / "kept-run", backbone, together=together, cache=store)
    assert list((tmp_path / "kept").glob("*/*.npy"))
    assert largest_difference(plain, kept) < 1e-5


def test_clients_do_not_touch_each_other(tmp_path: Path) -> None:
    """What a has become does not depend on who trained beside it."""
    many = federate(tmp_path / "many", double_backbone(), together=True, rounds=[["a", "b", "c"]])
    few = federate(tmp_path / "few", double_backbone(), together=True, rounds=[["a", "b"]])
    left, right = many[1].load_client("a"), few[1].load_client("a")
    assert left is not None
    assert right is not None
    assert all((left.own[n] - right.own[n]).abs().max() < 1e-12 for n in left.own)


def per_pass(
    method: Method[Any, Any], images: int = 4, options: LocalTraining = OPTIONS, names: int = 3
) -> int:
    backbone = tiny_backbone()
    adapter = method.build(backbone, torch.Generator().manual_seed(0))
    texts = class_texts(backbone, ["cat", "dog", "ship"][:names], "a photo of a {}.")
    return clients_per_pass(method, backbone, adapter, options, images, texts)


def test_what_trains_together() -> None:
    """Plain epochs of plain SGD, with a loss that does not look at values."""
    assert per_pass(PFedMMA()) > 1
    assert per_pass(PromptFL()) > 1
    assert per_pass(PFedMMA(), options=replace(OPTIONS, optimizer="adam")) == 1
    assert per_pass(ZeroShot()) == 1, "nothing to train"
    assert per_pass(PFedPT()) == 1, "training of its own"
    assert per_pass(FedOTP()) == 1, "stops when the transport has settled"
    assert per_pass(PLoRA()) == 1, "dropout"


def test_passes_on_a_cpu_stay_in_its_caches() -> None:
    """5 tokens of width 32 an image, 4 x as wide in the MLP, 4 bytes each: 2,560 bytes an image."""
    assert per_pass(PFedMMA(), images=1000) == 7
    assert per_pass(PFedMMA(), images=4000) == 1
    assert per_pass(PFedMMA(), images=100_000) == 1, "one client trains in any case"


BATCHED = [
    method
    for method in METHODS.values()
    if method.is_batchable and method.is_trained and method.train_client is Method.train_client
]


@pytest.mark.parametrize("method", BATCHED, ids=lambda method: method.name)
def test_every_plain_method_trains_the_same_together(
    method: type[Method[Any, Any]], tmp_path: Path
) -> None:
    """One by one and in one pass, float64; the clients have different numbers of steps."""
    given = {"scale": 0.1} if "scale" in method.Parameters.__dataclass_fields__ else {}
    given |= {"mu": 0.5} if method is PromptFL else {}
    found = []
    for together in (False, True):
        backbone, folder = double_backbone(), tmp_path / str(together)
        found.append(federate(folder, backbone, together=together, method=method.configure(given)))
    assert largest_difference(found[0], found[1]) < 1e-9
