"""The published table of ways to keep what zero-shot CLIP knew, beside the guard.

    python -m benchmarks.guard_table

Trainings of the two samples in the package with several seeds. Each is stored in the JSON file as
it ends, and a second call runs only what is missing there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.adapters.multimodal import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, class_texts, with_activations
from pfedmma_deploy.benchmark.report import Columns, Row, environment_lines, make_section
from pfedmma_deploy.config import TrainConfig, read_options
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.evaluation.accuracy import Accuracy, Scorer, mean_accuracy
from pfedmma_deploy.evaluation.guard import STEPS, Guardian
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.federated.evaluate import open_scorer
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.rounds import run_rounds
from pfedmma_deploy.federated.session import Session, open_run_session, open_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.base import Batch, Tensors, clip_logits, divergence
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.system import describe_environment
from pfedmma_deploy.types import ClientData

Models = Callable[[str], Adapter]
"""A client's model as trained, by its id."""

SAMPLES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "cifar10-sample": {},
        "domains-sample": {
            "data": "domains-sample",
            "clients": 12,
            "partition": "domain",
            "shots": 8,
            "rounds": 6,
        },
    }
)
"""What differs from the quickstart's options."""
BOUNDS: Final = (4.0, 6.0, 8.0)
LAST_ROUNDS: Final = 3
WORDS: Final = 36
"""General words in the loss of `beliefs`, evenly spaced: with all of them it takes hours."""


# Ways to train.


@dataclass(frozen=True)
class Held:
    """What a penalty holds on to."""

    words: ClassTexts
    """General words with the frozen blocks' activations."""
    features: Tensor
    """[W, D] by the frozen backbone."""
    start: Tensors
    """The adapter's initial tensors."""


class PenalizedPFedMMA(PFedMMA):
    """pFedMMA whose clients also minimise a distance from zero-shot CLIP."""

    held: Held
    penalty: Callable[[PenalizedPFedMMA, Backbone, MultiModalAdapter, Batch], Tensor]

    def loss(self, backbone: Backbone, adapter: MultiModalAdapter, batch: Batch) -> Tensor:
        """Cross-entropy and the penalty."""
        own = F.cross_entropy(clip_logits(backbone, adapter, batch), batch.labels)
        return own + self.penalty(self, backbone, adapter, batch)


def features_penalty(
    method: PenalizedPFedMMA, backbone: Backbone, adapter: MultiModalAdapter, batch: Batch
) -> Tensor:
    """10 (1 - cos) of image features, and of the words' text features, with zero-shot's."""
    with torch.no_grad():
        before = backbone.encode_image(batch.pixels)
    images = adapter.encode_image(backbone, batch.pixels)
    texts = adapter.encode_text(backbone, method.held.words)
    images_moved = (1 - (images * before).sum(dim=-1)).mean()
    return 10 * (images_moved + (1 - (texts * method.held.features).sum(dim=-1)).mean())


def beliefs_penalty(
    method: PenalizedPFedMMA, backbone: Backbone, adapter: MultiModalAdapter, batch: Batch
) -> Tensor:
    """5 KL of the images' beliefs about general words, from zero-shot's."""
    with torch.no_grad():
        before = backbone.encode_image(batch.pixels) @ method.held.features.T
    images = adapter.encode_image(backbone, batch.pixels)
    scores = images @ adapter.encode_text(backbone, method.held.words).T
    return 5 * divergence(batch.logit_scale * scores, batch.logit_scale * before)


def proximal_penalty(
    method: PenalizedPFedMMA, backbone: Backbone, adapter: MultiModalAdapter, batch: Batch
) -> Tensor:
    """0.05 / 2 times the squared distance of all weights from where they started."""
    moved = [
        (value - method.held.start[name]).square().sum()
        for name, value in adapter.named_parameters()
    ]
    return 0.025 * torch.stack(moved).sum()


