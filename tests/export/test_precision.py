"""fp16, int8 and halved weights: signature and banks stay, and a worse model is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export import models
from pfedmma_deploy.export.bundle import ExportReport
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.models import reduced_model
from pfedmma_deploy.export.quality import Evaluation, Quality, _rows_of
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.manifest import ClientInfo
from tests.export.sample import export_sample, images

pytest_plugins = ["tests.export.fixtures"]

Reuse = Callable[[pytest.MonkeyPatch], None]
FLOAT, HALF, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8


def evaluation(count: int = 12) -> Evaluation:
    """Random images with labels 0, 1, 2, 3, 0, ...: two base and two novel classes."""
    labels = np.arange(count) % 4
    rows = np.arange(count)
    base, novel = rows[labels < 2], rows[labels >= 2]
    return Evaluation(images(count, seed=5), labels, base, novel, {"north": base[labels[base] < 1]})


@pytest.fixture(scope="module", params=["fp16", "int8", "stored"])
def reduced(
    request: pytest.FixtureRequest, reuse: Reuse, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ExportReport]:
    """The sample in reduced precision, whatever it loses."""
    config = {
        "fp16": ExportConfig("ort", precision="fp16", max_accuracy_drop=100),
        "int8": ExportConfig("ort", precision="int8", weights="fp16", max_accuracy_drop=100),
        "stored": ExportConfig("ort", weights="fp16", max_accuracy_drop=100),
    }[request.param]
    with pytest.MonkeyPatch.context() as patch:
        reuse(patch)
        report = export_sample(
            tmp_path_factory.mktemp("exports") / request.param,
            classifier=True,
            config=config,
            evaluation=evaluation(),
        )
    return request.param, report


def test_input_and_output_stay(reduced: tuple[str, ExportReport], bundle: Path) -> None:
    _, report = reduced
    for name in ("vision_model.onnx", "text_model.onnx", "classifier.onnx"):
        sides = []
        for folder in (report.bundle, bundle):
            session = onnxruntime.InferenceSession(
                str(folder / name), providers=["CPUExecutionProvider"]
            )
            nodes = [*session.get_inputs(), *session.get_outputs()]
            sides.append([(node.name, node.type, node.shape) for node in nodes])
        assert sides[0] == sides[1]
        onnx.checker.check_model(str(report.bundle / name), full_check=True)


def test_banks_keep_their_names(reduced: tuple[str, ExportReport], bundle: Path) -> None:
    _, report = reduced

    def banks(folder: Path) -> dict[str, list[int]]:
        entries = onnx.load(folder / "vision_model.onnx").graph.initializer
        return {entry.name: list(entry.dims) for entry in entries if ".adapter." in entry.name}

    assert banks(report.bundle) == banks(bundle)
    assert len(banks(bundle)) == 12


def test_what_became_smaller(reduced: tuple[str, ExportReport], bundle: Path) -> None:
    kind, report = reduced
    weights = onnx.load(report.bundle / "vision_model.onnx").graph.initializer
    kinds = {entry.name: entry.data_type for entry in weights}
    assert kinds["pixel_mean"] == kinds["pixel_std"] == FLOAT
    assert kinds["patches.weight"] == kinds["projection"] == HALF
    assert (INT8 in kinds.values()) == (kind == "int8")
    assert kinds["blocks.0.ln_1.weight"] == (HALF if kind == "fp16" else FLOAT)
    before = (bundle / "text_model.onnx").stat().st_size
    assert report.files["text_model.onnx"] < 0.52 * before


def test_int8_runs_fused(reduced: tuple[str, ExportReport]) -> None:
    kind, report = reduced
    nodes = onnx.load(report.bundle / "text_model.onnx").graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["QAttention"] == (3 if kind == "int8" else 0)
    # Of each block: attention's output, up and down.
    assert counts["MatMulInteger"] == (9 if kind == "int8" else 0)


def test_the_report(reduced: tuple[str, ExportReport]) -> None:
    kind, report = reduced
    raw = json.loads((report.bundle / "manifest.json").read_text())
    assert (raw["precision"], raw["weights"]) == ("fp32" if kind == "stored" else kind, "fp16")
    assert raw["quality"] == report.to_dict()["quality"]
    quality = report.quality
    assert quality is not None
    # Zero-shot and two clients: 6 base and 6 novel images each.
    assert quality.images == 36
    exact = {"fp16": 1e-4, "int8": 2e-2, "stored": 1e-5}[kind]
    assert 1 - exact < quality.least_cosine <= quality.mean_cosine < 1 + 1e-6
    assert 1 - 2 * exact < quality.least_text_cosine
    assert 0 < quality.max_logit_difference < 100 * exact**0.5
    assert 0 < report.parity.max_abs_error < 0.1
    assert set(quality.before) == {"zero_shot_base", "zero_shot_novel", "local", "base", "novel"}
    assert "Judged on 36 images" in (report.bundle / "README.md").read_text()
    Bundle.open(report.bundle).verify()


def test_exact_text_features_stay(reduced: tuple[str, ExportReport], bundle: Path) -> None:
    _, report = reduced
    left, right = Bundle.open(report.bundle).text_embeds(), Bundle.open(bundle).text_embeds()
    assert np.array_equal(left, right)


def test_it_needs_images_to_judge_on(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="judged on labelled images before they are written"):
        export_sample(tmp_path / "out", config=ExportConfig(precision="int8"))


def test_a_worse_model_is_refused_with_the_figures(
    tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)

    def ruined(model: onnx.ModelProto, config: ExportConfig) -> onnx.ModelProto:
        for entry in model.graph.initializer:
            if entry.name == "patches.weight":
                values = np.random.default_rng(2).normal(size=list(entry.dims))
                entry.CopyFrom(onnx.numpy_helper.from_array(values.astype("f4"), entry.name))
        return reduced_model(model, config)

    monkeypatch.setattr(models, "reduced_model", ruined)
    data = evaluation()
    with pytest.raises(
        ExportError,
        match=r"loses [\d.]+ points of accuracy \(accepted -?0\.5\): zero_shot_base 100\.0 -> "
        r"[\d.]+ %.*least cosine .*Nothing was written: export with --precision fp32",
    ):
        export_sample(
            tmp_path / "out",
            config=ExportConfig(weights="fp16"),
            evaluation=_answered(data, tmp_path),
        )
    assert not (tmp_path / "out").exists()


def _answered(data: Evaluation, folder: Path) -> Evaluation:
    """The images with the labels that zero-shot CLIP gives them, so that it is always right."""
    from tests.export.sample import CLASS_NAMES, PROMPT, shared_backbone

    backbone = shared_backbone()
    names = [PROMPT.replace("{}", name.replace("_", " ")) for name in CLASS_NAMES]
    text = backbone.encode_text(backbone.tokenize(names)).numpy()
    import torch

    scores = backbone.encode_image(torch.from_numpy(data.pixels)).numpy() @ text.T
    labels = np.concatenate([scores[:6, :2].argmax(1), 2 + scores[6:, 2:].argmax(1)])
    rows = np.arange(len(labels))
    return Evaluation(data.pixels, labels, rows[:6], rows[6:], {})


def figures(**changes: float | None) -> dict[str, float | None]:
    return {"zero_shot_base": 80.0, "zero_shot_novel": None, "local": 90.0, **changes}


def test_the_bound_by_hand() -> None:
    quality = Quality("cpu", 10, 1.0, 1.0, 1.0, 0.1, 99.0, figures(), figures(local=89.4))
    assert quality.accuracy_drop == pytest.approx(0.6)
    quality.require(0.6 + 1e-9)
    with pytest.raises(ExportError, match=r"loses 0\.60 points .*local 90\.0 -> 89\.4 %"):
        quality.require(0.5)
    gained = Quality(
        "cpu", 10, 1.0, 1.0, 1.0, 0.1, 99.0, figures(), figures(zero_shot_base=81.0, local=92.0)
    )
    assert gained.accuracy_drop == -1.0
    gained.require(0)


def test_nan_is_refused() -> None:
    nan = float("nan")
    quality = Quality("cpu", 10, nan, nan, 1.0, nan, 99.0, figures(), figures())
    with pytest.raises(ExportError, match="least cosine nan"):
        quality.require(0.5)


def test_every_client_is_judged_and_zero_shot_on_most() -> None:
    """3,000 images and 4 clients: zero-shot has 1,024 of each kind, a client its quarter."""
    rows = np.arange(3000)
    data = Evaluation(images(1), rows % 4, rows[:1500], rows[1500:], {"a": rows[:700]})
    zero_shot = _rows_of(data, ClientInfo(0, "zero-shot", ()), 5)
    assert {name: len(part) for name, part in zero_shot.items()} == {"base": 1024, "novel": 1024}
    own = _rows_of(data, ClientInfo(2, "a", ()), 5)
    assert {name: len(part) for name, part in own.items()} == dict.fromkeys(own, 256)
    assert set(own) == {"base", "novel", "local"} and own["novel"].min() >= 1500
    # Not one stretch of images that are ordered by class.
    assert own["base"].max() - own["base"].min() > 1000
    assert set(_rows_of(data, ClientInfo(4, "b", ()), 5)) == {"base", "novel"}
