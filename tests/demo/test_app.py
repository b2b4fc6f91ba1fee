"""Starting the demo: which bundle, which port, what is missing; and its functions for programs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.demo import app
from pfedmma_deploy.errors import UsageError
from tests.demo.serving import ROOT, Served

pytest_plugins = ["tests.demo.fixtures"]

SMALL = ("airplane", "automobile", "bird")


def test_the_default_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "__file__", str(tmp_path / "site-packages/pfedmma_deploy/demo/app.py"))
    assert app.default_bundle() is None
    here = tmp_path / "exports" / "quickstart"
    here.mkdir(parents=True)
    (here / "manifest.json").touch()
    assert app.default_bundle() == Path("exports", "quickstart")
    # From anywhere, when the package runs from a checkout.
    checkout = tmp_path / "checkout"
    (checkout / "exports" / "quickstart").mkdir(parents=True)
    (checkout / "exports" / "quickstart" / "manifest.json").touch()
    monkeypatch.setattr(app, "__file__", str(checkout / "demo" / "app.py"))
    monkeypatch.chdir(checkout / "exports")
    assert app.default_bundle() == checkout / "exports" / "quickstart"


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} cannot be used: something else listens"):
            app.free_port(port)
    assert app.free_port(None) in app.PORTS


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("demo", 1, "make one with `pfedmma export` (or all at once with `pfedmma quickstart`)"),
        ("demo --model nowhere", 1, "Error: nowhere is no folder"),
        ("demo --port 0", 2, "Invalid value for '--port'"),
        ("demo --device tpu", 2, "Device 'tpu' is unknown"),
    ],
)
def test_mistakes(
    arguments: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "__file__", str(tmp_path / "a/b/c/app.py"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    words = arguments.split()
    if "--device" in words:
        words += ["--model", str(request.getfixturevalue("demo_bundle"))]
    assert run(words) == code
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err


def test_mcp_without_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mcp" else find(name)
    )
    assert run(["demo", "--mcp", "--model", "x"]) == 2
    assert (
        f"Install it with\n  {sys.executable} -m pip install 'gradio[mcp]'"
        in capsys.readouterr().err
    )


def test_the_script_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "demo" / "app.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Show zero-shot and personalized models in the browser" in done.stdout


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    with_files = tmp_path_factory.mktemp("downloads")
    connected = Client(
        served.url, verbose=False, download_files=str(with_files), analytics_enabled=False
    )
    yield connected
    connected.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((60, 40), 80).convert("RGB").save(path)
    return path


def call(connected: Any, endpoint: str, /, **values: Any) -> Any:
    return connected.predict(**values, api_name=f"/{endpoint}")


def test_the_api_is_documented(client: Any) -> None:
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/compare", "/gallery", "/clients", "/about"}
    names = [field["parameter_name"] for field in described["/compare"]["parameters"]]
    assert names == ["image", "client", "class_set", "typed", "other", "truth", "strength"]
    assert (
        "zero-shot CLIP and a client's personalized model" in described["/compare"]["description"]
    )


def test_clients_and_about(client: Any, served: Served) -> None:
    manifest = json.loads((served.bundle / "manifest.json").read_text())
    found = call(client, "clients")
    assert [row["id"] for row in found["clients"]] == [c["id"] for c in manifest["clients"][1:]]
    assert call(client, "about")["backbone"] == manifest["backbone"]


def test_compare_equals_the_runtime(client: Any, served: Served, picture: Path) -> None:
    from gradio_client import handle_file

    from pfedmma_deploy.runtime import Classifier

    classifier = Classifier.load(served.bundle, "cpu")
    first = classifier.clients[1].id
    found = call(client, "compare", image=handle_file(picture), client=first, typed="")
    for answers, who in zip(found["models"], (0, 1), strict=True):
        expected = classifier.predict(picture, who)[0].top
        assert [answer["name"] for answer in answers["top"]] == [score.name for score in expected]
        for answer, score in zip(answers["top"], expected, strict=True):
            assert answer["probability"] == pytest.approx(score.probability, abs=1e-4)
    assert found["device"] == "cpu" and found["truth"] is None

    if classifier.manifest.strength is not None:
        half = call(client, "compare", image=handle_file(picture), client=first, strength=0.5)
        best = classifier.predict(picture, 1, strength=0.5)[0].top[0]
        answers = half["models"][1]
        assert answers["strength"] == 0.5 and answers["top"][0]["name"] == best.name
        assert answers["top"][0]["probability"] == pytest.approx(best.probability, abs=1e-4)

    typed = call(
        client,
        "compare",
        image=handle_file(picture),
        client=first,
        class_set="typed",
        typed="a zebra, a tea pot",
    )
    expected = classifier.predict(picture, 1, ["a zebra", "a tea pot"])[0].top
    answers = typed["models"][1]["top"]
    assert {a["name"]: a["kind"] for a in answers} == {"a zebra": "typed", "a tea pot": "typed"}
    assert answers[0]["probability"] == pytest.approx(expected[0].probability, abs=1e-3)


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (b"hello", {}, "This file is not an image that I can read: not a JPEG, PNG, WebP or BMP"),
        (b"GIF89a\1\0\1\0", {}, "but a GIF image"),
        (None, {"class_set": "typed", "typed": "one"}, "Type at least two class names"),
        (None, {"other": "nobody"}, "There is no client 'nobody'"),
        (None, {"strength": 2}, r"A strength is a number from 0 .* to 1.5, found 2"),
        (None, {"truth": "unicorn"}, "The true class 'unicorn' is none of the model's classes"),
    ],
)
def test_mistakes_are_sentences(
    content: bytes | None, values: dict[str, Any], message: str, client: Any, picture: Path
) -> None:
    from gradio_client import handle_file

    if content is not None:
        picture.write_bytes(content)
    first = call(client, "clients")["shown_first"]
    with pytest.raises(Exception, match=message):
        call(client, "compare", image=handle_file(picture), client=first, **values)


def test_addresses_are_not_fetched(client: Any) -> None:
    address = {"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    first = call(client, "clients")["shown_first"]
    with pytest.raises(Exception, match="I fetch nothing from the network"):
        call(client, "compare", image=address, client=first)


def test_files_of_this_machine_are_not_read(client: Any, served: Served) -> None:
    inside = {"path": str(served.bundle / "manifest.json"), "meta": {"_type": "gradio.FileData"}}
    first = call(client, "clients")["shown_first"]
    with pytest.raises(Exception):  # noqa: B017 - Gradio's own refusal, in its words
        call(client, "compare", image=inside, client=first)


def test_gallery_of_a_zip(client: Any, picture: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in SMALL:
            file.write(picture, f"photos/{name}/1.png")
        file.writestr("photos/bird/broken.png", b"x")
        file.writestr("../../evil.txt", b"x")
    first = call(client, "clients")["shown_first"]
    found, table = call(client, "gallery", files=[handle_file(archive)], client=first, names="all")
    assert [image["truth"] for image in found["images"]] == sorted(SMALL)
    assert found["accuracy"]["all"]["images"] == 3
    assert [entry["name"] for entry in found["skipped"]] == ["photos/bird/broken.png"]
    assert found["remarks"] == ["1 other files in the zip were left out."]
    rows = list(csv.DictReader(io.StringIO(Path(table).read_text())))
    assert [row["true_class"] for row in rows] == sorted(SMALL)


def test_gallery_of_the_sample(client: Any) -> None:
    first = call(client, "clients")["shown_first"]
    found, _ = call(client, "gallery", files=[], client=first, count=20, filter="differ")
    assert found["accuracy"]["all"]["images"] == 20
    assert all(image["zero_shot"] != image["personalized"] for image in found["images"])
