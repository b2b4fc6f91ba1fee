"""TAP with clients of different modalities and tasks, from a manifest to merged weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.export.merge import export_open_clip
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.personalize import fine_tune, personalize
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import COLOURS, write_images
from tests.tinyclip import register


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients of four classes; the images of `words` have captions."""
    root = tmp_path_factory.mktemp("captions")
    rows = []
    for client in ("plain", "words"):
        for split, count in (("train", 3), ("val", 2), ("test", 2)):
            for i, (name, colour) in enumerate(COLOURS.items()):
                folder = root / client / split / name
                write_images(folder, count, colour, seed=i)
                rows += [
                    {
                        "path": f"{client}/{split}/{name}/{j}.png",
                        "label": name,
                        "client": client,
                        "split": split,
                        "caption": f"number {j} shows a {name}" if client == "words" else "",
                    }
                    for j in range(count)
                ]
    with (root / "manifest.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "manifest.csv"


def run_tap(manifest: Path, out: Path, **parameters: Any) -> Run:
    torch.set_num_threads(1)
    config = TrainConfig(
        data=str(manifest),
        backbone=register(),
        pretrained="random",
        method="tap",
        partition=PartitionConfig(scheme="folders", num_shots=0),
        rounds=1,
        local_epochs=1,
        batch_size=4,
        optimizer="adamw",
        lr=0.01,
        logit_scale=20.0,
        guard=100.0,  # so small a model loses all that it learned to its guard
        parameters={"rank": 2, "distill_batches": 4, **parameters},
    )
    return train(config, out).run


def size(tensors: dict[str, Tensor], *parts: str) -> int:
    """Bytes of the federated components that start with one of the parts."""
    return sum(
        value.numel() * 4
        for name, value in tensors.items()
        if any(name.startswith(f"federated.{part}.") for part in parts)
    )


def test_one_federation_of_both_kinds(manifest: Path, tmp_path: Path) -> None:
    run = run_tap(manifest, tmp_path / "run")
    (line,) = map(json.loads, (run.folder / "rounds.jsonl").read_text().splitlines())
    remarks = line["remarks"]
    assert remarks["plain"]["components"] == ["image/shared", "image/classify"]
    assert len(remarks["words"]["components"]) == 6
    assert [entry["task"] for entry in remarks["words"]["replacements"]] == ["classify", "retrieve"]

    shared = run.load_shared()
    plain, words = size(shared, "image.shared", "image.classify"), size(shared, "image", "text")
    assert line["bytes_up_per_client"] == line["bytes_down_per_client"] == (plain + words) // 2

    own = {client: run.load_client(client).tensors for client in ("plain", "words")}
    zero = [n for n, v in own["plain"].items() if n.endswith(".B") and not v.any()]
    assert {tuple(n.split(".")[1:3]) for n in zero} == {
        ("image", "retrieve"), ("text", "shared"), ("text", "classify"), ("text", "retrieve"),
    }  # fmt: skip
    assert not [n for n, v in own["words"].items() if n.endswith(".B") and not v.any()]
    # Only one client holds them: the server has just what it sent.
    assert not [n for n, v in shared.items() if n.endswith(".B") and not v.any()]
    assert evaluate_run(run).personalized_mean.base is not None

    report = export_open_clip(run, tmp_path / "merged")
    assert {name for name in report.files if name.endswith("safetensors")} == {
        "plain.safetensors",
        "words-classify.safetensors",
        "words-retrieve.safetensors",
    }
    tuned = fine_tune(run, "words")
    before, after = tuned.before[0], tuned.after[0]
    moved = {n.split(".")[0] for n, v in after.items() if not torch.equal(v, before[n])}
    assert moved == {"personal"}
    assert run.load_client("words").tensors.keys() == own["words"].keys()


def test_clients_of_one_task_each(manifest: Path, tmp_path: Path) -> None:
    """`words` only retrieves: what it alone holds of the server's state is its own."""
    run = run_tap(manifest, tmp_path / "run", tasks="one")
    (line,) = map(json.loads, (run.folder / "rounds.jsonl").read_text().splitlines())
    held = {client: set(found["components"]) for client, found in line["remarks"].items()}
    assert held == {
        "plain": {"image/shared", "image/classify"},
        "words": {"image/shared", "image/retrieve", "text/shared", "text/retrieve"},
    }
    shared = run.load_shared()
    untouched = {
        tuple(name.split(".")[1:3])
        for name, value in shared.items()
        if name.endswith(".B") and not value.any()
    }
    assert untouched == {("text", "classify")}, "nobody held it: the server keeps it as it was"
    assert {name.split(".")[0] for name in shared} == {"federated"}
    assert not [n for n in run.load_client("words").tensors if n.startswith("federated")]
    assert evaluate_run(run).personalized["words"].base is not None


def test_personalize_scores_the_models_that_evaluate_scores(manifest: Path, tmp_path: Path) -> None:
    """What a client holds is no tensor: without it the adapter would be zero-shot CLIP."""
    run = run_tap(manifest, tmp_path / "run", distill_lr=0.05)
    before = evaluate_run(run)
    found = personalize(run, "plain")
    assert found.zero_shot == before.zero_shot["plain"]
    assert found.before == before.personalized["plain"]
    assert found.after == evaluate_run(run).personalized["plain"]
    assert found.zero_shot != found.before, "or nothing was compared"
