"""The rule by which a task is recognised."""

from __future__ import annotations

import pytest

from tests.data.makers import examples
from tunesmith.data import explain_task, infer_task


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes", "no"] * 3, "classification"),
        (["positive", "negative", "mixed feelings about it"] * 2, "classification"),
        (["1", "2", "3", "4", "5"] * 4, "classification"),
        ([str(number) for number in range(30)] * 4, "generation"),
        (["a", "b", "c"], "generation"),
        (["same"] * 10, "generation"),
        (["a long answer that has many more words than a label has"] * 5 + ["short"] * 5, "generation"),
        (["two\nlines", "one"] * 5, "generation"),
        (['["a"]', "[]", '{"b": 1}'] * 5, "extraction"),
        (['["a"]'] * 96 + ["broken"] * 4, "extraction"),
        (["[not json]", "{neither}"] * 5, "classification"),
    ],
)
def test_tasks(answers: list[str], task: str) -> None:
    assert infer_task(examples([(f"text {number}", answer) for number, answer in enumerate(answers)])) == task


def test_reasons_carry_numbers() -> None:
    assert explain_task(examples([("a", "x"), ("b", "y")] * 4)) == (
        "classification",
        "2 distinct short answers in 8 rows",
    )
    assert infer_task([]) == "generation"
