"""Sharing policies and towers of pFedMMA, by the counts of ViT-B and by what gets gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.pfedmma import (
    SHARE_CHOICES,
    FedAvgMMA,
    Local,
    PFedMMA,
    PFedMMAParameters,
)
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

VIT_B = {"image": 768, "text": 512}
DEPTHS = {"image": 12, "text": 12}


def shared_of_vit_b(share: str, towers: Any = ("image", "text")) -> tuple[int, int]:
    """Numbers that travel, and all that are trained, at r = 32."""
    adapter = MultiModalAdapter(
        VIT_B,  # type: ignore[arg-type]  # towers by name
        DEPTHS,  # type: ignore[arg-type]
        32,
        1e-3,
        torch.Generator(),
        shared=SHARE_CHOICES[share],
        towers=towers,
    )
    sizes = [sum(v.numel() for v in adapter.tensors(s).values()) for s in Scope]
    return sizes[0], sum(sizes)


@pytest.mark.parametrize(
    ("share", "shared"),
    [
        ("projection", 8_448),
        ("projection+down", 8_448 + 196_864 + 131_328),
        ("projection+up", 8_448 + 202_752 + 135_168),
        ("all", 674_560),
        ("none", 0),
    ],
)
def test_what_travels_on_vit_b(share: str, shared: int) -> None:
    assert shared_of_vit_b(share) == (shared, 674_560)


def test_one_tower_alone() -> None:
    assert shared_of_vit_b("projection", ["image"]) == (8_448, 8_448 + 196_864 + 202_752)
    assert shared_of_vit_b("all", ["text"]) == (8_448 + 131_328 + 135_168,) * 2


@pytest.mark.parametrize(("towers", "other"), [("image", "text"), ("text", "image")])
def test_the_other_tower_stays_frozen(towers: str, other: str) -> None:
    backbone, batch = tiny_backbone(), inputs.batch()
    adapter = inputs.build(PFedMMA, towers=towers, scale=1.0)
    images = adapter.encode_image(backbone, batch.pixels)
    texts = adapter.encode_text(backbone, batch.texts)
    frozen = {
        "image": torch.equal(images, backbone.encode_image(batch.pixels)),
        "text": torch.equal(texts, backbone.encode_text(batch.texts.prompts)),
    }
    assert frozen == {towers: False, other: True}
    inputs.clip_loss(backbone, adapter, batch).backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None for value in adapter.parameters())
    assert not [name for name, _ in adapter.named_parameters() if name.startswith(other)]


def test_all_policies_start_from_the_same_adapter() -> None:
    """What is shared decides nothing about what is drawn."""
    states = [dict(inputs.build(PFedMMA, share=s).named_parameters()) for s in SHARE_CHOICES]
    states.append(dict(inputs.build(Local).named_parameters()))
    states.append(dict(inputs.build(FedAvgMMA).named_parameters()))
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_local_shares_nothing_and_fedavg_everything() -> None:
    local, averaged = inputs.build(Local), inputs.build(FedAvgMMA)
    assert set(local.scopes().values()) == {Scope.LOCAL}
    assert set(averaged.scopes().values()) == {Scope.SHARED}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "projections"}, "share must be projection or .*did you mean 'projection'"),
        ({"towers": "images"}, "towers must be both or image or text, not 'images'"),
        ({"bottleneck_dim": 0}, "bottleneck_dim must be 1 or more, not 0"),
        ({"scale": 0.0}, "scale must be above 0, not 0.0"),
    ],
)
def test_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PFedMMAParameters(**given)
