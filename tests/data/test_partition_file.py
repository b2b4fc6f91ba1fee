"""A division as a file: written, read back the same, edited, and refused where an edit broke it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.clients_file import (
    fingerprint,
    format_clients,
    parse_clients,
    write_clients,
)
from pfedmma_deploy.data.federation import build_federation
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Federation
from tests.data.toy import Toy, held, make_toy, partitioned

NAMES = ("ant", "bee", "cow", "dog")
DATA = make_toy(NAMES, {"train": 6, "val": 1, "test": 2}, ("ink", "photo"))
MADE_WITH: dict[str, str | int | float] = {"partition": "disjoint", "seed": 0}


def divided(**options: Any) -> Federation:
    values: dict[str, Any] = {"clients": 2, "num_shots": 0, "dirichlet_beta": 5.0}
    return partitioned(DATA, **(values | options))


TEXT = format_clients(divided(), MADE_WITH)


def refusal(text: str, data: Toy = DATA) -> str:
    with pytest.raises(DataError) as caught:
        parse_clients(data, text, "clients file c.toml")
    message = str(caught.value)
    assert message.startswith("clients file c.toml")
    return message.removeprefix("clients file c.toml").removeprefix(": ")


@pytest.mark.parametrize("classes", ["base-novel", "all"])
@pytest.mark.parametrize("partition", ["disjoint", "dirichlet", "domain", "leave-one-domain-out"])
def test_what_is_written_is_read_back(partition: str, classes: str) -> None:
    unseen = "ink" if partition == "leave-one-domain-out" else None
    federation = divided(partition=partition, classes=classes, unseen_domain=unseen)
    text = format_clients(federation, MADE_WITH)
    again, problems = parse_clients(DATA, text, "x")
    assert tuple(map(str, problems)) == federation.warnings
    assert again == replace(federation, warnings=())
    assert format_clients(again, MADE_WITH) == text


def test_the_file_can_be_read_by_people() -> None:
    assert TEXT.startswith("# Who holds which images, written by `pfedmma data partition`. Edit it")
    values = tomllib.loads(TEXT)
    assert values["base"] == ["ant", "bee"] and values["novel"] == ["cow", "dog"]
    assert values["made_with"] == MADE_WITH
    assert values["data"]["class_names"] == list(NAMES)
    assert values["data"]["images"] == len(DATA.examples) == 72
    first = values["clients"][0]
    assert first["id"] == "0"
    (name,) = first["train"]
    assert len(first["train"][name]) == 12
    assert first["train"][name][0] == f"ink/train/{name}/0.png"
    assert "[[clients]]  # 12 to train on, 2 to validate, 4 to test\n" in TEXT


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: "/" not in t))
def test_any_name_survives(name: str) -> None:
    data = make_toy((f"a{name}", f"b{name}"), {"train": 5, "val": 1, "test": 1})
    federation = partitioned(data, clients=1, classes="all", num_shots=0)
    again, _ = parse_clients(data, format_clients(federation, {"note": name}), "x")
    assert again.clients == federation.clients


def test_an_edit_counts() -> None:
    federation = divided()
    image = federation.clients[0].train[0]
    line = f'  "{image.key}",\n'
    place = TEXT.index(line)
    fewer, _ = parse_clients(DATA, TEXT[:place] + TEXT[place + len(line) :], "x")
    assert len(held(fewer)) == len(held(federation)) - 1
    assert image not in fewer.clients[0].train
    renamed, _ = parse_clients(DATA, TEXT.replace('id = "0"', 'id = "clinic"'), "x")
    assert [client.id for client in renamed.clients] == ["clinic", "1"]


def test_a_small_file_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("""\
format = "pfedmma-clients"
format_version = 1
base = ["cow", "ant"]
novel = []
[[clients]]
id = "site-3"
train = {ant = ["ink/train/ant/1.png", "ink/train/ant/0.png"], cow = ["ink/train/cow/5.png"]}
test = {cow = ["ink/train/cow/4.png"]}
[tests]
base = {cow = ["ink/test/cow/0.png"]}
""")
    federation = build_federation(DATA, PartitionConfig(clients_file=str(file)))
    assert (federation.base, federation.novel) == ((0, 2), ())
    (client,) = federation.clients
    assert [e.key[-9:] for e in client.train] == ["ant/0.png", "ant/1.png", "cow/5.png"]
    assert client.classes == (0, 2) and client.test[0].split == "test"
    assert [warning.split(" (")[0] for warning in federation.warnings] == [
        "classes without a test image",
        "clients without a validation image",
    ]


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "new" / "clients.toml"
    write_clients(divided(), file, MADE_WITH)
    assert file.read_text(encoding="utf-8") == TEXT
    with pytest.raises(DataError, match="is there already, and may have been edited: choose anoth"):
        write_clients(divided(), file, MADE_WITH)
    with pytest.raises(DataError, match=r"no\.toml: No such file or directory; `pfedmma data par"):
        build_federation(DATA, PartitionConfig(clients_file=str(tmp_path / "no.toml")))


def test_other_images_than_then_are_a_warning() -> None:
    more = make_toy(NAMES, {"train": 7, "val": 1, "test": 2}, ("ink", "photo"))
    assert fingerprint(more) != fingerprint(DATA)
    federation, (problem, *_) = parse_clients(more, TEXT, "x")
    assert (problem.kind, problem.level) == ("changed-data", "warning")
    assert held(federation) == held(divided())


FIRST = divided().clients[0]
KEY = FIRST.train[0].key
NAME = NAMES[FIRST.classes[0]]
OTHER = NAMES[1 - FIRST.classes[0]]
TEST = FIRST.test[0].key


def swap(old: str, new: str, count: int = 1) -> Callable[[], str]:
    def edit() -> str:
        assert old in TEXT
        return TEXT.replace(old, new, count)

    return edit


def twice(first: str, second: str) -> Callable[[], str]:
    """A second mention of an image, behind the first image of a table."""

    def edit() -> str:
        table = TEXT.index(first)
        place = TEXT.index("[  #", table)
        line = TEXT.index("\n", place) + 1
        return f'{TEXT[:line]}  "{second}",\n{TEXT[line:]}'

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap("format_version = 1", "format_version = 2"), "format_version is 2, expected 1"),
        (swap("novel = [", "novell = ["), "unknown key 'novell' in the file; did you mean 'novel'"),
        (swap('id = "0"', 'idd = "0"'), "a client has the id None; expected a text that can name"),
        (
            swap('id = "0"', 'id = "../x"'),
            "a client has the id '../x'; expected a text that can na",
        ),
        (swap('id = "1"', 'id = "0"'), "the id '0' stands there twice: give each client its own"),
        (
            swap('id = "0"', 'id = "0"\ncolour = "red"'),
            "unknown key 'colour' in client '0'; known are id, domain, train, val, test",
        ),
        (
            swap('base = ["ant", "bee"]', 'base = ["ant", "bee", "cow"]'),
            "class 'cow' is both in base and in novel: leave it in one",
        ),
        (
            swap('base = ["ant"', 'base = ["aunt"'),
            "base names a class 'aunt', which toy does not ha",
        ),
        (swap('base = ["ant"', 'base = ["bee"'), "class 'bee' stands twice in base"),
        (swap('base = ["ant", "bee"]', "base = 3"), "base is no list of class names"),
        (
            swap(f'"{KEY}"', '"ink/lost.png"'),
            "train of client '0' names an image ink/lost.png, which toy does not have: restore it,"
            " or remove its line",
        ),
        (twice("[clients.train]", KEY), f"image {KEY} stands twice in train of client '0'"),
        (
            swap(f'"{TEST}"', f'"{KEY}"'),
            f"image {KEY} stands in train of client '0' and in test of client '0': an image belongs"
            " to one client and one split",
        ),
        (
            twice("[tests.base]", f"ink/train/{'ant'}/0.png"),
            "image ink/train/ant/0.png stands in train of client",
        ),
        (
            swap(f'[clients.train]\n"{NAME}"', f'[clients.train]\n"{OTHER}"'),
            f"image {KEY} stands under '{OTHER}' in train of client '0', but the data say '{NAME}'",
        ),
        (
            swap(f'[clients.train]\n"{NAME}"', '[clients.train]\n"dog"'),
            "train of client '0' has images of 'dog', which is not one of base",
        ),
        (
            swap(f'[clients.train]\n"{NAME}"', f"[clients.train]\n[clients.train.{NAME}]\nx"),
            f"'{NAME}' in train of client '0' is no list of images",
        ),
        (
            swap('class_names = ["ant", "bee"', 'class_names = ["bee", "ant"'),
            "it was written for 4 classes, bee, ant, cow, ..., but toy has 4, ant, bee, cow, ...:",
        ),
    ],
)
def test_broken_edits_end_in_a_sentence(edit: Callable[[], str], message: str) -> None:
    assert message in refusal(edit())


def test_other_breaks() -> None:
    assert refusal("base = [").lstrip().startswith("is not TOML: ")
    assert "it has no [[clients]]" in refusal(TEXT[: TEXT.index("[[clients]]")])
    start, end = TEXT.index("[clients.train]"), TEXT.index("[clients.val]")
    untrained = f"{TEXT[:start]}[clients.train]\n{TEXT[end:]}"
    assert "but it trains on none of that class: add some to its train" in refusal(untrained)


def test_the_unseen_domain_stays_unseen() -> None:
    federation = divided(partition="leave-one-domain-out", unseen_domain="ink", clients=1)
    text = format_clients(federation, MADE_WITH)
    message = refusal(text.replace("photo/train/ant/0.png", "ink/train/ant/0.png", 1))
    assert message == (
        "image ink/train/ant/0.png of client 'photo-0' is of 'ink', the domain that nobody trains"
        " on"
    )


def test_fatal_problems_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'format = "pfedmma-clients"\nformat_version = 1\nbase = ["ant", "bee"]\n'
        '[[clients]]\nid = "x"\n'
    )
    with pytest.raises(DataError, match="clients without a training image of a class that is trai"):
        build_federation(DATA, PartitionConfig(clients_file=str(file)))
