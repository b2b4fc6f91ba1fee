"""Comparisons: what is run, what is not run again, what is chosen, what is written."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.errors import TrainingError, UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.report import compare as module
from pfedmma_deploy.report.compare import (
    Comparison,
    Result,
    Trial,
    best_rate,
    compare,
    read_result,
    run_trial,
)
from pfedmma_deploy.report.comparison_files import (
    _published_tables,
    markdown,
    published_rows,
    spread,
    to_dict,
    write_comparison,
)
from tests.federated.conftest import config, one_thread, sites

__all__ = ["config", "one_thread", "sites"]


def result(method: str = "pfedmma", seed: int = 0, lr: float = 0.01, **changes: object) -> Result:
    accuracy = Accuracy(80.0 + seed, 60.0, 40.0)
    made = Result(
        method=method,
        seed=seed,
        lr=lr,
        validation=None,
        zero_shot=Accuracy(70.0, 60.0, 50.0),
        accuracy=accuracy,
        worst_local=55.0,
        clients={"a": accuracy},
        trained=1000,
        shared=100,
        bytes_up=400,
        bytes_down=400,
        seconds=2.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # names are checked by replace


def options(method: str, seed: int) -> TrainConfig:
    return TrainConfig(data="cifar10-sample", backbone="b", method=method, seed=seed, lr=0.01)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Trials are written down instead of run; the higher the rate up to 0.5, the better."""
    seen: list[Trial] = []

    def fake(trial: Trial, threads: int | None = None) -> Result:
        seen.append(trial)
        rate = trial.config.lr
        validation = (rate if rate < 0.5 else 0.0) if trial.is_tuning else None
        return result(trial.config.method, trial.config.seed, rate, validation=validation)

    monkeypatch.setattr(module, "run_trial", fake)
    return seen


def test_every_method_runs_with_every_seed(trials: list[Trial], tmp_path: Path) -> None:
    found = compare(["pfedmma", "zero-shot"], [0, 1], options, tmp_path)
    wanted = [f"{m}/seed-{s}" for m in ("pfedmma", "zero-shot") for s in (0, 1)]
    assert [str(t.folder.relative_to(tmp_path / "trials")) for t in trials] == wanted
    assert [one.seed for one in found.results["zero-shot"]] == [0, 1]


def test_the_grid_grows_until_the_best_is_inside(trials: list[Trial], tmp_path: Path) -> None:
    """0.001, 0.01, 0.1: 0.1 is best and on the edge, so 1.0 is tried, and found to be worse."""
    found = compare(["pfedmma"], [3, 4], options, tmp_path, tune=True)
    assert [one.lr for one in found.tuning["pfedmma"]] == [0.001, 0.01, 0.1, 1.0]
    tuned = [trial for trial in trials if trial.is_tuning]
    assert {trial.config.seed for trial in tuned} == {3}
    assert [t.config.lr for t in trials if not t.is_tuning] == [0.1, 0.1]


def test_what_cannot_learn_is_not_tuned(trials: list[Trial], tmp_path: Path) -> None:
    found = compare(["zero-shot"], [0], options, tmp_path, tune=True)
    assert found.tuning == {}
    assert len(trials) == 1


def test_of_equal_rates_the_smallest_is_taken() -> None:
    assert best_rate([result(lr=rate, validation=70.0) for rate in (0.1, 0.01, 1.0)]) == 0.01


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        (["pfedmma", "pfedmma"], [0], "the method pfedmma is named twice"),
        (["pfedmma"], [0, 0], "the seed 0 is named twice"),
        (["pfedmma"], [], "name at least one seed"),
        (["pfedma"], [0], "no method is called 'pfedma'; did you mean 'pfedmma'?"),
    ],
)
def test_mistakes(methods: list[str], seeds: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compare(methods, seeds, options, tmp_path)


def comparison(folder: Path) -> Comparison:
    results = {
        "pfedmma": [result(seed=0), result(seed=1), result(seed=2)],
        "promptfl": [result("promptfl", s, accuracy=Accuracy(70.0, 50.0, None)) for s in range(3)],
    }
    tuning = {"pfedmma": [result(lr=0.01, validation=71.0), result(lr=0.1, validation=72.5)]}
    tuning["pfedmma"].append(result(lr=1.0, validation=None))
    first = options("pfedmma", 0)
    return Comparison(folder, first, results, tuning)


def test_the_files(tmp_path: Path) -> None:
    files = write_comparison(comparison(tmp_path))
    assert [file.name for file in files] == [
        "compare.json",
        "compare.csv",
        "compare.md",
        "compare.png",
    ]
    text = (tmp_path / "compare.md").read_text("utf-8")
    # 80, 81, 82: mean 81, deviation 1, interval 4.303 / sqrt(3).
    assert "| pfedmma | 81.0 ± 2.5 (1.0) | 60.0 ± 0.0 (0.0) |" in text
    assert "| promptfl | 70.0 ± 0.0 (0.0) | 50.0 ± 0.0 (0.0) | - | - | - |" in text
    assert "0.01: 71.0, 0.1: 72.5, 1: diverged | 0.1 |" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text("utf-8"))))
    assert [row["method"] for row in rows] == ["pfedmma", "promptfl"]
    assert (rows[0]["local_mean"], rows[1]["novel_mean"]) == ("81.0", "")
    values = json.loads((tmp_path / "compare.json").read_text("utf-8"))
    assert values["rows"][0]["bytes_up_per_client_round"] == 400
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_papers_are_marked_as_theirs(tmp_path: Path) -> None:
    theirs = [{"method": "pFedMMA", "local": 97.17, "base": 77.4, "novel": 81.49, "source": "x"}]
    text = markdown(to_dict(comparison(tmp_path), theirs))
    assert "theirs, not measured here" in text
    assert "| pFedMMA | 97.17 | 77.40 | 81.49 | - | x |" in text


