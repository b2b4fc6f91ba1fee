"""Downloads of data sets by way of torchvision, and what is still missing afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfedmma_deploy.data.known import ROOT_VARIABLE, Known, data_root, find_known, known_datasets
from pfedmma_deploy.errors import DataError, UsageError, nearest

__all__ = ["fetch", "find_fetchable", "missing_files"]


def find_fetchable(name: str) -> Known:
    """The known data set of that name. Raises `UsageError` where it cannot be downloaded so."""
    known = known_datasets().get(name)
    able = [each.name for each in known_datasets().values() if each.torchvision]
    if known is None:
        raise UsageError(
            f"there is no known data set '{name}'{nearest(name, known_datasets())}; those that can"
            f" be fetched are {', '.join(able)}"
        )
    if known.torchvision is None:
        raise UsageError(
            f"{known.title} cannot be fetched by a program; get it from {known.where}. Those that"
            f" can be fetched are {', '.join(able)}"
        )
    return known


def fetch(known: Known, module: Any, root: str | Path | None = None) -> Path:
    """Download a data set below the data root; what is there already is not fetched again.

    Args:
        known: a result of `find_fetchable`.
        module: `torchvision.datasets`, which this part of the package does not import itself.
        root: where data sets lie; None takes the variable `PFEDMMA_DATA`.

    Returns:
        The folder of the data set.

    Raises:
        UsageError: no data root at all.
        DataError: the download failed, or left something else than was expected.
    """
    base = data_root(root)
    if base is None:
        raise UsageError(f"nowhere to put {known.name}: give --data-root, or set {ROOT_VARIABLE}")
    assert known.torchvision is not None
    try:
        base.mkdir(parents=True, exist_ok=True)
        getattr(module, known.torchvision)(str(base), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{known.name} could not be downloaded into {base}: {error}. Try again, which goes on"
            f" where it stopped, or get it by hand from {known.where}"
        ) from error
    place = find_known(known, base)
    if place is None:
        raise DataError(
            f"the download of {known.name} left none of the folders {', '.join(known.folders)} in"
            f" {base}; this version of torchvision puts it elsewhere. Name that folder with --data"
        )
    return place


def missing_files(known: Known, folder: Path) -> list[str]:
    """Files of `known` that are no images and are not in `folder`."""
    names = [name for name in known.expects if name.endswith((".json", ".txt"))]
    return [name for name in names if not (folder / name).is_file()]
