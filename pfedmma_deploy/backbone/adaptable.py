"""Which of open_clip's models can be adapted."""

from __future__ import annotations

from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from pfedmma_deploy.errors import BackboneError

ADAPTABLE = (
    "a class-token ViT image tower and a causal text transformer of open_clip's own kind, such as "
    "ViT-B-32, ViT-B-16, ViT-L-14 (OpenAI, LAION, DataComp, MetaCLIP, DFN weights) or pfedmma-tiny"
)


def require_adaptable(model: nn.Module, name: str) -> CLIP:
    """`model` as a CLIP with two plain transformer towers.

    Raises:
        BackboneError: it is of another kind; the message lists what can be adapted.
    """
    reason = _unsupported(model)
    if reason is not None:
        raise BackboneError(
            f"The backbone {name} cannot be adapted: {reason}. Supported: {ADAPTABLE}."
        )
    assert isinstance(model, CLIP)
    return model


def _unsupported(model: nn.Module) -> str | None:
    if not isinstance(model, CLIP):
        return f"it is a {type(model).__name__}, not a CLIP with a native text transformer"
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a vision transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        return "its image tower does not read its feature from the class token"
    if visual.image_size[0] != visual.image_size[1]:
        return f"its input is {visual.image_size[0]} x {visual.image_size[1]} px, not square"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its text tower is not causal or does not read its feature at the end token"
    if not isinstance(model.text_projection, nn.Parameter):
        return "its text projection is not a plain matrix"
    for block in (*visual.transformer.resblocks, *model.transformer.resblocks):
        if type(block) is not ResidualAttentionBlock:
            return f"it has blocks of type {type(block).__name__}"
    return None
