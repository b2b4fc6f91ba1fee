"""The routes: questions in, JSON out; `/docs` describes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from pfedmma_deploy import __version__
from pfedmma_deploy.errors import ImageError, UsageError
from pfedmma_deploy.runtime.certainty import PLAIN, Verdict, checked_terms
from pfedmma_deploy.runtime.classifier import Prediction
from pfedmma_deploy.runtime.text_tower import checked_classes
from pfedmma_deploy.serve.asking import Caller, Service, unless_gone
from pfedmma_deploy.serve.batches import BusyError
from pfedmma_deploy.serve.gate import Gate, RefusedError
from pfedmma_deploy.serve.open_inference import OpenInference
from pfedmma_deploy.serve.requests import (
    ClassifyBody,
    ClassifyOptions,
    EmbedBody,
    Options,
    json_or_form,
    read_classify,
    read_embed,
)


def make_app(service: Service, *, only_local: bool) -> ASGIApp:
    """The application that any ASGI server runs.

    Args:
        service: the model, the queue, the counters and the limits.
        only_local: answer to the name localhost alone, as a server without keys should.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.live.watch())
        try:
            yield
        finally:
            watching.cancel()
            service.batches.close()

    app = FastAPI(
        title="pfedmma",
        version=__version__,
        description="Personalized CLIP: every client's own model, out of one bundle.",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=lifespan,
    )
    _documentation(app)
    _first_version(app, service)
    _second_version(app, OpenInference(service))
    # The page's field for a key.
    described = app.openapi()
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    described.setdefault("components", {})["securitySchemes"] = schemes
    described["security"] = [{"key": []}]
    for kind in (RefusedError, BusyError, HTTPException, ClientDisconnect, UsageError, Exception):
        app.add_exception_handler(kind, _refused)
    return Gate(
        app,
        live=service.live,
        batches=service.batches,
        metrics=service.metrics,
        limits=service.limits,
        only_local=only_local,
    )


def _documentation(app: FastAPI) -> None:
    """`/docs`, with scripts from an installed package: FastAPI's own come from a public server."""
    app.mount("/swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="pfedmma",
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/swagger/favicon-32x32.png",
        )

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("/docs")


def _first_version(app: FastAPI, service: Service) -> None:
    """`/v1`: images and names in, names out; and `/metrics`."""

    @app.post("/v1/classify", openapi_extra=json_or_form(ClassifyBody, ClassifyOptions))
    async def classify(request: Request) -> Response:
        """The most probable classes of each image, for one client."""
        options, images = await read_classify(request, service.limits)
        with service.batches.places(len(images)):
            answer = await _classify(Caller.of(service, request), options, images)
        return JSONResponse(answer)

    @app.post("/v1/embed", openapi_extra=json_or_form(EmbedBody, Options))
    async def embed(request: Request) -> Response:
        """L2-normalised features of images, or of texts as they are."""
        options, images, texts = await read_embed(request, service.limits)
        with service.batches.places(len(images) or 1):
            answer = await _embed(Caller.of(service, request), options, images, texts)
        return JSONResponse(answer)

    @app.get("/v1/clients")
    async def clients(request: Request) -> dict[str, Any]:
        """The clients that the key opens, with the classes that each trained on."""
        caller = Caller.of(service, request)
        names = caller.model.classifier.class_names
        listed = [
            {
                "id": client.id,
                "index": client.index,
                "seen": [names[label] for label in client.seen],
                "default_strength": client.default_strength,
            }
            for client in caller.clients()
        ]
        return {"model": service.live.name, "version": caller.model.version, "clients": listed}

    @app.get("/v1/classes")
    async def classes() -> dict[str, Any]:
        """The names that are chosen from unless others are sent, and the prompt around them."""
        manifest = service.live.model.classifier.manifest
        return {"classes": list(manifest.class_names), "prompt": manifest.prompt}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        service.metrics.queue.set(service.batches.places_taken)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _second_version(app: FastAPI, protocol: OpenInference) -> None:
    """`/v2`: the Open Inference Protocol."""

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return protocol.server()

    @app.get("/v2/health/live")
    async def alive() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):

        @app.get(prefix)
        async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
            protocol.require(name, version)
            return protocol.metadata()

        @app.get(f"{prefix}/ready")
        async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
            protocol.require(name, version)
            return {"name": name, "ready": True}

        @app.post(f"{prefix}/infer")
        async def infer(request: Request, name: str, version: str | None = None) -> Response:
            protocol.require(name, version)
            return await protocol.infer(request)


