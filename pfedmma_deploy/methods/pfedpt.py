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

import torch

from pfedmma_deploy.adapters.frame import SIDES, FramedAdapter, picture
from pfedmma_deploy.adapters.graph_form import GraphForm, below
from pfedmma_deploy.adapters.mma import PARTS
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import ClientRun, Method, Tensors
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter
from pfedmma_deploy.methods.pfedmma import graph as adapter_graph
from pfedmma_deploy.methods.ranges import above, at_least
from pfedmma_deploy.types import Scope

DEFAULT_FRACTION = 16


@dataclass(frozen=True)
class PFedPTParameters(AdapterParameters):
    """Those of the shared adapter, and of the frame."""

    frame_width: int = 0
    """Pixels on each side; 0 takes a sixteenth of the image."""
    frame_lr: float = 1.0
    """Learning rate of the frame: gradients of single pixels are small. The paper's code takes 20
    for a network trained from scratch; in front of a frozen CLIP that overshoots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("frame_width", self.frame_width, 0)
        above("frame_lr", self.frame_lr, 0)


class PFedPTAdapter(FramedAdapter):
    """The frame, the adapter, and how fast the frame learns."""

    frame_lr: float


def build(
    backbone: Backbone, parameters: PFedPTParameters, generator: torch.Generator
) -> PFedPTAdapter:
    """A frame for the backbone's images and its adapter.

    Raises:
        UsageError: the frame leaves nothing of the image.
    """
    size = backbone.image_size
    width = parameters.frame_width or max(1, size // DEFAULT_FRACTION)
    if 2 * width >= size:
        raise UsageError(
            f"frame_width must be below half of the image's {size} pixels, not {width}."
        )
    adapter = PFedPTAdapter(size, width, build_adapter(backbone, parameters, generator, PARTS))
    adapter.frame_lr = parameters.frame_lr
    return adapter


def train(run: ClientRun) -> float:
    """First the frame, then the adapter; what the options leave out is left out."""
    assert isinstance(run.adapter, PFedPTAdapter)
    scopes = run.adapter.scopes()
    loss = 0.0
    for scope, lr in ((Scope.LOCAL, run.adapter.frame_lr), (Scope.SHARED, None)):
        if scope in run.options.scopes:
            names = [name for name, own in scopes.items() if own is scope]
            loss = run.fit(only=names, lr=lr)
    return loss


def graph(tensors: Tensors, parameters: PFedPTParameters) -> GraphForm:
    """The adapter, and the frame as a picture."""
    form = adapter_graph(below(tensors, "adapter."), parameters)
    frame = picture({side: tensors[f"frame.{side}"] for side in SIDES})
    pixels = {"image.frame.pixels": frame.permute(2, 0, 1).contiguous()}
    return GraphForm({**form.tensors, **pixels}, {**form.settings, "kind": "framed"})


PFEDPT = Method(
    name="pfedpt",
    paper="pFedPT, arXiv 2303.08678",
    trained="a frame around the images, and pFedMMA's adapter",
    shared="the adapter",
    parameters=PFedPTParameters,
    build=build,
    graph=graph,
    local=train,
    personalize=train,
)
