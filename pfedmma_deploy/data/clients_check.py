"""What an edit can break in a clients file, each with a sentence about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, get_args

from pfedmma_deploy.errors import DataError, nearest
from pfedmma_deploy.types import Dataset, Split

FORMAT: Final = "pfedmma-clients"
FORMAT_VERSION: Final = 1
_TOP: Final = ("format", "format_version", "base", "novel", "unseen_domain", "data", "made_with",
               "clients", "tests", "warnings")  # fmt: skip
_CLIENT: Final = ("id", "domain", *get_args(Split))
_ID: Final = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")


class EditedFile:
    """What an edit can break in one file's values; every message starts with where it is from."""

    def __init__(self, dataset: Dataset, values: Mapping[str, Any], where: str) -> None:
        self.dataset = dataset
        self.values = values
        self.where = where
        self.examples = {example.key: example for example in dataset.examples}
        self.held: dict[str, str] = {}
        """By key of each client's image: in which split of whom it stands."""

    def check(self) -> None:
        """Raises `DataError` for the first thing that is broken."""
        self.check_keys(self.values, _TOP, "the file")
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if self.values.get(name) != expected:
                self.refuse(f"{name} is {self.values.get(name)!r}, expected {expected!r}")
        recorded = self.table(self.values.get("data", {}), "data").get("class_names")
        names = self.dataset.class_names
        if recorded is not None and recorded != list(names):
            self.refuse(
                f"it was written for {len(recorded)} classes, {', '.join(map(str, recorded[:3]))},"
                f" ..., but {self.dataset.name} has {len(names)}, {', '.join(names[:3])},"
                " ...: the order and the names must be the same. Bring them back, or partition anew"
            )
        classes = {kind: self.check_classes(kind) for kind in ("base", "novel")}
        both = [name for name in classes["base"] if name in classes["novel"]]
        if both and self.values.get("unseen_domain") is None:
            self.refuse(f"class '{both[0]}' is both in base and in novel: leave it in one")
        self.check_clients(classes["base"])
        tests = self.table(self.values.get("tests", {}), "tests")
        self.check_keys(tests, ("base", "novel"), "[tests]")
        for kind, of_kind in classes.items():
            place = f"tests.{kind}"
            for key in self.check_images(tests.get(kind, {}), place, of_kind, kind):
                if not self.held.get(key, "test").startswith("test"):
                    self.refuse(
                        f"image {key} stands in {self.held[key]} and in {place}: nobody may be"
                        " tested on what was trained on"
                    )

    def check_classes(self, place: str) -> list[str]:
        names = self.values.get(place, [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            self.refuse(f"{place} is no list of class names")
        for name in names:
            self.check_class(name, place)
            if names.count(name) > 1:
                self.refuse(f"class '{name}' stands twice in {place}")
        return names

    def check_clients(self, base: Sequence[str]) -> None:
        rows = self.values.get("clients")
        if not isinstance(rows, list) or not rows:
            self.refuse("it has no [[clients]]: add one with its id and [clients.train]")
        taken: set[str] = set()
        for row in rows:
            values = self.table(row, "clients")
            name = values.get("id")
            if not isinstance(name, str) or not _ID.fullmatch(name):
                self.refuse(
                    f"a client has the id {name!r}; expected a text that can name a folder, such as"
                    ' "0" or "site-3"'
                )
            self.check_keys(values, _CLIENT, f"client '{name}'")
            self.check_splits(values, name, base)
            # Runs have a folder per client, and some file systems know no case.
            if name.casefold() in taken:
                self.refuse(f"the id '{name}' stands there twice: give each client its own")
            taken.add(name.casefold())

    def check_splits(self, values: Mapping[str, Any], client: str, base: Sequence[str]) -> None:
        unseen = self.values.get("unseen_domain")
        trained: set[str] = set()
        for split in get_args(Split):
            place = f"{split} of client '{client}'"
            images = self.check_images(values.get(split, {}), place, base, "base")
            if split == "train":
                trained.update(images.values())
            for key, name in images.items():
                if name not in trained:
                    self.refuse(
                        f"{place} has images of '{name}', but it trains on none of that"
                        " class: add some to its train, or remove these"
                    )
                if key in self.held:
                    self.refuse(
                        f"image {key} stands in {self.held[key]} and in {place}: an image belongs"
                        " to one client and one split"
                    )
                example = self.examples[key]
                is_unseen = unseen is not None and unseen in (example.domain, example.client)
                if is_unseen and split != "test":
                    self.refuse(
                        f"image {key} of client '{client}' is of '{unseen}', the domain that nobody"
                        " trains on"
                    )
                self.held[key] = place

    def check_images(
        self, table: Any, place: str, classes: Sequence[str], listed: str
    ) -> dict[str, str]:
        """Class name by key of the images of a table; `listed` is where `classes` stand."""
        found: dict[str, str] = {}
        for name, keys in self.table(table, place).items():
            self.check_class(name, place)
            if name not in classes:
                self.refuse(f"{place} has images of '{name}', which is not one of {listed}")
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                self.refuse(f"'{name}' in {place} is no list of images")
            for key in keys:
                example = self.examples.get(key)
                if example is None:
                    self.refuse(
                        f"{place} names an image {key}, which {self.dataset.name} does not have:"
                        " restore it, or remove its line"
                    )
                actual = self.dataset.class_names[example.label]
                if actual != name:
                    self.refuse(
                        f"image {key} stands under '{name}' in {place}, but the data say '{actual}'"
                    )
                if key in found:
                    self.refuse(f"image {key} stands twice in {place}")
                found[key] = name
        return found

    def check_class(self, name: str, place: str) -> None:
        names = self.dataset.class_names
        if name not in names:
            self.refuse(
                f"{place} names a class '{name}', which {self.dataset.name} does not have"
                f"{nearest(name, names)}"
            )

    def table(self, value: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(f"{place} is {value!r}, expected a table")
        return value

    def check_keys(self, values: Mapping[str, Any], known: Sequence[str], place: str) -> None:
        for name in values:
            if name not in known:
                hint = nearest(name, known) or f"; known are {', '.join(known)}"
                self.refuse(f"unknown key '{name}' in {place}{hint}")

    def refuse(self, reason: str) -> NoReturn:
        raise DataError(f"{self.where}: {reason}")
