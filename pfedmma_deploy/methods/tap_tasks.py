"""The tasks of TAP: what is scored, what is minimised, what a student takes from a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.components import ComponentAdapter, Model, Task
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, clip_logits
from pfedmma_deploy.methods.distill import divergence

__all__ = ["score_divergence", "score_loss", "task_scores"]


def task_scores(
    backbone: Backbone, adapter: ComponentAdapter, batch: Batch, model: Model, task: Task
) -> Tensor:
    """Scores of a batch under a model and a task.

    classify: [B, C], images against class names. retrieve: [P, P], the images that have captions
    against their captions; P may be 0.
    """
    with adapter.using(model, task):
        if task == "classify":
            return clip_logits(backbone, adapter, batch)
        rows = [i for i, example in enumerate(batch.examples) if example.caption]
        if not rows:
            return torch.zeros(0, 0, device=backbone.device)
        captions = [example.caption for example in batch.examples if example.caption]
        images = adapter.encode_image(backbone, batch.pixels)[rows]
        texts = backbone.encode_text(
            backbone.tokenize(captions), adapter.hook, attention=adapter.attention
        )
        return batch.logit_scale * images @ texts.T


def score_loss(task: Task, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [B, C], or symmetric InfoNCE [P, P] whose pairs are on the diagonal."""
    if task == "classify":
        return F.cross_entropy(scores, labels.to(scores.device))
    if len(scores) == 0:
        return scores.sum()
    pairs = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


def score_divergence(task: Task, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), batch mean; for retrieval the mean of both directions."""
    if task == "classify":
        return divergence(student, teacher)
    if len(student) == 0:
        return student.sum()
    return (divergence(student, teacher) + divergence(student.T, teacher.T)) / 2
