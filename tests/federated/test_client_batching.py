"""Clients trained in one pass come to what each comes to alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Frozen
from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.backbone.activation_cache import ActivationCache, ImageInputs
from pfedmma_deploy.backbone.clip import Backbone, class_texts, with_activations
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.federated.client_batching import cohort_size, is_stackable
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.types import ClientData, Scope
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
    prefixes: ActivationCache | None = None,
    rounds: Sequence[list[str]] = ROUNDS,
) -> tuple[dict[str, Tensor], Checkpoint]:
    """Several rounds in which not all clients take part; the server's state and the clients'."""
    dataset, members = clients()
    adapter = MultiModalAdapter(
        {"image": 32, "text": 24},
        {"image": 3, "text": 3},
        4,
        0.1,
        torch.Generator().manual_seed(1),
    ).to(backbone.visual.proj.dtype)
    texts = class_texts(backbone, dataset.class_names, "a photo of a {}.")
    if prefixes is not None:
        texts = with_activations(backbone, texts, adapter.first_block(backbone, "text"))
    engine = InProcessEngine(
        backbone=backbone,
        method=PFedMMA,
        adapter=adapter,
        clients=members,
        images=ImageInputs(PixelLoader(dataset, 16), prefixes),
        prompts=Prompts(texts, {0: 0, 1: 1, 2: 2}),
        options=OPTIONS,
        checkpoint=Checkpoint(folder),
        seed=5,
        together=together,
    )
    shared = adapter.tensors(Scope.SHARED)
    for round, chosen in enumerate(rounds):
        reports = list(engine.run_round(round, chosen, shared))
        assert [report.update.client for report in reports] == chosen
        shared = PFedMMA.aggregate([report.update for report in reports], shared)
        engine.checkpoint.commit(round, shared, {})
    return shared, engine.checkpoint


def largest_difference(
    one: tuple[dict[str, Tensor], Checkpoint],
    other: tuple[dict[str, Tensor], Checkpoint],
    *,
    momentum: bool = False,
) -> float:
    """Over the shared tensors and every client's own, and on request its momentum, which holds
    sums of gradients and is many times as large.
    """
    worst = max(float((one[0][n] - other[0][n]).abs().max()) for n in one[0])
    for client in "abc":
        left, right = one[1].load_client(client), other[1].load_client(client)
        assert left is not None
        assert right is not None
        assert left.optimizer.keys() == right.optimizer.keys()
        pairs = [(left.own, right.own)]
        if momentum:
            pairs.append((left.optimizer, right.optimizer))
        worst = max(worst, *(float((a[n] - b[n]).abs().max()) for a, b in pairs for n in a))
    return worst


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
def test_kept_prefixes_change_nothing(tmp_path: Path, together: bool) -> None:
    backbone = tiny_backbone()
    plain = federate(
        tmp_path / "plain", replace(backbone, token_shortcuts=False), together=together
    )
    store = ActivationCache(backbone, tmp_path / "kept", 1 << 30)
    kept = federate(tmp_path / "kept-run", backbone, together=together, prefixes=store)
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


def test_what_can_be_stacked() -> None:
    backbone = tiny_backbone()
    adapter = PFedMMA.build(backbone, PFedMMA.parameters(), torch.Generator().manual_seed(0))
    assert is_stackable(PFedMMA, adapter, OPTIONS)
    assert not is_stackable(PFedMMA, Frozen(), OPTIONS)
    assert not is_stackable(PFedMMA, adapter, replace(OPTIONS, optimizer="adam"))
    own_loss = replace(PFedMMA, loss=lambda backbone, adapter, batch: batch.labels.sum())
    assert not is_stackable(own_loss, adapter, OPTIONS)


def test_cohorts_on_a_cpu_stay_in_its_caches() -> None:
    """5 tokens of width 32 an image, 4 x as wide in the MLP, 4 bytes each: 2,560 bytes an image."""
    backbone = tiny_backbone()
    adapter = PFedMMA.build(backbone, PFedMMA.parameters(), torch.Generator().manual_seed(0))
    texts = class_texts(backbone, ["cat", "dog", "ship"], "a photo of a {}.")
    assert cohort_size(backbone, adapter, 1000, texts) == 7
    assert cohort_size(backbone, adapter, 4000, texts) == 1
    assert cohort_size(backbone, adapter, 100_000, texts) == 1, "one client trains in any case"
