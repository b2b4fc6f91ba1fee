"""Images that a program has already, as a data set."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example, Split


class Items(Protocol):
    """Anything with a length whose items are pairs of an image and a label."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Image and label."""
        ...


class ItemDataset(Dataset):
    """Images of a map-style data set: a list of pairs, torchvision's, Hugging Face's, your own.

    Args:
        items: pairs (image, label) by index. An image is a Pillow image of any mode, or an array,
            uint8 [H, W, 3] or grey [H, W]. A label is an index into `class_names`. The pairs are
            read once here, for their labels, and again when images are needed: one at a time,
            whatever threads ask.
        class_names: in label order.
        name: by which runs remember the data.
        splits: `train`, `val` or `test` of each item; None leaves the division to the partition.
        clients: who holds each item, for `partition="folders"`; None where it does not say.

    Raises:
        DataError: no items, lists of other lengths, or an item that is no pair of an image and one
            of the labels; the item is named.

    Example:
        >>> import numpy as np
        >>> from pfedmma_deploy import ItemDataset
        >>> night, day = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
        >>> data = ItemDataset([(night, 0), (day, 1)], ["night", "day"], name="skies")
        >>> [(example.key, data.class_names[example.label]) for example in data.examples]
        [('0', 'night'), ('1', 'day')]
    """

    def __init__(
        self,
        items: Items,
        class_names: Sequence[str],
        *,
        name: str = "items",
        splits: Sequence[Split] | None = None,
        clients: Sequence[str] | None = None,
    ) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self._items, self._lock = items, threading.Lock()
        count = len(items)
        if count == 0:
            raise DataError(f"the data set {name} has no items: give it pairs of image and label")
        for what, values in (("splits", splits), ("clients", clients)):
            if values is not None and len(values) != count:
                raise DataError(
                    f"the data set {name} has {count:,} items and {len(values):,} {what}: give one"
                    " for each item, or none at all"
                )
        for split in splits or ():
            if split not in ("train", "val", "test"):
                raise DataError(
                    f"the data set {name} has a split {split!r}: use train, val and test"
                )
        examples = []
        for index in range(count):
            split = splits[index] if splits else "train"
            client = clients[index] if clients else None
            # Keys sort as the items do.
            key = f"{index:0{len(str(count - 1))}}"
            examples.append(Example(key, self._label(index), split, client))
        self.examples = tuple(examples)

    def open_image(self, example: Example) -> Image.Image:
        """See `Dataset`."""
        return self._pair(int(example.key))[0]

    def _label(self, index: int) -> int:
        label = self._pair(index)[1]
        if not 0 <= label < len(self.class_names):
            raise DataError(
                f"item {index} of the data set {self.name} has label {label}, which none of the"
                f" {len(self.class_names)} class names has: labels are indices into class_names"
            )
        return label

    def _pair(self, index: int) -> tuple[Image.Image, int]:
        # Nothing says that somebody else's data set may be read by several threads at once.
        with self._lock:
            item = self._items[index]
        try:
            image, label = item
            return _to_image(image), int(label)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"item {index} of the data set {self.name} should be a pair (image, label) with a"
                f" Pillow image or a uint8 array [H, W, 3] or [H, W]: {error}"
            ) from error


def _to_image(image: Any) -> Image.Image:
    """In RGB, upright. Raises `TypeError` for what is no image."""
    if not isinstance(image, Image.Image):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise TypeError(f"found {getattr(image, 'dtype', type(image).__name__)}")
        image = Image.fromarray(image)
    return ImageOps.exif_transpose(image).convert("RGB")
