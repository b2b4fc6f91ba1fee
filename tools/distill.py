"""Distil `pfedmma-tiny`: from registry packages to the shipped weights with one command.

    python -m tools.distill [--image-epochs 10] [--text-epochs 14] [--out FILE]

Stages, each resumed where it was stopped: teacher features of the images and phrases, image
tower, text tower, fp16 file with its record. No label of any image is read.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from pfedmma_deploy.backbone.tiny import MODEL_NAME, register
from tools import images, phrases, teacher
from tools.packages import PACKAGES, default_cache

SEED = 20260501
CHUNK = 4096
ASSETS = Path(__file__).parents[1] / "pfedmma_deploy" / "assets" / MODEL_NAME
PROMPT_SCALE = 20.0
"""Inverse temperature of the similarities that the soft-label terms compare."""


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


def image_loss(student: Tensor, target: Tensor, anchors: Tensor) -> Tensor:
    """Cosine distance to the teacher, plus its soft labels over the ImageNet prompts.

    student, target: [B, 384], target normalised; anchors: [1000, 384], normalised.
    """
    student = F.normalize(student.float(), dim=-1)
    distance = 1 - (student * target).sum(-1).mean()
    return distance + 0.5 * soft_labels(student @ anchors.T, target @ anchors.T)


def soft_labels(student: Tensor, target: Tensor) -> Tensor:
    """KL(target || student) of softmax(PROMPT_SCALE * similarity), batch mean."""
    return F.kl_div(
        F.log_softmax(PROMPT_SCALE * student, -1),
        F.log_softmax(PROMPT_SCALE * target, -1),
        log_target=True,
        reduction="batchmean",
    )


def augment(batch: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Horizontal flips and shifts of up to 4 px, [B, 32, 32, 3] uint8 -> [B, 3, 32, 32] float."""
    padded = np.pad(batch, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    out = np.empty_like(batch)
    for i, (dy, dx, flip) in enumerate(rng.integers((9, 9, 2), size=(len(batch), 3))):
        picture = padded[i, dy : dy + 32, dx : dx + 32]
        out[i] = picture[:, ::-1] if flip else picture
    x = torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (x - mean) / std


def train_images(
    model: nn.Module,
    pixels: np.ndarray,
    targets: Tensor,
    anchors: Tensor,
    epochs: int,
    folder: Path,
) -> list[dict[str, float]]:
    """Train the image tower; returns the curve, one entry an epoch."""

    def batches(rng: np.random.Generator, epoch: int) -> list[np.ndarray]:
        order = rng.permutation(len(pixels))
        # Large batches to begin with, then twice the steps for the same images.
        return np.array_split(order, len(order) // (256 if epoch < 3 else 128))

    def loss(rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        x = augment(pixels[rows], rng)
        with torch.autocast("cpu", torch.bfloat16):
            features = model(x)
        return image_loss(features, targets[rows], anchors)

    return fit(model, batches, loss, epochs, 1.5e-3, folder / "image.pt")


def train_texts(
    model: nn.Module, texts: list[str], targets: Tensor, anchors: Tensor, epochs: int, folder: Path
) -> list[dict[str, float]]:
    """Train the text tower; `anchors` are unlabelled images' teacher features, [M, 384]."""
    tokens = open_clip.get_tokenizer(MODEL_NAME)(texts)
    lengths = tokens.argmax(-1).numpy() + 1

    def batches(rng: np.random.Generator, epoch: int) -> list[np.ndarray]:
        # Phrases of like length stand together, so that a batch is cut to little padding.
        order = rng.permutation(len(texts))
        pools = np.array_split(order, max(1, len(order) // 16384))
        found = [
            chunk
            for pool in pools
            for chunk in np.array_split(pool[np.argsort(lengths[pool])], len(pool) // 512)
        ]
        return [found[i] for i in rng.permutation(len(found))]

    def loss(rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        some = anchors[rng.integers(len(anchors), size=1024)]
        with torch.autocast("cpu", torch.bfloat16):
            features = model(tokens[rows, : lengths[rows].max()])
        return image_loss(features, targets[rows], some)

    return fit(model, batches, loss, epochs, 1e-3, folder / "text.pt")


class TextTower(nn.Module):
    """The text side of an open_clip CLIP as a module of its own; the weights are the model's."""

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.mask = model.attn_mask

    def forward(self, tokens: Tensor) -> Tensor:
        """Features [N, 384] of prompts cut short: exact, since the mask is causal."""
        width = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:width]
        x = self.transformer(x, attn_mask=self.mask[:width, :width])
        x = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]
        features: Tensor = x @ self.text_projection
        return features


def fit(
    model: nn.Module,
    batches: Callable[[np.random.Generator, int], list[np.ndarray]],
    loss: Callable[[np.ndarray, np.random.Generator], Tensor],
    epochs: int,
    lr: float,
    checkpoint: Path,
) -> list[dict[str, float]]:
    """AdamW with warm-up and cosine decay; each epoch ends in a checkpoint that a restart takes."""
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or "embedding" in n]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    curve: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve = state["curve"]
    for epoch in range(len(curve), epochs):
        rng = np.random.default_rng([SEED, epoch])
        started, total, chunks = time.monotonic(), 0.0, batches(rng, epoch)
        for i, rows in enumerate(bar := tqdm(chunks, desc=f"{checkpoint.stem} epoch {epoch + 1}")):
            done = (epoch + i / len(chunks)) / epochs
            for group in optimizer.param_groups:
                group["lr"] = (
                    lr * min(1.0, done * epochs * 2) * 0.5 * (1 + math.cos(math.pi * done))
                )
            value = loss(rows, rng)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += value.item()
            bar.set_postfix(loss=f"{total / (i + 1):.4f}")
        seconds = round(time.monotonic() - started, 1)
        curve.append(
            {"epoch": epoch + 1, "loss": round(total / len(chunks), 5), "seconds": seconds}
        )
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)
    return curve


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
