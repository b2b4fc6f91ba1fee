"""What the demo shows: one bundle, words for its clients and classes, images that suit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.pixels import resize_crop
from pfedmma_deploy.data.samples import SAMPLE_NAMES
from pfedmma_deploy.errors import DataError, ImageError, UsageError, nearest
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.types import Dataset, Example

__all__ = ["CLASS_SETS", "KINDS", "ClassSet", "DemoModel", "Kind", "parse_names"]

ClassSet = Literal["all", "seen", "base", "novel", "typed"]
CLASS_SETS: dict[ClassSet, str] = {
    "all": "All classes",
    "seen": "Seen here",
    "base": "Base classes",
    "novel": "Novel classes",
    "typed": "Names I type",
}
"""Which names a model chooses from, and how that is said."""

Kind = Literal["seen", "elsewhere", "novel", "typed"]
KINDS: dict[Kind, str] = {
    "seen": "seen here",
    "elsewhere": "seen elsewhere",
    "novel": "novel",
    "typed": "typed",
}
"""What a class is to a client: it trained on it, only others did, nobody did, or no known class."""

MOST_NAMES = 100
LONGEST_NAME = 80


@dataclass(frozen=True)
class DemoModel:
    """A bundle opened for prediction."""

    classifier: Classifier
    title: str
    """Name of the bundle's folder."""

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> DemoModel:
        """Open the bundle in `folder`. Raises like `Classifier.load`."""
        return cls(Classifier.load(folder, device), folder.resolve().name)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.classifier.manifest

    @property
    def class_names(self) -> tuple[str, ...]:
        """All known classes in label order."""
        return self.manifest.class_names

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """The personalized clients."""
        return self.manifest.clients[1:]

    def client(self, name: str) -> ClientInfo:
        """A personalized client by its id. Raises `UsageError`, which names those there are."""
        for info in self.clients:
            if info.id == name:
                return info
        ids = [info.id for info in self.clients]
        listed = ", ".join(ids[:12]) + (", ..." if len(ids) > 12 else "")
        raise UsageError(f"There is no client {name!r}{nearest(name, ids)} (clients: {listed}).")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image as the model takes it, uint8 [S, S, 3]. Raises `ImageError`, a sentence."""
        settings = self.manifest.preprocessing
        try:
            return resize_crop(
                image, settings.image_size, settings.resize_mode, settings.interpolation
            )
        except ImageError as error:
            raise ImageError(f"This image cannot be used: {error}.") from error

    def label_of(self, class_name: str) -> int | None:
        """The label of a class name, whatever its case and underscores; None for unknown ones."""
        return self._labels.get(_key(class_name))

    def kind(self, class_name: str, client: ClientInfo) -> Kind:
        """What a class is to a client."""
        label = self.label_of(class_name)
        if label is None:
            return "typed"
        if label in client.seen:
            return "seen"
        return "novel" if self.is_novel(label) else "elsewhere"

    def is_novel(self, label: int) -> bool:
        """Whether nobody trained on the class; a class may be novel in another look only."""
        return label in self.manifest.novel and label not in self.manifest.base

    def names(self, class_set: ClassSet, client: ClientInfo, typed: str = "") -> tuple[str, ...]:
        """The class names of a class set.

        Raises:
            UsageError: an unknown or empty set, or typed names that cannot be used.
        """
        if class_set not in get_args(ClassSet):
            sets = ", ".join(CLASS_SETS)
            raise UsageError(f"There is no class set {class_set!r}; the class sets are {sets}.")
        if class_set == "typed":
            return parse_names(typed)
        labels: Sequence[int] = {
            "all": range(len(self.class_names)),
            "seen": client.seen,
            "base": self.manifest.base,
            "novel": self.manifest.novel,
        }[class_set]
        if not labels:
            raise UsageError(
                "This model has no such classes: "
                f"“{CLASS_SETS[class_set]}” is empty; choose another class set."
            )
        return tuple(self.class_names[label] for label in labels)

    @cached_property
    def sample(self) -> Dataset | None:
        """The embedded images whose classes the bundle knows; None for models of other data."""
        name = self.manifest.provenance.get("data")
        if name not in SAMPLE_NAMES:
            return None
        dataset = load_dataset(str(name))
        return dataset if set(dataset.class_names) <= set(self.class_names) else None

    @cached_property
    def tests(self) -> tuple[Example, ...]:
        """The sample's test images, one class after the other in turn: any start has all classes.

        Labels are the bundle's. Empty where no sample suits the bundle.
        """
        if self.sample is None:
            return ()
        by_label: dict[int, list[Example]] = {}
        for example in self.sample.examples:
            if example.split == "test":
                by_label.setdefault(example.label, []).append(example)
        columns = [by_label[label] for label in sorted(by_label)]
        longest = max(map(len, columns), default=0)
        return tuple(column[i] for i in range(longest) for column in columns if i < len(column))

    def label(self, example: Example) -> int:
        """The bundle's label of a sample image."""
        if self.sample is None:
            raise DataError("This model comes without sample images.")
        return self.class_names.index(self.sample.class_names[example.label])

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {_key(name): label for label, name in enumerate(self.class_names)}


def _key(class_name: str) -> str:
    return class_name.replace("_", " ").strip().casefold()


def parse_names(text: str) -> tuple[str, ...]:
    """Class names typed by a person: separated by commas or line ends.

    Raises:
        UsageError: fewer than two, one of them twice, too many, or too long.
    """
    parts = text.replace("\n", ",").split(",")
    printable = ("".join(c if c.isprintable() else " " for c in part) for part in parts)
    names = tuple(name for part in printable if (name := " ".join(part.split())))
    if len(names) < 2:
        raise UsageError(
            "Type at least two class names with a comma between them, for example: "
            "a red car, a sailing boat, a husky."
        )
    if len(names) > MOST_NAMES:
        raise UsageError(f"{len(names)} class names are more than {MOST_NAMES}: leave some out.")
    for name in names:
        if len(name) > LONGEST_NAME:
            raise UsageError(
                f"The class name “{name[:30]}…” has {len(name)} characters; "
                f"{LONGEST_NAME} are allowed."
            )
    lowered = [name.lower() for name in names]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise UsageError(f"The class “{name}” is named twice: name each class once.")
    return names
