"""What a client's own strength is, who chooses it, and who answers at it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import StoreError
from pfedmma_deploy.export.run import export_run
from pfedmma_deploy.federated.evaluate import evaluate_run, strength_curves
from pfedmma_deploy.federated.personalize import personalize
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.store.run import Run, default_strength


def eager(config: TrainConfig) -> TrainConfig:
    """Clients that move too far."""
    return replace(config, lr=0.5, rounds=3)


@pytest.fixture
def run(config: TrainConfig, tmp_path: Path) -> Run:
    return train(eager(config), tmp_path / "run").run


def test_training_chooses_within_the_bound(run: Run) -> None:
    for id in run.client_ids:
        client = run.load_client(id)
        guard = client.config["guard"]
        assert client.default_strength == guard["strength"] < 1
        assert max(guard["moved_images"], guard["moved_names"]) <= guard["bound"] == 6.0
        trained = guard["moved_images_as_trained"], guard["moved_names_as_trained"]
        assert max(trained) > 6.0
        assert guard["validation"] >= guard["validation_zero_shot"]


def test_a_bound_of_100_lets_clients_count_as_trained(config: TrainConfig, tmp_path: Path) -> None:
    run = train(replace(eager(config), guard=100.0), tmp_path / "run").run
    for id in run.client_ids:
        client = run.load_client(id)
        assert (client.default_strength, client.config["guard"]) == (1.0, None)


def test_evaluation_is_of_what_is_served(run: Run) -> None:
    session = open_run_session(run)
    found = evaluate_run(run, session=session)
    as_trained = evaluate_run(run, session=session, strength=1.0)
    assert found.strengths == {id: run.load_client(id).default_strength for id in run.client_ids}
    assert found.to_dict()["clients"]["clinic"]["strength"] == found.strengths["clinic"]
    assert set(as_trained.strengths.values()) == {1.0}
    curves = strength_curves(run, found, session, (0.0, 0.5))
    for id, curve in curves.items():
        assert list(curve) == sorted({0.0, 0.5, 1.0, found.strengths[id]})
        assert curve[1.0] == as_trained.personalized[id]
        assert curve[found.strengths[id]] == found.personalized[id]
        assert curve[0.0] == found.zero_shot[id]


def test_personalizing_chooses_anew(run: Run) -> None:
    result = personalize(run, "clinic", epochs=1)
    client = Run.open(run.folder).load_client("clinic")
    assert client.default_strength == result.strength == client.config["guard"]["strength"]
    assert evaluate_run(run).personalized["clinic"] == result.after


def test_a_bundle_answers_at_the_same_strength(run: Run, sites: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "bundle")
    classifier = Classifier.load(tmp_path / "bundle", device="cpu")
    wanted = run.load_client("clinic").default_strength
    assert classifier.bundle.manifest.clients[1].default_strength == wanted
    image = sites / "clinic" / "test" / "cat" / "0.png"
    (plain,) = classifier.predict([image], client="clinic")
    (asked,) = classifier.predict([image], client="clinic", strength=wanted)
    assert plain == asked and plain.strength == wanted
    # The known names' features are stored for it: the text tower stays closed.
    assert classifier._texts._opened is None
    (trained,) = classifier.predict([image], client="clinic", strength=1)
    assert trained.top != plain.top


def test_a_strength_that_is_none_is_refused() -> None:
    assert default_strength({}, "a") == 1.0
    assert default_strength({"default_strength": 1}, "a") == 1.0
    for wrong in (-0.1, 1.6, "1", None, True):
        with pytest.raises(
            StoreError, match=r"default_strength of client a should be a number from 0 to 1\.5, fou"
        ):
            default_strength({"default_strength": wrong}, "a")
