"""A federation as plain values, so that a run can store its division and rebuild it exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Split

__all__ = ["federation_from_dict", "federation_to_dict"]

_FORMAT: Final = 1


def federation_to_dict(federation: Federation) -> dict[str, Any]:
    """JSON-able values: keys of images per client and split, base, novel, class names."""
    return {
        "format": _FORMAT,
        "data": federation.dataset.name,
        "class_names": list(federation.dataset.class_names),
        "base": list(federation.base),
        "novel": list(federation.novel),
        "clients": [
            {
                "id": client.id,
                "domain": client.domain,
                "classes": list(client.classes),
                "train": _keys(client.train),
                "val": _keys(client.val),
                "test": _keys(client.test),
            }
            for client in federation.clients
        ],
        "base_test": _keys(federation.base_test),
        "novel_test": _keys(federation.novel_test),
        "warnings": list(federation.warnings),
        "unseen_domain": federation.unseen_domain,
    }


def federation_from_dict(dataset: Dataset, record: Mapping[str, Any]) -> Federation:
    """The federation that `federation_to_dict` recorded, on the data set that it was made from.

    Images that were added to the data since then take no part.

    Raises:
        DataError: the class names or their order changed, or an image is missing or belongs to
            another class; the first is named. Also a record of another format.
    """
    if record.get("format") != _FORMAT:
        raise DataError(
            f"the recorded division has format {record.get('format')!r}, expected {_FORMAT}: it"
            " was written by another version of this package"
        )
    _check_class_names(dataset, record["class_names"])
    find = _Finder(dataset, record)
    clients = tuple(
        ClientData(
            id=client["id"],
            classes=tuple(client["classes"]),
            train=find(client["train"], "train", client["classes"]),
            val=find(client["val"], "val", client["classes"]),
            test=find(client["test"], "test", client["classes"]),
            domain=client["domain"],
        )
        for client in record["clients"]
    )
    return Federation(
        dataset=dataset,
        base=tuple(record["base"]),
        novel=tuple(record["novel"]),
        clients=clients,
        base_test=find(record["base_test"], "test", record["base"]),
        novel_test=find(record["novel_test"], "test", record["novel"]),
        warnings=tuple(record["warnings"]),
        unseen_domain=record.get("unseen_domain"),
    )


class _Finder:
    """Looks images up by key, as members of the split that they were recorded in."""

    def __init__(self, dataset: Dataset, record: Mapping[str, Any]) -> None:
        self._name = dataset.name
        self._examples = {example.key: example for example in dataset.examples}
        clients = [client[split] for client in record["clients"] for split in ("train", "val")]
        keys = [
            key for keys in (*clients, record["base_test"], record["novel_test"]) for key in keys
        ]
        missing = [key for key in keys if key not in self._examples]
        if missing:
            raise DataError(
                f"data {self._name} changed since the run: image {missing[0]} is missing"
                f" ({len(missing):,} of {len(keys):,} are). Bring the images back, or start a new"
                " run on the data as they are"
            )

    def __call__(
        self, keys: Sequence[str], split: Split, labels: Sequence[int]
    ) -> tuple[Example, ...]:
        return tuple(self._find(key, split, labels) for key in keys)

    def _find(self, key: str, split: Split, labels: Sequence[int]) -> Example:
        example = self._examples[key]
        if example.label not in labels:
            raise DataError(
                f"data {self._name} changed since the run: image {key} belongs to another class"
                " now. Put it back, or start a new run on the data as they are"
            )
        return replace(example, split=split)


def _check_class_names(dataset: Dataset, recorded: Sequence[str]) -> None:
    found = dataset.class_names
    if tuple(recorded) == found:
        return
    pairs = enumerate(zip(recorded, found, strict=False))
    number = next((n for n, (old, new) in pairs if old != new), min(len(recorded), len(found)))
    old = repr(recorded[number]) if number < len(recorded) else "nothing"
    new = repr(found[number]) if number < len(found) else "nothing"
    raise DataError(
        f"data {dataset.name} changed since the run: class {number} was {old} and is {new}"
        f" ({len(recorded)} classes then, {len(found)} now). Bring the class folders or classes.txt"
        " back, or start a new run"
    )


def _keys(examples: Sequence[Example]) -> list[str]:
    return [example.key for example in examples]
