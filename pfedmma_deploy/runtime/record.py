"""A record of answers: enough to give each again, and to see what changes; no pixels.

A line of JSON for each image and client: time, path and SHA-256 of the image, client and strength,
hashes of the bundle, versions, on which terms it was asked, all probabilities, the verdict. The
hash of the image tower and the client's id name the adapter: its rows are in that file.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import onnxruntime

from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.runtime.bundle import MANIFEST, VISION_MODEL, Bundle, file_sha256
from pfedmma_deploy.runtime.certainty import Terms
from pfedmma_deploy.runtime.classifier import Classifier, Prediction

FORMAT = "pfedmma-answer 1"
SAME = 1e-4
"""Largest difference of a probability that two calls of one model may have: batches of another size
round otherwise."""
LIBRARIES = ("pfedmma-deploy", "numpy", "pillow")

Entry = Mapping[str, Any]
Outcome = Literal["repeated", "differs", "image gone", "image changed", "other bundle"]


class AnswerLog:
    """Appends answers to a file; a context manager.

    Args:
        file: made where it is not there.
        classifier: that answers.
        classes: names that were typed; None for the bundle's own.
        terms: on which it is asked.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(
        self, file: Path, classifier: Classifier, classes: tuple[str, ...] | None, terms: Terms
    ) -> None:
        bundle = classifier.bundle
        self._common = {
            "bundle": bundle_sha256(bundle),
            "model": bundle.manifest.files[VISION_MODEL].sha256,
            "provider": classifier.provider,
            "versions": {
                "python": platform.python_version(),
                # Its distribution has another name where it was built for GPUs.
                "onnxruntime": onnxruntime.__version__,
                **{name: version(name) for name in LIBRARIES},
            },
            "terms": {"classes": classes, **asdict(terms)},
        }
        try:
            # A line that a kill cut off must not swallow the next one.
            is_cut = file.exists() and file.stat().st_size and _last_byte(file) != b"\n"
            self._stream = file.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"The record {file} cannot be written ({error.strerror}): name another file."
            ) from error
        if is_cut:
            self._stream.write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, prediction: Prediction, sha256: str) -> None:
        """Record an answer with the probabilities of all classes, and its image's hash."""
        entry = {
            "format": FORMAT,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "image": {"path": prediction.source, "sha256": sha256},
            "client": prediction.client,
            "strength": prediction.strength,
            **self._common,
            "answer": prediction.answer,
            **asdict(prediction.verdict),
            "probabilities": {score.name: score.probability for score in prediction.top},
        }
        print(json.dumps(entry, ensure_ascii=False), file=self._stream, flush=True)


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1)


def bundle_sha256(bundle: Bundle) -> str:
    """SHA-256 of the manifest, which has the hashes of all other files."""
    return file_sha256(bundle.path / MANIFEST)


def read_record(file: Path) -> Iterator[tuple[int, Entry | None]]:
    """Number and content of each line; None where it is cut off or no answer of this format.

    Raises:
        UsageError: there is no such file.
    """
    if not file.is_file():
        raise UsageError(f"There is no record {file}: `pfedmma predict --log {file}` makes one.")
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            is_answer = isinstance(entry, dict) and entry.get("format") == FORMAT
            yield number, entry if is_answer else None


@dataclass(frozen=True)
class Replayed:
    """What became of one recorded answer."""

    line: int
    path: str
    outcome: Outcome
    detail: str = ""
    """What differs."""
    difference: float = 0.0
    """Largest difference of a probability."""


def replay(file: Path, classifier: Classifier) -> Iterator[Replayed]:
    """Give every recorded answer again, and compare.

    Raises:
        UsageError: there is no such file.
        BundleError: a line is damaged; the message has its number.
    """
    bundle = bundle_sha256(classifier.bundle)
    for number, entry in read_record(file):
        if entry is None:
            raise BundleError(
                f"Line {number} of {file} is no recorded answer ({FORMAT}): it was cut off or "
                "changed; delete the line."
            )
        path = entry["image"]["path"]
        if entry["bundle"] != bundle:
            yield Replayed(number, path, "other bundle", entry["bundle"])
        elif not Path(path).is_file():
            yield Replayed(number, path, "image gone")
        elif file_sha256(Path(path)) != entry["image"]["sha256"]:
            yield Replayed(number, path, "image changed")
        else:
            yield _repeat(number, entry, classifier)


def _repeat(number: int, entry: Entry, classifier: Classifier) -> Replayed:
    terms = entry["terms"]
    (found,) = classifier.predict(
        entry["image"]["path"],
        entry["client"],
        terms["classes"],
        top_k=len(entry["probabilities"]),
        strength=entry["strength"],
        accept=terms["accept"],
        coverage=terms["coverage"],
        negatives=terms["negatives"] or None,
    )
    now = {score.name: score.probability for score in found.top}
    before = entry["probabilities"]
    path = entry["image"]["path"]
    if now.keys() != before.keys():
        return Replayed(number, path, "differs", "other classes", 1.0)
    largest = max(abs(now[name] - before[name]) for name in now)
    if found.answer != entry["answer"]:
        return Replayed(number, path, "differs", f"{entry['answer']} -> {found.answer}", largest)
    if largest > SAME:
        return Replayed(number, path, "differs", f"a probability by {largest:.1e}", largest)
    return Replayed(number, path, "repeated", difference=largest)
