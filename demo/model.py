"""What the demo shows: one bundle, its clients and classes, images that suit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.pixels import resize_crop
from pfedmma_deploy.data.samples import SAMPLE_NAMES
from pfedmma_deploy.errors import DataError, ImageError, UsageError, nearest
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.manifest import (
    ClientHistory,
    ClientInfo,
    CurvePoint,
    Figures,
    Manifest,
)
from pfedmma_deploy.types import Dataset, Example

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
WITHIN = 1.0
"""Points by which novel accuracy may differ from zero-shot for the client shown first."""


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
        return self._labels.get(class_key(class_name))

    def kind(self, class_name: str, client: ClientInfo) -> Kind:
        """What a class is to a client."""
        label = self.label_of(class_name)
        if label is None:
            return "typed"
        if label in client.seen:
            return "seen"
        return "novel" if self.is_novel(label) else "elsewhere"

    def is_novel(self, label: int) -> bool:
        """Whether nobody trained on the class; a class may be novel in another domain only."""
        return label in self.manifest.novel and label not in self.manifest.base

    def names(self, class_set: ClassSet, client: ClientInfo, typed: str = "") -> tuple[str, ...]:
        """The class names of a class set.

        Raises:
            UsageError: an unknown or empty set, or typed names that cannot be used.
        """
        if class_set not in CLASS_SETS:
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
        return self.named(labels)

    def named(self, labels: Sequence[int]) -> tuple[str, ...]:
        """The names of these labels."""
        return tuple(self.class_names[label] for label in labels)

    @cached_property
    def sample(self) -> Dataset | None:
        """The embedded images whose classes the bundle knows; None for models of other data."""
        # By the name that training noted, not by class names: ten classes called the same may look
        # like anything.
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
        # One of each class a row; shorter columns end before the others do.
        columns = [by_label[label] for label in sorted(by_label)]
        rows = zip_longest(*columns)
        return tuple(filter(None, chain.from_iterable(rows)))

    def label(self, example: Example) -> int:
        """The bundle's label of a sample image."""
        if self.sample is None:
            raise DataError("This model comes without sample images.")
        return self.class_names.index(self.sample.class_names[example.label])

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {class_key(name): label for label, name in enumerate(self.class_names)}


@dataclass(frozen=True)
class ClientRow:
    """One client, as the page shows it."""

    id: str
    seen: tuple[str, ...]
    """Names of the classes that it trained on."""
    images: int | None
    """Training images; None where the bundle does not say."""
    zero_shot: Figures | None
    personalized: Figures | None
    default_strength: float
    """The strength that its model has unless another is asked for."""
    curve: tuple[CurvePoint, ...]
    """What it reaches at several strengths; empty where the bundle does not say."""


def client_rows(model: DemoModel) -> list[ClientRow]:
    """All personalized clients in the bundle's order."""
    history, rows = model.manifest.history, []
    clients = history.clients if history else {}
    for info in model.clients:
        known = clients.get(info.id, ClientHistory((), None, None))
        images = sum(known.num_examples) if known.num_examples else None
        seen = model.named(info.seen)
        rows.append(
            ClientRow(
                id=info.id,
                seen=seen,
                images=images,
                zero_shot=known.zero_shot,
                personalized=known.personalized,
                default_strength=info.default_strength,
                curve=known.curve,
            )
        )
    return rows


def client_choices(model: DemoModel, most: int = 6) -> dict[str, str]:
    """Every client's id -> what it is called and has seen."""
    choices = {}
    for info in model.clients:
        seen = ", ".join(model.named(info.seen[:most])).replace("_", " ")
        if len(info.seen) > most:
            seen += f", {len(info.seen) - most} more"
        choices[info.id] = f"Client {info.id}: {seen}"
    return choices


def image_counts(model: DemoModel) -> tuple[NDArray[np.int64], bool]:
    """Training images int64 [clients, C], and whether they are numbers; else 1 means "has some"."""
    history = model.manifest.history
    clients = history.clients if history else {}
    counts = np.zeros((len(model.clients), len(model.class_names)), np.int64)
    known = all(info.id in clients and clients[info.id].num_examples for info in model.clients)
    for row, info in enumerate(model.clients):
        if known:
            counts[row] = clients[info.id].num_examples
        else:
            counts[row, list(info.seen)] = 1
    return counts, known


def first_client(model: DemoModel) -> str:
    """The client to show first: the one that gains most on its own classes without loss on novel.

    Among the clients whose novel accuracy stays within a point of zero-shot, the one whose local
    accuracy rises most; where none stays within, the one with the largest sum of both changes;
    where nothing was measured, the bundle's first.
    """
    best: tuple[bool, float] = False, -math.inf
    chosen = model.clients[0].id
    for row in client_rows(model):
        local, novel = _change(row, "local"), _change(row, "novel")
        if local is None:
            continue
        # Tuples compare in order: one that stays within a point beats any gain that does not.
        stays = novel is None or abs(novel) <= WITHIN
        score = stays, local if stays else local + (novel or 0.0)
        if score > best:
            best, chosen = score, row.id
    return chosen


def _change(row: ClientRow, figure: str) -> float | None:
    """Points by which personalization changes `local`, `base` or `novel`; None if not measured."""
    before, after = getattr(row.zero_shot, figure, None), getattr(row.personalized, figure, None)
    return None if before is None or after is None else after - before


def clients_dict(model: DemoModel) -> dict[str, Any]:
    """JSON-ready: every client, and what training sent."""
    history, both_ways = model.manifest.history, None
    if history is not None:
        both_ways = history.bytes_up_per_client_round + history.bytes_down_per_client_round
    return {
        "clients": [asdict(row) for row in client_rows(model)],
        "class_names": list(model.class_names),
        "base": list(model.named(model.manifest.base)),
        "novel": list(model.named(model.manifest.novel)),
        "shown_first": first_client(model),
        "rounds": history.rounds if history else None,
        "bytes_per_client_round": both_ways,
        "bytes_total": history.bytes_total if history else None,
    }


def parse_names(text: str) -> tuple[str, ...]:
    """Class names typed by a person: separated by commas or line ends.

    Raises:
        UsageError: fewer than two, one of them twice, too many, or too long.
    """
    # Marks that turn the direction of writing, or hide letters, make a name look like another.
    printable = "".join(c if c.isprintable() else " " for c in text.replace("\n", ","))
    parts = (" ".join(part.split()) for part in printable.split(","))
    names = tuple(filter(None, parts))
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