def train_plainly(config: TrainConfig, folder: Path) -> tuple[Session, Models]:
    """As `pfedmma train` does."""
    run = train(config, folder).run
    session, shared = open_run_session(run), run.load_shared()
    return session, lambda client: session.client_model(run.load_client(client), shared)


def train_penalized(
    penalty: Callable[..., Tensor],
) -> Callable[[TrainConfig, Path], tuple[Session, Models]]:
    """With a penalty in every client's loss."""

    def train_it(config: TrainConfig, folder: Path) -> tuple[Session, Models]:
        opened = open_session(config)
        method = PenalizedPFedMMA(opened.method.parameters)
        session = replace(opened, method=method)
        adapter = session.build_adapter()
        scorer = open_scorer(session)
        words = Guardian(scorer, 0).words
        words = words[:: len(words) // WORDS]
        backbone = session.backbone
        texts = class_texts(backbone, words, config.prompt)
        start = adapter.first_block(backbone, "text")
        features = scorer.encode_names(Frozen(), words).clone()
        texts = with_activations(backbone, texts, start)
        method.held = Held(texts, features, adapter.tensors())
        method.penalty = penalty
        *_, (server, kept) = _rounds(session, folder, [config.rounds])
        return session, lambda client: _model(session, client, kept[client], server)

    return train_it


def train_averaged(config: TrainConfig, folder: Path) -> tuple[Session, Models]:
    """Each client's weights are the mean of those after each of the last rounds."""
    session = open_session(config)
    last = [config.rounds - back for back in reversed(range(LAST_ROUNDS))]
    found = list(_rounds(session, folder, last))
    server = found[-1][0]
    means: dict[str, Tensors] = {}
    shared = {name: _mean([at[0][name] for at in found]) for name in server}
    for client, own in found[-1][1].items():
        means[client] = {name: _mean([at[1][client][name] for at in found]) for name in own}
    return session, lambda client: _model(session, client, means[client], shared)


def train_last_steps(config: TrainConfig, folder: Path) -> tuple[Session, Models]:
    """The whole adapter is averaged, and each client fine-tunes its copy for one epoch at last."""
    run = train(replace(config, method="fedavg-mma"), folder).run
    session, shared = open_run_session(run), run.load_shared()
    for client in session.federation.clients:
        fine_tune(run, client.id, epochs=1, train_shared=True, session=session)
    return session, lambda client: session.client_model(run.load_client(client), shared)


TRAININGS: Final = MappingProxyType(
    {
        "plain": train_plainly,
        "features held": train_penalized(features_penalty),
        "beliefs held": train_penalized(beliefs_penalty),
        "proximal term": train_penalized(proximal_penalty),
        "last rounds averaged": train_averaged,
        "last steps personal": train_last_steps,
    }
)


def _rounds(
    session: Session, folder: Path, ends: Sequence[int]
) -> Iterator[tuple[Tensors, dict[str, Tensors]]]:
    """The server's state and every client's own after so many rounds, for each of `ends`."""
    config, federation = session.config, session.federation
    values = {"status": "training", "config": config.to_dict()}
    run = Run.create(folder, values, federation_to_dict(federation))
    checkpoint, adapter = run.checkpoint, session.build_adapter()
    batching = config.client_batching
    engine = InProcessEngine.of(session, adapter, checkpoint, client_batching=batching)
    ids = [client.id for client in federation.clients]
    server = session.method.start(adapter, ids)
    for end in ends:
        run.manifest["config"] = replace(config, rounds=end).to_dict()
        server = run_rounds(run, engine, session.method, lambda: ids, server, checkpoint, Silent())
        kept: dict[str, Tensors] = {}
        for client in ids:
            state = checkpoint.load_client(client)
            assert state is not None, "every client takes part in every round"
            kept[client] = state.own
        yield server, kept


def _model(session: Session, client: str, own: Tensors, server: Tensors) -> Adapter:
    return session.client_model(StoredClient(client, own, {}), server)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)


# Ways to choose a strength.


