"""The operator's folder, and invitations: what they hold, and what is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.errors import FleetError, StoreError, UsageError
from pfedmma_deploy.fleet.folder import Fleet, Invitation
from pfedmma_deploy.fleet.keys import load_private, public_pem
from pfedmma_deploy.fleet.status import FleetStatus
from tests.fleet.scripted import invitation, make_fleet, mode


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "wards", ["a", "b"])


@pytest.fixture
def file(fleet: Fleet) -> Path:
    return fleet.folder / "invitations" / "a.invite"


def test_a_federation_is_read_as_it_was_written(fleet: Fleet) -> None:
    read = Fleet.open(fleet.folder)
    assert read == fleet
    assert [(site.id, site.index, site.since) for site in read.members] == [
        ("a", 0, 0),
        ("b", 1, 0),
    ]


def test_an_invitation_opens_one_door(fleet: Fleet) -> None:
    found = invitation(fleet, "b")
    assert (found.fleet, found.site, found.index) == ("wards", "b", 1)
    assert found.authority == (fleet.keys / "ca.pem").read_text()
    assert public_pem(found.private_key) == fleet.sites[1].public_key != fleet.sites[0].public_key


def test_only_invitations_and_keys_hold_secrets(fleet: Fleet) -> None:
    FleetStatus("wards", "here:1", 1).write(fleet.folder)
    secret = {"fleet.json": False, "status.json": False, "keys/ca.pem": False}
    secret |= {"keys/ca-key.pem": True, "invitations/a.invite": True}
    for name, is_secret in secret.items():
        path = fleet.folder / name
        assert ("PRIVATE KEY" in path.read_text()) is is_secret
        assert not is_secret or mode(path) == 0o600
    assert mode(fleet.keys) == 0o700 and mode(fleet.keys / "noise-seed") == 0o600
    assert str(fleet.noise_seed) not in (fleet.folder / "fleet.json").read_text()


def test_a_removed_site_has_no_invitation(fleet: Fleet, file: Path) -> None:
    left = fleet.remove("a")
    assert not file.exists()
    assert (
        [site.id for site in Fleet.open(fleet.folder).members]
        == ["b"]
        == [site.id for site in left.members]
    )
    with pytest.raises(UsageError, match=r"has no site 'a' \(sites: b\)\.$"):
        left.remove("a")


def test_a_site_that_is_invited_again_keeps_its_place_and_gets_a_new_key(fleet: Fleet) -> None:
    old = invitation(fleet, "a")
    again, _ = fleet.remove("a").invite("a", 7)
    new = invitation(again, "a")
    assert (new.index, again.sites[0].since, again.sites[0].is_removed) == (0, 7, False)
    assert new.key != old.key
    assert public_pem(load_private(old.key)) not in (again.folder / "fleet.json").read_text()
    third, _ = again.invite("c", 7)
    assert third.sites[2].index == 2


@pytest.mark.parametrize("id", ["", ".", "..", "../x", "a/b", "a b", "-x", "ä", "x" * 65, "a\n"])
def test_names_that_no_site_can_have(id: str, fleet: Fleet) -> None:
    with pytest.raises(UsageError, match=r"^a site's name has letters, digits, '\.', '_' and '-'"):
        fleet.invite(id, 0)
    assert Fleet.open(fleet.folder) == fleet


@pytest.mark.parametrize("address", ["here", ":1", "a@b:1", "a/b:1", "::1:8443", "a:b", "a b:1"])
def test_addresses_that_nobody_can_call(address: str, fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^an address is HOST:PORT, such as fed\.example\.org"):
        Fleet.create(tmp_path / "new", address, fleet.config, fleet.backbone, None, 1, 1.0)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_taken(fleet: Fleet) -> None:
    with pytest.raises(FleetError, match=r"wards is there already: choose another name, or add"):
        make_fleet(fleet.folder, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no federation \(no fleet\.json\)\. `pfedmma fleet new "),
        ("{", r"fleet\.json is not JSON"),
        ("[]", r"fleet\.json should hold a JSON object, found a list\.$"),
        ("{}", r"fleet\.json: expected format pfedmma-fleet version 1\.$"),
        (
            '{"format": "pfedmma-fleet", "format_version": 1}',
            r"fleet\.json is damaged: 'class_names' is missing or unknown\.$",
        ),
    ],
)
def test_no_federation(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "fleet.json").write_text(content)
    with pytest.raises((FleetError, StoreError), match=message):
        Fleet.open(tmp_path)


ADVICE = "Ask the operator for the file that `pfedmma fleet new` or `add` wrote."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "{} is no invitation: it is not JSON. "),
        (b"\xff\xfe", "{} is no invitation: it is not JSON. "),
        (b"[" * 100_000, "{} is no invitation: it is not JSON. "),
        (b"[]", "{} is no invitation. "),
        (b'{"format": "pfedmma-fleet"}', "{} is no invitation. "),
        (b" " * 1_000_001, "{} is no invitation: it has more than 1,000,000 bytes. "),
    ],
)
def test_no_invitation(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "x.invite"
    file.write_bytes(content)
    with pytest.raises(FleetError) as raised:
        Invitation.read(file)
    assert str(raised.value) == reason.format(file) + ADVICE


def test_a_file_without_end_is_no_invitation() -> None:
    with pytest.raises(FleetError, match=r"^/dev/zero is no invitation: it has more than"):
        Invitation.read(Path("/dev/zero"))


def test_a_folder_is_no_invitation(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as raised:
        Invitation.read(tmp_path)
    assert str(raised.value) == f"invitation {tmp_path}: Is a directory. {ADVICE}"
    with pytest.raises(FleetError, match="No such file or directory"):
        Invitation.read(tmp_path / "none")


def test_an_invitation_of_another_version(file: Path) -> None:
    values = {**json.loads(file.read_text()), "format_version": 2, "version": "9.9"}
    file.write_text(json.dumps(values))
    with pytest.raises(FleetError) as raised:
        Invitation.read(file)
    assert str(raised.value) == (
        f"{file} is of version 2, expected 1: install the pfedmma-deploy that made it (9.9), or "
        "ask for another."
    )


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, **changes}


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("key"), "is damaged ('key')"),
        (without("backbone"), "is damaged ('backbone')"),
        (changed(key="no key"), "is damaged ("),
        (changed(authority="no certificate"), "is damaged ("),
        (changed(index="first"), "is damaged (invalid literal for int"),
        (changed(index=-1), "is damaged (index -1)"),
        (changed(backbone=[]), "is damaged ("),
        (changed(class_names=3), "is damaged ("),
        (changed(config=[]), "is damaged (no data given"),
        (changed(config={"data": "x", "backbone": "y", "rounds": 0}), "is damaged (rounds must be"),
        (changed(config={"data": "x", "roundz": 1}), "did you mean 'rounds'?"),
        (changed(site="../../x"), "is damaged (site '../../x')"),
        (changed(fleet="../../x"), "is damaged (federation '../../x')"),
        (changed(fleet=""), "is damaged (federation '')"),
        (changed(address="evil/x:1"), "is damaged (address 'evil/x:1', expected HOST:PORT)"),
        (changed(address="a@evil:1"), "is damaged (address 'a@evil:1', expected HOST:PORT)"),
    ],
)
def test_a_damaged_invitation(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, file: Path
) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(FleetError, match=re.escape(message)):
        Invitation.read(file)


def test_an_invitation_is_its_readers_only(fleet: Fleet, file: Path, tmp_path: Path) -> None:
    found = replace(invitation(fleet, "a"), class_names=None)
    found.write(tmp_path / "copy.invite")
    assert mode(file) == mode(tmp_path / "copy.invite") == 0o600
    assert Invitation.read(tmp_path / "copy.invite") == found
