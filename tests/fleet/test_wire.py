"""What travels, byte for byte: shared tensors and a few figures, and nothing else of a site.

A recorder stands in front of the server. The sites' TLS ends there, under a certificate of the same
authority, so it reads all that either side says over a whole run that really trains.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.fleet.folder import Fleet
from pfedmma_deploy.fleet.keys import issue_server_certificate
from pfedmma_deploy.fleet.server import ServeResult
from pfedmma_deploy.fleet.site import Site, prepare
from pfedmma_deploy.store.checkpoint import join_state
from pfedmma_deploy.store.run import Run
from tests.fleet.scripted import PATIENCE, Served, invitation, make_fleet, options, photos

WINDOW = 16
"""Bytes in a row that must not be seen."""
DISTINCT = 6
"""Different bytes that a window has at least: runs of zeros are everywhere, and nobody's."""
ROUNDS = 2
SITES = ("clinic", "harbour")


@dataclass
class Recorder:
    """Passes bytes on between sites and server, and keeps them."""

    server: int
    """Its port."""
    outside: ssl.SSLContext
    """Towards sites."""
    inside: ssl.SSLContext
    """Towards the server."""
    said: list[bytearray] = field(default_factory=list)
    """What each end said, connection by connection."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield listener.getsockname()[1]

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                threading.Thread(target=self._relay, args=(plain,), daemon=True).start()

    def _relay(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            site = stack.enter_context(self.outside.wrap_socket(plain, server_side=True))
            onward = socket.create_connection(("127.0.0.1", self.server), timeout=PATIENCE)
            wrapped = self.inside.wrap_socket(onward, server_hostname="127.0.0.1")
            server = stack.enter_context(wrapped)
            record = {site: bytearray(), server: bytearray()}
            self.said += record.values()
            while True:
                for end in select.select([site, server], [], [], PATIENCE)[0]:
                    data = _receive(end)
                    if data is None:
                        return
                    record[end] += data
                    (server if end is site else site).sendall(data)

    def seen(self, needle: bytes) -> bool:
        return any(needle in said for said in self.said)


def _receive(end: ssl.SSLSocket) -> bytes | None:
    """What is there; None at the end. TLS has messages of its own, which are nothing here."""
    end.setblocking(False)
    data = b""
    try:
        while chunk := end.recv(65536):
            data += chunk
        return data or None
    except ssl.SSLWantReadError:
        return data
    finally:
        end.settimeout(PATIENCE)


def recorder(fleet: Fleet, port: int, folder: Path) -> Recorder:
    """With a certificate of its own from the federation's authority."""
    folder.mkdir()
    for name in ("ca.pem", "ca-key.pem"):
        shutil.copy(fleet.keys / name, folder)
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    outside.load_cert_chain(*issue_server_certificate(folder, ["127.0.0.1"]))
    return Recorder(port, outside, ssl.create_default_context(cafile=str(folder / "ca.pem")))


