"""Who holds which images, as a file: TOML that people read, edit and train with, JSON in a run.

format = "pfedmma-clients"
format_version = 1
base = ["cat", "dog"]                   classes that are trained on
novel = ["ox"]                          classes that nobody trains on
unseen_domain = "sketch"                only where a domain is left out
warnings = ["..."]                      in a run only: what was said when it was partitioned

[data]                                  what was partitioned; class_names in class order
[made_with]                             the options and the seed; a record, not read again

[[clients]]
id = "0"
[clients.train]                         images by class; val and test likewise
cat = ["photo/cat/1.jpg", ...]

[tests.base]                            the test images of base and novel accuracy
[tests.novel]

A run's `splits.json` has the same keys. What an edit of a file can break is checked when the file
is read; what a run stores is hashed, and only the data can have changed since.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, get_args

from tomlkit import dumps, item

from pfedmma_deploy.data.clients_check import FORMAT, FORMAT_VERSION, EditedFile
from pfedmma_deploy.data.dataset_checks import check_federation, find_problem
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Problem, Split

_HEADING: Final = """\
# Who holds which images, written by `pfedmma data partition`. Edit it and train with it:
#     pfedmma train --data DATA --clients-file THIS_FILE
# An image is named by its path in the data and stands under its class. It may belong to one
# client and one split only, apart from [tests], which lists all test images.

"""
_SPLITS: Final[tuple[Split, ...]] = get_args(Split)

Images = Mapping[str, Sequence[str]]
"""Keys of images by the name of their class."""


def federation_to_dict(
    federation: Federation, made_with: Mapping[str, str | int | float] | None = None
) -> dict[str, Any]:
    """Plain values, as a file has them.

    Args:
        federation: the partition.
        made_with: options and seed, for the record.
    """
    dataset = federation.dataset
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
    }
    if federation.unseen_domain is not None:
        values["unseen_domain"] = federation.unseen_domain
    values["warnings"] = list(federation.warnings)
    values["data"] = {
        "name": dataset.name,
        "images": len(dataset.examples),
        "fingerprint": fingerprint(dataset),
        "class_names": list(dataset.class_names),
    }
    values["made_with"] = dict(made_with or {})
    values["clients"] = []
    for client in federation.clients:
        row: dict[str, Any] = {"id": client.id}
        if client.domain is not None:
            row["domain"] = client.domain
        for split in _SPLITS:
            row[split] = _by_class(dataset, getattr(client, split))
        values["clients"].append(row)
    values["tests"] = {
        "base": _by_class(dataset, federation.base_test),
        "novel": _by_class(dataset, federation.novel_test),
    }
    return values


def federation_from_dict(dataset: Dataset, values: Mapping[str, Any]) -> Federation:
    """The federation that a run recorded, on the data set that it was made from.

    Images that were added to the data since then take no part.

    Raises:
        DataError: the class names or their order changed, or an image is missing or belongs to
            another class; the first is named. Also a record of another format.
    """
    if values.get("format") == 1:
        values = _from_first_format(dataset, values)
    if values.get("format") != FORMAT:
        raise DataError(
            f"the recorded partition has format {values.get('format')!r}, expected {FORMAT!r}: it"
            " was written by another version of this package"
        )
    _require_unchanged(dataset, values)
    return _build(dataset, values)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the class names in order and of every image's path, class and split.

    It does not open images: it tells whether the same names are there, not the same pixels.
    """
    digest = hashlib.sha256(json.dumps(list(dataset.class_names)).encode())
    for example in dataset.examples:
        digest.update(f"\n{example.key}\t{example.label}\t{example.split}".encode())
    return digest.hexdigest()


def format_clients(federation: Federation, made_with: Mapping[str, str | int | float]) -> str:
    """The TOML text of a partition; `parse_clients` reads it back."""
    values = federation_to_dict(federation, made_with)
    # They are found again when the file is read, and may be mended by then.
    del values["warnings"]
    clients, tests = values.pop("clients"), values.pop("tests")
    return _HEADING + dumps(values) + "".join(f"{line}\n" for line in _lines(clients, tests))


def write_clients(
    federation: Federation, file: Path, made_with: Mapping[str, str | int | float]
) -> None:
    """Writes a partition to a new file; raises `DataError` where there is one already."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8", newline="\n") as handle:
            handle.write(format_clients(federation, made_with))
    except FileExistsError as error:
        raise DataError(
            f"{file} is there already, and may have been edited: choose another --out, or remove it"
        ) from error


def read_clients(dataset: Dataset, file: Path) -> tuple[Federation, tuple[Problem, ...]]:
    """The partition in `file`, TOML or a run's `splits.json`, on the data that it was made from.

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
    is_json = text.lstrip().startswith("{")
    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not {'JSON' if is_json else 'TOML'}: {error}") from error
    EditedFile(dataset, values, where).check()
    federation = replace(_build(dataset, values), warnings=())
    problems = check_federation(federation)
    recorded = values.get("data", {}).get("fingerprint")
    if recorded not in (None, fingerprint(dataset)):
        problems = (*find_problem("changed-data", [dataset.name]), *problems)
    return federation, problems


def _by_class(dataset: Dataset, examples: Iterable[Example]) -> dict[str, list[str]]:
    keys: dict[int, list[str]] = {}
    for example in examples:
        keys.setdefault(example.label, []).append(example.key)
    return {dataset.class_names[label]: keys[label] for label in sorted(keys)}


