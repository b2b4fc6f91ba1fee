"""A data set without pixels, made to be divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.types import Dataset, Example, Federation, Skipped, Split


@dataclass(eq=False)
class Toy(Dataset):
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    name: str = "toy"
    skipped: tuple[Skipped, ...] = ()

    def open_image(self, example: Example) -> Image.Image:
        raise AssertionError("dividing opens no image")


def make_toy(
    names: tuple[str, ...],
    sizes: dict[Split, int],
    domains: tuple[str | None, ...] = (None,),
) -> Toy:
    """`sizes` images of every class, split and domain; keys are domain/split/class/number."""
    return Toy(
        names,
        tuple(
            Example(f"{domain}/{split}/{name}/{number}.png", label, split, None, domain)
            for domain in domains
            for split, size in sizes.items()
            for label, name in enumerate(names)
            for number in range(size)
        ),
    )


def partitioned(
    dataset: Dataset, *, partition: Any = "disjoint", seed: int = 0, **options: Any
) -> Federation:
    """`build_federation` with the fields of a `PartitionConfig` as keywords."""
    return build_federation(dataset, PartitionConfig(scheme=partition, **options), seed=seed)


def held(federation: Federation) -> list[str]:
    """Keys of all clients' images."""
    return [e.key for c in federation.clients for e in (*c.train, *c.val, *c.test)]
