"""Phrases that the text tower learns from: names and definitions, no caption of any image."""

from __future__ import annotations

import re
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from timm.data.imagenet_info import ImageNetInfo

from tools import emoji, images
from tools.teacher import TEMPLATE, imagenet_names

COMMON_TEMPLATES = (
    TEMPLATE,
    "{}",
    "a drawing of a {}.",
    "a sketch of a {}.",
    "a blurry photo of a {}.",
    "an emoji of a {}.",
    "a close-up photo of the {}.",
)


def distillation_phrases(cache: Path) -> list[str]:
    """Distinct phrases in a fixed order, most important first (about 190,000)."""
    wordnet = ImageNetInfo("imagenet-22k")
    lemmas = [_split(text) for text in wordnet.label_descriptions()]
    definitions = [str(text) for text in wordnet.label_descriptions(detailed=True)]
    drawn = images.sketch_categories(cache) + [e["name"] for e in emoji.catalogue(cache).values()]
    common = [name for group in imagenet_names() for name in group] + drawn
    common += [name for group in lemmas for name in group if " " not in name and name.islower()]
    phrases = [template.format(name) for template in COMMON_TEMPLATES for name in common]
    rest = [name for group in lemmas for name in group]
    phrases += rest + [TEMPLATE.format(name) for name in rest] + definitions + _vocabulary()
    return list(dict.fromkeys(phrases))


def _split(description: str) -> list[str]:
    return [name.strip() for name in description.split(",") if name.strip()]


def _vocabulary() -> list[str]:
    """Whole words of the CLIP vocabulary, so that no common word's embedding stays untrained."""
    words = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if "</w>" in token)
    return [word for word in words if re.fullmatch(r"[a-z]{3,}", word)]
