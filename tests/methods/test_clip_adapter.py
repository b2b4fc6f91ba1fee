"""CLIP-Adapter's residual bottleneck by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.clip_adapter import (
    CLIPAdapter,
    CLIPAdapterParameters,
    FeatureBottleneck,
)
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def test_bottleneck_by_hand() -> None:
    """f = (1, 2): relu(f1 - f2 ...) passes only what is positive."""
    adapter = FeatureBottleneck(2, 1, 0.25, torch.Generator(), Scope.SHARED)
    adapter.load(
        {
            "down.weight": torch.tensor([[1.0, -1.0], [1.0, 1.0]]),
            "up.weight": torch.tensor([[5.0, 1.0], [0.0, -1.0]]),
        }
    )
    # down: relu(-1, 3) = (0, 3); up: relu(3, -3) = (3, 0); 0.25 * (3, 0) + 0.75 * (1, 2)
    assert adapter.change(torch.tensor([[1.0, 2.0]]))[0].tolist() == [1.5, 1.5]


def test_without_its_part_it_is_clip() -> None:
    backbone = tiny_backbone()
    adapter = inputs.build(CLIPAdapter, ratio=0.0)
    torch.testing.assert_close(
        adapter.encode_image(backbone, inputs.pixels()), backbone.encode_image(inputs.pixels())
    )


@pytest.mark.parametrize(("share", "scope"), [("all", Scope.SHARED), ("none", Scope.LOCAL)])
def test_averaged_or_local(share: str, scope: Scope) -> None:
    adapter = inputs.build(CLIPAdapter, share=share)
    assert set(adapter.scopes().values()) == {scope}
    inputs.clip_loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.any() for value in adapter.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 1.5}, "ratio must be from 0 to 1, not 1.5"),
        ({"reduction": 0}, "reduction must be 1 or more, not 0"),
        ({"share": "some"}, "share must be all or none, not 'some'"),
    ],
)
def test_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CLIPAdapterParameters(**given)
