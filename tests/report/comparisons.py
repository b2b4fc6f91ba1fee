"""Made-up results, and a comparison of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.report.compare import Comparison
from pfedmma_deploy.report.trials import Result, Validation


def result(method: str = "pfedmma", seed: int = 0, lr: float = 0.01, **changes: object) -> Result:
    accuracy = Accuracy(80.0 + seed, 60.0, 40.0)
    made = Result(
        method=method,
        seed=seed,
        lr=lr,
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


def comparison(folder: Path) -> Comparison:
    results = {
        "pfedmma": [result(seed=0), result(seed=1), result(seed=2)],
        "promptfl": [result("promptfl", s, accuracy=Accuracy(70.0, 50.0, None)) for s in range(3)],
    }
    tuning = {
        "pfedmma": [
            result(lr=0.01, validation=Validation(70.0, 60.0)),
            result(lr=0.1, validation=Validation(80.0, 40.0)),
            result(lr=1.0),
        ]
    }
    first = options("pfedmma", 0)
    return Comparison(folder, first, results, tuning, "harmonic", "pfedmma")