@dataclass
class Recorded:
    """A run, and all that was said."""

    recorder: Recorder
    result: ServeResult
    folder: Path
    locals: dict[str, Tensor]
    """Every local tensor of either site that was ever on its disk, and what they began with."""

    def files(self) -> list[Path]:
        return sorted((self.folder / "data").rglob("*.png"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two sites with 16 images each train the embedded backbone for two rounds."""
    folder = tmp_path_factory.mktemp("wire")
    config = options(
        ROUNDS,
        backbone="pfedmma-tiny",
        pretrained=None,
        parameters={"bottleneck_dim": 16},
        local_epochs=1,
        batch_size=8,
        partition=PartitionConfig(scheme="folders", num_shots=0, classes="all"),
    )
    fleet = make_fleet(folder / "wards", SITES, config, class_names=None, quorum=2)
    kept: dict[str, Tensor] = {}
    with Served(fleet) as served:
        found = recorder(fleet, served.port, folder / "recorder")
        with found.listening() as port:
            sites = [_site(fleet, id, folder, port) for id in SITES]
            threads = [threading.Thread(target=site.take_part, daemon=True) for site in sites]
            for site in sites:
                _keep_states(site, kept)
            for thread in threads:
                thread.start()
            result = served.end()
            for thread in threads:
                thread.join(PATIENCE)
    shared = result.run.load_shared()
    for id in SITES:
        for name, value in Run.open(folder / id).load_client(id).tensors.items():
            if name not in shared:
                kept[f"{id} at the end: {name}"] = value
    return Recorded(found, result, folder, kept)


def _site(fleet: Fleet, id: str, folder: Path, port: int) -> Site:
    data = photos(folder / "data" / f"images-of-{id}", SITES.index(id) + 1)
    read = replace(invitation(fleet, id), address=f"127.0.0.1:{port}")
    return prepare(read, str(data), folder / id)


def _keep_states(site: Site, kept: dict[str, Tensor]) -> None:
    """Everything that the site stores of itself after a round: its layers and its optimizer."""
    stage = site.states.stage_client

    def keep(client: str, round: int, state: object) -> None:
        for name, value in join_state(state).items():  # type: ignore[arg-type]
            kept[f"{client} after round {round}: {name}"] = value.clone()
        stage(client, round, state)  # type: ignore[arg-type]

    site.states.stage_client = keep  # type: ignore[method-assign]


def windows(data: bytes) -> set[bytes]:
    """All runs of 16 bytes but the uniform ones."""
    found = {data[i : i + WINDOW] for i in range(len(data) - WINDOW + 1)}
    return {each for each in found if len(set(each)) >= DISTINCT}


def seen_windows(recorded: Recorded) -> set[bytes]:
    found: set[bytes] = set()
    for said in recorded.recorder.said:
        found |= windows(bytes(said))
    return found


@pytest.fixture(scope="module")
def seen(recorded: Recorded) -> set[bytes]:
    return seen_windows(recorded)


def raw(value: Tensor) -> bytes:
    return bytes(value.detach().contiguous().flatten().view(torch.uint8).tolist())


def test_the_recorder_reads_everything(recorded: Recorded, seen: set[bytes]) -> None:
    """Requests in the clear, the class names, and the final shared tensors whole."""
    assert recorded.recorder.seen(b"POST /v1/fleet/push-messages HTTP/1.1\r\n")
    assert recorded.recorder.seen(b'"class_names": ["cat", "dog"]')
    shared = recorded.result.run.load_shared()
    assert shared
    for name, value in shared.items():
        assert recorded.recorder.seen(raw(value)), name
        assert windows(raw(value)) <= seen


def test_no_local_tensor_travels(recorded: Recorded, seen: set[bytes]) -> None:
    names = {name.rpartition(": ")[2] for name in recorded.locals}
    assert len(names) > 4 and any("down" in name for name in names), names
    needles = 0
    for name, value in recorded.locals.items():
        found = windows(raw(value))
        needles += len(found)
        assert not found & seen, name
    assert needles > 10_000


def test_no_image_travels(recorded: Recorded, seen: set[bytes]) -> None:
    assert len(recorded.files()) == 32
    for path in recorded.files():
        assert not windows(path.read_bytes()) & seen, path
        with Image.open(path) as image:
            assert not windows(image.convert("RGB").tobytes()) & seen, path


def test_no_file_name_travels(recorded: Recorded) -> None:
    names = {path.name for path in recorded.files()} | {path.stem for path in recorded.files()}
    names |= {f"images-of-{id}" for id in SITES} | {str(recorded.folder)}
    for name in names:
        assert len(name) >= 6 and not recorded.recorder.seen(name.encode()), name


def test_no_secret_travels(recorded: Recorded, seen: set[bytes]) -> None:
    for id in SITES:
        key = (recorded.folder / "wards" / "invitations" / f"{id}.invite").read_bytes()
        secret = key[key.index(b"BEGIN PRIVATE KEY") : key.index(b"END PRIVATE KEY")]
        assert not windows(secret) & seen


def test_bytes_beside_the_payload(
    recorded: Recorded, record_property: Callable[[str, object], None]
) -> None:
    """Shared tensors each way and round; HTTP is more, for questions and signs of life too."""
    (payload,) = {record["bytes_up_per_client"] for record in recorded.result.run.rounds}
    assert payload == sum(v.numel() * 4 for v in recorded.result.run.load_shared().values())
    for id, row in recorded.result.status.sites.items():
        up, down = row.bytes_received / ROUNDS, row.bytes_sent / ROUNDS
        line = f"{id}: payload {payload:,} bytes each way, HTTP {up:,.0f} up and {down:,.0f} down"
        record_property(id, line)
        print(line)
        assert up > payload and down > payload
