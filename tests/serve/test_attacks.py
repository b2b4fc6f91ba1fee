"""A server as people start it, with keys, under attack: no traceback, no other client's name."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pfedmma_deploy.serve.keys import add_key
from tests.runtime.waiting import wait_until
from tests.serve.calling import QUICKSTART, bearer, files, photo

MINE, OTHERS = "ward-3", [f"ward-{n}" for n in range(10) if n != 3]
# As a job of a script it would be started with Ctrl-C ignored.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pfedmma_deploy.cli", run_name="__main__")
"""


@dataclass
class Target:
    """A running server, and a key that opens `MINE` alone."""

    url: str
    key: str
    log: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def raw(self, *parts: bytes, pause: float = 0, seconds: float = 10) -> bytes:
        """Everything that comes back after these bytes were sent."""
        found = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            try:
                for part in parts:
                    line.sendall(part)
                    time.sleep(pause)
                while chunk := line.recv(65536):
                    found += chunk
            except (ConnectionError, TimeoutError):
                pass
        return found

    def require_unharmed(self) -> None:
        """It still answers, and its log has no defect."""
        with httpx.Client(base_url=self.url, headers=bearer(self.key), timeout=60) as caller:
            answer = caller.post("/v1/classify", files=files(photo()))
        assert answer.status_code == 200
        log = self.log.read_text()
        assert "Traceback" not in log
        assert '"defect"' not in log
        assert not any(name in log for name in OTHERS)


