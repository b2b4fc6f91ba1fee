"""FedCLIP's gate by hand, and who is trained."""

from __future__ import annotations

import math

import pytest
import torch

from pfedmma_deploy.methods.base import Update
from pfedmma_deploy.methods.fedclip import FeatureGate, FedCLIP
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def test_gate_by_hand() -> None:
    """f = (1, -2), L1 f = (1, -2), L2 = (2 t1, t2 + 1), t = tanh."""
    gate = FeatureGate(2, torch.Generator())
    gate.load(
        {
            "first.weight": torch.eye(2),
            "first.bias": torch.zeros(2),
            "second.weight": torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
            "second.bias": torch.tensor([0.0, 1.0]),
        }
    )
    first, second = math.exp(2 * math.tanh(1)), math.exp(math.tanh(-2) + 1)
    total = first + second
    found = gate.change(torch.tensor([[1.0, -2.0]]))[0].tolist()
    assert found == pytest.approx([first / total, -2 * second / total])


def test_it_gates_clips_feature_before_it_is_normalised() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(FedCLIP)
    assert isinstance(adapter, FeatureGate)
    raw = backbone.model.encode_image(normalised(inputs.pixels()))
    expected = torch.nn.functional.normalize(adapter.change(raw), dim=-1)
    found = adapter.encode_image(backbone, inputs.pixels())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, backbone.encode_image(inputs.pixels()), atol=1e-3)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    backbone = tiny_backbone()
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def test_a_kept_prefix_gives_the_same_feature() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(FedCLIP)
    start = adapter.first_block(backbone, "image")
    prefix = backbone.image_activations(inputs.pixels(), start)
    torch.testing.assert_close(
        adapter.encode_image(backbone, prefix), adapter.encode_image(backbone, inputs.pixels())
    )


def test_everything_is_shared_and_learns() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(FedCLIP)
    assert set(adapter.scopes().values()) == {Scope.SHARED}
    inputs.clip_loss(backbone, adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.any() for value in adapter.parameters())


def test_clients_count_the_same_whatever_they_hold() -> None:
    updates = [Update("a", {"w": torch.tensor(1.0)}, 1), Update("b", {"w": torch.tensor(3.0)}, 99)]
    assert FedCLIP().aggregator().combine(updates, {})["w"].item() == 2.0


def test_the_papers_optimizer() -> None:
    assert dict(FedCLIP.defaults) == {"optimizer": "adam", "lr": 5e-5}
