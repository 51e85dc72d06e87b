"""From the recipe's task and the examples to a task that knows its labels, its JSON form, its closing text."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks.answers import bad_answer, closing_text
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.extraction import Extraction, Form
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.types import Task
from tunesmith.tasks.words import words

SHORT_ANSWER_WORDS = 3
"""Where the median expected answer has at most this many words, exact match decides a generation."""


def fit_task(spec: TaskSpec, task_type: str, examples: Sequence[Example]) -> Task:
    """The task of type `task_type` as `examples` (all splits together) show it.

    Raises `DataError` without examples or for answers that do not fit the task, `RecipeError` for an unknown type.
    """
    if not examples:
        raise DataError("there are no examples to fit the task to", expected="at least one row", fix="check data.train")
    if task_type == "classification":
        return _classification(spec, examples)
    if task_type == "extraction":
        return _extraction(spec, examples)
    if task_type == "generation":
        return _generation(spec, examples)
    raise RecipeError(
        f"there is no task {task_type!r}",
        where="task.type",
        expected="classification, extraction or generation",
        fix="set task.type to one of these",
    )


def _classification(spec: TaskSpec, examples: Sequence[Example]) -> Classification:
    labels = sorted({example.expected.strip() for example in examples}) if spec.labels == "auto" else spec.labels
    task = Classification(tuple(labels), spec.instruction, closing_text(examples))
    if spec.labels != "auto":
        for example in examples:
            task.target(example)
    return task


def _extraction(spec: TaskSpec, examples: Sequence[Example]) -> Extraction:
    values = [_json_answer(example) for example in examples]
    form = _form(spec, examples, values)
    # Where the form is given, rows of another one are refused below, by name.
    fitting = [value for value in values if isinstance(value, dict if form == "object" else list)]
    objects = (
        fitting
        if form == "object"
        else [element for value in fitting for element in value if isinstance(element, dict)]
    )
    keys = tuple(dict.fromkeys(key for value in objects for key in value))
    elements: Literal["text", "object"] = "object" if form == "list" and objects else "text"
    task = Extraction(form, keys, elements, spec.instruction, closing_text(examples))
    for example in examples:
        task.target(example)
    return task


def _json_answer(example: Example) -> Any:
    try:
        value = json.loads(example.expected)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list | dict):
        raise bad_answer(
            example,
            "the answer is not a JSON list or object",
            expected='such as ["flour", "eggs"] or {"name": "flour", "unit": "g"}',
            fix="correct the row, or set task.type",
        )
    return value


def _form(spec: TaskSpec, examples: Sequence[Example], values: Sequence[Any]) -> Form:
    """The recipe's form, or the form all answers have."""
    if spec.answer_form != "auto":
        return spec.answer_form
    first = type(values[0])
    for example, value in zip(examples, values, strict=True):
        if type(value) is not first:
            raise bad_answer(
                example,
                "some answers are JSON lists and others objects",
                expected="one form in all rows",
                fix="correct the rows, or set task.answer_form",
            )
    return "object" if first is dict else "list"


def _generation(spec: TaskSpec, examples: Sequence[Example]) -> Generation:
    median = statistics.median(len(words(example.expected)) for example in examples)
    return Generation(median <= SHORT_ANSWER_WORDS, spec.instruction, closing_text(examples))


def task_record(task: Task) -> dict[str, Any]:
    """A fitted task as JSON values, so that a run can be asked again without its data."""
    assert isinstance(task, Classification | Extraction | Generation)
    return {"name": task.name, **dataclasses.asdict(task)}


def restore_task(record: Mapping[str, Any]) -> Task:
    """The task `task_record` was made from."""
    kinds: dict[str, Callable[..., Task]] = {
        "classification": Classification,
        "extraction": Extraction,
        "generation": Generation,
    }
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k != "name"}
    return kinds[record["name"]](**fields)
