"""Which client is shown first, and what is shown of all."""

from __future__ import annotations

import json

import pytest

from pfedmma_deploy.demo.clients import client_rows, clients_dict, first_client, image_counts
from pfedmma_deploy.demo.clients_view import accuracies, classes, traffic
from tests.demo.fakes import fake_model, history

# local and novel of zero-shot, local and novel of the client's own model
STAYS = (70.0, 80.0, 75.0, 80.9)
GAINS_MORE = (70.0, 80.0, 90.0, 79.1)
LOSES_NOVEL = (70.0, 80.0, 99.0, 78.9)


@pytest.mark.parametrize(
    ("north", "south", "first"),
    [
        (STAYS, GAINS_MORE, "south"),
        (STAYS, LOSES_NOVEL, "north"),
        # Nobody stays within a point: +29 - 1.1 against +30 - 10.
        (LOSES_NOVEL, (70.0, 80.0, 100.0, 70.0), "north"),
        ((70.0, 80.0, 70.0, 60.0), LOSES_NOVEL, "south"),
    ],
)
def test_the_first_client(north: tuple[float, ...], south: tuple[float, ...], first: str) -> None:
    model = fake_model(history=history(north=north, south=south))  # type: ignore[arg-type]
    assert first_client(model) == first


def test_without_figures_the_bundles_first_comes_first() -> None:
    assert first_client(fake_model()) == "north"
    # South joined later: nothing is known about it.
    assert first_client(fake_model(history=history(north=LOSES_NOVEL))) == "north"


def test_rows_and_counts() -> None:
    model = fake_model(history=history(north=STAYS, south=GAINS_MORE))
    north, south = client_rows(model)
    assert (north.seen, north.images) == (("cat",), 4)
    assert south.personalized is not None and south.personalized.local == 90.0
    counts, known = image_counts(model)
    assert known and counts.tolist() == [[3, 1, 0, 0], [3, 1, 0, 0]]
    counts, known = image_counts(fake_model())
    assert not known and counts.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_views() -> None:
    model = fake_model(history=history(north=STAYS, south=GAINS_MORE))
    text = accuracies(model)
    assert "over 2 clients" in text
    # Means of local: 70.0 and 82.5.
    assert ">70.0<" in text and ">82.5<" in text and "+12.5" in text
    assert "&minus;10.0" in text, "base falls from 50 to 40"
    assert "2.5 % of the model" in traffic(model) and "600 <i>bytes" in traffic(model)
    assert "Novel: fire truck, owl." in classes(model)


def test_empty_states_have_hints() -> None:
    model = fake_model()
    assert traffic(model) == ""
    assert "Export it from a finished run with `pfedmma export`" in accuracies(model)
    assert "the bundle has no counts" in classes(model)


def test_json() -> None:
    values = clients_dict(fake_model(history=history(north=STAYS)))
    assert values["shown_first"] == "north" and values["bytes_per_client_round"] == 150
    assert values["clients"][0]["personalized"] == {"local": 75.0, "base": 40.0, "novel": 80.9}
    assert values["clients"][1]["zero_shot"] is None
    json.dumps(values)
    assert clients_dict(fake_model())["bytes_total"] is None
