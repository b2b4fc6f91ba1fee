"""pFedPT: a visual prompt that tells the shared model whose image it sees.

arXiv 2303.08678. Every client learns a frame of pixels that is added to its (normalised) images and
never leaves; the model behind it is averaged, weighted by the number of images. In a round a client
trains its frame for E epochs with the model held still, then the model for E epochs with the frame
held still. The paper trains a whole network; here the model is pFedMMA's adapter (arXiv 2507.05394)
on the frozen backbone, all of it shared. The frame starts at zero, as wide as in the paper's code:
2 of 32 pixels, a sixteenth of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter, BankModule, ExportBanks
from pfedmma_deploy.adapters.multimodal import LAYERS, MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone, Images, pixels_of
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import ClientRun, Method
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter
from pfedmma_deploy.types import Scope, Tower

DEFAULT_FRACTION = 16


@dataclass(frozen=True)
class PFedPTParameters(AdapterParameters):
    """Those of the shared adapter, and of the frame."""

    frame_width: Annotated[int, Field(ge=0)] = 0
    """Pixels on each side; 0 takes a sixteenth of the image."""
    frame_lr: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the frame: gradients of single pixels are small. The paper's code takes 20
    for a network trained from scratch; in front of a frozen CLIP that overshoots."""


SIDES = ("top", "bottom", "left", "right")


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
        left, right = self.frame["left"], self.frame["right"]
        inner = left.new_zeros(len(left), len(left), 3)
        middle = torch.cat([left, inner, right], dim=1)
        return torch.cat([self.frame["top"], middle, self.frame["bottom"]])

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Features of framed uint8 pixels [B, H, W, 3]: [B, D], L2-normalised."""
        # The backbone normalises by (pixels - mean) / std, in units of 0..255.
        std = torch.tensor(backbone.std, device=backbone.device) * 255
        frame = self.strength * self.prompt() * std
        framed = pixels_of(images).to(backbone.device, std.dtype) + frame
        return backbone.encode_image(framed, self.scaled_hook)

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """The adapter, and the frame as a picture [3, S, S]."""
        pixels = self.prompt().detach().permute(2, 0, 1)
        frame = ExportBanks("image", "frame", {"pixels": pixels}, FrameBank)
        return [*self.adapter.export_banks(backbone), frame]

    def export_settings(self) -> dict[str, Any]:
        """Those of the adapter."""
        return {**self.adapter.export_settings(), "kind": "framed"}

    def scopes(self) -> dict[str, Scope]:
        """The frame is local; the adapter has its own scopes."""
        return {f"frame.{side}": Scope.LOCAL for side in self.frame} | {
            f"adapter.{name}": scope for name, scope in self.adapter.scopes().items()
        }


class FrameBank(BankModule):
    """Adds a client's picture to the normalised pixels; that of client 0 is zero."""

    def forward(self, x: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        """x [B, 3, S, S], client [B], strength [B, 1, 1] -> the shape of x."""
        return x + strength.unsqueeze(-1) * self.rows("pixels", client)


class PFedPT(Method[FramedAdapter, PFedPTParameters]):
    """A local frame around the images, and pFedMMA's adapter, all of it shared."""

    name = "pfedpt"
    paper = "pFedPT, arXiv 2303.08678"
    trained = "a frame around the images, and pFedMMA's adapter"
    shared = "the adapter"
    Parameters = PFedPTParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> FramedAdapter:
        """A frame for the backbone's images and its adapter.

        Raises:
            UsageError: the frame leaves nothing of the image.
        """
        size = backbone.image_size
        width = self.parameters.frame_width or max(1, size // DEFAULT_FRACTION)
        if 2 * width >= size:
            raise UsageError(
                f"frame_width must be below half of the image's {size} pixels, not {width}."
            )
        adapter = build_adapter(backbone, self.parameters, generator, LAYERS)
        return FramedAdapter(size, width, adapter)

    def train_client(self, run: ClientRun[FramedAdapter]) -> float:
        """First the frame, then the adapter; what the options leave out is left out."""
        scopes = run.adapter.scopes()
        loss = 0.0
        for scope, lr in ((Scope.LOCAL, self.parameters.frame_lr), (Scope.SHARED, None)):
            if scope in run.options.scopes:
                names = [name for name, own in scopes.items() if own is scope]
                loss = run.fit(only=names, lr=lr)
        return loss
