"""A key opens its clients and nothing else, and nothing tells which others there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.serve.keys import Keys, add_key
from pfedmma_deploy.serve.server import Address
from tests.serve.calling import bearer, files, photo

Made = tuple[Path, dict[str, str]]


def test_the_file_holds_hashes_alone(keys: Made) -> None:
    file, made = keys
    text = file.read_text()
    assert not any(key in text for key in made.values())
    assert file.stat().st_mode & 0o777 == 0o600
    loaded = Keys.load(file)
    access = loaded.find(made["both"])
    assert access is not None
    assert (access.group, access.sees("3"), access.sees("4")) == ("both", True, False)
    assert loaded.find(made["both"][:-1]) is None
    assert loaded.named() == {"3", "7"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no keys: make one with `pfedmma key`."),
        ("[a]\nclients = []", "sha256 of [a] should be 64 hexadecimal digits"),
        (f"[a]\nsha256 = '{'0' * 64}'", "clients of [a] should be a list of ids such as"),
        (f"[a]\nsha256 = '{'0' * 64}'\nclients = []\nx = 1", "[a] has 'x', expected sha256,"),
        ("a = 1", "a should be a table [a] with sha256 and clients."),
        ("[", "is no TOML"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        Keys.load(file)
    assert sentence in str(caught.value)


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    add_key(file, "a", ["3"])
    with pytest.raises(UsageError, match="has a key named 'a': remove that table"):
        add_key(file, "a", ["4"])


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic abc", "Bearer \xff"])
def test_without_a_key_there_is_nothing(guarded: Any, header: str) -> None:
    for path in ("/v1/clients", "/v1/classes", "/v1/classify", "/v2", "/metrics", "/nothing"):
        answer = guarded.get(path, headers={"authorization": header.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.json()["error"].startswith("A key is needed")
    assert guarded.get("/v2/health/ready").json() == {"ready": True}
    assert guarded.get("/swagger/../v1/clients").status_code in {401, 404}


def test_a_key_sees_its_clients(guarded: Any, keys: Made) -> None:
    made = keys[1]
    seen = {}
    for name in ("a", "both", "watch", "every"):
        listed = guarded.get("/v1/clients", headers=bearer(made[name])).json()["clients"]
        seen[name] = [one["id"] for one in listed]
    assert seen["a"] == ["zero-shot", "3"]
    assert seen["both"] == ["zero-shot", "3", "7"]
    assert seen["watch"] == ["zero-shot"]
    assert len(seen["every"]) == 11


def test_others_clients_look_like_none(guarded: Any, keys: Made) -> None:
    header = bearer(keys[1]["a"])

    def ask(client: str) -> tuple[int, str]:
        data = {"client": client}
        answer = guarded.post("/v1/classify", files=files(photo()), data=data, headers=header)
        return answer.status_code, answer.text

    assert ask("3")[0] == ask("zero-shot")[0] == 200
    assert ask("7") == ask("not there")
    assert ask("7")[0] == 404


def test_others_indices_look_like_none(guarded: Any, keys: Made) -> None:
    header = bearer(keys[1]["a"])

    def ask(*indices: int) -> tuple[int, str]:
        pixels = np.zeros((len(indices), 32, 32, 3), int)
        inputs = [
            {"name": "pixel_values", "datatype": "UINT8", "shape": list(pixels.shape)},
            {"name": "client", "datatype": "INT64", "shape": [len(indices)]},
        ]
        inputs[0]["data"], inputs[1]["data"] = pixels.ravel().tolist(), list(indices)
        path = "/v2/models/quickstart/infer"
        answer = guarded.post(path, json={"inputs": inputs}, headers=header)
        return answer.status_code, answer.text

    assert ask(4, 0)[0] == 200
    assert ask(4, 8) == ask(4, 1000) == ask(-1)
    assert ask(4, 8)[0] == 404


def test_the_only_client_of_a_key_is_its_default(guarded: Any, keys: Made) -> None:
    answers = {}
    for name in ("a", "both"):
        header = bearer(keys[1][name])
        found = guarded.post("/v1/classify", files=files(photo()), headers=header).json()
        answers[name] = found["predictions"][0]["client"]
    assert answers == {"a": "3", "both": "zero-shot"}


def test_metrics_have_a_key_of_their_own(guarded: Any, keys: Made) -> None:
    made = keys[1]
    refused = guarded.get("/metrics", headers=bearer(made["a"]))
    assert (refused.status_code, refused.json()) == (
        403,
        {"error": "This key does not open /metrics."},
    )
    text = guarded.get("/metrics", headers=bearer(made["watch"])).text
    assert 'group="a"' in text
    assert not any(key in text for key in made.values())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_machine_needs_no_keys(host: str) -> None:
    Address(host).require_safe(False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_other_machines_need_keys(host: str) -> None:
    Address(host).require_safe(True)
    with pytest.raises(UsageError, match="lets other machines ask for every client: make keys"):
        Address(host).require_safe(False)


def test_without_keys_other_names_of_this_machine_are_refused(caller: Any) -> None:
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "0.0.0.0"):
        answer = caller.get("/v1/clients", headers={"host": host})
        assert answer.status_code == 421
    for host in ("localhost:8000", "127.0.0.1:1", "127.3.2.1", "[::1]:8000", "[::1]"):
        assert caller.get("/v1/clients", headers={"host": host}).status_code == 200
