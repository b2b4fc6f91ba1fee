"""The checkpoint of a run: everything for a bit-identical continuation, safe against any kill.

    checkpoint/state.json                    the last finished round and which files belong to it
    checkpoint/shared.r7.safetensors         shared tensors after that round
    checkpoint/clients/<id>.r7.safetensors   a client's own tensors and its optimizer's state

A round writes new files beside the old ones; replacing `state.json` is the one step that makes it
count. Files that no state names are leftovers, or the next round's: only the process that trains
removes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedmma_deploy.errors import StoreError
from pfedmma_deploy.store.files import (
    json_bytes,
    parse_json,
    parse_tensors,
    read_bytes,
    tensor_bytes,
    write_bytes,
)

_OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class ClientState:
    """What stays with a client between rounds."""

    own: dict[str, Tensor]
    """The adapter's local and frozen tensors."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """The optimizer's state as `parameter/slot`; empty before the first step."""
    state: dict[str, Any] | None = None
    """The method's `State` as plain values, where it has one."""


def join_state(state: ClientState) -> dict[str, Tensor]:
    """Its tensors in one table, as a file has them."""
    optimizer = {_OPTIMIZER + name: value for name, value in state.optimizer.items()}
    return {**state.own, **optimizer}


def split_state(tensors: dict[str, Tensor], state: dict[str, Any] | None) -> ClientState:
    """The state of which `tensors` are the table, with the method's part of it."""
    names = [name for name in tensors if name.startswith(_OPTIMIZER)]
    optimizer = {name.removeprefix(_OPTIMIZER): tensors.pop(name) for name in names}
    return ClientState(own=tensors, optimizer=optimizer, state=state)


class Checkpoint:
    """States of one run on disk; memory does not grow with the number of clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Any] = {"round": -1, "shared": None, "clients": {}, "record": None}
        self._staged: dict[str, dict[str, Any]] = {}
        if (folder / "state.json").exists():
            path = folder / "state.json"
            self._state = parse_json(read_bytes(path), path)

    @property
    def round(self) -> int:
        """The last finished round, counted from 0; -1 before the first."""
        return int(self._state["round"])

    @property
    def record(self) -> dict[str, Any] | None:
        """The last finished round's line for `rounds.jsonl`."""
        record: dict[str, Any] | None = self._state["record"]
        return record

    def load_shared(self) -> dict[str, Tensor] | None:
        """Shared tensors after the last finished round, or None before the first."""
        entry = self._state["shared"]
        return None if entry is None else self._read(entry)

    def load_client(self, client: str) -> ClientState | None:
        """A client's state, or None where it has not trained yet."""
        entry = self._state["clients"].get(client)
        if entry is None:
            return None
        return split_state(self._read(entry), entry.get("state"))

    def stage_client(self, client: str, round: int, state: ClientState) -> None:
        """Write a client's new state; it counts once the round is committed."""
        file = f"clients/{client}.r{round}.safetensors"
        entry: dict[str, Any] = self._write(file, join_state(state))
        if state.state is not None:
            entry["state"] = state.state
        self._staged[client] = entry

    def commit(self, round: int, shared: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Finish a round: from here on a restart continues after it."""
        if round != self.round + 1:
            raise StoreError(f"{self.folder}: round {round} cannot follow round {self.round}.")
        entry = self._write(f"shared.r{round}.safetensors", shared)
        clients = {**self._state["clients"], **self._staged}
        self._state = {"round": round, "shared": entry, "clients": clients, "record": record}
        # The one moment at which the round counts. Files of a round have its number in their names,
        # so until here the state on disk is the last round's, and after it this one's, whole.
        write_bytes(self.folder / "state.json", json_bytes(self._state))
        self._staged = {}
        self.remove_leftovers()

    def _read(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / entry["file"]
        return parse_tensors(read_bytes(path, entry["sha256"]), path)

    def _write(self, file: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"file": file, "sha256": write_bytes(self.folder / file, tensor_bytes(tensors))}

    def remove_leftovers(self) -> None:
        """Remove the files of a round that was cut off; only for the process that trains."""
        entries = [self._state["shared"], *self._state["clients"].values()]
        named = {entry["file"] for entry in entries if entry is not None}
        for path in (*self.folder.glob("*.r*.safetensors*"), *self.folder.glob("clients/*")):
            if path.relative_to(self.folder).as_posix() not in named:
                path.unlink()
