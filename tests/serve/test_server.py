"""The command: it starts, says where, answers what has begun, ends; Triton's client talks to it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.listening import Impatient
from pfedmma_deploy.serve import gate
from pfedmma_deploy.serve.asking import Service
from pfedmma_deploy.serve.batches import Batches
from pfedmma_deploy.serve.server import Address, make_server, open_port
from tests.runtime.waiting import wait_until
from tests.serve.calling import QUICKSTART, files, photo, served
from tests.serve.test_attacks import start


def test_without_torch_and_with_a_graceful_end(tmp_path: Path) -> None:
    process, url = start(QUICKSTART, tmp_path / "log")
    maps = Path(f"/proc/{process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()
    answers: list[httpx.Response] = []

    def ask() -> None:
        many = [photo(n, (600, 600), "JPEG") for n in range(60)]
        answers.append(httpx.post(f"{url}/v1/classify", files=files(*many), timeout=60))

    try:
        asking = threading.Thread(target=ask)
        asking.start()
        log = tmp_path / "log"
        metrics = f"{url}/metrics"
        wait_until(lambda: "pfedmma_queue_images 60" in httpx.get(metrics, timeout=60).text)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        process.wait(20)
    finally:
        process.kill()
        process.wait(20)
    assert len(answers[0].json()["predictions"]) == 60
    assert "Traceback" not in log.read_text()
    # What has no host name answers nobody any more.
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_tritons_own_client(service: Service) -> None:
    """In a process of its own: gevent, which it brings, changes threads."""
    pytest.importorskip("tritonclient")
    program = """
import json, sys
import numpy as np
import tritonclient.http as http

client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("quickstart")
metadata = client.get_model_metadata("quickstart")
pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
inputs = [
    http.InferInput("pixel_values", pixels.shape, "UINT8"),
    http.InferInput("client", [3, 1], "INT64"),
]
inputs[0].set_data_from_numpy(pixels, binary_data=True)
inputs[1].set_data_from_numpy(np.array([[4], [0], [8]]), binary_data=True)
found = {}
for binary in (True, False):
    outputs = [http.InferRequestedOutput(n, binary_data=binary) for n in ("image_embeds", "logits")]
    answer = client.infer("quickstart", inputs, outputs=outputs, request_id="7")
    found[binary] = {name: answer.as_numpy(name) for name in ("image_embeds", "logits")}
for name in found[True]:
    np.testing.assert_allclose(found[True][name], found[False][name], atol=1e-5)
try:
    client.infer("quickstart", inputs[:1], outputs=[http.InferRequestedOutput("x")])
except Exception as error:
    print(error, file=sys.stderr)
print(json.dumps([[o["name"] for o in metadata["outputs"]], found[True]["image_embeds"].tolist()]))
"""
    with served(service) as caller:
        host = f"{caller.base_url.host}:{caller.base_url.port}"
        done = subprocess.run(
            [sys.executable, "-c", program, host], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    names, embeds = json.loads(done.stdout.splitlines()[-1])
    assert names == ["logits", "image_embeds"]
    pixels: Any = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    classifier = service.live.model.classifier
    views = [(index, classifier.clients[index].default_strength) for index in (4, 0, 8)]
    expected = classifier.embed_pixels(pixels, views)
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert "Outputs are logits and image_embeds, found 'x'." in done.stderr


def test_a_full_queue_answers_at_once(service: Service) -> None:
    small = Service(service.live, Batches(1, queue=2), service.metrics, service.limits)
    with served(small) as caller:
        many = caller.post("/v1/classify", files=files(*[photo()] * 3))
        assert (many.status_code, many.headers["retry-after"]) == (503, "1")
        assert many.json()["error"].startswith("The queue is full: 0 of 2 images are in it, 3 more")
        small.batches.places_taken = 2
        # Before the body is read.
        full = caller.post("/v1/classify", files=files(photo()))
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        small.batches.places_taken = 0
        assert caller.post("/v1/classify", files=files(photo())).status_code == 200


def talk(port: int, *parts: bytes) -> bytes:
    """Everything that comes back until the connection is closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        for part in parts:
            line.sendall(part)
        while chunk := line.recv(65536):
            found += chunk
    return found


def test_who_is_too_slow_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedmma_deploy.listening.PATIENCE", 0.2)
    hasty = gate.Limits(body_seconds=0.2)
    slow = Service(service.live, Batches(1), service.metrics, hasty)
    with served(slow) as caller:
        port = caller.base_url.port
        assert port is not None
        # A head that does not end; a second one; a body that does not end.
        assert talk(port, b"GET /v1/classes HTTP/1.1\r\nHo") == b""
        whole = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert talk(port, whole, b"GET /v1").count(b"HTTP/1.1") == 1
        begun = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        found = talk(port, begun + b"Content-Type: application/json\r\n\r\n{")
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"The body did not arrive within 0.2 seconds." in found


def test_the_body_limit_counts_all_that_is_in_memory(service: Service) -> None:
    tight = gate.Limits(body_bytes=4000, all_body_bytes=1000)
    limited = Service(service.live, Batches(1), service.metrics, tight)
    with served(limited) as caller:
        large = caller.post("/v1/classify", content=b"x" * 5000)
        assert large.json()["error"] == (
            "A body has at most 4,000 bytes: send fewer or smaller images."
        )
        body = b'{"images": ["' + b"A" * 2000 + b'"]}'
        headers = {"content-type": "application/json"}
        several = caller.post("/v1/classify", content=body, headers=headers)
        assert several.status_code == 503
        # What is gone counts no more.
        small = caller.post("/v1/classify", content=b"{}", headers=headers)
        assert small.status_code == 422


def test_a_port_that_is_taken(service: Service) -> None:
    with open_port(Address(port=0)) as port:
        number = port.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {number} of 127\\.0\\.0\\.1 cannot"):
            open_port(Address(port=number))


def test_a_certificate_that_is_none(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("nothing")
    with pytest.raises(UsageError, match=r"--tls .* cannot be used"):
        make_server(service, Address(certificate=file, key=file))


def test_other_machines_need_keys_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["serve", "--host", "0.0.0.0", "--model", str(tmp_path)]) == 2
    assert "lets other machines ask for every client" in capsys.readouterr().err


def test_a_key_is_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert run(["key", "ward-a", "--clients", "3,7", "--keys", str(file), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["name"] == "ward-a"
    assert made["key"] not in file.read_text()
    assert run(["key", "ward-a", "--clients", "3", "--keys", str(file)]) == 2
    assert "has a key named 'ward-a'" in capsys.readouterr().err


def test_the_clock_of_a_connection_is_forgotten_with_it() -> None:
    wait_until(lambda: not Impatient._silent)