def test_a_real_trial_is_run_once_and_kept(tmp_path: Path, config: TrainConfig) -> None:
    trial = Trial(tmp_path / "one", config)
    first = run_trial(trial)
    assert first.accuracy is not None
    assert first.worst_local is not None
    assert first.bytes_up == 4 * first.shared
    written = (tmp_path / "one" / "run" / "manifest.json").stat().st_mtime_ns
    assert run_trial(trial) == first
    assert (tmp_path / "one" / "run" / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="was made with rounds = 2, now it is 3"):
        read_result(Trial(tmp_path / "one", replace(config, rounds=3)))


def test_a_cut_off_trial_is_continued(tmp_path: Path, config: TrainConfig) -> None:
    """The result is gone, the run is there: nothing is trained again, the figures are the same."""
    trial = Trial(tmp_path / "one", config)
    first = run_trial(trial)
    (tmp_path / "one" / "result.json").unlink()
    assert run_trial(trial) == first


def test_tuning_looks_at_validation_images_only(tmp_path: Path, config: TrainConfig) -> None:
    found = run_trial(Trial(tmp_path / "one", config, is_tuning=True))
    assert found.validation is not None
    assert found.accuracy is None


def test_a_rate_that_diverges_is_a_finding(tmp_path: Path, config: TrainConfig) -> None:
    wild = Trial(tmp_path / "wild", replace(config, lr=1e30), is_tuning=True)
    found = run_trial(wild)
    assert found.validation is None
    assert run_trial(wild) == found, "it is remembered"
    assert best_rate([found, result(lr=0.01, validation=30.0)]) == 0.01
    with pytest.raises(TrainingError, match="diverged in round 1"):
        run_trial(Trial(tmp_path / "scored", wild.config))


@pytest.mark.slow
def test_jobs_of_their_own_give_the_same(tmp_path: Path, config: TrainConfig) -> None:
    def configure(method: str, seed: int) -> TrainConfig:
        return replace(config, method=method, seed=seed, backbone="pfedmma-tiny", pretrained=None)

    both = compare(["pfedmma"], [0, 1], configure, tmp_path / "two", jobs=2)
    alone = compare(["pfedmma"], [0], configure, tmp_path / "one")
    assert both.results["pfedmma"][0].clients == alone.results["pfedmma"][0].clients


def test_three_seeds_by_hand() -> None:
    """Mean 80, deviation 2, interval 4.303 * 2 / sqrt(3)."""
    found = spread([78.0, 80.0, 82.0])
    assert found is not None
    assert (found["mean"], found["deviation"]) == (80.0, 2.0)
    assert found["interval"] == pytest.approx(4.968, abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    found = spread([78.0])
    assert found is not None
    assert found == {"mean": 78.0, "deviation": None, "interval": None}


def test_what_is_not_measured_everywhere_is_not_averaged() -> None:
    assert spread([78.0, None]) is None
    assert spread([]) is None


def test_many_seeds_use_the_normal_distribution() -> None:
    found = spread([0.0, 2.0] * 50)
    assert found is not None
    assert found["deviation"] is not None
    assert found["interval"] == pytest.approx(1.960 * found["deviation"] / 10)


DISJOINT = PartitionConfig(scheme="disjoint", classes="base-novel", num_shots=16)
FIELDS = {"method", "local", "base", "novel", "hm3", "source", "url", "datasets"}


def test_the_means_of_the_pfedmma_paper() -> None:
    rows = published_rows("oxford_pets", DISJOINT, "ViT-B-16")
    assert [row["method"] for row in rows] == [
        "zero-shot", "promptfl", "fedpgp", "fedotp", "pfedmoap", "pfedmma",
    ]  # fmt: skip
    ours = rows[-1]
    assert set(ours) == FIELDS
    assert (ours["local"], ours["base"], ours["novel"], ours["hm3"]) == (97.17, 77.40, 81.49, 84.15)
    assert ours["source"] == "pFedMMA, arXiv 2507.05394 (ICLR 2026), mean over 7 data sets"
    assert len(ours["datasets"]) == 7


def test_names_are_taken_as_people_write_them() -> None:
    expected = published_rows("oxford_pets", DISJOINT, "ViT-B-16")
    assert published_rows("/data/oxford-iiit-pet", DISJOINT, "vit-b/16") == expected


@pytest.mark.parametrize(
    ("dataset", "changes", "backbone"),
    [
        ("eurosat", {}, "ViT-B-16"),
        ("oxford_pets", {"scheme": "dirichlet"}, "ViT-B-16"),
        ("oxford_pets", {"classes": "all"}, "ViT-B-16"),
        ("oxford_pets", {}, "ViT-B-32"),
        ("oxford_pets", {"num_shots": 8}, "ViT-B-16"),
    ],
)
def test_another_protocol_has_no_figures(
    dataset: str, changes: dict[str, Any], backbone: str
) -> None:
    assert published_rows(dataset, replace(DISJOINT, **changes), backbone) == []


def test_every_table_names_known_data_sets_and_plausible_figures() -> None:
    for table in _published_tables():
        assert set(table["datasets"]) <= set(known_datasets())
        assert table["url"].startswith("https://")
        for figures in table["methods"].values():
            assert set(figures) == {"local", "base", "novel", "hm3"}
            assert all(0 < value < 100 for value in figures.values())
