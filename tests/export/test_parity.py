"""The comparison that stands between an export and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.parity import alternating, check_model, compare, cosines, sampled
from tests.export.sample import export_sample

pytest_plugins = ["tests.export.fixtures"]


def features() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two images and two clients with two classes, in two dimensions."""
    image = np.array([[1, 0], [0, 1]], np.float32)
    text = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32)
    return image, text


def test_figures_by_hand() -> None:
    image, text = features()
    moved = image.copy()
    moved[1, 0] += 5e-5
    parity = compare(moved, image, text, np.array([0, 1]), text_error=1e-6)
    assert parity.max_abs_error == pytest.approx(5e-5)
    assert (parity.top1_agreement, parity.images) == (100.0, 2)


def test_cosines_are_with_each_clients_own_texts() -> None:
    image, text = features()
    assert cosines(image, text, np.array([1, 0])).tolist() == [[0, 1], [0, 1]]


def test_text_differences_count_too() -> None:
    image, text = features()
    with pytest.raises(ExportError, match=r"largest difference 2\.00e-04 \(accepted 1e-04\)"):
        compare(image, image, text, np.array([0, 1]), text_error=2e-4)


def test_other_answers_are_refused_whatever_the_tolerance() -> None:
    image, text = features()
    with pytest.raises(ExportError, match=r"same class for 50\.0 % of 2 images"):
        compare(image[[0, 0]], image, text, np.array([0, 0]), 0.0, tolerance=9.0)


@pytest.mark.parametrize("place", ["image", "text"])
def test_nan_does_not_pass(place: str) -> None:
    image, text = features()
    broken, text_error = image.copy(), 0.0
    if place == "image":
        broken[0, 0] = np.nan
    else:
        text_error = float("nan")
    with pytest.raises(ExportError, match="largest difference nan"):
        compare(broken, image, text, np.array([0, 1]), text_error)


def test_every_client_is_sampled() -> None:
    assert sampled(3, 2).tolist() == [[0, 1, 2], [0, 1, 2]]
    # With more clients than the budget allows, each has one image and all images are used.
    many = sampled(4, 600)
    assert many.shape == (600, 1)
    assert set(many.ravel().tolist()) == {0, 1, 2, 3}


def test_every_strength_is_checked() -> None:
    """Four strengths in turn, each client starting with the next one."""
    assert alternating(2, 5).tolist() == [[1, 0.5, 0, 1.5, 1], [0.5, 0, 1.5, 1, 0.5]]
    assert set(alternating(600, 1).ravel().tolist()) == {0, 0.5, 1, 1.5}


def test_a_strength_that_does_nothing_is_noticed(
    tmp_path: Path, reuse: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)
    monkeypatch.setattr(Adapter, "at", lambda self, strength: self)
    with pytest.raises(ExportError, match="The exported model is not the trained one"):
        export_sample(tmp_path / "wrong")


def test_signature_and_structure(bundle: Path, tmp_path: Path) -> None:
    file = bundle / "vision_model.onnx"
    with pytest.raises(ExportError, match=r"vision_model\.onnx has the inputs .*expected \{'x'"):
        check_model(file, {"x": ("tensor(float)", [1])}, {})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"broken\.onnx is not a valid ONNX model"):
        check_model(broken, {}, {})
