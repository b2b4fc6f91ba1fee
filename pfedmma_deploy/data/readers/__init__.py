"""One module per family of ways in which data sets lie on disk.

A reader has two functions: `find` says from the layout alone whether a path is its own, `read`
lists the images. None of them runs code that a data set brings along.
"""

from __future__ import annotations

from typing import Final

from pfedmma_deploy.data.readers import cifar, few_shot, folders, published_lists, saved_tables
from pfedmma_deploy.data.readers.base import Reader

READERS: Final[tuple[Reader, ...]] = (
    *saved_tables.READERS,
    *cifar.READERS,
    *few_shot.READERS,
    *published_lists.READERS,
    # Any folder of images, so the last.
    *folders.READERS,
)
"""In the order in which they are tried."""
