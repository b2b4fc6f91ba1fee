"""Emoji artwork of four openly licensed families, drawn from their registry packages."""

from __future__ import annotations

import functools
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from tools.packages import fetch

FAMILIES = ("noto", "twemoji", "openmoji", "fluent")

SAMPLE_EMOJI: dict[str, str] = {
    "airplane": "✈️ 🛩️ 🛫 🛬",
    "automobile": "🚗 🚘 🚙 🚕 🚖 🚓 🚔 🏎️",
    "bird": "🐦 🐦‍⬛ 🕊️ 🦅 🦉 🦜 🦆 🐤 🐥 🐔 🐓 🐧 🦩 🦢 🦃 🦤",
    "cat": "🐱 🐈 🐈‍⬛ 😺 😸 😹 😻 😼 😽 🙀 😿 😾",
    "dog": "🐶 🐕 🦮 🐕‍🦺 🐩",
    "horse": "🐴 🐎 🏇 🎠",
    "ship": "🚢 🛳️ ⛴️ 🚤 ⛵ 🛥️",
    "truck": "🚚 🚛 🛻 🚒",
}
"""The emoji that stand for the classes of `domains-sample`; the distillation sees none of them."""


def draw(family: str, emoji: str, px: int, cache: Path) -> NDArray[np.uint8] | None:
    """`emoji` in the style of `family` on white, [px, px, 3]; None where the family lacks it."""
    source = _source(family, emoji, cache)
    if source is None:
        return None
    if isinstance(source, Path):
        with Image.open(source) as opened:
            picture = opened.convert("RGBA")
    else:
        png = bytes(resvg_py.svg_to_bytes(svg_string=source, width=256, height=256))
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    resized = canvas.convert("RGB").resize((px, px), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


def catalogue(cache: Path) -> dict[str, dict[str, str]]:
    """Every emoji of Unicode with its `name` and `group`."""
    file = fetch("unicode-emoji-json", cache) / "data-by-emoji.json"
    entries: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8"))
    return entries


def _source(family: str, emoji: str, cache: Path) -> str | Path | None:
    """SVG text or the picture's path."""
    code = "-".join(f"{ord(character):x}" for character in emoji)
    bare = "-".join(part for part in code.split("-") if part != "fe0f")
    if family == "noto":
        symbols = _noto_symbols(cache)
        return symbols.get(code.upper()) or symbols.get(bare.upper())
    if family == "twemoji":
        candidates = [fetch("@twemoji/svg", cache) / f"{c}.svg" for c in (code, bare)]
    elif family == "openmoji":
        folder = fetch("openmoji", cache) / "color" / "svg"
        candidates = [folder / f"{c.upper()}.svg" for c in (code, bare)]
    elif family == "fluent":
        folder = fetch("@lobehub/fluent-emoji-3d", cache) / "assets"
        candidates = [folder / f"{c}.webp" for c in (code, bare)]
    else:
        raise ValueError(f"unknown emoji family {family!r}; expected one of {', '.join(FAMILIES)}")
    found = next((path for path in candidates if path.exists()), None)
    return found.read_text("utf-8") if found and found.suffix == ".svg" else found


@functools.lru_cache(maxsize=1)
def _noto_symbols(cache: Path) -> dict[str, str]:
    """Noto comes as one sprite sheet: nested <svg id="CODE"> elements."""
    sheet = (fetch("@svgmoji/noto", cache) / "sprites" / "all.svg").read_text("utf-8")
    starts = [(m.start(), m.group(1)) for m in re.finditer(r'<svg [^>]*?id="([0-9A-F-]+)"', sheet)]
    ends = [start for start, _ in starts[1:]] + [sheet.rindex("</svg>")]
    return {
        code: sheet[start:end].replace(
            "<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1
        )
        for (start, code), end in zip(starts, ends, strict=True)
    }