async def _classify(
    caller: Caller, options: ClassifyOptions, images: list[bytes]
) -> dict[str, Any]:
    model = caller.model.classifier
    typed = None if options.classes is None else checked_classes(options.classes)
    names = typed or model.class_names
    terms = checked_terms(options.accept, options.coverage, options.negatives)
    views = [caller.view(caller.index(options.client), options.strength)]
    if options.compare:
        views.append((0, 1.0))
    for view in views:
        # Before the images, so that those do not wait decoded for a name that is encoded.
        if typed or view[1] not in {0.0, model.clients[view[0]].default_strength}:
            caller.require_texts()
            work = partial(model.text_features, view, names)
            await unless_gone(caller.request, caller.service.batches.with_texts(work))
        if terms.negatives:
            caller.require_texts()
            work = partial(model.text_features, view, terms.negatives)
            await unless_gone(caller.request, caller.service.batches.with_texts(work))
    found = await caller.features(images, [views] * len(images))
    predictions, skipped = [], []
    for number, features in enumerate(found):
        if isinstance(features, ImageError):
            skipped.append({"image": number, "reason": str(features)})
            continue
        pairs = zip(views, features, strict=True)
        answers = [model.answer("", view, row, names, options.top, terms) for view, row in pairs]
        predictions.append({"image": number, **_described(answers)})
    if not predictions:
        raise RefusedError(422, f"No image could be read; the first: {skipped[0]['reason']}.")
    return {"predictions": predictions, "skipped": skipped}


def _described(answers: list[Prediction]) -> dict[str, Any]:
    tops = [
        [{"class": score.name, "probability": score.probability} for score in answer.top]
        for answer in answers
    ]
    own = answers[0]
    found: dict[str, Any] = {"client": own.client, "strength": own.strength, "top": tops[0]}
    if own.verdict != PLAIN:
        found |= {"answer": own.answer, **_told(own.verdict)}
    return found if len(tops) == 1 else {**found, "zero_shot": tops[1]}


def _told(verdict: Verdict) -> dict[str, Any]:
    """What is to be thought of an answer, without what nobody asked for."""
    return {name: value for name, value in asdict(verdict).items() if value is not None}


async def _embed(
    caller: Caller, options: Options, images: list[bytes], texts: list[str]
) -> dict[str, Any]:
    index, strength = caller.view(caller.index(options.client), options.strength)
    client = caller.model.classifier.clients[index].id
    if texts:
        caller.require_texts()
        embed = partial(caller.model.classifier.embed_texts, texts, index, strength=strength)
        rows = await unless_gone(caller.request, caller.service.batches.with_texts(embed))
        return {"client": client, "strength": strength, "embeds": rows.tolist(), "skipped": []}
    found = await caller.features(images, [[(index, strength)]] * len(images))
    embeds: list[list[float] | None] = []
    skipped = []
    for number, features in enumerate(found):
        if isinstance(features, ImageError):
            skipped.append({"image": number, "reason": str(features)})
            embeds.append(None)
        else:
            embeds.append(features[0].tolist())
    return {"client": client, "strength": strength, "embeds": embeds, "skipped": skipped}


async def _refused(_: Request, error: Exception) -> Response:
    """Whatever went wrong, as a status and a sentence."""
    headers: dict[str, str] = {}
    status, sentence = 500, "Something went wrong in the server; its log says what."
    if isinstance(error, RefusedError):
        status, sentence = error.status, error.sentence
        headers = {name.decode(): value.decode() for name, value in error.headers}
    elif isinstance(error, BusyError):
        status, sentence, headers = 503, str(error), {"retry-after": "1"}
    elif isinstance(error, HTTPException):
        status, sentence = error.status_code, f"{error.detail}."
    elif isinstance(error, UsageError):
        status, sentence = 422, str(error)
    elif isinstance(error, ClientDisconnect):
        status, sentence = 499, "The caller hung up."
    if status in {408, 413}:
        # The rest of the body is not wanted.
        headers["connection"] = "close"
    return JSONResponse({"error": sentence}, status, headers)
