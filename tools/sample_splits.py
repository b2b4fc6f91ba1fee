"""Which classes, counts, drawings and emoji the samples are made of, and how they are divided."""

from __future__ import annotations

from pfedmma_deploy.types import Split

CIFAR_CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""In the order of CIFAR-10's label numbers."""
CIFAR_COUNTS: dict[Split, int] = {"train": 100, "val": 20, "test": 100}
DOMAIN_COUNTS: dict[Split, int] = {"train": 30, "val": 10, "test": 30}
"""Photos and sketches of each class in `domains-sample`."""

SKETCH_CATEGORIES: dict[str, tuple[str, ...]] = {
    "airplane": ("airplane",),
    "automobile": ("car",),
    "bird": ("bird",),
    "cat": ("cat",),
    "dog": ("dog",),
    "horse": ("horse",),
    "ship": ("cruise ship", "sailboat"),
    "truck": ("truck",),
}
"""Class to categories of Quick, Draw!; several share the class in equal parts."""

UNFINISHED: dict[str, frozenset[int]] = {
    "airplane": frozenset({11, 68}),
    "bird": frozenset({17, 22, 28, 33, 34, 45, 59, 71}),
    "car": frozenset({2, 20, 30, 62}),
    "cat": frozenset({20, 28, 37, 49, 51, 76}),
    "dog": frozenset({6, 21, 38, 43, 76}),
    "horse": frozenset({13, 24, 29, 45, 60, 69}),
    "cruise ship": frozenset({8, 43, 47, 73}),
    "sailboat": frozenset({33, 39, 66, 74}),
    "truck": frozenset({22, 40, 45, 55, 64}),
}
"""Drawings left out after looking at them: fragments, scribbles, written words."""

EMOJI_SPLIT: dict[str, dict[Split, str]] = {
    "airplane": {"train": "✈️ 🛫 🛬", "test": "🛩️"},
    # Families recolour one side view and one front view: views are kept together.
    "automobile": {"train": "🚗 🚕 🚓 🚙", "test": "🚘 🚖 🚔 🏎️"},
    "bird": {"train": "🐦 🐦‍⬛ 🦅 🦆 🐤 🐥 🐧 🦩 🦃", "test": "🕊️ 🦉 🦜 🐔 🐓 🦢 🦤"},
    "cat": {"train": "🐱 😺 😸 😹 😻 😼 😽 🙀 😿 😾", "test": "🐈 🐈‍⬛"},
    "dog": {"train": "🐕 🦮 🐕‍🦺", "test": "🐶 🐩"},
    "horse": {"train": "🐎 🏇", "test": "🐴 🎠"},
    "ship": {"train": "🚢 🛳️ ⛴️", "test": "⛵ 🚤 🛥️"},
    "truck": {"train": "🚚 🚛", "test": "🛻 🚒"},
}
"""Which emoji a class trains on and is tested on, the same in every family: variants of one
drawing stay on one side. Too few for a validation split."""
