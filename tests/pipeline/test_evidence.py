"""What the pipeline hands to the statistics and the verdict: groups of test rows, slices, margin, gates."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.data.types import Example, Message
from tunesmith.evaluation.comparison import compare, metric_values
from tunesmith.evaluation.types import Evaluation, PairedDifference, ScoredAnswer
from tunesmith.pipeline.clusters import slices_of
from tunesmith.pipeline.deciding import caveats_on_the_way, compare_all, costs_of, decide_on
from tunesmith.pipeline.evidence import Background, Evidence
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.verdict.types import CandidateCost, Forgetting

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


def evidence(setting: Any, costs: Any, **more: Any) -> Evidence:
    found = evaluations(setting)
    background = Background("classification", (), (), "", {}, ())
    compared = compare_all(setting, found)
    return Evidence(setting.recipe, tuple(found), compared, costs, {}, (), slices_of(setting), background, **more)


def test_rows_of_a_group_count_together() -> None:
    setting = prepared(data={"train": "rows.jsonl", "split": {"group_by": "customer"}}, evaluate={"bootstrap": 300})
    (found,) = compare_all(setting, evaluations(setting)).differences
    # Nine whole customers and one without its first row, which names no customer and stands alone.
    assert (found.clusters, found.n, found.test) == (11, 40, "permutation")
    alone = prepared(evaluate={"bootstrap": 300})
    (plain,) = compare_all(alone, evaluations(alone)).differences
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
        return decide_on(evidence(setting, costs))

    assert decided(slice_loss=None).decision == "ship_tuned"
    assert "margin" not in decided().assumptions
    assert decided(margin=0.05).assumptions["margin"] == 0.05
    gated = decided(gates={"accuracy": 0.95})
    assert (gated.rule, gated.candidate) == ("vetoed", "few_shot")


def test_limits_on_forgetting_reach_the_verdict() -> None:
    costs = {name: CandidateCost(name, 10, 2, 0.1, 0.2, 1.0, 0.0) for name in ANSWERS}
    skill = PairedDifference("tuned", "base", "general_instructions", -0.3, -0.45, -0.15, 0.001, 40)
    forgot = Forgetting(8.0, 10.0, skill, 40, 0.5, 0.2)

    def decided(forgetting: Forgetting | None, **verdict: Any) -> Any:
        setting = prepared(verdict={"min_gain": 0.0, "slice_loss": None, **verdict})
        return decide_on(evidence(setting, costs, forgetting=forgetting))

    shown = decided(forgot)
    assert shown.decision == "ship_tuned"
    assert any("Of 40 general instructions the base follows 20 and tuned 8 (-30.0 points" in c for c in shown.caveats)
    assert "perplexity rose by 25.0 %" in decided(forgot, perplexity_rise=0.2).vetoes[0]
    assert "forgotten general instructions" in decided(forgot, skill_loss=0.1).vetoes[0]
    assert decided(forgot, skill_loss=0.2, perplexity_rise=0.3).decision == "ship_tuned"
    none = decided(Forgetting(8.0, 8.0, None, 40, 0.0, 0.1), skill_loss=0.1)
    assert none.decision == "ship_tuned"
    assert any("follows none of 40 general instructions" in caveat for caveat in none.caveats)
    assert any("verdict.skill_loss forbade nothing" in caveat for caveat in none.caveats)
    off = decided(None, skill_loss=0.1, perplexity_rise=0.1)
    assert any("verdict.perplexity_rise and verdict.skill_loss forbade nothing" in caveat for caveat in off.caveats)


def test_test_rows_that_all_expect_the_same_are_pointed_out() -> None:
    setting = prepared()
    assert not any("same answer" in caveat for caveat in caveats_on_the_way(setting, [], None, None))
    alike = tuple(replace(row, expected="card") for row in setting.rows.splits.test)
    setting.rows.splits.test = alike
    (said,) = [c for c in caveats_on_the_way(setting, [], None, None) if "same answer" in c]
    assert said.startswith("All 40 test rows expect the same answer (card)")


def test_an_endpoint_is_charged_by_its_prices_in_whatever_way_it_answers() -> None:
    remote = {"url": "http://127.0.0.1:1/v1", "model": "m", "prompt_price": 2.0, "answer_price": 8.0}
    setting = prepared(remotes={"large": remote})
    named = [replace(one, candidate=name) for one in evaluations(setting)[:1] for name in ("remote_large", "tuned")]
    named.append(replace(named[0], candidate="remote_large_grammar"))
    found = costs_of(setting, named, None)
    # 1,000 requests of 10 prompt and 2 answer tokens, priced per million.
    assert found["remote_large"].per_1000_requests == pytest.approx((10 * 2.0 + 2 * 8.0) / 1000)
    assert found["remote_large_grammar"].per_1000_requests == found["remote_large"].per_1000_requests
    assert found["tuned"].per_1000_requests == pytest.approx(1000 * 0.1 / 3600 * 0.10)


def test_slices_are_those_of_the_task() -> None:
    assert {name: len(ids) for name, ids in slices_of(prepared()).items()} == {
        "label card": 28,
        "label refund": 12,
    }
