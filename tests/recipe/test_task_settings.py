"""Settings of the task: metrics that may decide, what belongs to which task, paths beside the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.recipe import load_recipe, parse_recipe
from tunesmith.recipe.overrides import apply_overrides
from tunesmith.recipe.problems import InvalidRecipeError


def problems(task: dict[str, Any], metric: str = "auto") -> list[str]:
    try:
        parse_recipe({"data": "rows.csv", "task": task, "goal": {"metric": metric}})
    except InvalidRecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("auto", "accuracy"), ("auto", "chrf"), ("extraction", "f1.the unit"), ("maths", "accuracy"),
        ("ordinal", "quadratic_kappa"), ("generation", "auto"),
    ],
)  # fmt: skip
def test_metrics_that_may_decide(kind: str, metric: str) -> None:
    assert problems({"type": kind}, metric) == []


@pytest.mark.parametrize(
    ("kind", "metric", "told"),
    [
        ("auto", "acuracy", "did you mean accuracy?"),
        ("maths", "rouge_l", "is no metric that can decide for maths"),
        ("summarisation", "copied_share", "is no metric that can decide for summarisation"),
        ("classification", "f1.name", "is no metric that can decide"),
    ],
)
def test_other_metrics_are_refused_with_what_there_is(kind: str, metric: str, told: str) -> None:
    (said,) = problems({"type": kind}, metric)
    assert said.startswith("goal.metric") and told in said


def test_own_metrics_may_decide_and_need_a_scale() -> None:
    own = {"formula": "1", "worst": -5, "best": 0}
    assert problems({"metrics": {"cost": own}}, "cost") == []
    for bad in ({**own, "best": -5}, {**own, "best": float("inf")}, {**own, "worst": float("nan")}):
        (said,) = problems({"metrics": {"cost": bad}})
        assert "no scale" in said
    (said,) = problems({"metrics": {"my cost": own}})
    assert "not a name" in said
    (said,) = problems({"metrics": {"cost": {}}})
    assert said.startswith("task.metrics.cost.formula: missing")
    (said,) = problems({"metrics": {"cost": {**own, "wurst": 1}}})
    assert said == "task.metrics.cost.wurst: unknown setting; did you mean task.metrics.cost.worst?"
    (said,) = problems({"metrics": {"cost": {**own, "best": "much"}}})
    assert said.startswith("task.metrics.cost.best: 'much' is not allowed; expected number")


def test_an_own_metric_can_be_changed_for_one_command() -> None:
    data = {"data": "rows.csv", "task": {"metrics": {"cost": {"formula": "1", "worst": -5, "best": 0}}}}
    changed = parse_recipe(apply_overrides(data, ["task.metrics.cost.worst=-9"]))
    assert changed.task.metrics["cost"].worst == -9 and changed.task.metrics["cost"].formula == "1"


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("maths", "database", "x.sqlite"),
        ("code", "tolerance", 1),
        ("maths", "run_code", True),
        ("ordinal", "json_schema", "s"),
    ],
)
def test_settings_of_another_task_are_refused(kind: str, setting: str, value: object) -> None:
    (said,) = problems({"type": kind, setting: value})
    assert said.startswith(f"task.{setting}: has no meaning for task.type {kind}")


def test_sql_needs_a_database() -> None:
    (said,) = problems({"type": "text_to_sql"})
    assert said.startswith("task.database: missing")


def test_files_of_a_task_count_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "data: rows.csv\ntask:\n  type: extraction\n  json_schema: s.json\n"
        "  metrics: {a: {formula: 'm/own.py:f'}, b: {formula: 'answer == expected'}}\n"
    )
    task = load_recipe(tmp_path / "recipe.yaml").task
    assert task.json_schema == str(tmp_path / "s.json")
    assert task.metrics["a"].formula == f"{tmp_path}/m/own.py:f" and task.metrics["b"].formula == "answer == expected"
