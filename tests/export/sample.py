"""A tiny random CLIP with two clients, and its bundle: exported once for all tests."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import fingerprint
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.bundle import ExportReport, export_bundle
from pfedmma_deploy.types import Tower

IMAGE_SIZE = 16
BOTTLENECK_DIM = 4
SCALE = 0.5
CLASS_NAMES = ("cat", "dog", "fire_truck", "owl")
PROMPT = "a photo of a {}."
WIDTHS: dict[Tower, int] = {"image": 64, "text": 48}


def tiny_backbone(*, layers: int = 3, quick_gelu: bool = False, **vision: Any) -> Backbone:
    """Random weights; text features spread out, so that classes differ."""
    # Tests share the first one made, some of them in inference mode and some to train.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(7)
        vision_cfg = {
            "image_size": IMAGE_SIZE,
            "layers": layers,
            "width": WIDTHS["image"],
            "head_width": 32,
            "patch_size": 8,
            **vision,
        }
        text_cfg = {"width": WIDTHS["text"], "heads": 2, "layers": layers, "vocab_size": 49408}
        model = CLIP(24, vision_cfg, text_cfg, quick_gelu=quick_gelu)
        for parameter in model.parameters():
            # Fresh models have zero biases and unit norms: those would hide mistakes.
            parameter.data += torch.randn_like(parameter) * 0.05
    model.eval().requires_grad_(False)
    return Backbone(
        model=model,
        name="tiny-test",
        pretrained="random",
        fingerprint=fingerprint(model),
        image_size=IMAGE_SIZE,
        mean=(0.48, 0.46, 0.41),
        std=(0.27, 0.26, 0.28),
        resize_mode="shortest",
        interpolation="bicubic",
        activation="quick_gelu" if quick_gelu else "gelu",
        tokenize=open_clip.tokenize,
    )


def random_client(
    name: str, seed: int, *, layers: int = 3, rank: int = BOTTLENECK_DIM, scale: float = SCALE
) -> ExportClient:
    """An adapter large enough to change answers, in the upper two thirds of `layers` blocks."""
    generator = torch.Generator().manual_seed(seed)
    depths: dict[Tower, int] = {"image": layers, "text": layers}
    adapter = MultiModalAdapter(WIDTHS, depths, rank, scale, generator)
    for value in adapter.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.4
    return ExportClient(name, adapter.eval(), seen=(seed % 2,))


def images(count: int = 6, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels at the tiny backbone's size."""
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


CLIENTS = (random_client("north", 1), random_client("0", 2))
"""The second id is a number on purpose: `"0"` is a name, `0` is zero-shot."""


def export_sample(out: Path, backbone: Backbone | None = None, **changes: Any) -> ExportReport:
    """Export the sample, with other arguments than usual where `changes` has them."""
    arguments: dict[str, Any] = {
        "clients": CLIENTS,
        "class_names": CLASS_NAMES,
        "prompt": PROMPT,
        "base": (0, 1),
        "novel": (2, 3),
        "method": "pfedmma",
        "parity_images": images(),
        "provenance": {"run": "test"},
        **changes,
    }
    return export_bundle(backbone or shared_backbone(), out=out, **arguments)


@cache
def shared_backbone() -> Backbone:
    """The backbone of the shared bundle; nothing changes it."""
    return tiny_backbone()


def with_tensor(client: ExportClient, name: str, value: torch.Tensor) -> ExportClient:
    """The client with one tensor set to `value`."""
    adapter = copy.deepcopy(client.adapter)
    dict(adapter.named_parameters())[name].data = value
    return replace(client, adapter=adapter)
