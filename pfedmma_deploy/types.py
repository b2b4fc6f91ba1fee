"""The nouns that every layer shares: examples, data sets, clients, scopes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "val", "test"]
Level = Literal["fatal", "error", "warning"]
"""A fatal problem stops training, an error makes its result wrong, a warning leaves it worse."""
Tower = Literal["image", "text"]
TOWERS: tuple[Tower, Tower] = ("image", "text")
Interpolation = Literal["exact", "features"]
"""How a client's strength lies between zero-shot and trained: what the client adds inside the
towers is scaled, or both L2-normalised features are mixed and normalised again."""
Mixing = Interpolation | Literal["scores"]
"""The same of any adapter: class scores are mixed where features cannot be; no graph does that."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""At which a client is measured: 0 is zero-shot, 1 as trained, the last is the largest allowed."""


MOST_LOST = 1.0
"""Points of base or novel accuracy that a client may lose against zero-shot before it counts as one
that loses."""


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


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of thing that is wrong with data: how often, where for example, what to do."""

    kind: str
    """A key of `data.dataset_checks.problem_kinds`."""
    level: Level
    title: str
    """What was found, in the plural."""
    advice: str
    """What to do, one or two sentences."""
    count: int
    examples: tuple[str, ...]
    """The first few places, not all `count` of them."""

    def __str__(self) -> str:
        shown = ", ".join(self.examples)
        more = self.count - len(self.examples)
        rest = f" and {more:,} more" if more > 0 else ""
        return f"{self.title} ({self.count:,}): {shown}{rest}. {self.advice}"


class Dataset(ABC):
    """Labelled images in a fixed class order, and what there is to say of them.

    A subclass sets `name`, `class_names` and `examples`, and opens an image when it is asked for
    one, from any thread. Images that a program has already are an `ItemDataset`.

    Example:
        >>> from PIL import Image
        >>> from pfedmma_deploy import Dataset
        >>> from pfedmma_deploy.types import Example
        >>> class Shades(Dataset):
        ...     name, class_names = "shades", ("dark", "bright")
        ...     examples = tuple(Example(f"{i:03}", i // 128, "train") for i in range(0, 256, 8))
        ...     def open_image(self, example):
        ...         return Image.new("RGB", (32, 32), (int(example.key),) * 3)
        >>> data = Shades()
        >>> data.open_image(data.examples[1]).getpixel((0, 0))
        (8, 8, 8)
    """

    name: str
    class_names: tuple[str, ...]
    """The order is data: it is stored with every run and never derived from a set."""
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()
    layout: str = "memory"
    """How the images lie where they are from, as `pfedmma data info` shows it."""
    root: Path | None = None
    """The folder on disk, where there is one."""
    source: Callable[[str], Any] | None = None
    """Where the image of a key is; None means the file of that path below `root`."""
    has_published_order: bool = False
    """Whether the class order is that of the publisher's own lists."""
    problems: tuple[Problem, ...] = ()
    """What reading it found."""

    @abstractmethod
    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, EXIF orientation applied. Raises `ImageError`."""


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
    """A data set partitioned among clients, with its base and novel classes."""

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
