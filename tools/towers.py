"""Training of the two student towers towards the teacher's features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pfedmma_deploy.backbone.loading import MODEL_NAME

SEED = 20260501
PROMPT_SCALE = 20.0
"""Inverse temperature of the similarities that the soft-label terms compare."""


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
    return normalise(out)


def normalise(pixels: np.ndarray) -> Tensor:
    """Pixels as the tower takes them, [B, 32, 32, 3] uint8 -> [B, 3, 32, 32] float."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
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
