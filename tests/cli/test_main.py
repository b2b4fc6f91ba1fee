"""Every command explains itself; mistakes end in one sentence and the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfedmma_deploy import __version__
from pfedmma_deploy.cli.main import run

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "quickstart",
    "train",
    "personalize",
    "evaluate",
    "report",
    "compare",
    "export",
    "predict",
    "replay",
    "monitor",
    "embed",
    "search",
    "dedupe",
    "serve",
    "key",
    "inspect",
    "doctor",
    "bench",
    "demo",
    "methods",
]

GROUPS = {
    "fleet": ["new", "add", "remove", "serve", "join", "status", "accept", "rehearse"],
    "data": ["list", "info", "fetch", "check", "partition"],
    "bundle": ["add", "remove", "list"],
    "cache": ["info", "clear"],
}
"""Commands of commands; `pfedmma data --help` shows at least these, and so on."""
IN_GROUPS = [f"{group} {command}" for group, commands in GROUPS.items() for command in commands]


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == [*COMMANDS, *GROUPS]
    files = {path.stem for path in (ROOT / "cli").glob("*.py")}
    assert set(COMMANDS) <= files


@pytest.mark.parametrize("command", [*COMMANDS, *IN_GROUPS])
def test_each_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Examples:\n    pfedmma {command}" in text
    for option in ("--json", "--quiet", "--verbose"):
        assert option in text


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS])
def test_each_command_is_in_the_readme(command: str) -> None:
    assert f"pfedmma {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("torch", "pip install 'pfedmma-deploy[train]'"),
        ("gradio.blocks", "pip install 'pfedmma-deploy[demo]'"),
        ("ray", "pip install 'pfedmma-deploy[ray]'"),
        ("onnxruntime", "pip install 'pfedmma-deploy[cpu]', or [gpu] for NVIDIA GPUs"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    missing: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("pfedmma_deploy.cli.main.app", lacking)
    assert run(["demo"]) == 1
    module = missing.partition(".")[0]
    expected = f"Error: this needs {module}, which is not installed: {advice}\n"
    assert capsys.readouterr().err == expected


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"pfedmma-deploy {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("trian", 2, "No such command 'trian'. Did you mean 'train'?"),
        ("train --sede 3", 2, "--sede"),
        ("train --rounds many", 2, "Invalid value for '--rounds'"),
        ("train", 2, "Error: no data given: name one with --data, for example cifar10-sample"),
        ("train --data x", 2, "Error: no backbone given: name one with --backbone"),
        ("train --preset papper", 2, "not 'papper'; did you mean 'paper'?"),
        ("train --data x --backbone y --rounds 0", 2, "rounds must be a whole number of 1 or more"),
        ("train --config no.toml", 2, "Error: configuration file no.toml: No such file"),
        ("train --resume", 1, "Error: There is no run under"),
        ("personalize", 2, "Missing option '--client'"),
        ("personalize --client 0", 1, "`pfedmma quickstart` makes one"),
        ("evaluate", 1, "Error: There is no run under"),
        ("report", 1, "Error: There is no run under"),
        ("report nothing", 1, "Error: nothing holds no run (no manifest.json)"),
        ("evaluate --data x", 2, "needs --data and --backbone: --backbone is missing"),
        ("evaluate --backbone x", 2, "needs --data and --backbone: --data is missing"),
        ("evaluate --run r --data x --backbone y", 2, "--run and --data exclude each other"),
        ("evaluate --run r", 1, "Error: r holds no run (no manifest.json)"),
        ("export", 1, "Error: There is no run under"),
        ("export --all --client 3", 2, "Error: --all and --client exclude each other"),
        ("export --client ,", 2, "Error: --client ',' names no client: give ids such as 3 or 3,4"),
        ("export --add-client runs/a/clients/1 --to b", 2, "`pfedmma bundle add CLIENT_DIR --to"),
        ("export --remove-client 1 --to b", 2, "`pfedmma bundle remove ID --from BUNDLE`"),
        ("bundle add runs/a/clients/1", 2, "Missing option '--to'"),
        ("bundle add c --to b", 1, "Error: b is no folder"),
        ("bundle remove 1 --from b", 1, "Error: b is no folder"),
        ("bundle list", 1, "make one with `pfedmma export`"),
        ("predict", 2, "Missing argument 'IMAGES...'"),
        ("predict a.jpg", 1, "make one with `pfedmma export`"),
        ("predict a.jpg --model m", 1, "Error: m is no folder"),
        ("inspect", 1, "Error: There is no run under"),
        ("inspect nothing", 1, "Error: nothing holds neither a run nor a bundle"),
    ],
)
def test_mistakes(
    arguments: str,
    code: int,
    message: str,
    in_empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(arguments.split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(in_empty_folder.iterdir()) == []


def test_an_empty_client_is_no_client(
    in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "--client", ""]) == 2
    assert capsys.readouterr().err == (
        "Error: --client '' names no client: give ids such as 3 or 3,4, or leave it out\n"
    )


def test_verbose_shows_where(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--verbose"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "Error: There is no run under" in printed


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "runs/x"), 1, "Error: runs/x: No space left"),
        (ValueError("odd"), 1, "Error: ValueError: odd. This is a defect of pfedmma"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_is_nobodys_mistake(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr("pfedmma_deploy.cli.inspect._kind", fail)
    assert run(["inspect", "here"]) == code
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err


def test_ctrl_c_while_training_says_how_to_go_on(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pfedmma_deploy.federated.train.train", stop)
    assert run(["train", "--preset", "quickstart", "--out", "runs/x"]) == 130
    assert "Continue with: pfedmma train --resume --out runs/x\n" in capsys.readouterr().err


HEAVY = {
    "gradio", "matplotlib", "numpy", "onnx", "onnxruntime", "open_clip", "pandas", "PIL", "timm",
    "torch", "torchvision", "transformers", "rich",
}  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import pfedmma_deploy",
        "import pfedmma_deploy.cli.main as m; assert m.run(['--help']) == 0",
        "import pfedmma_deploy.cli.main as m; assert m.run(['train', '--help']) == 0",
        "import pfedmma_deploy.cli.main as m; assert m.run(['train', '--data', 'x']) == 2",
    ],
)
def test_what_is_quick_loads_nothing_heavy(code: str) -> None:
    code += "; import sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "LOADED" in loaded and not loaded & HEAVY


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable!r} -m pfedmma_deploy.cli train --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Usage: pfedmma train")
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
