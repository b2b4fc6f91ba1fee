"""The sample's bundles as fixtures, made once; test modules name this file in `pytest_plugins`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pfedmma_deploy.export.bundle import ExportReport


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Report of exporting `tests.export.sample`: a tiny random CLIP, two clients, all files."""
    from pfedmma_deploy.export.export_config import ExportConfig
    from tests.export.sample import export_sample

    out = tmp_path_factory.mktemp("exports") / "portable"
    return export_sample(out, classifier=True, config=ExportConfig(flavour="portable"))


@pytest.fixture(scope="session")
def reuse(portable: ExportReport) -> Callable[[pytest.MonkeyPatch], None]:
    """Makes exports of the sample start from the models of `portable` instead of from torch."""
    import onnx

    from pfedmma_deploy.export import bundle as bundle_module

    def loaded(name: str, *_: object) -> onnx.ModelProto:
        return onnx.load(portable.bundle / name)

    return lambda patch: patch.setattr(bundle_module, "portable_model", loaded)


@pytest.fixture(scope="session")
def exported(
    portable: ExportReport,
    reuse: Callable[[pytest.MonkeyPatch], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportReport:
    """Report of exporting the same for ONNX Runtime, fused."""
    from pfedmma_deploy.export.export_config import ExportConfig
    from tests.export.sample import export_sample

    out = tmp_path_factory.mktemp("exports") / "sample"
    with pytest.MonkeyPatch.context() as patch:
        reuse(patch)
        return export_sample(out, classifier=True, config=ExportConfig(flavour="ort"))


@pytest.fixture(scope="session")
def bundle(exported: ExportReport) -> Path:
    """The folder of that bundle; copy it before changing anything."""
    return exported.bundle


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of zero-shot, north and "0" that may be changed."""
    return shutil.copytree(bundle, tmp_path / "copy")


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest of a bundle."""
    file = bundle / "manifest.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


@pytest.fixture(scope="session")
def certain(
    reuse: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The portable sample with calibrations and `classifier.onnx`; copy it before changes."""
    from tests.export.calibrated import calibrations
    from tests.export.sample import export_sample

    out = tmp_path_factory.mktemp("certain") / "certain"
    with pytest.MonkeyPatch.context() as patch:
        reuse(patch)
        return export_sample(out, classifier=True, calibrations=calibrations()).bundle
