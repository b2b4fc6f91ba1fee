"""A comparison's files: tables, CSV, JSON, published figures beside them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.report.comparison_figure import frontier, undominated
from pfedmma_deploy.report.comparison_files import (
    markdown,
    to_dict,
    write_comparison,
)
from pfedmma_deploy.report.published import published_rows, published_tables
from tests.report.comparisons import comparison, result


def test_the_files(tmp_path: Path) -> None:
    files = write_comparison(comparison(tmp_path))
    assert [file.name for file in files] == [
        "compare.json",
        "compare.csv",
        "compare.md",
        "compare.png",
    ]
    text = (tmp_path / "compare.md").read_text("utf-8")
    # 80, 81, 82: mean 81, deviation 1, interval 4.303 / sqrt(3).
    assert "| pfedmma | 81.0 ± 2.5 (1.0) | 60.0 ± 0.0 (0.0) |" in text
    assert "| promptfl | 70.0 ± 0.0 (0.0) | 50.0 ± 0.0 (0.0) | - | - | - |" in text
    # 2 / (1/70 + 1/60) = 64.6 and 2 / (1/80 + 1/40) = 53.3
    assert "| pfedmma | 0.01 | 70.0 | 60.0 | 64.6 | chosen |" in text
    assert "| pfedmma | 0.1 | 80.0 | 40.0 | 53.3 |  |" in text
    assert "| pfedmma | 1 | - | - | - | diverged |" in text
    assert "by the harmonic mean of two accuracies" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text("utf-8"))))
    assert [row["method"] for row in rows] == ["pfedmma", "promptfl"]
    assert (rows[0]["local_mean"], rows[1]["novel_mean"]) == ("81.0", "")
    values = json.loads((tmp_path / "compare.json").read_text("utf-8"))
    assert values["criterion"] == "harmonic"
    assert values["tuning"]["pfedmma"]["grid"][1]["harmonic"] == pytest.approx(160 / 3)
    assert values["rows"][0]["bytes_up_per_client_round"] == 400
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_differences_by_hand(tmp_path: Path) -> None:
    """promptfl - pfedmma: 70 - (80, 81, 82) = -10, -11, -12, and -10 at every seed of base.

    The mean of the former is -11 with deviation 1: t = -11 sqrt(3), and with two degrees of freedom
    p = 1 - t / sqrt(2 + t^2). Zero-shot has 70, 60 and 50 at every seed.
    """
    values = to_dict(comparison(tmp_path))
    against, zero_shot = values["differences"]
    assert (against["against"], list(against["rows"])) == ("pfedmma", ["promptfl"])
    local = against["rows"]["promptfl"]["local"]
    assert local["mean"] == -11.0
    assert local["p"] == local["corrected_p"] == pytest.approx(1 - (363 / 365) ** 0.5)
    assert (local["is_established"], local["mark"]) == (True, "**")
    assert against["rows"]["promptfl"]["base"]["mean"] == -10.0
    assert against["rows"]["promptfl"]["novel"] is None
    assert list(zero_shot["rows"]) == ["pfedmma", "promptfl"]
    assert zero_shot["rows"]["pfedmma"]["local"]["mean"] == 11.0
    # Of two rows, the smaller p counts twice, and the other is that of no difference at all.
    assert zero_shot["rows"]["pfedmma"]["local"]["corrected_p"] == pytest.approx(2 * local["p"])
    assert zero_shot["rows"]["promptfl"]["local"]["corrected_p"] == 1.0
    text = markdown(values)
    assert "## Differences from pfedmma" in text
    assert "| promptfl | -11.0 ± 2.5 \\*\\* | -10.0 ± 0.0 not established | - | - | - | - |" in text
    assert "| promptfl | +0.0 ± 0.0 not established | -10.0 ± 0.0" in text


def test_differences_are_columns_of_the_csv(tmp_path: Path) -> None:
    write_comparison(comparison(tmp_path))
    text = (tmp_path / "compare.csv").read_text("utf-8")
    pfedmma, promptfl = csv.DictReader(io.StringIO(text))
    assert (pfedmma["local_minus_pfedmma"], promptfl["local_minus_pfedmma"]) == ("", "-11.0")
    assert promptfl["local_minus_pfedmma_is_established"] == "True"
    assert pfedmma["local_minus_zero-shot"] == "11.0"
    assert (promptfl["novel_minus_pfedmma"], promptfl["novel_minus_pfedmma_p"]) == ("", "")


def test_every_seed_is_in_the_json(tmp_path: Path) -> None:
    values = to_dict(comparison(tmp_path))
    seeds = values["rows"][0]["by_seed"]
    assert [(one["seed"], one["local"], one["worst_local"]) for one in seeds] == [
        (0, 80.0, 55.0),
        (1, 81.0, 55.0),
        (2, 82.0, 55.0),
    ]
    assert [one["base"] for one in values["zero_shot"]["by_seed"]] == [60.0] * 3


def test_held_against_zero_shot_there_is_one_table(tmp_path: Path) -> None:
    made = comparison(tmp_path)
    results = {**made.results, "zero-shot": made.results["promptfl"]}
    values = to_dict(replace(made, results=results, against="zero-shot"))
    (table,) = values["differences"]
    assert list(table["rows"]) == ["pfedmma", "promptfl"]


def test_the_front_of_methods() -> None:
    """(3, 1) and (1, 3) beat each other on one axis; (2, 1) and (1, 2) are beaten by them."""
    points = [(2.0, 1.0), (1.0, 3.0), (3.0, 1.0), (1.0, 2.0), (3.0, 1.0)]
    assert undominated(points) == [(1.0, 3.0), (3.0, 1.0)]


@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_the_figure_is_drawn_for_any_number_of_seeds(seeds: int, tmp_path: Path) -> None:
    made = comparison(tmp_path)
    results = {"pfedmma": [result(seed=seed) for seed in range(seeds)]}
    picture = frontier(to_dict(replace(made, results=results)))
    assert picture.startswith(b"\x89PNG")
    assert frontier(to_dict(replace(made, results=results))) == picture


def test_figures_of_papers_are_marked_as_theirs(tmp_path: Path) -> None:
    theirs = [{"method": "pFedMMA", "local": 97.17, "base": 77.4, "novel": 81.49, "source": "x"}]
    text = markdown(to_dict(comparison(tmp_path), theirs))
    assert "theirs, not measured here" in text
    assert "| pFedMMA | 97.17 | 77.40 | 81.49 | - | x |" in text


DISJOINT = PartitionConfig(scheme="disjoint", classes="base-novel", num_shots=16)
FIELDS = {"method", "local", "base", "novel", "hm3", "source", "url", "datasets"}


def test_the_means_of_the_pfedmma_paper() -> None:
    rows = published_rows("oxford_pets", DISJOINT, "ViT-B-16")
    assert [row["method"] for row in rows] == [
        "zero-shot", "promptfl", "fedpgp", "fedotp", "pfedmoap", "pfedmma",
    ]  # fmt: skip
    ours = rows[-1]
    assert set(ours) == FIELDS
    assert (ours["local"], ours["base"], ours["novel"], ours["hm3"]) == (97.17, 77.40, 81.49, 84.15)
    assert ours["source"] == "pFedMMA, arXiv 2507.05394 (ICLR 2026), mean over 7 data sets"
    assert len(ours["datasets"]) == 7


def test_names_are_taken_as_people_write_them() -> None:
    expected = published_rows("oxford_pets", DISJOINT, "ViT-B-16")
    assert published_rows("/data/oxford-iiit-pet", DISJOINT, "vit-b/16") == expected


@pytest.mark.parametrize(
    ("dataset", "changes", "backbone"),
    [
        ("eurosat", {}, "ViT-B-16"),
        ("oxford_pets", {"scheme": "dirichlet"}, "ViT-B-16"),
        ("oxford_pets", {"classes": "all"}, "ViT-B-16"),
        ("oxford_pets", {}, "ViT-B-32"),
        ("oxford_pets", {"num_shots": 8}, "ViT-B-16"),
    ],
)
def test_another_protocol_has_no_figures(
    dataset: str, changes: dict[str, Any], backbone: str
) -> None:
    assert published_rows(dataset, replace(DISJOINT, **changes), backbone) == []


def test_every_table_names_known_data_sets_and_plausible_figures() -> None:
    for table in published_tables():
        assert set(table["datasets"]) <= set(known_datasets())
        assert table["url"].startswith("https://")
        for figures in table["methods"].values():
            assert set(figures) == {"local", "base", "novel", "hm3"}
            assert all(0 < value < 100 for value in figures.values())
