"""FedPGP: the low-rank context and the contrast, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pfedmma_deploy.adapters.prompts import encode_context
from pfedmma_deploy.config import Scalar
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.fedpgp import FedPGP, LowRankContext, contrast
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def prompt(**parameters: Any) -> LowRankContext:
    adapter = inputs.build(FedPGP, **parameters)
    assert isinstance(adapter, LowRankContext)
    return adapter


def test_contrast_by_hand() -> None:
    """Two classes: cosines (1, 0) and (0.6, 0.8), tau 0.5."""
    anchor = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    positive = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    negative = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0)))
    second = -math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(1.6)))
    assert float(contrast(anchor, positive, negative, 0.5)) == pytest.approx((first + second) / 2)


def test_context_is_sigma_plus_u_v() -> None:
    """M = 2, b = 1: sigma + (1, 2)^T v."""
    adapter = prompt(context_vectors=2, rank=1)
    adapter.sigma.data.fill_(0.5)
    adapter.u.data.copy_(torch.tensor([[1.0], [2.0]]))
    adapter.v.data.copy_(torch.arange(24.0).unsqueeze(0))
    expected = torch.stack([0.5 + torch.arange(24.0), 0.5 + 2 * torch.arange(24.0)])
    assert torch.equal(adapter.context, expected)
    personal, shared = adapter.encode_both(tiny_backbone(), inputs.texts())
    for found, context in ((personal, expected), (shared, adapter.sigma)):
        alone = encode_context(tiny_backbone(), inputs.texts(), context)
        torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        personal, adapter.encode_text(tiny_backbone(), inputs.texts()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("anchor", ["personal", "global"])
def test_loss_is_cross_entropy_and_contrast(anchor: str) -> None:
    backbone, batch = tiny_backbone(), inputs.batch()
    given: dict[str, Scalar] = {"anchor": anchor, "contrastive_weight": 0.7, "temperature": 0.4}
    adapter = prompt(**given)
    adapter.u.data.normal_(generator=torch.Generator().manual_seed(2))
    personal = encode_context(backbone, batch.texts, adapter.context)
    shared = encode_context(backbone, batch.texts, adapter.sigma)
    written = backbone.encode_text(batch.texts.prompts)
    scores = 20 * backbone.encode_image(inputs.pixels()) @ personal.T
    a, n = (personal, shared) if anchor == "personal" else (shared, personal)
    pair = torch.stack([(a * written).sum(1), (a * n).sum(1)], dim=1) / 0.4
    first = torch.zeros(3, dtype=torch.long)
    expected = inputs.cross_entropy(scores, batch.labels) + 0.7 * inputs.cross_entropy(pair, first)
    torch.testing.assert_close(FedPGP.configure(given).loss(backbone, adapter, batch), expected)


def test_every_part_learns() -> None:
    adapter = prompt()
    value = FedPGP().loss(tiny_backbone(), adapter, inputs.batch())
    value.backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_sigma_is_shared_and_the_factors_stay() -> None:
    adapter = prompt()
    assert adapter.scopes() == {"sigma": Scope.SHARED, "u": Scope.LOCAL, "v": Scope.LOCAL}
    assert {n: tuple(v.shape) for n, v in adapter.named_parameters()} == {
        "sigma": (16, 24),
        "u": (16, 8),
        "v": (8, 24),
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more, not 0."),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0."),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be 0 or more, not -1.0."),
        (
            {"anchor": "globl"},
            "anchor must be personal or global, not 'globl'; did you mean 'global'?",
        ),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        inputs.build(FedPGP, **parameters)
    assert str(caught.value) == message
