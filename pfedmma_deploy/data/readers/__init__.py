"""One module per way in which data sets lie on disk; `READERS` tries them in this order.

A reader has two functions: `find` says from the layout alone whether a path is its own, `read`
lists the images. None of them runs code that a data set brings along, and none unpickles.
"""

from __future__ import annotations

from typing import Final

from pfedmma_deploy.data.readers import (
    aircraft,
    cifar,
    folders,
    hub,
    imagenet,
    lists,
    official,
    splits,
    tables,
)
from pfedmma_deploy.data.readers.base import Listing, Reader

__all__ = ["READERS", "Listing", "Reader"]

READERS: Final = (
    Reader("manifest", tables.find, tables.read),
    Reader("hub", hub.find, hub.read),
    Reader("cifar", cifar.find, cifar.read),
    Reader("split", splits.find, splits.read),
    Reader("official", official.find, official.read),
    Reader("aircraft", aircraft.find, aircraft.read),
    Reader("imagenet", imagenet.find, imagenet.read),
    Reader("lists", lists.find, lists.read),
    # Any folder of images, so the last.
    Reader("folders", folders.find, folders.read),
)
