"""From the global shared projection to one client's own model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedmma_deploy.adapters.base import Frozen
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.export.run import export_run
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.personalize import fine_tune, personalize, with_client_data
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.settle import settled
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.runtime import Bundle, Classifier
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import COLOURS, write_images
from tests.federated.test_resume import Stop, stop_at


@pytest.fixture
def run(config: TrainConfig, tmp_path: Path) -> Run:
    return train(replace(config, rounds=2), tmp_path / "run").run


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A brand-new site: a class of the run's base, one of its novel ones, and one of its own."""
    for i, name in enumerate(("Cat", "tree", "lighthouse")):
        colour = COLOURS.get(name.lower(), (230, 230, 230))
        write_images(tmp_path / "newcomer" / name, 10, colour, seed=900 + i)
    return tmp_path / "newcomer"


def test_only_local_layers_move(run: Run) -> None:
    before = run.load_client("clinic")
    result = personalize(run, "clinic")
    after = Run.open(run.folder).load_client("clinic")
    assert not result.is_new
    assert after.tensors.keys() == before.tensors.keys()
    assert any(not torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)
    assert after.config["personalized"]["trained_shared"] is False
    assert after.config["seen"] == ["cat", "dog"]


def test_the_shared_part_moves_only_when_asked_for(run: Run) -> None:
    shared = run.load_shared()
    personalize(run, "clinic", train_shared=True)
    reopened = Run.open(run.folder)
    own = reopened.load_client("clinic").tensors
    assert shared.keys() <= own.keys()
    assert any(not torch.equal(own[name], shared[name]) for name in shared)
    assert all(torch.equal(reopened.load_shared()[name], shared[name]) for name in shared)


