"""What a data set holds, in figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pfedmma_deploy.types import Dataset

__all__ = ["summarize"]


def summarize(dataset: Dataset) -> dict[str, Any]:
    """A JSON-able summary; nothing is opened.

    Returns:
        `name`, `layout`, `root`, `images`, `parts` (images of each), `classes` (name and images, in
        class order), `domains` and `clients` (images of each part, by name), `captions` (images
        with one), `skipped` (path and reason) and `problems` that reading the layout found.
    """
    labels = Counter(example.label for example in dataset.examples)
    parts = Counter(example.split for example in dataset.examples)
    domains: dict[str, Counter[str]] = {}
    clients: dict[str, Counter[str]] = {}
    for example in dataset.examples:
        for name, table in ((example.domain, domains), (example.client, clients)):
            if name is not None:
                table.setdefault(name, Counter())[example.split] += 1
    root = getattr(dataset, "root", None)
    return {
        "name": dataset.name,
        "layout": getattr(dataset, "form", "sample"),
        "root": None if root is None else str(root),
        "images": len(dataset.examples),
        "parts": {part: parts[part] for part in ("train", "val", "test") if part in parts},
        "classes": [
            {"name": name, "images": labels[label]}
            for label, name in enumerate(dataset.class_names)
        ],
        "domains": {name: dict(domains[name]) for name in sorted(domains)},
        "clients": {name: dict(clients[name]) for name in sorted(clients)},
        "captions": sum(example.caption is not None for example in dataset.examples),
        "skipped": [{"path": skip.path, "reason": skip.reason} for skip in dataset.skipped],
        "problems": [str(problem) for problem in getattr(dataset, "problems", ())],
    }
