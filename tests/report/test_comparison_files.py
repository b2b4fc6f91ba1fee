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
from pfedmma_deploy.report.comparison_files import (
    _published_tables,
    markdown,
    published_rows,
    spread,
    to_dict,
    write_comparison,
)
from tests.report.comparisons import comparison


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


def test_figures_of_papers_are_marked_as_theirs(tmp_path: Path) -> None:
    theirs = [{"method": "pFedMMA", "local": 97.17, "base": 77.4, "novel": 81.49, "source": "x"}]
    text = markdown(to_dict(comparison(tmp_path), theirs))
    assert "theirs, not measured here" in text
    assert "| pFedMMA | 97.17 | 77.40 | 81.49 | - | x |" in text


def test_three_seeds_by_hand() -> None:
    """Mean 80, deviation 2, interval 4.303 * 2 / sqrt(3)."""
    found = spread([78.0, 80.0, 82.0])
    assert found is not None
    assert (found["mean"], found["deviation"]) == (80.0, 2.0)
    assert found["interval"] == pytest.approx(4.968, abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    found = spread([78.0])
    assert found is not None
    assert found == {"mean": 78.0, "deviation": None, "interval": None}


def test_what_is_not_measured_everywhere_is_not_averaged() -> None:
    assert spread([78.0, None]) is None
    assert spread([]) is None


def test_many_seeds_use_the_normal_distribution() -> None:
    found = spread([0.0, 2.0] * 50)
    assert found is not None
    assert found["deviation"] is not None
    assert found["interval"] == pytest.approx(1.960 * found["deviation"] / 10)


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
    for table in _published_tables():
        assert set(table["datasets"]) <= set(known_datasets())
        assert table["url"].startswith("https://")
        for figures in table["methods"].values():
            assert set(figures) == {"local", "base", "novel", "hm3"}
            assert all(0 < value < 100 for value in figures.values())
