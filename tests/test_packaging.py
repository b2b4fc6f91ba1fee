"""What the wheel holds: one top-level name, every module, the assets."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from pfedmma_deploy.cli.main import EXTRA_OF
from tools.environment import extra, requirements

ROOT = Path(__file__).parents[1]
PLACES = {
    "pfedmma_deploy": ROOT / "pfedmma_deploy",
    "pfedmma_deploy/cli": ROOT / "cli",
    "pfedmma_deploy/demo": ROOT / "demo",
}


def sources() -> set[str]:
    """Paths inside a wheel of every source file."""
    return {
        f"{target}/{path.relative_to(folder).as_posix()}"
        for target, folder in PLACES.items()
        for path in folder.rglob("*.py")
    }


def assets() -> set[str]:
    folder = ROOT / "pfedmma_deploy" / "assets"
    return {
        f"pfedmma_deploy/assets/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_folder_with_modules_is_a_package() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == {path.rpartition("/")[0].replace("/", ".") for path in sources()}


def test_constraints_pin_every_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    names = [pin[0] for pin in pins]
    assert len(set(names)) == len(names)
    for requirement in requirements(ROOT):
        name = requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-")
        assert name in names


def test_everything_named_at_first_is_still_named() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = " ".join([*pyproject["dependencies"], *extra(pyproject, "all")])
    for package in ("torch", "open_clip_torch", "onnx", "onnxruntime-gpu", "typer", "gradio"):
        assert f"{package}>" in named or f"{package}[" in named


def test_every_optional_package_has_its_extra_in_the_message() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = {"open_clip_torch": "open_clip", "dp-accounting": "dp_accounting"}
    for name in ("train", "demo", "data", "fleet"):
        for requirement in pyproject["optional-dependencies"][name]:
            package = requirement.partition(">")[0]
            if not package.startswith("pfedmma-deploy["):
                assert packages.get(package, package) in EXTRA_OF


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return folder


def test_wheel_from_sdist(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"pfedmma_deploy"}
    assert inside == sources() | assets() | {"pfedmma_deploy/py.typed"}
    assert "License-Expression: Apache-2.0" in described
    assert any(name.endswith("licenses/LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "pfedmma = pfedmma_deploy.cli:main" in archive.read(entry_points).decode()
