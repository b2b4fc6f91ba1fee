"""Distil `pfedmma-tiny`: from registry packages to the shipped weights with one command.

    python -m tools.distill [--image-epochs 12] [--text-epochs 8] [--out DIR]

Stages, each resumed where it was stopped: teacher features of the images and phrases, image
tower, text tower, fp16 file with its record. No label of any image is read.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from pfedmma_deploy.backbone.loading import MODEL_NAME, register
from tools import images, phrases, teacher
from tools.packages import PACKAGES, default_cache
from tools.towers import (
    PROMPT_SCALE,
    SEED,
    TextTower,
    normalise,
    train_images,
    train_texts,
)

CHUNK = 4096
ASSETS = Path(__file__).parents[1] / "pfedmma_deploy" / "assets" / MODEL_NAME


def image_data(folder: Path, cache: Path) -> tuple[np.ndarray, Tensor]:
    """Distillation images [N, 32, 32, 3] and their raw teacher features [N, 1280], on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "images.npy"
    if not store.exists():
        save_array(store, images.distillation_images(cache))
    pixels = np.load(store)
    parts = []
    for start in range(0, len(pixels), CHUNK):
        part = folder / f"features_{start:06d}.npy"
        if not part.exists():
            features = teacher.image_features(pixels[start : start + CHUNK], cache)
            save_array(part, features.numpy())
        parts.append(torch.from_numpy(np.load(part)))
    return pixels, torch.cat(parts)


def text_data(folder: Path, cache: Path) -> tuple[list[str], Tensor]:
    """Distillation phrases and their sentence embeddings [N, 384], on disk."""
    texts = phrases.distillation_phrases(cache)
    store = folder / "embeddings.npy"
    if not store.exists():
        save_array(store, teacher.sentence_embeddings(texts, cache).numpy())
    return texts, torch.from_numpy(np.load(store))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` under its name only when it is whole."""
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    partial.replace(path)


@torch.inference_mode()
def centre(model: open_clip.CLIP, photos: np.ndarray) -> None:
    """Move the image features' mean over unlabelled photos to zero, through `ln_post`'s bias.

    A common offset favours the same few names for every image; no label is needed to remove it.
    """
    tokens: list[Tensor] = []
    watch = model.visual.ln_post.register_forward_hook(lambda *call: tokens.append(call[2][:, 0]))
    for start in tqdm(range(0, len(photos), 500), desc="centring", unit="batch"):
        model.visual(normalise(photos[start : start + 500]))
    watch.remove()
    model.visual.ln_post.bias -= torch.cat(tokens).mean(0)


def export(model: open_clip.CLIP, out: Path, record: dict[str, object]) -> None:
    """The shipped fp16 file and its record, each written whole."""
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(PROMPT_SCALE))
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, out / "model.partial", metadata={"format": "pt"})
    (out / "model.partial").replace(out / "model.safetensors")
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def main() -> None:
    """Run every stage, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--image-epochs", type=int, default=12)
    parser.add_argument("--text-epochs", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = parser.parse_args()
    work = options.cache / "distill"
    register()
    torch.manual_seed(SEED)
    model = open_clip.create_model(MODEL_NAME)
    assert isinstance(model, open_clip.CLIP)

    pixels, features = image_data(work, options.cache)
    texts, embeddings = text_data(work, options.cache)
    joined = teacher.build(features, options.cache)
    image_targets = joined.project_images(features)
    text_targets = joined.project_texts(embeddings)
    names = [teacher.TEMPLATE.format(group[0]) for group in teacher.imagenet_names()]
    prompts = joined.project_texts(teacher.sentence_embeddings(names, options.cache))

    # The fused CPU attention is slower than plain matrix products at so few tokens.
    with sdpa_kernel(SDPBackend.MATH):
        curves = {
            "text": train_texts(
                TextTower(model), texts, text_targets, image_targets, options.text_epochs, work
            ),
            "image": train_images(
                model.visual, pixels, image_targets, prompts, options.image_epochs, work
            ),
        }
    centre(model, pixels[: images.PHOTOS])
    record = {
        "seed": SEED,
        "images": len(pixels),
        "phrases": len(texts),
        "epochs": {"image": options.image_epochs, "text": options.text_epochs},
        "curves": curves,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "packages": {name: f"{p.registry} {p.version}" for name, p in PACKAGES.items()},
    }
    export(model, options.out, record)
    print(f"wrote {options.out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