def test_repeating_does_not_compound(run: Run) -> None:
    personalize(run, "clinic", epochs=2)
    first = Run.open(run.folder).load_client("clinic").tensors
    personalize(Run.open(run.folder), "clinic", epochs=2)
    second = Run.open(run.folder).load_client("clinic").tensors
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stop_at_every_single_write(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is cut off: the run loads, nothing is lost, repeating it gives the same."""
    federated = run.load_client("clinic").tensors
    shutil.copytree(run.folder, tmp_path / "whole")
    fine_tune(Run.open(tmp_path / "whole"), "clinic", epochs=1)
    expected = Run.open(tmp_path / "whole").load_client("clinic").tensors
    rename = Path.replace
    for write in range(20):
        for after in (False, True):
            folder = tmp_path / f"stop-{write}-{after}"
            shutil.copytree(run.folder, folder)
            opened = Run.open(folder)
            monkeypatch.setattr(Path, "replace", stop_at(write, after, rename))
            try:
                fine_tune(opened, "clinic", epochs=1)
            except Stop:
                monkeypatch.setattr(Path, "replace", rename)
            else:
                assert write > 3, "there are not so few writes"
                return
            fine_tune(Run.open(folder), "harbour", epochs=1)
            fine_tune(Run.open(folder), "clinic", epochs=1)
            again = Run.open(folder)
            kept = again.load_client("clinic", federated=True).tensors
            assert all(torch.equal(kept[n], federated[n]) for n in federated), (write, after)
            found = again.load_client("clinic").tensors
            assert all(torch.equal(found[n], expected[n]) for n in expected), (write, after)
            again.load_client("harbour")


def test_before_and_zero_shot_are_those_of_the_evaluation(run: Run) -> None:
    evaluation = evaluate_run(run)
    result = personalize(run, "harbour")
    assert result.before == evaluation.personalized["harbour"]
    assert result.zero_shot == evaluation.zero_shot["harbour"]
    assert result.after == evaluate_run(Run.open(run.folder)).personalized["harbour"]


def test_a_brand_new_client(run: Run, newcomer: Path) -> None:
    result = personalize(run, "newcomer", data=newcomer, epochs=2)
    assert result.is_new
    assert result.after.local is not None
    reopened = Run.open(run.folder)
    assert reopened.client_ids == ["clinic", "harbour", "newcomer"]
    assert reopened.load_client("newcomer").config["seen"] == ["cat", "tree", "lighthouse"]
    # It can be repeated, and the federation's own clients are still evaluated on their own.
    personalize(reopened, "newcomer", data=newcomer, epochs=1)
    assert list(evaluate_run(reopened).personalized) == ["clinic", "harbour"]


def test_a_new_client_joins_the_class_lists(run: Run, newcomer: Path) -> None:
    joined = with_client_data(open_run_session(run), "newcomer", newcomer).federation
    names = joined.dataset.class_names
    assert names == ("cat", "dog", "ship", "tree", "lighthouse")
    assert joined.names(joined.base) == ["cat", "dog", "tree", "lighthouse"]
    assert joined.names(joined.novel) == ["ship"]
    assert {names[e.label] for e in joined.novel_test} == {"ship"}
    member = joined.clients[-1]
    for example in (*member.train, *member.val, *member.test):
        assert names[example.label].casefold() in example.key.casefold()
        joined.dataset.open_image(example)


def test_export_and_predict_equal_training(run: Run, newcomer: Path, tmp_path: Path) -> None:
    """The slice as a whole: the bundle's answers are those of the run, new client included."""
    personalize(run, "newcomer", data=newcomer, epochs=2)
    (newcomer / "lighthouse").rename(newcomer / "Lighthouse")
    fine_tune(run, "second", data=newcomer, epochs=1)
    run = Run.open(run.folder)
    report = export_run(run, tmp_path / "bundle", classifier=True)
    assert report.clients == ("zero-shot", "clinic", "harbour", "newcomer", "second")
    assert report.parity.top1_agreement == 100.0
    assert report.parity.max_abs_error < 1e-5
    classifier = Classifier.load(tmp_path / "bundle", device="cpu")
    assert classifier.class_names == ("cat", "dog", "ship", "tree", "lighthouse")
    session = open_run_session(run)
    federation = session.federation
    base = federation.names(federation.base)
    images = [federation.dataset.open_image(e) for e in federation.base_test]
    right = sum(
        prediction.top[0].name == federation.dataset.class_names[example.label]
        for prediction, example in zip(
            classifier.predict(images, "clinic", classes=base, top_k=1),
            federation.base_test,
            strict=True,
        )
    )
    measured = evaluate_run(run, session=session).personalized["clinic"].base
    assert measured == pytest.approx(100 * right / len(images))


@pytest.mark.parametrize(
    ("client", "options", "message"),
    [
        ("clinik", {}, "has no client 'clinik'; did you mean 'clinic'"),
        ("clinic", {"epochs": 0}, "--epochs must be 1 or more"),
        ("clinic", {"lr": -1.0}, "--lr above 0"),
    ],
)
def test_wrong_use(run: Run, client: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        personalize(run, client, **options)  # type: ignore[arg-type]


def test_data_that_is_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        personalize(run, "new", data=tmp_path / "nothing")
    assert Run.open(run.folder).client_ids == ["clinic", "harbour"]


def test_its_calibration_is_fitted_on_its_own_validation_images(run: Run) -> None:
    """Known clients have one after training, another after fine-tuning; nothing else differs."""
    before = run.load_client("clinic").config["calibration"]
    # Two validation images of each of two base classes.
    assert before["images"] == 4
    assert before["strength"] == run.load_client("clinic").default_strength
    personalize(run, "clinic", epochs=2, lr=0.5)
    after = Run.open(run.folder).load_client("clinic").config["calibration"]
    assert after["images"] == 4 and after != before
    session = open_run_session(run)
    clinic = next(one for one in session.federation.clients if one.id == "clinic")
    adapter = session.served_model(Run.open(run.folder).load_client("clinic"), run.load_shared())
    again = session.calibrator.fit(adapter, clinic.train, clinic.val, adapter.strength)
    assert again is not None
    assert again.calibration.known_mean == pytest.approx(after["known_mean"], abs=1e-3)
    assert session.calibrator.fit(adapter, clinic.train, (), 1.0) is None


def test_it_is_fitted_at_the_clients_own_strength(run: Run) -> None:
    session = open_run_session(run)
    clinic = next(one for one in session.federation.clients if one.id == "clinic")
    careful = replace(session, config=replace(session.config, guard=0.0))
    stored = settled(careful, clinic, run.load_client("clinic"), run.load_shared())
    found = stored.config["calibration"]
    plain = session.calibrator.fit(Frozen(), clinic.train, clinic.val, 0.0)
    assert plain is not None
    assert found["strength"] == 0.0
    assert found["known_mean"] == pytest.approx(plain.calibration.known_mean, abs=1e-4)


def test_a_bundle_has_the_calibrations(run: Run, newcomer: Path, tmp_path: Path) -> None:
    """Those that are stored; of clients of older runs, which lack them, fitted at the export."""
    personalize(run, "annex", data=newcomer)
    stored = run.load_client("harbour")
    older = {key: value for key, value in stored.config.items() if key != "calibration"}
    run.save_client(replace(stored, config=older))
    run.save()
    report = export_run(run, tmp_path / "bundle", strengths=())
    bundle = Bundle.open(report.bundle)
    ids = {info.id: info.calibration for info in bundle.manifest.clients}
    assert list(ids) == ["zero-shot", "clinic", "harbour", "annex"]
    found = ids["harbour"]
    assert found is not None
    assert found.known_mean == pytest.approx(stored.config["calibration"]["known_mean"], abs=1e-3)
    assert ids["zero-shot"] is not None and ids["zero-shot"].images == 8
    assert ids["annex"] is not None
    # "tree" is a class of the bundle, and no word that competes with it.
    assert "tree" not in bundle.manifest.general_words
    assert bundle.general_embeds().shape == (len(bundle.manifest.general_words), 16)
    lengths = (bundle.mean_embeds() ** 2).sum(axis=1)
    assert lengths == pytest.approx([1.0] * 4, abs=1e-4)
