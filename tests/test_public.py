"""The public surface: what it is, what its docstrings show, and that importing it costs nothing."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfedmma_deploy
from pfedmma_deploy import ItemDataset, evaluate, export, personalize, train
from pfedmma_deploy.api import TrainOptions
from pfedmma_deploy.config import DEFAULTS
from pfedmma_deploy.data import registry as data_registry
from pfedmma_deploy.errors import PfedmmaError, StoreError, UsageError
from pfedmma_deploy.methods import registry as methods_registry
from tests.federated.conftest import COLOURS, write_images

PAGE = Path(__file__).parents[1] / "docs" / "python.md"

PUBLIC = (
    "Classifier",
    "Dataset",
    "ItemDataset",
    "Method",
    "evaluate",
    "export",
    "personalize",
    "register_dataset",
    "register_method",
    "train",
)
# In the order in which their examples can be run one after the other.
SHOWN = (
    *("train", "evaluate", "personalize", "export", "Classifier"),
    *("Dataset", "ItemDataset", "register_dataset", "Method", "register_method"),
)
SIGNATURES = {
    "train": "data, out, preset, config, resume, progress, on_round, on_client, **options",
    "evaluate": "run, strength, data, backbone, pretrained, prompt, progress",
    "personalize": "run, client, data, epochs, lr, train_shared, session, progress",
    "export": "run, out, client, classifier, flavour, precision, weights, max_accuracy_drop,"
    " format, strength, progress",
    "register_dataset": "dataset",
    "register_method": "method",
    "ItemDataset": "items, class_names, name, splits, clients",
}


@pytest.fixture(scope="module", autouse=True)
def own_registries() -> Iterator[None]:
    """What is registered here is gone after this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_registry, "REGISTERED", data_registry.REGISTERED)
        before = dict(methods_registry.METHODS)
        yield
        data_registry.REGISTERED.clear()
        methods_registry.METHODS.clear()
        methods_registry.METHODS.update(before)


def test_the_public_names_are_these() -> None:
    assert set(pfedmma_deploy.__all__) == {*PUBLIC, "__version__"}
    assert dir(pfedmma_deploy) == sorted(pfedmma_deploy.__all__)
    assert set(SHOWN) == set(PUBLIC)
    for name in PUBLIC:
        assert callable(getattr(pfedmma_deploy, name))
    missing = "module 'pfedmma_deploy' has no attribute 'fit'"
    with pytest.raises(AttributeError, match=missing):
        _ = pfedmma_deploy.fit  # type: ignore[attr-defined]  # that is what is tested


@pytest.mark.parametrize("name", SIGNATURES)
def test_their_arguments_are_these(name: str) -> None:
    parameters = inspect.signature(function(name)).parameters.values()
    shown = [("**" if p.kind is p.VAR_KEYWORD else "") + p.name for p in parameters]
    assert ", ".join(shown) == SIGNATURES[name]


def test_train_takes_every_option_of_the_command() -> None:
    assert {*TrainOptions.__annotations__, "data"} == set(DEFAULTS)


def test_export_is_the_package_and_the_function_whatever_is_imported_first() -> None:
    code = (
        "import sys\n"
        "{}\n"
        "from pfedmma_deploy import export\n"
        "import pfedmma_deploy.export.export_config as config\n"
        "assert callable(export) and export.__name__ == 'pfedmma_deploy.export'\n"
        "assert config.ExportConfig().precision == 'fp32'\n"
        "assert 'torch' not in sys.modules\n"
    )
    for first in ("", "import pfedmma_deploy.export.export_config", "import pfedmma_deploy"):
        subprocess.run([sys.executable, "-c", code.format(first)], check=True)


def test_importing_the_names_that_predict_loads_no_torch() -> None:
    code = (
        "import sys, pfedmma_deploy\n"
        "print(sorted(m for m in sys.modules if m.startswith('pfedmma_deploy')))\n"
        "from pfedmma_deploy import Classifier, Dataset, ItemDataset, export, register_dataset\n"
        "print({'torch', 'open_clip', 'onnx'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['pfedmma_deploy']", "set()"]


def function(name: str) -> Any:
    """What is behind a public name; `export` is the package of that name, which can be called."""
    found = getattr(pfedmma_deploy, name)
    return found.export if name == "export" else found


