"""The runtime predicts where torch and everything around it cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.export.sample import images

pytest_plugins = ["tests.export.fixtures"]

BLOCKED = ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "safetensors", "ftfy")

PROGRAM = """
import sys
import warnings

warnings.simplefilter("error")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
from pfedmma_deploy.runtime import Classifier

classifier = Classifier.load(sys.argv[1])
plain = classifier.predict(sys.argv[2], client="north", top_k=1)
typed = classifier.predict(sys.argv[2], client="north", classes=["zebra", "tea pot"], top_k=1)
print(plain[0].top[0].name, typed[0].top[0].name, sep=",")
"""

LIGHT = """
import sys
import pfedmma_deploy.runtime

heavy = {"numpy", "onnxruntime", "tokenizers", "PIL", "torch"} & set(sys.modules)
print(sorted(heavy))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_predicts_without_torch_and_with_nothing_on_stderr(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(images(1)[0]).save(path)
    done = run(PROGRAM.format(blocked=set(BLOCKED)), str(bundle), str(path))
    assert done.stderr == ""
    assert done.returncode == 0
    plain, typed = done.stdout.strip().split(",")
    assert plain in {"cat", "dog", "fire_truck", "owl"}
    assert typed in {"zebra", "tea pot"}


def test_the_package_alone_loads_nothing_heavy() -> None:
    done = run(LIGHT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
