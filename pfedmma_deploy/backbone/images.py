"""Images as a model takes them: pixels, or what the frozen lower blocks made of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from pfedmma_deploy.backbone.clip import Images
from pfedmma_deploy.backbone.prefixes import Decode, Pixels, PrefixStore, key_of
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.types import Example

KEEP_AT_ONCE = 512
"""Images decoded together when prefixes are made."""
PLAIN = -1
"""In place of the number of a view: the evaluation transform."""
Shown = tuple[Example, int]


class ImageInputs:
    """What the image tower is given for examples.

    Args:
        pixels: decodes and resizes.
        prefixes: kept prefixes; None has every image go through all blocks, every time.
        views: number of pre-drawn augmentations per image; 0 draws a fresh one each time.
        seed: decides the pre-drawn augmentations.
    """

    def __init__(
        self,
        pixels: PixelLoader,
        prefixes: PrefixStore | None = None,
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.pixels = pixels
        self.prefixes = prefixes
        self.views = views
        self.seed = seed
        self._keys: dict[tuple[str, int], str] = {}

    def load(self, examples: Sequence[Example], start: int = 0) -> Images:
        """Images under the evaluation transform; with `start`, what that block reads of them."""
        if self.prefixes is None or start == 0:
            return torch.from_numpy(self.pixels.load(examples))
        shown = [(example, PLAIN) for example in examples]
        return self.prefixes.load(self._keys_of(shown), start, self._decoder(shown))

    def load_random(
        self, examples: Sequence[Example], rng: np.random.Generator, start: int = 0
    ) -> Images:
        """Images under a random crop and flip; with `views`, one of each image's drawn ones."""
        if self.views == 0:
            return torch.from_numpy(self.pixels.load_random(examples, rng))
        views = rng.integers(self.views, size=len(examples)).tolist()
        shown = list(zip(examples, views, strict=True))
        decode = self._decoder(shown)
        if self.prefixes is None or start == 0:
            return torch.from_numpy(decode(range(len(shown))))
        return self.prefixes.load(self._keys_of(shown), start, decode)

    def keep(self, examples: Sequence[Example], start: int, *, is_random: bool = False) -> None:
        """Make the prefixes of examples that will be needed again, as far as there is room.

        With `is_random`, those of their views; fresh augmentations are never seen twice.
        """
        if self.prefixes is None or start == 0 or (is_random and self.views == 0):
            return
        views = range(self.views) if is_random else (PLAIN,)
        shown = [(example, view) for example in examples for view in views]
        for first in range(0, len(shown), KEEP_AT_ONCE):
            part = shown[first : first + KEEP_AT_ONCE]
            self.prefixes.keep(self._keys_of(part), start, self._decoder(part))

    def _decoder(self, shown: Sequence[Shown]) -> Decode:
        def decode(places: Sequence[int]) -> Pixels:
            return np.concatenate([self._decode(*shown[place]) for place in places])

        return decode

    def _decode(self, example: Example, view: int) -> Pixels:
        if view == PLAIN:
            return self.pixels.load([example])
        # Keys are text, so the image's part of the seed is its checksum.
        seed = [self.seed, zlib.crc32(example.key.encode()), view]
        return self.pixels.load_random([example], np.random.default_rng(seed))

    def _keys_of(self, shown: Sequence[Shown]) -> list[str]:
        """Each image's key; the first time it is decoded for it."""
        found = []
        for example, view in shown:
            place = (example.key, view)
            if place not in self._keys:
                self._keys[place] = key_of(self._decode(example, view)[0])
            found.append(self._keys[place])
        return found
