"""The published table of serving: `pfedmma serve` beside the session's own batches.

    pip install locust
    python -m benchmarks.serve_table --rounds 3 --minutes 10

64 callers (locust, a process of its own), each with another client of one bundle, send photos of
512 x 512 pixels. In turns: the session's own batches (`Classifier.iter_predict`, 32 images a call,
decoding included); `pfedmma serve`; and a server that calls the same classifier once per request.
All of them run on the same cores, half of what there are, and the callers on the others.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import uvicorn
from fastapi import FastAPI, Form, UploadFile
from PIL import Image

from pfedmma_deploy.benchmark.report import Columns, Row, environment_lines, make_section
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.system import describe_environment

CLIENTS: Final = 64
CALLERS: Final = 64
BATCH: Final = 32
PIXELS: Final = 512
MIB: Final = 2**20
HERE: Final = "benchmarks.serve_table"


@dataclass(frozen=True)
class Place:
    """Where what is measured: a bundle, photos, and the cores of both sides."""

    bundle: Path
    photos: Path
    ours: frozenset[int]
    theirs: frozenset[int]


def make_place(folder: Path, backbone: str) -> Place:
    """A bundle of random clients, and real images scaled up."""
    from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
    from pfedmma_deploy.benchmark.bundles import RandomBundles
    from pfedmma_deploy.data.samples import load_sample
    from pfedmma_deploy.export.export_config import ExportConfig

    known = backbone == "pfedmma-tiny"
    model = load_backbone(backbone) if known else load_backbone(backbone, RANDOM)
    bundle = RandomBundles(model, folder, 32).make(CLIENTS, ExportConfig("ort"))
    photos = folder / "photos"
    photos.mkdir()
    sample = load_sample("cifar10-sample")
    for number, example in enumerate(sample.examples[:CALLERS]):
        image = sample.open_image(example).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        image.save(photos / f"{number:02}.jpg", quality=90)
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return Place(bundle, photos, frozenset(cores[:half]), frozenset(cores[half:] or cores))


def measure_batches(place: Place, seconds: float) -> Row:
    """The session's own batches: images a second, and CPU seconds an image."""
    command = [sys.executable, "-m", HERE, "--batches", str(place.bundle), str(place.photos)]
    done = subprocess.run(
        [*command, str(seconds)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, place.ours),
    )
    found: Row = json.loads(done.stdout)
    return found


def batches(bundle: str, photos: str, seconds: str) -> None:
    """In a process of its own: predict for so long, and print what `measure_batches` returns."""
    from pfedmma_deploy.runtime import Classifier

    classifier = Classifier.load(bundle, "cpu")
    files = [path.read_bytes() for path in sorted(Path(photos).glob("*.jpg"))]
    ids = [client.id for client in classifier.clients[1:]]
    stream = classifier.iter_predict(itertools.cycle(files), itertools.cycle(ids), batch_size=BATCH)
    for _ in range(2 * BATCH):
        next(stream)
    start, used, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < float(seconds) or images % BATCH:
        next(stream)
        images += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"per_second": images / wall, "cpu": cpu / images}))


def one_by_one(bundle: str, port: str) -> None:
    """In a process of its own: a server that calls the classifier once per request."""
    from pfedmma_deploy.runtime import Classifier

    classifier, app = Classifier.load(bundle, "cpu"), FastAPI()

    # Not a coroutine: FastAPI runs it in a thread, as its documentation advises for such work.
    @app.post("/v1/classify")
    def classify(images: UploadFile, client: Annotated[str, Form()]) -> dict[str, Any]:
        (found,) = classifier.predict(images.file.read(), client)
        return {"top": [[score.name, score.probability] for score in found.top]}

    uvicorn.run(app, port=int(port), log_level="error")


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu(self) -> float:
        """Seconds of CPU time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(place: Place, kind: str) -> Iterator[Server]:
    """`pfedmma serve` or the server that calls once per request, on our cores."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if kind == "pfedmma serve":
        command = [sys.executable, "-m", "pfedmma_deploy.cli", "serve", "--quiet"]
        command += ["--model", str(place.bundle), "--port", str(port), "--device", "cpu"]
    else:
        command = [sys.executable, "-m", HERE, "--one-by-one", str(place.bundle), str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, place.ours),
    )
    try:
        for _ in range(600):
            time.sleep(0.1)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(60)


