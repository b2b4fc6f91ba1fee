"""Questions over HTTP get the answers of `Classifier.predict`; mistakes get a sentence."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.serve.asking import Service
from tests.serve.calling import files, photo

CLASSIFY = "/v1/classify"


def as_json(*images: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images], **options}


def expected(service: Service, image: bytes, client: str, **options: Any) -> list[dict[str, Any]]:
    classifier: Classifier = service.live.model.classifier
    (answer,) = classifier.predict(image, client, **options)
    return [
        {"class": score.name, "probability": pytest.approx(score.probability, abs=1e-6)}
        for score in answer.top
    ]


def test_a_form_and_json_get_the_answers_of_predict(service: Service, caller: Any) -> None:
    image, options = photo(1), {"client": "3", "top": 2, "strength": 0.5}
    by_form = caller.post(CLASSIFY, files=files(image), data=options)
    by_json = caller.post(CLASSIFY, json=as_json(image, **options))
    top = expected(service, image, "3", top_k=2, strength=0.5)
    for answer in (by_form, by_json):
        assert answer.status_code == 200 and answer.json()["skipped"] == []
        (found,) = answer.json()["predictions"]
        assert (found["image"], found["client"], found["strength"]) == (0, "3", 0.5)
        assert found["top"] == top


def test_a_calibrated_client_says_whether_its_answer_counts(service: Service, caller: Any) -> None:
    image, data = photo(1), {"client": "3", "coverage": 0.9}
    (found,) = caller.post(CLASSIFY, files=files(image), data=data).json()["predictions"]
    (asked,) = service.live.model.classifier.predict(image, "3", coverage=0.9)
    assert (found["answer"], found["likely"]) == (asked.answer, list(asked.verdict.likely or ()))
    assert found["known"] == pytest.approx(asked.verdict.known, abs=1e-4)
    assert found["threshold"] == asked.verdict.threshold
    data = {"client": "3", "accept": "1"}
    (found,) = caller.post(CLASSIFY, files=files(image), data=data).json()["predictions"]
    assert found["answer"] == found["top"][0]["class"] and "threshold" not in found


def test_typed_classes_beside_zero_shot(service: Service, caller: Any) -> None:
    image, names = photo(2), ["tea pot", "zebra"]
    data = {"client": "7", "classes": names, "compare": "true"}
    (answer,) = caller.post(CLASSIFY, files=files(image), data=data).json()["predictions"]
    assert answer["top"] == expected(service, image, "7", classes=names)
    assert answer["zero_shot"] == expected(service, image, "zero-shot", classes=names)


def test_a_negative_name_that_wins_makes_the_answer_unknown(service: Service, caller: Any) -> None:
    image, names = photo(2), ["tea pot", "zebra"]
    data = {"client": "7", "classes": names, "negatives": ["noise", "random pixels"]}
    (answer,) = caller.post(CLASSIFY, files=files(image), data=data).json()["predictions"]
    classifier = service.live.model.classifier
    (asked,) = classifier.predict(image, "7", classes=names, negatives=data["negatives"])
    assert answer["answer"] == asked.answer
    assert answer.get("negative") == asked.verdict.negative
    assert answer["top"] == expected(service, image, "7", classes=names)
    told = caller.post(CLASSIFY, files=files(image), data={"accept": "1.5"})
    assert told.status_code == 422 and "accept" in told.json()["error"]
    clash = caller.post(CLASSIFY, files=files(image), data={**data, "negatives": ["zebra"]})
    assert clash.status_code == 422 and "zebra" in clash.json()["error"]


def test_without_a_client_it_is_zero_shot(caller: Any) -> None:
    (answer,) = caller.post(CLASSIFY, files=files(photo())).json()["predictions"]
    assert answer["client"] == "zero-shot"


def test_a_broken_image_is_skipped_and_its_neighbours_are_answered(
    service: Service, caller: Any
) -> None:
    good = photo(3)
    found = caller.post(CLASSIFY, files=files(good, b"nothing", good), data={"client": "3"}).json()
    assert [one["image"] for one in found["predictions"]] == [0, 2]
    assert found["predictions"][1]["top"] == expected(service, good, "3")
    reason = "not a JPEG, PNG, WebP or BMP image, or its header is damaged"
    assert found["skipped"] == [{"image": 1, "reason": reason}]
    alone = caller.post(CLASSIFY, files=files(b"nothing"))
    assert alone.status_code == 422
    assert alone.json() == {"error": f"No image could be read; the first: {reason}."}


def test_features_of_images_and_of_texts(service: Service, caller: Any) -> None:
    classifier, image = service.live.model.classifier, photo(4)
    found = caller.post("/v1/embed", json=as_json(image, b"?", client="3")).json()
    np.testing.assert_allclose(
        found["embeds"][0], classifier.embed_images(image, "3")[0], atol=1e-6
    )
    assert found["embeds"][1] is None
    assert [one["image"] for one in found["skipped"]] == [1]
    texts = caller.post("/v1/embed", json={"texts": ["a cat", "a dog"], "client": "3"}).json()
    np.testing.assert_allclose(
        texts["embeds"], classifier.embed_texts(["a cat", "a dog"], "3"), atol=1e-6
    )


def test_what_there_is(service: Service, caller: Any) -> None:
    found = caller.get("/v1/clients").json()
    assert (found["model"], found["version"]) == ("quickstart", service.live.model.version)
    assert [one["id"] for one in found["clients"]] == ["zero-shot", *map(str, range(10))]
    assert found["clients"][4] == {
        "id": "3",
        "index": 4,
        "seen": ["airplane", "automobile", "bird", "deer"],
        "default_strength": service.live.model.classifier.clients[4].default_strength,
    }
    assert caller.get("/v1/classes").json()["prompt"] == "a photo of a {}."
    assert caller.get("/docs").status_code == 200
    forms = caller.get("/openapi.json").json()["paths"][CLASSIFY]["post"]["requestBody"]
    assert caller.get("/openapi.json").json()["security"] == [{"key": []}]
    assert set(forms["content"]) == {"multipart/form-data", "application/json"}


def test_metrics_count_requests_batches_and_skipped_images(caller: Any) -> None:
    caller.post(CLASSIFY, files=files(photo(), b"?"))
    lines = caller.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    answered = 'pfedmma_requests_total{group="all",route="/v1/classify",status="200"}'
    assert float(values[answered]) >= 1
    assert float(values["pfedmma_batch_rows_count"]) >= 1
    assert float(values['pfedmma_images_skipped_total{group="all"}']) >= 1
    assert float(values["pfedmma_queue_images"]) == 0


LONE = base64.b64encode(photo()).decode()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"images": []}, 422, "No image was sent: send one as a file, or images in base64."),
        ({"images": ["!"]}, 422, "images.0: this is no base64."),
        ({"images": "x"}, 422, "images: Input should be a valid array."),
        ({"images": [LONE], "top": 0}, 422, "top: Input should be greater than or equal to 1."),
        ({"images": [LONE], "tops": 1}, 422, "tops: Extra inputs are not permitted."),
        (
            {"images": [LONE], "strength": 2},
            422,
            "A strength is a number from 0 (zero-shot) over 1 (as trained) to 1.5, found 2.",
        ),
        ({"images": [LONE], "classes": ["a", "a"]}, 422, "The class 'a' is named twice: name"),
        ({"images": [LONE], "classes": ["x" * 201]}, 413, "A class has at most 200 characters"),
        ({"images": [LONE] * 65}, 413, "A request has at most 64 images, found 65."),
        (
            {"images": [LONE], "client": "../3"},
            404,
            "There is no such client for you; GET /v1/clients lists them.",
        ),
    ],
)
def test_mistakes_get_a_sentence(
    caller: Any, body: dict[str, Any], status: int, sentence: str
) -> None:
    answer = caller.post(CLASSIFY, json=body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(sentence)


def test_other_mistakes(caller: Any) -> None:
    broken = caller.post(CLASSIFY, content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 422
    assert broken.json()["error"].startswith("The body: Invalid JSON")
    other = caller.post(CLASSIFY, content=b"a,b", headers={"content-type": "text/csv"})
    assert (other.status_code, other.json()["error"]) == (
        415,
        "The body should be application/json or multipart/form-data by its header.",
    )
    packed = caller.post(CLASSIFY, content=b"..", headers={"content-encoding": "gzip"})
    assert packed.json() == {"error": "Bodies are taken as they are, not compressed."}
    both = caller.post("/v1/embed", json={"images": [LONE], "texts": ["a"]})
    assert both.json() == {"error": "Send images or texts, at least one and not both."}
    assert caller.get("/v1/none").json() == {"error": "Not Found."}
    assert caller.get(CLASSIFY).status_code == 405
    twice = caller.post(CLASSIFY, files=files(photo()), data={"top": ["1", "2"]})
    assert twice.json() == {"error": "top is there twice."}
