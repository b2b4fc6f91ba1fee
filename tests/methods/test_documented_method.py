"""The method of docs/add-a-method.md does everything that a method does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pfedmma_deploy.export.run import export_run
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.personalize import personalize
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.registry import METHODS
from tests.federated.conftest import sites  # noqa: F401  # a fixture
from tests.methods.test_all_methods import options

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def fedgain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's code as a module, and its method in the registry."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    module = ModuleType("fedgain")
    monkeypatch.setitem(sys.modules, "fedgain", module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, "fedgain", module.FedGain)


@pytest.mark.usefixtures("fedgain")
def test_it_trains_personalizes_evaluates_and_exports(
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = train(options("fedgain", sites, factor=0.5), tmp_path / "run").run
    assert set(run.load_shared()) == {"shift"}
    assert set(run.load_client("clinic").tensors) == {"gain"}
    found = personalize(run, "clinic", epochs=1)
    assert found.after.base is not None
    assert evaluate_run(run).personalized_mean.novel is not None
    report = export_run(run, tmp_path / "bundle")
    assert report.clients == ("zero-shot", "clinic", "harbour")
    assert report.parity.max_abs_error < 1e-5
