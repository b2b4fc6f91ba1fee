"""`pfedmma fleet rehearse`: a whole federation on one machine, and its simulation beside it.

    rehearsal/
      data/<site>/{train,val,test}/<class>/*.png    what each site has of the embedded sample
      fleet/                                        the operator's folder
      sites/<site>/                                 what each site ends with
      simulation/                                   the run of `pfedmma train --partition folders`

Operator, sites and simulation are processes of their own, started by the commands that users type.
All have the same number of threads, which together are no more than the cores: sums depend on it,
and threads that wait for each other on too few cores take minutes for what takes a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pfedmma_deploy.config import TrainConfig, read_options
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.errors import FleetError, UsageError
from pfedmma_deploy.federated.evaluate import RunEvaluation, evaluate_run
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.fleet.status import FleetStatus
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.system import available_cores
from pfedmma_deploy.types import Dataset, Example, Federation

COMMAND: Final = (sys.executable, "-m", "pfedmma_deploy.cli")
PATIENCE: Final = 1800.0
"""Seconds after which a rehearsal that does not end is stopped."""


def rehearse(sites: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """Play a federation of `sites` sites in `folder`, and compare it with its simulation.

    Returns:
        What `--json` prints: the accuracies of `pfedmma quickstart`'s table, bytes, seconds, and
        `identical_to_simulation`: whether shared tensors and all sites' adapters have the same
        bits.

    Raises:
        UsageError: fewer than 2 sites, or a folder that is there already.
        FleetError: a process ended with an error; its words are in the message.
    """
    if sites < 2:
        raise UsageError(
            f"--sites must be 2 or more, not {sites}: one site has nobody to learn with"
        )
    if folder.exists():
        raise UsageError(f"{folder} is there already: remove it, or name another with --out")
    started = time.perf_counter()
    config = resolve_run(read_options({"clients": sites}, preset="quickstart"))
    ids = share_out(config, folder / "data")
    progress.note(f"Operator and {sites} sites, each a process of its own, in {folder} ...")
    began = time.perf_counter()
    play(folder, ids, ["--preset", "quickstart", "--config", str(_classes_file(folder))])
    federation_seconds = time.perf_counter() - began
    progress.note("The same folders in one process: pfedmma train --partition folders ...")
    began = time.perf_counter()
    simulation = simulate(folder, sites)
    simulation_seconds = time.perf_counter() - began
    runs = {id: Run.open(folder / "sites" / id) for id in ids}
    is_same = is_identical(Run.open(folder / "fleet" / "run"), runs, simulation)
    progress.note("Personalizing every site, and comparing with zero-shot CLIP ...")
    table = _evaluate(runs, progress)
    status = FleetStatus.read(folder / "fleet")
    assert status is not None
    sizes = simulation.manifest["bytes_per_round"]
    wire = sum(row.bytes_received + row.bytes_sent for row in status.sites.values())
    return {
        **table,
        "folder": str(folder),
        "sites": ids,
        "identical_to_simulation": is_same,
        "bytes_up_per_client_round": sizes["up"],
        "bytes_down_per_client_round": sizes["down"],
        "wire_bytes_per_client_round": wire / len(ids) / config.rounds,
        "seconds_federation": federation_seconds,
        "seconds_simulation": simulation_seconds,
        "seconds": time.perf_counter() - started,
    }


def share_out(config: TrainConfig, folder: Path) -> list[str]:
    """Write the images of each client of `config`'s partition as a site's folder.

    Every site also gets all test images, of base and novel classes, to measure itself on.

    Returns:
        The sites' names, in order.
    """
    dataset = load_dataset(config.data)
    federation = build_federation(dataset, config.partition, seed=config.seed)
    ids = []
    for number, client in enumerate(federation.clients):
        id = f"site-{chr(ord('a') + number)}" if number < 26 else f"site-z{number}"
        held = {"train": client.train, "val": client.val, "test": _tests(federation)}
        for split, examples in held.items():
            for place, example in enumerate(examples):
                _save(dataset, example, folder / id / split, place)
        ids.append(id)
    return ids


def play(folder: Path, ids: Sequence[str], options: Sequence[str]) -> None:
    """Run operator and sites to their end; their words are in `*.log` beside their folders.

    Raises:
        FleetError: one ended with an error, or all took too long.
    """
    fleet, port = folder / "fleet", _free_port()
    address = f"127.0.0.1:{port}"
    names = ",".join(ids)
    new = ["fleet", "new", str(fleet), "--sites", names, "--address", address, *options]
    _run_to_end(new, environment(len(ids)))
    commands = {"fleet": ["fleet", "serve", str(fleet), "--listen", address]}
    for id in ids:
        invitation = fleet / "invitations" / f"{id}.invite"
        out = folder / "sites" / id
        data = folder / "data" / id
        joined = ["--data", str(data), "--out", str(out), "--yes"]
        commands[id] = ["fleet", "join", str(invitation), *joined]
    with _processes(folder, commands, environment(len(ids))) as running:
        deadline = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in running.values()):
            for name, process in running.items():
                if process.poll():
                    raise FleetError(
                        f"{name} ended with exit code {process.returncode}:\n"
                        f"{(folder / f'{name}.log').read_text('utf-8')[-2000:]}"
                    )
            if time.monotonic() > deadline:
                raise FleetError(f"the rehearsal did not end within {PATIENCE:.0f} s: see {folder}")
            time.sleep(0.2)


def simulate(folder: Path, sites: int) -> Run:
    """Train on the sites' folders in one process, client after client as the sites do."""
    out = folder / "simulation"
    options = ["--partition", "folders", "--preset", "quickstart", "--no-client-batching"]
    command = ["train", "--data", str(folder / "data"), *options, "--out", str(out)]
    _run_to_end(command, environment(sites))
    return Run.open(out)


