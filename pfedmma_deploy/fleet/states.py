"""A site's states on disk while it trains, beside the run that it is to become.

    <run>/site/state.json              which rounds' states are kept
    <run>/site/<round>.safetensors     the client's own tensors and optimizer after that round

of the last round that counted and of the one after it: which of them counts the server says with
the next task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfedmma_deploy.store.checkpoint import ClientState, join_state, split_state
from pfedmma_deploy.store.files import (
    json_bytes,
    parse_json,
    parse_tensors,
    read_bytes,
    tensor_bytes,
    write_bytes,
)


class SiteStates:
    """The client's states by round, on disk; `StateStore` of the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rounds: dict[str, dict[str, Any]] = {}
        self._current: int | None = None
        path = folder / "state.json"
        if path.exists():
            self._rounds = parse_json(read_bytes(path), path)["rounds"]

    def count(self, round: int | None) -> str | None:
        """Continue from the state after `round`, as the server says; None: from the beginning.

        A site whose disk was lost is not to stand aside for ever: where that state is not here, the
        newest that is takes its place, or the initial one.

        Returns:
            What was lost and what takes its place, for site and operator; None where nothing was.
        """
        self._current = round
        if round is None or str(round) in self._rounds:
            return None
        self._current = max(map(int, self._rounds), default=None)
        instead = (
            "the initial state"
            if self._current is None
            else f"the state after round {self._current + 1}"
        )
        return f"the state after round {round + 1} is lost, {instead} takes its place"

    def load_client(self, client: str) -> ClientState | None:
        """See `StateStore`: the state that counts."""
        if self._current is None:
            return None
        entry = self._rounds[str(self._current)]
        path = self.folder / entry["file"]
        tensors = parse_tensors(read_bytes(path, entry["sha256"]), path)
        return split_state(tensors, entry.get("state"))

    def stage_client(self, client: str, round: int, state: ClientState) -> None:
        """See `StateStore`. The state it came from stays, others go."""
        file = f"{round}.safetensors"
        entry: dict[str, Any] = {
            "file": file,
            "sha256": write_bytes(self.folder / file, tensor_bytes(join_state(state))),
        }
        if state.state is not None:
            entry["state"] = state.state
        kept = (
            {} if self._current is None else {str(self._current): self._rounds[str(self._current)]}
        )
        self._rounds = {**kept, str(round): entry}
        write_bytes(self.folder / "state.json", json_bytes({"rounds": self._rounds}))
        named = {each["file"] for each in self._rounds.values()}
        for path in self.folder.glob("*.safetensors*"):
            if path.name not in named:
                path.unlink()
