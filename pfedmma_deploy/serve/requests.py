"""What callers send, read and checked: JSON and forms become one thing, mistakes one sentence."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from pfedmma_deploy.serve.gate import Limits, RefusedError

LONG: Final = 1 << 18
"""Bytes of JSON beyond which it is read by a thread, not by the loop that all requests share."""
_SHOWN: Final = 80
"""Characters of a name sent by a caller that an answer repeats."""

Body = TypeVar("Body", bound=BaseModel)


class Options(BaseModel):
    """What every question may say beside its images."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    client: Annotated[
        str | None,
        Field(description="A client's id. Default: the only one of the key, else zero-shot"),
    ] = None
    strength: Annotated[
        float | None,
        Field(description="0 (zero-shot) over 1 (as trained) to 1.5. Default: the client's own"),
    ] = None


class ClassifyOptions(Options):
    """What may be said beside the images to classify."""

    classes: Annotated[
        list[str] | None, Field(description="Names to choose from. Default: the bundle's")
    ] = None
    top: Annotated[int, Field(ge=1, description="Answers per image")] = 5
    compare: Annotated[bool, Field(description="Also what zero-shot CLIP answers")] = False
    accept: Annotated[
        float | None,
        Field(gt=0, le=1, description="Share of the client's own images that must not be unknown"),
    ] = None
    negatives: Annotated[
        list[str] | None, Field(description="Names that compete with the classes: unknown")
    ] = None
    coverage: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Also the classes that hold the right one so often"),
    ] = None


class ClassifyBody(ClassifyOptions):
    """The JSON body of `/v1/classify`."""

    images: Annotated[list[str], Field(description="JPEG, PNG, WebP or BMP files in base64")]


class EmbedBody(Options):
    """The JSON body of `/v1/embed`: images or texts."""

    images: Annotated[list[str], Field(description="Files in base64")] = []
    texts: Annotated[list[str], Field(description="Texts as they are, without a prompt")] = []


async def read_classify(request: Request, limits: Limits) -> tuple[ClassifyOptions, list[bytes]]:
    """The options and the image files of a request to `/v1/classify`; raises `RefusedError`."""
    options: ClassifyOptions
    if _kind(request) == "multipart/form-data":
        options, images = await _form(request, ClassifyOptions, limits)
    else:
        body = await read_json(request, ClassifyBody)
        options, images = body, _files(body.images, limits)
    if not images:
        raise RefusedError(422, "No image was sent: send one as a file, or images in base64.")
    for what, names in (("class", options.classes), ("negative", options.negatives)):
        _check_texts(what, names or [], limits.classes, limits.text_length)
    return options, images


async def read_embed(request: Request, limits: Limits) -> tuple[Options, list[bytes], list[str]]:
    """Options, image files and texts of a request to `/v1/embed`; raises `RefusedError`."""
    options: Options
    texts: list[str] = []
    if _kind(request) == "multipart/form-data":
        options, images = await _form(request, Options, limits)
    else:
        body = await read_json(request, EmbedBody)
        options, images, texts = body, _files(body.images, limits), body.texts
    if bool(images) == bool(texts):
        raise RefusedError(422, "Send images or texts, at least one and not both.")
    _check_texts("text", texts, limits.classes, 10 * limits.text_length)
    return options, images, texts


async def read_json(request: Request, kind: type[Body], content: bytes | None = None) -> Body:
    """A JSON body, or `content`, as a `kind`; raises `RefusedError`."""
    if content is None:
        if _kind(request) not in {"application/json", ""}:
            raise RefusedError(
                415, "The body should be application/json or multipart/form-data by its header."
            )
        content = await request.body()
    try:
        if len(content) > LONG:
            return await asyncio.to_thread(kind.model_validate_json, content)
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RefusedError(422, sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first mistake in a body, in words; what the caller sent is not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:_SHOWN]
    return f"{where or 'The body'}: {first['msg']}."


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _form(request: Request, kind: type[Body], limits: Limits) -> tuple[Body, list[bytes]]:
    """The options and the files of a form; every part that is a file is an image."""
    most = limits.text_length * 4  # bytes of a character in UTF-8
    images: list[bytes] = []
    values: dict[str, Any] = {}
    try:
        async with request.form(
            max_files=limits.images, max_fields=2 * limits.classes + 16, max_part_size=most
        ) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(await value.read())
                elif name in ("classes", "negatives"):
                    values.setdefault(name, []).append(value)
                elif name in values:
                    raise RefusedError(422, f"{name[:_SHOWN]} is there twice.")
                else:
                    values[name] = value
    except (FormParserError, ValueError, LookupError):
        raise RefusedError(400, "The form cannot be read: send it as a browser does.") from None
    try:
        return kind.model_validate(values), images
    except ValidationError as error:
        raise RefusedError(422, sentence(error)) from None


def _files(images: list[str], limits: Limits) -> list[bytes]:
    if len(images) > limits.images:
        raise RefusedError(
            413, f"A request has at most {limits.images} images, found {len(images)}."
        )
    files = []
    for number, text in enumerate(images):
        try:
            files.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise RefusedError(422, f"images.{number}: this is no base64.") from None
    return files


def _check_texts(what: str, texts: list[str], most: int, length: int) -> None:
    many = {"class": "classes", "negative": "negatives", "text": "texts"}[what]
    if len(texts) > most:
        raise RefusedError(413, f"A request has at most {most} {many}, found {len(texts)}.")
    for number, text in enumerate(texts):
        if len(text) > length:
            raise RefusedError(
                413, f"A {what} has at most {length} characters, number {number} has {len(text)}."
            )
        # Half of a character, which JSON can write and no tokenizer reads.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RefusedError(422, f"{many}.{number}: this is no text in Unicode.")


def json_or_form(schema: type[BaseModel], options: type[BaseModel]) -> dict[str, Any]:
    """What the interactive documentation says of a body that is JSON or a form."""
    form = options.model_json_schema()
    form["properties"]["images"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "JPEG, PNG, WebP or BMP files",
    }
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": schema.model_json_schema()},
    }
    return {"requestBody": {"required": True, "content": content}}
