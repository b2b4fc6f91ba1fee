"""The published table of dishonest clients: every rule of aggregation under every attack.

    python -m benchmarks.byzantine_table

Real trainings of the quickstart's federation, in which some clients send the server something else
than what they learned. Each training is stored in the JSON file as it ends, and a second call runs
only what is missing there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.benchmark.report import Columns, Row, environment_lines, make_section
from pfedmma_deploy.config import TrainConfig, read_options
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.errors import TrainingError
from pfedmma_deploy.evaluation.accuracy import Accuracy, mean_accuracy
from pfedmma_deploy.federated.engine import ClientReport, Engine, InProcessEngine
from pfedmma_deploy.federated.evaluate import open_scorer
from pfedmma_deploy.federated.rounds import run_rounds
from pfedmma_deploy.federated.session import Session, open_session
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.system import Environment, describe_environment

Attack = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
"""What is sent in place of a tensor: from the server's, the client's own, and random numbers."""


def flip_sign(server: Tensor, own: Tensor, rng: np.random.Generator) -> Tensor:
    """Ten times the client's step, backwards."""
    return server - 10 * (own - server)


def scale_up(server: Tensor, own: Tensor, rng: np.random.Generator) -> Tensor:
    """A hundred times the client's step."""
    return server + 100 * (own - server)


def send_noise(server: Tensor, own: Tensor, rng: np.random.Generator) -> Tensor:
    """Normal random numbers of standard deviation 1 on top of the server's state."""
    return server + torch.from_numpy(rng.standard_normal(own.shape)).to(own)


ATTACKS: Final[Mapping[str, Attack | None]] = MappingProxyType(
    {"none": None, "sign flip": flip_sign, "scaled": scale_up, "noise": send_noise}
)
RULES: Final = ("mean", "median", "trimmed-mean", "krum", "norm-clip")
DISHONEST: Final = 3
"""The last so many clients attack; the others' accuracy is what counts."""


@dataclass
class AttackedEngine:
    """An engine some of whose clients send something else than what they learned."""

    engine: Engine
    attack: Attack
    attackers: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        self.cost = self.engine.cost

    def run_round(
        self, round: int, clients: Sequence[str], server: Tensors
    ) -> Iterator[ClientReport]:
        """See `Engine`."""
        for report in self.engine.run_round(round, clients, server):
            update = report.update
            if update.client in self.attackers:
                rng = np.random.default_rng([self.seed, round, self.attackers.index(update.client)])
                sent = {}
                for name, own in update.shared.items():
                    sent[name] = self.attack(server[name].to(own.device), own, rng)
                report = replace(report, update=replace(update, shared=sent))
            yield report


def train_attacked(session: Session, attack: Attack | None, folder: Path) -> Accuracy:
    """Train as `pfedmma train` does, with the last clients attacking.

    Args:
        session: its configuration names the rule.
        attack: what they send; None is the truth.
        folder: where the run's checkpoint may be.

    Returns:
        Mean over the honest clients, in percent.

    Raises:
        TrainingError: an honest client's loss or weights stopped being finite.
    """
    federation, config = session.federation, session.config
    splits = federation_to_dict(federation)
    run = Run.create(folder, {"status": "training", "config": config.to_dict()}, splits)
    # One for all rounds: it remembers which files a round has staged.
    checkpoint = run.checkpoint
    adapter = session.build_adapter()
    engine: Engine = InProcessEngine(
        backbone=session.backbone,
        method=session.method,
        adapter=adapter,
        clients=federation.clients,
        images=session.images,
        prompts=session.class_prompts(adapter, federation.base),
        options=session.local_training(),
        checkpoint=checkpoint,
        seed=config.seed,
        client_batching=config.client_batching,
    )
    ids = [client.id for client in federation.clients]
    server = session.method.start(adapter, ids)
    if attack is not None:
        engine = AttackedEngine(engine, attack, ids[-DISHONEST:], config.seed)
    server = run_rounds(run, engine, session.method, ids, server, checkpoint, Silent())
    return score_honest(session, checkpoint, server)


def score_honest(session: Session, checkpoint: Checkpoint, server: Tensors) -> Accuracy:
    """Mean accuracy of the clients that do not attack, with the models that training left."""
    scorer, adapter = open_scorer(session), session.build_adapter()
    found = []
    for client in session.federation.clients[:-DISHONEST]:
        kept = checkpoint.load_client(client.id)
        assert kept is not None, "every client takes part in every round"
        stored = StoredClient(client.id, kept.own, {"state": kept.state})
        found += scorer.score(session.client_model(stored, server, adapter), [client])
    return mean_accuracy(found)


