"""A CLIP of a few thousand parameters, for tests of everything around it."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import open_clip
import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import load_backbone

NAME = "test-clip"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 24,
        "heads": 2,
        "layers": 3,
    },
}


def register(name: str = NAME, **changes: object) -> str:
    """Make the configuration, with top-level `changes`, known to open_clip under `name`."""
    if name not in open_clip.list_models():
        folder = Path(tempfile.mkdtemp())
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, **changes}))
        open_clip.add_model_config(folder)
    return name


@functools.cache
def tiny_backbone() -> Backbone:
    """The backbone with seeded random weights."""
    # Whoever asks first may do so in inference mode, others then want gradients.
    with torch.inference_mode(False):
        return load_backbone(register(), "random")
