"""Models to measure, exported once: torch's exporter takes seconds even for a tower this small."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pfedmma_deploy.benchmark import inference, subjects
from pfedmma_deploy.benchmark.bundles import RandomBundles
from tests.tinyclip import tiny_backbone


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> RandomBundles:
    """Bundles of the tiny CLIP with adapters of rank 4."""
    return RandomBundles(tiny_backbone(), tmp_path_factory.mktemp("bundles"), 4)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open_clip's own tower."""
    return subjects.plain_file(tiny_backbone(), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def export_once(bundles: RandomBundles, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks of the tiny CLIP take these."""
    monkeypatch.setattr(inference, "RandomBundles", lambda *_: bundles)
    monkeypatch.setattr(subjects, "to_onnx", lambda *_: onnx.load(plain))
