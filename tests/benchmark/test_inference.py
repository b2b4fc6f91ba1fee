"""The whole benchmark on a CLIP of a few thousand parameters: what is in it, not how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.benchmark import inference, subjects
from pfedmma_deploy.benchmark.bundles import RandomBundles
from pfedmma_deploy.benchmark.inference import PLAIN, Bench, bench_inference, sections
from pfedmma_deploy.benchmark.load import spread_clients, start_cold
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import new_row
from pfedmma_deploy.benchmark.subjects import PHOTO_SIZE, Subject, write_photos
from pfedmma_deploy.errors import PfedmmaError, UsageError
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.runtime import Bundle, Classifier
from tests.tinyclip import register, tiny_backbone

QUICK: dict[str, Any] = {
    "threads": 1,
    "seconds": 0.001,
    "rounds": 1,
    "bottleneck_dim": 4,
}


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


pytestmark = pytest.mark.usefixtures("export_once")


@pytest.fixture(scope="module")
def folder(bundles: RandomBundles) -> Path:
    """A bundle with five random clients."""
    return bundles.make(5, ExportConfig())


def test_a_random_bundle_is_a_bundle(folder: Path) -> None:
    """It is verified when it is made; its clients differ, and zero-shot is the frozen tower."""
    classifier = Classifier.load(folder, device="cpu")
    assert [client.id for client in classifier.clients] == ["zero-shot", *"12345"]
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    features = classifier.embed_images([pixels] * 6, client=list(range(6)))
    assert len(np.unique(features.round(7), axis=0)) == 6
    assert len(classifier.predict(pixels, client="5")[0].top) == 5


def test_int8_has_the_same_clients(bundles: RandomBundles) -> None:
    manifest = Bundle.open(bundles.make(2, ExportConfig(precision="int8"))).manifest
    assert manifest.precision == "int8" and len(manifest.clients) == 3


def test_too_many_clients_for_one_file(
    bundles: RandomBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfedmma_deploy.benchmark.bundles.LARGEST", 300_000)
    with pytest.raises(UsageError, match=r"1000 clients on test-clip make a model of .* GB"):
        bundles.make(1000, ExportConfig())


def test_rate_rows(folder: Path) -> None:
    options = InferenceOptions(
        **QUICK, backbones=(register(),), clients=3, batch_sizes=(1, 2), measures=("rate",)
    )
    notes = Notes()
    rows = list(bench_inference(options, notes))
    rates = [row for row in rows if row["measure"] == "rate"]
    names = ["torch eager fp32", PLAIN, "pfedmma fp32", "pfedmma int8"]
    assert [(row["name"], row["batch_size"]) for row in rates] == [
        (n, b) for b in (1, 2) for n in names
    ]
    for row in rates:
        assert row["images_per_second"] > 0 and row["backbone"] == "test-clip"
        assert (row["ratio"] is None) == (row["name"] == PLAIN)
        assert ("latency" in row) == (row["batch_size"] == 1)
    ours = rates[-1]
    assert ours["peer"] == PLAIN and ours["clients"] == 3 and ours["flavour"] == "portable"
    assert "pfedmma fp32, 3 clients" in ours["ratios"]
    titles = [section.title for section in sections(rows)]
    assert len(titles) == 2 and titles[1].startswith("test-clip: latency")
    rate = sections(rows)[0]
    assert "x onnxruntime fp32" in rate.columns and "x pfedmma fp32" in rate.columns
    assert len(rate.cells) == 8


def test_end_to_end_rows_of_a_given_bundle(folder: Path) -> None:
    options = InferenceOptions(**QUICK, model=folder, batch_sizes=(2,), measures=("end-to-end",))
    rows = list(bench_inference(options))
    names = ["torch eager fp32", "onnxruntime fp32", "pfedmma fp32"]
    assert [row["name"] for row in rows] == names
    assert all(row["measure"] == "end-to-end" and row["images_per_second"] for row in rows)
    assert rows[2]["peer"] == names[0] and rows[2]["clients"] == 5
    assert all("latency" not in row for row in rows)


def test_batches_that_would_take_minutes_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "LONGEST_CALL", 1e-9)
    plain = Subject({"name": "plain", "precision": "int8"}, lambda batch: lambda: sum(range(1000)))
    notes = Notes()
    bench = Bench(InferenceOptions(**QUICK), tiny_backbone(), tmp_path, notes)
    rows = list(bench.measure_rates("rate", [plain], "plain", [8, 1]))
    assert [row["batch_size"] for row in rows] == [1]
    assert "test-clip: batch 8 left out, one call takes about" in notes.said[0]


def test_further_peers(folder: Path) -> None:
    """Scripts may bring subjects of their own; they take part in the same rounds."""
    other = Subject({"name": "other", "precision": "fp32"}, lambda batch: lambda: sum(range(1000)))
    options = InferenceOptions(**QUICK, model=folder, batch_sizes=(1,), measures=("rate",))
    rows = list(bench_inference(options, peers=lambda backbone, _: [other]))
    assert [row["name"] for row in rows] == ["torch eager fp32", "other", PLAIN, "pfedmma fp32"]
    assert set(rows[3]["ratios"]) == {"torch eager fp32", "other", PLAIN}


def test_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    def cold(kind: str, folder: str, *_: str) -> dict[str, float]:
        memory = 1000 + 10 * int(folder.rpartition("-")[2])
        return {"first_answer": 1.0, "load": 0.5, "memory": memory, "peak_memory": 5000}

    monkeypatch.setattr(inference, "start_cold", cold)
    options = InferenceOptions(
        **QUICK, backbones=(register(),), scaling=(7, 2), batch_sizes=(2,), measures=("clients",)
    )
    plain, few, many = bench_inference(options)
    assert plain["name"] == PLAIN and "clients" not in plain
    assert (few["clients"], few["memory"]) == (2, 1020) and "bytes_per_client" not in few
    assert (many["clients"], many["memory"], many["bytes_per_client"]) == (7, 1070, 10)
    assert many["ratio"] and many["file_bytes"] > few["file_bytes"] > 0
    (section,) = sections([plain, few, many])
    assert section.columns[:6] == [
        "model", "clients", "batch", "images/s", "quartiles", "x onnxruntime fp32",
    ]  # fmt: skip
    assert section.columns[-1] == "a client more, MB"


def test_a_binding_computes_what_a_call_does(folder: Path) -> None:
    """What a GPU is measured with, on the CPU."""
    session = subjects.open_tuned(folder / "vision_model.onnx", "cpu", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    feed = {
        "pixel_values": pixels,
        "client": np.array([1, 3]),
        "strength": np.ones(2, np.float32),
    }
    binding = subjects.bound(session, feed, "cpu")
    session.run_with_iobinding(binding)
    (found,) = binding.copy_outputs_to_cpu()
    assert np.array_equal(found, session.run(None, feed)[0])


def test_clients_of_a_batch_are_spread_over_the_bank() -> None:
    assert spread_clients(4, 100) == [1, 26, 51, 76]
    assert spread_clients(4, 2) == [1, 1, 2, 2]
    assert spread_clients(1, 3) == [1]


def test_load_in_a_fresh_process(folder: Path, tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    found = start_cold("bundle", str(folder), "cpu", "2", photo)
    assert 0 < found["load"] < found["first_answer"]
    assert 0 < found["memory"] <= found["peak_memory"]


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(PfedmmaError, match=r"fresh process .* failed: .*no/bundle is no folder"):
        start_cold("bundle", "no/bundle", "cpu", "1", "photo.jpg")


def test_photographs_are_ordinary_files(tmp_path: Path) -> None:
    from PIL import Image

    paths = [Path(path) for path in write_photos(tmp_path, 2)]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.size == PHOTO_SIZE
        assert 30_000 < path.stat().st_size < 300_000
    assert paths[0].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 0}, "clients must be 1 or more, not 0"),
        ({"batch_sizes": (8, 0)}, "batch_sizes must be 1 or more, not 0"),
        ({"batch_sizes": ()}, "name at least one batch size, each once"),
        ({"backbones": ("a", "a")}, "name at least one backbone, each once"),
        ({"seconds": 0.0}, "seconds per window must be above 0"),
        ({"seconds": float("nan")}, "seconds per window must be above 0"),
        ({"measures": ("speed",)}, "measurement must be among rate, end-to-end, load, clients"),
        ({"precisions": ("int4",)}, "precision must be among fp32, fp16, int8, not 'int4'"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InferenceOptions(**changes)  # type: ignore[arg-type]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C in the middle."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "start_cold", stop)
    options = InferenceOptions(**QUICK, backbones=(register(),), measures=("load",))
    with pytest.raises(KeyboardInterrupt):
        list(bench_inference(options))
    assert list(tmp_path.iterdir()) == []


def test_a_rate_always_has_its_key() -> None:
    about = {"name": "pfedmma fp32", "precision": "fp32"}
    assert new_row("load", "test-clip", about, first_answer=0.5) == {
        "measure": "load",
        "backbone": "test-clip",
        "name": "pfedmma fp32",
        "precision": "fp32",
        "first_answer": 0.5,
        "images_per_second": None,
        "ratio": None,
    }
