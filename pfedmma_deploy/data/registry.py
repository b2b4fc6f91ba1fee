"""Data sets by name that are neither on disk nor in this package: of programs, and of plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.samples import SAMPLE_NAMES
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.plugins import Plugins, load_plugins
from pfedmma_deploy.types import Dataset

OpenDataset = Callable[[], Dataset]

REGISTERED: dict[str, Dataset] = {}
"""What this program registered, by name."""


def register_dataset(dataset: Dataset) -> Dataset:
    """Make a data set known by its name in this process: `train`, `evaluate` and the rest find it.

    A run remembers the name of its data, not the images. Another process that evaluates,
    personalizes or exports the run registers the same data set first. Registering another one
    under the same name takes the place of the first.

    Args:
        dataset: any `Dataset`, such as an `ItemDataset`.

    Returns:
        The data set.

    Raises:
        UsageError: a sample or a known data set has that name, or it has none.

    Example:
        >>> import numpy as np
        >>> from pfedmma_deploy import ItemDataset, register_dataset
        >>> grey = np.full((8, 8, 3), 128, np.uint8)
        >>> register_dataset(ItemDataset([(grey, 0)], ["grey"], name="greys")).name
        'greys'
    """
    name = dataset.name
    if not name or name in SAMPLE_NAMES or name in known_datasets():
        raise UsageError(
            f"no data set can be registered as {name!r}: "
            + ("that is a data set of this package; " if name else "")
            + "give it a name of its own"
        )
    REGISTERED[name] = dataset
    return dataset


@cache
def dataset_plugins() -> Plugins[OpenDataset]:
    """Data sets that installed packages add (`pfedmma.datasets`): functions that open them."""
    names = {*SAMPLE_NAMES, *known_datasets()}
    return load_plugins("pfedmma.datasets", dict.fromkeys(names), _check_dataset)


def open_plugin(name: str) -> Dataset | None:
    """The data set that a plug-in adds under this name; None where none does.

    Raises:
        UsageError: the plug-in is broken.
        DataError: its function does not return a data set.
    """
    plugins = dataset_plugins()
    plugins.require_usable(name)
    if name not in plugins.found:
        return None
    dataset = plugins.found[name]()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"the data set {name!r} of {plugins.packages[name]} should be a Dataset, found"
            f" {type(dataset).__name__}: update that package"
        )
    return dataset


def _check_dataset(name: str, found: object) -> OpenDataset:
    if not callable(found):
        raise UsageError(
            "it should be a function that returns a Dataset, found " + type(found).__name__
        )
    return found
