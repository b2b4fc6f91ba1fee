"""The published table of federations: what rounds across processes cost beside the simulation's.

    python -m benchmarks.fleet_table

The quickstart's federation with the given numbers of sites, all on this machine: operator and sites
are the processes that `pfedmma fleet serve` and `join` start, with TLS and keys; the simulation is
`pfedmma train` on the same folders. Each has the number of threads that `fleet rehearse` gives it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from pfedmma_deploy.benchmark.report import Columns, Row, environment_lines, make_section
from pfedmma_deploy.config import read_options
from pfedmma_deploy.fleet.rehearse import (
    COMMAND,
    PATIENCE,
    environment,
    is_identical,
    share_out,
    simulate,
)
from pfedmma_deploy.fleet.status import FleetStatus
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.system import describe_environment

MIB: Final = 2**20


@dataclass
class Running:
    """A command in the background, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float
    peak: int = 0
    """Bytes of resident memory at most, once it has ended."""

    @classmethod
    def start(cls, name: str, command: list[str], folder: Path, sites: int) -> Running:
        """Start it with the threads of a rehearsal of so many sites."""
        log = folder / f"{name}.log"
        with log.open("wb") as words:
            process = _start(command, environment(sites), words)
        return cls(process, log, time.monotonic())

    def seconds_to(self, words: str) -> float:
        """Wait until it has said `words`; returns the seconds since it was started."""
        while words not in self.log.read_text("utf-8"):
            if self.process.poll() is not None or time.monotonic() - self.began > PATIENCE:
                raise SystemExit(self.log.read_text("utf-8"))
            time.sleep(0.02)
        return time.monotonic() - self.began

    def finish(self) -> None:
        """Wait for its end and take its memory."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise SystemExit(self.log.read_text("utf-8"))
        self.peak = usage.ru_maxrss * 1024  # Linux counts in KiB


def _start(
    command: list[str], variables: Mapping[str, str], words: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *command], stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=variables
    )


def measure(sites: int, folder: Path) -> Row:
    """One federation of so many sites in `folder`, and its simulation."""
    config = resolve_run(read_options({"clients": sites}, preset="quickstart"))
    ids = share_out(config, folder / "data")
    options = folder / "options.toml"
    options.write_text('classes = "base-novel"\n', encoding="utf-8")
    fleet, address = folder / "fleet", f"127.0.0.1:{_free_port()}"
    new = ["fleet", "new", str(fleet), "--sites", ",".join(ids), "--address", address]
    new += ["--preset", "quickstart", "--config", str(options)]
    Running.start("new", new, folder, sites).finish()
    serve = ["fleet", "serve", str(fleet), "--listen", address]
    server = Running.start("fleet", serve, folder, sites)
    row: Row = {"sites": sites, "server_start": server.seconds_to("Listening on")}
    first, *others = ids
    running = {first: _join(first, folder, sites)}
    # The line comes when images and backbone are read: the next step is to connect.
    row["site_start"] = running[first].seconds_to("Federation fleet at")
    running |= {id: _join(id, folder, sites) for id in others}
    for process in (*running.values(), server):
        process.finish()
    simulation = simulate(folder, sites)
    runs = {id: Run.open(folder / "sites" / id) for id in ids}
    shared, sizes = Run.open(fleet / "run"), simulation.manifest["bytes_per_round"]
    row |= {
        "seconds": _seconds(shared),
        "seconds_simulation": _seconds(simulation),
        "payload": sizes["up"] + sizes["down"],
        "wire": round(_wire(fleet) / sites / config.rounds),
        "server_memory": server.peak,
        "site_memory": max(process.peak for process in running.values()),
        "threads": int(environment(sites)["OMP_NUM_THREADS"]),
        "is_identical": is_identical(shared, runs, simulation),
    }
    return row


def _join(site: str, folder: Path, sites: int) -> Running:
    invitation = folder / "fleet" / "invitations" / f"{site}.invite"
    folders = ["--data", str(folder / "data" / site), "--out", str(folder / "sites" / site)]
    return Running.start(site, ["fleet", "join", str(invitation), *folders, "--yes"], folder, sites)


def _seconds(run: Run) -> float:
    """Of a round, the first left out: it computes the activations of the frozen blocks."""
    return float(np.median([record["seconds"] for record in run.rounds[1:]]))


def _wire(fleet: Path) -> int:
    status = FleetStatus.read(fleet)
    assert status is not None
    return sum(row.bytes_received + row.bytes_sent for row in status.sites.values())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


COLUMNS: Columns = {
    "Sites": ("sites", 1),
    "Threads each": ("threads", 1),
    "Seconds a round": ("seconds", 1),
    "Simulation's": ("seconds_simulation", 1),
    "Payload, bytes": ("payload", 1),
    "On the wire": ("wire", 1),
    "Server, MiB": ("server_memory", 1 / MIB),
    "Site, MiB": ("site_memory", 1 / MIB),
    "Server up, s": ("server_start", 1),
    "Site up, s": ("site_start", 1),
    "Same bits": ("same", 1),
}
NOTE: Final = (
    "The quickstart's federation, all on one machine, every operator and site a process of its own."
    " Seconds a round: median, without the first, which computes the activations of the frozen"
    " blocks; the simulation trains the same clients one after the other in one process of as many"
    " threads. Payload: shared tensors to a site and back in a round. On the wire: bytes of HTTP"
    " per site and round, both ways, without TLS, over the whole run: greeting, questions for work,"
    " signs of life and the result are in it, so it depends on how long a run takes. Memory: peak"
    " resident; of the sites the largest. Up: from the command to the open port, and of a site that"
    " starts alone to the moment before it connects."
)


def write_report(out: Path, stored: Mapping[str, Any], lines: str) -> None:
    """The table of all rows, beside the JSON file `out`."""
    cells = [{**row, "same": "yes" if row["is_identical"] else "no"} for row in stored["rows"]]
    section = make_section("fleet", "", COLUMNS, cells)
    head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
    table = "\n".join([head, f"|{'---|' * len(section.columns)}", *body])
    paragraphs = ["# Federations of real sites", f"Made by `{stored['command']}`. {NOTE}"]
    paragraphs += [lines, table]
    write_bytes(out.with_suffix(".md"), ("\n\n".join(paragraphs) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sites", default="3,20")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/fleet.json"))
    given = parser.parse_args()
    machine = describe_environment(int(environment(1)["OMP_NUM_THREADS"]))
    stored: dict[str, Any] = {
        "command": f"python -m benchmarks.fleet_table --sites {given.sites}",
        "environment": machine.to_dict(),
        "rows": [],
    }
    for sites in map(int, given.sites.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            stored["rows"].append(measure(sites, Path(folder)))
        print(json.dumps(stored["rows"][-1]), flush=True)
        write_bytes(given.out, json_bytes(stored))
    write_report(given.out, stored, environment_lines(machine))
    print("Written:", given.out, given.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
