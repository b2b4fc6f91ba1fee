"""What the values of a clients file mean, or a sentence about what an edit broke."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, NoReturn

from pfedmma_deploy.errors import DataError, nearest
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Split

__all__ = ["FORMAT", "FORMAT_VERSION", "ClientsReader"]

FORMAT: Final = "pfedmma-clients"
FORMAT_VERSION: Final = 1

_TOP: Final = ("format", "format_version", "base", "novel", "unseen_domain", "data", "made_with",
               "clients", "tests")  # fmt: skip
_CLIENT: Final = ("id", "domain", "train", "val", "test")
_SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
_ID: Final = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")


class ClientsReader:
    """One file's values, read against one data set; every message starts with where it is from."""

    def __init__(self, dataset: Dataset, values: Mapping[str, Any], where: str) -> None:
        self.dataset = dataset
        self.names = dataset.class_names
        self.values = values
        self.where = where
        self.labels = {name: label for label, name in enumerate(dataset.class_names)}
        self.places = {example.key: place for place, example in enumerate(dataset.examples)}
        self.held: dict[str, str] = {}
        """By key of each client's image: in which split of whom it stands."""

    def read(self) -> Federation:
        self.check_keys(self.values, _TOP, "the file")
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if self.values.get(name) != expected:
                self.refuse(f"{name} is {self.values.get(name)!r}, expected {expected!r}")
        self.check_class_names()
        base, novel = self.classes("base"), self.classes("novel")
        unseen = self.values.get("unseen_domain")
        both = [label for label in base if label in novel]
        if both and unseen is None:
            self.refuse(
                f"class '{self.names[both[0]]}' is both in base and in novel: leave it in one"
            )
        clients = self.clients(base)
        tests = self.table(self.values.get("tests", {}), "tests")
        self.check_keys(tests, ("base", "novel"), "[tests]")
        federation = Federation(
            dataset=self.dataset,
            base=base,
            novel=novel,
            clients=clients,
            base_test=self.tests(tests.get("base", {}), "tests.base", base),
            novel_test=self.tests(tests.get("novel", {}), "tests.novel", novel),
            unseen_domain=unseen,
        )
        self.check_unseen(federation)
        return federation

    def clients(self, base: Sequence[int]) -> tuple[ClientData, ...]:
        rows = self.values.get("clients")
        if not isinstance(rows, list) or not rows:
            self.refuse("it has no [[clients]]: add one with its id and [clients.train]")
        clients = tuple(self.client(self.table(row, "clients"), base) for row in rows)
        taken: set[str] = set()
        for client in clients:
            # Runs have a folder per client, and some file systems know no case.
            if client.id.casefold() in taken:
                self.refuse(f"the id '{client.id}' stands there twice: give each client its own")
            taken.add(client.id.casefold())
        return clients

    def client(self, values: Mapping[str, Any], base: Sequence[int]) -> ClientData:
        name = values.get("id")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            self.refuse(
                f"a client has the id {name!r}; expected a text that can name a folder, such as"
                ' "0" or "site-3"'
            )
        who = f"client '{name}'"
        self.check_keys(values, _CLIENT, who)
        held = {split: self.held_images(values, split, who, base) for split in _SPLITS}
        seen = tuple(sorted({example.label for example in held["train"]}))
        for split in ("val", "test"):
            for example in held[split]:
                if example.label not in seen:
                    self.refuse(
                        f"{split} of {who} has images of '{self.names[example.label]}', but it"
                        " trains on none of that class: add some to its train, or remove these"
                    )
        domain = values.get("domain")
        return ClientData(name, seen, held["train"], held["val"], held["test"], domain)

    def held_images(
        self, values: Mapping[str, Any], split: Split, who: str, base: Sequence[int]
    ) -> tuple[Example, ...]:
        place = f"{split} of {who}"
        examples = self.images(values.get(split, {}), place, base, split)
        for example in examples:
            if example.key in self.held:
                self.refuse(
                    f"image {example.key} stands in {self.held[example.key]} and in {place}: an"
                    " image belongs to one client and one split"
                )
            self.held[example.key] = place
        return examples

    def tests(self, table: Any, place: str, classes: Sequence[int]) -> tuple[Example, ...]:
        examples = self.images(table, place, classes, "test")
        for example in examples:
            holder = self.held.get(example.key, "test")
            if not holder.startswith("test"):
                self.refuse(
                    f"image {example.key} stands in {holder} and in {place}: nobody may be tested"
                    " on what was trained on"
                )
        return examples

    def images(
        self, table: Any, place: str, classes: Sequence[int], split: Split
    ) -> tuple[Example, ...]:
        found: list[int] = []
        for name, keys in self.table(table, place).items():
            label = self.label(name, place)
            if label not in classes:
                listed = "novel" if place == "tests.novel" else "base"
                self.refuse(f"{place} has images of '{name}', which is not one of {listed}")
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                self.refuse(f"'{name}' in {place} is no list of images")
            found += [self.image(key, label, place) for key in keys]
        found.sort()
        for first, second in pairwise(found):
            if first == second:
                self.refuse(f"image {self.dataset.examples[first].key} stands twice in {place}")
        return tuple(replace(self.dataset.examples[each], split=split) for each in found)

    def image(self, key: str, label: int, place: str) -> int:
        found = self.places.get(key)
        if found is None:
            self.refuse(
                f"{place} names an image {key}, which {self.dataset.name} does not have: restore"
                " it, or remove its line"
            )
        actual = self.dataset.examples[found].label
        if actual != label:
            self.refuse(
                f"image {key} stands under '{self.names[label]}' in {place}, but the data say"
                f" '{self.names[actual]}'"
            )
        return found

    def classes(self, name: str) -> tuple[int, ...]:
        names = self.values.get(name, [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            self.refuse(f"{name} is no list of class names")
        labels = [self.label(each, name) for each in names]
        for each in names:
            if names.count(each) > 1:
                self.refuse(f"class '{each}' stands twice in {name}")
        return tuple(sorted(labels))

    def label(self, name: str, place: str) -> int:
        if name not in self.labels:
            self.refuse(
                f"{place} names a class '{name}', which {self.dataset.name} does not have"
                f"{nearest(name, self.labels)}"
            )
        return self.labels[name]

    def check_class_names(self) -> None:
        recorded = self.table(self.values.get("data", {}), "data").get("class_names")
        if recorded is not None and recorded != list(self.names):
            self.refuse(
                f"it was written for {len(recorded)} classes, {', '.join(map(str, recorded[:3]))},"
                f" ..., but {self.dataset.name} has {len(self.names)}, {', '.join(self.names[:3])},"
                " ...: the order and the names must be the same. Bring them back, or divide anew"
            )

    def check_unseen(self, federation: Federation) -> None:
        unseen = federation.unseen_domain
        if unseen is None:
            return
        for client in federation.clients:
            for example in (*client.train, *client.val):
                if unseen in (example.domain, example.client):
                    self.refuse(
                        f"image {example.key} of client '{client.id}' is of '{unseen}', the domain"
                        " that nobody trains on"
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
