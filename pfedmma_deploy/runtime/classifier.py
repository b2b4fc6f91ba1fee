"""Images in, classes out, for many clients at once: the runtime's public face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.calibration import probabilities as softmax
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.certainty import (
    PLAIN,
    UNKNOWN,
    USUAL,
    Certainty,
    Terms,
    Verdict,
    checked_terms,
)
from pfedmma_deploy.runtime.image_tower import ImageTower, OnSkip, Pixels, Request, View
from pfedmma_deploy.runtime.sources import (
    Images,
    ImageSource,
    is_one,
    iter_sources,
    load_pixels,
    paired,
)
from pfedmma_deploy.runtime.text_tower import TextTower, checked_classes

Client = str | int
"""A client by id (text), or by index (a number; 0 is zero-shot)."""
Clients = Client | Iterable[Client]
Strengths = float | Iterable[float | None] | None
"""How much of what a client adds to CLIP counts, 0 to 1.5; None is the client's default."""
Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One answer."""

    name: str
    probability: float
    """Softmax over the classes asked for, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one client's model says about one image."""

    source: str
    """The image's path, or `image N` for the N-th one given otherwise."""
    client: str
    top: tuple[ClassScore, ...]
    """The most probable classes, best first."""
    strength: float = 1.0
    """That it was asked with."""
    verdict: Verdict = PLAIN
    """Whether the answer counts."""

    @property
    def answer(self) -> str:
        """The most probable class, or `unknown`."""
        return UNKNOWN if self.verdict.is_unknown else self.top[0].name


