"""Calibrations for the sample's clients, and what torch says of their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.calibration import Calibration, ClientCalibration, known_scores
from pfedmma_deploy.export.certainty import Calibrations
from tests.export.sample import (
    CLASS_NAMES,
    CLIENTS,
    PROMPT,
    images,
    shared_backbone,
)

Reuse = Callable[[pytest.MonkeyPatch], None]
WORDS = ("spoon", "cloud", "thunder")


def calibration(known_mean: float, temperature: float = 2.0) -> ClientCalibration:
    """Ten images with scores about `known_mean`, half a point apart."""
    own = tuple(np.linspace(0.1, 0.9, 10).tolist())
    found = Calibration(10, temperature, 1.0, known_mean, 0.5, 0.6, 0.2, own)
    mean = np.random.default_rng(3).normal(size=shared_backbone().embed_dim)
    return ClientCalibration(found, mean / np.linalg.norm(mean))


def calibrations() -> Calibrations:
    """Zero-shot and `north`; the second client has none."""
    backbone = shared_backbone()
    with torch.inference_mode():
        texts = class_texts(backbone, WORDS, PROMPT)
        general = backbone.encode_text(texts.prompts).float().numpy()
    return Calibrations(WORDS, general, (calibration(0.0), calibration(expected()[1]), None))


def expected() -> tuple[np.ndarray[Any, Any], float, np.ndarray[Any, Any]]:
    """By torch, of `north` on six images: scores of being known, their median, class scores."""
    backbone, adapter = shared_backbone(), CLIENTS[0].adapter
    with torch.inference_mode():
        image = adapter.encode_image(backbone, torch.from_numpy(images(6))).double().numpy()
        text = adapter.encode_text(backbone, class_texts(backbone, CLASS_NAMES, PROMPT))
        general = backbone.encode_text(class_texts(backbone, WORDS, PROMPT).prompts)
    factor = backbone.logit_scale
    logits = factor * image @ text.double().numpy().T
    rivals = factor * image @ general.double().numpy().T
    known = known_scores(logits, rivals, image @ calibration(0).mean, factor)
    return known, float(np.median(known)), logits