def environment(sites: int) -> dict[str, str]:
    """Variables of a process that shares this machine with `sites` others."""
    threads = str(max(1, available_cores() // sites))
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def is_identical(server: Run, sites: dict[str, Run], simulation: Run) -> bool:
    """Whether the shared tensors and every site's adapter have the simulation's bits."""
    pairs = [(server.load_shared(), simulation.load_shared())]
    for id, run in sites.items():
        own = run.load_client(id, federated=True)
        pairs.append((own.tensors, simulation.load_client(id).tensors))
    for found, expected in pairs:
        if found.keys() != expected.keys():
            return False
        if not all(found[name].equal(expected[name]) for name in expected):
            return False
    return True


def _evaluate(runs: dict[str, Run], progress: Progress) -> dict[str, Any]:
    """Each site personalizes and measures itself, as it would alone."""
    zero_shot, personalized, strengths = {}, {}, {}
    for id, run in progress.track(runs.items(), "sites", len(runs)):
        session = open_run_session(run)
        fine_tune(run, id, session=session)
        found = evaluate_run(run, session=session)
        zero_shot[id], personalized[id] = found.zero_shot[id], found.personalized[id]
        strengths[id] = found.strengths[id]
    return RunEvaluation(zero_shot, personalized, strengths).to_dict()


def _run_to_end(command: Sequence[str], variables: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, *command], capture_output=True, text=True, check=False, env=variables
    )
    if done.returncode:
        raise FleetError(f"pfedmma {' '.join(command[:2])} ended with: {done.stderr.strip()}")


@contextlib.contextmanager
def _processes(
    folder: Path, commands: dict[str, list[str]], variables: dict[str, str]
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of them at once; none outlives the block."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    [*COMMAND, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=variables,
                )
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
        for process in running.values():
            process.wait(timeout=30)


def _tests(federation: Federation) -> tuple[Example, ...]:
    return (*federation.base_test, *federation.novel_test)


def _save(dataset: Dataset, example: Example, folder: Path, place: int) -> None:
    """Without loss, and under a name that keeps the order."""
    target = folder / dataset.class_names[example.label]
    target.mkdir(parents=True, exist_ok=True)
    dataset.open_image(example).save(target / f"{place:05d}.png")


def _classes_file(folder: Path) -> Path:
    """Options that differ from those of a real federation: half of the classes stay unseen."""
    file = folder / "options.toml"
    file.write_text(f"classes = {json.dumps('base-novel')}\n", encoding="utf-8")
    return file


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