class Classifier:
    """An export bundle ready to predict; `Classifier.load` makes one.

    All methods may be called from many threads at once. Images are read and decoded by threads,
    ahead of the model, and an iterable of images is drawn from by a thread of its own.

    Example:
        >>> import numpy as np
        >>> from pfedmma_deploy import Classifier
        >>> classifier = Classifier.load("exports/photos-1")
        >>> (prediction,) = classifier.predict(np.zeros((1, 32, 32, 3), np.uint8), client="1")
        >>> prediction.source, prediction.top[0].name in classifier.class_names
        ('image 0', True)
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        """Open the image tower of `bundle`; the text tower waits until a text is typed."""
        _require_positive(threads=threads)
        self.bundle, self.manifest = bundle, bundle.manifest
        self.clients = bundle.manifest.clients
        """All clients, zero-shot first."""
        self.class_names = bundle.manifest.class_names
        """The classes that `predict` chooses from unless it is told others."""
        self._images = ImageTower(bundle, device, threads)
        self.device, self.fallback_reason = self._images.device, self._images.fallback_reason
        """`cpu`, `cuda` or `tensorrt`, the device really in use; why `auto` did not take CUDA."""
        self.provider = self._images.provider
        """The execution provider really in use, by ONNX Runtime's name."""
        self._texts = TextTower(bundle, self.device, threads)
        self._certainty = Certainty(bundle, self._texts)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", threads: int | None = None) -> Self:
        """The bundle in folder `path`.

        Args:
            path: folder that `pfedmma export` made.
            device: `auto` (CUDA, or else the CPU), `cpu`, `cuda` or `tensorrt`.
            threads: CPU threads of one call of the model, and images decoded at a time; default
                the physical cores that this process may use.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            DeviceError: the device asked for cannot be used; the message says why.
            UsageError: `threads` is below 1, or there is no such device.
        """
        return cls(Bundle.open(path), device, threads)

    def predict(
        self,
        images: Images,
        client: Clients = 0,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        strength: Strengths = None,
        accept: float | None = None,
        coverage: float | None = None,
        negatives: Sequence[str] | None = None,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> list[Prediction]:
        """The most probable classes of each image: `iter_predict` as a list."""
        found = self.iter_predict(
            images,
            client,
            classes,
            top_k,
            strength=strength,
            accept=accept,
            coverage=coverage,
            negatives=negatives,
            batch_size=batch_size,
            on_skip=on_skip,
        )
        return list(found)

    def iter_predict(
        self,
        images: Images,
        client: Clients = 0,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        strength: Strengths = None,
        accept: float | None = None,
        coverage: float | None = None,
        negatives: Sequence[str] | None = None,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order; holds two batches of images and never more.

        Args:
            images: one image or any iterable of them (paths, bytes, PIL images, uint8 arrays).
            client: id or index for all images, or one for each; default zero-shot.
            classes: names to choose from, encoded by the client's own text tower in the bundle's
                prompt; default the bundle's class names.
            top_k: answers per image; all classes where there are fewer.
            strength: how much of what the client adds to CLIP counts, 0 (zero-shot) to 1.5, 1 being
                as trained; one for all images, or one for each. None is the client's default
                (`default_strength` in the manifest).
            accept: share of the client's own images that must not become unknown, 1 for all; None
                is 0.95, and 1 for typed `classes`. See `Prediction.answer`.
            coverage: also give the classes that hold the right one for this share of images, in
                `Prediction.verdict.likely`.
            negatives: names that compete with the classes, encoded like these: an image that is
                likelier one of them is unknown.
            batch_size: images per call of the model.
            on_skip: called in its turn for an image that cannot be read, which is then left out;
                without it such an image ends the prediction.

        Raises:
            ImageError: an image cannot be read and there is no `on_skip`.
            UsageError: unknown client, no or repeated classes, a strength beyond its range, a
                number below 1, or `accept` or `coverage` of a client that is not calibrated.
            BundleError: another strength than 1, and the bundle's models take none.
        """
        # A wrong client or strength is noticed now, not when the first prediction is asked for.
        if isinstance(client, str | int):
            client = self.bundle.client_index(client)
        if isinstance(strength, int | float):
            strength = self.bundle.strength_of(0, strength)
        terms = checked_terms(accept, coverage, negatives)
        requests = self._requests(images, client, strength)
        if isinstance(client, int):
            self._certainty.require(client, self._names(classes), terms)
        found = self._predictions(requests, classes, top_k, terms, batch_size, on_skip)
        return (prediction for (prediction,) in found)

    def iter_compare(
        self,
        images: Images,
        clients: Sequence[Client],
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        strength: float | None = None,
        accept: float | None = None,
        coverage: float | None = None,
        negatives: Sequence[str] | None = None,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> Iterator[tuple[Prediction, ...]]:
        """Of each image the predictions of several clients, in the order of `clients`.

        An image is decoded once, and one call of the model serves all clients, who have one
        strength or each their own default; `[client, 0]` puts zero-shot beside a client. Otherwise
        like `iter_predict`, whose errors it raises.
        """
        if isinstance(clients, str) or not clients:
            raise UsageError(f"Clients to compare are a list of at least one, found {clients!r}.")
        indices = map(self.bundle.client_index, clients)
        views = tuple((index, self.bundle.strength_of(index, strength)) for index in indices)
        terms = checked_terms(accept, coverage, negatives)
        for index, _ in views:
            self._certainty.require(index, self._names(classes), terms)
        requests = _listed(images, ((name, source, views) for name, source in iter_sources(images)))
        return self._predictions(requests, classes, top_k, terms, batch_size, on_skip)

    def embed_images(
        self,
        images: Images,
        client: Clients = 0,
        *,
        strength: Strengths = None,
        batch_size: int = 32,
    ) -> Features:
        """Image features, float32 [N, D], L2-normalised. Raises like `iter_predict`."""
        found = self.iter_embed(images, client, strength=strength, batch_size=batch_size)
        rows = [feature for _, feature in found]
        return np.stack(rows) if rows else np.empty((0, self.manifest.embed_dim), np.float32)

    def iter_embed(
        self,
        images: Images,
        client: Clients = 0,
        *,
        strength: Strengths = None,
        batch_size: int = 32,
        on_skip: OnSkip | None = None,
    ) -> Iterator[tuple[str, Features]]:
        """Of each image its name and its feature [D], L2-normalised.

        Arguments and errors are those of `iter_predict`.
        """
        _require_positive(batch_size=batch_size)
        requests = self._requests(images, client, strength)
        with closing(self._images.compute(requests, batch_size, on_skip)) as computed:
            for (name, _, _), (feature,) in computed:
                yield name, feature

    def decode(self, image: ImageSource, max_pixels: int | None = None) -> Pixels:
        """One image as `predict_pixels` takes it, uint8 [S, S, 3].

        With `predict_pixels` it is `predict` in two steps, for programs that decode elsewhere or at
        another time than they predict: queues, servers, other pipelines.

        Args:
            image: a path, the bytes of a file, a PIL image, or pixels uint8 [H, W, 3].
            max_pixels: a file that has more is refused before it is decoded; default Pillow's
                limit, 89,478,485, which is never exceeded.

        Raises:
            ImageError: the image cannot be read, or is too large.
            UsageError: it is nothing that can be an image.
        """
        return load_pixels(image, self.manifest.preprocessing, max_pixels)

    def predict_pixels(
        self,
        pixels: Pixels | Sequence[Pixels],
        clients: Clients = 0,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        strength: Strengths = None,
    ) -> list[Prediction]:
        """The most probable classes of images that `decode` made, in one call of the model.

        Args:
            pixels: uint8 [N, S, S, 3], or N times [S, S, 3].
            clients: one for all images, or one for each; default zero-shot.
            classes: as for `iter_predict`, like the next two.
            top_k: answers per image.
            strength: one for all images, or one for each.

        Raises:
            UsageError: pixels of another shape or type; and like `iter_predict`.
            BundleError: like `iter_predict`.
        """
        _require_positive(top_k=top_k)
        names = self._names(classes)
        views = self._views(pixels, clients, strength)
        rows = self.embed_pixels(pixels, views)
        named = zip(views, rows, strict=True)
        return [
            self.answer(f"image {number}", view, row, names, top_k)
            for number, (view, row) in enumerate(named)
        ]

    def embed_pixels(
        self, pixels: Pixels | Sequence[Pixels], views: Sequence[tuple[int, float]]
    ) -> Features:
        """Features [N, D], L2-normalised, of images that `decode` made, in one call of the model.

        Args:
            pixels: uint8 [N, S, S, 3], or N times [S, S, 3].
            views: of each image the client's index and the strength (`Bundle.strength_of`).

        Raises:
            UsageError: pixels of another shape or type, or not as many as views.
        """
        size = self.manifest.preprocessing.image_size
        for image in pixels:
            if image.shape != (size, size, 3) or image.dtype != np.uint8:
                raise UsageError(
                    f"Pixels are uint8 [{size}, {size}, 3] here, found {image.dtype} "
                    f"{list(image.shape)}: make them with Classifier.decode."
                )
        if len(pixels) != len(views):
            raise UsageError(
                f"Each image has one client and one strength, found {len(pixels)} images and "
                f"{len(views)} clients."
            )
        if not views:
            return np.empty((0, self.manifest.embed_dim), np.float32)
        return self._images.features(list(pixels), views)

    def text_features(self, view: tuple[int, float], classes: tuple[str, ...]) -> Features:
        """Text features [C, D] of class names for a client's index at a strength, kept once made.

        Those of the bundle's own names at strengths 0 and 1 are stored, others are encoded by the
        text tower, which takes milliseconds a name the first time.
        """
        index, strength = view
        if classes == self.class_names:
            return self._texts.known(index, strength)
        return self._texts.encoded(index, classes, strength)

    def answer(
        self,
        name: str,
        view: tuple[int, float],
        image: Features,
        classes: tuple[str, ...],
        top_k: int,
        terms: Terms = USUAL,
    ) -> Prediction:
        """What a client's model says, at a strength, of an image whose features [D] are there."""
        index, strength = view
        if terms != USUAL:
            self._certainty.require(index, classes, terms)
        found = self.manifest.logit_scale * (self.text_features(view, classes) @ image)
        logits = found.astype(np.float64)
        probabilities = softmax(logits[None] / self._certainty.temperature(index))[0]
        order = np.argsort(-logits, kind="stable")[:top_k]
        best = tuple(ClassScore(classes[i], float(probabilities[i])) for i in order)
        verdict = self._certainty.judge(view, image, logits, probabilities, classes, terms)
        return Prediction(name, self.clients[index].id, best, strength, verdict)

    def _names(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        """The class names to choose from. Raises `UsageError`."""
        return self.class_names if classes is None else checked_classes(classes)

    def _views(
        self, pixels: Pixels | Sequence[Pixels], clients: Clients, strength: Strengths
    ) -> list[View]:
        """Of each image the client's index and the strength."""
        if isinstance(pixels, np.ndarray) and pixels.ndim != 4:
            raise UsageError(
                f"Pixels are uint8 [images, S, S, 3], found {pixels.dtype} {list(pixels.shape)}."
            )
        views = []
        for _, _, client, given in paired(pixels, clients, strength):
            index = self.bundle.client_index(client)
            views.append((index, self.bundle.strength_of(index, given)))
        return views

    def embed_texts(
        self, texts: Sequence[str], client: Client = 0, *, strength: float | None = None
    ) -> Features:
        """Text features, float32 [N, D], L2-normalised, of `texts` as they are (no prompt)."""
        index = self.bundle.client_index(client)
        return self._texts.embed(texts, index, self.bundle.strength_of(index, strength))

    def _requests(self, images: Images, client: Clients, strength: Strengths) -> Iterable[Request]:
        """Each image with its one client at its one strength."""

        def requests() -> Iterator[Request]:
            for name, source, one, given in paired(images, client, strength):
                index = self.bundle.client_index(one)
                yield name, source, ((index, self.bundle.strength_of(index, given)),)

        return _listed(images, requests())

    def _predictions(
        self,
        requests: Iterable[Request],
        classes: Sequence[str] | None,
        top_k: int,
        terms: Terms,
        batch_size: int,
        on_skip: OnSkip | None,
    ) -> Iterator[tuple[Prediction, ...]]:
        """The answers to each request; what is wrong with the arguments is raised at once."""
        _require_positive(top_k=top_k, batch_size=batch_size)
        names = self._names(classes)

        # A generator of its own: one that did the checks too would not begin before it is asked.
        def stream() -> Iterator[tuple[Prediction, ...]]:
            # A caller who stops listening leaves no thread that goes on reading.
            with closing(self._images.compute(requests, batch_size, on_skip)) as computed:
                for (name, _, views), rows in computed:
                    pairs = zip(views, rows, strict=True)
                    yield tuple(
                        self.answer(name, view, row, names, top_k, terms) for view, row in pairs
                    )

        return stream()


def _listed(images: Images, requests: Iterator[Request]) -> Iterable[Request]:
    """A list where there is one image, for which no threads are needed."""
    return list(requests) if is_one(images) else requests


def _require_positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} should be at least 1, found {value}.")
