"""Graders as metrics: which become one, which do not, and why."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.service.moving.graders import Mapped, Unmapped, mapped_graders, metric_name
from tunesmith.tasks.formula import compile_formula

OUTPUT = "{{ sample.output_text }}"


def check(operation: str, reference: str = "{{item.right}}", **more: Any) -> dict[str, Any]:
    return {
        "type": "string_check",
        "name": "Check it",
        "input": OUTPUT,
        "reference": reference,
        "operation": operation,
        **more,
    }


@pytest.mark.parametrize(
    ("operation", "answer", "expected", "value"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("ne", "Rome", "Paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("ilike", "It is paris.", "Paris", 1),
        ("ilike", "It is Rome.", "Paris", 0),
    ],
)
def test_a_string_check_is_a_formula_with_the_same_meaning(
    operation: str, answer: str, expected: str, value: int
) -> None:
    (found,) = mapped_graders([check(operation)])
    assert isinstance(found, Mapped) and found.formula is not None and found.metric == "check_it"
    assert compile_formula(found.formula, "a grader")(answer, expected) == value


@pytest.mark.parametrize("reference", ["yes", 'it\'s "so"', "a\\b", "line\nbreak", "ünï", "a: b"])
def test_a_reference_of_its_own_stands_in_the_formula(reference: str) -> None:
    (found,) = mapped_graders(check("eq", reference))
    assert isinstance(found, Mapped) and found.formula is not None
    formula = compile_formula(found.formula, "a grader")
    assert formula(reference, "whatever") == 1 and formula(reference + "!", "whatever") == 0


def test_measures_of_likeness_that_recipes_have() -> None:
    graders = [
        {"type": "text_similarity", "name": m, "input": OUTPUT, "reference": "{{item.r}}", "evaluation_metric": m}
        for m in ("rouge_l", "rouge_1", "bleu")
    ]
    graders[0]["pass_threshold"] = "0.5"
    found = list(mapped_graders(graders))
    assert [(one.task, one.metric) for one in found if isinstance(one, Mapped)] == [
        ("generation", "rouge_l"),
        ("summarisation", "rouge_1"),
        ("translation", "bleu"),
    ]
    assert isinstance(found[0], Mapped) and found[0].threshold == 0.5


@pytest.mark.parametrize(
    ("grader", "reason"),
    [
        (check("matches"), "the operation 'matches' is not known"),
        (check("eq", input="{{sample.output_json.name}}"), "looks at '{{sample.output_json.name}}'"),
        (check("eq", "x" * 3_000), "more than a formula may have"),
        (check("eq", "/tmp/evil.py:run"), "would read as the place of a function"),
        (
            {"type": "text_similarity", "name": "m", "input": OUTPUT, "reference": "x", "evaluation_metric": "meteor"},
            "there is no metric meteor",
        ),
        ({"type": "label_model", "name": "m"}, "tunesmith judge"),
        ({"type": "score_model", "name": "m"}, "tunesmith judge"),
        ({"type": "python", "name": "m", "source": "import os"}, "it is code"),
        ({"type": "endpoint", "name": "m"}, "'endpoint' are not known"),
        ({}, "are not known"),
    ],
)
def test_what_is_no_metric_is_said_with_its_reason(grader: dict[str, Any], reason: str) -> None:
    (found,) = mapped_graders([grader])
    assert isinstance(found, Unmapped) and reason in found.reason


def test_parts_of_a_multi_grader_come_one_by_one() -> None:
    multi = {
        "type": "multi",
        "name": "both",
        "graders": {"a": check("eq", name="a"), "b": {"type": "python", "name": "b"}},
        "calculate_output": "a + b",
    }
    whole, first, second = mapped_graders(multi)
    assert isinstance(whole, Unmapped) and "'a + b'" in whole.reason
    assert isinstance(first, Mapped) and first.metric == "a" and isinstance(second, Unmapped)


def test_names_of_metrics() -> None:
    assert [metric_name(one) for one in ("Exact match!", "2nd", "", "ünï", "a.b")] == [
        "exact_match",
        "check_2nd",
        "check",
        "n",
        "a_b",
    ]
