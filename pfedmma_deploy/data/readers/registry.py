"""The readers, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from pfedmma_deploy.data.readers import (
    aircraft,
    cifar,
    fedbn,
    folders,
    hub,
    imagenet,
    lists,
    official,
    splits,
    tables,
)
from pfedmma_deploy.data.readers.base import Reader

__all__ = ["READERS"]

READERS: Final = (
    Reader("manifest", tables.find, tables.read),
    Reader("hub", hub.find, hub.read),
    Reader("cifar", cifar.find, cifar.read),
    Reader("split", splits.find, splits.read),
    Reader("official", official.find, official.read),
    Reader("aircraft", aircraft.find, aircraft.read),
    Reader("imagenet", imagenet.find, imagenet.read),
    Reader("lists", lists.find, lists.read),
    Reader("fedbn", fedbn.find, fedbn.read),
    # Any folder of images, so the last.
    Reader("folders", folders.find, folders.read),
)
