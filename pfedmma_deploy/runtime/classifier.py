"""Images in, classes out, for many clients at once: the runtime's public face."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import DeviceError, ImageError, UsageError
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.inputs import Images, ImageSource, iter_sources, load_pixels
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.runtime.providers import open_session, resolve_device
from pfedmma_deploy.runtime.results import Prediction, best_classes
from pfedmma_deploy.runtime.texts import TextFeatures, checked_classes
from pfedmma_deploy.types import Skipped

__all__ = ["Classifier", "Client"]

Client = str | int
"""A client by id (text), or by index (a number; 0 is zero-shot)."""
Clients = Client | Iterable[Client]
OnSkip = Callable[[Skipped], None]
Features = NDArray[np.float32]


class Classifier:
    """An export bundle ready to predict; `Classifier.load` makes one.

    All methods may be called from many threads at once.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        """Open the image tower of `bundle`; the text tower waits until a text is typed."""
        self.bundle = bundle
        self.device, self.fallback_reason = resolve_device(device)
        """`cpu` or `cuda`, the device really in use, and why `auto` did not take CUDA."""
        file = bundle.file(VISION_MODEL)
        try:
            self._vision = open_session(file, self.device)
        except DeviceError as error:
            if device != "auto":
                raise
            self.device, self.fallback_reason = "cpu", str(error)
            self._vision = open_session(file, "cpu")
        self._texts = TextFeatures(bundle, self.device)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """The bundle in folder `path` on `device` (`auto`, `cpu` or `cuda`).

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            DeviceError: `cuda` was asked for and cannot be used; the message says why.
        """
        return cls(Bundle.open(path), device)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """All clients, zero-shot first."""
        return self.manifest.clients

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that `predict` chooses from unless it is told others."""
        return self.manifest.class_names

    @property
    def provider(self) -> str:
        """The execution provider really in use, by ONNX Runtime's name."""
        return str(self._vision.get_providers()[0])

    def predict(
        self,
        images: Images,
        client: Clients = 0,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> list[Prediction]:
        """The most probable classes of each image: `iter_predict` as a list."""
        found = self.iter_predict(
            images, client, classes, top_k, batch_size=batch_size, on_skip=on_skip
        )
        return list(found)

    def iter_predict(
        self,
        images: Images,
        client: Clients = 0,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order; never holds more than `batch_size` images.

        Args:
            images: one image or any iterable of them (paths, bytes, PIL images, uint8 arrays).
            client: id or index for all images, or one for each; default zero-shot.
            classes: names to choose from, encoded by the client's own text tower in the bundle's
                prompt; default the bundle's class names.
            top_k: answers per image; all classes where there are fewer.
            batch_size: images per call of the model.
            on_skip: called for an image that cannot be read, which is then left out; without it
                such an image ends the prediction.

        Raises:
            ImageError: an image cannot be read and there is no `on_skip`.
            UsageError: unknown client, no or repeated classes, or a number below 1.
        """
        _require_positive(top_k=top_k, batch_size=batch_size)
        typed = None if classes is None else checked_classes(classes)
        names = typed or self.class_names
        if isinstance(client, str | int):
            # A wrong client is noticed now, not when the first prediction is asked for.
            client = self.bundle.client_index(client)

        def stream() -> Iterator[Prediction]:
            for sources, indices, pixels in self._batches(images, client, batch_size, on_skip):
                features = self._embed(pixels, indices)
                for source, index, feature in zip(sources, indices.tolist(), features, strict=True):
                    known = typed is None
                    text = self._texts.known(index) if known else self._texts.typed(index, names)
                    logits = self.manifest.logit_scale * (text @ feature)
                    top = best_classes(logits, names, top_k)
                    yield Prediction(source, self.clients[index].id, top)

        return stream()

    def embed_images(
        self, images: Images, client: Clients = 0, *, batch_size: int = 32
    ) -> Features:
        """Image features, float32 [N, D], L2-normalised. Raises like `iter_predict`."""
        _require_positive(batch_size=batch_size)
        batches = self._batches(images, client, batch_size, None)
        parts = [self._embed(pixels, indices) for _, indices, pixels in batches]
        return np.concatenate([np.empty((0, self.manifest.embed_dim), np.float32), *parts])

    def embed_texts(self, texts: Sequence[str], client: Client = 0) -> Features:
        """Text features, float32 [N, D], L2-normalised, of `texts` as they are (no prompt)."""
        return self._texts.embed(texts, self.bundle.client_index(client))

    def _embed(self, pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> Features:
        embeds: Features = self._vision.run(None, {"pixel_values": pixels, "client": indices})[0]
        return embeds

    def _batches(
        self, images: Images, client: Clients, batch_size: int, on_skip: OnSkip | None
    ) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.uint8]]]:
        """Names, client indices and pixels, `batch_size` images at a time."""
        items = self._readable(images, client, on_skip)
        while chunk := list(islice(items, batch_size)):
            names, indices, pixels = zip(*chunk, strict=True)
            yield list(names), np.asarray(indices, np.int64), np.stack(pixels)

    def _readable(
        self, images: Images, client: Clients, on_skip: OnSkip | None
    ) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
        for (name, source), one in _paired(images, client):
            index = self.bundle.client_index(one)
            try:
                yield name, index, load_pixels(source, self.manifest.preprocessing)
            except ImageError as error:
                if on_skip is None:
                    raise ImageError(f"{name}: {error}") from error
                on_skip(Skipped(name, str(error)))


def _paired(images: Images, client: Clients) -> Iterator[tuple[tuple[str, ImageSource], Client]]:
    """Each image with its client. Raises `UsageError` where there is not one for each image."""
    sources = iter_sources(images)
    if isinstance(client, str | int | np.integer):
        for named in sources:
            yield named, client
        return
    for pair in zip_longest(sources, client, fillvalue=None):
        if None in pair:
            more = "clients" if pair[0] is None else "images"
            raise UsageError(f"There are more {more}: give one client for all, or one per image.")
        yield cast("tuple[tuple[str, ImageSource], Client]", pair)


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name} should be at least 1, found {value}.")
