"""Predicting from a bundle: every kind of input, every kind of client, many threads."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.errors import ImageError, UsageError
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.types import Skipped
from tests.export.sample import CLASS_NAMES, CLIENTS, images, shared_backbone
from tests.runtime.waiting import wait_until

pytest_plugins = ["tests.export.fixtures"]

TYPED = ["a steam engine", "tea_pot", "zebra"]


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


def expected(pixels: NDArray[np.uint8], client: int, names: list[str]) -> NDArray[np.float64]:
    """Probabilities [N, C] by torch and the trained adapter."""
    backbone = shared_backbone()
    hook = CLIENTS[client - 1].adapter.hook if client else None
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    with torch.inference_mode():
        image = backbone.encode_image(torch.from_numpy(pixels), hook)
        text = backbone.encode_text(backbone.tokenize(prompts), hook)
        logits = backbone.logit_scale * image @ text.T
        probabilities: NDArray[np.float64] = logits.double().softmax(-1).numpy()
    return probabilities


@pytest.mark.parametrize("client", [0, 1, 2])
@pytest.mark.parametrize("typed", [False, True])
def test_probabilities_equal_torch(classifier: Classifier, client: int, typed: bool) -> None:
    names = TYPED if typed else list(CLASS_NAMES)
    pixels = images(4)
    found = classifier.predict(pixels, client, TYPED if typed else None, top_k=9)
    for prediction, row in zip(found, expected(pixels, client, names), strict=True):
        order = np.argsort(-row)
        assert [score.name for score in prediction.top] == [names[i] for i in order]
        np.testing.assert_allclose([s.probability for s in prediction.top], row[order], atol=1e-5)
        assert sum(score.probability for score in prediction.top) == pytest.approx(1)


def test_all_kinds_of_input_give_one_answer(classifier: Classifier, tmp_path: Path) -> None:
    pixels = images(1)[0]
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    alpha = np.concatenate([pixels, np.full((16, 16, 1), 7, np.uint8)], axis=2)
    kinds = [str(path), path, stream.getvalue(), Image.fromarray(pixels), pixels, alpha]
    reference = classifier.predict(pixels, "north")[0].top
    for kind in kinds:
        (single,) = classifier.predict(kind, "north")
        assert single.top == reference
    together = classifier.predict(iter(kinds), "north")
    assert [p.source for p in together] == [
        str(path),
        str(path),
        "image 2",
        "image 3",
        "image 4",
        "image 5",
    ]
    for prediction in together:
        np.testing.assert_allclose(prediction.top[0].probability, reference[0].probability)


def test_clients_by_name_and_by_index(classifier: Classifier) -> None:
    pixels = images(2)
    assert [info.id for info in classifier.clients] == ["zero-shot", "north", "0"]
    assert classifier.predict(pixels, "zero-shot") == classifier.predict(pixels)
    assert classifier.predict(pixels, 2) == classifier.predict(pixels, "0")
    assert classifier.predict(pixels, "0") != classifier.predict(pixels, 0)
    number = np.arange(2)[1]
    assert classifier.predict(pixels, number) == classifier.predict(pixels, "north")


def test_one_client_per_image(classifier: Classifier) -> None:
    pixels = images(3)
    order: list[str | int] = ["0", 0, "north"]
    mixed = classifier.predict(pixels, order, top_k=1)
    assert [prediction.client for prediction in mixed] == ["0", "zero-shot", "north"]
    for i, client in enumerate(order):
        alone = classifier.predict(pixels[i], client, top_k=1)[0].top[0]
        assert mixed[i].top[0].name == alone.name
        assert mixed[i].top[0].probability == pytest.approx(alone.probability, abs=1e-6)
    for clients in (["0"], ["0"] * 4):
        more = "images" if len(clients) < 3 else "clients"
        with pytest.raises(UsageError, match=f"There are more {more}: give one client for all"):
            classifier.predict(pixels, clients)


def test_wrong_clients(classifier: Classifier) -> None:
    with pytest.raises(
        UsageError,
        match=r"has no client 'nort'; did you mean 'north'\? \(clients: zero-shot, north, 0\)",
    ):
        classifier.predict(images(1), "nort")
    # Before anything is read, also where the result is only an iterator.
    with pytest.raises(UsageError, match=r"no client number 3: it has 0 \(zero-shot\) to 2"):
        classifier.iter_predict(["missing.jpg"], 3)
    with pytest.raises(UsageError, match="no client number -1"):
        classifier.predict(images(1), -1)


def test_endless_streams_are_read_a_batch_ahead_and_no_further(bundle: Path) -> None:
    classifier = Classifier.load(bundle, "cpu", threads=1)
    taken = 0

    def camera() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for pixels in itertools.cycle(images(2)):
            taken += 1
            yield pixels

    found = classifier.iter_predict(camera(), batch_size=4)
    assert taken == 0
    assert len(list(itertools.islice(found, 6))) == 6
    # Two batches are done, one waits, and one image is in the hand of the thread that draws.
    wait_until(lambda: taken >= 13)
    assert taken == 13
    found.close()  # type: ignore[attr-defined]


def test_a_stream_that_waits_for_the_last_answer(classifier: Classifier) -> None:
    answers: Queue[str] = Queue()

    def conversation() -> Iterator[NDArray[np.uint8]]:
        yield images(1)[0]
        for _ in range(3):
            assert answers.get(timeout=20) in CLASS_NAMES
            yield images(1)[0]

    for prediction in classifier.iter_predict(conversation(), batch_size=1):
        answers.put(prediction.top[0].name)
    assert answers.qsize() == 1


def test_one_image_is_answered_without_threads(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier.load(bundle, "cpu")
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
    pixels = images(1)
    for one in (pixels, pixels[0], [pixels[0]], Image.fromarray(pixels[0])):
        assert len(classifier.predict(one, ["north"])) == 1
        assert len(list(classifier.iter_compare(one, [1, 0]))) == 1
        assert classifier.embed_images(one).shape == (1, 24)
    missing = str(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"missing\.png: No such file"):
        classifier.predict(missing)
    assert classifier.predict(missing, on_skip=lambda entry: None) == []


def test_what_a_stream_raises_is_raised_after_the_images_before_it(classifier: Classifier) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from images(2)
        raise RuntimeError("unplugged")

    found = classifier.iter_predict(camera(), batch_size=2)
    assert [next(found).source, next(found).source] == ["image 0", "image 1"]
    with pytest.raises(RuntimeError, match="unplugged"):
        next(found)


def test_unreadable_images_are_reported_in_their_turn(
    classifier: Classifier, tmp_path: Path
) -> None:
    missing = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    pixels = images(2)
    order: list[str] = []
    for prediction in classifier.iter_predict(
        [missing[0], pixels[0], missing[1], pixels[1], missing[2]],
        batch_size=2,
        on_skip=lambda entry: order.append(entry.path),
    ):
        order.append(prediction.source)
    assert order == [missing[0], "image 1", missing[1], "image 3", missing[2]]
    assert classifier.predict(missing, on_skip=lambda entry: None) == []


def test_several_clients_look_at_one_image(classifier: Classifier, tmp_path: Path) -> None:
    pixels = [*images(3), tmp_path / "missing.png"]
    skipped: list[Skipped] = []
    rows = list(
        classifier.iter_compare(pixels, ["0", 0], TYPED, 2, batch_size=2, on_skip=skipped.append)
    )
    assert [entry.reason for entry in skipped] == ["No such file or directory"]
    for number, (personal, plain) in enumerate(rows):
        assert (personal.client, plain.client) == ("0", "zero-shot")
        for one in (personal, plain):
            (alone,) = classifier.predict(pixels[number], one.client, TYPED, 2)
            assert [score.name for score in one.top] == [score.name for score in alone.top]
            assert one.top[0].probability == pytest.approx(alone.top[0].probability, abs=1e-6)
    with pytest.raises(UsageError, match="no client 'nobody'"):
        classifier.iter_compare(pixels, [0, "nobody"])
    wrong: tuple[Any, ...] = ([], "north")
    for none in wrong:
        with pytest.raises(UsageError, match=r"are a list of at least one, found (\[\]|'north')"):
            classifier.iter_compare(pixels, none)


def test_batch_size_changes_nothing(classifier: Classifier) -> None:
    pixels = images(5)
    one = classifier.embed_images(pixels, "north", batch_size=1)
    all_ = classifier.embed_images(pixels, "north", batch_size=64)
    assert one.shape == (5, classifier.manifest.embed_dim)
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, all_, atol=1e-6)


def test_unreadable_images(classifier: Classifier, tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing more")
    batch = [images(1)[0], broken, missing, images(2)[1]]
    skipped: list[Skipped] = []
    found = classifier.predict(batch, on_skip=skipped.append)
    assert [prediction.source for prediction in found] == ["image 0", "image 3"]
    assert [entry.path for entry in skipped] == [str(broken), str(missing)]
    assert all(entry.reason for entry in skipped)
    with pytest.raises(ImageError, match=r"broken\.jpg: \w+"):
        classifier.predict(batch)


def test_nothing_in_nothing_out(classifier: Classifier) -> None:
    assert classifier.predict([]) == []
    assert classifier.embed_images([]).shape == (0, 24)
    assert classifier.embed_texts([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (5, "found int"),
        ([5], "a path, bytes, a PIL image or a uint8 array, found int"),
        (np.zeros((8, 8, 3)), r"uint8 \[height, width, 3\], found float64 \[8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"found uint8 \[3, 8, 8\]: .* channels last"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8 \[0, 8, 3\]"),
        (np.zeros(8, np.uint8), r"found uint8 \[8\]"),
    ],
)
def test_what_is_no_image(classifier: Classifier, bad: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classifier.predict(bad)  # type: ignore[arg-type]


def test_wrong_numbers_and_classes(classifier: Classifier) -> None:
    pixels = images(1)
    with pytest.raises(UsageError, match="top_k should be at least 1, found 0"):
        classifier.predict(pixels, top_k=0)
    with pytest.raises(UsageError, match="threads should be at least 1, found 0"):
        Classifier(classifier.bundle, threads=0)
    with pytest.raises(UsageError, match="batch_size should be at least 1, found -2"):
        classifier.embed_images(pixels, batch_size=-2)
    for classes in ([], "cat", ["cat", " "]):
        with pytest.raises(UsageError, match="Classes are a list of names"):
            classifier.predict(pixels, classes=classes)
    with pytest.raises(UsageError, match="The class 'cat' is named twice"):
        classifier.predict(pixels, classes=["cat", "dog", "cat "])


def test_the_text_tower_waits_for_a_typed_text(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "text_model.onnx").unlink()
    (copy / "tokenizer.json").unlink()
    classifier = Classifier.load(copy, "cpu")
    assert classifier.predict(images(1), "north")[0].top[0].name in CLASS_NAMES
    from pfedmma_deploy.errors import BundleError

    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        classifier.predict(images(1), "north", ["zebra"])


def test_texts_as_they_are(classifier: Classifier) -> None:
    backbone = shared_backbone()
    texts = ["", "Zebra", "caf\u00e9 " * 99, *(f"number {i}" for i in range(70))]
    hook = CLIENTS[0].adapter.hook
    found = classifier.embed_texts(texts, "north")
    with torch.inference_mode():
        wanted = backbone.encode_text(backbone.tokenize(texts), hook).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_many_threads_one_classifier(bundle: Path) -> None:
    shared = Classifier.load(bundle, "cpu")
    alone = Classifier.load(bundle, "cpu")
    jobs: list[tuple[NDArray[np.uint8], Any, list[str] | None]] = [
        (images(2, seed), client, typed)
        for seed in range(4)
        for client in range(3)
        for typed in (None, TYPED)
    ]
    mixed: list[str | int] = ["north", 0, "0"]
    jobs += [(images(3, seed), mixed, typed) for seed in range(4) for typed in (None, TYPED)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: shared.predict(*job), jobs))
    assert found == [alone.predict(*job) for job in jobs]


def test_typed_classes_are_encoded_once_for_each_client(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier.load(bundle, "cpu")
    encoded: list[int] = []
    embed = classifier._texts.embed

    def count(texts: Sequence[str], index: int, strength: float) -> NDArray[np.float32]:
        encoded.append(index)
        return embed(texts, index, strength)

    monkeypatch.setattr(classifier._texts, "embed", count)
    clients: list[str | int] = ["north", 0, "0"]
    first = classifier.predict(images(3), clients, TYPED)
    assert classifier.predict(images(3), clients, TYPED) == first
    assert encoded == [1, 0, 2]


def test_typed_classes_are_kept_within_bounds(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfedmma_deploy.runtime import text_tower

    monkeypatch.setattr(text_tower, "CACHED_LISTS", 2)
    classifier = Classifier.load(bundle, "cpu")
    encoded: list[str] = []
    embed = classifier._texts.embed

    def note(texts: Sequence[str], index: int, strength: float) -> NDArray[np.float32]:
        encoded.extend(texts)
        return embed(texts, index, strength)

    monkeypatch.setattr(classifier._texts, "embed", note)
    for name in ("a", "b", "a", "c"):
        classifier.predict(images(1), 1, [name])
    assert len(encoded) == 3
    assert classifier._texts.encoded.cache_info().currsize == 2
    # The two used last are kept; the other one went.
    for name, count in (("a", 3), ("c", 3), ("b", 4)):
        classifier.predict(images(1), 1, [name])
        assert len(encoded) == count


def test_pixels_decoded_elsewhere_are_answered_alike(classifier: Classifier) -> None:
    stream = io.BytesIO()
    Image.fromarray(images(1)[0]).resize((40, 30)).save(stream, "PNG")
    pixels = classifier.decode(stream.getvalue())
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    (alone,) = classifier.predict(stream.getvalue(), "north", strength=0.5)
    first, second = classifier.predict_pixels([pixels, pixels], ["north", 0], strength=[0.5, None])
    assert first == alone
    assert second.top == classifier.predict(stream.getvalue())[0].top
    assert [one.source for one in (first, second)] == ["image 0", "image 1"]
    (typed,) = classifier.predict_pixels(pixels[None], "north", TYPED, top_k=1)
    assert typed.top == classifier.predict(stream.getvalue(), "north", TYPED, top_k=1)[0].top
    assert classifier.predict_pixels([]) == []


def test_wrong_pixels(classifier: Classifier) -> None:
    with pytest.raises(
        UsageError,
        match=r"Pixels are uint8 \[16, 16, 3\] here, found float32 \[16, 16, 3\]: make them with",
    ):
        classifier.predict_pixels([images(1)[0].astype(np.float32)])
    with pytest.raises(UsageError, match=r"uint8 \[images, S, S, 3\], found uint8 \[16, 16, 3\]"):
        classifier.predict_pixels(images(1)[0])
    with pytest.raises(UsageError, match="found 2 images and 1 clients"):
        classifier.embed_pixels(images(2), [(0, 1.0)])


def test_a_large_image_is_refused_by_its_header(classifier: Classifier) -> None:
    stream = io.BytesIO()
    Image.new("L", (100, 50)).save(stream, "PNG")
    assert classifier.decode(stream.getvalue(), 5000).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="more than 4,999 pixels; scale it down"):
        classifier.decode(stream.getvalue(), 4999)
