"""The images of a run and those of one more client, as one data set."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from pfedmma_deploy.data.checks import class_key
from pfedmma_deploy.types import Dataset, Example, Skipped

_PREFIX = "client:"


class JoinedDataset:
    """`first` as it is, followed by `second`, whose new class names come after the known ones.

    "Cat" beside "cat" is the same class (`checks.class_key`). Keys of the second are prefixed, so
    that none is taken for one of the first.
    """

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.name = f"{first.name} and {second.name}"
        known = {class_key(name): label for label, name in enumerate(first.class_names)}
        new = [name for name in second.class_names if class_key(name) not in known]
        known.update({class_key(name): len(known) + i for i, name in enumerate(new)})
        self.class_names: tuple[str, ...] = (*first.class_names, *new)
        self.label = [known[class_key(name)] for name in second.class_names]
        """Label here of each label of the second data set."""
        self.added: dict[str, Example] = {
            example.key: replace(
                example, key=_PREFIX + example.key, label=self.label[example.label], client=None
            )
            for example in second.examples
        }
        """The examples of the second data set by their keys there."""
        self.examples: tuple[Example, ...] = (*first.examples, *self.added.values())
        self.skipped: tuple[Skipped, ...] = (*first.skipped, *second.skipped)
        self._first, self._second = first, second
        self._original = {self.added[e.key].key: e for e in second.examples}

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels from whichever data set holds the example."""
        original = self._original.get(example.key)
        if original is None:
            return self._first.open_image(example)
        return self._second.open_image(original)
