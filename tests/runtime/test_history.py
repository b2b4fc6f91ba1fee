"""What a bundle remembers of its training: read back as written, damage refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.history import read_history

pytest_plugins = ["tests.export.fixtures"]

HISTORY: dict[str, Any] = {
    "rounds": 4,
    "bytes_up_per_client_round": 100,
    "bytes_down_per_client_round": 100,
    "bytes_total": 1600,
    "parameters": {"shared": 25, "local": 1000, "frozen": 5000},
    "clients": {
        "north": {
            "num_examples": [3, 0, 0, 0],
            "zero_shot": {"local": 74.5, "base": 73, "novel": None},
            "personalized": {"local": 90.0, "base": 70, "novel": None},
        },
        "0": {"num_examples": [], "zero_shot": None, "personalized": None},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """HISTORY with one entry set, `path` separated by slashes."""
    raw = copy.deepcopy(HISTORY)
    *way, last = path.split("/")
    place = raw
    for key in way:
        place = place[key]
    place[last] = value
    return raw


def test_read_back_as_written() -> None:
    history = read_history(HISTORY)
    assert history is not None
    assert history.clients["north"].num_examples == (3, 0, 0, 0)
    assert json.loads(json.dumps(asdict(history))) == HISTORY


def test_bundles_without_a_run_have_none() -> None:
    assert read_history(None) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rounds", "4", "manifest's history.rounds should be a whole number, found str"),
        ("parameters/shared", 0.5, "history.parameters.shared should be a whole number"),
        ("clients/north", 3, "history.clients.north.num_examples should be a list, found nothing"),
        ("clients/north/zero_shot", [], "clients.north.zero_shot should be an object, found list"),
        ("clients/north/personalized/local", "74", "personalized.local should be a number"),
        ("clients/north/personalized/base", 101.0, "should be a percentage, found 101"),
        ("clients/north/personalized/base", float("nan"), "should be a percentage, found nan"),
    ],
)
def test_damage_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_history(changed(path, value))
    with pytest.raises(BundleError, match="history should be an object, found list"):
        read_history([])


def test_it_must_fit_the_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    file = folder / "manifest.json"
    raw = json.loads(file.read_text())
    assert raw["history"] is None

    def open_with(history: dict[str, Any]) -> Bundle:
        file.write_text(json.dumps({**raw, "history": history}))
        return Bundle.open(folder)

    assert open_with(HISTORY).manifest.history == read_history(HISTORY)
    with pytest.raises(BundleError, match="history names a client 'x' that the bundle lacks"):
        open_with(changed("clients/x", HISTORY["clients"]["north"]))
    with pytest.raises(BundleError, match=r"counts images of 1 classes for client 'north', exp.*4"):
        open_with(changed("clients/north/num_examples", [3]))
