"""What a round costs, counted: straight, and with what can be left out left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pfedmma_deploy.backbone.clip import Backbone, class_texts
from pfedmma_deploy.backbone.flops import image_tokens, tower_flop
from pfedmma_deploy.benchmark.training import TEMPLATE, TrainingTask
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.types import TOWERS


@dataclass(frozen=True)
class RoundFlop:
    """Operations of one round, straight and with what can be left out left out."""

    straight: int
    ours: int

    @property
    def bound(self) -> float:
        """The most that leaving out can win."""
        return self.straight / self.ours


def count_round(task: TrainingTask, backbone: Backbone) -> RoundFlop:
    """Count a round of a task: training and evaluation of its participants."""
    adapter = PFedMMA().build(backbone, torch.Generator().manual_seed(0))
    names = [f"class {i}" for i in range(2 * task.classes)]
    prompts = class_texts(backbone, names, TEMPLATE).prompts
    share = task.classes * task.shots // task.clients
    steps = task.participants * -(-share // task.batch_size)
    trained = task.participants * share
    tested = task.participants * 2 * task.classes * task.tests
    found = []
    for is_straight in (True, False):
        own = replace(backbone, token_shortcuts=not is_straight)
        first = {tower: adapter.first_block(own, tower) for tower in TOWERS}
        image = tower_flop(
            own,
            "image",
            image_tokens(own),
            start=0 if is_straight else first["image"],
            adapted=first["image"],
        )
        text = tower_flop(
            own,
            "text",
            own.prompt_length(prompts),
            start=0 if is_straight else first["text"],
            adapted=first["text"],
        )
        found.append(
            trained * image.total
            + steps * task.classes * text.total
            + tested * image.forward
            + task.participants * 2 * task.classes * text.forward
        )
    return RoundFlop(*found)
