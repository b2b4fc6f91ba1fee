"""FML: two models whose losses look at each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import divergence
from pfedmma_deploy.methods.fml import FML, FMLParameters, MutualAdapters, mutual_loss
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

ZERO, LOG3 = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
"""Scores of the distributions (1/2, 1/2) and (3/4, 1/4)."""


def fml(**parameters: Any) -> MutualAdapters:
    adapter = inputs.build(FML, **{"scale": 1.0, "bottleneck_dim": 4, **parameters})
    assert isinstance(adapter, MutualAdapters)
    return adapter


def test_loss_by_hand() -> None:
    """The shared model says (1/2, 1/2), the private one (3/4, 1/4), the label is the first."""
    found = mutual_loss(ZERO, LOG3, torch.tensor([0]), alpha=0.8, beta=0.4)
    private = 0.8 * math.log(4 / 3) + 0.2 * 0.5 * math.log(0.5 / 0.75 * 0.5 / 0.25)
    shared = 0.4 * math.log(2) + 0.6 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(found) == pytest.approx(private + shared)


def test_a_client_predicts_with_its_private_model() -> None:
    backbone, adapter = tiny_backbone(), fml()
    found = adapter.encode_image(backbone, inputs.pixels())
    alone = backbone.encode_image(inputs.pixels(), adapter.private.hook)
    assert torch.equal(found, alone)
    assert not torch.equal(found, backbone.encode_image(inputs.pixels(), adapter.shared.hook))


def test_one_model_is_shared_and_one_is_not() -> None:
    for name, scope in fml().scopes().items():
        assert scope is (Scope.SHARED if name.startswith("shared.") else Scope.LOCAL)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (1.0, 0.0)])
def test_both_models_learn(alpha: float, beta: float) -> None:
    """Also the shared one of beta = 0, from the private one's word alone."""
    backbone, adapter = tiny_backbone(), fml(alpha=alpha, beta=beta)
    loss = FML.configure({"alpha": alpha, "beta": beta}).loss
    loss(backbone, adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    for name, value in adapter.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name


def test_labels_alone_teach_the_private_model_without_the_other() -> None:
    """alpha = 1: its gradient is that of cross-entropy, whatever the shared model says."""
    shared, private = LOG3.clone().requires_grad_(), ZERO.clone().requires_grad_()
    mutual_loss(shared, private, torch.tensor([0]), 1.0, 0.5).backward()  # type: ignore[no-untyped-call]
    assert private.grad is not None
    assert private.grad[0].tolist() == pytest.approx([-0.5, 0.5])
    alone = LOG3.clone().requires_grad_()
    value = inputs.cross_entropy(alone, torch.tensor([0])) + divergence(alone, ZERO)
    (value / 2).backward()  # type: ignore[no-untyped-call]
    assert shared.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(shared.grad, alone.grad)


def test_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"alpha must be from 0 to 1, not 1\.5"):
        FMLParameters(alpha=1.5)
