"""LoRA on fused attention weights: by hand, bit-identical, and what each policy shares."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pfedmma_deploy.adapters.lora import LoRA, LowRank, LowRankBlock
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Update
from pfedmma_deploy.methods.plora import PLoRA, PLoRAParameters
from pfedmma_deploy.types import Scope, Tower
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def lora(seed: int = 0, **parameters: Any) -> LoRA:
    adapter = inputs.build(PLoRA, seed, **parameters)
    assert isinstance(adapter, LoRA)
    return adapter


def trained(**parameters: Any) -> LoRA:
    """With B away from zero, so that it counts."""
    adapter = lora(**parameters)
    generator = torch.Generator().manual_seed(1)
    for name, value in adapter.named_parameters():
        if name.endswith("B"):
            value.data.normal_(0, 0.05, generator=generator)
    return adapter


def test_one_block_by_hand() -> None:
    """d = 2, r = 1, scale 2: queries and values change, keys do not."""
    block = LowRankBlock(2, 1, torch.Generator())
    block.q.A.data, block.q.B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
    block.v.A.data, block.v.B.data = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0], [4.0]])
    weight = torch.arange(12.0).view(6, 2)
    # B_q A_q = [[3, 6], [-1, -2]], B_v A_v = [[0.5, 0], [2, 0]], both times 2
    expected = weight + torch.tensor(
        [[6.0, 12.0], [-2.0, -4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]
    )
    assert torch.equal(block.change(weight, 2.0, 0.0), expected)


def test_it_is_low_rank_adaptation() -> None:
    """x W'^T = x W^T + (alpha / r) x A^T B^T on the rows of queries and values."""
    adapter = trained(rank=3, alpha=6.0)
    weight = tiny_backbone().blocks("image")[1].attn.in_proj_weight
    block = adapter.get_submodule("image.1")
    assert isinstance(block, LowRankBlock)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    q, k, v = (x @ adapter.attention("image", 1, weight).T).chunk(3, dim=1)
    old_q, old_k, old_v = (x @ weight.T).chunk(3, dim=1)
    torch.testing.assert_close(q, old_q + 2 * x @ block.q.A.T @ block.q.B.T)
    torch.testing.assert_close(v, old_v + 2 * x @ block.v.A.T @ block.v.B.T)
    assert torch.equal(k, old_k)


def test_a_fresh_client_is_zero_shot_clip_to_the_bit() -> None:
    backbone, batch = tiny_backbone(), inputs.batch()
    adapter = lora()
    assert torch.equal(
        adapter.encode_image(backbone, batch.pixels), backbone.encode_image(batch.pixels)
    )
    assert torch.equal(
        adapter.encode_text(backbone, batch.texts), backbone.encode_text(batch.texts.prompts)
    )


def test_all_clients_start_with_the_same_a() -> None:
    first, second, other = lora(5), lora(5), lora(6)
    for (name, value), (_, same), (_, drawn) in zip(
        first.named_parameters(), second.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(value, same)
        assert torch.equal(value, drawn) == name.endswith("B")
        if name.endswith("A"):  # uniform within 1 / sqrt(d)
            assert float(value.detach().abs().max()) <= value.shape[1] ** -0.5


@pytest.mark.parametrize(
    ("share", "a", "b"),
    [
        ("B", Scope.LOCAL, Scope.SHARED),
        ("A", Scope.SHARED, Scope.LOCAL),
        ("AB", Scope.SHARED, Scope.SHARED),
        ("B-frozen-A", Scope.FROZEN, Scope.SHARED),
    ],
)
def test_policies(share: str, a: Scope, b: Scope) -> None:
    for name, scope in lora(share=share).scopes().items():
        assert scope is (a if name.endswith("A") else b)


def test_counts_of_vit_b() -> None:
    """491,520 trained, 245,760 of them shared: 4 r d per block and tower."""
    widths: dict[Tower, int] = {"image": 768, "text": 512}
    depths: dict[Tower, int] = {"image": 12, "text": 12}
    adapter = LoRA(
        widths,
        depths,
        8,
        16.0,
        0.05,
        torch.Generator(),
        scope_a=Scope.LOCAL,
        scope_b=Scope.SHARED,
    )
    shared, local = (adapter.tensors(scope) for scope in (Scope.SHARED, Scope.LOCAL))
    assert sum(value.numel() for value in shared.values()) == 245_760
    assert sum(value.numel() for value in (shared | local).values()) == 491_520


def test_the_server_averages_b() -> None:
    name = "image.0.q.B"
    updates = [
        Update("a", {name: torch.tensor([[4.0]])}, 1),
        Update("b", {name: torch.tensor([[0.0]])}, 3),
    ]
    assert PLoRA().aggregator().combine(updates, {})[name].item() == 1.0


def test_gradients() -> None:
    """At B = 0 only B learns; later both do, and the backbone never."""
    backbone, batch = tiny_backbone(), inputs.batch()
    for adapter, learns in ((lora(), "B"), (trained(), "AB")):
        inputs.clip_loss(backbone, adapter, batch).backward()  # type: ignore[no-untyped-call]
        for name, value in adapter.named_parameters():
            assert value.grad is not None
            assert bool(value.grad.any()) == (name[-1] in learns), name
    assert all(value.grad is None for value in backbone.model.parameters())


def test_dropout_leaves_out_columns_of_a_and_keeps_the_mean() -> None:
    product = LowRank(400, 1, torch.Generator())
    product.A.data.fill_(1.0)
    product.B.data.fill_(1.0)
    torch.manual_seed(0)
    product.train()
    dropped = product.product(0.25).detach()
    columns = dropped[0]
    assert torch.equal(dropped, columns.expand(400, 400)), "one mask for all rows"
    assert sorted(set(columns.tolist())) == pytest.approx([0.0, 4 / 3])
    assert float(columns.mean()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(product.eval().product(0.25), torch.ones(400, 400))


def test_a_new_adapter_is_not_in_training() -> None:
    assert not any(module.training for module in lora().modules())


def test_drift_by_hand() -> None:
    """All A scaled by 1.5: half of their norm."""
    adapter = lora()
    assert adapter.drift() == 0.0
    for name, value in adapter.named_parameters():
        if name.endswith("A"):
            value.data.mul_(1.5)
    assert math.isclose(adapter.drift(), 0.5, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "C"}, "share must be B or A or AB or B-frozen-A, not 'C'"),
        ({"rank": 0}, "rank must be 1 or more, not 0"),
        ({"alpha": 0.0}, "alpha must be above 0, not 0.0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, not 1.0"),
    ],
)
def test_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PLoRAParameters(**given)
