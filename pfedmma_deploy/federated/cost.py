"""What a round costs: operations, seconds by phase, memory, energy where the machine tells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pfedmma_deploy.backbone.flops import image_tokens, tower_flop
from pfedmma_deploy.methods.client_run import ClientRun
from pfedmma_deploy.system import energy_counters, energy_since, peak_memory

PHASES = ("prefixes", "train", "validate", "store")
"""Names in `rounds.jsonl` since version 0.1; `prefixes` is the caching of activations."""


class RoundCost:
    """Seconds and operations since the last `take`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._flop = 0
        self._energy = energy_counters()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def count(self, run: ClientRun[Any]) -> None:
        """Counts the batches that a client has trained on."""
        backbone, adapter = run.backbone, run.adapter
        image_first = adapter.first_block(backbone, "image")
        text_first = adapter.first_block(backbone, "text")
        reuses = run.images.cache is not None
        is_kept = reuses and (run.images.views > 0 or not run.options.random_transform)
        image = tower_flop(
            backbone,
            "image",
            image_tokens(backbone),
            start=image_first if is_kept else 0,
            adapted=image_first,
        )
        texts = run.prompts.texts
        text = tower_flop(
            backbone,
            "text",
            backbone.prompt_length(texts.prompts),
            start=text_first if texts.activations is not None else 0,
            adapted=text_first,
        )
        self._flop += run.images_seen * image.total + run.steps * len(texts.names) * text.total

    def take(self) -> dict[str, object]:
        """What was counted, and start again; `peak_memory` is the process's so far, in bytes.

        `energy` is that of the whole processor package, in joules; None where it is not told.
        """
        found = {
            "flop": self._flop,
            "seconds_by_phase": {name: round(value, 3) for name, value in self._seconds.items()},
            "peak_memory": peak_memory(),
            "energy": energy_since(self._energy),
        }
        self.__init__()  # type: ignore[misc]  # starts again
        return found
