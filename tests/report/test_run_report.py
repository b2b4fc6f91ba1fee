"""Reports on small federations: every figure, the page, every method."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import StoreError, UsageError
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.registry import METHODS
from pfedmma_deploy.report.alignment import Alignment
from pfedmma_deploy.report.figures import draw, draw_picture
from pfedmma_deploy.report.page import number, render_page, signed, size
from pfedmma_deploy.report.run_report import report_runs
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import config, one_thread, sites, write_images
from tests.methods.test_all_methods import options

__all__ = ["config", "one_thread", "sites"]

SECTIONS = {
    "answer",
    "alignment",
    "clients",
    "cost",
    "training",
    "calibration",
    "provenance",
}


class Page(HTMLParser):
    """What a page holds: ids, headings' text, and tags that are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"


def require_sound(page: str) -> Page:
    """The page is whole and asks for nothing outside it."""
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    found = Page(page)
    assert found.open == []
    assert {"svg", "path", "text"} <= found.tags
    assert not found.tags & {"script", "link", "iframe", "img", "object"}
    return found


@pytest.fixture(scope="module")
def run(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(options("pfedmma", sites), tmp_path_factory.mktemp("runs") / "photos").run


@pytest.fixture(scope="module")
def values(run: Run) -> dict[str, Any]:
    return report_runs([run])


@pytest.fixture(scope="module")
def page(values: dict[str, Any]) -> str:
    return render_page(values)


def test_every_figure_is_there_and_agrees(run: Run, values: dict[str, Any]) -> None:
    json.dumps(values, allow_nan=False)
    (found,) = values["runs"]
    answer, evaluated = found["answer"], evaluate_run(run).to_dict()
    for key in ("zero_shot", "personalized", "worst", "losing_share", "losing_clients"):
        assert answer[key] == evaluated[key]
    clinic = answer["clients"]["clinic"]
    assert clinic["personalized"] == evaluated["clients"]["clinic"]["personalized"]
    images = clinic["test_images"]
    assert images["all"] == images["base"] + images["novel"]
    low, high = clinic["intervals"]["personalized"]["all"]
    assert low <= clinic["personalized"]["all"] <= high
    gains = [e["personalized"]["all"] - e["zero_shot"]["all"] for e in answer["clients"].values()]
    assert answer["gain"]["all"]["mean"] == pytest.approx(sum(gains) / 2)
    assert found["training"]["nearly"]["round"] in (1, 2)
    assert found["training"]["clients"]["harbour"]["round"] == [1, 2]
    assert found["training"]["failures"] == []
    assert found["cost"]["bytes_up"] == 2 * 2 * found["cost"]["bytes_per_round"]["up"]
    assert found["clients"]["holdings"]["clients"] == ["clinic", "harbour"]
    assert len(found["clients"]["similarity"]) == 2
    calibration = found["calibration"]
    assert calibration["clients"]["clinic"]["validation_images"] == 4
    count = sum(row["count"] for row in calibration["reliability"]["personalized"])
    assert count == 2 * images["all"]
    assert found["provenance"]["config"]["rounds"] == 2


def test_the_strength_runs_from_zero_shot_to_beyond(values: dict[str, Any], page: str) -> None:
    (found,) = values["runs"]
    curve = found["strength"]["mean"]
    assert [point["strength"] for point in curve] == [0.0, 0.5, 1.0, 1.5]
    for place, side in ((0, "zero_shot"), (2, "personalized")):
        for key in ("local", "base", "novel", "all"):
            assert curve[place][key] == pytest.approx(found["answer"][side][key])
    assert "mean accuracies by strength" in page


def test_ablating_the_shared_part(values: dict[str, Any], page: str) -> None:
    """Both clients hold the server's projection, so swapping it is left out and said."""
    (found,) = values["runs"]
    variants = found["alignment"]["variants"]
    assert list(variants) == ["zero_shot", "own", "zeroed", "initial"]
    assert set(variants["own"]["points"].values()) <= {0.0, None}
    assert len(variants["own"]["features"]["cka"]) == 3
    assert "All clients hold the same shared part" in page


def test_ids_stand_for_one_place(page: str) -> None:
    """Markers and clips of one drawing must not be those of another."""
    ids = require_sound(page).ids
    assert len(ids) == len(set(ids))


def test_a_shared_part_of_ones_own_is_swapped(config: TrainConfig, tmp_path: Path) -> None:
    """A client that fine-tuned its copy of the projection holds another one than the server's."""
    run = train(replace(config, rounds=1), tmp_path / "run").run
    fine_tune(run, "clinic", epochs=1, train_shared=True)
    (found,) = report_runs([run])["runs"]
    variants = found["alignment"]["variants"]
    assert list(variants)[-1] == "another" and variants["another"]["clients"] == 2
    change = variants["another"]["accuracy"]["all"] - variants["own"]["accuracy"]["all"]
    assert variants["another"]["points"]["all"] == pytest.approx(change)
    assert found["provenance"]["personalized"] == ["clinic"]


def test_blocks_are_read_where_the_features_come_from(run: Run) -> None:
    """What the recorder kept of the last blocks gives the features, through CLIP's own heads."""
    session = open_run_session(run)
    alignment = Alignment(session)
    adapter = session.client_model(run.load_client("clinic"), run.load_shared())
    with torch.inference_mode():
        images = torch.cat(list(alignment.scorer.encode_images(adapter, alignment.images)))
        texts = alignment.scorer.encode_texts(adapter, alignment.labels)
    kept = alignment.recorder.read()
    last = session.backbone.depth("image") - 1
    token = torch.from_numpy(kept["image"][last]).float()[:, None]
    assert torch.allclose(session.backbone.pool_image(token), images, atol=1e-5)
    token = torch.from_numpy(kept["text"][last]).float()[:, None]
    ends = torch.zeros(len(texts), dtype=torch.long)
    assert torch.allclose(session.backbone.pool_text(token, ends), texts, atol=1e-5)
    first = session.backbone.depth("text") - 2
    assert kept["text"][first].shape == (4, 24), "the end token of each name, read earlier, too"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_a_report(
    name: str,
    sites: Path,
    tmp_path: Path,
) -> None:
    parameters = {"distill_batches": 2} if name == "tap" else {}
    made = replace(options(name, sites, **parameters), rounds=1)
    values = report_runs([train(made, tmp_path / name).run])
    (found,) = values["runs"]
    page = render_page(values)
    require_sound(page)
    no_features = name in ("fedotp", "pfedmoap")
    assert ("not the cosine of one image and one text feature" in page) == no_features
    adapted = found["alignment"]["adapts"]
    assert ("The text tower is not adapted" in page) == ("text" not in adapted)
    assert ("Nothing of the adapter is shared" in page) == (name in ("zero-shot", "local"))
    assert ("This method trains nothing" in page) == (name == "zero-shot")
    assert ("Nothing of this method stays with a client" in page) == (
        found["clients"]["similarity"] is None
    )


def test_the_page_has_its_sections(page: str) -> None:
    found = require_sound(page)
    assert {f"run-1-{name}" for name in SECTIONS} <= set(found.ids)


def test_several_runs_side_by_side(values: dict[str, Any]) -> None:
    (one,) = values["runs"]
    other = {**one, "name": "another run"}
    page = render_page({**values, "runs": [one, other]})
    found = require_sound(page)
    assert {"run-1-answer", "run-2-answer"} <= set(found.ids)
    assert "Side by side" in page and '<a href="#run-2-top">another run</a>' in page


def test_names_cannot_become_markup(tmp_path: Path, config: TrainConfig) -> None:
    """Classes and a client called like markup, and like TeX."""
    root = tmp_path / "data"
    hostile = ("<script>alert(1)<", "a & b $x", "ship", 'x" onload="y')
    for site, shift in (("<b>site", 0), ("harbour'", 10)):
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            for place, name in enumerate(hostile):
                folder = root / site / split / name
                write_images(folder, count, (60 * place, 90, 90), 100 * place + shift + count)
    made = replace(config, data=str(root), rounds=1)
    page = render_page(report_runs([train(made, tmp_path / "run").run]))
    require_sound(page)
    assert "&lt;script&gt;alert(1)&lt;" in page and "&lt;b&gt;site" in page
    assert "a &amp; b $x" in page


def test_every_class_is_in_the_legend(values: dict[str, Any]) -> None:
    """matplotlib leaves out labels that begin with an underscore, and reads $x$ as a formula."""
    picture = values["runs"][0]["alignment"]["picture"]
    names = ["_ship", "$x$", "<i>", "tree"]
    drawn = draw(draw_picture, {**picture, "classes": names}, "after", alt="a <b>")
    for name in (">_ship<", ">$x$<", ">&lt;i&gt;<", 'aria-label="a &lt;b&gt;"'):
        assert name in drawn


def test_mistakes(run: Run) -> None:
    with pytest.raises(UsageError, match="name at least one run"):
        report_runs([])
    with pytest.raises(UsageError, match="is named twice: name each run once"):
        report_runs([run, Run.open(run.folder)])
    begun = Run(run.folder, {**run.manifest, "status": "training"})
    with pytest.raises(StoreError, match="is not finished"):
        report_runs([begun])


def test_how_figures_are_written() -> None:
    assert (number(None), number(12.345), number(1234.5, 0)) == ("–", "12.3", "1,234")  # noqa: RUF001
    assert (signed(1.26), signed(-0.5)) == ("+1.3", "−0.5")  # noqa: RUF001
    assert (number(-0.001, 2), signed(-0.01)) == ("0.00", "0.0")
    assert [size(count) for count in (12, 4352, 3.2e6)] == ["12 bytes", "4.35 kB", "3.2 MB"]


def test_failures_and_old_runs(config: TrainConfig, tmp_path: Path) -> None:
    """One of two clients may fail in a round; version 0.1 recorded means alone."""
    made = replace(config, client_dropout=0.9, rounds=3)
    run = train(made, tmp_path / "run").run
    values: dict[str, Any] = report_runs([run])
    failures = values["runs"][0]["training"]["failures"]
    assert [one["round"] for one in failures] == [1, 2]
    assert "2 rounds lacked clients that had been chosen" in render_page(values)
    file = run.folder / "rounds.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["client_loss"], line["client_val_accuracy"], line["energy"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = report_runs([run])
    assert values["runs"][0]["training"]["clients"] == {}
    assert "This run recorded means over clients only" in render_page(values)
