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
        ([str(number) for number in range(30)] * 4, "regression"),
        ([f"{number / 7:.3f}" for number in range(30)], "regression"),
        ([f"it is {number}\n#### {number}" for number in range(30)], "maths"),
        (["B-PER O", "O B-LOC I-LOC"] * 3, "token_classification"),
        (["O", "O O", "B-LOC"], "generation"),
        (
            ['["We show that this is so for all who came."]', '["It is shown here that they all came.", "All came."]']
            * 3,
            "summarisation",
        ),
        (['{"name": "now", "arguments": {}}', "Good morning!"] * 5, "tool_calls"),
        (['{"name": "now", "arguments": {}}', '{"name": "Ada"}'] * 5, "extraction"),
        ([f"{a}, {b}" for a in "abcdef" for b in "ghijkl"], "multi_label"),
        ([f"{a} met {b}, gladly" for a in "abcdef" for b in "ghijkl"], "generation"),
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


def test_numbers_after_questions_with_numbers_are_maths() -> None:
    rows = [(f"Tom has {a} apples and eats {b}. How many are left?", str(a - b)) for a in range(30, 60) for b in (1, 2)]
    assert infer_task(examples(rows)) == "maths"


def test_sentences_out_of_the_input_are_extracted() -> None:
    text = "The tenant pays all of the rent on the first day. The owner mends what is broken within a week."
    rows = [(f"{text} {i}", '["The tenant pays all of the rent on the first day."]') for i in range(9)]
    assert infer_task(examples(rows)) == "extraction"


def test_reasons_carry_numbers() -> None:
    assert explain_task(examples([("a", "x"), ("b", "y")] * 4)) == (
        "classification",
        "2 distinct short answers in 8 rows",
    )
    assert infer_task([]) == "generation"
