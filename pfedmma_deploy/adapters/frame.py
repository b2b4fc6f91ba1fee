"""A learned frame around every image, in front of a multi-modal adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.mma import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone, Images, pixels_of
from pfedmma_deploy.types import Scope, Tower

SIDES = ("top", "bottom", "left", "right")


def picture(sides: Mapping[str, Tensor]) -> Tensor:
    """The sides of a frame with zeros inside, [S, S, 3]."""
    left, right = sides["left"], sides["right"]
    inner = left.new_zeros(len(left), len(left), 3)
    middle = torch.cat([left, inner, right], dim=1)
    return torch.cat([sides["top"], middle, sides["bottom"]])


class FramedAdapter(Adapter):
    """A local visual prompt, added to the outer pixels of the normalised image, and an adapter.

    Parameters are named `frame.top` and `frame.bottom` [p, S, 3], `frame.left` and `frame.right`
    [S - 2 p, p, 3], and `adapter.*` as `MultiModalAdapter` names them. The frame starts at zero.

    Args:
        image_size: S, pixels.
        frame_width: p, pixels, below half of S.
        adapter: the part behind it.
    """

    def __init__(self, image_size: int, frame_width: int, adapter: MultiModalAdapter) -> None:
        super().__init__()
        inner = image_size - 2 * frame_width
        row, column = (frame_width, image_size, 3), (inner, frame_width, 3)
        sides = dict(zip(SIDES, (row, row, column, column), strict=True))
        self.frame = nn.ParameterDict(
            {side: nn.Parameter(torch.zeros(shape)) for side, shape in sides.items()}
        )
        self.adapter = adapter

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What the adapter adds."""
        return self.adapter.hook(tower, block, h)

    def prompt(self) -> Tensor:
        """The frame with zeros inside, in units of the normalised image, [S, S, 3]."""
        return picture({side: self.frame[side] for side in SIDES})

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Features of framed uint8 pixels [B, H, W, 3]: [B, D], L2-normalised."""
        # The backbone normalises by (pixels - mean) / std, in units of 0..255.
        std = torch.tensor(backbone.std, device=backbone.device) * 255
        framed = pixels_of(images).to(backbone.device, std.dtype) + self.prompt() * std
        return backbone.encode_image(framed, self.hook)

    def scopes(self) -> dict[str, Scope]:
        """The frame is local; the adapter has its own scopes."""
        return {f"frame.{side}": Scope.LOCAL for side in self.frame} | {
            f"adapter.{name}": scope for name, scope in self.adapter.scopes().items()
        }
