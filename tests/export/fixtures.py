"""The sample's bundle as fixtures, made once; test modules name this file in `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pfedmma_deploy.export import ExportReport


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Report of exporting `tests.export.sample`: a tiny random CLIP, two clients, all files."""
    from tests.export.sample import export_sample

    return export_sample(tmp_path_factory.mktemp("exports") / "sample", classifier=True)


@pytest.fixture(scope="session")
def bundle(exported: ExportReport) -> Path:
    """The folder of that bundle; copy it before changing anything."""
    return exported.bundle
