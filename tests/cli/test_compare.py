"""`pfedmma compare`: its options, and what it prints."""

from __future__ import annotations

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.cli.options import split_numbers


def test_seeds_as_numbers_and_ranges() -> None:
    assert split_numbers("--seeds", "0-2, 7", "0-9") == [0, 1, 2, 7]
    assert split_numbers("--seeds", "4-4", "0-9") == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds ten", "--seeds takes whole numbers such as 0-9 or 0,3,7, not 'ten'"),
        ("--seeds 3-1", "name at least one seed to compare"),
        ("--seeds -1", "--seeds takes whole numbers such as 0-9 or 0,3,7, not '-1'"),
        ("--criterion own", "--criterion says what --tune chooses by: add --tune, or leave it out"),
        ("--tune --criterion both", "criterion must be one of harmonic, own, not 'both'"),
    ],
)
def test_mistakes(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--preset", "quickstart", *arguments.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
