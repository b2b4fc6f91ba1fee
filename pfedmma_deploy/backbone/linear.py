"""`F.linear` with frozen weights, by whichever of torch's libraries is fast on this processor.

Torch gives fp32 matmuls to MKL, which has AVX-512 kernels for Intel's processors only: on an AMD
EPYC with AVX-512 it reaches half the rate. Torch gives convolutions to oneDNN, which asks what the
processor can do and not who made it. A 1x1 convolution over one pixel per token is the same
matmul: 2.0 to 2.2 times as fast there, forward and backward, to the last bits of fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.system import is_amd

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x [..., K], weight [N, K], bias [N] or None -> [..., N]."""
FEW_ROWS = 64
"""Matmuls of fewer rows stay with MKL: reordering the weights for oneDNN costs more."""


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, through oneDNN where that is the faster library."""
    rows = x.shape[:-1].numel()
    is_plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or not is_plain or rows < FEW_ROWS or not mkl_is_slow():
        return F.linear(x, weight, bias)
    # [1, K, rows, 1] with the channels last: the same numbers in the same order, not moved.
    pixels = x.reshape(1, rows, 1, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`fast_linear` inside `torch.func.vmap`: the rows of all clients in one matmul.

    vmap's own rule adds the bias in a pass of its own and copies the result, which in reduced
    precision took longer than the matmul.
    """
    found: Tensor = _Batched.apply(x, weight, bias)
    return found


class _Batched(torch.autograd.Function):
    """Says to vmap how to compute it; the gradient is that of what `vmap` computes."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of what is the same for all clients, and so does not depend on what is trained."""
        return fast_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        """The clients' dimension in front, as one more dimension of rows."""
        where, *frozen = in_dims
        if where is None or any(each is not None for each in frozen):
            found = torch.func.vmap(fast_linear, in_dims=in_dims)(x, weight, bias)
        else:
            found = fast_linear(x.movedim(where, 0), weight, bias)
        return found, 0


@cache
def mkl_is_slow() -> bool:
    """Whether torch's fp32 matmuls reach half of this processor's rate."""
    libraries = torch.backends.mkl, torch.backends.mkldnn
    if not all(one.is_available() for one in libraries):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and is_amd()