def examples_of(name: str) -> doctest.DocTest:
    """The example in the docstring of a public name."""
    found = function(name)
    assert found.__doc__, f"{name} has no docstring"
    test = doctest.DocTestParser().get_doctest(found.__doc__, {}, name, None, 0)
    assert test.examples, f"the docstring of {name} has no example"
    return test


def test_the_examples_of_all_docstrings_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos()
    for name in SHOWN:
        runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
        runner.run(examples_of(name))
        assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def write_photos() -> None:
    """The folder `photos` of the examples: 12 images of each of four classes."""
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(Path("photos", name), 12, colour, seed)


def skies(count: int = 24) -> ItemDataset:
    """Three shades, noisy, told apart by anybody."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(count):
        shade = (20, 120, 220, 70)[index % 4]
        pixels = np.clip(shade + rng.integers(-15, 16, (12, 16, 3)), 0, 255).astype(np.uint8)
        items.append((Image.fromarray(pixels) if index % 2 else pixels, index % 4))
    return ItemDataset(items, ["night", "dusk", "noon", "dawn"], name="skies")


def test_a_data_set_of_arrays_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A folder of the same name does not come between.
    (tmp_path / "skies").mkdir()
    rounds: list[dict[str, Any]] = []
    clients: list[dict[str, Any]] = []
    result = train(
        skies(48),
        preset="quickstart",
        clients=2,
        classes="all",
        rounds=2,
        shots=2,
        on_round=rounds.append,
        on_client=clients.append,
    )
    assert result.run.folder == Path("runs/skies")
    assert rounds == result.run.rounds
    assert [(c["round"], c["client"]) for c in clients] == [(1, "0"), (1, "1"), (2, "0"), (2, "1")]
    means = [np.mean([c["loss"] for c in clients if c["round"] == n]) for n in (1, 2)]
    assert means == pytest.approx([record["loss"] for record in rounds])
    assert set(evaluate().personalized) == {"0", "1"}
    newcomer = personalize(result.run, "north", data=skies(), epochs=1)
    assert newcomer.is_new
    assert result.run.load_client("north").config["personalized"]["data"] == "skies"
    data_registry.REGISTERED.clear()
    (tmp_path / "skies").rmdir()
    with pytest.raises(PfedmmaError, match="there is no folder 'skies'"):
        evaluate()


def test_a_callback_may_stop_a_training_that_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    data = skies(48)
    options: Any = {"preset": "quickstart", "clients": 2, "rounds": 2, "shots": 1}
    with pytest.raises(KeyboardInterrupt):
        train(data, out="stopped", on_round=stop, **options)
    rounds: list[dict[str, Any]] = []
    again = train(out="stopped", resume=True, on_round=rounds.append)
    assert [record["round"] for record in rounds] == [2]
    whole = train(data, out="whole", **options)
    ours, theirs = again.run.load_shared(), whole.run.load_shared()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_mistakes_get_the_sentences_of_the_commands(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wrong: Any = train
    with pytest.raises(UsageError, match=r"unknown option 'round' .*did you mean 'rounds'"):
        wrong("cifar10-sample", preset="quickstart", round=1)
    with pytest.raises(UsageError, match="no data given: name one with --data"):
        train(backbone="pfedmma-tiny", out=run)
    with pytest.raises(UsageError, match="preset must be one of"):
        wrong("cifar10-sample", preset="quick")
    with pytest.raises(StoreError):
        evaluate(run)
    with pytest.raises(UsageError, match="--backbone is missing"):
        wrong = evaluate
        wrong(data="cifar10-sample")
    with pytest.raises(UsageError, match=r"client names no client: give ids such as \['3', '4'\]"):
        export(run, client=[])
    with pytest.raises(UsageError, match="precision must be one of fp32, fp16, int8, not 'int4'"):
        wrong = export
        wrong(run, precision="int4")


@pytest.mark.slow
def test_the_page_about_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("".join(blocks), str(PAGE), "exec"), {})
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"photos", "watched", "noise"}
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {"photos", "noise-1"}


def test_the_names_come_from_where_they_are_documented() -> None:
    assert importlib.import_module("pfedmma_deploy.runtime").Classifier is pfedmma_deploy.Classifier
    assert importlib.import_module("pfedmma_deploy.types").Dataset is pfedmma_deploy.Dataset
