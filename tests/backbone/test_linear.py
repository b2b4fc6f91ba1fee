"""The faster way to multiply: the same numbers, both ways, and only where it is meant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.backbone import linear as linear_module
from pfedmma_deploy.backbone.linear import FEW_ROWS, batched_linear, fast_linear, mkl_is_slow


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that goes to oneDNN, on a machine where it should."""
    seen: list[int] = []
    plain = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(x.shape[2])
        return plain(x, weight, bias)

    monkeypatch.setattr(linear_module, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(F, "conv2d", conv2d)
    return seen


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("shape", [(64, 24), (8, 10, 24), (2, 3, 20, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_and_gradients_are_the_same(
    calls: list[int], shape: tuple[int, ...], has_bias: bool
) -> None:
    bias = draw(40) if has_bias else None
    found = []
    for linear in (fast_linear, F.linear):
        # A weight with a gradient as well: low-rank methods change the blocks' own.
        x, weight = draw(*shape).requires_grad_(), draw(40, 24).requires_grad_()
        out = linear(x, weight, bias)
        (out * draw(*shape[:-1], 40)).sum().backward()  # type: ignore[no-untyped-call]
        found.append((out.detach(), x.grad, weight.grad))
    assert calls == [x.numel() // 24 for x in [draw(*shape)]]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_views_are_read_as_they_lie(calls: list[int]) -> None:
    """Tokens and weights that are parts of something else, as in attention."""
    x, weight = draw(30, 4, 48).transpose(0, 1)[..., ::2], draw(72, 24)[24:]
    torch.testing.assert_close(
        fast_linear(x, weight, None), F.linear(x, weight), atol=1e-5, rtol=1e-5
    )
    assert calls == [120]


def test_everything_else_is_left_to_torch(calls: list[int]) -> None:
    few, weight = draw(FEW_ROWS - 1, 24), draw(40, 24)
    assert torch.equal(fast_linear(few, weight, None), F.linear(few, weight))
    double = draw(100, 24, dtype=torch.float64)
    assert fast_linear(double, weight.double(), None).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_linear(draw(100, 24), weight, None).dtype == torch.bfloat16
    assert calls == []


@pytest.mark.parametrize(
    ("capability", "amd", "expected"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False)],
)
def test_whose_processor_needs_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, amd: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(linear_module, "is_amd", lambda: amd)
    mkl_is_slow.cache_clear()
    try:
        assert mkl_is_slow() is expected
    finally:
        mkl_is_slow.cache_clear()


def test_clients_in_one_matmul_are_clients_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    together = torch.func.vmap(lambda rows: batched_linear(rows, weight, bias))(x)
    alone = torch.stack([F.linear(rows, weight, bias) for rows in x])
    torch.testing.assert_close(together, alone)
    (gradient,) = torch.autograd.grad(together.square().sum(), x)
    (expected,) = torch.autograd.grad(alone.square().sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("batched", ["weight", "nothing of it"])
def test_what_is_not_the_clients_images(batched: str) -> None:
    x, bias = torch.ones(2, 4), torch.zeros(3)
    weights = torch.arange(24.0).reshape(2, 3, 4)
    if batched == "weight":
        found = torch.func.vmap(lambda weight: batched_linear(x, weight, bias))(weights)
        assert found.tolist() == [F.linear(x, weight, bias).tolist() for weight in weights]
    else:
        # A text before its first adapter is the same for all clients.
        found = torch.func.vmap(lambda own: own + batched_linear(x, weights[0], bias))(
            torch.zeros(2, 1)
        )
        assert found.tolist() == [F.linear(x, weights[0], bias).tolist()] * 2
