"""Class names as a backbone reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pfedmma_deploy.backbone.clip import Backbone, Prefix
from pfedmma_deploy.data.class_names import build_prompts

BARE = "{}."
"""Around a class name that a learned context stands before (CoOp, arXiv 2109.01134)."""


@dataclass(frozen=True)
class ClassTexts:
    """Class names in their order, tokenized in the two ways that methods need."""

    names: tuple[str, ...]
    prompts: Tensor
    """int64 [C, context]: the hand-written prompt around each name."""
    bare: Tensor
    """int64 [C, context]: each name alone with a full stop."""
    prefix: Prefix | None = None
    """What the frozen lower text blocks make of `prompts`; None: computed each time."""


def class_texts(backbone: Backbone, names: Sequence[str], template: str) -> ClassTexts:
    """`names` tokenized; `template` holds `{}` where the name goes."""
    return ClassTexts(
        names=tuple(names),
        prompts=backbone.tokenize(build_prompts(names, template)),
        bare=backbone.tokenize(build_prompts(names, BARE)),
    )


def with_prefix(backbone: Backbone, texts: ClassTexts, start: int) -> ClassTexts:
    """`texts` with what text block `start` reads of the prompts."""
    if start == 0:
        return texts
    return replace(texts, prefix=backbone.text_prefix(texts.prompts, start))
