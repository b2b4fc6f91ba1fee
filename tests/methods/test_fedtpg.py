"""FedTPG: the generator on numbers that fit on paper, and in float64 by its equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.prompts import encode_context
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Update
from pfedmma_deploy.methods.fedtpg import ContextGenerator, FedTPG, GeneratedContext
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def test_attention_by_hand() -> None:
    """d = D = 2, one query, one head, identity layers, no feed-forward part.

    LN turns any two different numbers into (1, -1) or (-1, 1): the query (3, 1) is (1, -1), the
    names are (1, -1) and (-1, 1). Scores 2/sqrt(2) and -2/sqrt(2), weights p and 1 - p, and the
    context (2p - 1) * (1, -1).
    """
    net = ContextGenerator(2, 2, 1, 1, torch.Generator())
    for layer in (net.query, net.key, net.value, net.out):
        layer.weight.data.copy_(torch.eye(2))
        layer.bias.data.zero_()
    net.contract.weight.data.zero_()
    net.contract.bias.data.zero_()
    net.queries.data.copy_(torch.tensor([[3.0, 1.0]]))
    p = 1 / (1 + math.exp(-4 / math.sqrt(2)))
    expected = torch.tensor([[2 * p - 1, 1 - 2 * p]])
    found = net(torch.tensor([[5.0, 2.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def by_equations(net: ContextGenerator, names: Tensor) -> Tensor:
    """The module's docstring, head by head, in float64."""
    w = {name: value.detach().double() for name, value in net.named_parameters()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    t = norm(names.double(), "norm_names")
    q, k, v = (
        linear(norm(w["queries"], "norm_queries"), "query"),
        linear(t, "key"),
        linear(t, "value"),
    )
    size = q.shape[1] // net.heads
    heads = []
    for i in range(net.heads):
        part = slice(i * size, (i + 1) * size)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), dim=1)
        heads.append(weights @ v[:, part])
    a = linear(torch.cat(heads, dim=1), "out")
    left, right = linear(norm(a, "norm_out"), "expand").chunk(2, dim=1)
    return a + linear(left * F.gelu(right), "contract")


def test_generator_in_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    net = ContextGenerator(24, 16, 4, 4, generator)
    for name, value in net.named_parameters():
        if name.startswith("norm"):
            value.data.add_(0.3 * torch.randn(value.shape, generator=generator))
    names = torch.randn(5, 16, generator=generator)
    torch.testing.assert_close(net(names).double(), by_equations(net, names), atol=1e-5, rtol=1e-4)


def generated(**parameters: Any) -> GeneratedContext:
    adapter = inputs.build(FedTPG, **parameters)
    assert isinstance(adapter, GeneratedContext)
    return adapter


def test_text_features_are_behind_the_generated_context() -> None:
    backbone, adapter, texts = tiny_backbone(), generated(), inputs.texts()
    context = adapter.net(backbone.encode_text(texts.bare))
    assert context.shape == (4, 24)
    found = adapter.encode_text(backbone, texts)
    torch.testing.assert_close(found, encode_context(backbone, texts, context))
    assert adapter.adapts == {"text"}


def test_other_names_get_another_context() -> None:
    """The feature of a name depends on the names beside it."""
    backbone, adapter = tiny_backbone(), generated()
    together = adapter.encode_text(backbone, inputs.texts())
    alone = adapter.encode_text(backbone, class_texts(backbone, ["cat"], inputs.TEMPLATE))
    assert (together[0] - alone[0]).abs().max() > 1e-6
    assert adapter.reads_names_together, "so that it is scored on each set of names by itself"


def test_every_part_learns_and_travels() -> None:
    adapter = generated()
    FedTPG().loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        if name != "net.key.bias":  # the same for every name: softmax takes it away
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert set(adapter.scopes().values()) == {Scope.SHARED}


def test_every_client_counts_the_same() -> None:
    sent = [Update("a", {"w": torch.zeros(2)}, 1), Update("b", {"w": torch.ones(2)}, 99)]
    assert FedTPG().aggregator().combine(sent, {})["w"].tolist() == [0.5, 0.5]


def test_size_on_vit_b() -> None:
    """d = D = 512: queries 2,048, three layer norms 3,072, attention 1,050,624, feed-forward
    3,150,336; in all 4,206,080.
    """
    net = ContextGenerator(512, 512, 4, 4, torch.Generator())
    assert sum(p.numel() for p in net.parameters()) == 2_048 + 3_072 + 1_050_624 + 3_150_336


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UsageError) as caught:
        generated(heads=5)
    assert str(caught.value) == (
        "heads must divide the width of the text tower of test-clip, 24: 5 does not."
    )