def _build(dataset: Dataset, values: Mapping[str, Any]) -> Federation:
    """The federation of values that were checked; images in the order of the data set."""
    labels = {name: label for label, name in enumerate(dataset.class_names)}
    places = {example.key: place for place, example in enumerate(dataset.examples)}

    def images(table: Images, split: Split) -> tuple[Example, ...]:
        found = sorted(places[key] for keys in table.values() for key in keys)
        return tuple(replace(dataset.examples[place], split=split) for place in found)

    clients = []
    for row in values["clients"]:
        train, val, test = (images(row.get(split, {}), split) for split in _SPLITS)
        seen = tuple(sorted({example.label for example in train}))
        clients.append(ClientData(row["id"], seen, train, val, test, row.get("domain")))
    tests = values.get("tests", {})
    return Federation(
        dataset=dataset,
        base=tuple(sorted(labels[name] for name in values.get("base", ()))),
        novel=tuple(sorted(labels[name] for name in values.get("novel", ()))),
        clients=tuple(clients),
        base_test=images(tests.get("base", {}), "test"),
        novel_test=images(tests.get("novel", {}), "test"),
        warnings=tuple(values.get("warnings", ())),
        unseen_domain=values.get("unseen_domain"),
    )


def _lines(clients: Iterable[Mapping[str, Any]], tests: Mapping[str, Images]) -> Iterator[str]:
    """The tables of images, by hand for the sake of the counts beside them; values by tomlkit."""
    for client in clients:
        train, val, test = (sum(map(len, client[split].values())) for split in _SPLITS)
        yield f"\n[[clients]]  # {train} to train on, {val} to validate, {test} to test"
        for name in ("id", "domain"):
            if name in client:
                yield f"{name} = {_toml(client[name])}"
        for split in _SPLITS:
            yield from _image_lines(f"clients.{split}", client[split])
    for kind, images in tests.items():
        yield from _image_lines(f"tests.{kind}", images)


def _image_lines(table: str, images: Images) -> Iterator[str]:
    yield f"\n[{table}]"
    for name, keys in images.items():
        yield f"{_toml(name)} = [  # {len(keys)}"
        for key in keys:
            # Of printable ASCII, TOML and JSON have the same idea, and there may be a million.
            plain = key.isascii() and key.isprintable()
            yield f"  {json.dumps(key) if plain else _toml(key)},"
        yield "]"


def _toml(value: Any) -> str:
    text: str = item(value).as_string()
    return text


def _require_unchanged(dataset: Dataset, values: Mapping[str, Any]) -> None:
    """Raises `DataError` where the data are no longer those that a run recorded."""
    advice = "or start a new run on the data as they are"
    recorded, found = values["data"]["class_names"], dataset.class_names
    if tuple(recorded) != found:
        # The first that differs; where one list goes on after the other, its first extra class.
        pairs = list(enumerate(zip_longest(recorded, found)))
        number, names = next(each for each in pairs if each[1][0] != each[1][1])
        old, new = ("nothing" if name is None else repr(name) for name in names)
        raise DataError(
            f"data {dataset.name} changed since the run: class {number} was {old} and is {new}"
            f" ({len(recorded)} classes then, {len(found)} now). Bring the class folders or"
            " classes.txt back, or start a new run"
        )
    labels = {example.key: example.label for example in dataset.examples}
    tables: list[Images] = list(values["tests"].values())
    for client in values["clients"]:
        tables += [client[split] for split in _SPLITS]
    images = {key: name for table in tables for name, keys in table.items() for key in keys}
    missing = [key for key in images if key not in labels]
    if missing:
        raise DataError(
            f"data {dataset.name} changed since the run: image {missing[0]} is missing"
            f" ({len(missing):,} of {len(images):,} are). Bring the images back, {advice}"
        )
    for key, name in images.items():
        if dataset.class_names[labels[key]] != name:
            raise DataError(
                f"data {dataset.name} changed since the run: image {key} belongs to another class"
                f" now. Put it back, {advice}"
            )


def _from_first_format(dataset: Dataset, record: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of version 0.1 recorded: labels, and keys in one list where now they are by class.

    The class of an image is that of the data. One that they lack, or have in a class that its
    client did not hold, goes to any class that the client held, and `_require_unchanged` finds it.
    """
    names: list[str] = record["class_names"]
    labels = {example.key: example.label for example in dataset.examples}

    def by_class(keys: Iterable[str], held: Sequence[int]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in keys:
            label = labels.get(key, -1)
            found.setdefault(names[label if label in held else held[0]], []).append(key)
        return found

    clients = []
    for client in record["clients"]:
        row = {"id": client["id"], "domain": client["domain"]}
        for split in _SPLITS:
            row[split] = by_class(client[split], client["classes"])
        clients.append(row)
    base, novel = record["base"], record["novel"]
    return {
        "format": FORMAT,
        "base": [names[label] for label in base],
        "novel": [names[label] for label in novel],
        "unseen_domain": record.get("unseen_domain"),
        "warnings": record["warnings"],
        "data": {"class_names": names},
        "clients": clients,
        "tests": {
            "base": by_class(record["base_test"], base),
            "novel": by_class(record["novel_test"], novel),
        },
    }
