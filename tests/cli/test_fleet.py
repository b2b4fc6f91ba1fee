"""`pfedmma fleet`: what its commands print, and what they say to a mistake."""

from __future__ import annotations

import importlib.util
import json
import socket
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation
from pfedmma_deploy.fleet.folder import Fleet, Invitation
from pfedmma_deploy.fleet.server import ServeResult
from pfedmma_deploy.fleet.status import FleetStatus
from pfedmma_deploy.store.run import Run
from tests.fleet.scripted import make_fleet, photos

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a federation `wards` of the sites a and b, and photos of cats and dogs."""
    monkeypatch.chdir(tmp_path)
    make_fleet(Path("wards"), ["a", "b"])
    photos(Path("photos"), 1)
    return tmp_path


def printed(capsys: Captured) -> dict[str, Any]:
    """The one JSON object."""
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("new", 2, "Missing argument 'FOLDER'"),
        ("new x", 2, "Missing option '--sites'"),
        ("new x --sites ,", 2, "--sites takes different names such as ward-a,ward-b, not ','"),
        ("new x --sites a,a", 2, "--sites takes different names such as ward-a,ward-b, not 'a,a'"),
        (
            "new x --sites a --preset quickstart --round-limit 0",
            2,
            "--round-limit must be above 0, and --quorum from 1",
        ),
        (
            "new x --sites a,b --preset quickstart --quorum 3",
            2,
            "--quorum from 1 to the number of sites that train in a round (2)",
        ),
        ("new x --sites a", 2, "no backbone given: name one with --backbone"),
        ("new x --sites a --config no.toml", 2, "configuration file no.toml: No such file"),
        ("new x --sites a --preset papper", 2, "not 'papper'; did you mean 'paper'?"),
        (
            "new x --sites a --config bad.toml",
            2,
            "bad.toml names clients, which a federation",
        ),
        ("new x --sites a --address here --preset quickstart", 2, "an address is HOST:PORT, such"),
        ("new x --sites a --address a/b:1 --preset quickstart", 2, "an address is HOST:PORT, such"),
        ("new wards --sites a --preset quickstart", 1, "wards is there already: choose another na"),
        ("new x --sites ../y --preset quickstart", 2, "a site's name has letters, digits, '.', '_"),
        ("add x a", 1, "x holds no federation (no fleet.json). `pfedmma fleet new x --sites A,B`"),
        (
            "add wards ../y",
            2,
            "a site's name has letters, digits, '.', '_' and '-' (64 at most)",
        ),
        ("remove wards c", 2, "wards has no site 'c' (sites: a, b)."),
        ("remove x a", 1, "x holds no federation"),
        ("serve x", 1, "x holds no federation"),
        (
            "serve wards --listen 8443",
            2,
            "an address is HOST:PORT, such as fed.example.org:8443",
        ),
        ("serve wards --listen :8443", 2, "an address is HOST:PORT"),
        ("serve wards --listen a:99999", 2, "an address is HOST:PORT"),
        ("serve wards --start-with 3", 2, "--start-with must be from 1 to 2, the sites there are"),
        ("join", 2, "Missing argument 'INVITATION'"),
        ("join no.invite --data photos", 1, "invitation no.invite: No such file or directory. Ask"),
        (
            "join bad.toml --data photos",
            1,
            "bad.toml is no invitation: it is not JSON. Ask the",
        ),
        (
            "join wards --data photos",
            1,
            "invitation wards: Is a directory. Ask the operator",
        ),
        ("join wards/invitations/a.invite --data nothing", 1, "nothing"),
        ("status x", 1, "x holds no federation"),
        ("accept wards nothing", 1, "holds no run"),
        ("rehearse --sites 1", 2, "--sites must be 2 or more, not 1: one site has nobody to learn"),
        (
            "rehearse --out photos",
            2,
            "photos is there already: remove it, or name another with",
        ),
    ],
)
def test_mistakes(arguments: str, code: int, message: str, capsys: Captured) -> None:
    Path("bad.toml").write_text("clients = 3\nbackbone = 'pfedmma-tiny'\n")
    before = sorted(Path().rglob("*"))
    assert run(["fleet", *arguments.split()]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err and "Traceback" not in captured.err
    assert sorted(Path().rglob("*")) == before


def test_a_port_that_is_taken(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(f"fleet serve wards --listen 127.0.0.1:{port}".split()) == 1
    assert capsys.readouterr().err.endswith(
        f"Error: port {port} of 127.0.0.1 cannot be opened: another program may be using it. Name "
        "another with --listen HOST:PORT.\n"
    )


COMMANDS = [
    "new x --sites a --preset quickstart",
    "add wards a",
    "remove wards a",
    "serve wards",
    "join wards/invitations/a.invite --data photos",
    "status wards",
    "accept wards photos",
    "rehearse",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extra(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in ("flwr", "cryptography") else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert run(["fleet", *command.split()]) == 1
    assert capsys.readouterr().err == (
        "Error: Federations across machines need flwr and cryptography, which is not installed: "
        "pip install 'pfedmma-deploy[fleet]'\n"
    )


def test_new(capsys: Captured) -> None:
    command = "fleet new x --sites b,a --preset quickstart --address fed.example.org:9000 --json"
    assert run(command.split()) == 0
    assert printed(capsys) == {
        "fleet": "x",
        "address": "fed.example.org:9000",
        "invitations": {"a": "x/invitations/a.invite", "b": "x/invitations/b.invite"},
    }
    fleet = Fleet.open(Path("x"))
    assert (fleet.quorum, fleet.round_limit, fleet.class_names) == (2, 600.0, None)
    assert fleet.config.partition.classes == "all"
    # In the order of folders, so that a simulation gives each the same randomness.
    assert [site.id for site in fleet.sites] == ["a", "b"]


def test_add_and_remove(capsys: Captured) -> None:
    assert run("fleet add wards c --json".split()) == 0
    assert printed(capsys) == {
        "fleet": "wards",
        "invitations": {"c": "wards/invitations/c.invite"},
    }
    assert run("fleet remove wards a --json".split()) == 0
    assert printed(capsys) == {"fleet": "wards", "sites": ["b", "c"]}
    assert not Path("wards/invitations/a.invite").exists()


def test_status_before_anything_ran(capsys: Captured) -> None:
    assert run("fleet status wards --json".split()) == 0
    values = printed(capsys)
    assert (values["name"], values["stage"], values["round"]) == ("wards", "not started", 0)
    assert [row["id"] for row in values["sites"]] == ["a", "b"]
    assert run("fleet status wards".split()) == 0
    assert "wards: not started, round 0 of 1" in capsys.readouterr().out


def test_status(capsys: Captured) -> None:
    status = FleetStatus("wards", "here:1", 4, round=2, stage="training")
    row = status.site("a")
    row.state, row.images, row.refused = "set aside", 12, 3
    row.reason = "reports a loss of None, expected a finite number"
    row.bytes_received, row.seen_seconds_ago = 12_345, 3.2
    status.write(Path("wards"))
    assert run("fleet status wards".split()) == 0
    table = capsys.readouterr().out
    assert "wards: training, round 2 of 4" in table
    for text in ("a", "set aside", "12", "3 s ago", "12,345", "reports a loss of None"):
        assert text in table


def test_serve_says_how_it_ended(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    status = FleetStatus("wards", "here:1", 1, round=1, stage="complete")

    def serve(fleet: Fleet, **given: Any) -> ServeResult:
        assert (given["host"], given["port"], given["start_with"]) == ("10.0.0.5", 8443, None)
        given["listening"](8443)
        given["watch"](status)
        return ServeResult(Run(Path("wards/run"), {}), status, 1.5)

    monkeypatch.setattr("pfedmma_deploy.fleet.server.serve", serve)
    assert run("fleet serve wards --listen 10.0.0.5:8443 --json".split()) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert (values["run"], values["seconds"], values["sites"]) == ("wards/run", 1.5, [])
    assert values.keys() == {*status.to_dict(), "run", "seconds", "privacy"}
    assert "Listening on 10.0.0.5:8443." in captured.err


def test_serve_stopped_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pfedmma_deploy.fleet.server.serve", stop)
    assert run("fleet serve wards".split()) == 130
    assert "Stopped. Continue with: pfedmma fleet serve wards\n" in capsys.readouterr().err


@pytest.fixture
def taking_part(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nobody connects; what would have been called."""
    called: list[str] = []

    def take_part(site: Any) -> None:
        called.append(site.invitation.site)
        raise KeyboardInterrupt

    monkeypatch.setattr("pfedmma_deploy.fleet.site.Site.take_part", take_part)
    return called


