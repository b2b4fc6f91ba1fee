"""`tokenizer.json` of a bundle, from the vocabulary and merges that ship with open_clip."""

from __future__ import annotations

from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as BpeTokenizer

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.runtime.text_tower import Tokenizer

START, END = "<start_of_text>", "<end_of_text>"

# open_clip's pattern, lower case; its IGNORECASE adds only the long s.
_WORDS = r"'[s\x{017f}]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

PROBES = (
    "",
    "a photo of a cat.",
    "It's 42 GREEN   bottles, isn't it?!",
    "caf\u00e9 \u2615 \u732b \U0001f431 &amp; &lt;br&gt;",
    "word " * 100,
)
"""Texts on which a backbone's tokenizer must agree with the exported one."""


def write_tokenizer(path: Path, context_length: int) -> None:
    """Write CLIP's byte-pair encoding to `path` in the `tokenizers` library's format.

    The file is complete in itself (normalizer, truncation and padding to `context_length`
    included), so that other programs can use it as it is.
    """
    source = SimpleTokenizer()
    tokenizer = BpeTokenizer(
        models.BPE(
            vocab=source.encoder,
            merges=list(source.bpe_ranks),
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in (START, END)]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, source.sot_token_id), (END, source.eot_token_id)],
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=0, pad_token="!", length=context_length)
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def require_clip_tokenizer(backbone: Backbone, file: Path) -> None:
    """Check that the exported tokenizer gives what the backbone's own gives.

    Raises:
        ExportError: the backbone reads its prompts with another tokenizer.
    """
    ours = Tokenizer(file, backbone.context_length)(PROBES)
    theirs = backbone.tokenize(list(PROBES)).numpy()
    for text, left, right in zip(PROBES, ours, theirs, strict=True):
        if left.tolist() != right.tolist():
            raise ExportError(
                f"The tokenizer of {backbone.name} is not CLIP's byte-pair encoding: it reads "
                f"{text[:40]!r} as {right.tolist()[:8]}..., the exported one as "
                f"{left.tolist()[:8]}...; backbones with open_clip's default tokenizer can be "
                "exported."
            )
