"""CLIP's tokenizer without torch: equal to open_clip's `SimpleTokenizer`.

The byte-pair encoding is the `tokenizers` library's, from the bundle's `tokenizer.json`. What
open_clip does to a text before it (ftfy, HTML entities, white space, lower case) is done here in
Python, because Rust's idea of lower case differs in corners.

ftfy (pure Python) is imported only for texts that it could change: those with characters beyond
printable ASCII, or with an HTML entity. Two corners differ from open_clip: letters that Unicode
added after version 15, and a literal `<end_of_text>` glued behind punctuation.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import normalizers

from pfedmma_deploy.errors import BundleError, UsageError

__all__ = ["Tokenizer", "clean_text"]

_FTFY_MATTERS = re.compile(r"[^\t\n\r\x20-\x7e]|&#?[0-9A-Za-z]{1,24};")


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


class Tokenizer:
    """Texts to token ids, int64 [N, context]: start token, text, end token, zeros.

    A text that is too long is cut so that the end token still fits.
    """

    def __init__(self, file: Path, context_length: int) -> None:
        """Read a bundle's `tokenizer.json`. Raises `BundleError` where it is damaged."""
        try:
            self._inner = _Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{file} cannot be read ({error}): export it again.") from error
        # The file's own normalizer serves other programs; ours has been applied already.
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
