"""The embedded backbone `pfedmma-tiny`: a stock open_clip model whose weights ship with us."""

from __future__ import annotations

from pathlib import Path

MODEL_NAME = "pfedmma-tiny"
ASSETS = Path(__file__).parents[1] / "assets" / MODEL_NAME
CONFIG_FILE = ASSETS / f"{MODEL_NAME}.json"
WEIGHTS_FILE = ASSETS / "model.safetensors"


def register() -> None:
    """Make the name known to open_clip; calling it again changes nothing."""
    import open_clip

    if MODEL_NAME not in open_clip.list_models():
        open_clip.add_model_config(CONFIG_FILE)
