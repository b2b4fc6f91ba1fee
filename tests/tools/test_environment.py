"""The shared environment is whole or is made anew, however its making ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tools import environment
from tools.environment import SetupError, ensure_shared, environment_key, locked, shared_path

KEY = "0123456789ab"


def install(folder: Path) -> None:
    """Stands for an installation: an interpreter that starts."""
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)


def test_the_key_follows_the_dependencies(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("torch==1\n")
    pyproject = tmp_path / "pyproject.toml"
    text = (
        '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "x"\n'
        'dependencies = ["torch"]\n'
        'description = "one"\n[project.optional-dependencies]\ndev = ["pytest"]\n'
    )
    pyproject.write_text(text)
    first = environment_key(tmp_path)
    pyproject.write_text(text.replace("one", "other"))
    assert environment_key(tmp_path) == first
    pyproject.write_text(text.replace("pytest", "pytest>9"))
    assert environment_key(tmp_path) != first
    pyproject.write_text(text)
    (tmp_path / "constraints.txt").write_text("torch==2\n")
    assert environment_key(tmp_path) != first


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDMMA_ENV", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shared_path(KEY) == tmp_path / "pfedmma" / f"env-{KEY}"
    monkeypatch.setenv("PFEDMMA_ENV", str(tmp_path / "mine"))
    assert shared_path(KEY) == tmp_path / "mine"


def test_a_half_built_one_is_made_anew(tmp_path: Path) -> None:
    shared = tmp_path / "env"

    def stopped(folder: Path) -> None:
        install(folder)
        (folder / "half").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_shared(shared, KEY, stopped)
    ensure_shared(shared, KEY, install)
    assert not (shared / "half").exists()
    ensure_shared(shared, KEY, lambda _: pytest.fail("it was whole already"))


def test_one_made_by_hand_is_taken_as_it_is(tmp_path: Path) -> None:
    install(tmp_path)
    ensure_shared(tmp_path, KEY, lambda _: pytest.fail("not ours to fill"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SetupError, match="holds files but no environment"):
        ensure_shared(tmp_path, KEY, install)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_environment_for_other_versions_is_used_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_shared(tmp_path, "ba9876543210", install)
    ensure_shared(tmp_path, KEY, lambda _: pytest.fail("not asked for"))
    assert "was made for other versions" in capsys.readouterr().err


def test_two_at_once_install_once(tmp_path: Path) -> None:
    installed = []

    def slow(folder: Path) -> None:
        time.sleep(0.2)
        install(folder)
        installed.append(folder)

    def prepare() -> None:
        with locked(tmp_path / "env.lock"):
            ensure_shared(tmp_path / "env", KEY, slow)

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installed) == 1


def test_too_little_space_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "NEEDED_BYTES", 10**18)
    with pytest.raises(SetupError, match=r"needs about 1000000000 GB, .* GB are free; make room"):
        environment.install_dependencies(tmp_path)
