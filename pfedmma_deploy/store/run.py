"""The run folder: what a federated training leaves behind, and what personalization adds.

    runs/<name>/
      manifest.json     format, status, resolved configuration, backbone, classes, hashes of files
      splits.json       which images each client trains, validates and is tested on
      shared/shared.safetensors
      clients/<id>/     adapter.safetensors, adapter_config.json: copy it and that client is yours
      rounds.jsonl      one line a round
      checkpoint/       see `pfedmma_deploy.store.checkpoint`

Every file is written whole and hashed; loading verifies the hashes. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pfedmma_deploy.config import Options, TrainConfig, config_from_mapping, stored_config
from pfedmma_deploy.errors import StoreError, UsageError, nearest
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.store.files import (
    json_bytes,
    parse_json,
    parse_tensors,
    read_bytes,
    tensor_bytes,
    write_bytes,
)
from pfedmma_deploy.types import STRENGTHS

FORMAT = "pfedmma-run"
FORMAT_VERSION = 2
"""2: the configuration is nested, and splits are in the format of a clients file. 1 is read too."""
RUNS = Path("runs")
SHARED_FILE = "shared/shared.safetensors"
SPLITS_FILE = "splits.json"
ROUNDS_FILE = "rounds.jsonl"
CHUNK = 256
"""Clients whose files are announced together when many are written."""


@dataclass(frozen=True)
class StoredClient:
    """One client as a run holds it."""

    id: str
    tensors: dict[str, Tensor]
    """Its own part, by parameter name; with a copy of the shared part where it has its own."""
    config: dict[str, Any]
    """Method, backbone fingerprint, hyper-parameters, the classes it has seen, provenance."""

    @property
    def default_strength(self) -> float:
        """At which the client's model answers where nobody asks for another: its guard's choice.

        1 for a client that an earlier version wrote. Raises `StoreError` where it is no strength.
        """
        return default_strength(self.config, self.id)


def default_strength(config: Mapping[str, Any], client: str) -> float:
    """What `StoredClient.default_strength` is, of an `adapter_config.json`."""
    value = config.get("default_strength", 1.0)
    low, high = STRENGTHS[0], STRENGTHS[-1]
    if type(value) not in (int, float) or not low <= value <= high:
        raise StoreError(
            f"The default_strength of client {client} should be a number from {low:g} to "
            f"{high:g}, found {value!r}: personalize the client again, which chooses it anew."
        )
    return float(value)


class Run:
    """A run folder. `create` starts one, `open` reads one; both keep `manifest` in memory."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(cls, folder: Path, manifest: Mapping[str, Any], splits: Mapping[str, Any]) -> Run:
        """Start a run in an empty or absent folder.

        Raises:
            StoreError: the folder holds something already.
        """
        if folder.exists() and not _is_free(folder):
            what = "a run" if (folder / "manifest.json").exists() else "something that is not a run"
            raise StoreError(
                f"{folder} already holds {what}. Continue a run with --resume, "
                "or choose another --out."
            )
        run = cls(folder, {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest})
        run.manifest["files"] = {SPLITS_FILE: write_bytes(folder / SPLITS_FILE, json_bytes(splits))}
        run.save()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read an existing run.

        Raises:
            StoreError: no run there, damaged, or of a newer format.
        """
        path = folder / "manifest.json"
        if not path.exists():
            raise StoreError(
                f"{folder} holds no run (no manifest.json). "
                f"`pfedmma train --out {folder}` makes one."
            )
        manifest = parse_json(read_bytes(path), path)
        if manifest.get("format") != FORMAT or manifest.get("format_version") not in (1, 2):
            raise StoreError(
                f"{path}: expected format {FORMAT} version {FORMAT_VERSION}, found "
                f"{manifest.get('format')} version {manifest.get('format_version')}."
            )
        run = cls(folder, manifest)
        run._settle()
        return run

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration that the run was trained with."""
        return stored_config(self.manifest["config"], str(self.folder / "manifest.json"))

    def config_with(self, changes: Options) -> TrainConfig:
        """The stored configuration with what was given on top, for a training to be resumed."""
        stored = self.config.to_options()
        given = {**changes.suggested, **changes.given}
        parameters = {**stored["parameters"], **given.pop("parameters", {})}
        return config_from_mapping({**stored, **given, "parameters": parameters})

    @property
    def checkpoint(self) -> Checkpoint:
        """The state to continue from."""
        return Checkpoint(self.folder / "checkpoint")

    @property
    def role(self) -> Literal["alone", "server", "site"]:
        """Whose run this is: a federation's in one process, or a part of one across machines."""
        role: Literal["alone", "server", "site"]
        role = self.manifest.get("fleet", {}).get("role", "alone")
        return role

    @property
    def is_complete(self) -> bool:
        """Whether every round is done and the results are written."""
        return bool(self.manifest["status"] == "complete")

    @property
    def client_ids(self) -> list[str]:
        """Clients in their order: those of the federation, then those added since."""
        return list(self.manifest["clients"])

    @property
    def splits(self) -> dict[str, Any]:
        """The federation as `federation_to_dict` wrote it."""
        return parse_json(self._read(SPLITS_FILE), self.folder / SPLITS_FILE)

    def require_complete(self) -> None:
        """Raises `StoreError` where training has not finished."""
        if not self.is_complete:
            raise StoreError(
                f"The run {self.folder} is not finished "
                f"(round {self.checkpoint.round + 1} of {self.config.rounds}). "
                f"Continue it with `pfedmma train --resume --out {self.folder}`."
            )

    def load_shared(self) -> dict[str, Tensor]:
        """The global shared tensors."""
        return parse_tensors(self._read(SHARED_FILE), self.folder / SHARED_FILE)

    def load_client(self, client: str, *, federated: bool = False) -> StoredClient:
        """A client's own part; with `federated`, as the federation left it before personalization.

        Raises:
            UsageError: the run has no such client.
            StoreError: its files are missing or damaged.
        """
        if client not in self.client_ids:
            known = ", ".join(self.client_ids[:12]) + (", ..." if len(self.client_ids) > 12 else "")
            raise UsageError(
                f"The run {self.folder} has no client {client!r}"
                f"{nearest(client, self.client_ids)} (clients: {known})."
            )
        base = f"clients/{client}"
        file = f"{base}/federated.safetensors"
        if not federated or file not in self.manifest["files"]:
            file = f"{base}/adapter.safetensors"
        config_file = f"{base}/adapter_config.json"
        return StoredClient(
            id=client,
            tensors=parse_tensors(self._read(file), self.folder / file),
            config=parse_json(self._read(config_file), self.folder / config_file),
        )

    def save_client(self, client: StoredClient, *, keep_federated: bool = False) -> None:
        """Write a client's folder and record it; `save` makes it count.

        With `keep_federated`, the state that the federation left is kept beside the new one.
        """
        base = f"clients/{client.id}"
        adapter, federated = f"{base}/adapter.safetensors", f"{base}/federated.safetensors"
        new: dict[str, bytes] = {}
        if keep_federated and federated not in self.manifest["files"]:
            # First, so that no kill can come between losing the old state and keeping it.
            new[federated] = self._read(adapter)
        self._write({**new, **_client_files(client)})
        self._know(client.id)

    def save_clients(self, clients: Iterable[StoredClient]) -> None:
        """Write the folders of many clients, a few at a time; `save` makes them count."""
        waiting = iter(clients)
        while chunk := list(itertools.islice(waiting, CHUNK)):
            self._write(
                dict(itertools.chain.from_iterable(_client_files(one).items() for one in chunk))
            )
            for client in chunk:
                self._know(client.id)

    def _know(self, client: str) -> None:
        known: list[str] = self.manifest["clients"]
        if client not in known:
            known.append(client)

    def save_shared(self, shared: Mapping[str, Tensor]) -> None:
        """Write the global shared tensors and record them; `save` makes it count."""
        self._write({SHARED_FILE: tensor_bytes(shared)})

    def save(self) -> None:
        """Write the manifest."""
        write_bytes(self.folder / "manifest.json", json_bytes(self.manifest))

    def _write(self, new: Mapping[str, bytes]) -> None:
        """Write files; a kill between them and the manifest leaves a run that still loads.

        The manifest first says which hashes are about to appear beside the old ones.
        """
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in new.items()}
        self.manifest["pending"] = hashes
        self.save()
        written: dict[str, Path] = {}
        for name, data in new.items():
            path = self.folder / name
            # Clients that never trained have the same adapter: one copy on disk serves them all.
            if not _link_file(written.get(hashes[name]), path):
                write_bytes(path, data)
            written[hashes[name]] = path
        self.manifest["files"].update(hashes)
        del self.manifest["pending"]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of `rounds.jsonl` so far; one that a kill cut off does not count."""
        path = self.folder / ROUNDS_FILE
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write_rounds(self, rounds: int, record: dict[str, Any] | None) -> None:
        """Cut `rounds.jsonl` to its first `rounds` lines, the last one being `record`.

        A kill can fall between a round's commit and its line; this mends either case.
        """
        self.replace_rounds([] if record is None else [*self.rounds[: rounds - 1], record])

    def replace_rounds(self, records: Iterable[dict[str, Any]]) -> None:
        """Write `rounds.jsonl` anew."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_bytes(self.folder / ROUNDS_FILE, lines.encode())

    def append_round(self, record: dict[str, Any]) -> None:
        """Add a finished round's line."""
        with (self.folder / ROUNDS_FILE).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")

    def _settle(self) -> None:
        """Count the files that a writing which was cut off had finished."""
        for name, digest in self.manifest.pop("pending", {}).items():
            path = self.folder / name
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                self.manifest["files"][name] = digest

    def record_rounds(self) -> None:
        """Record the hash of the finished `rounds.jsonl`."""
        data = read_bytes(self.folder / ROUNDS_FILE)
        self.manifest["files"][ROUNDS_FILE] = hashlib.sha256(data).hexdigest()

    def _read(self, file: str) -> bytes:
        """A file of the run, verified."""
        return read_bytes(self.folder / file, self.manifest["files"].get(file))


