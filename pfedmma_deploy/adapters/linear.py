"""Linear layers whose first values come from a given generator, the same on every client."""

from __future__ import annotations

import math

import torch
from torch import nn


def new_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer started as torch starts one: uniform within 1/sqrt(inputs)."""
    layer = nn.Linear(inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer
