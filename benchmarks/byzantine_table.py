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
    batching = config.client_batching
    engine: Engine = InProcessEngine.of(session, adapter, checkpoint, client_batching=batching)
    ids = [client.id for client in federation.clients]
    server = session.method.start(adapter, ids)
    if attack is not None:
        engine = AttackedEngine(engine, attack, ids[-DISHONEST:], config.seed)
    method = session.method
    server = run_rounds(run, engine, method, lambda: ids, server, checkpoint, Silent())
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
    row: Row = {"method": config.method, "attack": attack}
    row |= {"rule": config.aggregate, "seed": config.seed}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = train_attacked(open_session(config), ATTACKS[attack], Path(folder, "run"))
        except TrainingError as error:
            found, row["ended"] = Accuracy(None, None, None), str(error)
    accuracies = {key: getattr(found, key) for key in KEYS}
    return {**row, **accuracies, "seconds": time.perf_counter() - began}


KEYS: Final = ("local", "base", "novel")
COLUMNS: Columns = {
    "Attack": ("attack", 1),
    "Rule": ("rule", 1),
    "Local": ("local", 1),
    "Base": ("base", 1),
    "Novel": ("novel", 1),
    "Lost local": ("lost_local", 1),
    "Lost base": ("lost_base", 1),
    "Lost novel": ("lost_novel", 1),
}
NOTE: Final = (
    "The quickstart's federation (`--preset quickstart`: pfedmma-tiny, cifar10-sample, 10 clients,"
    f" 4 rounds). The last {DISHONEST} clients attack in every round: *sign flip* sends the"
    " server's state minus 10 times what was learned, *scaled* the server's state plus 100 times"
    " what was learned, *noise* the server's state plus normal random numbers of standard"
    " deviation 1. Accuracy in %: mean over the other seven clients after the last round, each with"
    " its own model. Lost: points below the mean that nobody attacks, of the same method."
)


def table_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over seeds for one method, and what each loses against the mean nobody attacks.

    A training that ended before its last round has no accuracy, and its cell has none.
    """
    cells: list[Row] = []
    for attack in ATTACKS:
        for rule in RULES:
            own = [row for row in rows if (row["attack"], row["rule"]) == (attack, rule)]
            cell: Row = {"attack": attack, "rule": rule}
            for key in KEYS:
                known = [row[key] for row in own if row[key] is not None]
                is_whole = bool(own) and len(known) == len(own)
                cell[key] = float(np.mean(known)) if is_whole else None
            cells.append(cell)
    plain = cells[0]
    for cell in cells:
        for key in KEYS:
            is_known = plain[key] is not None and cell[key] is not None
            cell[f"lost_{key}"] = plain[key] - cell[key] if is_known else None
    return cells


def write_report(out: Path, stored: dict[str, Any], environment: Environment) -> None:
    """The tables of all rows, one for each method, beside the JSON file `out`."""
    rows: list[Row] = stored["rows"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    paragraphs = ["# Dishonest clients", f"Made by `{stored['command']}`. {NOTE}"]
    paragraphs.append(f"Seeds: {seeds}. A seed is another partition and another initial state.")
    paragraphs.append(environment_lines(environment))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        section = make_section(method, "", COLUMNS, table_rows(own))
        head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
        table = "\n".join([head, f"|{'---|' * len(section.columns)}", *body])
        paragraphs += [f"## {method}", table]
    for row in rows:
        if "ended" in row:
            cell = f"{row['method']}, {row['attack']}, {row['rule']}, seed {row['seed']}"
            paragraphs.append(f"Ended before the last round: {cell}. {row['ended']}")
    write_bytes(out.with_suffix(".md"), ("\n\n".join(paragraphs) + "\n").encode())


def cells_to_run(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[TrainConfig, str]]:
    """The configuration and the attack of every training."""
    for method in methods:
        for seed in seeds:
            options = read_options({"seed": seed, "method": method}, preset="quickstart")
            config = resolve_run(options)
            for attack in ATTACKS:
                for rule in RULES:
                    yield replace(config, aggregate=rule), attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", default="pfedmma,fedavg-mma")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/byzantine.json"))
    given = parser.parse_args()
    methods, seeds = given.methods.split(","), [int(seed) for seed in given.seeds.split(",")]
    environment = describe_environment(torch.get_num_threads())
    stored: dict[str, Any] = {"rows": []}
    if given.out.exists():
        stored = json.loads(given.out.read_text(encoding="utf-8"))
    stored["command"] = (
        f"python -m benchmarks.byzantine_table --methods {given.methods} --seeds {given.seeds}"
    )
    stored["environment"] = environment.to_dict()
    done = {(row["method"], row["attack"], row["rule"], row["seed"]) for row in stored["rows"]}
    for config, attack in cells_to_run(methods, seeds):
        if (config.method, attack, config.aggregate, config.seed) in done:
            continue
        stored["rows"].append(measure(config, attack))
        print(stored["rows"][-1], flush=True)
        write_bytes(given.out, json_bytes(stored))
    write_report(given.out, stored, environment)
    print("Written:", given.out, given.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
