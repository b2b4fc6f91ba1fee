"""What papers report for a protocol, to stand beside our own figures and marked as theirs.

The figures and their sources are in `assets/published.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pfedmma_deploy.data.catalog import known_datasets

__all__ = ["published_rows"]


def published_rows(
    dataset: str, protocol: Mapping[str, str] | str, backbone: str, shots: int
) -> list[dict[str, Any]]:
    """The published figures for this data set, protocol, backbone and number of shots.

    Args:
        dataset: the name of a known data set, or the folder that it was read from.
        protocol: `classes` and `partition` of the run, as a mapping or as `base-novel/disjoint`.
        backbone: open_clip's name; `ViT-B/16` counts as `ViT-B-16`.
        shots: training images per class.

    Returns:
        One dictionary per method: `method`, `local`, `base`, `novel`, `hm3` in percent, `source`,
        `url` and the `datasets` that the figures are means over. Empty where no paper has that
        combination.
    """
    name = _known_name(dataset)
    if isinstance(protocol, str):
        classes, _, partition = protocol.partition("/")
    else:
        classes, partition = protocol["classes"], protocol["partition"]
    wanted = (_plain(backbone), shots, classes, partition)
    return [
        {
            "method": method,
            **figures,
            **{key: table[key] for key in ("source", "url", "datasets")},
        }
        for table in _tables()
        if name in table["datasets"]
        and wanted
        == (_plain(table["backbone"]), table["shots"], table["classes"], table["partition"])
        for method, figures in table["methods"].items()
    ]


@cache
def _tables() -> tuple[dict[str, Any], ...]:
    file = files("pfedmma_deploy").joinpath("assets", "published.toml")
    return tuple(tomllib.loads(file.read_text(encoding="utf-8"))["tables"])


def _known_name(dataset: str) -> str:
    """`/data/oxford-iiit-pet` is oxford_pets."""
    last = Path(dataset).name
    for known in known_datasets().values():
        if last == known.name or last in {Path(folder).name for folder in known.folders}:
            return known.name
    return last


def _plain(backbone: str) -> str:
    return backbone.replace("/", "-").casefold()
