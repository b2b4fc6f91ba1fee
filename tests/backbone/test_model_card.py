"""The model card's figures are the measured ones."""

from __future__ import annotations

import json

import pytest
import torch

from pfedmma_deploy.backbone.loading import ASSETS, MODEL_NAME, load_backbone
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.evaluation.zero_shot import evaluate_zero_shot

FIGURES = json.loads((ASSETS / "figures.json").read_text("utf-8"))
CARD = (ASSETS / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_zero_shot_on_the_samples(name: str) -> None:
    """Measured again, within what another processor's rounding may turn over."""
    torch.set_num_threads(2)
    backbone = load_backbone(MODEL_NAME)
    assert backbone.fingerprint == FIGURES["fingerprint"]
    found = evaluate_zero_shot(backbone, load_sample(name), FIGURES["prompt"])
    quoted = FIGURES[name]
    assert found.images == quoted["images"]
    assert found.accuracy == pytest.approx(quoted["accuracy"], abs=0.35)
    assert found.domains.keys() == quoted["domains"].keys()
    for domain, accuracy in found.domains.items():
        images = 23 if domain not in ("photo", "sketch") else 240
        assert accuracy == pytest.approx(quoted["domains"][domain], abs=100 / images + 0.1)


def test_the_card_quotes_the_figures() -> None:
    figures = [FIGURES["cifar10_test"]["accuracy"], *FIGURES["cifar10_test"]["recall"].values()]
    figures += FIGURES["cosine_with_teacher"].values()
    for name in SAMPLE_NAMES:
        figures += [FIGURES[name]["accuracy"], *FIGURES[name]["domains"].values()]
    for figure in figures:
        assert f"{figure}" in CARD
    assert FIGURES["fingerprint"] in CARD


def test_the_backbone_is_good_enough_to_ship() -> None:
    """On all 10,000 CIFAR-10 test images; chance is 10."""
    assert FIGURES["cifar10_test"]["images"] == 10_000
    assert FIGURES["cifar10_test"]["accuracy"] >= 62.0
