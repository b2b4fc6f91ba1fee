"""What one model learns from another's scores."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.backbone.blocks import BlockHook
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch


def hooked_logits(backbone: Backbone, hook: BlockHook, batch: Batch) -> Tensor:
    """Class scores [B, C] of the backbone with a hook on both towers."""
    images = backbone.encode_image(batch.pixels, hook)
    texts = backbone.encode_text(batch.texts.prompts, hook, batch.texts.prefix)
    return batch.logit_scale * images @ texts.T


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of two sets of scores [B, C], mean over the batch.

    Temperature 1; the teacher gets no gradient.
    """
    log_student, log_teacher = student.log_softmax(dim=-1), teacher.detach().log_softmax(dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
