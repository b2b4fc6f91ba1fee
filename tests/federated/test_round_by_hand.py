"""One federated round with two clients, recomputed in float64 from the equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.federated.engine import ClientReport, InProcessEngine
from pfedmma_deploy.methods.aggregation import Mean, Update
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.types import ClientData, Example, Scope
from tests import reference
from tests.images import MemoryDataset
from tests.tinyclip import tiny_backbone

SCALE, LR, MOMENTUM, DECAY, LOGIT_SCALE, SEED = 0.05, 0.01, 0.9, 5e-4, 20.0, 3
OPTIONS = LocalTraining(
    epochs=2,
    batch_size=4,
    lr=LR,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    random_transform=False,
    logit_scale=LOGIT_SCALE,
)


def federation() -> tuple[MemoryDataset, list[ClientData]]:
    """Two clients, of 6 and of 3 images, three classes."""
    dataset = MemoryDataset(("cat", "dog", "ship"), [0, 1, 0, 1, 0, 1, 2, 2, 0])
    first, second = dataset.examples[:6], dataset.examples[6:]
    return dataset, [
        ClientData("a", (0, 1), train=first, val=(), test=()),
        ClientData("b", (0, 2), train=second, val=(), test=()),
    ]


def new_engine(folder: Path) -> tuple[InProcessEngine, MultiModalAdapter]:
    dataset, clients = federation()
    backbone = tiny_backbone()
    generator = torch.Generator().manual_seed(SEED)
    adapter = MultiModalAdapter(
        {"image": 32, "text": 24}, {"image": 3, "text": 3}, 4, SCALE, generator
    )
    texts = class_texts(backbone, dataset.class_names, "a photo of a {}.")
    engine = InProcessEngine(
        backbone=backbone,
        method=PFedMMA(),
        adapter=adapter,
        clients=clients,
        images=ImageInputs(PixelLoader(dataset, 16)),
        prompts=Prompts(texts, {0: 0, 1: 1, 2: 2}),
        options=OPTIONS,
        checkpoint=Checkpoint(folder),
        seed=SEED,
        client_batching=False,
    )
    return engine, adapter


def train_by_hand(
    state: dict[str, Tensor],
    client: ClientData,
    index: int,
    pixels: Tensor,
    tokens: Tensor,
    round: int,
) -> dict[str, Tensor]:
    """SGD with momentum and decay as its authors wrote it: v = mu v + g + lambda w; w -= lr v."""
    weights = {n: v.double() for n, v in tiny_backbone().model.state_dict().items()}
    labels = torch.tensor([example.label for example in client.train])
    rng = np.random.default_rng([SEED, round, index + 1])
    velocity = {name: torch.zeros_like(value) for name, value in state.items()}
    for _ in range(2):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), 4):
            rows = torch.from_numpy(order[start : start + 4])
            step = reference.gradients(
                pixels[rows], labels[rows], tokens, weights, state, SCALE, LOGIT_SCALE
            )
            for name in state:
                velocity[name] = MOMENTUM * velocity[name] + step[name] + DECAY * state[name]
                state[name] = state[name] - LR * velocity[name]
    return state


def test_one_round_by_hand(tmp_path: Path) -> None:
    engine, adapter = new_engine(tmp_path)
    dataset, clients = federation()
    initial = {**adapter.tensors(Scope.LOCAL), **adapter.tensors(Scope.SHARED)}
    reports = list(engine.run_round(0, ["a", "b"], adapter.tensors(Scope.SHARED)))
    shared = PFedMMA().aggregator().combine([report.update for report in reports], {})

    expected = []
    for i, client in enumerate(clients):
        pixels = torch.stack([torch.from_numpy(dataset.pixels[e.key]) for e in client.train])
        start = {name: value.double() for name, value in initial.items()}
        expected.append(train_by_hand(start, client, i, pixels, engine.prompts.texts.prompts, 0))
    for name, value in shared.items():
        by_hand = expected[0][name] * (6 / 9) + expected[1][name] * (3 / 9)
        torch.testing.assert_close(value.double(), by_hand, atol=2e-6, rtol=1e-4)
        assert (value - initial[name]).abs().max() > 1e-4, f"{name} did not move"
    checkpoint_of(engine).commit(0, shared, {})
    for client, own in zip(clients, expected, strict=True):
        state = engine.checkpoint.load_client(client.id)
        assert state is not None
        for name, value in state.own.items():
            torch.testing.assert_close(value.double(), own[name], atol=2e-6, rtol=1e-4)


def checkpoint_of(engine: InProcessEngine) -> Checkpoint:
    assert isinstance(engine.checkpoint, Checkpoint)
    return engine.checkpoint


def run_round(engine: InProcessEngine, round: int, ids: list[str]) -> list[ClientReport]:
    checkpoint = checkpoint_of(engine)
    shared = checkpoint.load_shared() or engine.adapter.tensors(Scope.SHARED)
    reports = list(engine.run_round(round, ids, shared))
    checkpoint.commit(round, Mean().combine([r.update for r in reports], {}), {})
    return reports


def test_momentum_belongs_to_a_client(tmp_path: Path) -> None:
    """What client a does in a round leaves no trace in the local state of client b."""
    alone, _ = new_engine(tmp_path / "alone")
    both, _ = new_engine(tmp_path / "both")
    run_round(alone, 0, ["b"])
    run_round(both, 0, ["a", "b"])
    first, second = alone.checkpoint.load_client("b"), both.checkpoint.load_client("b")
    assert first is not None
    assert second is not None
    assert all(torch.equal(first.own[n], second.own[n]) for n in first.own)
    assert all(torch.equal(first.optimizer[n], second.optimizer[n]) for n in first.optimizer)


def test_momentum_survives_between_rounds(tmp_path: Path) -> None:
    engine, _ = new_engine(tmp_path)
    run_round(engine, 0, ["a"])
    before = engine.checkpoint.load_client("a")
    assert before is not None
    names = {f"{name}/momentum_buffer" for name, _ in engine.adapter.named_parameters()}
    assert before.optimizer.keys() == names
    assert any(value.abs().max() > 0 for value in before.optimizer.values())


def test_nothing_local_leaves_a_client(tmp_path: Path) -> None:
    engine, adapter = new_engine(tmp_path)
    (report,) = run_round(engine, 0, ["a"])
    scopes = adapter.scopes()
    assert {scopes[name] for name in report.update.shared} == {Scope.SHARED}
    assert len(report.update.shared) == sum(s is Scope.SHARED for s in scopes.values())


def test_any_client_can_be_replayed_alone(tmp_path: Path) -> None:
    """Randomness is (seed, round, client): the others and their order do not matter."""
    one, _ = new_engine(tmp_path / "one")
    two, _ = new_engine(tmp_path / "two")
    forward = {r.update.client: r.update for r in run_round(one, 0, ["a", "b"])}
    backward = {r.update.client: r.update for r in run_round(two, 0, ["b", "a"])}
    for client, update in forward.items():
        for name, value in update.shared.items():
            assert torch.equal(value, backward[client].shared[name])


def test_weighted_mean() -> None:
    updates = [
        Update("b", {"w": torch.tensor([1.0, 2.0])}, 1),
        Update("a", {"w": torch.tensor([5.0, 6.0])}, 3),
    ]
    assert Mean().combine(updates, {})["w"].tolist() == [4.0, 5.0]


def test_weighted_mean_refuses_updates_that_differ() -> None:
    updates = [Update("a", {"w": torch.zeros(1)}, 1), Update("b", {"v": torch.zeros(1)}, 1)]
    with pytest.raises(ValueError, match="client b and a disagree on v"):
        Mean().combine(updates, {})


def test_examples_carry_their_own_pixels() -> None:
    """Image and label are one object: no index map can pair an image with another's label."""
    dataset, clients = federation()
    loaded = PixelLoader(dataset, 16).load(clients[1].train)
    for row, example in zip(loaded, clients[1].train, strict=True):
        assert np.array_equal(row, dataset.pixels[example.key])
        assert isinstance(example, Example)