JOIN = "fleet join wards/invitations/a.invite --data photos"


def test_join_says_what_leaves_and_asks(
    taking_part: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """8, 4 and 4 images of two classes; two projections of 4 x 4 weights and 4 biases each."""
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run(JOIN.split()) == 1
    said = capsys.readouterr().err
    assert "Federation wards at 127.0.0.1:8443, as site a: pfedmma, 1 rounds." in said
    assert "photos: 8 images to train on, 4 to validate, 4 to test, of 2 classes." in said
    assert "Leaves this machine: 160 bytes of shared tensors per round (the projections)" in said
    assert "Never leaves: the images, their names and sizes, this site's own layers (" in said
    # The invitation names the classes, so a site's do not leave it.
    assert "class names" not in said
    assert "Nothing was sent." in said and taking_part == []
    assert not Path("runs").exists()


def test_join_shows_class_names_that_will_leave(
    taking_part: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    make_fleet(Path("open"), ["a"], class_names=None)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run("fleet join open/invitations/a.invite --data photos".split()) == 1
    assert "; once, the class names (cat, dog)." in capsys.readouterr().err


def test_join_stopped_says_how_to_go_on(taking_part: list[str], capsys: Captured) -> None:
    assert run([*JOIN.split(), "--yes", "--out", "mine"]) == 130
    assert taking_part == ["a"]
    again = "pfedmma fleet join wards/invitations/a.invite --data photos --out mine"
    assert f"Stopped. Continue with: {again}\n" in capsys.readouterr().err


def test_join_with_images_of_other_classes(capsys: Captured) -> None:
    photos(Path("others"), 2, ("cow", "dog"))
    assert run("fleet join wards/invitations/a.invite --data others".split()) == 1
    assert "has classes that the federation does not have: cow. Its classes are cat, dog" in (
        capsys.readouterr().err
    )


def test_join_ends_with_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(
        "pfedmma_deploy.fleet.site.Site.take_part", lambda _: Run(Path("runs/wards-a"), {})
    )
    monkeypatch.setattr("pfedmma_deploy.store.run.Run.rounds", [{"round": 1}])
    assert run([*JOIN.split(), "--yes", "--json"]) == 0
    assert printed(capsys) == {"run": "runs/wards-a", "site": "a", "rounds": [{"round": 1}]}


def test_an_invitation_names_no_place_outside(capsys: Captured) -> None:
    """The default folder is made of two names in it."""
    file = Path("wards/invitations/a.invite")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "fleet": "../../elsewhere"}))
    assert run(JOIN.split()) == 1
    assert "is damaged (federation '../../elsewhere')" in capsys.readouterr().err
    file.write_text(json.dumps(values))
    assert Invitation.read(file).fleet == "wards"


def test_rehearse(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    found = Accuracy(50.0, 50.0, 50.0, 50.0)
    values = {
        **RunEvaluation({"a": found}, {"a": found}, {"a": 0.5}).to_dict(),
        "folder": "rehearsal",
        "sites": ["site-a", "site-b"],
        "identical_to_simulation": True,
        "bytes_up_per_client_round": 4352,
        "bytes_down_per_client_round": 4352,
        "wire_bytes_per_client_round": 12_345.0,
        "seconds": 9.6,
    }
    monkeypatch.setattr("pfedmma_deploy.fleet.rehearse.rehearse", lambda *_: values)
    assert run("fleet rehearse --sites 2 --json".split()) == 0
    assert printed(capsys) == values
    assert run("fleet rehearse --sites 2".split()) == 0
    said = capsys.readouterr().out
    assert "What the sites have is bit-identical to pfedmma train on the same folders." in said
    assert "4,352 bytes of shared tensors each way, 12,345 bytes of HTTP in all, both ways." in said
