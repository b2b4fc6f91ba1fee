"""What pydantic finds, in the sentences of this package."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.validation import check, construct


@dataclass(frozen=True)
class Parameters:
    rank: Annotated[int, Field(ge=1)] = 8
    scale: Annotated[float, Field(gt=0)] = 1.0
    mass: Annotated[float, Field(gt=0, le=1)] = 0.5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    share: Literal["A", "B", "AB"] = "A"
    is_wide: bool = False
    limit: Annotated[float, Field(gt=0)] | None = None
    words: str = "x"
    nested: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        check(self)


SENTENCES: list[tuple[str, Any, str]] = [
    ("rank", 0, "rank must be 1 or more, not 0."),
    ("rank", 1.5, "rank must be a whole number, not 1.5."),
    ("rank", True, "rank must be a whole number, not True."),
    ("scale", 0, "scale must be above 0, not 0.0."),
    ("scale", "big", "scale must be a number, not 'big'."),
    ("scale", float("nan"), "scale must be above 0, not nan."),
    ("scale", float("inf"), "scale must be above 0, not inf."),
    ("mass", 1.5, "mass must be above 0 and at most 1, not 1.5."),
    ("dropout", 1.0, "dropout must be from 0 to below 1, not 1.0."),
    ("ratio", -1, "ratio must be from 0 to 1, not -1.0."),
    ("share", "C", "share must be A or B or AB, not 'C'."),
    ("share", "BA", "share must be A or B or AB, not 'BA'; did you mean 'B'?"),
    ("is_wide", "yes", "is_wide must be true or false, not 'yes'."),
    ("is_wide", 1, "is_wide must be true or false, not 1."),
    ("limit", -2, "limit must be above 0, not -2.0."),
    ("limit", [], "limit must be a number, not []."),
    ("words", 3, "words must be a text, not 3."),
    ("nested", {"clients": 3}, "nested must be a PartitionConfig, not {'clients': 3}."),
]


@pytest.mark.parametrize(("name", "value", "sentence"), SENTENCES)
def test_one_sentence_for_each_mistake(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as made:
        Parameters(**{name: value})
    assert str(made.value) == sentence
    with pytest.raises(UsageError) as built:
        construct(Parameters, {name: value}, "plora")
    assert str(built.value).removeprefix("plora: ") == sentence


def test_whose_value_of_another_type_it_is() -> None:
    """Out of range says enough by itself; a value of another type may be of another method."""
    with pytest.raises(UsageError, match=r"^plora: rank must be a whole number, not 'many'\.$"):
        construct(Parameters, {"rank": "many"}, "plora")
    with pytest.raises(UsageError, match=r"^rank must be 1 or more, not 0\.$"):
        construct(Parameters, {"rank": 0}, "plora")


def test_unknown_names_are_met_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        construct(Parameters, {"rang": 3}, "plora")
    assert str(caught.value) == (
        "plora has no hyper-parameter 'rang'; did you mean 'rank'? (it has: rank, scale, mass,"
        " dropout, ratio, share, is_wide, limit, words, nested)."
    )

    @dataclass(frozen=True)
    class Nothing:
        pass

    with pytest.raises(UsageError, match=r"zero-shot has no hyper-parameter 'rank' \(it has: none"):
        construct(Nothing, {"rank": 3}, "zero-shot")


def test_whole_numbers_become_floats_and_nothing_else_changes() -> None:
    made = construct(Parameters, {"scale": 2, "limit": 3}, "plora")
    assert made == Parameters(scale=2.0, limit=3.0)
    assert [type(value) for value in (made.scale, made.limit)] == [float, float]
    assert Parameters().limit is None


def test_options_go_by_the_names_of_their_flags() -> None:
    with pytest.raises(UsageError, match=r"^shots must be 0 \(all images\) or more .*, not -1\.$"):
        PartitionConfig(num_shots=-1)
    with pytest.raises(
        UsageError, match=r"^partition must be disjoint, dirichlet, pachinko, domain"
    ):
        PartitionConfig(scheme="iid")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^lr must be a number above 0, not 0\.0\.$"):
        TrainConfig(data="a", backbone="b", lr=0)
    with pytest.raises(UsageError, match=r"^parameters must be a table of names and values"):
        TrainConfig(data="a", backbone="b", parameters=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module", ["cli.main", "runtime", "data.images", "config", "data.federation"]
)
def test_it_is_imported_where_a_configuration_is_made(module: str) -> None:
    code = f"import sys, pfedmma_deploy.{module}; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
