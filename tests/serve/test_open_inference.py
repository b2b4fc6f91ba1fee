"""The Open Inference Protocol: Triton's own client, and what it would never send."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.serve.asking import Service

INFER = "/v2/models/quickstart/infer"


def images(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def tensor(name: str, kind: str, values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": kind,
        "shape": list(values.shape),
        "data": values.ravel().tolist(),
    }


def test_what_it_says_of_itself(service: Service, caller: Any) -> None:
    assert caller.get("/v2/health/live").json() == {"live": True}
    assert caller.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    version = service.live.model.version
    for path in ("/v2/models/quickstart", f"/v2/models/quickstart/versions/{version}"):
        found = caller.get(path).json()
        assert found["versions"] == [version]
        assert found["inputs"][0] == {
            "name": "pixel_values",
            "datatype": "UINT8",
            "shape": [-1, 32, 32, 3],
        }
        assert caller.get(f"{path}/ready").json() == {"name": "quickstart", "ready": True}
    assert caller.get("/v2/models/other").json() == {
        "error": "There is no such model; `pfedmma serve` says its name."
    }
    assert caller.get("/v2/models/quickstart/versions/2").status_code == 404


def test_json_in_and_out(service: Service, caller: Any) -> None:
    pixels, clients = images(3), np.array([4, 0, 8])
    body = {
        "id": "mine",
        "inputs": [
            tensor("pixel_values", "UINT8", pixels),
            tensor("client", "INT64", clients[:, None]),
            tensor("strength", "FP32", np.array([1, 1, 0.5])),
        ],
    }
    found = caller.post(INFER, json=body).json()
    assert (found["id"], found["model_version"]) == ("mine", service.live.model.version)
    outputs = {one["name"]: np.reshape(one["data"], one["shape"]) for one in found["outputs"]}
    classifier = service.live.model.classifier
    views = [(4, 1.0), (0, 1.0), (8, 0.5)]
    embeds = classifier.embed_pixels(pixels, views)
    np.testing.assert_allclose(outputs["image_embeds"], embeds, atol=1e-6)
    answers = classifier.predict_pixels(pixels, clients, top_k=1, strength=[1, 1, 0.5])
    best = [classifier.class_names[int(row.argmax())] for row in outputs["logits"]]
    assert best == [answer.top[0].name for answer in answers]


def test_binary_data_in_and_out(service: Service, caller: Any) -> None:
    pixels = images(2)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "pixel_values",
                    "datatype": "UINT8",
                    "shape": [2, 32, 32, 3],
                    "parameters": {"binary_data_size": pixels.nbytes},
                },
                tensor("client", "INT64", np.array([4, 8])),
            ],
            "outputs": [{"name": "image_embeds", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = caller.post(INFER, content=head + pixels.tobytes(), headers=headers)
    end = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:end])["outputs"]
    found = np.frombuffer(answer.content[end:], "<f4").reshape(output["shape"])
    classifier = service.live.model.classifier
    views = [(index, classifier.clients[index].default_strength) for index in (4, 8)]
    expected = classifier.embed_pixels(pixels, views)
    np.testing.assert_allclose(found, expected, atol=1e-6)


PIXELS = tensor("pixel_values", "UINT8", images(1))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "pixel_values should be UINT8 [images, 32, 32, 3], found nothing."),
        ([PIXELS, PIXELS], "Inputs are pixel_values, client, strength, each once"),
        ([{**PIXELS, "name": "x"}], "Inputs are pixel_values, client, strength, each once"),
        ([{**PIXELS, "datatype": "FP32"}], "pixel_values should be UINT8, found 'FP32'."),
        ([{**PIXELS, "shape": [1, 32, 32, 4]}], "pixel_values: data should be the UINT8 numbers"),
        ([{**PIXELS, "shape": [32, 32, 3]}], "pixel_values should be UINT8 [images, 32, 32, 3]"),
        ([{**PIXELS, "shape": [-1, 32, 32, -3]}], "pixel_values: data should be the UINT8"),
        ([{**PIXELS, "data": [256] * 3072}], "pixel_values: data should be the UINT8 numbers"),
        ([{**PIXELS, "data": [0.5] * 3072}], "pixel_values: data should be the UINT8 numbers"),
        ([{**PIXELS, "data": [[1], [2, 3]]}], "pixel_values: data should be the UINT8 numbers"),
        ([{**PIXELS, "data": None}], "pixel_values: data should be the UINT8 numbers"),
        (
            [{**PIXELS, "parameters": {"binary_data_size": 3072}}],
            "pixel_values: binary_data_size should be the bytes of its shape",
        ),
        (
            [{**PIXELS, "parameters": {"binary_data_size": "x"}}],
            "pixel_values: binary_data_size should be the bytes of its shape",
        ),
        (
            [PIXELS, tensor("client", "INT64", np.array([1, 2]))],
            "client has one number an image, found 2 for 1.",
        ),
        (
            [PIXELS, tensor("client", "INT64", np.array([99]))],
            "There is no such client number for you",
        ),
        (
            [PIXELS, tensor("strength", "FP32", np.array([9]))],
            "A strength is a number from 0",
        ),
    ],
)
def test_mistakes(caller: Any, inputs: list[Any], sentence: str) -> None:
    answer = caller.post(INFER, json={"inputs": inputs})
    assert answer.status_code in {404, 413, 422}
    assert answer.json()["error"].startswith(sentence)


def test_mistakes_around_the_inputs(caller: Any) -> None:
    outputs = caller.post(INFER, json={"inputs": [PIXELS], "outputs": [{"name": "x"}]})
    assert outputs.json() == {"error": "Outputs are logits and image_embeds, found 'x'."}
    for length in ("-1", "x", "99999999", ""):
        headers = {"inference-header-content-length": length}
        answer = caller.post(INFER, json={"inputs": [PIXELS]}, headers=headers)
        assert answer.status_code == 422
        assert "inference-header-content-length should be at most" in answer.json()["error"]
    headers = {"inference-header-content-length": "13"}
    behind = caller.post(INFER, content=b'{"inputs":[]}xy', headers=headers)
    assert behind.json() == {"error": "2 bytes belong to no input."}
