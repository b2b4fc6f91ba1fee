"""The Open Inference Protocol, version 2, with binary data: KServe's and Triton's clients speak it.

Inputs and outputs have the names that they have in the bundle's ONNX files, so a client that asks
Triton for the exported graph asks this server in the same words:

    pixel_values UINT8 [N, S, S, 3]    client INT64 [N] or [N, 1]    strength FP32, as client
    image_embeds FP32 [N, D]           logits FP32 [N, C] over the bundle's class names

Source: https://github.com/kserve/open-inference-protocol and Triton's binary data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pfedmma_deploy import __version__
from pfedmma_deploy.errors import ImageError
from pfedmma_deploy.runtime.classifier import Classifier
from pfedmma_deploy.serve.asking import Caller, Service, unless_gone
from pfedmma_deploy.serve.batches import Features, View
from pfedmma_deploy.serve.gate import RefusedError
from pfedmma_deploy.serve.requests import read_json

HEADER_LENGTH: Final = "inference-header-content-length"
"""Header that says where the JSON ends and the binary data begin."""
INPUTS: Final[Mapping[str, str]] = {
    "pixel_values": "UINT8",
    "client": "INT64",
    "strength": "FP32",
}
"""Without a client it is zero-shot, without a strength the client's own."""
DTYPES: Final[Mapping[str, Any]] = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32}


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Wanted(BaseModel):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(BaseModel):
    """The JSON part of a request."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[Tensor]
    outputs: list[Wanted] = []


@dataclass(frozen=True)
class OpenInference:
    """The routes of version 2, for one model."""

    service: Service

    def server(self) -> dict[str, Any]:
        """Which server this is."""
        return {"name": "pfedmma", "version": __version__, "extensions": ["binary_tensor_data"]}

    def require(self, name: str, version: str | None) -> None:
        """Raises `RefusedError` unless this is the model."""
        if name != self.service.live.name:
            raise RefusedError(404, "There is no such model; `pfedmma serve` says its name.")
        if version not in {None, self.service.live.model.version}:
            raise RefusedError(404, "There is no such version of the model.")

    def metadata(self) -> dict[str, Any]:
        """Name, version, inputs and outputs."""
        model = self.service.live.model
        manifest = model.classifier.manifest
        size = manifest.preprocessing.image_size
        shapes = {"pixel_values": [-1, size, size, 3], "client": [-1], "strength": [-1]}
        inputs = [
            {"name": name, "datatype": kind, "shape": shapes[name]} for name, kind in INPUTS.items()
        ]
        columns = {"logits": len(manifest.class_names), "image_embeds": manifest.embed_dim}
        outputs = [
            {"name": name, "datatype": "FP32", "shape": [-1, count]}
            for name, count in columns.items()
        ]
        return {
            "name": self.service.live.name,
            "versions": [model.version],
            "platform": "onnxruntime",
            "inputs": inputs,
            "outputs": outputs,
        }

    async def infer(self, request: Request) -> Response:
        """Answer one call; raises `RefusedError`."""
        body = await request.body()
        asked, binary = await _split(request, body)
        tensors = _tensors(asked.inputs, binary)
        caller = Caller.of(self.service, request)
        pixels, views = self._rows(caller, tensors)
        with_logits = not asked.outputs or any(one.name == "logits" for one in asked.outputs)
        if with_logits and any(strength not in {0.0, 1.0} for _, strength in views):
            caller.require_texts()
        batches = self.service.batches
        with batches.places(len(pixels)):
            found = await caller.features(list(pixels), [[view] for view in views])
            rows = [one for one in found if not isinstance(one, ImageError)]  # pixels are no files
            outputs = {"image_embeds": np.concatenate(rows)}
            if with_logits:
                work = partial(_logits, caller.model.classifier, views, outputs["image_embeds"])
                outputs["logits"] = await unless_gone(request, batches.with_texts(work))
        head = {"model_name": self.service.live.name, "model_version": caller.model.version}
        return _respond(head | ({"id": asked.id} if asked.id else {}), asked, outputs)

    def _rows(
        self, caller: Caller, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.uint8], list[View]]:
        """The images, and of each whose it is."""
        size = caller.model.classifier.manifest.preprocessing.image_size
        pixels = tensors.get("pixel_values")
        if pixels is None or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise RefusedError(
                422,
                f"pixel_values should be UINT8 [images, {size}, {size}, 3], found "
                f"{'nothing' if pixels is None else list(pixels.shape)}.",
            )
        count, most = len(pixels), self.service.limits.images
        if not 1 <= count <= most:
            raise RefusedError(413, f"A request has 1 to {most} images, found {count}.")
        clients = tensors.get("client", np.zeros(count, np.int64)).reshape(-1)
        strengths = tensors.get("strength")
        for name, values in (("client", clients), ("strength", strengths)):
            if values is not None and values.size != count:
                raise RefusedError(
                    422, f"{name} has one number an image, found {values.size} for {count}."
                )
        indices = [int(index) for index in clients]
        caller.require_indices(indices)
        given = [None] * count if strengths is None else strengths.reshape(-1).tolist()
        return pixels, [
            caller.view(index, strength) for index, strength in zip(indices, given, strict=True)
        ]


def _logits(classifier: Classifier, views: Sequence[View], embeds: Features) -> Features:
    """Logits [N, C] over the bundle's class names."""
    scale, names = classifier.manifest.logit_scale, classifier.class_names
    pairs = zip(views, embeds, strict=True)
    rows = [scale * (classifier.text_features(view, names) @ image) for view, image in pairs]
    return np.stack(rows).astype(np.float32)


