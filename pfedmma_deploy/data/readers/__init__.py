"""One module per family of ways in which data sets lie on disk.

A reader has two functions: `find` says from the layout alone whether a path is its own, `read`
lists the images. None of them runs code that a data set brings along.
"""

from __future__ import annotations

from typing import Final

from pfedmma_deploy.data.readers import (
    cifar,
    class_lists,
    domain_lists,
    few_shot,
    folders,
    saved_tables,
)
from pfedmma_deploy.data.readers.base import Reader

READERS: Final = (
    Reader(saved_tables.find_manifest, saved_tables.read_manifest),
    Reader(saved_tables.find_hub, saved_tables.read_hub),
    Reader(cifar.find, cifar.read),
    Reader(few_shot.find_split_file, few_shot.read_split_file, keeps_order=True),
    Reader(few_shot.find_published, few_shot.read_published, keeps_order=True),
    Reader(class_lists.find_aircraft, class_lists.read_aircraft, keeps_order=True),
    Reader(class_lists.find_imagenet, class_lists.read_imagenet, keeps_order=True),
    Reader(domain_lists.find_texts, domain_lists.read_texts, keeps_order=True),
    Reader(domain_lists.find_pickles, domain_lists.read_pickles, keeps_order=True),
    # Any folder of images, so the last.
    Reader(folders.find, folders.read),
)
"""In the order in which they are tried."""