def load(
    place: Place, server: Server, seconds: float, *, rate: float = 0, users: int = CALLERS
) -> Row:
    """What locust saw, and the server's CPU seconds an image."""
    command = [sys.executable, "-m", "locust", "-f", "benchmarks/serve_load.py", "--headless"]
    command += ["--host", f"http://127.0.0.1:{server.port}", "--users", str(users)]
    command += ["--spawn-rate", str(users), "--reset-stats", "--json", "--loglevel", "ERROR"]
    command += ["--run-time", f"{int(seconds)}s", "--stop-timeout", "30"]
    variables = {**os.environ, "LOAD_FOLDER": str(place.photos)}
    if rate:
        variables["LOAD_RATE"] = str(rate / users)
    before = server.cpu()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=variables,
        preexec_fn=lambda: os.sched_setaffinity(0, place.theirs),
        check=False,
    )
    used = server.cpu() - before
    (stats,) = json.loads(done.stdout)
    times = sorted(
        itertools.chain.from_iterable([float(ms)] * n for ms, n in stats["response_times"].items())
    )
    wall = stats["last_request_timestamp"] - stats["start_time"]
    return {
        "per_second": len(times) / wall,
        "cpu": used / len(times),
        "median": statistics.median(times) / 1000,
        "p99": times[int(0.99 * (len(times) - 1))] / 1000,
        "failed": stats["num_failures"],
        "requests": stats["num_requests"],
    }


def measure_one_caller(place: Place, calls: int = 300) -> Row:
    """Seconds of a lone request, and of `Classifier.predict` of the same photo; CPU time of both.

    Both on the same cores, in turns: what disturbs one disturbs the other. Medians on the clock,
    where a request changes threads six times and waits each time on a machine that is busy; means
    of the CPU time, the caller's not counted.
    """
    from pfedmma_deploy.runtime import Classifier

    photo = min(place.photos.glob("*.jpg")).read_bytes()
    edge = "part-of-a-form"
    field = f"--{edge}\r\nContent-Disposition: form-data; name="
    body = f'{field}"client"\r\n\r\n1\r\n{field}"images"; filename="a.jpg"\r\n\r\n'.encode()
    body += photo + f"\r\n--{edge}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={edge}"}
    asked, called, cpu = [], [], 0.0
    os.sched_setaffinity(0, place.ours)
    classifier = Classifier.load(place.bundle, "cpu")
    with serving(place, "pfedmma serve") as server:
        line = http.client.HTTPConnection("127.0.0.1", server.port)
        for number in range(calls + 20):
            if number == 20:
                used = server.cpu()
            start = time.perf_counter()
            line.request("POST", "/v1/classify", body, headers)
            line.getresponse().read()
            between, own = time.perf_counter(), time.process_time()
            classifier.predict(photo, "1")
            end, own = time.perf_counter(), time.process_time() - own
            if number >= 20:
                cpu += own / calls
                asked.append(between - start)
                called.append(end - between)
        used = (server.cpu() - used) / calls
    os.sched_setaffinity(0, place.ours | place.theirs)
    over = [one - other for one, other in zip(asked, called, strict=True)]
    medians = [statistics.median(values) for values in (asked, called, over)]
    found: Row = dict(zip(("request", "predict", "overhead"), medians, strict=True))
    return {**found, "request_cpu": used, "predict_cpu": cpu}


def measure_endurance(place: Place, minutes: float) -> Row:
    """Memory of the server before and after minutes of full load, and how many requests failed."""
    with serving(place, "pfedmma serve") as server:
        load(place, server, min(60.0, 15 * minutes))
        before = server.memory()
        row = load(place, server, 60 * minutes)
        return {**row, "minutes": minutes, "before": before, "after": server.memory()}


