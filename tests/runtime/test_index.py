"""Images found by words and by likeness: the index, kept up to date, and its three commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.errors import BundleError, DataError, UsageError
from pfedmma_deploy.runtime import Classifier, index
from pfedmma_deploy.runtime.index import Index, index_file, update_index
from pfedmma_deploy.types import Skipped
from tests.export.sample import images

pytest_plugins = ["tests.export.fixtures"]

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images, of which `copy/0.png` shows what `0.png` does."""
    folder = tmp_path / "photos"
    (folder / "copy").mkdir(parents=True)
    for number, pixels in enumerate(images(4)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    # Another file of the same pixels, and a smaller one.
    Image.fromarray(images(1)[0]).save(folder / "copy" / "0.png", optimize=True)
    with (folder / "0.png").open("ab") as stream:
        stream.write(b"\0" * 500)
    return folder


PATHS = ("0.png", "1.png", "2.png", "3.png", "copy/0.png")


def test_features_are_the_models(classifier: Classifier, photos: Path) -> None:
    found = update_index(classifier, photos, "north", strength=0.5)
    assert (found.paths, found.computed) == (PATHS, 5)
    wanted = classifier.embed_images(images(4), "north", strength=0.5)
    np.testing.assert_allclose(found.features[:4], wanted, atol=1e-3)
    assert found.features.dtype == np.float16
    assert (photos / ".pfedmma" / "index-north-0.5.npz").is_file()


def test_only_what_is_new_or_changed_is_computed(classifier: Classifier, photos: Path) -> None:
    assert update_index(classifier, photos).computed == 5
    before = (photos / ".pfedmma" / "index-zero-shot-1.npz").read_bytes()
    again = update_index(classifier, photos)
    assert (again.computed, again.paths) == (0, PATHS)
    assert (photos / ".pfedmma" / "index-zero-shot-1.npz").read_bytes() == before
    (photos / "3.png").unlink()
    Image.fromarray(images(6)[5]).save(photos / "1.png")
    Image.fromarray(images(6)[4]).save(photos / "new.png")
    newest = update_index(classifier, photos)
    assert newest.computed == 2
    assert newest.paths == ("0.png", "1.png", "2.png", "copy/0.png", "new.png")
    wanted = classifier.embed_images(images(6)[[0, 5, 2, 0, 4]])
    np.testing.assert_allclose(newest.features, wanted, atol=1e-3)
    # Nothing is left of what is gone.
    assert update_index(classifier, photos).paths == newest.paths


def test_each_client_and_strength_has_its_own(classifier: Classifier, photos: Path) -> None:
    for client, strength in (("north", None), ("north", 0.5), ("0", None), (0, None)):
        assert update_index(classifier, photos, client, strength=strength).computed == 5
    assert len(list((photos / ".pfedmma").iterdir())) == 4
    assert index_file(photos, "a/../b", 1).name == "index-a%2f%2e%2e%2fb-1.npz"


def test_a_stopped_call_goes_on(
    classifier: Classifier, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SAVED_EVERY", 2)
    seen = 0
    saved = index._save

    def stop(*given: object) -> None:
        nonlocal seen
        saved(*given)  # type: ignore[arg-type]
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(index, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        update_index(classifier, photos)
    monkeypatch.setattr(index, "_save", saved)
    found = update_index(classifier, photos)
    assert (found.computed, found.paths) == (1, PATHS)


def test_an_index_of_another_model_is_made_again(classifier: Classifier, photos: Path) -> None:
    update_index(classifier, photos)
    file = photos / ".pfedmma" / "index-zero-shot-1.npz"
    # What another bundle would write.
    with np.load(file) as arrays:
        kept = dict(arrays)
    kept["header"] = np.frombuffer(kept["header"].tobytes().replace(b"1.0", b"0.5"), np.uint8)
    np.savez(file, **kept)
    assert update_index(classifier, photos).computed == 5


def test_damaged_files(classifier: Classifier, photos: Path) -> None:
    update_index(classifier, photos)
    file = photos / ".pfedmma" / "index-zero-shot-1.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(BundleError, match=r"cannot be read .*: delete it, it is made again"):
        update_index(classifier, photos)
    file.write_bytes(whole)
    with np.load(file) as arrays:
        kept = dict(arrays)
    kept["stamps"] = kept["stamps"][:2]
    np.savez(file, **kept)
    with pytest.raises(BundleError, match="does not fit together: delete it, it is made again"):
        update_index(classifier, photos)


def test_unreadable_images_are_left_out_and_tried_again(
    classifier: Classifier, photos: Path
) -> None:
    (photos / "1.png").write_bytes(b"no image")
    skipped: list[Skipped] = []
    found = update_index(classifier, photos, on_skip=skipped.append)
    assert len(skipped) == 1 and skipped[0].path == str(photos / "1.png")
    assert "1.png" not in found.paths and found.computed == 4
    Image.fromarray(images(2)[1]).save(photos / "1.png")
    assert update_index(classifier, photos).computed == 1


def test_wrong_places(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing is no folder: name one that holds images"):
        update_index(classifier, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        update_index(classifier, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .*: name another place with --index"):
        update_index(classifier, photos, file=tmp_path / "file" / "index.npz")


def plain(vectors: list[list[float]], sizes: list[int]) -> Index:
    features = np.array(vectors, np.float16)
    stamps = np.array([[size, 0] for size in sizes], np.int64)
    return Index(Path(), tuple("abcdefg"[: len(sizes)]), features, stamps)


def test_search_by_hand() -> None:
    found = plain([[1, 0], [0.6, 0.8], [0, 1]], [1, 1, 1])
    assert found.search(np.array([0, 1], np.float32), 2) == [
        ("c", 1.0),
        ("b", pytest.approx(0.8, abs=1e-3)),
    ]
    assert plain([], []).duplicates() == []


def test_duplicates_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """a and c are one picture, and so are e and f through g; b and d are alone."""
    angles = np.deg2rad([0, 90, 2, 40, 180, 188, 184])
    found = plain(np.stack([np.cos(angles), np.sin(angles)], 1).tolist(), [5, 5, 9, 5, 5, 5, 7])
    for block in (2, 3, 100):
        monkeypatch.setattr(index, "BLOCK", block)
        # cos 4 degrees = 0.9976, cos 8 degrees = 0.990: e and f are joined by g.
        assert found.duplicates(0.995) == [["c", "a"], ["g", "e", "f"]]
        assert found.duplicates(0.9999) == []


def command(text: str) -> int:
    return int(run(text.split()))


def test_the_commands(bundle: Path, photos: Path, capsys: Printed) -> None:
    assert command(f"embed {photos} --model {bundle} --json") == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["images"], values["computed"], values["skipped"]) == (5, 5, [])
    assert command(f"dedupe {photos} --model {bundle} --json") == 0
    values = json.loads(capsys.readouterr().out)
    # The larger file first.
    assert [str(photos / "0.png"), str(photos / "copy/0.png")] in values["groups"]
    assert command(f"dedupe {photos} --model {bundle} --alike 1.5") == 2
    assert "--alike is a cosine above 0 and at most 1, found 1.5" in capsys.readouterr().err
    place = photos.parent / "elsewhere.npz"
    given = f"--model {bundle} --client north --top 2 --index {place} --json"
    assert int(run(["search", "steam engine", str(photos), *given.split()])) == 0
    values = json.loads(capsys.readouterr().out)
    classifier = Classifier.load(bundle, "cpu")
    text = classifier.embed_texts(["a photo of a steam engine."], "north")[0]
    cosines = classifier.embed_images(images(4), "north") @ text
    best = values["results"][0]
    assert best["cosine"] == pytest.approx(float(cosines.max()), abs=2e-3)
    assert os.path.basename(best["path"]) == f"{cosines.argmax()}.png"  # noqa: PTH119
    assert place.is_file() and values["client"] == "north"
    assert int(run(["search", " ", str(photos), "--model", str(bundle)])) == 2
    assert "say in words what to look for" in capsys.readouterr().err


def test_unreadable_images_are_named(bundle: Path, photos: Path, capsys: Printed) -> None:
    (photos / "1.png").write_bytes(b"no image")
    assert command(f"embed {photos} --model {bundle}") == 0
    printed = capsys.readouterr()
    assert "4 images in the index, 4 of them computed now" in printed.out
    assert "skipped" in printed.err and "1.png" in printed.err
