"""A division among clients as a TOML file that people can read, edit and train with.

format = "pfedmma-clients"
format_version = 1
base = ["cat", "dog"]                   classes that are trained on
novel = ["ox"]                          classes that nobody trains on
unseen_domain = "sketch"                only where a domain is left out

[data]                                  what was divided; class_names in class order
[made_with]                             the options and the seed; a record, not read again

[[clients]]
id = "0"
[clients.train]                         images by class; val and test likewise
cat = ["photo/cat/1.jpg", ...]

[tests.base]                            the test images of base and novel accuracy
[tests.novel]
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pfedmma_deploy.data.checks import (
    Problem,
    check_dataset,
    check_federation,
    find_problem,
    require_usable,
)
from pfedmma_deploy.data.clients_reader import FORMAT, FORMAT_VERSION, ClientsReader
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example, Federation

__all__ = [
    "fingerprint",
    "format_clients",
    "load_federation",
    "parse_clients",
    "read_clients",
    "write_clients",
]

_HEADING: Final = (
    "# Who holds which images, written by `pfedmma data partition`. Edit it and train with it:\n"
    "#     pfedmma train --data DATA --clients-file THIS_FILE\n"
    "# An image is named by its path in the data and stands under its class. It may belong to one\n"
    "# client and one split only, apart from [tests], which lists all test images.\n"
)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the class names in order and of every image's path, class and split.

    It does not open images: it tells whether the same names are there, not the same pixels.
    """
    digest = hashlib.sha256(json.dumps(list(dataset.class_names)).encode())
    for example in dataset.examples:
        digest.update(f"\n{example.key}\t{example.label}\t{example.split}".encode())
    return digest.hexdigest()


def format_clients(federation: Federation, made_with: Mapping[str, str | int | float]) -> str:
    """The TOML text of a division; `parse_clients` reads it back.

    Args:
        federation: the division.
        made_with: options and seed, for the record.
    """
    return "".join(f"{line}\n" for line in _lines(federation, made_with))


def write_clients(
    federation: Federation, file: Path, made_with: Mapping[str, str | int | float]
) -> None:
    """Writes a division to a new file; raises `DataError` where there is one already."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8", newline="\n") as handle:
            handle.write(format_clients(federation, made_with))
    except FileExistsError as error:
        raise DataError(
            f"{file} is there already, and may have been edited: choose another --out, or remove it"
        ) from error


def load_federation(dataset: Dataset, file: Path) -> Federation:
    """The division in `file`, checked as `federation.build_federation` checks its own.

    Raises:
        DataError: as `read_clients`, or fatal problems of the data or the division.
    """
    problems = require_usable(check_dataset(dataset))
    federation, found = read_clients(dataset, file)
    warnings = (*problems, *require_usable(found))
    return replace(federation, warnings=tuple(map(str, warnings)))


def read_clients(dataset: Dataset, file: Path) -> tuple[Federation, tuple[Problem, ...]]:
    """The division in `file`, on the data set that it was made from.

    Returns:
        The federation, its images in the order of the data set, and what is wrong with it.

    Raises:
        DataError: the file cannot be read; an unknown key, class or image; an image twice, in
            another class, or both in training and testing; a class both base and novel; class
            names that changed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"clients file {file}: {error.strerror}; `pfedmma data partition DATA --out {file}`"
            " writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"clients file {file} is not UTF-8 text: {error}") from error
    return parse_clients(dataset, text, f"clients file {file}")


def parse_clients(
    dataset: Dataset, text: str, where: str
) -> tuple[Federation, tuple[Problem, ...]]:
    """As `read_clients`, from the text; `where` begins each message."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is not TOML: {error}") from error
    federation = ClientsReader(dataset, values, where).read()
    problems = check_federation(federation)
    recorded = values.get("data", {}).get("fingerprint")
    if recorded not in (None, fingerprint(dataset)):
        problems = (*find_problem("changed-data", [dataset.name]), *problems)
    return federation, problems


def _lines(federation: Federation, made_with: Mapping[str, str | int | float]) -> Iterator[str]:
    dataset = federation.dataset
    yield _HEADING
    yield ""
    yield f"format = {quote(FORMAT)}"
    yield f"format_version = {FORMAT_VERSION}"
    yield f"base = {_names(federation.names(federation.base))}"
    yield f"novel = {_names(federation.names(federation.novel))}"
    if federation.unseen_domain is not None:
        yield f"unseen_domain = {quote(federation.unseen_domain)}"
    yield "\n[data]"
    yield f"name = {quote(dataset.name)}"
    yield f"images = {len(dataset.examples)}"
    yield f"fingerprint = {quote(fingerprint(dataset))}"
    yield f"class_names = {_names(dataset.class_names)}"
    yield "\n[made_with]"
    for name, value in made_with.items():
        yield f"{name} = {quote(value) if isinstance(value, str) else repr(value)}"
    for client in federation.clients:
        sizes = f"{len(client.train)} to train on, {len(client.val)} to validate"
        yield f"\n[[clients]]  # {sizes}, {len(client.test)} to test"
        yield f"id = {quote(client.id)}"
        if client.domain is not None:
            yield f"domain = {quote(client.domain)}"
        yield from _images("clients.train", dataset.class_names, client.train)
        yield from _images("clients.val", dataset.class_names, client.val)
        yield from _images("clients.test", dataset.class_names, client.test)
    yield from _images("tests.base", dataset.class_names, federation.base_test)
    yield from _images("tests.novel", dataset.class_names, federation.novel_test)


def _images(table: str, names: Sequence[str], examples: Iterable[Example]) -> Iterator[str]:
    of_class: dict[int, list[str]] = {}
    for example in examples:
        of_class.setdefault(example.label, []).append(example.key)
    yield f"\n[{table}]"
    for label, keys in sorted(of_class.items()):
        yield f"{quote(names[label])} = [  # {len(keys)}"
        for key in keys:
            yield f"  {quote(key)},"
        yield "]"


def _names(names: Iterable[str]) -> str:
    return f"[{', '.join(map(quote, names))}]"


def quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL, which only TOML forbids."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