def measure(place: Place, rounds: int, seconds: float) -> list[Row]:
    """Every subject in every round, their order turned around each time."""
    rows: list[Row] = []
    kinds = ["batches", "pfedmma serve", "one by one"]
    for number in range(rounds):
        for kind in kinds if number % 2 else kinds[::-1]:
            if kind == "batches":
                row = measure_batches(place, seconds)
            else:
                with serving(place, kind) as server:
                    load(place, server, 3)
                    row = load(place, server, seconds)
                    if kind == "pfedmma serve":
                        half = load(place, server, seconds, rate=row["per_second"] / 2)
                        row |= {f"half_{name}": value for name, value in half.items()}
            rows.append({"round": number, "kind": kind, **row})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def summarize(rows: Sequence[Row]) -> list[Row]:
    """A row a subject: medians over the rounds, ratios taken within each round first."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(str(row["kind"]), []).append(row)
    found: list[Row] = []
    for kind, own in by_kind.items():
        own.sort(key=lambda row: row["round"])
        line: Row = {"kind": kind}
        names = ["per_second", "cpu", "median", "p99", "half_per_second", "half_p99", "failed"]
        for name in [name for name in names if name in own[0]]:
            line[name] = float(np.median([row[name] for row in own]))
        for peer in by_kind:
            others = sorted(by_kind[peer], key=lambda row: row["round"])
            pairs = list(zip(own, others, strict=True))
            line[f"rate_to {peer}"] = float(
                np.median([one["per_second"] / other["per_second"] for one, other in pairs])
            )
            if peer == "batches" and "half_p99" in own[0]:
                # In units of the time of one batch.
                line["half_p99_batches"] = float(
                    np.median([one["half_p99"] * o["per_second"] / BATCH for one, o in pairs])
                )
            line[f"cpu_to {peer}"] = float(
                np.median([one["cpu"] / other["cpu"] for one, other in pairs])
            )
        found.append(line)
    order = ["batches", "pfedmma serve", "one by one"]
    return sorted(found, key=lambda line: order.index(str(line["kind"])))


COLUMNS: Final[Columns] = {
    "Subject": ("kind", 1),
    "Images/s": ("per_second", 1),
    "To batches": ("rate_to batches", 1),
    "To one by one": ("rate_to one by one", 1),
    "CPU, ms/image": ("cpu", 1000),
    "CPU to batches": ("cpu_to batches", 1),
    "Median, ms": ("median", 1000),
    "p99, ms": ("p99", 1000),
    "At half load, images/s": ("half_per_second", 1),
    "p99, ms, at half load": ("half_p99", 1000),
    "In batches": ("half_p99_batches", 1),
    "Failed": ("failed", 1),
}


def write_report(out: Path, stored: Mapping[str, Any], lines: str) -> None:
    """The tables beside the JSON file `out`."""
    how = " ".join((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].split())
    paragraphs = ["# Serving", f"Made by `{stored['command']}`. {how}", lines]
    for backbone, measured in stored["backbones"].items():
        paragraphs += [f"## {backbone}", *_paragraphs(measured)]
    write_bytes(out.with_suffix(".md"), ("\n\n".join(paragraphs) + "\n").encode())


def _paragraphs(measured: Mapping[str, Any]) -> Iterator[str]:
    """What was measured on one backbone."""
    section = make_section("serve", "", COLUMNS, summarize(measured["rows"]))
    head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
    yield "\n".join([head, f"|{'---|' * len(section.columns)}", *body])
    one = measured["one_caller"]
    yield (
        f"A lone caller: {1000 * one['request']:.2f} ms a request, "
        f"{1000 * one['predict']:.2f} ms `Classifier.predict` of the same photo in a program, "
        f"{1000 * one['overhead']:.2f} ms between the two (medians); of CPU time "
        f"{1000 * one['request_cpu']:.2f} ms in the server and {1000 * one['predict_cpu']:.2f} ms, "
        f"{1000 * (one['request_cpu'] - one['predict_cpu']):.2f} ms between the two."
    )
    if "endurance" in measured:
        long = measured["endurance"]
        growth = 100 * (long["after"] / long["before"] - 1)
        yield (
            f"{long['minutes']:g} minutes at full load: {long['requests']:,} requests, "
            f"{long['failed']} failed; memory {long['before'] / MIB:.0f} MiB before, "
            f"{long['after'] / MIB:.0f} MiB after ({growth:+.1f} %)."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--backbone", default="pfedmma-tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument(
        "--minutes", type=float, default=0, help="of full load, on the first backbone"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/serve.json"))
    parser.add_argument("--batches", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one-by-one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batches:
        batches(*given.batches)
        return
    if given.one_by_one:
        one_by_one(*given.one_by_one)
        return
    machine = describe_environment(max(1, len(os.sched_getaffinity(0)) // 2))
    stored: dict[str, Any] = {
        "command": f"python -m benchmarks.serve_table --backbone {given.backbone} "
        f"--rounds {given.rounds} --seconds {given.seconds:g} --minutes {given.minutes:g}",
        "environment": machine.to_dict(),
        "backbones": {},
    }
    for number, backbone in enumerate(given.backbone.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            place = make_place(Path(folder), backbone)
            measured: dict[str, Any] = {"one_caller": measure_one_caller(place)}
            measured["rows"] = measure(place, given.rounds, given.seconds)
            # Once is enough: it is about the server, not the model.
            if given.minutes and number == 0:
                measured["endurance"] = measure_endurance(place, given.minutes)
        stored["backbones"][backbone] = measured
        write_bytes(given.out, json_bytes(stored))
        write_report(given.out, stored, environment_lines(machine))


if __name__ == "__main__":
    main()
