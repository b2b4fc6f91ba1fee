"""What stands over the clients of a run: means, the worst one, those that lose."""

from __future__ import annotations

from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation

ZERO_SHOT = Accuracy(local=60.0, base=70.0, novel=80.0, all=65.0)
FOUND = RunEvaluation(
    zero_shot=dict.fromkeys(("north", "south", "west"), ZERO_SHOT),
    personalized={
        "north": Accuracy(90.0, 69.0, 80.0, 66.0),  # one point of base: not more
        "south": Accuracy(80.0, 75.0, 78.5, 64.0),  # one and a half of novel
        "west": Accuracy(None, 75.0, 80.0, 70.0),
    },
    strengths={"north": 1.0, "south": 0.5, "west": 0.0},
)


def test_worst_and_losing_by_hand() -> None:
    assert FOUND.losing_clients == ["south"]
    assert FOUND.losing_share == 100 / 3
    worst = FOUND.worst
    assert worst["local"] == {"client": "south", "accuracy": 80.0}
    assert worst["base"] == {"client": "north", "accuracy": 69.0}
    assert worst["novel"] == {"client": "south", "accuracy": 78.5}
    assert worst["all"] == {"client": "south", "accuracy": 64.0}


def test_what_nobody_has_has_no_worst() -> None:
    figures = {"a": Accuracy(1.0, 2.0, None)}
    one = RunEvaluation(figures, figures, {"a": 1.0})
    assert one.worst["novel"] is None and one.worst["base"] == {"client": "a", "accuracy": 2.0}
    assert one.losing_share == 0.0


def test_the_names_that_json_uses() -> None:
    values = FOUND.to_dict()
    assert list(values) == [
        "zero_shot",
        "personalized",
        "worst",
        "losing_share",
        "losing_clients",
        "clients",
    ]
    assert values["personalized"]["all"] == 200 / 3
    assert values["clients"]["north"]["zero_shot"]["base"] == 70.0