def rules(scorer: Scorer) -> dict[str, Callable[[Adapter, ClientData], float]]:
    """(model as trained, client) -> strength, by name."""
    found: dict[str, Callable[[Adapter, ClientData], float]] = {
        "as trained": lambda model, client: 1.0,
        "1/4": lambda model, client: 0.25,
        "1/2": lambda model, client: 0.5,
        "best on own images": lambda model, client: own_best(scorer, model, client),
        "knee": lambda model, client: knee(scorer, model, client),
    }
    for bound in BOUNDS:
        found[f"guard {bound:g}"] = partial(guarded, Guardian(scorer, bound))
    return found


def guarded(guardian: Guardian, model: Adapter, client: ClientData) -> float:
    """What the guard chooses."""
    return guardian.choose(model, client).strength


def own_best(scorer: Scorer, model: Adapter, client: ClientData) -> float:
    """The smallest strength of the best accuracy on the client's own validation images."""
    if not client.val:
        return 1.0
    accuracies = [scorer.accuracy_on(model.at(one), client.val) for one in _eighths()]
    return _eighths()[int(np.argmax(accuracies))]


def knee(scorer: Scorer, model: Adapter, client: ClientData) -> float:
    """Where the gain on own validation images is farthest above what beliefs have moved.

    Both as shares of their largest (Satopaa et al., "Finding a kneedle in a haystack", 2011).
    """
    if not client.val:
        return 1.0
    accuracies = np.array([scorer.accuracy_on(model.at(one), client.val) for one in _eighths()])
    guardian = Guardian(scorer, 100.0)
    moved = [guardian.movement(model.at(one), client) for one in _eighths()]
    gain = accuracies - accuracies[0]
    if gain.max() <= 0 or max(moved) == 0:
        return 0.0
    return _eighths()[int(np.argmax(gain / gain.max() - np.array(moved) / max(moved)))]


def _eighths() -> list[float]:
    return [step / STEPS for step in range(0, STEPS + 1, 2)]


# The table.


def measure(sample: str, seed: int, training: str) -> list[Row]:
    """One training, scored with every rule; all but the plain one with two of them."""
    given = {**SAMPLES[sample], "seed": seed, "guard": 100.0}
    config = resolve_run(read_options(given, preset="quickstart"))
    began = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        session, models = TRAININGS[training](config, Path(folder, "run"))
        seconds = time.perf_counter() - began
        scorer, clients = open_scorer(session), session.federation.clients
        zero_shot = scorer.score(None, clients)
        known: dict[tuple[str, float], Accuracy] = {}
        chosen = rules(scorer)
        if training != "plain":
            chosen = {name: chosen[name] for name in ("as trained", "guard 6")}
        for rule, choose in chosen.items():
            found, strengths = [], []
            for client in clients:
                model = models(client.id)
                strength = choose(model, client)
                if (client.id, strength) not in known:
                    (one,) = scorer.score(model.at(strength), [client])
                    known[client.id, strength] = one
                found.append(known[client.id, strength])
                strengths.append(strength)
            row: Row = {"sample": sample, "seed": seed, "training": training, "rule": rule}
            rows.append(row | _figures(zero_shot, found, strengths) | {"seconds": seconds})
    return rows


def _figures(
    zero_shot: Sequence[Accuracy], found: Sequence[Accuracy], strengths: Sequence[float]
) -> Row:
    """Differences from zero-shot in points, and of the client that loses most."""
    before, after = mean_accuracy(zero_shot), mean_accuracy(found)
    row: Row = {"strength": float(np.mean(strengths))}
    for key in ("local", "base", "novel", "hm2", "all"):
        row[key] = getattr(after, key) - getattr(before, key)
    for key in ("base", "novel"):
        pairs = zip(zero_shot, found, strict=True)
        row[f"worst_{key}"] = min(getattr(b, key) - getattr(a, key) for a, b in pairs)
    return row