def named_bundle(folder: Path) -> Path:
    """The quickstart bundle with clients whose names are found in any text."""
    shutil.copytree(QUICKSTART, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for client in manifest["clients"][1:]:
        client["id"] = f"ward-{client['id']}"
    manifest["history"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def start(bundle: Path, log: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`pfedmma serve` in a process of its own, and its address."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--json", "--port", "0", "--threads", "1"]
    command += ["--model", str(bundle), "--device", "cpu", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    assert line, log.read_text()
    return process, json.loads(line)["url"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    key = add_key(folder / "keys.toml", "mine", [MINE])
    bundle, log = named_bundle(folder / "bundle"), folder / "log"
    process, url = start(bundle, log, "--keys", str(folder / "keys.toml"))
    target = Target(url, key, log, process)
    try:
        yield target
        target.require_unharmed()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture
def caller(target: Target) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=target.url, headers=bearer(target.key), timeout=60) as client:
        yield client


def head(target: Target, *lines: str, path: str = "/v1/classify") -> bytes:
    first = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.key}\r\n"
    return (first + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 4", "Content-Length: 40"),
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Content-Length: 4, 40",),
        ("Content-Length: +4",),
        ("Content-Length: 0x4",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Host: other", "Content-Length: 4"),
        ("Content-Length : 4",),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(
    target: Target, lines: tuple[str, ...]
) -> None:
    smuggled = f"GET /v1/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.key}\r\n\r\n"
    found = target.raw(head(target, *lines) + b"0\r\n\r\n" + smuggled.encode())
    assert found.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    # One answer, and the connection is closed: what was smuggled in is not one of them.
    assert found.count(b"HTTP/1.1 ") == 1


def test_what_is_too_large_is_refused_before_it_is_read(target: Target) -> None:
    found = target.raw(head(target, "Content-Length: 99999999999"))
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"A body has at most 33,554,432 bytes" in found
    found = target.raw(head(target, "Content-Length: 5").replace(b"Bearer ", b"Bearer x"))
    assert found.startswith(b"HTTP/1.1 401 ")


def test_chunks_without_end_are_cut_off(target: Target) -> None:
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    begun = head(target, "Transfer-Encoding: chunked", "Content-Type: application/json")
    target.raw(begun, *[chunk] * 40)
    # The caller, still sending, may not see the answer: the connection is gone.
    wait_until(lambda: '"status": 413, "group": "mine"' in target.log.read_text())


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG by hand: whatever the header says, whatever the data are."""

    def part(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", data) + part(b"IEND", b"")


def test_bombs(target: Target, caller: httpx.Client) -> None:
    pixel_bomb = png(60_000, 60_000, zlib.compress(bytes(1 << 20)))
    # 4,000 x 4,000 are allowed; what they inflate to is not: 200 MB of zeros in 200 kB.
    zip_bomb = png(4_000, 4_000, zlib.compress(bytes(200 << 20), 9))
    archive = b"PK\3\4" + bytes(1000)
    many = caller.post("/v1/classify", files=files(pixel_bomb, archive, photo())).json()
    assert [one["image"] for one in many["predictions"]] == [2]
    reasons = [one["reason"] for one in many["skipped"]]
    assert reasons[0].startswith(("more than 25,000,000 pixels", "more than 89,478,485 pixels"))
    assert reasons[1] == "not a JPEG, PNG, WebP or BMP image but a ZIP archive"
    assert caller.post("/v1/classify", files=files(zip_bomb)).status_code in {200, 422}
    text = {"content-encoding": "gzip", "content-type": "application/json"}
    bomb = zlib.compress(bytes(50 << 20))
    assert caller.post("/v1/classify", content=bomb, headers=text).status_code == 415


TRICKS = [
    "../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "ward-7",
    "ward-7\0",
    "\0",
    "%2e%2e/ward-7",
    "*",
    "'; DROP TABLE clients; --",
    "{{7*7}}",
    "ward-3/../ward-7",
    "\u202eward-7",
    "WARD-3",
    " ward-3",
    "\n",
    "x" * 150,
]


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_in_names(caller: httpx.Client, trick: str) -> None:
    wrong = caller.post("/v1/classify", files=files(photo()), data={"client": trick})
    assert wrong.status_code == 404
    assert wrong.json() == {"error": "There is no such client for you; GET /v1/clients lists them."}
    # A class is a text and nothing else: it is answered as it was sent, or refused.
    data = {"client": MINE, "classes": [trick, "cat"]}
    named = caller.post("/v1/classify", files=files(photo()), data=data)
    assert named.status_code in {200, 422}
    if named.status_code == 200:
        names = {one["class"] for one in named.json()["predictions"][0]["top"]}
        assert names == {trick.strip(), "cat"}
    for path in (f"/v2/models/{trick}", f"/v1/clients/{trick}", f"/{trick}"):
        try:
            answer = caller.get(path)
        except httpx.InvalidURL:
            continue
        assert answer.status_code == 404


def bodies(target: Target) -> list[tuple[str, str, bytes]]:
    """Requests that are well, from which the malformed ones are made: path, type, body."""
    form = httpx.Request(
        "POST", target.url, files=files(photo()), data={"client": MINE, "top": "2"}
    )
    asked = {"images": ["aGVsbG8="], "client": MINE, "classes": ["a", "b"], "strength": 0.5}
    pixels = np.zeros((1, 32, 32, 3), np.uint8).tobytes()
    tensor = {
        "name": "pixel_values",
        "datatype": "UINT8",
        "shape": [1, 32, 32, 3],
        "parameters": {"binary_data_size": len(pixels)},
    }
    client = {"name": "client", "datatype": "INT64", "shape": [1], "data": [4]}
    infer = json.dumps({"inputs": [tensor, client]}).encode()
    kind = "application/json"
    return [
        ("/v1/classify", form.headers["content-type"], form.read()),
        ("/v1/classify", kind, json.dumps(asked).encode()),
        ("/v1/embed", kind, json.dumps({"texts": ["a"], "client": MINE}).encode()),
        ("/v2/models/bundle/infer", str(len(infer)), infer + pixels),
    ]


WORDS = [b'"', b"[" * 300, b"{", b"}", b"\0", b"null", b"-1", b"1e999", b"NaN", b"\xff\xfe", b"--"]
WORDS += [b"ward-7", b"true", b'"inputs"', b"\r\n\r\n", b"99999999999999999999", b"\\ud800", b"[]"]


def malformed(rng: np.random.Generator, body: bytes) -> bytes:
    """The body with a few of its bytes changed, cut out, put in or doubled."""
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(0, len(body) + 1))
        other = place + int(rng.integers(0, 40))
        what = int(rng.integers(0, 5))
        word = WORDS[int(rng.integers(0, len(WORDS)))]
        if what == 0:
            body = body[:place] + word + body[place:]
        elif what == 1:
            body = body[:place] + body[other:]
        elif what == 2:
            body = body[:place] + rng.bytes(other - place) + body[other:]
        elif what == 3:
            body = body[:place] + body[place:other] * 3 + body[other:]
        else:
            body = body[:place]
    return body


def attack(target: Target, count: int, seed: int) -> dict[int, int]:
    """How often each status answered `count` malformed bodies."""
    rng = np.random.default_rng(seed)
    well = bodies(target)
    found: dict[int, int] = {}
    with httpx.Client(base_url=target.url, headers=bearer(target.key), timeout=60) as caller:
        for _ in range(count):
            path, kind, body = well[int(rng.integers(0, len(well)))]
            headers = {"content-type": kind}
            if kind.isdecimal():
                headers = {"inference-header-content-length": kind}
            sent = malformed(rng, body)
            answer = caller.post(path, content=sent, headers=headers)
            assert answer.status_code < 500, (path, answer.text)
            # What the caller itself wrote may come back.
            assert not any(name in answer.text and name.encode() not in sent for name in OTHERS)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error"}
            found[answer.status_code] = found.get(answer.status_code, 0) + 1
    return found


def test_malformed_bodies(target: Target) -> None:
    assert sum(attack(target, 250, seed=0).values()) == 250
    target.require_unharmed()


@pytest.mark.slow
def test_ten_thousand_malformed_bodies(target: Target) -> None:
    found = attack(target, 10_000, seed=1)
    assert sum(found.values()) == 10_000
    target.require_unharmed()


def test_bytes_that_are_no_http(target: Target) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 10, 100, 1000, 70_000):
        found = target.raw(rng.bytes(count) + b"\r\n\r\n", seconds=2)
        assert found.startswith(b"HTTP/1.1 400 ") or not found
    assert target.raw(b"\x16\x03\x01" + bytes(100), seconds=1)[:12] in {b"", b"HTTP/1.1 400"}
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket"
    found = target.raw(f"GET /v1/clients HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n\r\n".encode())
    assert b" 401 " in found


@pytest.mark.slow
def test_slow_loris(target: Target) -> None:
    """A head that trickles is cut off after 10 s; meanwhile others are answered."""
    lines = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(300)]
    for line in lines:
        line.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n")
    target.require_unharmed()
    for line in lines:
        line.settimeout(60)
        try:
            line.sendall(b"X-A: b\r\n")
            assert line.recv(100) == b""
        except ConnectionError:
            pass
        line.close()
    target.require_unharmed()


def test_who_hangs_up_leaves_nothing_behind(target: Target) -> None:
    body = httpx.Request("POST", target.url, files=files(*[photo(n) for n in range(30)]))
    content = body.read()
    kind = f"Content-Type: {body.headers['content-type']}"
    for share in (1.0, 0.5):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", target.port)) as line:
                sent = content[: int(share * len(content))]
                line.sendall(head(target, f"Content-Length: {len(content)}", kind) + sent)
    with httpx.Client(base_url=target.url, headers=bearer(target.key), timeout=60) as caller:

        def queue() -> Any:
            return caller.get("/v1/clients").status_code == 200

        wait_until(queue)
    wait_until(lambda: '"status": 499' in target.log.read_text())
