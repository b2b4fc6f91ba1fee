"""Calibrated clients of a bundle: its files, `classifier.onnx`, the runtime's verdicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pfedmma_deploy.calibration import ClientCalibration, probabilities
from pfedmma_deploy.errors import BundleError, ExportError, UsageError
from pfedmma_deploy.export import newcomer
from pfedmma_deploy.export.bundle_clients import add_client, remove_client
from pfedmma_deploy.export.certainty import NOTHING_REJECTED, Calibrations
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.runtime import Bundle, Classifier
from pfedmma_deploy.runtime.certainty import PLAIN
from tests.export.calibrated import WORDS, Reuse, calibration, calibrations, expected
from tests.export.sample import (
    CLASS_NAMES,
    export_sample,
    images,
    random_client,
    shared_backbone,
)
from tests.export.test_bundle_clients import write_client
from tests.export.test_precision import evaluation

pytest_plugins = ["tests.export.fixtures"]


@pytest.fixture(scope="module")
def classifier(certain: Path) -> Classifier:
    return Classifier.load(certain, "cpu")


@pytest.fixture
def copy(certain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(certain, tmp_path / "copy")


def test_scores_and_thresholds(classifier: Classifier) -> None:
    known, median, logits = expected()
    found = classifier.predict(images(6), "north", top_k=9)
    threshold = calibration(median).calibration.threshold(0.95)
    assert threshold is not None
    for prediction, score, row in zip(found, known, logits, strict=True):
        assert prediction.verdict.known == pytest.approx(score, abs=1e-3)
        assert prediction.verdict.threshold == pytest.approx(threshold, abs=1e-3)
        # The temperature is 2, and changes no order.
        shares = probabilities(row[None] / 2)[0]
        assert [one.name for one in prediction.top] == [CLASS_NAMES[i] for i in np.argsort(-row)]
        assert prediction.top[0].probability == pytest.approx(shares.max(), abs=1e-4)


def test_the_share_to_accept_moves_the_threshold(classifier: Classifier) -> None:
    known, median, _ = expected()
    half = classifier.predict(images(6), "north", accept=0.5)
    # Half of the images lie above the median, whatever the deviation.
    assert [one.verdict.is_unknown for one in half] == (known < median).tolist()
    for one, is_strange in zip(half, known < median, strict=True):
        assert one.answer == ("unknown" if is_strange else one.top[0].name)
    everything = classifier.predict(images(6), "north", accept=1)
    assert [one.answer for one in everything] == [one.top[0].name for one in everything]
    assert {one.verdict.threshold for one in everything} == {None}


def test_a_client_without_calibration_answers_as_ever(classifier: Classifier) -> None:
    assert {one.verdict for one in classifier.predict(images(3), "0")} == {PLAIN}
    for option in ({"accept": 0.9}, {"coverage": 0.9}):
        message = (
            r"Client '0' of .*certain is not calibrated, so nothing is known of its certainty: "
            r"personalize it with validation images and export again, or leave out --accept and"
        )
        with pytest.raises(UsageError, match=message):
            classifier.predict(images(1), "0", **option)  # type: ignore[arg-type]


def test_typed_names_reject_nothing_unless_asked(classifier: Classifier) -> None:
    typed = ["a steam engine", "spoon"]
    (usual,) = classifier.predict(images(1), "north", typed)
    assert usual.verdict.threshold is None and not usual.verdict.is_unknown
    (asked,) = classifier.predict(images(1), "north", typed, accept=0.9)
    assert asked.verdict.threshold is not None
    # "spoon" is a class now and does not compete with itself: one rival fewer, a higher score.
    (other,) = classifier.predict(images(1), "north", ["a steam engine", "fork"], accept=0.9)
    assert asked.verdict.known != other.verdict.known
    with pytest.raises(UsageError, match="Sets of classes are fitted for the bundle's own class"):
        classifier.predict(images(1), "north", typed, coverage=0.9)


def test_negatives_compete(classifier: Classifier) -> None:
    image = images(1)
    features = classifier.embed_images(image, "north")
    text = classifier.embed_texts(["a photo of a cat.", "a photo of a mud."], "north")
    first, second = ("cat", "mud") if (text @ features[0]).argmax() == 0 else ("mud", "cat")
    (beaten,) = classifier.predict(image, "north", [second], negatives=[first])
    assert (beaten.answer, beaten.verdict.negative) == ("unknown", first)
    (kept,) = classifier.predict(image, "north", [first], negatives=[second])
    assert (kept.answer, kept.verdict.negative) == (first, None)
    # A client needs no calibration for them.
    assert classifier.predict(image, "0", ["cat"], negatives=["mud"])[0].answer in {
        "cat",
        "unknown",
    }
    with pytest.raises(UsageError, match="'Cat' is a class that is asked for and a negative name"):
        classifier.predict(image, "north", ["cat"], negatives=["Cat"])


def test_sets_of_classes(classifier: Classifier) -> None:
    """The stored probabilities are 0.1, 0.19, ...: at 80 % of ten the second lowest counts."""
    least = calibration(0).calibration.least_probability(0.8)
    assert least == pytest.approx(0.1 + 0.8 / 9)
    for prediction in classifier.predict(images(6), "north", top_k=9, coverage=0.8):
        wanted = [one.name for one in prediction.top if one.probability >= least]
        assert list(prediction.verdict.likely or ()) == (wanted or [prediction.top[0].name])
    # Ten images cannot promise 99 %.
    (unsure,) = classifier.predict(images(1), "north", coverage=0.99)
    assert len(unsure.verdict.likely or ()) == len(CLASS_NAMES)


@pytest.mark.parametrize("option", ["accept", "coverage"])
def test_shares_out_of_range(classifier: Classifier, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} should be above 0 and"):
        # Before anything is read.
        classifier.iter_predict(["missing.jpg"], "north", **{option: 1.5})  # type: ignore[arg-type]


def run_model(folder: Path, **more: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    feed = {
        "pixel_values": images(6),
        "client": np.array([1, 1, 1, 2, 0, 1]),
        "strength": np.ones(6, np.float32),
        **more,
    }
    found: list[Any] = session.run(None, feed)
    return found


def test_the_classifier_file_says_unknown(certain: Path, classifier: Classifier) -> None:
    session = onnxruntime.InferenceSession(certain / "classifier.onnx")
    assert [one.name for one in session.get_inputs()] == ["pixel_values", "client", "strength"]
    defaults = {one.name: one.shape for one in session.get_overridable_initializers()}
    assert defaults == {"temperature": [3], "threshold": [3]}
    logits, known, unknown = run_model(certain)
    clients: list[str | int] = ["north", "north", "north", "0", 0, "north"]
    for row, one in enumerate(classifier.predict(images(6), clients, top_k=9)):
        assert probabilities(logits[row : row + 1]).max() == pytest.approx(
            one.top[0].probability, abs=1e-4
        )
        assert unknown[row] == one.verdict.is_unknown
        if one.verdict.known is not None:
            assert known[row] == pytest.approx(one.verdict.known, abs=1e-3)


def test_its_defaults_can_be_replaced(certain: Path) -> None:
    plain, known, _ = run_model(certain)
    none = np.full(3, NOTHING_REJECTED, np.float32)
    warm = np.array([2, 1, 1], np.float32)
    logits, _, unknown = run_model(certain, threshold=none, temperature=warm)
    assert not unknown.any()
    np.testing.assert_allclose(logits[0], 2 * plain[0], rtol=1e-5)
    _, _, every = run_model(certain, threshold=np.full(3, known.max() + 1, np.float32))
    assert every.all()


@pytest.mark.parametrize("kind", ["ort", "fp16", "int8", "stored"])
def test_other_forms_of_the_classifier(
    kind: str, certain: Path, tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(monkeypatch)
    config = {
        "ort": ExportConfig("ort"),
        "fp16": ExportConfig("ort", precision="fp16", max_accuracy_drop=100),
        "int8": ExportConfig("ort", precision="int8", weights="fp16", max_accuracy_drop=100),
        "stored": ExportConfig("portable", weights="fp16", max_accuracy_drop=100),
    }[kind]
    out = tmp_path / kind
    export_sample(
        out,
        classifier=True,
        config=config,
        calibrations=calibrations(),
        evaluation=None if config.is_exact else evaluation(),
    )
    logits, known, _ = run_model(out)
    plain, before, _ = run_model(certain)
    tolerance = {"ort": 1e-3, "fp16": 0.3, "int8": 5.0, "stored": 0.3}[kind]
    np.testing.assert_allclose(logits, plain, atol=tolerance)
    np.testing.assert_allclose(known, before, atol=tolerance)
    again = run_model(out, threshold=np.full(3, 1e6, np.float32))
    assert again[2].all()


def test_clients_leave_and_join_with_their_calibration(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Classifier
) -> None:
    monkeypatch.setattr(newcomer, "backbone_shapes", lambda name: shared_backbone())
    remove_client(copy, "0")
    mine = calibration(1.5, temperature=4.0)
    folder = write_client(tmp_path / "new", random_client("south", 5), calibration=mine.to_dict())
    bundle = add_client(copy, folder)
    assert [one.calibration is None for one in bundle.manifest.clients] == [False] * 3
    assert bundle.manifest.clients[2].calibration == mine.calibration
    np.testing.assert_allclose(bundle.mean_embeds()[2], mine.mean, atol=1e-6)
    again = Classifier.load(copy, "cpu")
    before, after = (one.predict(images(2), "north") for one in (classifier, again))
    for left, right in zip(before, after, strict=True):
        assert right.verdict.known == pytest.approx(left.verdict.known, abs=1e-4)
    (one,) = again.predict(images(1), "south")
    _, known, unknown = run_model(copy, client=np.full(6, 2))
    assert known[0] == pytest.approx(one.verdict.known, abs=1e-3)
    assert unknown[0] == one.verdict.is_unknown
    # One that was never calibrated joins too.
    plain = write_client(tmp_path / "plain", random_client("east", 6))
    assert add_client(copy, plain).manifest.clients[3].calibration is None
    assert not run_model(copy, client=np.full(6, 3))[2].any()


def damage_mean(raw: dict[str, Any]) -> None:
    raw["clients"][1]["calibration"]["temperature"] = -1.0


def without_words(raw: dict[str, Any]) -> None:
    raw["general_words"] = []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [(damage_mean, "its temperature is -1"), (without_words, "no general words are there")],
)
def test_damaged_manifests(
    copy: Path, change: Callable[[dict[str, Any]], None], wrong: str
) -> None:
    raw = json.loads((copy / "manifest.json").read_text())
    change(raw)
    (copy / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(
        BundleError, match=f"calibration of client '.*' cannot be used, since {wrong}"
    ):
        Bundle.open(copy)


def test_the_mean_of_another_model(tmp_path: Path) -> None:
    found = calibrations()
    wrong = ClientCalibration(calibration(0).calibration, np.ones(3) / 3**0.5)
    with pytest.raises(ExportError, match="mean image has 3 numbers, the model's features"):
        Calibrations(WORDS, found.general, (None, wrong, None)).write(tmp_path)


def test_the_card_lists_thresholds(certain: Path) -> None:
    card = (certain / "README.md").read_text()
    assert "## Unknown" in card and "| north | 10 | 2.00 |" in card
    assert "`unknown` bool [batch]" in card
