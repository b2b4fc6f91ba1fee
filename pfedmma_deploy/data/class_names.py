"""Class names: of folders, in prompts, the same in two spellings, as the literature writes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

CLASSES_FILE: Final = "classes.txt"
"""In a data folder: the order of its classes, and other names for them."""
# Not "C-130" or "747-200", which are names of aircraft.
_IDS: Final = re.compile(
    r"""
      \d+                                                # 7
    | (?:n|wn)[ ]?\d{8}                                  # n01440764 of WordNet
    | (?:class|cls|label|category|cat|type|group|object|obj|item|species|folder|id|idx)[ #-]?\d+
    | (?=.*\d)[0-9a-f]{8}(?:[ -]?[0-9a-f]{4}){0,3}[0-9a-f -]*   # hashes and UUIDs
    | /?m[/ ]0[0-9a-z_]+                                 # /m/0k4j of Open Images
    """,
    re.VERBOSE,
)


def class_name(folder: str) -> str:
    """The name that a prompt gets for a class folder: underscores become spaces."""
    return " ".join(folder.replace("_", " ").split()) or folder


def class_key(name: str) -> str:
    """What two class names have in common when a reader would call them the same."""
    # NFKC: an accent may be a letter's own or a sign behind it, and both look the same.
    text = unicodedata.normalize("NFKC", name).replace("_", " ")
    return re.sub(r"\s+", " ", text).strip().casefold()


def is_id(name: str) -> bool:
    """Whether a class name is a number or a code, which no text encoder can make sense of."""
    return _IDS.fullmatch(class_key(name)) is not None


def build_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """`template` with each name in place of `{}`; underscores of folder names become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]
