"""Class names as the few-shot literature writes them, whatever a split file was made from.

The split files that CoOp's authors share hold these names already; files that others made from the
original annotations may not, and CLIP's accuracy depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["fix_name"]

_RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "caltech-101": {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
}
_YEAR: Final = re.compile(r"(?P<car>.+) (?P<year>(?:19|20)\d\d)")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def fix_name(dataset: str, name: str) -> str:
    """The name of a class in a prompt.

    - caltech-101, eurosat: the renamed classes of CoOp (`Faces` is `face`, `SeaLake` is `Sea or
      Lake`).
    - stanford_cars: the year comes first (`2012 Audi TT RS Coupe`).
    - sun397: indoor or outdoor comes first (`a/apse/indoor` is `indoor apse`).
    - ucf101: words apart (`ApplyEyeMakeup` is `Apply Eye Makeup`).
    - oxford_pets: lower case, as in CLIP's own list of breeds.

    Underscores stay; `classes.class_name` makes spaces of them.
    """
    if dataset in _RENAMED:
        return _RENAMED[dataset].get(name, name)
    if dataset == "stanford_cars" and (match := _YEAR.fullmatch(name)):
        return f"{match['year']} {match['car']}"
    if dataset == "sun397" and "/" in name:
        words = [word for word in name.split("/") if len(word) > 1]
        return " ".join(reversed(words))
    if dataset == "ucf101" and "_" not in name:
        return _CAMEL.sub(" ", name)
    return name.lower() if dataset == "oxford_pets" else name