COLUMNS: Columns = {
    "Training": ("training", 1),
    "Strength": ("rule", 1),
    "Mean": ("strength", 1),
    "Local": ("local", 1),
    "Base": ("base", 1),
    "Novel": ("novel", 1),
    "HM2": ("hm2", 1),
    "All": ("all", 1),
    "Worst base": ("worst_base", 1),
    "Worst novel": ("worst_novel", 1),
    "Seconds": ("seconds", 1),
}
NOTE: Final = (
    "pFedMMA with `--preset quickstart`, and with `--data domains-sample --clients 12 "
    "--partition domain --shots 8 --rounds 6`. Figures are points of test accuracy above "
    "zero-shot CLIP: means over clients and seeds; worst: of the client that loses most with "
    "any seed. Mean: of the clients' strengths. Seconds: of training, mean. *Guard* B bounds "
    "by B percent how far beliefs move (`pfedmma_deploy/evaluation/guard.py`); *knee* is "
    "where the gain on own validation images is farthest above that movement; *features held* "
    "adds 10 (1 - cosine with zero-shot's) of images and general words to the loss, *beliefs "
    "held* 5 times the KL divergence of the images' beliefs about general words, the "
    "*proximal term* 0.05 / 2 times the squared distance of all weights from their start; "
    f"*last rounds averaged* takes the mean of the last {LAST_ROUNDS} rounds' weights; *last "
    "steps personal* averages the whole adapter in every round and fine-tunes each client's "
    "copy for one epoch at the end. Strengths are chosen without test images; the guard's "
    "bound was chosen on this table."
)


def table_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over seeds by training and rule; the worst of all."""
    cells: list[Row] = []
    for training, rule in dict.fromkeys((row["training"], row["rule"]) for row in rows):
        own = [row for row in rows if (row["training"], row["rule"]) == (training, rule)]
        cell: Row = {"training": training, "rule": rule}
        for name, (key, _) in COLUMNS.items():
            if name.startswith("Worst"):
                cell[key] = min(row[key] for row in own)
            elif key not in cell:
                cell[key] = float(np.mean([row[key] for row in own]))
        cells.append(cell)
    return cells


def write_report(out: Path, stored: Mapping[str, Any]) -> None:
    """The tables of all rows, one for each sample, beside the JSON file `out`."""
    rows: list[Row] = stored["rows"]
    environment = describe_environment(torch.get_num_threads())
    paragraphs = ["# What keeps what CLIP knew", f"Made by `{stored['command']}`. {NOTE}"]
    paragraphs.append(environment_lines(environment))
    for sample in dict.fromkeys(row["sample"] for row in rows):
        own = [row for row in rows if row["sample"] == sample]
        seeds = ", ".join(map(str, sorted({row["seed"] for row in own})))
        section = make_section(sample, "", COLUMNS, table_rows(own))
        head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
        table = "\n".join([head, f"|{'---|' * len(section.columns)}", *body])
        paragraphs += [f"## {sample}", f"Seeds {seeds}.", table]
    write_bytes(out.with_suffix(".md"), ("\n\n".join(paragraphs) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trainings", default=",".join(TRAININGS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/guard.json"))
    given = parser.parse_args()
    seeds, trainings = [int(seed) for seed in given.seeds.split(",")], given.trainings.split(",")
    stored: dict[str, Any] = {"rows": []}
    if given.out.exists():
        stored = json.loads(given.out.read_text(encoding="utf-8"))
    stored["command"] = (
        f"python -m benchmarks.guard_table --seeds {given.seeds} --trainings {given.trainings}"
    )
    stored["environment"] = describe_environment(torch.get_num_threads()).to_dict()
    done = {(row["sample"], row["seed"], row["training"]) for row in stored["rows"]}
    for training in trainings:
        for seed in seeds:
            for sample in SAMPLES:
                if (sample, seed, training) in done:
                    continue
                stored["rows"] += measure(sample, seed, training)
                print(stored["rows"][-1], flush=True)
                write_bytes(given.out, json_bytes(stored))
                write_report(given.out, stored)
    print("Written:", given.out, given.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
