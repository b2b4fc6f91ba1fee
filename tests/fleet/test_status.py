"""How a federation stands, as the file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma_deploy.errors import StoreError
from pfedmma_deploy.fleet.status import STATUS_FILE, FleetStatus


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    status = FleetStatus("wards", "fed:8443", rounds=4, round=2, stage="training")
    status.site("a").state = "training"
    status.site("b").reason = "was not there when the round began"
    status.write(tmp_path)
    assert FleetStatus.read(tmp_path) == status
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_where_no_server_ran_there_is_none(tmp_path: Path) -> None:
    assert FleetStatus.read(tmp_path) is None


def test_the_rows_are_a_list_with_these_keys() -> None:
    status = FleetStatus("wards", "fed:8443", rounds=4)
    assert status.site("a") is status.site("a")
    values = status.to_dict()
    assert values == {
        "name": "wards",
        "address": "fed:8443",
        "rounds": 4,
        "round": 0,
        "stage": "waiting for sites",
        "remark": "",
        "updated": 0.0,
        "sites": [
            {
                "id": "a",
                "state": "not here",
                "images": None,
                "seen_seconds_ago": None,
                "rounds": 0,
                "refused": 0,
                "reason": "",
                "bytes_received": 0,
                "bytes_sent": 0,
            }
        ],
    }


@pytest.mark.parametrize(("stage", "age", "shown"), [
    ("training", 14, "training"),
    ("training", 16, "stopped"),
    ("complete", 16, "complete"),
])  # fmt: skip
def test_a_server_that_is_no_more(stage: str, age: float, shown: str, tmp_path: Path) -> None:
    """15 seconds without a sign of it."""
    FleetStatus("wards", "fed:8443", rounds=4).write(tmp_path)
    path = tmp_path / STATUS_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "stage": stage, "updated": values["updated"] - age}))
    found = FleetStatus.read(tmp_path)
    assert found is not None and found.stage == shown


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text("{")
    with pytest.raises(StoreError, match=r"status\.json is not JSON"):
        FleetStatus.read(tmp_path)
