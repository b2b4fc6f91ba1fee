"""`pfedmma doctor`: one screen, one JSON object, and the exit code."""

from __future__ import annotations

import json

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.report import doctor
from pfedmma_deploy.report.doctor import Check

FINE = Check("python", True, "3.12")
CLASH = Check("onnxruntime packages", False, "both", "pip uninstall -y both")
NO_GPU = Check("driver", True, "no NVIDIA driver", absent=True)
NO_CUDA = Check("CUDAExecutionProvider", False, "does not load", "install it", stops=True)


def found(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def diagnose(device: str, **_: object) -> doctor.Diagnosis:
        return doctor.Diagnosis(device, checks)

    monkeypatch.setattr(doctor, "diagnose", diagnose)


def test_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, FINE, NO_GPU)
    assert run(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "    Check   Found\n"
        "ok  python  3.12\n"
        "    driver  no NVIDIA driver\n"
        "All is well for --device auto.\n"
    )


def test_problems_have_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, FINE, CLASH)
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "warn  onnxruntime packages  both\n" in printed
    assert "\nonnxruntime packages: pip uninstall -y both\n" in printed
    assert "Works with --device auto; see above for what does not." in printed


def test_what_was_asked_for_and_cannot_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, FINE, NO_CUDA)
    assert run(["doctor", "--device", "cuda", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["device"], answer["works"]) == ("cuda", False)
    assert answer["checks"][1] == {
        "name": "CUDAExecutionProvider",
        "ok": False,
        "found": "does not load",
        "advice": "install it",
    }
    assert run(["doctor", "--device", "cuda"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  CUDAExecutionProvider  does not load" in printed
    assert "What --device cuda needs cannot work yet." in printed


def test_unknown_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "tpu"]) == 2
    assert "'tpu' is not one of" in capsys.readouterr().err