def measure(config: TrainConfig, attack: str) -> Row:
    """One training: its accuracies, or why it ended before."""
    began = time.perf_counter()
    row: Row = {"attack": attack, "rule": config.aggregate, "seed": config.seed}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = train_attacked(open_session(config), ATTACKS[attack], Path(folder, "run"))
        except TrainingError as error:
            found, row["ended"] = Accuracy(None, None, None), str(error)
    accuracies = {"local": found.local, "base": found.base, "novel": found.novel}
    return {**row, **accuracies, "seconds": time.perf_counter() - began}


COLUMNS: Columns = {
    "Attack": ("attack", 1),
    "Rule": ("rule", 1),
    "Local": ("local", 1),
    "Base": ("base", 1),
    "Novel": ("novel", 1),
    "Loss local": ("loss_local", 1),
    "Loss base": ("loss_base", 1),
    "Loss novel": ("loss_novel", 1),
}


def table_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over seeds, and what each loses against the mean that nobody attacks.

    A training that ended before its last round has no accuracy, and its cell has none.
    """
    means: dict[tuple[str, str], Row] = {}
    for attack in ATTACKS:
        for rule in RULES:
            own = [row for row in rows if (row["attack"], row["rule"]) == (attack, rule)]
            if own:
                cell: Row = {"attack": attack, "rule": rule}
                for key in ("local", "base", "novel"):
                    known = [row[key] for row in own if row[key] is not None]
                    cell[key] = float(np.mean(known)) if len(known) == len(own) else None
                means[attack, rule] = cell
    plain = means.get(("none", "mean"), {})
    for cell in means.values():
        for key in ("local", "base", "novel"):
            if plain.get(key) is not None and cell[key] is not None:
                cell[f"loss_{key}"] = plain[key] - cell[key]
    return list(means.values())


def markdown(rows: Sequence[Row], method: str, command: str, environment: Environment) -> str:
    """The table with what a reader must know."""
    seeds = sorted({row["seed"] for row in rows})
    note = (
        f"The quickstart's federation (`--preset quickstart --method {method}`: pfedmma-tiny,"
        f" cifar10-sample, 10 clients, 4 rounds). The last {DISHONEST} clients attack in every"
        " round: *sign flip* sends the server's state minus 10 times what was learned, *scaled* the"
        " server's state plus 100 times what was learned, *noise* the server's state plus normal"
        " random numbers of standard deviation 1. Accuracy in %, mean over the other seven clients"
        " after the last round, each with its own model; loss is against the mean that nobody"
        f" attacks, in points. Seeds: {', '.join(map(str, seeds))} (a seed is another partition and"
        " another initial state)."
    )
    section = make_section("", note, COLUMNS, table_rows(rows))
    head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
    table = "\n".join([head, f"|{'---|' * len(section.columns)}", *body])
    ended = []
    for row in rows:
        if "ended" in row:
            ended.append(f"- {row['attack']}, {row['rule']}, seed {row['seed']}: {row['ended']}")
    paragraphs = [
        "# Dishonest clients",
        f"Made by `{command}`.",
        environment_lines(environment),
        note,
        table,
        *(["Ended before the last round:\n\n" + "\n".join(ended)] if ended else []),
    ]
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--method", default="pfedmma")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/byzantine.json"))
    given = parser.parse_args()
    command = (
        "python -m benchmarks.byzantine_table"
        f" --seeds {given.seeds} --method {given.method} --out {given.out.as_posix()}"
    )
    environment = describe_environment(torch.get_num_threads())
    stored: dict[str, Any] = {"rows": []}
    if given.out.exists():
        stored = json.loads(given.out.read_text(encoding="utf-8"))
    rows: list[Row] = stored["rows"]
    done = {(row["attack"], row["rule"], row["seed"]) for row in rows}
    for seed in map(int, given.seeds.split(",")):
        flags = {"seed": seed, "method": given.method}
        config = resolve_run(read_options(flags, preset="quickstart"))
        for attack in ATTACKS:
            for rule in RULES:
                if (attack, rule, seed) in done:
                    continue
                rows.append(measure(replace(config, aggregate=rule), attack))
                print(rows[-1], flush=True)
                found = {"command": command, "environment": environment.to_dict(), "rows": rows}
                write_bytes(given.out, json_bytes(found))
    text = markdown(rows, given.method, command, environment)
    write_bytes(given.out.with_suffix(".md"), text.encode())
    print("Written:", given.out, given.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