async def _split(request: Request, body: bytes) -> tuple[InferBody, memoryview]:
    """The JSON part of a body and the binary part behind it."""
    length = request.headers.get(HEADER_LENGTH)
    if length is None:
        end = len(body)
    elif length.isascii() and length.isdecimal() and int(length) <= len(body):
        end = int(length)
    else:
        raise RefusedError(422, f"{HEADER_LENGTH} should be at most the body's {len(body)} bytes.")
    return await read_json(request, InferBody, body[:end]), memoryview(body)[end:]


def _tensors(inputs: Sequence[Tensor], binary: memoryview) -> dict[str, NDArray[Any]]:
    """All inputs by name; binary data lie behind each other in the inputs' order."""
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for tensor in inputs:
        expected = INPUTS.get(tensor.name)
        if expected is None or tensor.name in found:
            raise RefusedError(
                422, f"Inputs are {', '.join(INPUTS)}, each once, found {tensor.name[:80]!r}."
            )
        if tensor.datatype != expected:
            raise RefusedError(
                422, f"{tensor.name} should be {expected}, found {tensor.datatype[:80]!r}."
            )
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            found[tensor.name] = _from_json(tensor)
            continue
        dtype, count = np.dtype(DTYPES[expected]), math.prod(tensor.shape)
        known = type(size) is int and min(tensor.shape, default=1) >= 0
        if not known or size != count * dtype.itemsize or start + size > len(binary):
            raise RefusedError(
                422,
                f"{tensor.name}: binary_data_size should be the bytes of its shape, and these "
                "should follow.",
            )
        # Little-endian by the protocol.
        part = np.frombuffer(binary[start : start + size], dtype.newbyteorder("<"))
        found[tensor.name] = part.reshape(tensor.shape)
        start += size
    if start != len(binary):
        raise RefusedError(422, f"{len(binary) - start} bytes belong to no input.")
    return found


def _from_json(tensor: Tensor) -> NDArray[Any]:
    """Numbers in a list, flat or nested."""
    dtype = np.dtype(DTYPES[tensor.datatype])
    try:
        values = np.asarray(tensor.data)
        kinds = "iu" if dtype.kind in "iu" else "iuf"
        fits = values.dtype.kind in kinds
        if fits and dtype.kind in "iu" and values.size:
            limits = np.iinfo(dtype)
            fits = bool(values.min() >= limits.min and values.max() <= limits.max)
        if fits:
            return values.astype(dtype).reshape(tensor.shape)
    except (ValueError, OverflowError, TypeError, RecursionError):
        pass
    raise RefusedError(
        422, f"{tensor.name}: data should be the {tensor.datatype} numbers of its shape."
    )


def _respond(head: dict[str, Any], asked: InferBody, outputs: Mapping[str, Features]) -> Response:
    """The outputs that are wanted, in JSON or as binary data behind it."""
    wanted = asked.outputs or [Wanted(name=name) for name in outputs]
    listed, parts = [], []
    for one in wanted:
        values = outputs.get(one.name)
        if values is None:
            raise RefusedError(
                422, f"Outputs are logits and image_embeds, found {one.name[:80]!r}."
            )
        described: dict[str, Any] = {
            "name": one.name,
            "datatype": "FP32",
            "shape": list(values.shape),
        }
        if one.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)):
            parts.append(values.astype("<f4").tobytes())
            described["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            described["data"] = values.ravel().tolist()
        listed.append(described)
    content = {**head, "outputs": listed}
    if not parts:
        return JSONResponse(content)
    text = json.dumps(content).encode()
    return Response(
        b"".join([text, *parts]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(text))},
    )