def _client_files(client: StoredClient) -> dict[str, bytes]:
    """Contents by path below the run's folder."""
    base = f"clients/{client.id}"
    return {
        f"{base}/adapter.safetensors": tensor_bytes(client.tensors),
        f"{base}/adapter_config.json": json_bytes(client.config),
    }


def _link_file(source: Path | None, target: Path) -> bool:
    """Give a file that is written already another name; False where that cannot be done.

    Files of a run are replaced, never changed, so one name's content cannot change another's.
    """
    if source is None:
        return False
    partial = target.with_name(f"{target.name}.link.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        os.link(source, partial)
        partial.replace(target)
    except OSError:
        return False
    return True


def _is_free(folder: Path) -> bool:
    """Whether nothing is lost by starting a run here: empty, or a start that was cut off."""
    if not folder.is_dir():
        return False
    return all(p.name == SPLITS_FILE or p.name.endswith(".partial") for p in folder.iterdir())


def newest_run(root: Path = RUNS) -> Run:
    """The run under `root` whose manifest was written last.

    Raises:
        StoreError: there is none; the message says which command makes one.
    """
    manifests = sorted(root.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise StoreError(
            f"There is no run under {root.resolve()}. `pfedmma quickstart` makes one in two "
            "minutes; `pfedmma train --data DIR --backbone NAME` makes one from your own images."
        )
    return Run.open(manifests[-1].parent)


def find_run(run: Run | str | Path | None) -> Run:
    """A run itself, the run in a folder, or for None the newest in `runs`. Raises `StoreError`."""
    if isinstance(run, Run):
        return run
    return newest_run() if run is None else Run.open(Path(run))


def free_folder(data: str) -> Path:
    """`runs/<data>`, with a number behind it where that is taken.

    Raises:
        UsageError: there is no name in `data`.
    """
    name = Path(data).resolve().name
    if not name:
        raise UsageError(f"no run folder can be named after {data!r}: name one with --out")
    candidates = (RUNS / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())
