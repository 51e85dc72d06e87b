"""What the pipeline hands to the statistics and the verdict: groups of test rows, slices, margin, gates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.data.types import Example, Message
from tunesmith.evaluation.comparison import compare, metric_values
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.pipeline import stages
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.verdict.types import CandidateCost

ANSWERS = {
    "tuned": [True] * 36 + [False] * 4,
    "few_shot": [True] * 4 + [False] * 16 + [True] * 20,
}
"""Forty rows of ten customers; tuned is wrong on the four rows of the last one."""


class _Accuracy:
    def __init__(self) -> None:
        metric = MeanMetric("accuracy", binary=True, score=lambda parsed, expected: float(parsed))
        self.name, self.metrics = "classification", {metric.name: metric}

    def target(self, example: Example) -> str:
        return example.expected

    def slices(self, example: Example) -> dict[str, str]:
        return {"label": example.expected}


def prepared(**settings: Any) -> Any:
    rows = tuple(
        Example(
            f"r{i}",
            (Message("user", f"q{i}"), Message("assistant", "a")),
            "refund" if i >= 28 else "card",
            i,
            "t",
            values={"customer": f"c{i // 4}"} if i else {},
        )
        for i in range(40)
    )
    recipe = Recipe.model_validate({"data": "rows.jsonl", "goal": {"metric": "accuracy"}, **settings})
    return SimpleNamespace(
        recipe=recipe,
        task=_Accuracy(),
        rows=SimpleNamespace(splits=SimpleNamespace(test=rows), leaks=()),
        seen_test_rows=(),
        base=SimpleNamespace(folder=None),
    )


def evaluations(setting: Any) -> list[Evaluation]:
    found = []
    for name, right in ANSWERS.items():
        rows = tuple(
            ScoredAnswer(e.id, "p", "a", e.expected, right[i], {"accuracy": float(right[i])}, 10, 2, True)
            for i, e in enumerate(setting.rows.splits.test)
        )
        values = metric_values(name, rows, setting.task, resamples=200, confidence=0.95, seed=0)
        found.append(Evaluation(name, rows, values, 0.1, 0.2, 1.0))
    return found


def test_rows_of_a_group_count_together() -> None:
    setting = prepared(data={"train": "rows.jsonl", "split": {"group_by": "customer"}}, evaluate={"bootstrap": 300})
    (found,) = stages.compare_all(setting, evaluations(setting)).differences
    # Nine whole customers and one without its first row, which names no customer and stands alone.
    assert (found.clusters, found.n, found.test) == (11, 40, "permutation")
    alone = prepared(evaluate={"bootstrap": 300})
    (plain,) = stages.compare_all(alone, evaluations(alone)).differences
    assert (plain.clusters, plain.test) == (None, "McNemar")
    assert found.difference == plain.difference
    assert found.high - found.low > plain.high - plain.low


def test_a_row_without_its_group_is_refused() -> None:
    setting = prepared()
    with pytest.raises(Exception, match="belongs to no cluster"):
        compare(evaluations(setting), setting.task, "accuracy", resamples=100, confidence=0.95, seed=0, clusters={})


def test_what_is_asked_reaches_the_verdict() -> None:
    costs = {name: CandidateCost(name, 10, 2, 0.1, 0.2, 1.0, 0.0) for name in ANSWERS}

    def decided(**verdict: Any) -> Any:
        setting = prepared(verdict={"min_gain": 0.0, **verdict})
        found = evaluations(setting)
        return stages.decide_run(setting, found, stages.compare_all(setting, found), costs, {})

    assert decided(slice_loss=None).decision == "ship_tuned"
    assert "margin" not in decided().assumptions
    assert decided(margin=0.05).assumptions["margin"] == 0.05
    gated = decided(gates={"accuracy": 0.95})
    assert (gated.rule, gated.candidate) == ("vetoed", "few_shot")


def test_slices_are_those_of_the_task() -> None:
    assert {name: len(ids) for name, ids in stages._slices(prepared()).items()} == {
        "label card": 28,
        "label refund": 12,
    }
