"""Shades: noisy squares of four colours, held by two sites."""

import numpy as np
from PIL import Image

from pfedmma_deploy import Dataset
from pfedmma_deploy.types import Example, Split

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "grey": (130,) * 3}
PARTS: dict[Split, int] = {"train": 6, "val": 2, "test": 3}
"""Images of each class at each site."""


class Shades(Dataset):
    """88 drawn squares of four classes; each is drawn from its own seed when opened."""

    name = "shades"
    class_names = tuple(COLOURS)

    def __init__(self) -> None:
        examples = []
        for site in ("north", "south"):
            for split, count in PARTS.items():
                for label, name in enumerate(COLOURS):
                    for number in range(count):
                        key = f"{site}/{split}/{name}/{number}"
                        examples.append(Example(key, label, split, client=site))
        self.examples = tuple(examples)

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, 32 x 32."""
        rng = np.random.default_rng(list(example.key.encode()))
        colour = np.array(COLOURS[self.class_names[example.label]])
        pixels = np.clip(colour + rng.integers(-40, 41, (32, 32, 3)), 0, 255)
        return Image.fromarray(pixels.astype(np.uint8))
