"""Text features of a bundle's clients: stored ones for the known classes, computed ones for others.

The text tower is opened when the first text is typed, never before. CLIP's tokenizer needs no
torch: the byte-pair encoding is the `tokenizers` library's, from the bundle's `tokenizer.json`, and
what open_clip does to a text before it (ftfy, HTML entities, white space, lower case) is done here
in Python, because Rust's idea of lower case differs in corners. Two corners differ from open_clip's
`SimpleTokenizer`: letters that Unicode added after version 15, and a literal `<end_of_text>` glued
behind punctuation.
"""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.runtime.bundle import TEXT_MODEL, TOKENIZER, Bundle
from pfedmma_deploy.runtime.providers import RealDevice, model_inputs, open_session

Features = NDArray[np.float32]

BATCH = 64
CACHED_LISTS = 256
"""Lists of classes whose features are kept, over all clients and strengths; the oldest go first."""
# ftfy, pure Python, takes long to import: only for texts that it could change, those with
# characters beyond printable ASCII or with an HTML entity.
_FTFY_MATTERS = re.compile(r"[^\t\n\r\x20-\x7e]|&#?[0-9A-Za-z]{1,24};")


class TextTower:
    """Text features by client index; safe to share between threads."""

    def __init__(self, bundle: Bundle, device: RealDevice, threads: int | None = None) -> None:
        # Not worth the minutes that TensorRT takes: typed classes are encoded once and kept.
        self._device: RealDevice = "cuda" if device == "tensorrt" else device
        self._bundle, self._threads = bundle, threads
        self._opening = threading.Lock()
        self._opened: tuple[onnxruntime.InferenceSession, Tokenizer] | None = None
        # No lock while it encodes: two threads may do it twice, none waits for the other.
        self.encoded = lru_cache(CACHED_LISTS)(self._encode)
        """Features [C, D] of class names in the client's prompt: (index, names, strength)."""

    @cached_property
    def stored(self) -> Features:
        """Features of the bundle's class names at the default strengths, [clients, C, D]."""
        return self._bundle.text_embeds()

    def known(self, index: int, strength: float) -> Features:
        """Features [C, D] of the bundle's class names; at other strengths computed once."""
        manifest = self._bundle.manifest
        found: Features
        if strength == 0:
            found = self.stored[0]
        elif strength == manifest.clients[index].default_strength:
            found = self.stored[index]
        else:
            found = self.encoded(index, manifest.class_names, strength)
        return found

    def _has_own_prompt(self, index: int) -> bool:
        """Whether the client reads other tokens than zero-shot: one graph cannot mix the two."""
        manifest = self._bundle.manifest
        return manifest.prompt_of(index) != manifest.prompt

    def _encode(self, index: int, classes: tuple[str, ...], strength: float) -> Features:
        manifest = self._bundle.manifest
        own = self.embed(build_prompts(classes, manifest.prompt_of(index)), index, strength)
        if strength == 1 or not self._has_own_prompt(index):
            return own
        plain = self.embed(build_prompts(classes, manifest.prompt), 0, 1)
        return mixed(plain, own, strength)

    def embed(self, texts: Sequence[str], index: int, strength: float) -> Features:
        """Features [N, D] of texts as they are, L2-normalised."""
        session, tokenizer = self._open()
        ids = tokenizer(texts)
        parts = [np.empty((0, self._bundle.manifest.embed_dim), np.float32)]
        for start in range(0, len(ids), BATCH):
            chunk = ids[start : start + BATCH]
            clients = np.full(len(chunk), index, np.int64)
            strengths = np.full(len(chunk), strength, np.float32)
            feed = model_inputs(session, chunk, clients, strengths)
            parts.append(session.run(None, feed)[0])
        return np.concatenate(parts)

    def _open(self) -> tuple[onnxruntime.InferenceSession, Tokenizer]:
        with self._opening:
            if self._opened is None:
                bundle = self._bundle
                tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.context_length)
                file = bundle.file(TEXT_MODEL)
                session = open_session(file, self._device, threads=self._threads)
                self._opened = session, tokenizer
            return self._opened


def mixed(plain: Features, own: Features, strength: float) -> Features:
    """L2-normalised features [C, D] `strength` of the way from zero-shot's to the client's."""
    found = plain + np.float32(strength) * (own - plain)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


class Tokenizer:
    """Texts to token ids, int64 [N, context]: start token, text, end token, zeros.

    A text that is too long is cut so that the end token still fits.
    """

    def __init__(self, file: Path, context_length: int) -> None:
        """Read a bundle's `tokenizer.json`. Raises `BundleError` where it is damaged."""
        from tokenizers import Tokenizer as Inner
        from tokenizers import normalizers

        try:
            self._inner = Inner.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{file} cannot be read ({error}): export it again.") from error
        # The file's own normalizer serves other programs; `clean_text` has been applied already.
        self._inner.normalizer = normalizers.Sequence([])
        self._inner.enable_truncation(context_length)
        self._inner.enable_padding(pad_id=0, pad_token="!", length=context_length)
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, int64 [N, context]."""
        if isinstance(texts, str):
            raise UsageError("Texts are given as a list, found a single text: put it in brackets.")
        encodings = self._inner.encode_batch([clean_text(text) for text in texts])
        ids = [encoding.ids for encoding in encodings]
        return np.asarray(ids, dtype=np.int64).reshape(len(ids), self.context_length)


def clean_text(text: str) -> str:
    """Text as CLIP was trained on it: repaired, unescaped, single spaces, lower case.

    Raises:
        UsageError: the text needs ftfy, which is not installed.
    """
    if _FTFY_MATTERS.search(text):
        try:
            import ftfy
        except ImportError:
            raise UsageError(
                f"The text {text!r} has characters or HTML entities that CLIP's tokenizer repairs "
                "with ftfy, which is not installed: run `pip install ftfy`."
            ) from None
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


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
