"""The strength of a client: zero-shot at 0, as trained at 1, and what torch gives in between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.runtime import Bundle, Classifier
from pfedmma_deploy.runtime.text_tower import mixed
from tests.export.fixtures import rewrite
from tests.export.sample import CLASS_NAMES, CLIENTS, PROMPT, images, shared_backbone

pytest_plugins = ["tests.export.fixtures"]

TYPED = ["a steam engine", "zebra"]


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


def as_version_1(folder: Path) -> None:
    """Take the strength out of the bundle: what exports wrote before there was one."""
    for name in ("vision_model.onnx", "text_model.onnx"):
        model = onnx.load(folder / name)
        (given,) = [entry for entry in model.graph.input if entry.name == "strength"]
        model.graph.input.remove(given)
        # In its place one for every item, whatever their number: client * 0 + 1.
        zero = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "none")
        one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "all")
        model.graph.initializer.extend([zero, one])
        nodes = [
            onnx.helper.make_node("Mul", ["client", "none"], ["zeros"]),
            onnx.helper.make_node("Cast", ["zeros"], ["floats"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Add", ["floats", "all"], ["strength"]),
        ]
        for place, node in enumerate(nodes):
            model.graph.node.insert(place, node)
        onnx.save(model, folder / name)

    def describe(raw: dict[str, Any]) -> None:
        raw["format_version"] = 1
        del raw["strength"]
        for client in raw["clients"]:
            del client["default_strength"]
        for name in ("vision_model.onnx", "text_model.onnx"):
            data = (folder / name).read_bytes()
            raw["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite(folder, describe)


def expected(client: int, strength: float, names: list[str]) -> NDArray[np.float64]:
    """Probabilities [4, C] by torch and the trained adapter, at a strength."""
    backbone, adapter = shared_backbone(), CLIENTS[client - 1].adapter.at(strength)
    with torch.inference_mode():
        image = adapter.encode_image(backbone, torch.from_numpy(images(4)))
        text = adapter.encode_text(backbone, class_texts(backbone, names, PROMPT))
        logits = adapter.logits(image, text, backbone.logit_scale)
        probabilities: NDArray[np.float64] = logits.double().softmax(-1).numpy()
    return probabilities


def found(predictions: Any, names: list[str]) -> NDArray[np.float64]:
    rows = []
    for prediction in predictions:
        scores = {score.name: score.probability for score in prediction.top}
        rows.append([scores[name] for name in names])
    return np.array(rows)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("names", [list(CLASS_NAMES), TYPED])
def test_probabilities_are_torchs(
    classifier: Classifier, strength: float, names: list[str]
) -> None:
    typed = names if names is TYPED else None
    predictions = classifier.predict(images(4), "north", typed, strength=strength)
    np.testing.assert_allclose(found(predictions, names), expected(1, strength, names), atol=2e-5)
    assert {prediction.strength for prediction in predictions} == {strength}


def test_strength_0_is_zero_shot(classifier: Classifier) -> None:
    for typed in (None, TYPED):
        names = typed or list(CLASS_NAMES)
        none = classifier.predict(images(4), "north", typed, strength=0)
        plain = classifier.predict(images(4), 0, typed)
        np.testing.assert_allclose(found(none, names), found(plain, names), atol=1e-6)
    features = classifier.embed_images(images(2), "north", strength=0)
    np.testing.assert_allclose(features, classifier.embed_images(images(2), 0), atol=1e-6)
    texts = classifier.embed_texts(["a cat"], "north", strength=0)
    np.testing.assert_allclose(texts, classifier.embed_texts(["a cat"], 0), atol=1e-6)


def test_strengths_are_mixed_in_a_batch_like_clients(classifier: Classifier) -> None:
    clients: list[str | int] = ["north", "0", 0, "north"]
    strengths = [0.5, 1.5, 0.25, None]
    together = classifier.predict(images(4), clients, strength=iter(strengths))
    for place, (client, strength) in enumerate(zip(clients, strengths, strict=True)):
        (alone,) = classifier.predict(images(4)[place], client, strength=strength)
        assert together[place].strength == (1 if strength is None else strength)
        np.testing.assert_allclose(
            found([together[place]], list(CLASS_NAMES)),
            found([alone], list(CLASS_NAMES)),
            atol=1e-6,
        )


def test_one_strength_for_all_or_one_per_image(classifier: Classifier) -> None:
    for strengths in ([0.5], [0.5] * 3):
        more = "images" if len(strengths) < 2 else "strengths"
        with pytest.raises(UsageError, match=f"more {more}: give one strength for all, or one per"):
            classifier.predict(images(2), strength=strengths)


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_strengths_beyond_the_range(classifier: Classifier, strength: float) -> None:
    message = r"number from 0 \(zero-shot\) over 1 \(as trained\) to 1\.5, found"
    with pytest.raises(UsageError, match=message):
        # Before anything is read.
        classifier.iter_predict(["missing.jpg"], 1, strength=strength)
    with pytest.raises(UsageError, match=message):
        classifier.iter_compare(images(1), [1, 0], strength=strength)


def test_known_texts_are_computed_once_for_each_strength(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier.load(bundle, "cpu")
    asked: list[tuple[int, float]] = []
    embed = classifier._texts.embed

    def note(texts: list[str], index: int, strength: float) -> NDArray[np.float32]:
        asked.append((index, strength))
        return embed(texts, index, strength)

    monkeypatch.setattr(classifier._texts, "embed", note)
    for strength in (1, 0.5, 0, 0.5, None):
        classifier.predict(images(3), ["north", "north", "0"], strength=strength)
    # Those of strength 0 and 1 are in the bundle.
    assert asked == [(1, 0.5), (2, 0.5)]


def test_the_clients_default_counts_where_none_is_given(copy: Path) -> None:
    rewrite(copy, lambda raw: raw["clients"][1].update(default_strength=0.5))
    classifier = Classifier.load(copy, "cpu")
    names = list(CLASS_NAMES)
    own = classifier.predict(images(2), ["north", "0"])
    assert [prediction.strength for prediction in own] == [0.5, 1.0]
    half = classifier.predict(images(2)[0], "north", strength=0.5)
    np.testing.assert_allclose(found(own[:1], names), found(half, names), atol=1e-6)
    ((first, second),) = classifier.iter_compare(images(1), ["north", 0])
    assert (first.strength, second.strength) == (0.5, 1.0)


def test_a_bundle_of_version_1_serves_strength_1(copy: Path, classifier: Classifier) -> None:
    as_version_1(copy)
    older = Classifier.load(copy, "cpu")
    assert older.manifest.strength is None
    assert older.manifest.to_dict()["format_version"] == 1
    clients: list[str | int] = ["north", 0, "0"]
    for strength in (None, 1):
        for typed in (None, TYPED):
            names = typed or list(CLASS_NAMES)
            left = older.predict(images(3), clients, typed, strength=strength)
            right = classifier.predict(images(3), clients, typed)
            np.testing.assert_allclose(found(left, names), found(right, names), atol=1e-6)
    with pytest.raises(
        BundleError,
        match=r"copy was exported without an input for the strength and answers at strength 1 "
        r"alone, found 0\.5: export it again for others",
    ):
        older.predict(images(1), "north", strength=0.5)


WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m["clients"][1].update(default_strength=2), "'north' should be from 0 to 1.5, fou"),
    (lambda m: m["clients"][1].update(default_strength="1"), "default_strength should be a number"),
    (
        lambda m: m.update(strength="loud"),
        "strength should be one of exact, features, found 'loud'",
    ),
    (lambda m: m.pop("strength"), "strength should be there in format version 2, found None"),
    (lambda m: m.update(format_version=1), "should be missing in format version 1, found 'exact'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_manifests(copy: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_older_models_have_no_default_but_1(copy: Path) -> None:
    as_version_1(copy)
    rewrite(copy, lambda raw: raw["clients"][1].update(default_strength=0.5))
    with pytest.raises(BundleError, match=r"'north' is 0\.5, but the bundle's models take no stre"):
        Bundle.open(copy)


def test_features_between_by_hand() -> None:
    """(1, 0) and (0, 1): a quarter of the way is (3, 1) / sqrt(10)."""
    plain, own = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(mixed(plain, own, 0.25), [[3 / 10**0.5, 1 / 10**0.5]], rtol=1e-6)
    np.testing.assert_allclose(
        mixed(plain, own, 1.5), [[-0.5 / 2.5**0.5, 1.5 / 2.5**0.5]], rtol=1e-6
    )
