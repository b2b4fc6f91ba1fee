"""A served demo as a fixture; test modules name this file in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo.serving import QUICKSTART, Served, start


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed quickstart bundle; where there is none, a random model of its classes."""
    if (QUICKSTART / "manifest.json").is_file():
        return QUICKSTART
    from pfedmma_deploy.data.samples import load_sample
    from pfedmma_deploy.export.export_config import ExportConfig
    from tests.export.sample import export_sample

    names = load_sample("cifar10-sample").class_names
    out = tmp_path_factory.mktemp("exports") / "quickstart"
    export_sample(
        out,
        class_names=names,
        base=tuple(range(5)),
        novel=tuple(range(5, 10)),
        provenance={"data": "cifar10-sample"},
        config=ExportConfig(flavour="portable"),
    )
    return out


@pytest.fixture(scope="session")
def served(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo of that bundle; it must have ended well and asked nothing of the network."""
    running = start(demo_bundle, tmp_path_factory.mktemp("served") / "log.txt")
    yield running
    assert running.stop() == 0
    log = running.log.read_text()
    assert "OUTSIDE" not in log, log
    assert "Traceback" not in log, log
