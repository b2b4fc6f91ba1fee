"""How a federation stands: one row per site, for the live table and `pfedmma fleet status`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pfedmma_deploy.store.files import json_bytes, parse_json, read_bytes

Stage = Literal[
    "not started", "waiting for sites", "training", "handing out results", "complete", "stopped"
]
SiteState = Literal["not here", "here", "training", "answered", "set aside", "done"]
STATUS_FILE: Final = "status.json"
WRITE_EVERY: Final = 1.0
"""Seconds between two writings of the file, at least."""
STALE_AFTER: Final = 15.0
"""Seconds after which a file that says "training" was left by a server that is no more."""


@dataclass
class SiteStatus:
    """One row."""

    id: str
    state: SiteState = "not here"
    images: int | None = None
    """Training images, once the site has said it."""
    seen_seconds_ago: float | None = None
    rounds: int = 0
    """Rounds in which its update counted."""
    refused: int = 0
    """Updates that were refused since it was invited."""
    reason: str = ""
    """Of the last refusal or absence."""
    bytes_received: int = 0
    """From the site, HTTP without TLS."""
    bytes_sent: int = 0


@dataclass
class FleetStatus:
    """The whole table."""

    name: str
    address: str
    rounds: int
    round: int = 0
    """Rounds that are done."""
    stage: Stage = "waiting for sites"
    remark: str = ""
    """What is being waited for."""
    sites: dict[str, SiteStatus] = field(default_factory=dict)
    updated: float = 0.0
    """Seconds since 1970."""

    def site(self, id: str) -> SiteStatus:
        """The row of a site, which is made where there is none yet."""
        return self.sites.setdefault(id, SiteStatus(id))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "sites": [asdict(site) for site in self.sites.values()]}

    def write(self, folder: Path) -> None:
        """Write `status.json`, in one step; losing it in a power cut loses nothing."""
        self.updated = time.time()
        path = folder / STATUS_FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(json_bytes(self.to_dict()))
        partial.replace(path)

    @classmethod
    def read(cls, folder: Path) -> FleetStatus | None:
        """What the server wrote last; None where it never ran."""
        path = folder / STATUS_FILE
        if not path.exists():
            return None
        values = parse_json(read_bytes(path), path)
        rows = {row["id"]: SiteStatus(**row) for row in values.pop("sites")}
        found = cls(**values, sites=rows)
        if found.stage not in ("complete", "stopped") and time.time() - found.updated > STALE_AFTER:
            found.stage = "stopped"
        return found
