"""Published figures: found for the same protocol only, with their source."""

from __future__ import annotations

import pytest

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.report.published import _tables, published_rows

FIELDS = {"method", "local", "base", "novel", "hm3", "source", "url", "datasets"}


def test_the_means_of_the_pfedmma_paper() -> None:
    rows = published_rows("oxford_pets", "base-novel/disjoint", "ViT-B-16", 16)
    assert [row["method"] for row in rows] == [
        "zero-shot", "promptfl", "fedpgp", "fedotp", "pfedmoap", "pfedmma",
    ]  # fmt: skip
    ours = rows[-1]
    assert set(ours) == FIELDS
    assert (ours["local"], ours["base"], ours["novel"], ours["hm3"]) == (97.17, 77.40, 81.49, 84.15)
    assert ours["source"] == "pFedMMA, arXiv 2507.05394 (ICLR 2026), mean over 7 data sets"
    assert len(ours["datasets"]) == 7


def test_names_are_taken_as_people_write_them() -> None:
    protocol = {"classes": "base-novel", "partition": "disjoint"}
    expected = published_rows("oxford_pets", "base-novel/disjoint", "ViT-B-16", 16)
    assert published_rows("/data/oxford-iiit-pet", protocol, "vit-b/16", 16) == expected


@pytest.mark.parametrize(
    ("dataset", "protocol", "backbone", "shots"),
    [
        ("eurosat", "base-novel/disjoint", "ViT-B-16", 16),
        ("oxford_pets", "base-novel/dirichlet", "ViT-B-16", 16),
        ("oxford_pets", "all/disjoint", "ViT-B-16", 16),
        ("oxford_pets", "base-novel/disjoint", "ViT-B-32", 16),
        ("oxford_pets", "base-novel/disjoint", "ViT-B-16", 8),
    ],
)
def test_another_protocol_has_no_figures(
    dataset: str, protocol: str, backbone: str, shots: int
) -> None:
    assert published_rows(dataset, protocol, backbone, shots) == []


def test_every_table_names_known_data_sets_and_plausible_figures() -> None:
    for table in _tables():
        assert set(table["datasets"]) <= set(known_datasets())
        assert table["url"].startswith("https://")
        for figures in table["methods"].values():
            assert set(figures) == {"local", "base", "novel", "hm3"}
            assert all(0 < value < 100 for value in figures.values())
