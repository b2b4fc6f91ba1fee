"""What `/metrics` counts, in Prometheus' text format, and the log of requests.

Neither holds anything of an image, a client's id or a key: a request goes by the name of its key.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOG: Final = logging.getLogger("pfedmma.serve")


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        per_request = ["route", "group"]
        self.requests = Counter(
            "pfedmma_requests",
            "Answered requests",
            [*per_request, "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "pfedmma_request_seconds",
            "From the head of a request to the end of its answer",
            per_request,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "pfedmma_images", "Images answered", ["group"], registry=self._registry
        )
        self.skipped = Counter(
            "pfedmma_images_skipped",
            "Images that could not be read",
            ["group"],
            registry=self._registry,
        )
        self.batch = Histogram(
            "pfedmma_batch_rows",
            "Rows of a call of the model",
            buckets=ROWS,
            registry=self._registry,
        )
        self.queue = Gauge(
            "pfedmma_queue_images", "Images between arrival and answer", registry=self._registry
        )
        self.changes = Counter(
            "pfedmma_reloads",
            "Changed bundles and files of keys, by result",
            ["what", "result"],
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def changed(self, what: str, result: str) -> None:
        """Count and log a new bundle or file of keys; `result` is `loaded` or why not."""
        loaded = result == "loaded"
        self.changes.labels(what, "loaded" if loaded else "refused").inc()
        log("reload", logging.INFO if loaded else logging.ERROR, what=what, result=result)

    def answered(self, route: str, status: int, group: str, started: float) -> None:
        """Count and log a request that began at `started` of `time.perf_counter`."""
        seconds = time.perf_counter() - started
        self.requests.labels(route, group, str(status)).inc()
        self.seconds.labels(route, group).observe(seconds)
        log("request", route=route, status=status, group=group, seconds=round(seconds, 4))


def log(event: str, level: int = logging.INFO, **values: Any) -> None:
    """One line of JSON on stderr: time, event, and what belongs to it."""
    if LOG.isEnabledFor(level):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        LOG.log(level, json.dumps({"time": stamp, "event": event, **values}))
