"""The runtime's tokenizer gives open_clip's ids, on ordinary, odd and random texts."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.export.tokenizer import write_tokenizer
from pfedmma_deploy.runtime.text_tower import Tokenizer, clean_text

CONTEXT = 77
ODD = [
    "",
    " ",
    "a photo of a cat.",
    "A  Photo\tOF\na   CAT",
    "it's we're I'd they'll can't 've 's",
    "cat " * 200,
    "x" * 300,
    "1234567890 3.14159",
    "!!! ??? ... --- ###",
    "Ünïcödé naïve café ÅNGSTRÖM",
    "e\u0301le\u0300ve",
    "猫の写真 개 кошка قطة",
    "🐱🐈‍⬛👩‍👩‍👧‍👦 🇫🇷",
    "Ben &amp; Jerry &lt;3 &eacute; &amp;amp; &#233;",
    "Ben & Jerry's AT&T",
    "&ampere &copy 2020",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dash\u2026 \ufb01ne \ufb02ow",
    "cafÃ© donâ€™t",
    "\uff26\uff35\uff2c\uff2c width",
    "İstanbul ΣΊΣΥΦΟΣ Straße",
    "zero\u200bwidth\u00a0space\u2028line",
    "\x1b[31mred\x1b[0m bell\x07 nul\x00",
    "a <start_of_text> b <end_of_text>",
]
TRICKY = "aB'sStTeE 19&;#<>/!.\u017f\u0130\u03a3\u0301\u00e9\u2019"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path, CONTEXT)
    return path


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer(file, CONTEXT)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


def test_known_ids(tokenizer: Tokenizer) -> None:
    # The ids that the CLIP paper's own code gives for this prompt.
    ids = tokenizer(["a photo of a cat."])
    assert ids.shape == (1, CONTEXT)
    assert ids.dtype == np.int64
    assert ids[0, :9].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407, 0]
    assert not ids[0, 8:].any()


@pytest.mark.parametrize("text", ODD)
def test_odd_texts(tokenizer: Tokenizer, reference: SimpleTokenizer, text: str) -> None:
    assert tokenizer([text])[0].tolist() == reference([text])[0].tolist()


def test_long_texts_keep_their_end_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["dog " * 500])[0]
    assert ids[0] == 49406
    assert ids[-1] == 49407


def test_other_context_length(file: Path, reference: SimpleTokenizer) -> None:
    short = Tokenizer(file, 16)
    texts = ["a", "a photo of a very long and winding road with many trees on it, seen at night"]
    np.testing.assert_array_equal(short(texts), reference(texts, context_length=16).numpy())


def assigned(text: str) -> bool:
    """Whether Python's own Unicode tables know all characters."""
    return all(unicodedata.category(char) != "Cn" for char in text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60).filter(assigned) | st.text(st.sampled_from(TRICKY), max_size=40))
def test_random_texts(tokenizer: Tokenizer, reference: SimpleTokenizer, text: str) -> None:
    assert tokenizer([text])[0].tolist() == reference([text])[0].tolist()


def test_plain_texts_do_not_import_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_text("  A Photo\nof a CAT & a dog. ") == "a photo of a cat & a dog."
    with pytest.raises(UsageError, match=r"'café' has characters .* run `pip install ftfy`"):
        clean_text("café")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("\t\r\n")))
def test_ftfy_is_skipped_only_where_it_changes_nothing(text: str) -> None:
    from open_clip.tokenizer import _clean_lower

    assert clean_text(text) == _clean_lower(text)


def test_a_single_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="Texts are given as a list"):
        tokenizer("cat")


def test_nothing_gives_no_rows(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, CONTEXT)


def test_damaged_file(tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read .* export it again"):
        Tokenizer(broken, CONTEXT)


def test_the_file_serves_other_programs_too(file: Path, reference: SimpleTokenizer) -> None:
    from tokenizers import Tokenizer as Plain

    plain = Plain.from_file(str(file))
    text = "  A photo of  a Café-CAT, isn't it? "
    assert plain.encode(text).ids == reference([text])[0].tolist()
