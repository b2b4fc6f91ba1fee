"""Real processes: imports that crash or hang, and the tiny model on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pfedmma_deploy.report.doctor_probe import MODEL, Probe, run_model


def test_the_tiny_model_is_what_its_comment_says() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("MatMul", ["c", "m"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2, 2])],
        [
            numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.ones((2, 2), np.float32), "m"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    assert onnx.load_from_string(MODEL) == helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    )


def test_the_cpu_runs_it() -> None:
    answer = Probe("run", "CPUExecutionProvider").finish()
    assert answer.returncode == 0, answer.stderr
    assert answer.lines == ({"provider": "CPUExecutionProvider", "largest_error": 0.0},)


def test_a_provider_that_is_not_there() -> None:
    found = run_model("NoSuchExecutionProvider")
    assert found["provider"] is None and "NoSuchExecutionProvider" in found["error"]


def test_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fine.py").write_text("print('hello'); __version__ = '1'")
    (tmp_path / "broken.py").write_text("raise RuntimeError('operator torchvision::nms')")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit('no')")
    (tmp_path / "crash.py").write_text("import os; os.write(2, b'gone'); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = Probe("import", "fine", "broken", "leaves", "absent", "crash", "fine").finish()
    fine, broken, leaves, absent = answer.lines
    assert (fine["module"], fine["version"]) == ("fine", "1")
    assert broken["error"] == "RuntimeError: operator torchvision::nms"
    assert leaves["error"] == "SystemExit: no"
    assert absent["error"] == "ModuleNotFoundError: No module named 'absent'"
    assert answer.returncode == 3 and answer.stderr.endswith("gone")


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = Probe("import", "hangs").finish(timeout=0.2)
    assert answer.returncode is None and answer.lines == ()


def test_the_current_folder_does_not_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchy.py").write_text("")
    monkeypatch.chdir(tmp_path)
    (line,) = Probe("import", "torchy").finish().lines
    assert "No module named 'torchy'" in line["error"]
