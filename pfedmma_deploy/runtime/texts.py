"""Text features of a bundle's clients: stored ones for the known classes, computed ones for others.

The text tower is opened when the first text is typed, never before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.runtime.bundle import TEXT_MODEL, TOKENIZER, Bundle
from pfedmma_deploy.runtime.providers import RealDevice, open_session
from pfedmma_deploy.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["TextFeatures", "checked_classes"]

Features = NDArray[np.float32]

BATCH = 64
CACHED_LISTS = 256
"""Lists of typed classes whose features are kept, over all clients; the oldest go first."""


class TextFeatures:
    """Text features by client index; safe to share between threads."""

    def __init__(self, bundle: Bundle, device: RealDevice, threads: int | None = None) -> None:
        # Not worth the minutes that TensorRT takes: typed classes are encoded once and kept.
        self._device: RealDevice = "cuda" if device == "tensorrt" else device
        self._bundle, self._threads = bundle, threads
        self._opening, self._keeping = threading.Lock(), threading.Lock()
        self._tower: tuple[onnxruntime.InferenceSession, Tokenizer] | None = None
        self._known: Features | None = None
        self._typed: OrderedDict[tuple[int, tuple[str, ...]], Features] = OrderedDict()

    def known(self, index: int) -> Features:
        """Features [C, D] of the bundle's class names."""
        with self._keeping:
            if self._known is None:
                self._known = self._bundle.text_embeds()
            features: Features = self._known[index]
        return features

    def typed(self, index: int, classes: tuple[str, ...]) -> Features:
        """Features [C, D] of typed class names, in the client's prompt."""
        key = index, classes
        with self._keeping:
            if key in self._typed:
                self._typed.move_to_end(key)
                return self._typed[key]
        # Encoded outside the lock: two threads may do it twice, none waits for the other.
        features = self.embed(build_prompts(classes, self._bundle.manifest.prompt_of(index)), index)
        with self._keeping:
            self._typed[key] = features
            while len(self._typed) > CACHED_LISTS:
                self._typed.popitem(last=False)
        return features

    def embed(self, texts: Sequence[str], index: int) -> Features:
        """Features [N, D] of texts as they are, L2-normalised."""
        session, tokenizer = self._open()
        ids = tokenizer(texts)
        parts = [np.empty((0, self._bundle.manifest.embed_dim), np.float32)]
        for start in range(0, len(ids), BATCH):
            chunk = ids[start : start + BATCH]
            feed = {"input_ids": chunk, "client": np.full(len(chunk), index, np.int64)}
            parts.append(session.run(None, feed)[0])
        return np.concatenate(parts)

    @property
    def is_open(self) -> bool:
        """Whether the text tower has been loaded."""
        return self._tower is not None

    def _open(self) -> tuple[onnxruntime.InferenceSession, Tokenizer]:
        with self._opening:
            if self._tower is None:
                bundle = self._bundle
                tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.context_length)
                file = bundle.file(TEXT_MODEL)
                session = open_session(file, self._device, threads=self._threads)
                self._tower = session, tokenizer
            return self._tower


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Typed class names, stripped. Raises `UsageError` where there is none, or one twice."""
    names = () if isinstance(classes, str) else tuple(name.strip() for name in classes)
    if not names or not all(names):
        raise UsageError(
            f"Classes are a list of names, found {classes!r}: give at least one, none empty."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"The class {twice[0]!r} is named twice: name each class once.")
    return names
