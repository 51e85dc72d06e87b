"""Metrics of the user's own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.rows import example
from tunesmith.errors import RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import fit_task, quick_score, restore_task, task_record
from tunesmith.tasks.formula import compile_formula

ROWS = [example("money back!", "refund"), example("where is it?", "ask")]
COST = {"formula": '-200 if answer == "refund" and expected != "refund" else -5 if answer != expected else 0',
        "worst": -200, "best": 0}  # fmt: skip


def spec(**metrics: object) -> TaskSpec:
    return TaskSpec.model_validate({"metrics": metrics})


def test_a_business_metric_is_a_share_of_its_scale() -> None:
    task = fit_task(spec(refund_cost=COST), "classification", ROWS)
    assert list(task.metrics) == ["accuracy", "macro_f1", "refund_cost"]
    careful, careless = quick_score(task, ["ask", "ask"], ROWS), quick_score(task, ["refund", "refund"], ROWS)
    assert careful["accuracy"] == careless["accuracy"] == 0.5
    assert careful["refund_cost"] == pytest.approx(1 - 5 / 2 / 200)
    assert careless["refund_cost"] == pytest.approx(0.5)
    assert quick_score(task, ["?", "?"], ROWS)["refund_cost"] == 0.0


def test_a_fitted_task_with_own_metrics_is_restored_from_json() -> None:
    task = fit_task(spec(refund_cost=COST), "classification", ROWS)
    again = restore_task(json.loads(json.dumps(task_record(task))))
    assert again == task
    assert quick_score(again, ["ask", "ask"], ROWS) == quick_score(task, ["ask", "ask"], ROWS)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "money.py").write_text("def saved(answer, expected):\n    return min(answer['sum'], expected['sum'])\n")
    rows = [example("a", '{"sum": 10, "to": "x"}'), example("b", '{"sum": 4, "to": "y"}')]
    own = {"formula": f"{tmp_path}/money.py:saved", "worst": 0, "best": 10}
    task = fit_task(spec(saved=own), "extraction", rows)
    assert quick_score(task, ['{"sum": 8}', '{"sum": 8}'], rows)["saved"] == pytest.approx((0.8 + 0.4) / 2)
    assert quick_score(task, ['{"total": 8}', '{"sum": "much"}'], rows)["saved"] == 0.0
    assert quick_score(task, ['{"sum": -8}', '{"sum": 99}'], rows)["saved"] == pytest.approx((0 + 0.4) / 2)


def test_whatever_a_function_raises_on_an_answer_is_counted_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import re\n\ndef likes(answer, expected):\n    assert answer != 'x'\n"
        "    return bool(re.match(answer, expected))\n"
    )
    rows = [example(str(i), "good") for i in range(4)]
    task = fit_task(spec(likes={"formula": f"{tmp_path}/own.py:likes"}), "generation", rows)
    with pytest.warns(RuntimeWarning) as told:
        scores = quick_score(task, ["(", "[", "x", "go*d"], rows)
    assert scores["likes"] == 0.25
    messages = [str(warning.message) for warning in told]
    assert len(messages) == 2 and "task.metrics.likes" in messages[0] and "line 4 of own.py" in messages[1]
    assert task.metrics["likes"].failures.total() == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("answer.__class__", "not allowed"),
        ("__import__('os')", "not allowed"),
        ("[x for x in answer]", "not allowed"),
        ("9 ** 9 ** 9", "not allowed"),
        ("answr == expected", "not allowed"),
        ("answer ==", "not a formula"),
        ("answer['amount'] * 2", "fails on an expected answer"),
        ("'a' * 3", "fails on an expected answer"),
        ("1 / 0", "fails on an expected answer"),
        ("1e400", "gives inf"),
        ("round(7, 0-20000000)", "at most 300"),
        ("-" * 1500 + "1", "nested"),
        ("+".join(["1"] * 900), "nested"),
        ("[x for x in " + "-" * 900 + "1]", "nested"),
        ("nowhere.py:f", "no file"),
    ],
)
def test_wrong_formulas_are_refused_before_anything_runs(formula: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        fit_task(spec(own={"formula": formula}), "classification", ROWS)


def test_names_of_the_task_and_files_without_the_function_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has a metric of this name"):
        fit_task(spec(accuracy={"formula": "1"}), "classification", ROWS)
    (tmp_path / "m.py").write_text("def one(answer, expected):\n    return 1\n")
    with pytest.raises(RecipeError, match="no function 'two'"):
        fit_task(spec(own={"formula": f"{tmp_path}/m.py:two"}), "classification", ROWS)
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no')\n")
    with pytest.raises(RecipeError, match=r"line 2 of broken\.py"):
        fit_task(spec(own={"formula": f"{tmp_path}/broken.py:f"}), "classification", ROWS)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1 if answer == expected else 0", 0),
        ("not answer in ['x', 'y'] or 2 < 1", True),
        ("round(2.567, 2) + round(1234, -2)", 1202.57),
        ("+".join(["1"] * 90), 90),
        ("max(len(answer), 2) - abs(-3) // 2 + 7 % 4", 5),
        ("1 < 2 < 3", True),
        ("round(float('2.6')) + min(1, 2)", 4),
        ("lower('ABC') == 'abc' and expected[0] == 'b'", True),
    ],
)
def test_formulas_compute(formula: str, value: object) -> None:
    assert compile_formula(formula, "here")("one", "b") == value


@given(st.text(max_size=40))
def test_no_text_crashes_the_compiler(text: str) -> None:
    with contextlib.suppress(RecipeError):
        compile_formula(text, "here")
