"""Installed packages that add methods, data sets and rules, and such that cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.registry import dataset_plugins
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.methods.aggregation import Mean, aggregator_plugins, get_aggregator
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.methods.registry import METHODS, get_method, method_plugins, register_method

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "docs" / "plugin-template"
MODULE = """
from pfedmma_deploy.data.items import ItemDataset
from pfedmma_deploy.methods.aggregation import Mean
from pfedmma_deploy.methods.pfedmma import PFedMMA

class Good(PFedMMA):
    name = "good"

class Unbuildable(PFedMMA):
    name = "unbuildable"
    def build(self, backbone, generator):
        raise RuntimeError("no such layer")

RULE = Mean("uniform")

def few():
    import numpy
    return ItemDataset([(numpy.zeros((4, 4, 3), "uint8"), 0)], ["black"], name="few")

def nothing():
    return 3
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes packages that are installed for the test, each with the same module."""
    caches = (method_plugins, dataset_plugins, aggregator_plugins)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(package: str, **groups: dict[str, str]) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = []
        for group, entries in groups.items():
            lines.append(f"[pfedmma.{group}]")
            lines += [f"{name} = {place}" for name, place in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (tmp_path / f"{package}_module.py").write_text(MODULE)
        for cached in caches:
            cached.cache_clear()

    for cached in caches:
        cached.cache_clear()
    yield make
    for cached in caches:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.endswith("_module")]:
        if name.startswith("plug"):
            del sys.modules[name]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_package_adds_one_of_each(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        "plug",
        methods={"good": "plug_module:Good"},
        datasets={"few": "plug_module:few"},
        aggregators={"even": "plug_module:RULE"},
    )
    assert get_method("good").name == "good"
    assert get_aggregator("even") == Mean("uniform")
    assert load_dataset("few").class_names == ("black",)
    methods = as_json(capsys, *"methods --backbone pfedmma-tiny".split())
    assert [m["name"] for m in methods["methods"]] == [*METHODS, "good"]
    assert {m["name"]: m["package"] for m in methods["methods"]}["good"] == "plug 1.0"
    assert methods["problems"] == []
    assert as_json(capsys, "data", "list")["plugins"] == [{"name": "few", "package": "plug 1.0"}]
    assert as_json(capsys, "data", "info", "few")["images"] == 1


def test_broken_ones_are_named_and_the_others_work(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plug", methods={"good": "plug_module:Good"})
    install(
        "plugb",
        methods={
            "gone": "plugb_nowhere:Good",
            "absent": "plugb_module:Absent",
            "other": "plugb_module:Good",
            "rule": "plugb_module:RULE",
            "good": "plugb_module:Good",
            "tap": "plugb_module:Good",
            "unbuildable": "plugb_module:Unbuildable",
        },
        aggregators={"even": "plugb_module:Good"},
        datasets={"odd": "plugb_module:nothing", "rule": "plugb_module:RULE"},
    )
    end = ": update that package, or remove it with `pip uninstall plugb`."
    start = "'{}' of plugb 1.0 (pfedmma.methods) is left out, "
    expected = {
        "absent": "AttributeError: module 'plugb_module' has no attribute 'Absent'",
        "gone": "ModuleNotFoundError: No module named 'plugb_nowhere'",
        "good": "plug 1.0 adds one of that name too",
        "other": "its class says that its name is 'good'",
        "rule": "it should be a subclass of Method, found Mean(weighting='uniform')",
        "tap": "the name is taken",
        "unbuildable": "RuntimeError: no such layer",
    }
    sentences = [start.format(name) + reason + end for name, reason in expected.items()]
    assert run(["methods", "--backbone", "pfedmma-tiny"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^good .*pFedMMA, arXiv 2507.05394", printed.out, re.MULTILINE)
    assert "good is of plug 1.0" in printed.err
    for sentence in sentences:
        assert f"warning: {sentence}\n" in printed.err
    assert get_method("good").__module__ == "plug_module"
    assert get_method("tap") is METHODS["tap"]
    with pytest.raises(UsageError, match=re.escape(sentences[1])):
        get_method("gone")
    with pytest.raises(UsageError, match="it should be an instance of Aggregator, found"):
        get_aggregator("even")
    with pytest.raises(UsageError, match="it should be a function that returns a Dataset, found"):
        load_dataset("rule")
    with pytest.raises(DataError, match=r"'odd' of plugb 1\.0 should be a Dataset, found int"):
        load_dataset("odd")
    (problem,) = as_json(capsys, "data", "list")["problems"]
    assert problem.startswith("'rule' of plugb 1.0 (pfedmma.datasets) is left out, ")


def test_unknown_names_are_refused_with_those_of_packages(install: Install) -> None:
    install("plug", methods={"good": "plug_module:Good"}, aggregators={"even": "plug_module:RULE"})
    with pytest.raises(UsageError, match=r"no method is called 'goof'; did you mean 'good'\?"):
        get_method("goof")
    with pytest.raises(UsageError, match="norm-clip, even, not 'evens'; did you mean 'even'"):
        get_aggregator("evens")


def test_a_program_registers_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedmma_deploy.methods.registry.METHODS", dict(METHODS))

    def cell() -> type[PFedMMA]:
        @register_method
        class Own(PFedMMA):
            name = "own"

        return Own

    first = cell()
    assert get_method("own") is first
    # As when the cell of a notebook is run again.
    again = cell()
    assert again is not first and get_method("own") is again


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="a method is called 'tap' already: give this one another"):
        register_method(type("Mine", (PFedMMA,), {"name": "tap"}))
    wrong: Any = register_method
    with pytest.raises(UsageError, match="it should be a subclass of Method, found 3"):
        wrong(3)
    nameless: Any = type("Nameless", (PFedMMA,), {"name": None})
    with pytest.raises(UsageError, match="its class Nameless has no text 'name'"):
        register_method(nameless)


def test_the_page_about_methods_shows_the_template() -> None:
    code = (TEMPLATE / "src" / "pfedmma_example" / "method.py").read_text("utf-8")
    assert f"```python\n{code}```" in (ROOT / "docs" / "add-a-method.md").read_text("utf-8")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template's source, and what pip installs from it."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, folder / "source")
    options = (
        "--quiet --no-deps --no-index --no-build-isolation --disable-pip-version-check".split()
    )
    target = folder / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, folder / "source"],
        check=True,
        capture_output=True,
    )
    return folder


def call(template: Path, *arguments: str) -> str:
    """What python prints where the template is installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(template / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(template: Path, line: str) -> Any:
    """What a command prints there."""
    start = "from pfedmma_deploy.cli import main; main()"
    return json.loads(call(template, "-c", start, *line.split(), "--json"))


def test_what_the_template_adds_is_listed(template: Path) -> None:
    *_, last = command(template, "methods --backbone pfedmma-tiny")["methods"]
    assert (last["name"], last["package"]) == ("fedgain", "pfedmma-example 0.1.0")
    added = {"name": "shades", "package": "pfedmma-example 0.1.0"}
    assert command(template, "data list")["plugins"] == [added]
    assert command(template, "data info shades")["clients"].keys() == {"north", "south"}


@pytest.mark.slow
def test_the_template_does_what_its_readme_says(template: Path) -> None:
    readme = (TEMPLATE / "README.md").read_text("utf-8")
    (line,) = re.findall(r"pfedmma (train .*)", readme)
    assert command(template, f"{line} --rounds 1 --shots 2")["run"] == "runs/shades"
    exported = command(template, "export")
    assert exported["clients"] == ["zero-shot", "0", "1"]
    assert exported["parity"]["max_abs_error"] < 1e-5
    compared = command(
        template,
        "compare --data shades --backbone pfedmma-tiny --clients 2 --shots 2 --rounds 1"
        " --methods fedgain,zero-shot --seeds 0",
    )
    assert "fedgain" in json.dumps(compared)
    assert "3 passed" in call(template, "-m", "pytest", "-q", "source/tests")
