"""A model whose answers can be read off the pixels, for tests that compute by hand.

Red, green and blue of an image's first pixel, divided by 10, are the labels that zero-shot, client
"north" and client "south" answer with 60 %; the next label (in a circle) gets 30 %, the others
share the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from PIL import Image

from pfedmma_deploy.demo.model import DemoModel
from pfedmma_deploy.runtime import ClassScore, Prediction
from pfedmma_deploy.runtime.certainty import Verdict
from pfedmma_deploy.runtime.manifest import (
    ClientHistory,
    ClientInfo,
    CurvePoint,
    Figures,
    History,
    Manifest,
    Preprocessing,
)
from pfedmma_deploy.types import Example, Skipped

NAMES = ("cat", "dog", "fire_truck", "owl")
SIZE = 8


def manifest(**changes: Any) -> Manifest:
    """Two clients: north has seen cat, south cat and dog; fire_truck and owl are novel."""
    values: dict[str, Any] = {
        "clients": (
            ClientInfo(0, "zero-shot", ()),
            ClientInfo(1, "north", (0,)),
            ClientInfo(2, "south", (0, 1)),
        ),
        "class_names": NAMES,
        "base": (0, 1),
        "novel": (2, 3),
        "prompt": "a photo of a {}.",
        "logit_scale": 20.0,
        "preprocessing": Preprocessing(SIZE, "shortest", "bicubic", (0, 0, 0), (1, 1, 1)),
        "embed_dim": 4,
        "context_length": 8,
        "flavour": "portable",
        "precision": "fp32",
        "weights": "fp16",
        "opset": 20,
        "backbone": {"name": "tiny-test", "pretrained": "random"},
        "adapter": {"method": "pfedmma"},
        "provenance": {},
        "parity": {"images": 3, "top1_agreement": 100.0, "max_abs_error": 1e-6},
        "quality": {},
        "files": {},
        "history": None,
        "strength": "exact",
        **changes,
    }
    return Manifest(**values)


def history(**clients: tuple[float, float, float, float]) -> History:
    """By client: local and novel accuracy of zero-shot, then of the client's own model."""
    return History(
        rounds=2,
        bytes_up_per_client_round=100,
        bytes_down_per_client_round=50,
        bytes_total=600,
        parameters={"shared": 25, "local": 75, "frozen": 900},
        clients={
            name: ClientHistory(
                (3, 1, 0, 0),
                Figures(local, 50.0, novel),
                Figures(own_local, 40.0, own_novel),
                (
                    CurvePoint(local, 50.0, novel, strength=0.0),
                    CurvePoint(own_local, 40.0, own_novel, strength=1.0),
                ),
            )
            for name, (local, novel, own_local, own_novel) in clients.items()
        },
    )


class FakeClassifier:
    """Answers as the pixels say, and remembers how it was called."""

    device, provider = "cpu", "FakeExecutionProvider"

    def __init__(self, described: Manifest) -> None:
        self.manifest = described
        self.verdict = Verdict()
        """Of every answer of a client."""
        self.calls: list[dict[str, Any]] = []

    def predict(
        self,
        images: Iterable[Any],
        client: Sequence[int] = (),
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        strength: Sequence[float | None] | None = None,
        batch_size: int = 32,
    ) -> list[Prediction]:
        images = list(images)
        call = {"images": len(images), "client": list(client), "classes": classes}
        self.calls.append(call if strength is None else {**call, "strength": list(strength)})
        strengths = [1.0 if one is None else one for one in strength or [None] * len(images)]
        names = tuple(classes or self.manifest.class_names)
        return [
            Prediction(
                f"image {i}",
                self.manifest.clients[who].id,
                _scores(pixels, who, names),
                amount,
                self.verdict if who else Verdict(),
            )
            for i, (pixels, who, amount) in enumerate(zip(images, client, strengths, strict=True))
        ]


def _scores(pixels: Any, who: int, names: tuple[str, ...]) -> tuple[ClassScore, ...]:
    best = int(pixels[0, 0, who]) // 10 % len(names)
    second = (best + 1) % len(names)
    rest = 0.1 / max(1, len(names) - 2)
    scores = [
        ClassScore(name, {best: 0.6, second: 0.3}.get(i, rest)) for i, name in enumerate(names)
    ]
    return tuple(sorted(scores, key=lambda score: -score.probability))


def fake_model(**changes: Any) -> DemoModel:
    """A model with that classifier; `changes` go into the manifest."""
    return DemoModel(cast("Any", FakeClassifier(manifest(**changes))), "fake")


def calls(model: DemoModel) -> list[dict[str, Any]]:
    """What the fake was asked."""
    return cast("FakeClassifier", model.classifier).calls


def image(zero_shot: int, north: int, south: int = 0, size: int = SIZE) -> Image.Image:
    """An image to which the three models answer with these labels."""
    colour = np.array([10 * zero_shot, 10 * north, 10 * south], np.uint8)
    return Image.fromarray(np.broadcast_to(colour, (size, size, 3)).copy())


class FakeSample:
    """A data set in memory in place of the embedded sample; the test images are given in order."""

    name, class_names, skipped = "fake-sample", NAMES, tuple[Skipped, ...]()

    def __init__(self, tests: Sequence[tuple[int, Image.Image]]) -> None:
        self.examples = tuple(
            Example(f"{i}.png", label, "test") for i, (label, _) in enumerate(tests)
        )
        self._images = [one for _, one in tests]

    def open_image(self, example: Example) -> Image.Image:
        return self._images[int(example.key.removesuffix(".png"))]


def with_sample(model: DemoModel, tests: Sequence[tuple[int, Image.Image]]) -> DemoModel:
    """The model with such a sample."""
    model.__dict__["sample"] = FakeSample(tests)  # where cached_property keeps it
    return model
