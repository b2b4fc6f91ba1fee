"""The nouns that every layer shares: examples, data sets, clients, scopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "val", "test"]
Tower = Literal["image", "text"]
TOWERS: tuple[Tower, Tower] = ("image", "text")


class Scope(StrEnum):
    """Who holds a parameter: averaged over clients, kept by one client, or never trained."""

    SHARED = "shared"
    LOCAL = "local"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image; the pixels stay where they are until `Dataset.open_image`."""

    key: str
    """Unique within the data set: a path relative to its root, with forward slashes."""
    label: int
    """Index into `Dataset.class_names`."""
    split: Split
    client: str | None = None
    """The site that holds the image, where the data say so."""
    domain: str | None = None
    """The look of the image (photo, sketch, ...), where the data say so."""
    caption: str | None = None
    """A sentence about the image, where the data have one."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that was left out, and why."""

    path: str
    reason: str


class Dataset(Protocol):
    """Labelled images in a fixed class order."""

    name: str
    class_names: tuple[str, ...]
    """The order is data: it is stored with every run and never derived from a set."""
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...]

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, EXIF orientation applied. Raises `ImageError`."""
        ...


@dataclass(frozen=True)
class ClientData:
    """What one client holds."""

    id: str
    classes: tuple[int, ...]
    """Labels that the client trains on ("seen"), ascending."""
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    """Test images of its own classes: what local accuracy is measured on."""
    domain: str | None = None


@dataclass(frozen=True)
class Federation:
    """A data set divided among clients, with its base and novel classes."""

    dataset: Dataset
    base: tuple[int, ...]
    novel: tuple[int, ...]
    """Empty where every class is trained on."""
    clients: tuple[ClientData, ...]
    base_test: tuple[Example, ...]
    novel_test: tuple[Example, ...]
    warnings: tuple[str, ...] = field(default=())
    unseen_domain: str | None = None
    """Where a domain is left out: `novel_test` is of this domain, which no client trains on, and
    `novel` may then be the same classes as `base`."""

    def names(self, labels: Sequence[int]) -> list[str]:
        """Class names of `labels`, in the order given."""
        return [self.dataset.class_names[label] for label in labels]
