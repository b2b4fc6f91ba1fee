"""Figures that papers report, to stand beside our own: theirs, from `assets/published.toml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pfedmma_deploy.config import PartitionConfig, read_table
from pfedmma_deploy.data.catalog import known_datasets


def published_rows(dataset: str, partition: PartitionConfig, backbone: str) -> list[dict[str, Any]]:
    """The published figures for this data set, partition and backbone.

    Args:
        dataset: the name of a known data set, or the folder that it was read from.
        partition: its `classes`, `scheme` and `num_shots` count.
        backbone: open_clip's name; `ViT-B/16` counts as `ViT-B-16`.

    Returns:
        One dictionary per method: `method`, `local`, `base`, `novel`, `hm3` in percent, `source`,
        `url` and the `datasets` that the figures are means over. Empty where no paper has that
        combination.
    """
    name = _known_name(dataset)
    wanted = (_plain(backbone), partition.num_shots, partition.classes, partition.scheme)
    found = []
    for table in published_tables():
        made_with = (table["shots"], table["classes"], table["partition"])
        if name in table["datasets"] and wanted == (_plain(table["backbone"]), *made_with):
            found += _rows(table)
    return found


def published_for(protocol: str) -> list[dict[str, Any]]:
    """The published figures of a protocol of `report.protocols`, as `published_rows` has them."""
    found = []
    for table in published_tables():
        if table["protocol"] == protocol:
            found += _rows(table)
    return found


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    source = {key: table[key] for key in ("source", "url", "datasets")}
    return [{"method": method, **own, **source} for method, own in table["methods"].items()]


@cache
def published_tables() -> tuple[dict[str, Any], ...]:
    """Every table of the file, as it stands there."""
    return tuple(read_table("published.toml")["tables"])


def _known_name(dataset: str) -> str:
    """`/data/oxford-iiit-pet` is oxford_pets."""
    last = Path(dataset).name
    for known in known_datasets().values():
        if last == known.name or last in {Path(folder).name for folder in known.folders}:
            return known.name
    return last


def _plain(backbone: str) -> str:
    return backbone.replace("/", "-").casefold()
