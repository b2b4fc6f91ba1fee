"""Class names as sentences."""

from __future__ import annotations

from collections.abc import Sequence


def build_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """`template` with each name in place of `{}`; underscores of folder names become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]
