"""The fused flavour: what is fused, that nothing is lost, and what happens when a fusion fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from pfedmma_deploy.errors import ExportError, UsageError
from pfedmma_deploy.export.bundle import ExportReport
from pfedmma_deploy.export.export_config import ExportConfig, default_flavour
from pfedmma_deploy.export.fusion import TowerShape, fuse, fused_counts, require_fused
from pfedmma_deploy.runtime.providers import model_inputs
from tests.export.sample import export_sample, images, random_client, tiny_backbone

pytest_plugins = ["tests.export.fixtures"]

IMAGE = TowerShape(depth=3, width=64, heads=2, quick_gelu=False, is_causal=False, banks=12)
TEXT = TowerShape(depth=3, width=48, heads=2, quick_gelu=False, is_causal=True, banks=12)
TOWERS = pytest.mark.parametrize(
    ("name", "shape"), [("vision_model.onnx", IMAGE), ("text_model.onnx", TEXT)]
)


def run(file: Path, items: NDArray[Any]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    strengths = np.linspace(0, 1.5, len(items), dtype=np.float32)
    feed = model_inputs(session, items, np.arange(len(items)) % 3, strengths)
    found: NDArray[np.float32] = session.run(None, feed)[0]
    return found


@TOWERS
def test_counts_by_hand(bundle: Path, name: str, shape: TowerShape) -> None:
    """Three blocks: an Attention and a BiasGelu each, and all norms but the first and the last.

    The image tower's last block answers for the class token alone: no self-attention to fuse.
    """
    counts = fused_counts(onnx.load(bundle / name))
    assert counts["Attention"] == (3 if shape.is_causal else 2)
    assert counts["BiasGelu"] == 3
    assert counts["SkipLayerNormalization"] == 5
    assert counts["banks"] == 2 * 6
    assert counts.get("Softmax", 0) == (0 if shape.is_causal else 1) and "Gelu" not in counts


@TOWERS
def test_both_flavours_agree(
    portable: ExportReport, bundle: Path, name: str, shape: TowerShape
) -> None:
    items = images(6)
    if shape.is_causal:
        items = np.random.default_rng(1).integers(1, 49408, (6, 77))  # type: ignore[assignment]
    plain, fused = run(portable.bundle / name, items), run(bundle / name, items)
    np.testing.assert_allclose(fused, plain, atol=2e-6)


def test_portable_uses_standard_operators_only(portable: ExportReport, bundle: Path) -> None:
    for name in ("vision_model.onnx", "text_model.onnx", "classifier.onnx"):
        model = onnx.load(portable.bundle / name)
        assert {opset.domain for opset in model.opset_import} == {""}
        assert {node.domain for node in model.graph.node} == {""}
        fused = onnx.load(bundle / name)
        assert {opset.domain for opset in fused.opset_import} == {"", "com.microsoft"}
    assert onnx.load(portable.bundle / "text_model.onnx").producer_name == "pytorch"


def test_causal_by_attribute(bundle: Path) -> None:
    for name, causal in (("text_model.onnx", 1), ("vision_model.onnx", 0)):
        for node in onnx.load(bundle / name).graph.node:
            if node.op_type == "Attention":
                values = {entry.name: entry.i for entry in node.attribute}
                assert values.get("unidirectional", 0) == causal


def test_a_missing_fusion_is_named() -> None:
    found = {"Attention": 1, "SkipLayerNormalization": 5, "BiasGelu": 3, "banks": 12}
    with pytest.raises(
        ExportError, match=r"expected \{'Attention': 2, .*found \{'Attention': 1, .*portable"
    ):
        require_fused(found, IMAGE)
    with pytest.raises(ExportError, match=r"'banks': 12\}, found .*'banks': 11\}"):
        require_fused({**found, "Attention": 2, "banks": 11}, IMAGE)
    require_fused({**found, "Attention": 2}, IMAGE)


def test_wrong_shapes_are_noticed(portable: ExportReport) -> None:
    with pytest.raises(ExportError, match="'QuickGelu': 3"):
        fuse(onnx.load(portable.bundle / "vision_model.onnx"), replace(IMAGE, quick_gelu=True))
    with pytest.raises(ExportError, match="adds 3 causal masks, expected one in each of 4"):
        fuse(onnx.load(portable.bundle / "text_model.onnx"), replace(TEXT, depth=4))


def test_another_mask_is_refused(portable: ExportReport) -> None:
    model = onnx.load(portable.bundle / "text_model.onnx")
    (mask,) = (entry for entry in model.graph.initializer if entry.name == "mask")
    mask.CopyFrom(onnx.numpy_helper.from_array(np.zeros((77, 77), np.float32), "mask"))
    with pytest.raises(ExportError, match="mask is not causal: export with --flavour portable"):
        fuse(model, TEXT)


@pytest.mark.parametrize(
    "options",
    [{"quick_gelu": True}, {"ls_init_value": 0.3, "no_ln_pre": True}],
    ids=["quick_gelu", "layer_scale_without_ln_pre"],
)
def test_other_backbones_fuse_too(tmp_path: Path, options: dict[str, Any]) -> None:
    backbone = tiny_backbone(layers=2, **options)
    clients = [random_client("a", 3, layers=2)]
    report = export_sample(tmp_path / "out", backbone, clients=clients, config=ExportConfig("ort"))
    assert report.parity.max_abs_error < 1e-5
    counts = fused_counts(onnx.load(report.bundle / "vision_model.onnx"))
    assert counts["Attention"] == 1 and counts["banks"] == 2 * 6


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(UsageError, match="flavour must be one of ort, portable, not 'tflite'"):
        ExportConfig(flavour="tflite")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="precision must be one of fp32, fp16, int8, not 'fp8'"):
        ExportConfig(precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="between 0 and 100 points, not -1"):
        ExportConfig(max_accuracy_drop=-1)


def test_default_flavours() -> None:
    assert [default_flavour(p) for p in ("fp32", "fp16", "int8")] == ["portable", "ort", "portable"]
