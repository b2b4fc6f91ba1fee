"""The demo as people start it, in a process of its own.

That process cannot import torch, and every connection that it opens to anywhere but this machine
is refused and remembered.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "exports" / "quickstart"

PROGRAM = """
import runpy, signal, socket, sys

# A job in the background of a script, as CI may be, is started with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "open_clip", "timm", "onnx"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
connect, resolve = socket.socket.connect, socket.getaddrinfo

def is_here(host):
    return host in {"127.0.0.1", "localhost", "::1", "0.0.0.0", None}

def checked_connect(self, address):
    if isinstance(address, tuple) and not is_here(address[0]):
        print("OUTSIDE", address, file=sys.stderr, flush=True)
        raise OSError("refused by the test")
    return connect(self, address)

def checked_resolve(host, *rest, **more):
    if not is_here(host):
        print("OUTSIDE", host, file=sys.stderr, flush=True)
        raise OSError("refused by the test")
    return resolve(host, *rest, **more)

socket.socket.connect = checked_connect
socket.getaddrinfo = checked_resolve
runpy.run_module("pfedmma_deploy.cli", run_name="__main__")
"""


@dataclass
class Served:
    """A running demo."""

    url: str
    bundle: Path
    log: Path
    """What the process wrote on stderr."""
    process: subprocess.Popen[str]

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def start(bundle: Path, log: Path, *options: str) -> Served:
    """`pfedmma demo --json` on a free port."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(log.parent / "uploads")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = ["demo", "--json", "--model", str(bundle), "--port", port, *options]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    assert line, log.read_text()
    values = json.loads(line)
    assert values["model"] == str(bundle)
    return Served(values["url"], bundle, log, process)
