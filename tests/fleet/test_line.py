"""The connection between a site and the server on a bad network: no training, no processes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pfedmma_deploy.fleet import link
from pfedmma_deploy.fleet.keys import (
    issue_server_certificate,
    load_private,
    make_authority,
    make_site_key,
)
from pfedmma_deploy.fleet.line import Line, RefusedError, UnreachableError
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import Parcel

BIG = Parcel("{}", bytes(200_000))
"""An answer that takes several packets."""


@dataclass
class Cable:
    """Bytes from a site to the server, slowly or only so many of them; answers pass freely."""

    target: int
    seconds: float = 0.0
    """Pause before each 16 kB."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which a connection breaks, for the next connections that carry so many."""

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pass_up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pass_down, args=(far, near), daemon=True).start()

    def _pass_up(self, near: socket.socket, far: socket.socket) -> None:
        passed = 0
        with _broken_after(near, far):
            while data := near.recv(16_384):
                time.sleep(self.seconds)
                passed += len(data)
                if self.cuts and passed > self.cuts[0]:
                    self.cuts.pop(0)
                    return
                far.sendall(data)

    @staticmethod
    def _pass_down(far: socket.socket, near: socket.socket) -> None:
        with _broken_after(far, near):
            while data := far.recv(16_384):
                near.sendall(data)
        far.close()
        near.close()


@contextlib.contextmanager
def _broken_after(*ends: socket.socket) -> Iterator[None]:
    with contextlib.suppress(OSError):
        yield
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@dataclass
class Ends:
    """A link that knows `ward-a`, and what is needed to call it."""

    link: Link
    cable: Cable
    authority: str
    key: str
    lines: list[Line] = field(default_factory=list)

    def line(self) -> Line:
        """A process of the site."""
        line = Line(
            f"127.0.0.1:{self.cable.port}", self.authority, load_private(self.key), 10_000_000
        )
        self.lines.append(line)
        return line


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    make_authority(tmp_path, "wards")
    certificate, server_key = issue_server_certificate(tmp_path, ["127.0.0.1"])
    private, public = make_site_key()
    link = Link(limit=300_000)
    link.allow("ward-a", public)
    with link.listening("127.0.0.1", 0, certificate, server_key) as port:
        cable = Cable(port)
        ends = Ends(link, cable, (tmp_path / "ca.pem").read_text(), private)
        yield ends
        for line in ends.lines:
            with contextlib.suppress(RuntimeError):  # closed already
                line.close()
        cable.close()


def answered(ends: Ends, line: Line) -> str:
    """The ticket of a parcel that the site has fetched, answered until it got through."""
    ticket = ends.link.send("ward-a", Parcel('{"kind": "train"}'))
    found = line.fetch()
    assert ticket is not None and found is not None
    while True:
        try:
            line.reply(found[0], BIG)
            return ticket
        except UnreachableError:
            line.connect()


def test_a_site_is_here_while_a_long_answer_travels(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "GONE_AFTER", 1.0)
    line, over = ends.line(), threading.Event()
    looks: list[bool] = []
    line.connect()
    line.beat()

    def beat() -> None:
        while not over.wait(0.1):
            line.beat()

    def watch() -> None:
        while not over.wait(0.1):
            looks.append(ends.link.is_here("ward-a"))

    threads = [threading.Thread(target=each) for each in (beat, watch)]
    for thread in threads:
        thread.start()
    ends.cable.seconds = 0.2  # 13 pieces or more: 2.6 s
    ticket = answered(ends, line)
    over.set()
    for thread in threads:
        thread.join()
    assert ends.link.answer(ticket) == BIG
    assert looks and all(looks)


def test_an_answer_gets_through_however_often_the_connection_breaks(ends: Ends) -> None:
    """Each attempt announces 200 kB, and the server takes 300 kB in answer to one task."""
    line = ends.line()
    line.connect()
    ends.cable.cuts = [100_000] * 4
    ticket = answered(ends, line)
    assert ends.cable.cuts == []
    assert ends.link.answer(ticket) == BIG


def test_a_site_that_says_goodbye_may_come_back_at_once(ends: Ends) -> None:
    first, second = ends.line(), ends.line()
    first.connect()
    with pytest.raises(RefusedError, match="another process of this site is at work with the same"):
        second.connect()
    first.close()
    assert not ends.link.is_here("ward-a")
    second.connect()
    assert ends.link.is_here("ward-a")


def test_goodbye_is_said_only_to_a_server_that_was_heard(ends: Ends) -> None:
    line = ends.line()
    line.connect()
    ends.cable.close()
    ends.cable.cuts = [0] * 9
    with pytest.raises(UnreachableError):
        line.fetch()
    began = time.monotonic()
    line.close()
    assert time.monotonic() - began < 5
    assert ends.link.is_here("ward-a")


def test_an_answer_to_a_server_that_is_no_more_is_kept_back(ends: Ends, tmp_path: Path) -> None:
    """The one in its place would not know what it is about."""
    line = ends.line()
    line.connect()
    ends.link.send("ward-a", Parcel("{}"))
    found = line.fetch()
    assert found is not None
    after = Link(limit=300_000)
    after.allow("ward-a", ends.link.contacts["ward-a"].public_key.decode())
    files = tmp_path / "server.pem", tmp_path / "server-key.pem"
    with after.listening("127.0.0.1", 0, *files) as port:
        ends.cable.target = port
        ends.cable.cuts = [0]
        with pytest.raises(UnreachableError):
            line.reply(found[0], BIG)
        line.connect()
        assert line.reply(found[0], BIG) is False
        ticket = after.send("ward-a", Parcel("{}"))
        again = line.fetch()
        assert ticket is not None and again is not None
        assert line.reply(again[0], BIG) is True
        assert after.answer(ticket) == BIG
        line.close()


def test_a_site_may_connect_again_while_it_shows_signs_of_life(ends: Ends) -> None:
    line, over = ends.line(), threading.Event()
    line.connect()

    def beat() -> None:
        while not over.is_set():
            line.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        for _ in range(20):
            line.connect()
    finally:
        over.set()
        thread.join()
