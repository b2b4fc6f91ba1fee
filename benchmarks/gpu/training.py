"""Training on a GPU: a round in every way, the paper's setting as a whole, and where time goes."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.plan import Plan, Reporter
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.benchmark.training import TrainingTask, time_ways, training_rows, write_noise
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.federated.session import open_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.progress import Item, Silent
from pfedmma_deploy.store.checkpoint import ClientState
from pfedmma_deploy.system import available_cores

KERNELS: Final = 12
"""Lines of a profile: the rest is small."""
HOST_CALLS: Final = (
    "aten::_local_scalar_dense",  # .item() and .tolist() of one number
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
)
"""What a host does that can leave a card idle: waits, copies, launches."""


def rounds(plan: Plan, scratch: Path, report: Reporter) -> None:
    """One round with few and with many classes in each of the plan's ways."""
    for classes in plan.classes:
        task = _task(plan, classes)
        found = []
        for one in time_ways(task, plan.ways, available_cores()):
            found.append(one)
            report(training_rows(task, found)[-1])


def _task(plan: Plan, classes: int) -> TrainingTask:
    return TrainingTask(plan.backbones[0], plan.federation, classes, plan.shots)


def paper(plan: Plan, scratch: Path, report: Reporter) -> None:
    """The paper's setting from end to end, in bf16: data, rounds, validation, storing.

    The defaults of `pfedmma train`, which are the paper's: random crops, two epochs a round, ten
    classes for each client. A row after every round, so that one that is cut off says how far it
    came.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = _task(plan, plan.paper_classes)
        write_noise(Path(folder, "images"), task)
        config = config_of(task, Path(folder, "images"), rounds=plan.paper_rounds)
        result = train(config, Path(folder, "run"), progress=_Clock(report, plan.paper_rounds))
    report(_paper_row(plan.paper_rounds, plan.paper_rounds, result.seconds))


def _paper_row(done: int, rounds: int, seconds: float) -> Row:
    return {"measure": "paper", "name": "ours, bf16", "done": done, "of": rounds, "wall": seconds}


class _Clock(Silent):
    """Reports the seconds since the start after every round."""

    def __init__(self, report: Reporter, rounds: int) -> None:
        self.report, self.rounds = report, rounds
        self.started = time.perf_counter()

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """See `Progress`."""
        for done, item in enumerate(items, 1):
            yield item
            if label == "rounds":
                self.report(_paper_row(done, self.rounds, time.perf_counter() - self.started))


def config_of(task: TrainingTask, images: Path, **options: Any) -> TrainConfig:
    """The configuration of a task in bf16, with `options` in place of the defaults."""
    return TrainConfig(
        data=str(images),
        backbone=task.backbone,
        pretrained="random",
        partition=PartitionConfig(clients=task.clients, num_shots=task.shots),
        autocast="bf16",
        **options,
    )


def profiles(plan: Plan, scratch: Path, report: Reporter) -> None:
    """Where the time of a round goes: with kept activations, and with the paper's random crops."""
    with tempfile.TemporaryDirectory() as folder:
        task = _task(plan, max(plan.classes))
        write_noise(Path(folder, "images"), task)
        for transform in ("none", "random"):
            config = config_of(task, Path(folder, "images"), local_epochs=1, transform=transform)
            for row in profile_round(config):
                report({"measure": "profile", "transform": transform, **row})


def profile_round(config: TrainConfig) -> list[Row]:
    """What a round of all clients spends, after one that fills the caches.

    Returns:
        First the round: its `seconds` without a profiler, the `busy` seconds of the device's
        kernels and the `idle` share that is left of the former (both None on a CPU), and how often
        the host made each of `HOST_CALLS`. Then the kernels (on a CPU: operators) that took
        longest, with `calls` and `seconds`.
    """
    session = open_session(config)
    adapter = session.build_adapter()
    engine = InProcessEngine.of(session, adapter, _Kept(), client_batching=True)
    clients = [client.id for client in session.federation.clients]
    server = session.method.start(adapter, clients)
    is_gpu = session.backbone.device.type == "cuda"

    def run(number: int) -> float:
        began = time.perf_counter()
        for _ in engine.run_round(number, clients, server):
            pass
        if is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(0)
    seconds = run(1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiler:
        run(2)
    events = list(profiler.events() or ())
    kernels = [event for event in events if _is_on_device(event)]
    busy = busy_seconds([(e.time_range.start, e.time_range.end) for e in kernels])
    calls = {name: sum(event.name == name for event in events) for name in HOST_CALLS}
    row: Row = {"name": "round", "seconds": seconds, "busy": None, "idle": None, "calls": calls}
    if is_gpu:
        row |= {"busy": busy, "idle": max(0.0, 1 - busy / seconds)}
    return [row, *longest(kernels if is_gpu else events, is_gpu)]


def _is_on_device(event: FunctionEvent) -> bool:
    return str(event.device_type.name) == "CUDA"


def busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans, in microseconds, is going on."""
    total = end = 0.0
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e6


def longest(events: Sequence[FunctionEvent], is_gpu: bool) -> list[Row]:
    """The names that took most seconds, `KERNELS` at most, the longest first."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        span = event.time_range
        micro = span.end - span.start if is_gpu else event.self_cpu_time_total
        seconds[event.name] += micro / 1e6
        calls[event.name] += 1
    order = sorted(seconds, key=lambda name: seconds[name], reverse=True)[:KERNELS]
    return [{"name": name, "seconds": seconds[name], "calls": calls[name]} for name in order]


@dataclass
class _Kept:
    """Clients' states between rounds, in memory; `StateStore` of the engine."""

    states: dict[str, ClientState] = field(default_factory=dict)

    def load_client(self, client: str) -> ClientState | None:
        return self.states.get(client)

    def stage_client(self, client: str, round: int, state: ClientState) -> None:
        self.states[client] = state
